"""Structured output: the JSON object in an answer (prose, code fences, thoughts around it), checked by a schema."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
# What a schema cannot say: what is wrong with an object, or None.
Check = Callable[[dict[str, Any]], str | None]

_THOUGHTS = re.compile(r'<think>.*?</think>|^.*?</think>', re.DOTALL)
_FENCE = re.compile(r'```[\w-]*[ \t]*\n(.*?)```', re.DOTALL)
_MOST_STARTS = 64  # Braces tried as beginnings: the scan must stay linear in the text.


def extract(text: str, *, schema: Schema, check: Check | None = None) -> tuple[dict[str, Any] | None, str]:
  """The first object in a text that the schema allows, or None and what is wrong with the first object, in one line.

  Args:
    text: what the model wrote.
    schema: JSON schema of an object.
    check: of what the schema cannot say.
  """
  wrong = ''
  for value in _objects(_THOUGHTS.sub('', text)):
    what = problem(value, schema=schema, check=check)
    if what is None:
      return value, ''
    wrong = wrong or what
  return None, wrong or 'it holds no whole JSON object'


def problem(value: Any, *, schema: Schema, check: Check | None = None) -> str | None:
  """What is wrong with a value, in one line; None: nothing. Arguments as of `extract`."""
  import jsonschema

  found = jsonschema.Draft202012Validator(dict(schema)).iter_errors(value)
  error = min(found, key=lambda e: (len(e.absolute_path), str(e.absolute_path)), default=None)
  if error is not None:
    where = ''.join(f'[{part!r}]' for part in error.absolute_path)
    return ' '.join(f'{where + ": " if where else ""}{error.message}'.split())[:300]
  return None if check is None else check(value)


def instruction(schema: Schema) -> str:
  """The request for such an object, for servers that do not take a schema apart from the messages."""
  return f'Answer with one JSON object of this JSON schema and nothing else:\n{json.dumps(schema, sort_keys=True)}'


def _objects(text: str) -> Iterator[dict[str, Any]]:
  """The JSON objects in a text: all of it, the code fences, and whatever begins with a brace, outermost first."""
  for candidate in (text, *_FENCE.findall(text)):
    value, _ = _decoded(candidate.strip(), whole=True)
    if value is not None:
      yield value
  start, tried = text.find('{'), 0
  while start >= 0 and tried < _MOST_STARTS:
    value, length = _decoded(text[start:], whole=False)
    if value is not None:
      yield value
    start, tried = text.find('{', start + max(length, 1)), tried + 1


def _decoded(text: str, *, whole: bool) -> tuple[dict[str, Any] | None, int]:
  """The object that a text begins with, and its length; whole: nothing may follow."""
  try:
    value, end = _DECODER.raw_decode(text)
  except (ValueError, RecursionError):
    return None, 0
  return (value, end) if isinstance(value, dict) and not (whole and end < len(text)) else (None, 0)


def _refuse(text: str) -> float:
  raise ValueError(f'{text} is no JSON')


_DECODER = json.JSONDecoder(parse_constant=_refuse)
