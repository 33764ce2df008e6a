"""Binomial rates with Wilson 95 % intervals."""

import dataclasses
import math
from collections.abc import Iterable

Z = 1.959964  # 97.5 % quantile of the normal distribution


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A figure with its 95 % interval."""

  value: float  # nan when it rests on nothing
  low: float  # lower end of the interval
  high: float  # upper end of the interval
  count: int  # pictures, prompts or questions that it rests on


@dataclasses.dataclass(frozen=True)
class Rate:
  """A number of hits out of a total, and its Wilson interval."""

  hits: int  # successes
  total: int  # trials

  @property
  def value(self) -> float:
    """hits / total; nan without trials."""
    return self.hits / self.total if self.total else math.nan

  @property
  def interval(self) -> tuple[float, float]:
    return wilson(self.hits, self.total)

  @property
  def estimate(self) -> Estimate:
    return Estimate(self.value, *self.interval, self.total)

  def __str__(self) -> str:
    if not self.total:
      return 'nothing to count'
    low, high = self.interval
    return f'{self.value:.3f} ({low:.3f}-{high:.3f}) of {self.total}'


def rate(answers: Iterable[bool]) -> Rate:
  """The rate of true answers.

  >>> print(rate([True] * 9 + [False]))
  0.900 (0.596-0.982) of 10
  """
  answers = list(answers)
  return Rate(sum(answers), len(answers))


def wilson(hits: int, total: int) -> tuple[float, float]:
  """Wilson's score interval of a rate: inside [0, 1], not empty at 0 or `total` hits; (0, 1) without trials.

  >>> [round(x, 3) for x in wilson(0, 10)]
  [0.0, 0.278]
  """
  if not total:
    return 0.0, 1.0
  share, z2 = hits / total, Z * Z / total
  middle = (share + z2 / 2) / (1 + z2)
  reach = Z / (1 + z2) * math.sqrt(share * (1 - share) / total + z2 / (4 * total))
  # Exact at the ends: rounding would put a rate of 1 outside of its own interval.
  return (middle - reach if hits else 0.0), (middle + reach if hits < total else 1.0)
