"""Writer: a language model that answers tasks in words; asks again, with the reason, for what is not accepted."""

from collections.abc import Callable
from typing import Protocol, TypeVar

_Read = TypeVar('_Read')


class Writer(Protocol):
  """A language model, or what stands in for one."""

  def write(self, task: str, /) -> str:
    """The answer to a task in plain text."""
    ...


class RejectedError(ValueError):
  """No answer was accepted. `reasons` says why, answer by answer."""

  def __init__(self, what: str, reasons: list[str]):
    super().__init__(f'{what}: {len(reasons)} answers were rejected. The last one: {reasons[-1]}')
    self.reasons = tuple(reasons)


def ask(writer: Writer, task: str, read: Callable[[str], _Read], *, tries: int, what: str) -> tuple[_Read, list[str]]:
  """Asks until an answer can be read; each new task says why the last answer could not.

  Args:
    writer: who answers.
    task: what is asked.
    read: reads an answer; a ValueError or KeyError of it says what is wrong.
    tries: answers at most.
    what: what is asked for, for the error.

  Returns: (what was read, the reasons against the answers before it).

  Raises: RejectedError after the last try.
  """
  if tries < 1:
    raise ValueError(f'{tries=}: a writer is asked at least once.')
  reasons: list[str] = []
  for _ in range(tries):
    again = f'\n\nYour last answer was rejected: {reasons[-1]}\nAnswer again.' if reasons else ''
    try:
      return read(writer.write(task + again)), reasons
    except (ValueError, KeyError) as error:
      reasons.append(str(error.args[0] if error.args else error))
  raise RejectedError(what, reasons)
