"""Pictures of a benchmark in one flat folder, judged one by one: painted, found, asked about in parallel, resumed.

What WISE, T2I-CompBench++ and GenEval 2 share. A picture that cannot be judged is named and counts nowhere; a service
that cannot be reached, or a budget that is spent, ends the command, and the same command goes on from there.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pdgen.evals import base, geneval_folder, row_log
from pdgen.services import errors

_ENDINGS = ('.png', '.jpg', '.jpeg')


@dataclasses.dataclass(frozen=True)
class Asked:
  """A picture to be judged."""

  name: str  # file, relative to the folder
  about: Mapping[str, Any]  # JSON: what the judge is told


# (what the judge is told, uint8[H, W, 3]) -> JSON, or ValueError or a ServiceError saying why there is no answer.
Rate = Callable[[Mapping[str, Any], np.ndarray], dict[str, Any]]


def find(out: pathlib.Path, stem: str) -> tuple[str | None, list[str]]:
  """The file of a picture without its ending, and others of the same stem, which are not judged."""
  there = [stem + ending for ending in _ENDINGS if (out / (stem + ending)).is_file()]
  return (there[0] if there else None), there[1:]


def save(path: pathlib.Path, picture: np.ndarray):
  """Writes a PNG that is whole or absent."""
  file = io.BytesIO()
  Image.fromarray(picture).save(file, format='png')
  base.write_atomically(path, file.getvalue())


def size(path: pathlib.Path) -> tuple[int, int]:
  """(width, height) of a picture file."""
  with Image.open(path) as image:
    return image.size


def judge(
  out: pathlib.Path, asked: Sequence[Asked], rate: Rate, *, identity: str | None, log: str, threads: int = 1
) -> tuple[dict[str, dict[str, Any]], list[str]]:
  """The answers by name of picture, in order, and what went wrong.

  Args:
    out: the folder.
    asked: the pictures.
    rate: the judge.
    identity: names the judge and its rules; None: answers are not kept.
    log: name of the file of answers in the folder.
    threads: questions at once.

  Raises: errors.Unavailable and errors.BudgetExhausted; what was answered is kept.
  """
  answers: dict[str, dict[str, Any]] = {}
  wrong: dict[str, str] = {}
  names = [item.name for item in asked]
  with row_log.RowLog(out / log, identity) as kept:
    todo: list[tuple[Asked, str]] = []
    for item in asked:
      digest = hashlib.sha256((out / item.name).read_bytes()).hexdigest()
      row = kept.find(item.name, dict(item.about), digest)
      if row is None:
        todo.append((item, digest))
      else:
        answers[item.name] = dict(row)
    stopped: list[errors.ServiceError] = []  # by the first that ends the command; what is under way is still kept
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
      for (item, digest), future in _in_flight(pool, todo, out, rate, stopped, most=2 * max(1, threads)):
        try:
          answer = future.result()
        except (errors.Unavailable, errors.BudgetExhausted) as error:
          stopped.append(error)
        except (ValueError, errors.ServiceError) as error:
          wrong[item.name] = ' '.join(str(error).split())[:200]
        else:
          if answer is not None:
            answers[item.name] = answer
            kept.add(item.name, dict(item.about), digest, row=answer)
    if stopped:
      raise stopped[0]
    kept.close(names)
  return {n: answers[n] for n in names if n in answers}, [f'{n}: {wrong[n]}' for n in names if n in wrong]


def _in_flight(
  pool: concurrent.futures.Executor,
  todo: Sequence[tuple[Asked, str]],
  out: pathlib.Path,
  rate: Rate,
  stopped: Sequence[errors.ServiceError],
  *,
  most: int,
) -> Iterator[tuple[tuple[Asked, str], concurrent.futures.Future[dict[str, Any] | None]]]:
  """Answers in order of the questions; few pictures are in memory at once. None: stopped before it was asked."""

  def answer(item: Asked) -> dict[str, Any] | None:
    return None if stopped else rate(item.about, geneval_folder.read_picture(out / item.name))

  waiting: list[tuple[tuple[Asked, str], concurrent.futures.Future[dict[str, Any] | None]]] = []
  for pair in todo:
    waiting.append((pair, pool.submit(answer, pair[0])))
    if len(waiting) >= most:
      yield waiting.pop(0)
  yield from waiting
