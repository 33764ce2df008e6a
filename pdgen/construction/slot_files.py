"""Finished samples on disk before they are in a record set: what services have made is never made, or paid for, twice.

A file a slot: a line of JSON with the reasons of its rejected attempts, then the record of its sample, if it has one.
It is put in place in one move; a resumed build reads it instead of asking again, so that the outcome is the same.
"""

import io
import itertools
import json
import os
import pathlib
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from PIL import Image

from pdgen.construction.importers import base
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import record_codec

Outcome = trajectory_lib.Trajectory | base.Rejected


def kept(
  folder: pathlib.Path,
  make: Callable[[int], list[Outcome]],
  slot: int,
  *,
  lasts: Callable[[Sequence[Outcome]], bool] = lambda outcomes: True,
) -> tuple[int, list[Outcome], Sequence[bytes | None]]:
  """The outcomes of a slot from its file, or made and kept there; with the files of the sample's pictures.

  Args:
    folder: of the files.
    make: makes the outcomes.
    slot: its number.
    lasts: whether outcomes are kept; those that are not are made again by a resumed build, unless `keep` is called.
  """
  path = _path(folder, slot)
  try:
    head, _, record = path.read_bytes().partition(b'\n')
  except FileNotFoundError:
    outcomes = make(slot)
    if lasts(outcomes):
      _write(path, outcomes)
    return slot, outcomes, pictures(outcomes)
  outcomes: list[Outcome] = [base.Rejected(reason) for reason in json.loads(head)]
  if not record:
    return slot, outcomes, ()
  outcomes.append(record_codec.decode(record))
  lengths = record_codec.header_of(record)['lengths']
  ends = itertools.accumulate(lengths, initial=4 + struct.unpack_from('<I', record)[0])
  return slot, outcomes, [record[a:b] for a, b in itertools.pairwise(ends)]


def pictures(outcomes: Sequence[Outcome]) -> Sequence[bytes | None]:
  """The pictures of the sample as PNG, compressed where it was made and not where it is written."""
  if not outcomes or not isinstance(outcomes[-1], trajectory_lib.Trajectory):
    return ()
  files = []
  for picture in outcomes[-1].pictures:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'PNG')
    files.append(file.getvalue())
  return files


def keep(folder: pathlib.Path, slot: int, outcomes: Sequence[Outcome]):
  """Keeps outcomes of a slot, whatever they are."""
  _write(_path(folder, slot), outcomes)


def forget(folder: pathlib.Path, slots: Iterable[int]):
  """Removes the files of slots: they are made again."""
  for slot in slots:
    _path(folder, slot).unlink(missing_ok=True)


def _path(folder: pathlib.Path, slot: int) -> pathlib.Path:
  return folder / f'{slot // 1000:04d}' / f'{slot:07d}'


def _write(path: pathlib.Path, outcomes: Sequence[Outcome]):
  reasons = [o.reason for o in outcomes if isinstance(o, base.Rejected)]
  record: Any = b''
  if outcomes and isinstance(sample := outcomes[-1], trajectory_lib.Trajectory):
    try:
      record, _ = record_codec.encode(sample, name='the sample')
    except ValueError:
      return  # The build will reject it, for the same reason every time.
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_suffix('.part')
  part.write_bytes(json.dumps(reasons).encode() + b'\n' + record)
  os.replace(part, path)
