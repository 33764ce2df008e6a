"""Samples of tar files in webdataset's layout, as a stream: bounded memory, nothing written to disk, stops early.

Members whose names are equal up to the first dot of the last part are one sample, in the order of the file:

    000001.good_image.jpg  000001.bad_image.jpg  000001.prompt.txt  000002.good_image.jpg  ...

A plain file is read by seeking, so that what is not wanted costs nothing; a compressed one (gzip, bzip2, xz) or a pipe
is read through. Refused, by name, each as a row of its own: names that lead out of a folder, links, devices, members
that are too large or too many for a sample. An archive that inflates beyond measure, is cut off or damaged is given up
there, and the next one is read.
"""

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from pdgen.construction.importers import base

# Of a member, of the members of a sample; members of a sample.
_MOST_BYTES, _MOST_SAMPLE_BYTES, _MOST_MEMBERS = 2**27, 2**28, 64
# What an archive may inflate to: this, or so many times what has been read of it. Pictures take 1, flat ones 50.
_INFLATED, _TIMES = 2**28, 100
_COMPRESSED = {b'\x1f\x8b': gzip.open, b'BZh': bz2.open, b'\xfd7zXZ': lzma.open}
SUFFIXES = ('.tar', '.tgz', '.gz', '.bz2', '.xz')


def rows(source: base.Source, wanted: Callable[[base.Where], bool]) -> Iterator[tuple[base.Where, base.Load]]:
  """Every sample, as a dict from the rest of a member's name (`good_image.jpg`) to its content.

  Args:
    source: a folder, a tar file (a pipe too), or a list of them.
    wanted: see `base`. The key of a place is the sample's name.

  Raises: exceptions of `base.files`.
  """
  for name, path in base.files(source, *SUFFIXES):
    try:
      with path.open('rb') as raw:
        yield from _samples(name, raw, wanted, is_file=stat.S_ISREG(path.stat().st_mode))
    except _Refused as error:
      yield base.Where(name, 0), base.Rejected(f'the archive is given up: {error}')
    except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError, ValueError) as error:
      base.raise_if_of_the_disk(error)
      yield (
        base.Where(name, 0),
        base.Rejected(f'the archive is damaged or cut off: {" ".join(str(error).split())[:200]}'),
      )


def _samples(
  name: str, raw: IO[bytes], wanted: Callable[[base.Where], bool], *, is_file: bool
) -> Iterator[tuple[base.Where, base.Load]]:
  number, sample = 0, None
  try:
    for member, read in _members(raw, is_file=is_file):
      reason, (key, part) = _unfit(member), _split(member.name)
      if sample and (reason or sample.where.key != key):
        yield sample.entry()
        sample = None
      if reason:
        number += 1
        yield base.Where(name, number, member.name[:200]), base.Rejected(reason)
        continue
      if sample is None:
        number += 1
        where = base.Where(name, number, key)
        sample = _Sample(where, is_wanted=wanted(where))
      sample.add(part, member.size, read)
  except Exception:
    if sample and sample.has_parts:
      yield sample.entry()  # With the members that came before the damage: they may be all.
    raise
  if sample:
    yield sample.entry()


class _Sample:
  """The members of a sample that have been read so far."""

  def __init__(self, where: base.Where, *, is_wanted: bool):
    self.where, self._is_wanted = where, is_wanted
    self._parts: dict[str, bytes] = {}
    self._count, self._bytes, self._reason = 0, 0, ''

  @property
  def has_parts(self) -> bool:
    return bool(self._parts)

  def add(self, part: str, size: int, read: Callable[[], bytes]):
    self._count, self._bytes = self._count + 1, self._bytes + size
    if part in self._parts:
      self._reason = self._reason or f'the sample holds {part!r} twice'
    if self._count > _MOST_MEMBERS:
      self._reason = self._reason or f'the sample has more than {_MOST_MEMBERS} members'
    elif self._bytes > _MOST_SAMPLE_BYTES:
      self._reason = self._reason or f'the sample has more than {_MOST_SAMPLE_BYTES} bytes'
    if self._reason:
      self._parts.clear()
    elif self._is_wanted:
      self._parts[part] = read()

  def entry(self) -> tuple[base.Where, base.Load]:
    if not self._is_wanted:
      return self.where, None
    parts, reason = self._parts, self._reason

    def load() -> dict[str, bytes]:
      if reason:
        raise ValueError(reason)
      return parts

    return self.where, load


