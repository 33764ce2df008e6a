"""Safetensors shards: one file, or the files that a `*.safetensors.index.json` joins, read as one.

An index is `{"weight_map": {tensor: file}}`, as the transformers library writes it. Its files lie beside it.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from pdgen.core import json_file, paths
from pdgen.weights import safetensors_io

SUFFIX, INDEX = '.safetensors', '.safetensors.index.json'
_MOST = 4  # Files that are listed one by one.

Places = Mapping[str, tuple[safetensors_io.Reader, str]]  # By name of a tensor: its file, and its name in there.


@dataclasses.dataclass(frozen=True)
class Tensors:
  """Tensors of any number of files, with the interface of one `safetensors_io.Reader`."""

  places: Places

  @functools.cached_property
  def infos(self) -> dict[str, safetensors_io.TensorInfo]:
    return {name: reader.infos[stored] for name, (reader, stored) in self.places.items()}

  def read(self, name: str, index: safetensors_io.Index = ()) -> np.ndarray:
    """`tensor[index]`, as `Reader.read`."""
    reader, stored = self.places[name]
    return reader.read(stored, index)


@dataclasses.dataclass(frozen=True)
class Shards:
  """A file, or an index and its files, that are open."""

  path: pathlib.Path  # Of the file or the index.
  files: Mapping[str, safetensors_io.Reader]  # By name in the folder.
  places: Places

  @property
  def index(self) -> pathlib.Path | None:
    """The index, if there is one."""
    return self.path if self.path.name not in self.files else None


def found(folder: pathlib.Path, stems: Sequence[str]) -> list[str]:
  """Names in a folder of files and indices of weights, the preferred one first.

  Args:
    folder: the folder.
    stems: `ema` is ema.safetensors or its index, and goes before the stems after it.

  Raises: ValueError for a link out of the folder.
  """
  names = [f'{stem}{ending}' for stem in stems for ending in (SUFFIX, INDEX)]
  return [name for name in names if paths.inside(folder, name).is_file()]


def open_shards(path: pathlib.Path) -> Shards:
  """Opens a file, or an index and all files that it names.

  Raises: ValueError of one line naming the file: a damaged one; an index that names a path, a file that is not there,
  or a tensor that its file lacks; two files with the same tensor. FileNotFoundError when there is no such file.
  """
  folder, name = path.parent, path.name
  path = paths.inside(folder, name)
  if not path.is_file():
    raise FileNotFoundError(f'{path} is {"a folder: name the file in it" if path.is_dir() else "not there"}.')
  if not name.endswith('.json'):
    reader = safetensors_io.Reader(path)
    return Shards(path, {name: reader}, {tensor: (reader, tensor) for tensor in reader.infos})
  placed = json_file.read(path).get('weight_map')
  if not isinstance(placed, dict) or not placed:
    raise ValueError(f'{path} is damaged: it has no weight_map of names of tensors to names of files.')
  names = sorted({paths.plain_name(file, of=path) for file in placed.values()})
  if others := [file for file in names if not file.endswith(SUFFIX)]:
    raise ValueError(f'{path} names {others[0]}, which is no safetensors file. Save the weights as safetensors.')
  if missing := [file for file in names if not paths.inside(folder, file).is_file()]:
    more = ', ..' if len(missing) > _MOST else ''
    raise ValueError(
      f'{path} names {len(names)} files, of which {folder} lacks {len(missing)}: {", ".join(missing[:_MOST])}{more}. '
      'Fetch them again.'
    )
  files = {file: safetensors_io.Reader(folder / file) for file in names}
  places: dict[str, tuple[safetensors_io.Reader, str]] = {}
  for file, reader in files.items():
    if twice := [tensor for tensor in reader.infos if tensor in places]:
      other, more = places[twice[0]][0].path.name, f', and {len(twice) - 1} more' if len(twice) > 1 else ''
      raise ValueError(f'{path} joins {other} and {file}, which both hold {twice[0]}{more}. Fetch them again.')
    places |= {tensor: (reader, tensor) for tensor in reader.infos}
  if lost := [tensor for tensor, file in placed.items() if tensor not in files[file].infos]:
    more = f', and {len(lost) - 1} more tensors elsewhere than they are' if len(lost) > 1 else ''
    raise ValueError(f'{path} places {lost[0]} in {placed[lost[0]]}, which lacks it{more}. Fetch them again.')
  return Shards(path, files, places)
