"""Record sets: trajectories on disk in ArrayRecord shards; streaming writes, random access, whole or absent.

A record set is a folder:

    index.json                                  schema, count, fingerprint; each shard's count, bytes and SHA-256
    trajectories-00000-1f0c27ab.array_record    a shard, named by the first digits of its SHA-256
    trajectories-00001-94e2d3b0.array_record

The set is finished exactly when it has an `index.json`, which is put in place last. Before that, `unfinished.json`
lists the complete shards, and a new `Writer` continues after them.

A record is one trajectory (see `record_codec`). Equal trajectories make equal files (ArrayRecord is deterministic)
where the shard sizes and the versions of array_record and Pillow are equal; the fingerprint is equal in any case.
"""

import bisect
import contextlib
import dataclasses
import hashlib
import itertools
import json
import operator
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsIndex

import grain

from pdgen.core import trajectory as trajectory_lib
from pdgen.data import chunk_sizes, folder_lock, record_codec

try:
  from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]  # C++, no stubs.
except ImportError:  # Windows has no wheels of it.
  array_record_module = None

INDEX, UNFINISHED = 'index.json', 'unfinished.json'

_OURS = re.compile(r'trajectories-\d{5,}(-[0-9a-f]{8}\.array_record|\.partial)|unfinished\.json\.partial')
_REMEDY = 'Copy the set again from where it is whole, or make it again.'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
  """A file of a finished record set."""

  path: pathlib.Path
  count: int  # Number of records.
  bytes: int  # Size of the file.


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Shard:
  """A complete file of a record set."""

  file: str  # Name in the folder.
  count: int  # Number of records.
  bytes: int  # Size of the file.
  sha256: str  # SHA-256 of the file.


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Index:
  """The complete shards of a record set: `index.json`, or `unfinished.json`."""

  shards: tuple[_Shard, ...] = ()
  fingerprint: str = '0' * 64  # Hash chain over the content hashes of all records.

  @property
  def count(self) -> int:
    return sum(shard.count for shard in self.shards)


