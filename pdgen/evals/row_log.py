"""Rows of a long scoring as they are made, a line each: whatever was whole at a kill is used again.

A line names what its row rests on, hashed: who judged, by which rules, the prompt, the bytes of the picture. A
picture that was replaced is therefore judged again. At the end the file is what one run without a kill leaves.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pdgen.evals import base

Row = Mapping[str, Any]


class RowLog:
  """The file of a scoring, a context; for a judge without an identity nothing is kept."""

  def __init__(self, path: pathlib.Path, identity: str | None):
    """
    Args:
      path: of the file; read if it is there.
      identity: who judges and by which rules; None: no row can be used again.
    """
    self._path, self._identity = path, identity
    self._rows = {} if identity is None else dict(self._read())
    self._file = None

  def __enter__(self) -> 'RowLog':
    return self

  def __exit__(self, *error: object):
    self._stop()

  def find(self, name: str, *parts: Any) -> Row | None:
    """The row of a picture.

    Args:
      name: of the picture.
      parts: JSON, what the row rests on besides.
    """
    entry = self._rows.get(self._key(name, parts)) if self._identity else None
    return None if entry is None else entry[1]

  def add(self, name: str, *parts: Any, row: Row):
    """Keeps a row. Arguments as of `find`."""
    if not self._identity:
      return
    key = self._key(name, parts)
    if self._file is None:
      self._write()  # Without a line that a kill has cut.
      self._file = self._path.open('a', encoding='utf-8')
    self._rows[key] = (name, row)
    self._file.write(_line(key, name, row))
    self._file.flush()

  def close(self, names: Sequence[str]):
    """Leaves the rows of these pictures, in their order: the newest of each."""
    self._stop()
    if self._identity:
      newest = {name: (key, row) for key, (name, row) in self._rows.items()}
      self._rows = {newest[n][0]: (n, newest[n][1]) for n in names if n in newest}
      self._write()

  def _stop(self):
    if self._file is not None:
      self._file.close()
      self._file = None

  def _key(self, name: str, parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps([self._identity, name, *parts]).encode()).hexdigest()[:32]

  def _read(self) -> Iterator[tuple[str, tuple[str, Row]]]:
    text = self._path.read_text(encoding='utf-8', errors='replace') if self._path.is_file() else ''
    for line in text.splitlines():
      try:
        entry = json.loads(line)
        yield str(entry['key']), (str(entry['name']), dict(entry['row']))
      except (ValueError, KeyError, TypeError):
        continue  # Cut by a kill: it is judged again.

  def _write(self):
    base.write_atomically(self._path, ''.join(_line(key, name, row) for key, (name, row) in self._rows.items()))


def _line(key: str, name: str, row: Row) -> str:
  return json.dumps({'key': key, 'name': name, 'row': dict(row)}) + '\n'
