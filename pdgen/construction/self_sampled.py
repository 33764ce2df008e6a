"""Drafts that a model painted itself, judged by the world: the paper's self-sampled critique, in training, in small.

Synthetic errors do not look like the model's own; a model that is to notice its own has to be shown them.

Second stage: 7 of 15 wrong drafts of its own noticed, against 1 of 14 (docs/experiments.md#second-stage).
"""

from typing import Any, Protocol

import numpy as np

from pdgen.core import seeding
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
    world: requests drafts and reviews them; a wrong draft's trajectory has an `error` in its metadata.
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
  is_wrong = np.array([t.metadata['error'] is not None for t in reviewed], bool)
  right = seeding.generator(seed, _ORDER).permutation(np.flatnonzero(~is_wrong))[: is_wrong.sum()]
  kept = np.sort(np.concatenate([np.flatnonzero(is_wrong), right]))
  return [reviewed[i] for i in kept]
