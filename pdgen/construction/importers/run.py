"""Imports a data set as record sets of its splits; goes on after a kill without loss, doubles or changes.

    out/train/, out/heldout/     record sets (`data.records`), split by the hash of the prompt (`data.splits`)
    out/rejected.jsonl           a line for each row that is left out: file, row, key, reason
    out/import.json              what was imported, with which options, and the counts; put in place last
    out/import_unfinished.json   while it is not finished: how far it is

Rows are read in a fixed order. After so many of them, counted by what was kept, all that was written is made safe and
the place is noted. Whoever goes on reads from that place, writes nothing that is already safe, and ends with the same
files as an import that was never stopped.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from pdgen.construction.importers import base, tar_stream
from pdgen.core import json_file
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import folder_lock, record_codec, records, splits

DONE, UNFINISHED, REJECTED = 'import.json', 'import_unfinished.json', 'rejected.jsonl'  # Of an import.
_NEVER = 2**62  # The writers complete their shards when they are told to.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
  """Rows of an import: `read == kept + rejected`, `kept == train + heldout`."""

  read: int = 0
  kept: int = 0
  rejected: int = 0
  train: int = 0
  heldout: int = 0
  passed_over: int = 0  # Not chosen by `share`, and not read.


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
  """How far an import is: all before it is safe on disk."""

  rows: int = 0  # Of the source, passed over or not.
  rejected_bytes: int = 0  # Of the file of rejected rows.
  counts: Counts = Counts()


def import_records(
  form: base.Format,
  source: base.Source,
  out: str | os.PathLike,
  *,
  name: str,
  limit: int | None = None,
  share: float = 1.0,
  heldout: float = splits.HELDOUT_SHARE,
  resize: Callable[[np.ndarray], np.ndarray] | None = None,
  shard_records: int = 1000,
  progress: Callable[[Counts], None] | None = None,
  progress_rows: int = 100,
) -> Counts:
  """Imports a data set; see `importers.import_records`, which finds the format by its name."""
  if not 0 < share <= 1:
    raise ValueError(f'{share=} must be above 0 and at most 1.')
  splits.split_of('', heldout=heldout)  # Checks the share.
  for one in [source] if isinstance(source, str | os.PathLike) else source:
    if pathlib.Path(out).resolve().is_relative_to(pathlib.Path(one).resolve()):
      raise ValueError(f'{out} lies in the source {one}: its own files would be imported. Give another folder.')
  files = [[file, path.stat().st_size] for file, path in base.files(source, '.jsonl', '.parquet', *tar_stream.SUFFIXES)]
  options = dict(share=share, heldout=heldout, resize=_name_of(resize))
  splitter = getattr(form, 'splitter', None)
  return write_entries(
    lambda start: base.entries(form, source, start=start, share=share, resize=resize),
    out,
    asked=dict(format=name, files=files, options=options),
    split_of=splitter(source, heldout=heldout) if splitter else lambda text: splits.split_of(text, heldout=heldout),
    limit=limit,
    shard_records=shard_records,
    progress=progress,
    progress_rows=progress_rows,
  )


def write_entries(
  entries: Callable[[int], Iterator[base.Entry]],
  out: str | os.PathLike,
  *,
  asked: Mapping[str, Any],
  split_of: Callable[[str], str] = splits.split_of,
  limit: int | None = None,
  shard_records: int = 1000,
  shard_pixels: int = 2**28,
  progress: Callable[[Counts], None] | None = None,
  progress_rows: int = 100,
  what: str = 'import',
) -> Counts:
  """Writes any stream of entries that can be made again, resumable; what `import_records` does with those of a format.

  Args:
    entries: makes the stream from its beginning, always the same; the outcomes of the first so many, its argument, are
      not looked at and may be None.
    out: folder of the import.
    asked: JSON that says what the stream is: a stopped import goes on only where it is equal. Kept in `import.json`.
    split_of: split of a prompt.
    limit: trajectories to keep; None: all.
    shard_records: trajectories of a shard,
    shard_pixels: or pixels: what comes first.
    progress: called with the counts so far, every `progress_rows` entries and at the end.
    progress_rows: see there.
    what: `import`, or what else it is: begins the names of its files, and names it in errors.

  Returns, raises: as `importers.import_records`.
  """
  if limit is not None and limit < 1 or shard_records < 1 or shard_pixels < 1:
    raise ValueError(f'{limit=}, {shard_records=} and {shard_pixels=} must be at least 1.')
  out = pathlib.Path(out)
  if (out / f'{what}.json').exists():
    (out / f'{what}_unfinished.json').unlink(missing_ok=True)
    raise FileExistsError(f'The {what} {out} is finished. Delete the folder to make it again, or give another.')
  asked = dict(asked, limits=dict(limit=limit, shard_records=shard_records, shard_pixels=shard_pixels))
  limits = dict(shard_records=shard_records, shard_pixels=shard_pixels)
  with folder_lock.exclusive(out), _Run(out, asked, what=what, **limits) as run:
    start = run.place.rows
    if limit is None or run.counts.kept < limit:
      for number, entry in enumerate(entries(start), 1):
        if number <= start:
          continue
        run.take(entry, split_of)
        if progress is not None and number % progress_rows == 0:
          progress(run.counts)
        if run.counts.kept == limit:
          break
    run.finish()
  if progress is not None:
    progress(run.counts)
  return run.counts


class _Run:
  """The files of an import that is going on."""

  def __init__(self, out: pathlib.Path, asked: Mapping[str, Any], *, what: str, shard_records: int, shard_pixels: int):
    """Raises: ValueError for an import of something else, or damaged files."""
    self._what, self._done, self._unfinished = what, out / f'{what}.json', out / f'{what}_unfinished.json'
    self._out, self._asked, self._limits = out, asked, (shard_records, shard_pixels)
    self.place = _read_place(self._unfinished, asked, what)
    self.counts, self._rows = self.place.counts, self.place.rows
    self._records, self._pixels = 0, 0  # Since the place.
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> '_Run':
    with contextlib.ExitStack() as stack:
      self._writers: dict[str, records.Writer | None] = {}
      self._safe: dict[str, int] = {}  # Trajectories after the place that are on disk already.
      for split in splits.SPLITS:
        folder = self._out / split
        if records.exists(folder):  # It was closed before the kill.
          writer, count = None, len(records.Reader(folder))
        else:
          writer = stack.enter_context(_Abandoned(records.Writer(folder, shard_records=_NEVER, shard_bytes=_NEVER)))
          count = writer.count
        known = getattr(self.place.counts, split)
        if count < known or count > known and not self._unfinished.exists():
          raise ValueError(
            f'{folder} has {count} records, the {self._what} that is to go on there {known}. Delete {self._out}, or '
            'give another folder.'
          )
        self._writers[split], self._safe[split] = writer, count - known
      self._rejects: BinaryIO = stack.enter_context((self._out / REJECTED).open('ab'))
      if self._rejects.seek(0, os.SEEK_END) < self.place.rejected_bytes:
        raise ValueError(f'{self._out / REJECTED} has lost rows. Delete {self._out}, or give another folder.')
      self._rejects.truncate(self.place.rejected_bytes)
      self._rejects.seek(0, os.SEEK_END)
      self._note()
      self._stack = stack.pop_all()
    return self

  def __exit__(self, *error: Any):
    self._stack.close()

  def take(self, entry: base.Entry, split_of: Callable[[str], str]):
    """Writes an entry where it belongs."""
    self._rows += 1
    outcome, counts = entry.outcome, self.counts
    if outcome is None:
      self.counts = dataclasses.replace(counts, passed_over=counts.passed_over + 1)
      return
    if isinstance(outcome, trajectory_lib.Trajectory):
      split = split_of(outcome.prompt)
      try:
        self._write(split, outcome, entry)
      except ValueError as error:
        entry = entry._replace(outcome=base.Rejected(_why_not_stored(outcome, entry.files, error)))
      else:
        kept = {'kept': counts.kept + 1, split: getattr(counts, split) + 1}
        self.counts = dataclasses.replace(counts, read=counts.read + 1, **kept)
        self._records += 1
        self._pixels += sum(picture.shape[0] * picture.shape[1] for picture in outcome.pictures)
        if self._records >= self._limits[0] or self._pixels >= self._limits[1]:
          self._make_safe()
        return
    row = json.dumps(base.reject(entry), ensure_ascii=False).encode('utf-8', 'backslashreplace')
    self._rejects.write(row + b'\n')
    self.counts = dataclasses.replace(counts, read=counts.read + 1, rejected=counts.rejected + 1)

  def finish(self):
    """Closes the record sets and says that the import is finished."""
    self._sync_rejects()
    for writer in self._writers.values():
      if writer is not None:
        writer.close()
    content = dict(self._asked, counts=dataclasses.asdict(self.counts))
    _write_json(self._done, content)
    self._unfinished.unlink()

  def _write(self, split: str, trajectory: trajectory_lib.Trajectory, entry: base.Entry):
    if self._safe[split]:
      record_codec.encode(trajectory, name=str(entry.where), picture_files=entry.files)  # It may be refused.
      self._safe[split] -= 1
      return
    writer = self._writers[split]
    if writer is None:
      raise RuntimeError(f'The {self._what} {self._out} has more {split} records than before: its source has changed.')
    writer.write(trajectory, picture_files=entry.files)

  def _make_safe(self):
    for writer in self._writers.values():
      if writer is not None:
        writer.flush()
    self._sync_rejects()
    self.place = _Place(rows=self._rows, rejected_bytes=self._rejects.tell(), counts=self.counts)
    self._note()
    self._records, self._pixels = 0, 0

  def _note(self):
    _write_json(self._unfinished, dict(self._asked, place=dataclasses.asdict(self.place)))

  def _sync_rejects(self):
    self._rejects.flush()
    os.fsync(self._rejects.fileno())


@contextlib.contextmanager
def _Abandoned(writer: records.Writer):
  """A writer that is closed by `close` alone: leaving the block drops what is not safe."""
  try:
    yield writer
  finally:
    writer.__exit__(KeyboardInterrupt, None, None)


def _why_not_stored(trajectory: trajectory_lib.Trajectory, files: Sequence[bytes | None], error: ValueError) -> str:
  """What the codec has against a trajectory, in the same words whoever asks. Raises: the error that is not of it."""
  try:
    record_codec.encode(trajectory, name='the trajectory', picture_files=files)
  except ValueError as why:
    return base.one_line(why)
  raise error


def _read_place(path: pathlib.Path, asked: Mapping[str, Any], what: str) -> _Place:
  if not path.exists():
    return _Place()
  content = json_file.read(path)
  for key, value in asked.items():
    if content.get(key) != value:
      raise ValueError(
        f'{path.parent} holds an unfinished {what} with other {key} ({content.get(key)}, now {value}). Go on with the '
        'same, delete the folder, or give another.'
      )
  place = content['place']
  return _Place(**{**place, 'counts': Counts(**place['counts'])})


def _name_of(function: Callable | None) -> str | None:
  """A name that is the same in another process: without the address that a plain repr has."""
  if function is None:
    return None
  owner = getattr(function, '__self__', None)
  name = f'{getattr(function, "__module__", "")}.{getattr(function, "__qualname__", repr(function))}'
  return name if owner is None else f'{name} of {owner!r}'


def _write_json(path: pathlib.Path, content: Mapping[str, Any]):
  partial = path.with_name(f'{path.name}.partial')
  with partial.open('w', encoding='utf-8') as file:
    json.dump(content, file, indent=2)
    file.write('\n')
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, path)
  descriptor = os.open(path.parent, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
