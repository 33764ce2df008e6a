"""Surveys record sets on disk: which there are, counts by kind, numbers of records to look at, rejected rows.

Counts need no pictures: records are read by number, without decoding them (`records.Reader.texts`), all of them up to
so many bytes, a sample beyond. What cannot be read is kept in words, and stops nothing.
"""

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from pdgen.core import rng as rng_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import records, splits

PLUS, MINUS, UNSEEN = SIGNS = ('+', '−', '')
ALL = 'all'
REJECTED = 'rejected.jsonl'

_DEPTH = 3  # Folders below the given one that are searched for sets.
_MOST_BYTES, _MOST_RECORDS = 2**30, 50_000  # That are read for the counts.
_FEWEST_RECORDS = 200
_LONGEST_LINE = 2**20  # Of a rejected row, in bytes.
_DETAIL = re.compile(r"'[^']*'|\"[^\"]*\"|\d+(?:\.\d+)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
  """What is counted and filtered by of a trajectory."""

  source: str
  kind: str  # Of `Provenance`; the mode where that is not known.
  sign: str  # One of SIGNS: no inspection asks for a refined picture, one does, there is none.
  refined: bool  # It holds a refined picture.
  steps: int
  pictures: int
  words: int  # Of the prompt.
  characters: int  # Of the prompt.
  cost: trajectory_lib.Cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
  """Counts and means over the trajectories of a kind."""

  kind: str
  count: int
  plus: int
  minus: int
  refined: int
  mean_steps: float
  mean_pictures: float
  most_pictures: int
  mean_words: float
  mean_characters: float
  cost: trajectory_lib.Cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSet:
  """A folder that holds, or was to hold, a record set."""

  name: str  # Path below the surveyed folder.
  folder: pathlib.Path
  split: str  # One of `splits.SPLITS` if its folder is named so, else ''.
  count: int = 0
  bytes: int = 0
  fingerprint: str = ''
  error: str = ''  # Why it cannot be read.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
  """Record sets, and what was read of them."""

  sets: tuple[RecordSet, ...]
  read: int  # Records that were read for the counts, unreadable ones included.
  unreadable: int  # Of those.
  summaries: tuple[Summary, ...]  # By kind, and of all (ALL) last.
  chosen: tuple[tuple[RecordSet, int], ...]  # Records to look at, in order.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejects:
  """Rows that were left out when sets were made, of all files together."""

  count: int = 0
  reasons: tuple[tuple[str, int], ...] = ()  # Most frequent first, details left out.
  sample: tuple[dict[str, Any], ...] = ()  # Rows as they were written, in order.


def facts(trajectory: trajectory_lib.Trajectory) -> Facts:
  """Facts of a trajectory, whose pictures may be empty."""
  made = trajectory.provenance
  inspected = [step.rejected for step in trajectory.steps if step.inspection is not None]
  return Facts(
    source=made.source if made else '',
    kind=made.kind if made else trajectory.mode,
    sign=UNSEEN if not inspected else MINUS if any(inspected) else PLUS,
    refined=any(step.refined is not None for step in trajectory.steps),
    steps=len(trajectory.steps),
    pictures=len(trajectory.pictures),
    words=len(trajectory.prompt.split()),
    characters=len(trajectory.prompt),
    cost=made and made.cost or trajectory_lib.Cost(),
  )


def summaries(found: Sequence[Facts]) -> tuple[Summary, ...]:
  """One for each kind, by name, and one of all."""
  kinds = sorted({one.kind for one in found})
  parts = [(kind, [one for one in found if one.kind == kind]) for kind in kinds]
  return tuple(_summary(kind, part) for kind, part in [*parts, (ALL, found)] if part)


def survey(
  folder: str | pathlib.Path,
  *,
  count: int,
  seed: int = 0,
  most_bytes: int = _MOST_BYTES,
  most_records: int = _MOST_RECORDS,
) -> Survey:
  """Counts what the record sets of a folder hold, and chooses records to look at.

  The chosen ones are dealt out evenly over sets, kinds and signs, so that rare ones are among them; unreadable records
  that were met are a kind.

  Args:
    folder: a record set, or a folder with some in it.
    count: records to choose.
    seed: of the choice.
    most_bytes: of the sets that are read for the counts; beyond, a random share of each set is read.
    most_records: likewise.

  Raises: FileNotFoundError where the folder holds no set.
  """
  sets = record_sets(pathlib.Path(folder))
  whole = [one for one in sets if one.count]
  total, size = sum(one.count for one in whole), sum(one.bytes for one in whole)
  share = min(1.0, most_records / max(total, 1), most_bytes / max(size, 1))
  found: list[Facts] = []
  groups: dict[tuple[int, str, str], list[tuple[RecordSet, int]]] = {}
  unreadable = 0
  for number, one in enumerate(whole):
    reader, rng = records.Reader(one.folder), rng_lib.numpy_rng(seed, number)
    some = one.count if share == 1 else min(one.count, max(_FEWEST_RECORDS, int(share * one.count)))
    for index in rng.permutation(one.count)[:some].tolist():
      try:
        fact = facts(reader.texts(index))
        group = (number, fact.kind, fact.sign)
        found.append(fact)
      except ValueError:
        unreadable += 1
        group = (number, 'unreadable', '')
      groups.setdefault(group, []).append((one, index))
  chosen = sorted(_dealt(groups, count, rng_lib.numpy_rng(seed, len(whole))), key=lambda c: (c[0].name, c[1]))
  return Survey(
    sets=tuple(sets),
    read=len(found) + unreadable,
    unreadable=unreadable,
    summaries=summaries(found),
    chosen=tuple(chosen),
  )


def record_sets(folder: pathlib.Path) -> list[RecordSet]:
  """The record sets in a folder, or the folder itself, finished or not.

  Raises: FileNotFoundError where there is none.
  """
  out = []
  for place in _folders(folder):
    if not any((place / name).is_file() for name in (records.INDEX, records.UNFINISHED)):
      continue
    name = str(place.relative_to(folder)) if place != folder else place.resolve().name
    split = place.resolve().name if place.resolve().name in splits.SPLITS else ''
    one = RecordSet(name=name, folder=place, split=split)
    try:
      reader = records.Reader(place)
      size = sum(shard.bytes for shard in reader.shards)
      one = dataclasses.replace(one, count=len(reader), bytes=size, fingerprint=reader.fingerprint())
    except (ValueError, OSError) as error:
      one = dataclasses.replace(one, error=str(error))
    out.append(one)
  if not out:
    raise FileNotFoundError(f'{folder} holds no record set (a folder with {records.INDEX}), nor do folders in it.')
  return out


def rejects(folder: str | pathlib.Path, *, count: int, seed: int = 0) -> Rejects:
  """What `rejected.jsonl` says in a folder, those in it, and the one above a single set.

  Args:
    folder: as of `survey`.
    count: rows to sample.
    seed: of the sample.
  """
  folder = pathlib.Path(folder)
  above = [folder.resolve().parent] if records.exists(folder) else []
  files = [place / REJECTED for place in [*above, *_folders(folder)] if (place / REJECTED).is_file()]
  total, rng = 0, rng_lib.numpy_rng(seed)
  reasons: collections.Counter[str] = collections.Counter()
  sample: dict[int, dict[str, Any]] = {}  # By the number of the row: a reservoir.
  for file in files:
    for row in _rows(file):
      reasons[_DETAIL.sub('…', str(row.get('reason', '')))[:200]] += 1
      if len(sample) < count:
        sample[total] = row
      elif (place := int(rng.integers(total + 1))) < count:
        del sample[list(sample)[place]]
        sample[total] = row
      total += 1
  return Rejects(count=total, reasons=tuple(reasons.most_common(50)), sample=tuple(sample.values()))


def _rows(file: pathlib.Path) -> Iterator[dict[str, Any]]:
  with file.open('rb') as lines:
    for number, line in enumerate(iter(lambda: lines.readline(_LONGEST_LINE), b''), 1):
      try:
        row = json.loads(line)
      except (ValueError, RecursionError):
        row = None
      yield row if isinstance(row, dict) else dict(reason='the line is no JSON object', file=str(file), row=number)


def _folders(folder: pathlib.Path, depth: int = _DEPTH) -> Iterator[pathlib.Path]:
  yield folder
  if depth and folder.is_dir():
    for place in sorted(folder.iterdir()):
      if place.is_dir() and not place.is_symlink():
        yield from _folders(place, depth - 1)


def _dealt(
  groups: dict[tuple[int, str, str], list[tuple[RecordSet, int]]], count: int, rng: np.random.Generator
) -> Iterable[tuple[RecordSet, int]]:
  """So many members, one of each group in turn, the groups in random order."""
  order = [groups[name] for name in sorted(groups)]
  order = [order[i] for i in rng.permutation(len(order))]
  longest = max(map(len, order), default=0)
  dealt = (group[turn] for turn in range(longest) for group in order if turn < len(group))
  return [one for one, _ in zip(dealt, range(count), strict=False)]


def _summary(kind: str, found: Sequence[Facts]) -> Summary:
  def mean(name: str) -> float:
    return float(np.mean([getattr(one, name) for one in found]))

  return Summary(
    kind=kind,
    count=len(found),
    plus=sum(one.sign == PLUS for one in found),
    minus=sum(one.sign == MINUS for one in found),
    refined=sum(one.refined for one in found),
    mean_steps=mean('steps'),
    mean_pictures=mean('pictures'),
    most_pictures=max(one.pictures for one in found),
    mean_words=mean('words'),
    mean_characters=mean('characters'),
    cost=sum((one.cost for one in found), trajectory_lib.Cost()),
  )
