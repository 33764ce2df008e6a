"""Disk cache of answers by content hash: one JSON file an answer, written atomically, shared by threads and processes.

The key is the hash of all that decides an answer (host, model, messages, pictures, options), the file's name. A damaged
entry is warned of and asked for again. A JSON file each, and no database: entries can be read, copied and deleted.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import threading
import uuid
import warnings
import weakref
from collections.abc import Callable
from typing import Any

from pdgen.services import keys

_FORMAT = 1


def key(request: Any) -> str:
  """SHA-256 of a JSON value, in hexadecimal. Pictures enter as `pictures.digest`."""
  return hashlib.sha256(_canonical({'format': _FORMAT, 'request': request})).hexdigest()


class Cache:
  """Answers in a folder."""

  def __init__(self, folder: str | os.PathLike):
    self.folder = pathlib.Path(folder)
    self._locks: weakref.WeakValueDictionary[str, _Lock] = weakref.WeakValueDictionary()
    self._guard = threading.Lock()

  def get_or_compute(
    self, name: str, compute: Callable[[], dict[str, Any]], *, is_valid: Callable[[Any], bool] = lambda value: True
  ) -> tuple[dict[str, Any], bool]:
    """(answer, whether it was found). Threads that ask for the same at once make one request.

    Args:
      name: as of `key`.
      compute: makes the answer, a JSON object. What it raises is not kept.
      is_valid: whether the answer of the entry can still be used.
    """
    with self._guard:
      lock = self._locks.get(name)
      if lock is None:
        lock = self._locks[name] = _Lock()
    with lock.lock:
      found = self.get(name)
      if found is not None and is_valid(found):
        return found, True
      value = keys.redact(compute())
      self._put(name, value)
      return value, False

  def get(self, name: str) -> dict[str, Any] | None:
    """The answer, or None. Warns of an entry that is damaged."""
    path = self._path(name)
    try:
      entry = json.loads(path.read_bytes())
      if entry['key'] != name or entry['sha256'] != hashlib.sha256(_canonical(entry['value'])).hexdigest():
        raise ValueError('it does not have the content that was written')
    except FileNotFoundError:
      return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
      what = ' '.join(str(error).split())[:100] or type(error).__name__
      warnings.warn(f'The cache entry {path} is damaged ({what}) and is asked for again.', stacklevel=2)
      return None
    return entry['value']

  def _put(self, name: str, value: dict[str, Any]):
    """Writes an entry. A full disk costs the entry, not the answer."""
    path = self._path(name)
    part = path.with_name(f'.{uuid.uuid4().hex}.part')
    entry = {'key': name, 'sha256': hashlib.sha256(_canonical(value)).hexdigest(), 'value': value}
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      part.write_bytes(_canonical(entry))
      os.replace(part, path)
    except OSError as error:
      warnings.warn(f'The cache entry {path} cannot be written ({error.strerror or error}).', stacklevel=2)
      with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)

  def _path(self, name: str) -> pathlib.Path:
    return self.folder / name[:2] / f'{name}.json'


class _Lock:
  """A lock that a weak reference can point to."""

  def __init__(self):
    self.lock = threading.Lock()


def _canonical(value: Any) -> bytes:
  return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(',', ':'), allow_nan=False).encode()
