"""Timing of device work: warm, synchronised, the median of several runs."""

import concurrent.futures
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax


class Timing(NamedTuple):
  """Seconds."""

  median: float
  least: float
  most: float
  first: float  # The first call, which compiles.

  def row(self) -> dict[str, float]:
    """As fields of a row."""
    return {'seconds': self.median, 'least': self.least, 'most': self.most, 'first_call': self.first}


def timed(call: Callable[[], Any], *, repeats: int = 5, at_least: float = 0.1) -> Timing:
  """Times a call that returns arrays, after one that compiles it and one that warms it up.

  Args:
    call: what to time. Its arrays are waited for, all of a run at once: the device is kept busy.
    repeats: runs.
    at_least: seconds of a run; a shorter call is repeated within it.
  """
  _, first = _seconds(call, 1)
  _, warm = _seconds(call, 1)
  times = max(1, min(100, int(at_least / max(warm, 1e-6))))
  runs = [_seconds(call, times)[1] / times for _ in range(repeats)]
  return Timing(statistics.median(runs), min(runs), max(runs), first)


def side_by_side(calls: Sequence[Callable[[], Any]]) -> list[Any]:
  """What the calls return, each in a thread of its own: their programs are compiled at the same time."""
  with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
    return [future.result() for future in [pool.submit(call) for call in calls]]


def _seconds(call: Callable[[], Any], times: int) -> tuple[Any, float]:
  began = time.perf_counter()
  out = None
  for _ in range(times):
    out = call()
  jax.block_until_ready(out)
  return out, time.perf_counter() - began
