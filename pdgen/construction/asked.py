"""Asked: a prompt with the scene graph that it states, and a whole scene that satisfies it; drawn for a build.

world       the world's own training prompts; the graph by its parser, what it leaves open filled in
taxonomy    a graph drawn from the taxonomy, worded as a prompt (places are left open where they are required)
prompts     lines of a file: by the world, by GenEval's templates, or by a writer model
"""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from pdgen.construction import prompt_parser, taxonomy, tools, wording, writers
from pdgen.core import scene_graph
from pdgen.core import trajectory as trajectory_lib

_TRIES = 200  # Scenes that are drawn for one that the world does not keep from training.
_FILLS = 50  # Fillings of a graph that are tried for one without contradiction.
_PER_TASK = 2000  # Prompts of each task of a world that are drawn from.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
  """A prompt and its scene."""

  prompt: str
  stated: scene_graph.SceneGraph  # What the prompt says.
  whole: scene_graph.SceneGraph  # A scene that satisfies it: `stated`, and more attributes.
  source: str  # `world`, `taxonomy`, `template` or `writer`: whence the graph.
  spec: trajectory_lib.PromptSpec | None = None  # In GenEval's terms, where the prompt is of that kind.


def draw(attempt: tools.Attempt) -> Asked:
  """The prompt of an attempt. Raises: tools.RejectionError where no scene is found, or a writer's graphs are wrong."""
  scenes, rng = attempt.tools.config.scenes, attempt.rng
  shares = np.cumsum([scenes.world, scenes.drawn, scenes.prompts])
  # The index alone decides which kind of prompt, so that a second attempt asks again for what the first one did.
  which = int(np.searchsorted(shares, _unit(attempt.index) * shares[-1], side='right'))
  for _ in range(_TRIES):
    if which == 0:
      made = _of_prompt(_choose_row(attempt), attempt)
    elif which == 1:
      made = _of_taxonomy(attempt)
    else:
      lines = _lines(scenes.prompt_file)
      made = _of_prompt(lines[attempt.index % len(lines)], attempt)
    if made is not None:
      return made
  raise tools.RejectionError(f'scene: none was found in {_TRIES} tries (seed {int(rng.integers(1))})')


def filled(
  graph: scene_graph.SceneGraph, *, vocabulary: taxonomy.Taxonomy, rng: np.random.Generator
) -> scene_graph.SceneGraph | None:
  """The graph with the required attributes that it leaves open; None where no filling without contradiction is found.

  Objects that are alike get the same values, but for `distinct` attributes.

  Args:
    graph: what is stated.
    vocabulary: says which attributes are required, and their values.
    rng: draws the values.
  """
  for _ in range(_FILLS):
    nodes: dict[str, scene_graph.Node] = {}
    for group in wording.groups(graph.nodes):
      shared: dict[str, str] = {}
      for node in group:
        made = _filled_node(node, vocabulary=vocabulary, shared=shared, taken=[*nodes.values()], rng=rng)
        if made is None:
          return None
        nodes[node.id] = made
    ordered = tuple(nodes[node.id] for node in graph.nodes)
    if scene_graph.contradiction(ordered, graph.relations) is None:
      return dataclasses.replace(graph, nodes=ordered)
  return None


def _filled_node(
  node: scene_graph.Node,
  *,
  vocabulary: taxonomy.Taxonomy,
  shared: dict[str, str],
  taken: list[scene_graph.Node],
  rng: np.random.Generator,
) -> scene_graph.Node | None:
  if node.name not in vocabulary.objects:
    return node
  appearance, state = node.appearance, node.state
  for name in vocabulary.objects[node.name].attributes:
    known = vocabulary.attributes[name]
    if not known.required or node.value(name) is not None:
      continue
    values = vocabulary.values(node, name)
    if known.distinct:
      used = {other.value(name) for other in taken}
      values = [v for v in values if v not in used]
    if not values:
      return None
    value = taxonomy.choose(rng, values) if known.distinct else shared.setdefault(name, taxonomy.choose(rng, values))
    if known.kind == scene_graph.APPEARANCE:
      appearance += (scene_graph.Attribute(name, value),)
    else:
      state += (scene_graph.Attribute(name, value),)
  return dataclasses.replace(node, appearance=appearance, state=state)


def _of_taxonomy(attempt: tools.Attempt) -> Asked | None:
  vocabulary, config = attempt.tools.vocabulary, attempt.tools.config
  seed = int(attempt.rng.integers(2**31))
  # Most graphs of the shapes world hold a pair that it keeps out: no more is drawn for those.
  keeps_out = attempt.tools.keeps_out
  whole = taxonomy.sample_unless(keeps_out, vocabulary, seed=seed, index=0, shares=config.scenes.graphs)
  if whole is None or not whole.nodes or keeps_out(whole):
    return None
  place = vocabulary.attributes.get(scene_graph.PLACE)
  stated = whole
  if place is not None and place.required:  # A prompt does not name the place of everything.
    bare = lambda n: dataclasses.replace(n, state=tuple(a for a in n.state if a.name != scene_graph.PLACE))
    stated = dataclasses.replace(whole, nodes=tuple(map(bare, whole.nodes)))
  return Asked(prompt=wording.prompt(stated), stated=stated, whole=whole, source='taxonomy')


def _of_prompt(prompt: str, attempt: tools.Attempt) -> Asked | None:
  world, spec, source = attempt.tools.world, None, 'world'
  if world is not None:
    spec = world.parse(prompt)
  if spec is None:
    spec, source = prompt_parser.parse_template(prompt), 'template'
  if spec is not None:
    stated = scene_graph.from_spec(spec)
  else:
    source = 'writer'
    if attempt.tools.dry:
      attempt.write(prompt_parser.task(prompt))
      node = scene_graph.Node(id='a.1', name='object')
      stated = scene_graph.SceneGraph(nodes=(node,))
    else:
      try:
        stated = prompt_parser.from_text(prompt, attempt, tries=attempt.tools.config.writer.tries)
      except writers.RejectedError as error:
        raise tools.RejectionError(f'writer: {error}') from error
  whole = filled(stated, vocabulary=attempt.tools.vocabulary, rng=attempt.rng)
  if whole is None or not whole.nodes or attempt.tools.keeps_out(whole):
    return None
  return Asked(prompt=prompt, stated=stated, whole=whole, source=source, spec=spec)


def _choose_row(attempt: tools.Attempt) -> str:
  return taxonomy.choose(attempt.rng, _world_prompts(attempt.tools.world))


@functools.cache
def _world_prompts(world: Any) -> tuple[str, ...]:
  if world is None:
    raise ValueError('config.scenes.world has a share, but there is no world (config.world).')
  return tuple(row['prompt'] for row in world.prompts('train', per_task=_PER_TASK))


@functools.cache
def _lines(file: str) -> tuple[str, ...]:
  lines = [' '.join(line.split()) for line in pathlib.Path(file).read_text(encoding='utf-8').splitlines()]
  found = tuple(line for line in lines if line)
  if not found:
    raise ValueError(f'{file} holds no prompt.')
  return found


def _unit(index: int) -> float:
  """A number in [0, 1) for an index; any run of indices is spread evenly (golden ratio)."""
  return (index + 1) * 0.6180339887498949 % 1.0
