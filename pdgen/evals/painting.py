"""Pictures of prompts by a painter, batch by batch, each with its own seed: what evaluators of pictures share.

The picture of a job is a function of the painter, the prompt and the seed, in whichever batch it is painted, so that a
run that was killed and goes on leaves the files of one that never stopped.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import base

BATCH = 32  # pictures painted side by side, if nothing else is said
CALL = 4  # Times as many are painted by a call, and then written: rows that have ended take the next.
_STRIDE = 1_000_003  # between the seeds of the samples of a prompt: more than any set has prompts


@dataclasses.dataclass(frozen=True)
class Job:
  """A picture to be painted."""

  prompt: str
  seed: int
  number: int  # of the prompt in its set
  sample: int = 0  # of the picture among those of its prompt


@dataclasses.dataclass(frozen=True)
class Painted:
  """What was painted."""

  trajectories: dict[Job, trajectory_lib.Trajectory]
  seconds: float

  def __str__(self) -> str:
    """How many trajectories were painted, and how they went."""
    if not self.trajectories:
      return 'Nothing was left to paint.'
    painted = list(self.trajectories.values())
    count, refined = len(painted), sum(s.refined is not None for t in painted for s in t.steps)
    finished = sum(t.stop == trajectory_lib.FINISHED for t in painted)
    unread = sum(t.stop == trajectory_lib.UNREADABLE for t in painted)
    cut = f', {unread} at a text that cannot be read' if unread else ''
    return (
      f'{count} trajectories in {self.seconds:.0f} s, {finished} of them ended by themselves{cut}; '
      f'{sum(len(t.pictures) for t in painted) / count:.2f} pictures each, {refined / count:.2f} of them refined'
    )


def seed_of(seed: int, number: int, sample: int) -> int:
  """The seed of a sample of a prompt: the same for any number of prompts and of samples.

  >>> seed_of(7, 2, 0), seed_of(7, 2, 1)
  (9, 1000012)
  """
  return seed + number if sample == 0 else (seed + number + sample * _STRIDE) % 2**32


def jobs(texts: Sequence[str], *, samples: int = 1, seed: int = 0) -> list[Job]:
  """All pictures of a set: the first of every prompt, then the second of every prompt, and so on.

  Args:
    texts: the prompts.
    samples: pictures a prompt.
    seed: of the first prompt's first picture.

  Raises: ValueError for less than one sample.
  """
  if samples < 1:
    raise ValueError(f'{samples=}: a prompt needs at least one picture.')
  return [Job(text, seed_of(seed, i, k), i, k) for k in range(samples) for i, text in enumerate(texts)]


def paint(
  painter: base.Painter,
  todo: Sequence[Job],
  *,
  mode: str | None,
  batch_size: int | None,
  write: Callable[[Job, np.ndarray], None] | None,
) -> Painted:
  """Paints jobs; the last picture of each trajectory is its picture.

  Args:
    painter: that paints.
    todo: the jobs.
    mode: `process` or `direct`; None: as the painter does.
    batch_size: trajectories painted together; None: as the painter does.
    write: keeps a picture as soon as its call has painted; None: all is painted in one call.
  """
  trajectories: dict[Job, trajectory_lib.Trajectory] = {}
  seconds, size = 0.0, len(todo) if write is None else CALL * (batch_size or BATCH)
  for start in range(0, len(todo), size or 1):
    batch = todo[start : start + size]
    result = painter.sample([j.prompt for j in batch], mode=mode, seed=[j.seed for j in batch], batch_size=batch_size)
    seconds += result.timings['seconds']
    trajectories |= dict(zip(batch, result.trajectories, strict=True))
    if write is not None:
      pictures = last_pictures(result.trajectories, size=painter.config.model.image_size)
      for job, picture in zip(batch, pictures, strict=True):
        write(job, picture)
  return Painted(trajectories, seconds)


def last_pictures(trajectories: Sequence[trajectory_lib.Trajectory], *, size: int) -> list[np.ndarray]:
  """The last picture of each trajectory, uint8[size, size, 3]; a black one for a trajectory without pictures."""
  return [t.final if t.pictures else np.zeros((size, size, 3), np.uint8) for t in trajectories]
