"""source.json of an imported checkpoint: names of the files to give back, and the headers of the released weights."""

import json
import pathlib
from collections.abc import Mapping, Sequence

from pdgen.core import json_file, paths
from pdgen.weights import bagel, exported, safetensors_io

WEIGHTS = (bagel.EMA, bagel.AE)


def write(folder: pathlib.Path, *, files: Sequence[str], headers: Mapping[str, bytes]):
  """Writes it. files: names in the folder. headers: by file of the release, as `safetensors_io.Reader.header`."""
  text = json.dumps({'files': files, 'headers': {file: header[8:].decode() for file, header in headers.items()}})
  (folder / exported.IMPORTED).write_text(text, encoding='utf-8')


def read(kept: pathlib.Path, entries: Mapping[tuple[str, str], bagel.Entry]) -> tuple[list[str], dict[str, bytes]]:
  """(names of files, headers of weights) to give back. Whoever shares a checkpoint writes them: nothing is believed.

  Raises: ValueError for what is no plain name of a file there, or no header of the weights of this model.
  """
  path = paths.inside(kept, exported.IMPORTED)
  values = json_file.read(path)
  files, headers = values.get('files'), values.get('headers')
  if not isinstance(files, list) or not isinstance(headers, dict) or sorted(headers) != sorted(WEIGHTS):
    raise ValueError(f'{path} is damaged: it holds no list of files, or not the headers of {", ".join(WEIGHTS)}.')
  files = [paths.plain_name(name, of=path) for name in files]
  for name in files:
    if name in headers or not paths.inside(kept, name).is_file() or files.count(name) > 1:
      raise ValueError(f'{path} names {name!r}, which is no file beside it, or twice.')
  starts = {}
  for file, text in headers.items():
    if not isinstance(text, str):
      raise ValueError(f'{path} is damaged: the header of {file} is no text.')
    start = text.encode()
    starts[file] = len(start).to_bytes(8, 'little') + start
    infos = safetensors_io.tensor_infos(starts[file], of=f'{file} in {path}')
    wanted = {name: entry for (of, name), entry in entries.items() if of == file}
    if {n: i.shape for n, i in infos.items()} != {n: e.shape for n, e in wanted.items()}:
      raise ValueError(f'{path} is damaged: the header of {file} is that of another model.')
  return files, starts
