"""Strict JSON of files that others made: one object, no name twice, finite numbers; errors name the file."""

import json
import math
import os
import pathlib
from typing import Any


def read(path: str | os.PathLike) -> dict[str, Any]:
  """The object in a file. Raises: FileNotFoundError; ValueError, of one line, naming the file and what is wrong."""
  return parse(pathlib.Path(path).read_bytes(), of=path)


def parse(content: bytes, *, of: str | os.PathLike) -> dict[str, Any]:
  """The object in the content of a file. of: the file, for errors. Raises: as `read`.

  >>> parse(b'{"a": 1, "a": 2}', of='x.json')
  Traceback (most recent call last):
  ValueError: x.json is damaged: it holds 'a' twice.
  """
  try:
    values = json.loads(
      content.decode(), object_pairs_hook=_each_once, parse_constant=_finite, parse_float=lambda text: _finite(text)
    )
  except (ValueError, RecursionError) as error:
    what = str(error) if isinstance(error, _Refused) else f'it is no JSON ({" ".join(str(error).split())[:200]})'
    raise ValueError(f'{os.fspath(of)} is damaged: {what}.') from None
  if not isinstance(values, dict):
    raise ValueError(f'{os.fspath(of)} is damaged: it holds no object, but {type(values).__name__}.')
  return values


class _Refused(ValueError):
  """JSON that Python's parser takes."""


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  values = dict(pairs)
  if len(values) < len(pairs):
    names = [name for name, _ in pairs]
    raise _Refused(f'it holds {next(name for name in names if names.count(name) > 1)!r} twice')
  return values


def _finite(text: str) -> float:
  number = float(text)
  if not math.isfinite(number):
    raise _Refused(f'it holds {text[:20]}, no finite number')
  return number
