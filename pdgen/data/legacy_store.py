"""Reads `.npz` lists of trajectories: what self-sampling wrote before record sets, so that old runs resume."""

import hashlib
import io
import itertools
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdgen.core import trajectory as trajectory_lib
from pdgen.data import record_codec

_FORMAT = 1
# What a file may inflate to: this, or so many times its size. Flat pictures of 32 pixels take a fiftieth; zeros, a
# thousandth.
_BYTES, _TIMES = 2**28, 100
# Keys of the metadata that have become fields of the trajectory, or follow from them.
_TYPED = 'tag include exclude prompt scene kind self_sampled errors error detour index'.split()


def read_npz(path: str | os.PathLike, *, source: str = 'shapes') -> list[trajectory_lib.Trajectory]:
  """Reads a list of trajectories.

  Args:
    path: of the file.
    source: of the trajectories' provenance; the file does not name the world that made them.

  Raises: FileNotFoundError, or ValueError for a damaged file.
  """
  content = pathlib.Path(path).read_bytes()
  try:
    with zipfile.ZipFile(io.BytesIO(content)) as members:
      inflated = sum(member.file_size for member in members.infolist())
  except Exception as error:
    raise ValueError(f'{path} is damaged or not a file of trajectories ({error}). Make it again.') from error
  if inflated > max(_BYTES, _TIMES * len(content)):
    raise ValueError(f'{path} has {len(content)} bytes that inflate to {inflated}: it is no file of pdgen. Delete it.')
  try:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
      texts, pixels, digest = (file[name].tobytes() for name in ('texts', 'pixels', 'digest'))
  except Exception as error:  # Those of zip, zlib, NumPy's header, which may even be a SyntaxError.
    raise ValueError(f'{path} is damaged or not a file of trajectories ({error}). Make it again.') from error
  if hashlib.sha256(f'{len(texts)} {len(pixels)} '.encode() + texts + pixels).digest() != digest:
    raise ValueError(f'{path} is damaged: its content does not match its digest. Make it again.')
  header = json.loads(texts)
  if header['format'] != _FORMAT:
    raise ValueError(f'{path} has format {header["format"]}; this version reads {_FORMAT}. Make it again.')
  ends = itertools.accumulate((int(np.prod(shape)) for shape in header['shapes']), initial=0)
  pictures = [
    np.frombuffer(pixels[a:b], np.uint8).reshape(shape).copy()
    for (a, b), shape in zip(itertools.pairwise(ends), header['shapes'], strict=True)
  ]
  return [_trajectory(row, pictures, source) for row in header['trajectories']]


def _trajectory(row: Mapping[str, Any], pictures: Sequence[np.ndarray], source: str) -> trajectory_lib.Trajectory:
  """The trajectory of a row, whose metadata held the prompt's GenEval row, how it was made and its last scene."""
  metadata, steps = row['metadata'], record_codec.steps_of(row['steps'], pictures)
  # The mode was not stored: direct trajectories are pictures without a word.
  is_direct = bool(steps) and all(
    getattr(step, part) is None for step in steps for part in trajectory_lib.PARTS if part != trajectory_lib.DRAFT
  )
  scene = metadata.get('scene')
  return trajectory_lib.Trajectory(
    prompt=row['prompt'],
    steps=steps,
    mode=trajectory_lib.DIRECT if is_direct else trajectory_lib.PROCESS,
    stop=row['stop'],
    spec=trajectory_lib.PromptSpec.from_row(metadata) if 'tag' in metadata else None,
    provenance=_provenance(metadata, source),
    expected=None if scene is None else tuple(trajectory_lib.Content(*content) for content in scene),
    metadata={key: value for key, value in metadata.items() if key not in _TYPED},
  )


def _provenance(metadata: Mapping[str, Any], source: str) -> trajectory_lib.Provenance | None:
  if 'kind' not in metadata:
    return None
  return trajectory_lib.Provenance(
    source=source,
    kind=metadata['kind'],
    errors=tuple(metadata.get('errors', ())),
    detour=metadata.get('detour'),
    id=str(metadata.get('index', '')),
  )
