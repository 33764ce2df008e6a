"""Budget of calls, tokens and money for outside services, kept in a file across resumes; Cost and Price.

A request is charged with the most that it may take before it is sent, and settled when its answer says what it took:
no number of threads or processes together exceeds a limit. What may have been billed without an answer (a timeout, a
process that was killed) stays charged.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

from pdgen.core import json_file

_DIGITS = 9  # Decimals of money: sums of prices must meet a limit exactly.
_FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """What one or more calls used."""

  calls: int = 0  # Requests sent for an answer, retries and repairs included; polls and downloads are not.
  cache_hits: int = 0  # Answers found in the cache: no request.
  prompt_tokens: int = 0
  completion_tokens: int = 0
  pictures: int = 0  # Pictures painted.
  money: float = 0.0  # In the currency of the prices.
  estimated: int = 0  # Calls whose tokens and money are the most that they may have taken: the answer did not say.

  @property
  def tokens(self) -> int:
    return self.prompt_tokens + self.completion_tokens

  def __add__(self, other: 'Cost') -> 'Cost':
    return self._combined(other, 1)

  def __sub__(self, other: 'Cost') -> 'Cost':
    return self._combined(other, -1)

  def _combined(self, other: 'Cost', sign: int) -> 'Cost':
    sums = {f.name: getattr(self, f.name) + sign * getattr(other, f.name) for f in dataclasses.fields(self)}
    return Cost(**{**sums, 'money': round(sums['money'], _DIGITS)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Price:
  """What a model costs. All zero: it is free."""

  prompt: float = 0.0  # A million prompt tokens.
  completion: float = 0.0  # A million completion tokens.
  picture: float = 0.0  # A picture painted.

  def of(self, cost: Cost) -> Cost:
    """The cost with its money.

    >>> Price(prompt=2.5, completion=10).of(Cost(prompt_tokens=1000, completion_tokens=100)).money
    0.0035
    """
    money = (cost.prompt_tokens * self.prompt + cost.completion_tokens * self.completion) / 1e6
    return dataclasses.replace(cost, money=round(money + cost.pictures * self.picture, _DIGITS))


def counts(usage: Any, *names: str) -> list[int] | None:
  """The counts of an answer's `usage`; None where one of them is missing or no count."""
  found = [usage.get(name) for name in names] if isinstance(usage, dict) else []
  whole = [count for count in found if isinstance(count, int) and not isinstance(count, bool) and count >= 0]
  return whole if len(whole) == len(names) else None


class Exhausted(Exception):
  """Of `Budget.charge`; clients raise `errors.BudgetExhausted` with the host."""


class Budget:
  """Limits that clients share. Safe for threads, and for processes that share the file."""

  def __init__(
    self,
    *,
    calls: int | None = None,
    tokens: int | None = None,
    money: float | None = None,
    path: str | os.PathLike | None = None,
  ):
    """None: no limit.

    Args:
      calls: requests, as `Cost.calls` counts them.
      tokens: of prompts and completions together.
      money: in the currency of the prices. Every client must then have a price.
      path: JSON file of what is spent, made at the first charge; None: nothing is kept.

    Raises: ValueError for a negative limit or a damaged file.
    """
    self.limits = {'calls': calls, 'tokens': tokens, 'money': money}
    for name, limit in self.limits.items():
      if limit is not None and not 0 <= limit < float('inf'):
        raise ValueError(f'A budget of {limit} {name} is out of range: give a number from 0, or None for no limit.')
    self._path = None if path is None else pathlib.Path(path)
    self._settled = threading.Condition()
    self._spent = Cost()
    self._open = Cost()  # Charged by this process and not settled yet; part of what is spent.
    self._read()

  @property
  def spent(self) -> Cost:
    """What is spent, requests under way at the most that they may take."""
    with self._settled:
      self._read()
      return self._spent

  def charge(self, cost: Cost):
    """Takes the most that a request may take.

    Where the budget has not that much left, it waits for this process's requests under way: they may take less than
    they were charged. Every charge must be settled.

    Raises: Exhausted where they cannot make room.
    """
    with self._settled:
      while True:
        with self._changing():
          after = self._spent + cost
          over = [n for n, limit in self.limits.items() if limit is not None and getattr(after, n) > limit]
          if not over:
            self._spent, self._open = after, self._open + cost
            return
          for name in over:
            limit, spent = self.limits[name], self._spent - self._open
            if getattr(after - self._open, name) > limit:
              raise Exhausted(
                f'{getattr(spent, name):,} of {limit:,} {name} are spent, and the next request may take '
                f'{getattr(cost, name):,}'
              )
        self._settled.wait()

  def settle(self, charged: Cost, actual: Cost):
    """Replaces what was charged by what the request took."""
    with self._settled:
      with self._changing():
        self._spent = self._spent + actual - charged
        self._open -= charged
      self._settled.notify_all()

  def __repr__(self) -> str:
    return f'Budget({self.limits}, spent={self._spent})'

  @contextlib.contextmanager
  def _changing(self) -> Iterator[None]:
    """What is spent is read before, and written after."""
    if self._path is None:
      yield
      return
    import filelock

    self._path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f'{self._path}.lock', timeout=60):
      self._read()
      yield
      self._write(self._path)

  def _read(self):
    if self._path is None or not self._path.exists():
      return
    values = json_file.read(self._path)
    try:
      if values['format'] != _FORMAT:
        raise ValueError
      self._spent = _cost(values['spent'])
    except (KeyError, TypeError, ValueError):
      raise ValueError(
        f'{self._path} is no budget of this version. Delete it to begin at zero: what it held was spent.'
      ) from None

  def _write(self, path: pathlib.Path):
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    part.write_text(json.dumps({'format': _FORMAT, 'spent': dataclasses.asdict(self._spent)}, indent=2) + '\n')
    os.replace(part, path)


def _cost(values: dict[str, Any]) -> Cost:
  cost = Cost(**values)
  if any(not isinstance(value, (int, float)) or isinstance(value, bool) for value in values.values()):
    raise TypeError
  return cost
