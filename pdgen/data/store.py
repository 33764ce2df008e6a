"""Lists of trajectories in one file: texts as JSON, pictures as bytes, a digest over both."""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from pdgen.core import trajectory as trajectory_lib

_FORMAT = 1
_PICTURES = ('draft', 'refined')


def save(path: str | os.PathLike, trajectories: Iterable[trajectory_lib.Trajectory]):
  """Writes one `.npz`; a reader sees the old file or the whole new one. Equal lists make equal files.

  Metadata must be JSON: tuples come back as lists. Raises: ValueError naming the trajectory whose metadata is not.
  """
  path = pathlib.Path(path)
  pictures: list[np.ndarray] = []
  records = [_record(number, trajectory, pictures) for number, trajectory in enumerate(trajectories)]
  header = dict(format=_FORMAT, shapes=[p.shape for p in pictures], trajectories=records)
  texts = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
  pixels = np.concatenate([np.zeros(0, np.uint8), *(p.reshape(-1) for p in pictures)])
  partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
  try:
    with open(partial, 'wb') as file:
      np.savez_compressed(file, texts=texts, pixels=pixels, digest=_digest(texts, pixels))
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> list[trajectory_lib.Trajectory]:
  """The saved list. Raises: ValueError for a damaged file, FileNotFoundError for none."""
  content = pathlib.Path(path).read_bytes()
  try:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
      texts, pixels, digest = file['texts'], file['pixels'], file['digest']
  except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError, ValueError, RuntimeError) as error:
    raise ValueError(f'{path} is damaged or no file of trajectories ({error}). Make it again.') from error
  if not np.array_equal(_digest(texts, pixels), digest):
    raise ValueError(f'{path} is damaged: its content does not match its digest. Make it again.')
  header = json.loads(texts.tobytes())
  if header['format'] != _FORMAT:
    raise ValueError(f'{path} has format {header["format"]}; this version reads {_FORMAT}. Make it again.')
  ends = np.cumsum([0, *(int(np.prod(shape)) for shape in header['shapes'])])
  pictures = [pixels[a:b].reshape(s) for a, b, s in zip(ends[:-1], ends[1:], header['shapes'], strict=True)]
  return [_trajectory(record, pictures) for record in header['trajectories']]


def _record(number: int, trajectory: trajectory_lib.Trajectory, pictures: list[np.ndarray]) -> dict[str, Any]:
  """JSON of a trajectory; its pictures are appended to the list and named by their place in it."""
  try:
    metadata = json.loads(json.dumps(trajectory.metadata))
  except TypeError as error:
    raise ValueError(f'Metadata of trajectory {number} ({trajectory.prompt!r}) is not JSON: {error}.') from error
  steps = []
  for step in trajectory.steps:
    record = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
    for name in _PICTURES:
      if record[name] is not None:
        if record[name].dtype != np.uint8:
          raise ValueError(f'A picture of trajectory {number} is {record[name].dtype}; pictures are uint8.')
        pictures.append(record[name])
        record[name] = len(pictures) - 1
    steps.append(record)
  return dict(prompt=trajectory.prompt, stop=trajectory.stop, metadata=metadata, steps=steps)


def _trajectory(record: dict[str, Any], pictures: list[np.ndarray]) -> trajectory_lib.Trajectory:
  steps = []
  for fields in record['steps']:
    shown = {name: None if fields[name] is None else pictures[fields[name]] for name in _PICTURES}
    steps.append(trajectory_lib.Step(**{**fields, **shown}))
  return trajectory_lib.Trajectory(
    prompt=record['prompt'], steps=tuple(steps), metadata=record['metadata'], stop=record['stop']
  )


def _digest(texts: np.ndarray, pixels: np.ndarray) -> np.ndarray:
  """uint8[32], SHA-256 of both lengths and contents."""
  digest = hashlib.sha256(f'{len(texts)} {len(pixels)} '.encode())
  digest.update(texts.tobytes())
  digest.update(pixels.tobytes())
  return np.frombuffer(digest.digest(), np.uint8)
