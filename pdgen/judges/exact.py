"""Exact detector and judge of a world whose pictures can be read without error (`pdgen.worlds.shapes`)."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from pdgen.core import trajectory as trajectory_lib
from pdgen.judges import base


class World(Protocol):
  """What a world must offer, as functions of a module or as methods."""

  def detect(self, picture: np.ndarray, /) -> Sequence[Any]:
    """Objects with `name`, `color`, `box` and `score`, and `cell` where the world has a grid."""
    ...

  def shows(self, picture: np.ndarray, expected: Iterable[trajectory_lib.Content], /) -> bool:
    """Whether the picture shows just these objects."""
    ...


def get(world: Any) -> 'Exact':
  """The detector and judge of a world (a module or an object with the functions of `World`)."""
  return Exact(world)


@dataclasses.dataclass(frozen=True)
class Exact:
  """Detector and judge at once."""

  world: World

  def detect(self, picture: np.ndarray) -> list[base.Found]:
    """What the world's detector sees, in its order. Raises: ValueError for a picture that is no uint8[H, W, 3]."""
    base.check_picture(picture)
    return [base.Found(d.name, d.color, d.box, d.score) for d in self.world.detect(picture)]

  def judge(self, question: base.Question) -> base.Verdict:
    """Whether the picture shows the expected objects and nothing else.

    Raises: ValueError for a question that does not say what is expected, and a picture that is no uint8[H, W, 3].
    """
    base.check_picture(question.picture)
    if question.expected is None:
      raise ValueError(
        f'It is not known what a picture of {question.prompt!r} should show: give its trajectory `expected`.'
      )
    if self.world.shows(question.picture, question.expected):
      return base.Verdict(ok=True)
    seen = collections.Counter(
      _words(d.name, d.color, getattr(d, 'cell', None)) for d in self.world.detect(question.picture)
    )
    wanted = collections.Counter(_words(c.name, c.color, c.cell) for c in question.expected)
    missing, surplus = (sorted(c.elements()) for c in (wanted - seen, seen - wanted))
    reasons = [f'expected {item}, which is not there' for item in missing]
    reasons += [f'found {item}, which is not expected' for item in surplus]
    correction = ' '.join([*(f'Paint {item}.' for item in missing), *(f'Remove {item}.' for item in surplus)])
    return base.Verdict(ok=False, reason='; '.join(reasons), correction=correction)


def _words(name: str | None, color: str | None, cell: int | None) -> str:
  place = '' if cell is None else f' in cell {cell}'
  return ' '.join(word for word in (color, name or 'something') if word) + place