def _members(raw: IO[bytes], *, is_file: bool) -> Iterator[tuple[tarfile.TarInfo, Callable[[], bytes]]]:
  """(member, reads it) of all but folders. Raises: _Refused, and what tarfile and the decompressors raise."""
  head = raw.peek(6)[:6] if isinstance(raw, io.BufferedReader) else b''
  opener = next((opener for magic, opener in _COMPRESSED.items() if head.startswith(magic)), None)
  file: Any = _Bounded(raw if opener is None else opener(raw), raw if opener else None)
  mode = 'r:' if is_file and opener is None else 'r|'
  with tarfile.open(fileobj=file, mode=mode, tarinfo=_Info) as archive:
    members: list[Any] = vars(archive)['members']  # tarfile would keep them all.
    while (member := archive.next()) is not None:
      members.clear()
      if not member.isdir():
        yield member, lambda member=member: _content(archive, member)
    if problem := getattr(archive, 'problem', ''):
      raise tarfile.ReadError(problem)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
  file = archive.extractfile(member)
  content = b'' if file is None else file.read()
  if len(content) != member.size:
    raise tarfile.ReadError(f'{member.name} is cut off')
  return content


class _Info(tarfile.TarInfo):
  """Remembers why an archive ended: tarfile takes a damaged header for the end."""

  @classmethod
  def fromtarfile(cls, tarfile: Any) -> Any:
    try:
      return super().fromtarfile(tarfile)
    except EOF_HEADER:
      raise
    except HEADER as error:
      tarfile.problem = f'{error} at byte {tarfile.offset}'
      raise


EOF_HEADER: Any = tarfile.EOFHeaderError  # pyright: ignore[reportAttributeAccessIssue]  # Two zero blocks.
HEADER: Any = tarfile.HeaderError


class _Refused(Exception):
  """What is beyond the bounds of an archive."""


class _Bounded(io.RawIOBase):
  """A file that refuses to be read beyond measure, at once or in all."""

  def __init__(self, file: Any, compressed: IO[bytes] | None):
    """compressed: what `file` inflates; None: nothing."""
    self._file, self._compressed, self._total = file, compressed, 0

  def read(self, size: int = -1) -> bytes:
    if size < 0 or size > _INFLATED:  # Of a long name, or a header of pax.
      raise _Refused(f'it asks for {size} bytes at once')
    content = self._file.read(size)
    self._total += len(content)
    if self._compressed is not None and self._total > max(_INFLATED, _TIMES * self._compressed.tell()):
      raise _Refused(f'{self._compressed.tell()} bytes of it inflate to more than {self._total}')
    return content

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return self._compressed is None and self._file.seekable()

  def seek(self, offset: int, whence: int = 0) -> int:
    return self._file.seek(offset, whence)

  def tell(self) -> int:
    return self._file.tell()


def _unfit(member: tarfile.TarInfo) -> str:
  """Why a member is refused; empty: it is not."""
  parts = member.name.split('/')
  if member.name.startswith('/') or '..' in parts or '\\' in member.name or ':' in parts[0]:
    return f'the name {member.name[:200]!r} leads out of its folder'
  if not member.name.isprintable() or not parts[-1]:
    return f'the name {member.name[:200]!r} is no name of a file'
  if member.issym() or member.islnk():
    return f'{member.name[:200]!r} is a link to {member.linkname[:200]!r}'
  if not member.isreg() or member.issparse():
    return f'{member.name[:200]!r} is no plain file (type {member.type!r})'
  if member.size > _MOST_BYTES:
    return f'{member.name[:200]!r} has {member.size} bytes; a member may have {_MOST_BYTES}'
  return ''


def _split(name: str) -> tuple[str, str]:
  """(key of the sample, rest of the name) of a member.

  >>> _split('images/000001.good_image.jpg')
  ('images/000001', 'good_image.jpg')
  """
  folder, slash, last = name.rpartition('/')
  stem, _, rest = last.partition('.')
  return f'{folder}{slash}{stem}', rest
