"""Released folders as people have them, made of the tiny one in tests/golden: shards, parts; there and back."""

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import safetensors.numpy

from pdgen import convert
from pdgen.data.tokenizers import byte_level
from pdgen.weights import bagel, bagel_convert, exported
from support import golden_folder

BAGEL = golden_folder.FOLDER / 'ckpt'
OF_VIT = bagel.OF_VIT
EMBEDDING, HEAD = 'language_model.model.embed_tokens.weight', 'language_model.lm_head.weight'


def tensors_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors in the safetensors files of a folder, each of which is in one of them."""
  out: dict[str, np.ndarray] = {}
  for path in sorted(folder.glob('*.safetensors')):
    found = safetensors.numpy.load_file(path)
    assert not found.keys() & out.keys()
    out |= found
  return out


def ema() -> dict[str, np.ndarray]:
  return safetensors.numpy.load_file(BAGEL / bagel.EMA)


def save(tensors: Mapping[str, np.ndarray], path: pathlib.Path):
  """Not in place: files of copies may be shared."""
  path.unlink(missing_ok=True)
  safetensors.numpy.save_file(dict(tensors), path)


def settings(folder: pathlib.Path, name: str, **fields):
  """Sets fields of a json file of a folder."""
  values = json.loads((folder / name).read_bytes()) | fields
  (folder / name).unlink()
  (folder / name).write_text(json.dumps(values))


def shard(folder: pathlib.Path, *, stem: str = 'model', count: int = 3, to: str = bagel.EMA) -> pathlib.Path:
  """Puts shards with an index in the place of a file. Returns the index."""
  tensors = safetensors.numpy.load_file(folder / to)
  (folder / to).unlink()
  files = [f'{stem}-{i + 1:05}-of-{count:05}.safetensors' for i in range(count)]
  placed = {name: files[i % count] for i, name in enumerate(tensors)}
  for file in files:
    save({name: x for name, x in tensors.items() if placed[name] == file}, folder / file)
  index = folder / f'{stem}.safetensors.index.json'
  size = sum(x.nbytes for x in tensors.values())
  index.write_text(json.dumps({'metadata': {'total_size': size}, 'weight_map': placed}, indent=2))
  return index


def part(to: pathlib.Path, keep: Callable[[str], bool], *, files: tuple[str, ...] = ()) -> pathlib.Path:
  """A new folder with some tensors of ema.safetensors, each changed by a bit of its own, and these other files."""
  to.mkdir()
  save({name: changed(x) for name, x in ema().items() if keep(name)}, to / bagel.EMA)
  for name in files:
    shutil.copyfile(BAGEL / name, to / name)
  return to


def changed(array: np.ndarray) -> np.ndarray:
  """The last bit of the first number flipped: too little for a check of the fixed tables."""
  out = array.copy()
  out.reshape(-1).view(np.uint32)[:1] ^= 1
  return out


def round_trip(source: pathlib.Path, home: pathlib.Path, **options) -> tuple[pathlib.Path, str]:
  """Imports, exports, and imports the export: the same parameters. Returns the export, and what was said."""
  home.mkdir(exist_ok=True)
  said: list[str] = []
  first = dict(prepare_tokenizer=byte_level.prepare, say=said.append)
  bagel_convert.import_bagel(source, home / 'imported', **first, **options)
  bagel_convert.export_bagel(home / 'imported', home / 'again', say=said.append)
  bagel_convert.import_bagel(home / 'again', home / 'second', prepare_tokenizer=byte_level.prepare)
  params = (exported.PARAMS, 'source/fixed.safetensors')
  assert all((home / 'imported' / p).read_bytes() == (home / 'second' / p).read_bytes() for p in params)
  return home / 'again', '\n'.join(said)


def assert_same_files(one: pathlib.Path, other: pathlib.Path):
  assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
  assert all((other / p.name).read_bytes() == p.read_bytes() for p in one.iterdir())


def assert_same_tensors(got: dict[str, np.ndarray], want: dict[str, np.ndarray]):
  assert got.keys() == want.keys()
  for name, x in want.items():
    assert got[name].dtype == x.dtype and got[name].tobytes() == x.tobytes(), name


def refused(capsys, *arguments: str) -> str:
  """The one line of the command."""
  with pytest.raises(SystemExit) as stop:
    convert.main(['import', *arguments])
  assert stop.value.code == 2
  message = capsys.readouterr().err.partition(': ')[2].strip()
  assert message and '\n' not in message and 'Traceback' not in message, message
  return message
