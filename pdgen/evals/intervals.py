"""95 % intervals: Wilson's of binomial rates, the bootstrap over prompts, and of weighted means of such figures."""

import dataclasses
import functools
import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

RESAMPLES = 2000  # of the bootstrap
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


@dataclasses.dataclass(frozen=True)
class ClusteredRate(Rate):
  """A rate of pictures of which several belong to one prompt: its interval resamples prompts, not pictures.

  Where every prompt has one picture it is Wilson's, which is better at few trials. So it is, over prompts, where all
  pictures are right or all are wrong: every resample is then alike, and the bootstrap's interval empty.
  """

  clusters: tuple[tuple[int, int], ...] = ()  # (hits, total) of each prompt

  @functools.cached_property
  def _interval(self) -> tuple[float, float]:
    if all(total == 1 for _, total in self.clusters):
      return wilson(self.hits, self.total)
    if self.hits in (0, self.total):
      return wilson(len(self.clusters) if self.hits else 0, len(self.clusters))
    return bootstrap([hits for hits, _ in self.clusters], weights=[total for _, total in self.clusters])

  @property
  def interval(self) -> tuple[float, float]:
    return self._interval


def clustered_rate(answers: Iterable[tuple[Hashable, bool]]) -> ClusteredRate:
  """The rate of true answers, of pairs (prompt, answer).

  >>> print(clustered_rate([('a', True), ('a', False), ('b', True), ('b', True)]))
  0.750 (0.500-1.000) of 4
  """
  of: dict[Hashable, list[bool]] = {}
  for prompt, answer in answers:
    of.setdefault(prompt, []).append(bool(answer))
  clusters = tuple((sum(a), len(a)) for a in of.values())
  return ClusteredRate(sum(h for h, _ in clusters), sum(t for _, t in clusters), clusters)


def bootstrap(values: Sequence[float], *, weights: Sequence[float] | None = None, seed: int = 0) -> tuple[float, float]:
  """Percentile bootstrap of a mean: 95 % interval of sum(values) / sum(weights) over resampled prompts.

  Args:
    values: sum of the scores of each prompt.
    weights: number of scores of each prompt; None: one each.
    seed: of the resamples; the same values give the same interval.
  """
  sums = np.asarray(values, np.float64)
  counts = np.ones_like(sums) if weights is None else np.asarray(weights, np.float64)
  picks = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
  low, high = np.quantile(sums[picks].sum(axis=1) / counts[picks].sum(axis=1), (0.025, 0.975))
  return float(low), float(high)


def mean(values: Sequence[float]) -> Estimate:
  """The mean of one score a prompt, with the bootstrap's interval; nan without any.

  >>> mean([0.5, 0.5])
  Estimate(value=0.5, low=0.5, high=0.5, count=2)
  """
  if not values:
    return Estimate(math.nan, 0.0, 1.0, 0)
  return Estimate(float(np.mean(values)), *bootstrap(values), len(values))


def combined(estimates: Sequence[Estimate], *, weights: Sequence[float] | None = None) -> Estimate:
  """A weighted sum of independent estimates; its interval adds the squares of theirs (Zou and Donner 2008).

  Args:
    estimates: between 0 and 1.
    weights: None: their mean.

  Returns: nan where one of them is.
  """
  shares = [1 / len(estimates)] * len(estimates) if weights is None else list(weights)
  pairs = list(zip(estimates, shares, strict=True))
  # A mean is a sum that is divided once: six tasks of 1 make 1.
  value = sum(w * e.value for e, w in pairs) if weights else sum(e.value for e in estimates) / len(estimates)
  count = sum(e.count for e in estimates)
  if math.isnan(value):
    return Estimate(math.nan, 0.0, 1.0, count)
  below = math.sqrt(sum((w * (e.value - e.low)) ** 2 for e, w in pairs))
  above = math.sqrt(sum((w * (e.high - e.value)) ** 2 for e, w in pairs))
  return Estimate(value, max(0.0, value - below), min(1.0, value + above), count)


def mean_of_rates(rates: Sequence[Rate]) -> Estimate:
  """The mean of independent rates, all of equal weight: `combined` of their Wilson intervals.

  >>> e = mean_of_rates([Rate(9, 10), Rate(10, 10)])
  >>> [round(x, 3) for x in (e.value, e.low, e.high)], e.count
  ([0.95, 0.744, 0.991], 20)
  """
  return combined([r.estimate for r in rates])


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
  drawn = np.random.default_rng(0).integers(len(top), size=(RESAMPLES, len(top)))
  tops, bottoms = top[drawn].sum(axis=1), bottom[drawn].sum(axis=1)
  ratios = tops[bottoms > 0] / bottoms[bottoms > 0]
  value = float(top.sum() / bottom.sum())
  low, high = (float(x) for x in np.quantile(ratios, [0.025, 0.975]))
  return Estimate(value, min(low, value), max(high, value), count)


def over_seeds(values: np.ndarray, *, extremes: Sequence[float] = ()) -> Estimate:
  """The mean of scores of the same prompts by several trainings of a recipe, for other trainings and other prompts.

  Two sources of noise are added as squares: prompts, with the noise of sampling (the standard error of the mean over
  prompts of what the seeds have on average), and trainings (Student's t over the means of the seeds). With few seeds t
  is large: three of them rarely show a difference of less than five times their standard error. Of a single training
  it says nothing, and neither does its interval.

  Args:
    values: f64[seeds, prompts], prompts in the same order.
    extremes: the least and the largest score there is. The standard error is that of the prompts and one of each, as
      Agresti and Coull (1998), Agresti and Min (2005) do: else it would be 0 where all prompts agree.

  Returns: the estimate, its count the scores; nan and (-inf, inf) where there are none.

  >>> e = over_seeds(np.array([[0.0, 1.0] * 50, [0.0, 1.0] * 50]))
  >>> e.value, round(e.low, 1), round(e.high, 1), e.count
  (0.5, 0.4, 0.6, 200)
  >>> round(over_seeds(np.ones((1, 10)), extremes=(0, 1)).low, 2)
  0.84
  """
  seeds = len(values)
  if not values.size:
    return Estimate(math.nan, -math.inf, math.inf, 0)
  means, each = values.mean(axis=1), np.concatenate([values.mean(axis=0), np.asarray(extremes, np.float64)])
  variance = Z**2 * each.var() / len(each)
  if seeds > 1:
    from scipy import special  # Half of the time that `pdgen.evaluate --help` would take.

    student = float(special.stdtrit(seeds - 1, 0.975))
    variance += (student * means.std(ddof=1)) ** 2 / seeds
  value, reach = float(values.mean()), math.sqrt(variance)
  return Estimate(value, value - reach, value + reach, values.size)


def cautious_rate(hits: Sequence[int], trials: Sequence[int]) -> Estimate:
  """A rate whose trials come several a prompt: the wider of the bootstrap over prompts and Wilson's interval, each end.

  The bootstrap alone is empty where all trials agree, and Wilson's alone takes those of a prompt for independent: where
  a prompt has a handful of trials at most, `ClusteredRate` promises too much.

  Args:
    hits: of each prompt.
    trials: of each prompt.

  >>> e = cautious_rate([2, 0], [2, 2])
  >>> e.value, e.low, e.high, e.count
  (0.5, 0.0, 1.0, 4)
  """
  simple = Rate(sum(hits), sum(trials)).estimate
  if not simple.count:
    return simple
  resampled = ratio(hits, trials)
  return Estimate(simple.value, min(simple.low, resampled.low), max(simple.high, resampled.high), simple.count)
