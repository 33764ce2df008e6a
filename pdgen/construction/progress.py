"""Lines of progress of builds and imports: counts, rate, time left."""

import time

from pdgen.construction import importers


class Counted:
  """Prints counts, rate and time left, every so many seconds."""

  def __init__(self, every: float):
    self._every, self._last, self._first = every, time.monotonic(), None
    self._began = self._last

  def __call__(self, counts: importers.Counts, wanted: int | None = None):
    now = time.monotonic()
    if self._first is None:  # What an earlier run has made, and the painting of traces, do not count for the rate.
      self._first, self._began = counts.kept, now
    if now - self._last < self._every:
      return
    self._last = now
    rate = (counts.kept - self._first) / max(now - self._began, 1e-9)
    words = f'{counts.kept:,} kept, {counts.rejected:,} rejected  {rate:.1f} a second'
    if wanted and rate:
      words += f'  of {wanted:,}: {max(wanted - counts.kept, 0) / rate / 60:.1f} minutes left'
    print(words, flush=True)


def tell_traces(done: int, count: int):
  """A line for a batch of traces."""
  print(f'{done:,} of {count:,} traces painted and judged', flush=True)
