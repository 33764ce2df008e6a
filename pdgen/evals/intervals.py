"""Shares of yes among so many questions, with Wilson's 95 % interval."""

import dataclasses
import math
from collections.abc import Iterable

Z = 1.959964  # of 95 %


@dataclasses.dataclass(frozen=True)
class Rate:
  """hits out of total. low, high: Wilson's interval, (0, 1) where nothing was asked."""

  hits: int
  total: int

  @property
  def value(self) -> float:
    """The share; nan where nothing was asked."""
    return self.hits / self.total if self.total else math.nan

  @property
  def interval(self) -> tuple[float, float]:
    return wilson(self.hits, self.total)

  def __str__(self) -> str:
    if not self.total:
      return 'nothing to count'
    low, high = self.interval
    return f'{self.value:.3f} ({low:.3f}-{high:.3f}) of {self.total}'


def rate(answers: Iterable[bool]) -> Rate:
  """Counts.

  >>> print(rate([True] * 9 + [False]))
  0.900 (0.596-0.982) of 10
  """
  answers = list(answers)
  return Rate(sum(answers), len(answers))


def wilson(hits: int, total: int) -> tuple[float, float]:
  """The score interval: where the true share may lie, never beyond [0, 1], not empty at 0 or at `total` hits.

  >>> [round(x, 3) for x in wilson(0, 10)]
  [0.0, 0.278]
  """
  if not total:
    return 0.0, 1.0
  share, z2 = hits / total, Z * Z / total
  middle = (share + z2 / 2) / (1 + z2)
  reach = Z / (1 + z2) * math.sqrt(share * (1 - share) / total + z2 / (4 * total))
  # Exact at the ends, where rounding would leave a share of 1 outside of its own interval.
  return (middle - reach if hits else 0.0), (middle + reach if hits < total else 1.0)