class Writer:
  """Writes a record set as a stream, in constant memory.

  Complete shards are safe on disk. After a kill, or an exception in the `with` block, the next writer continues after
  them; the records of an incomplete shard are lost:

      with records.Writer(folder) as writer:
        for number in range(writer.count, total):
          writer.write(make(number))

  Args:
    folder: of the record set; made where it does not exist.
    shard_records: a shard is complete with this many records,
    shard_bytes: or with this many bytes of records.
    overwrite: replace a finished set, which stays readable until the new one is closed.
    resume: continue an unfinished set; False: remove it.

  Raises:
    FileExistsError: the set is finished, and `overwrite` is False.
    BlockingIOError: another writer is at work in the folder.
    ValueError: the unfinished set is damaged.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    *,
    shard_records: int = 1000,
    shard_bytes: int = 2**28,
    overwrite: bool = False,
    resume: bool = True,
  ):
    if shard_records < 1 or shard_bytes < 1:
      raise ValueError(f'{shard_records=} and {shard_bytes=} must be at least 1.')
    _needs_array_record()
    self._folder, self._shard_records, self._shard_bytes = pathlib.Path(folder), shard_records, shard_bytes
    self._shard: Any = None  # The open ArrayRecordWriter.
    self._open_records, self._open_bytes = 0, 0  # In the open shard.
    with contextlib.ExitStack() as stack:
      stack.enter_context(folder_lock.exclusive(self._folder))
      self._index = self._start(overwrite=overwrite, resume=resume)
      self._fingerprint = self._index.fingerprint  # Of all that was written, safe or not.
      self._lock: contextlib.ExitStack | None = stack.pop_all()  # None once closed.

  @property
  def count(self) -> int:
    """Number of trajectories that are safe on disk, in complete shards."""
    return self._index.count

  def write(self, trajectory: trajectory_lib.Trajectory, *, picture_files: Sequence[bytes | None] = ()):
    """Appends a trajectory.

    Args:
      trajectory: to append. Tuples in its metadata come back as lists.
      picture_files: encoded pictures (JPEG, PNG, ...) to store as they are; see `record_codec.encode`.

    Raises: ValueError naming a trajectory that cannot be stored; the writer can go on without it.
    """
    self._check_open()
    name = f'trajectory {self.count + self._open_records} ({trajectory.prompt!r})'
    record, content_hash = record_codec.encode(trajectory, name=name, picture_files=picture_files)
    if self._shard is None:
      # A group is what one random access reads and decompresses.
      writer: Any = array_record_module
      self._shard = writer.ArrayRecordWriter(str(self._partial), 'group_size:1')
    self._shard.write(record)
    self._fingerprint = hashlib.sha256(bytes.fromhex(self._fingerprint + content_hash)).hexdigest()
    self._open_records += 1
    self._open_bytes += len(record)
    if self._open_records >= self._shard_records or self._open_bytes >= self._shard_bytes:
      self.flush()

  def flush(self):
    """Completes the open shard, so that all that was written is safe on disk. A shard takes 128 KB or more."""
    self._check_open()
    if self._shard is None:
      return
    try:
      self._shard.close()  # Raises RuntimeError on a full disk.
      _sync(self._partial)
      sha256 = _file_sha256(self._partial)
      file = f'trajectories-{len(self._index.shards):05d}-{sha256[:8]}.array_record'
      shard = _Shard(file=file, count=self._open_records, bytes=self._partial.stat().st_size, sha256=sha256)
      os.replace(self._partial, self._folder / file)
      index = _Index(shards=(*self._index.shards, shard), fingerprint=self._fingerprint)
      _write_index(self._folder / UNFINISHED, index)
    except BaseException:
      self._abandon()  # Going on would leave the records of this shard out of the set.
      raise
    self._index, self._shard, self._open_records, self._open_bytes = index, None, 0, 0

  def close(self):
    """Finishes the set."""
    if self._lock is None:
      return
    try:
      self.flush()
      _write_index(self._folder / UNFINISHED, self._index)
      os.replace(self._folder / UNFINISHED, self._folder / INDEX)
      _sync(self._folder)
      self._remove_unlisted()
    finally:
      self._abandon()

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, kind, error, traceback):
    if kind is None:
      self.close()
    else:
      self._abandon()

  @property
  def _partial(self) -> pathlib.Path:
    return self._folder / f'trajectories-{len(self._index.shards):05d}.partial'

  def _start(self, *, overwrite: bool, resume: bool) -> _Index:
    """The index to continue. Removes what a killed writer left and no index lists."""
    if exists(self._folder) and not overwrite:
      raise FileExistsError(f'The record set {self._folder} is finished. Read it, or replace it with overwrite=True.')
    index, unfinished = _Index(), self._folder / UNFINISHED
    if not resume:
      unfinished.unlink(missing_ok=True)
    elif unfinished.exists():
      index = _read_index(unfinished)
      _check_shards(self._folder, index)
    self._remove_unlisted()
    return index

  def _remove_unlisted(self):
    listed = set()
    for name in (INDEX, UNFINISHED):
      with contextlib.suppress(FileNotFoundError, ValueError):  # Nothing of a damaged set is worth keeping.
        listed |= {shard.file for shard in _read_index(self._folder / name).shards}
    for path in self._folder.iterdir():
      if _OURS.fullmatch(path.name) and path.name not in listed:
        path.unlink()

  def _check_open(self):
    if self._lock is None:
      raise ValueError(f'The writer of {self._folder} is closed. A new one continues an unfinished set.')

  def _abandon(self):
    """Drops the open shard and unlocks the folder."""
    if self._lock is None:
      return
    if self._shard is not None:
      with contextlib.suppress(RuntimeError):
        self._shard.close()
      self._partial.unlink(missing_ok=True)
    self._lock.close()
    self._shard, self._lock = None, None


class Reader:
  """A finished record set as a sequence; a data source of grain, shared by threads and pickled to worker processes.

  Opening a set checks its index and the sizes of its shards, reading checks what a shard inflates to and the content
  hash of a record, and `verify` checks every byte.

  Raises:
    FileNotFoundError: the folder holds no finished record set.
    ValueError: the set is damaged, or of another schema.
  """

  def __init__(self, folder: str | os.PathLike):
    self._folder = pathlib.Path(folder)
    if not exists(self._folder):
      raise FileNotFoundError(_why_missing(self._folder))
    _needs_array_record()
    self._index = _read_index(self._folder / INDEX)
    _check_shards(self._folder, self._index)
    self._ends = [*itertools.accumulate(shard.count for shard in self._index.shards)]
    parts = [_Part(str(self._folder / shard.file), 0, shard.count, shard.count) for shard in self._index.shards]
    # It opens a shard when it is first read, and leaves open files out of a pickle.
    paths: Any = parts  # grain documents the protocol that _Part has, and types it as its own class.
    self._checked: set[int] = set()  # Numbers of the shards whose records are known to be of a size that we read.
    self._source: Any = grain.sources.ArrayRecordDataSource(paths) if parts else ()

  def __len__(self) -> int:
    return self._index.count

  def __getitem__(self, index: SupportsIndex) -> trajectory_lib.Trajectory:
    """Raises: IndexError outside of [0, len), ValueError for a damaged record."""
    return self._decoded(index, record_codec.decode)

  def texts(self, index: SupportsIndex) -> trajectory_lib.Trajectory:
    """A trajectory with empty pictures: `record_codec.decode_texts`. Exceptions as of `[index]`."""
    return self._decoded(index, record_codec.decode_texts)

  def _decoded(
    self, index: SupportsIndex, decode: Callable[[bytes], trajectory_lib.Trajectory]
  ) -> trajectory_lib.Trajectory:
    index = operator.index(index)
    if not 0 <= index < len(self):
      raise IndexError(f'Record {index} of {self._folder} does not exist: it has {len(self)}, counted from 0.')
    number = bisect.bisect_right(self._ends, index)
    shard = self._index.shards[number]
    try:
      if number not in self._checked:
        chunk_sizes.check(self._folder / shard.file, most=record_codec.MOST_BYTES)
        self._checked.add(number)
      return decode(self._source[index])
    except Exception as error:
      place = f'{self._folder / shard.file}, number {index - self._ends[number] + shard.count} in it'
      raise ValueError(f'Record {index} ({place}) cannot be read: {error}. {_REMEDY}') from error

  def __repr__(self) -> str:
    # Grain compares it on resume: without the folder, a set may move.
    return f'records.Reader({len(self)} records, fingerprint {self.fingerprint()})'

  @property
  def shards(self) -> list[Shard]:
    """Its files, in order."""
    return [Shard(path=self._folder / s.file, count=s.count, bytes=s.bytes) for s in self._index.shards]

  def fingerprint(self) -> str:
    """Hash of the trajectories in their order: independent of shards, and of how pictures are compressed as PNG."""
    return self._index.fingerprint

  def verify(self):
    """Reads all shards. Raises: ValueError naming a shard whose SHA-256 is not that of the index."""
    for shard in self._index.shards:
      if _file_sha256(self._folder / shard.file) != shard.sha256:
        raise ValueError(f'{self._folder / shard.file} is damaged: its SHA-256 is not that of {INDEX}. {_REMEDY}')


@dataclasses.dataclass(frozen=True)
class _Part:
  """All records of a shard as a `FileInstruction`, which saves ArrayRecordDataSource to open every file at once."""

  filename: str
  skip: int
  take: int
  examples_in_shard: int


def exists(folder: str | os.PathLike) -> bool:
  """Whether the folder holds a finished record set."""
  return (pathlib.Path(folder) / INDEX).is_file()


def write(
  folder: str | os.PathLike, trajectories: Iterable[trajectory_lib.Trajectory], *, overwrite: bool = False, **sizes: int
):
  """Writes a record set from its beginning. Arguments and exceptions of `Writer`."""
  with Writer(folder, overwrite=overwrite, resume=False, **sizes) as writer:
    for trajectory in trajectories:
      writer.write(trajectory)


def read(folder: str | os.PathLike) -> list[trajectory_lib.Trajectory]:
  """All trajectories of a record set. Exceptions of `Reader`."""
  reader = Reader(folder)
  return [reader[i] for i in range(len(reader))]


def _needs_array_record():
  if array_record_module is None:
    raise ImportError(
      'Record sets need array_record: pip install it. It has no wheels for Windows; train in WSL there.'
    )


def _write_index(path: pathlib.Path, index: _Index):
  content: dict[str, Any] = dict(schema=record_codec.SCHEMA, count=index.count, **dataclasses.asdict(index))
  content['sha256'] = hashlib.sha256(record_codec.canonical_json(content)).hexdigest()
  partial = path.with_name(f'{path.name}.partial')
  partial.write_text(json.dumps(content, indent=2) + '\n')
  _sync(partial)
  os.replace(partial, path)
  _sync(path.parent)


def _read_index(path: pathlib.Path) -> _Index:
  """Raises: FileNotFoundError, or ValueError for a damaged index or another schema."""
  text = path.read_bytes()
  try:
    content = json.loads(text)
    schema, sha256 = content['schema'], content.pop('sha256')
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{path} is damaged ({error!r}). {_REMEDY}') from error
  if schema != record_codec.SCHEMA:
    known = f'this version of pdgen reads schema {record_codec.SCHEMA}'
    raise ValueError(f'{path} has schema {schema}; {known}. Update pdgen, or make the set again.')
  if hashlib.sha256(record_codec.canonical_json(content)).hexdigest() != sha256:
    raise ValueError(f'{path} is damaged: its content does not match its SHA-256. {_REMEDY}')
  return _Index(shards=tuple(_Shard(**shard) for shard in content['shards']), fingerprint=content['fingerprint'])


def _check_shards(folder: pathlib.Path, index: _Index):
  for shard in index.shards:
    path = folder / shard.file
    if not path.is_file():
      raise ValueError(f'{path} is missing. {_REMEDY}')
    if (size := path.stat().st_size) != shard.bytes:
      raise ValueError(f'{path} is damaged: it has {size} bytes, not {shard.bytes}. {_REMEDY}')


def _why_missing(folder: pathlib.Path) -> str:
  if not (folder / UNFINISHED).is_file():
    return f'{folder} holds no record set: it has no {INDEX}. Give the folder of a records.Writer.'
  return f'The record set {folder} is unfinished: it has no {INDEX}. Run its writer again; it continues.'


def _sync(path: pathlib.Path):
  """Waits until a file, or the names in a folder, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _file_sha256(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
