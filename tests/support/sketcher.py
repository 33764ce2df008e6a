"""A stand-in for a painter tuned on multi-turn data: writes and paints shapes prompts by rule, some plans wrong.

Texts and pictures are a function of prompt and seed, as those of a painter are. Every third seed contradicts the
colours that the prompt states, every fifth paints another picture than planned, every seventh ends early.
"""

import types

import numpy as np

from pdgen.construction import asked, instructions, subgraphs, taxonomy
from pdgen.core import config as config_lib
from pdgen.core import rng as rng_lib
from pdgen.core import scene_graph, tags
from pdgen.core import trajectory as trajectory_lib
from pdgen.worlds import shapes

VOCABULARY = taxonomy.Taxonomy.from_dict(shapes.TAXONOMY)


class Sketcher:
  """The part of `pdgen.Painter` that construction needs."""

  def __init__(self):
    self.config = types.SimpleNamespace(sampling=config_lib.SamplingConfig())
    self.asked: list[int] = []  # Prompts of each call.

  def sample(self, prompts, *, seed, sampling, batch_size):
    assert len(prompts) == len(seed) <= batch_size
    self.asked.append(len(prompts))
    return types.SimpleNamespace(trajectories=[_painted(p, s) for p, s in zip(prompts, seed, strict=True)])


def _painted(prompt: str, seed: int) -> trajectory_lib.Trajectory:
  rng = rng_lib.numpy_rng(seed)
  spec = shapes.parse(prompt)
  if spec is None:  # A photograph: one step whose plan says whether it is wrong.
    text = f'A wrong picture {seed}.' if seed % 3 == 0 else f'A right picture {seed}.'
    step = trajectory_lib.Step(plan=tags.plan('Paint it.', text), draft=np.full((16, 16, 3), seed % 251, np.uint8))
    return trajectory_lib.Trajectory(prompt=prompt, steps=(step,))
  graph = asked.filled(scene_graph.from_spec(spec), vocabulary=VOCABULARY, rng=rng)
  assert graph is not None
  if seed % 3 == 0:
    first = graph.nodes[0]
    color = next(c for c in shapes.COLORS if c != first.value('color'))
    nodes = (first.replaced('color', color), *graph.nodes[1:])
    graph = scene_graph.SceneGraph(nodes=nodes, relations=graph.relations)
  steps = []
  for step in subgraphs.growing(graph, rng=rng):
    plan = instructions.Templates().write(step, rng=rng).plan
    picture = shapes.render_graph(step.after)
    steps.append(trajectory_lib.Step(plan=plan, draft=255 - picture if seed % 5 == 0 else picture))
  if seed % 7 == 0:
    return trajectory_lib.Trajectory(prompt=prompt, steps=tuple(steps), stop=trajectory_lib.PICTURE_CAP)
  return trajectory_lib.Trajectory(prompt=prompt, steps=tuple(steps))
