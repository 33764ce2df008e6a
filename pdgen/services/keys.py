"""API keys from environment variables, and their redaction in texts, JSON values and log records.

A configuration holds the name of a variable, never a key. A server may echo a key (in an error, a URL, an answer): all
that comes from one goes through `redact` before it is used.
"""

import json
import logging
import os
import urllib.parse
from typing import Any

REDACTED = '[redacted]'

_SHORTEST = 6  # Characters of a secret. `none` and `EMPTY`, which local servers take, are words of answers too.
_LOGGERS = ('httpx2', *(f'httpcore2.{name}' for name in ('connection', 'http11', 'http2', 'proxy', 'socks')))
_variables: set[str] = set()


def register(variable: str):
  """Makes the value of an environment variable a secret: `redact` and the log records of the HTTP library hide it."""
  _variables.add(variable)
  for name in _LOGGERS:
    logging.getLogger(name).addFilter(_hide)


def get(variable: str) -> str:
  """The key in an environment variable.

  Raises: ValueError, without the key, where there is none, or one that no HTTP header can hold.
  """
  key = os.environ.get(variable, '').strip()
  if not key:
    raise ValueError(f'no key: set the environment variable {variable}')
  if not key.isascii() or not key.isprintable() or ' ' in key:
    raise ValueError(f'the environment variable {variable} holds characters that no key has')
  return key


def redact(value: Any) -> Any:
  """A text, or a JSON value with all its texts, without the keys of the registered variables."""
  if isinstance(value, str):
    for secret in _secrets():
      value = value.replace(secret, REDACTED)
    return value
  if isinstance(value, dict):
    return {redact(name): redact(item) for name, item in value.items()}
  return [redact(item) for item in value] if isinstance(value, list) else value


def _secrets() -> list[str]:
  """The spellings of all keys, the longest first: a shorter one may be a part of it."""
  keys = {os.environ.get(variable, '').strip() for variable in _variables}
  spellings = {
    spelling
    for key in keys
    if len(key) >= _SHORTEST
    for spelling in (key, urllib.parse.quote(key), urllib.parse.quote(key, safe=''), json.dumps(key)[1:-1])
  }
  return sorted(spellings, key=len, reverse=True)


def _hide(record: logging.LogRecord) -> bool:
  """A logging filter that redacts the message."""
  record.msg, record.args = redact(record.getMessage()), None
  return True
