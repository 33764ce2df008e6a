"""Drafts that a model painted itself, judged by the world: the paper's self-sampled critique, in training, in small.

Synthetic errors do not look like the model's own; a model that is to notice its own has to be shown them.

A finished model's mistakes are few and of other kinds than those of the half-trained one that was shown its drafts:
mostly rings whose holes filled up. Measured, second stages of one model with thousands of its drafts, of which 3 % were
wrong, and `fault_weight` 6 to 8 (before, of 100 each: malformed 87, counts 92, extra 91; counting .98):

- 600 steps, learning rate 6e-4, self_share .25, 4,096 drafts, the first word after `Else: shown` weighted, too: this is
  configs/shapes_inspect.py, the shipped model. It noticed 7 of 15 wrong drafts of its own, not 1 of 14; malformed 94,
  counts 96, extra 97. Of its right drafts it rejected 7.0 %, not 3.1.
- The same with 450 steps over the first stage's stories (its seed): malformed 96, counts 92, extra 93, own 6 of 13; but
  it painted `three rings`, one of the four held-out prompts of counting, wrong (.81, not .92).
- 600 steps, 1e-3, .3, 6,144, without that word: own 7 of 17, malformed 91, but counts 83 and extra 88.
- Dead ends, from a model that had learned with a weight of 5 throughout (malformed 86): 700 steps, 1.5e-3, with 18 %
  more broken objects: malformed 82 (GenEval .993, not .962); with 20 % more of other scenes: 84.
"""

from typing import Any, Protocol

import numpy as np

from pdgen.core import rng as rng_lib
from pdgen.core import trajectory as trajectory_lib

_ORDER = 17  # number of the random stream that chooses among right drafts


class Request(Protocol):
  """prefix: a partial trajectory whose last step has a plan and no draft yet."""

  prefix: trajectory_lib.Trajectory


class World(Protocol):
  """What a world must offer, as functions of a module or methods: see `pdgen.worlds.shapes`."""

  def draft_request(self, *, seed: int, index: int) -> Request: ...

  def review(self, request: Request, draft: np.ndarray) -> trajectory_lib.Trajectory: ...


class Painter(Protocol):
  """`pdgen.Painter`, as far as it is needed."""

  def sample(self, prompts: list[trajectory_lib.Trajectory], *, seed: int, batch_size: int, pictures: int) -> Any: ...


def collect(
  painter: Painter, world: World, *, count: int, seed: int, batch_size: int = 64
) -> list[trajectory_lib.Trajectory]:
  """Training trajectories around drafts of the painter's own. A function of the painter's weights, count and seed.

  Args:
    painter: paints the next picture of a partial trajectory.
    world: requests drafts and reviews them; a wrong draft's trajectory has an error in its provenance.
    count: drafts painted; how many are returned depends on how many are wrong.
    seed: of requests and noise.
    batch_size: drafts a compiled call.

  Returns: every wrong draft's trajectory and at most as many of the right ones, in the order of the requests. Right
    ones alone would teach that nothing is ever wrong; a painter without wrong drafts gives an empty list.
  """
  requests = [world.draft_request(seed=seed, index=index) for index in range(count)]
  painted = painter.sample([r.prefix for r in requests], seed=seed, batch_size=batch_size, pictures=1).trajectories
  reviewed = []
  for request, trajectory in zip(requests, painted, strict=True):
    draft = trajectory.steps[len(request.prefix.steps) - 1].draft
    if draft is None:
      raise ValueError(f'No draft was painted for {trajectory.prompt!r} (stop: {trajectory.stop}). Raise max_tokens.')
    reviewed.append(world.review(request, draft))
  is_wrong = np.array([_is_wrong(t) for t in reviewed], bool)
  right = rng_lib.numpy_rng(seed, _ORDER).permutation(np.flatnonzero(~is_wrong))[: is_wrong.sum()]
  kept = np.sort(np.concatenate([np.flatnonzero(is_wrong), right]))
  return [reviewed[i] for i in kept]


def _is_wrong(trajectory: trajectory_lib.Trajectory) -> bool:
  return trajectory.provenance is not None and trajectory.provenance.error is not None
