"""Detector and Judge protocols, and the data that they take and give."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pdgen.core import trajectory as trajectory_lib


@dataclasses.dataclass(frozen=True)
class Found:
  """One object that a detector reports."""

  name: str | None  # Class of the object; None if it has none.
  color: str | None = None  # Word for its colour; None where the detector names no colours.
  box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # (x0, y0, x1, y1) in pixels.
  score: float = 1.0  # Confidence in [0, 1].
  mask: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)  # bool[H, W]; None: a box alone.


def check_picture(picture: np.ndarray, *, whose: str = ''):
  """Raises ValueError for what is no uint8[H, W, 3]: floats in 0..1 would be seen as black.

  Args:
    picture: what is to be judged.
    whose: what an error calls it.
  """
  if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3 or not picture.size:
    raise ValueError(f'The picture{whose} is {picture.dtype}{list(picture.shape)}, not uint8[H, W, 3].')


class Detector(Protocol):
  """Sees the objects of a picture.

  Two more attributes are used where a detector has them: `identity`, a str that names the weights and options (what it
  found is then kept and not looked for again), and the method `colors` of `ColorNamer`.
  """

  def detect(self, picture: np.ndarray) -> Sequence[Found]:
    """The objects of uint8[H, W, 3], in any order."""
    ...


class ColorNamer(Protocol):
  """Names the colours of objects, where looking is too expensive to be done for all that is found."""

  def colors(self, picture: np.ndarray, objects: Sequence[Found], /) -> Sequence[str | None]:
    """A word for each object of uint8[H, W, 3], or None."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Question:
  """Is the picture right? A judge says what it needs of the rest, and raises ValueError where that is absent."""

  prompt: str  # What the whole trajectory is to paint.
  picture: np.ndarray  # uint8[H, W, 3].
  plan: str | None = None  # Plan of the step that painted it.
  expected: Sequence[trajectory_lib.Content] | None = None  # Objects that it should show, and no others.
  spec: trajectory_lib.PromptSpec | None = None  # What the prompt asks for, in GenEval's terms.
  before: Sequence[trajectory_lib.Step] = ()  # Steps before that of the plan.


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a judge answers."""

  ok: bool  # Whether the picture is right.
  reason: str = ''  # What is wrong; empty if nothing is.
  correction: str | None = None  # What to change; None if nothing, or if the judge gives no advice.
  confidence: float = 1.0  # In [0, 1].
  by: str = ''  # Model and version that answered; empty for a judge by rule.


class Judge(Protocol):
  """Answers questions."""

  def judge(self, question: Question) -> Verdict: ...
