"""Results of an executor in the order of the calls, with a bounded number of them under way."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

_Result = TypeVar('_Result')


def results(pool: futures.Executor, calls: Iterable[Callable[[], _Result]], *, ahead: int) -> Iterator[_Result]:
  """Yields what each call returns; those under way are cancelled when the iterator is closed.

  >>> with futures.ThreadPoolExecutor(2) as pool:
  ...   list(results(pool, [lambda i=i: i * i for i in range(4)], ahead=2))
  [0, 1, 4, 9]

  Args:
    pool: that runs them. One of processes wants calls that can be pickled.
    calls: taken one by one, as results are.
    ahead: calls under way, at least 1.

  Raises: what a call raises, in its place.
  """
  waiting: collections.deque[futures.Future[_Result]] = collections.deque()
  try:
    for call in calls:
      waiting.append(pool.submit(call))
      if len(waiting) >= ahead:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    for future in waiting:
      future.cancel()
