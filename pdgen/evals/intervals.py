"""95 % intervals: Wilson's of rates, square-and-add of their mean, bootstrap over prompts of all else."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

Z = 1.959964  # 97.5 % quantile of the normal distribution
_RESAMPLES = 2000  # of a bootstrap


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


def mean_of_rates(rates: Sequence[Rate]) -> Estimate:
  """The mean of rates that are independent, all of equal weight: Wilson by square-and-add (Zou and Donner 2008).

  >>> e = mean_of_rates([Rate(9, 10), Rate(10, 10)])
  >>> [round(x, 3) for x in (e.value, e.low, e.high)], e.count
  ([0.95, 0.744, 0.991], 20)
  """
  value = float(np.mean([r.value for r in rates]))
  below = math.sqrt(sum((r.value - r.interval[0]) ** 2 for r in rates)) / len(rates)
  above = math.sqrt(sum((r.interval[1] - r.value) ** 2 for r in rates)) / len(rates)
  return Estimate(value, max(0.0, value - below), min(1.0, value + above), sum(r.total for r in rates))


def ratio(parts: Sequence[float], wholes: Sequence[float] | None = None) -> Estimate:
  """sum(parts) / sum(wholes), with a bootstrap over prompts: the same resamples, and so the same interval, every time.

  Of differences of two settings on the same prompts and seeds it is the paired interval.

  Args:
    parts: of each prompt.
    wholes: of each prompt; None: 1 each, a mean.

  Returns: the estimate, its count the sum of `wholes`; nan and (-inf, inf) where that is 0.

  >>> e = ratio([1.0] * 30 + [2.0] * 30)
  >>> e.value, 1.3 < e.low < 1.5 < e.high < 1.7, e.count
  (1.5, True, 60)
  """
  top = np.asarray(parts, np.float64)
  bottom = np.ones_like(top) if wholes is None else np.asarray(wholes, np.float64)
  count = int(bottom.sum())
  if not count:
    return Estimate(math.nan, -math.inf, math.inf, 0)
  drawn = np.random.default_rng(0).integers(len(top), size=(_RESAMPLES, len(top)))
  tops, bottoms = top[drawn].sum(axis=1), bottom[drawn].sum(axis=1)
  ratios = tops[bottoms > 0] / bottoms[bottoms > 0]
  value = float(top.sum() / bottom.sum())
  low, high = (float(x) for x in np.quantile(ratios, [0.025, 0.975]))
  return Estimate(value, min(low, value), max(high, value), count)


def clustered_rate(hits: Sequence[int], trials: Sequence[int]) -> Estimate:
  """A rate whose trials come several a prompt: the wider of the bootstrap over prompts and Wilson's interval, each end.

  The bootstrap alone is empty where all trials agree, and Wilson's alone takes those of a prompt for independent.

  Args:
    hits: of each prompt.
    trials: of each prompt.

  >>> e = clustered_rate([2, 0], [2, 2])
  >>> e.value, e.low, e.high, e.count
  (0.5, 0.0, 1.0, 4)
  """
  simple = Rate(sum(hits), sum(trials)).estimate
  if not simple.count:
    return simple
  resampled = ratio(hits, trials)
  return Estimate(simple.value, min(simple.low, resampled.low), max(simple.high, resampled.high), simple.count)
