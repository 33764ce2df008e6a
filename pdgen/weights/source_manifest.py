"""source.json of an imported checkpoint: names of the files to give back, and the headers of the released weights.

The weights are one file or shards, as they were imported. A tied head (`tied_head`) is in none of them.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

from pdgen.core import json_file, paths
from pdgen.weights import bagel, exported, safetensors_io, shards, tied_head


def write(folder: pathlib.Path, *, files: Sequence[str], headers: Mapping[str, bytes]):
  """Writes it. files: names in the folder. headers: by file of weights, as `safetensors_io.Reader.header`."""
  text = json.dumps({'files': files, 'headers': {file: header[8:].decode() for file, header in headers.items()}})
  (folder / exported.IMPORTED).write_text(text, encoding='utf-8')


def read(kept: pathlib.Path, entries: Mapping[tuple[str, str], bagel.Entry]) -> tuple[list[str], dict[str, bytes]]:
  """(names of files, headers of weights) to give back. Whoever shares a checkpoint writes them: nothing is believed.

  Raises: ValueError for what is no plain name of a file there, or no header of the weights of this model.
  """
  path = paths.inside(kept, exported.IMPORTED)
  values = json_file.read(path)
  files, headers = values.get('files'), values.get('headers')
  if not isinstance(files, list) or not isinstance(headers, dict) or not headers:
    raise ValueError(f'{path} is damaged: it holds no list of files, or no headers of weights.')
  files = [paths.plain_name(name, of=path) for name in files]
  for name in files:
    if name in headers or not paths.inside(kept, name).is_file() or files.count(name) > 1:
      raise ValueError(f'{path} names {name!r}, which is no file beside it, or twice.')
  starts: dict[str, bytes] = {}
  shapes: dict[str, tuple[int, ...]] = {}
  for file, text in headers.items():
    if not paths.plain_name(file, of=path).endswith(shards.SUFFIX) or not isinstance(text, str):
      raise ValueError(f'{path} is damaged: {file!r} is no safetensors file, or its header no text.')
    start = text.encode()
    starts[file] = len(start).to_bytes(8, 'little') + start
    infos = safetensors_io.tensor_infos(starts[file], of=f'{file} in {path}')
    if twice := infos.keys() & shapes:
      raise ValueError(f'{path} is damaged: two of its headers hold {min(twice)}.')
    shapes |= {name: info.shape for name, info in infos.items()}
  wanted = {name: entry.shape for (_, name), entry in entries.items()}
  if tied_head.HEAD not in shapes:
    wanted.pop(tied_head.HEAD)
  if shapes != wanted:
    raise ValueError(f'{path} is damaged: its headers are those of another model.')
  return files, starts
