"""Exported model folder: weights (safetensors), config, tokenizer; written atomically, verified by SHA-256.

params.safetensors   one tensor a parameter, named by its path (`trunk/layers/und/q/kernel`): float16 of a training
                     run's average, or what `pdgen.convert import` found, bfloat16 or float32
config.json          the experiment, and the SHA-256 of the other files
tokenizer.model      the sentencepiece model, or instead of it
source/              of weights that were imported: the tokenizer and all that the weights came with, which
                     `pdgen.convert export` gives back
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.sharding import Mesh

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import trees
from pdgen.models import interleaved, partition
from pdgen.weights import safetensors_io

CONFIG, PARAMS, TOKENIZER, SOURCE = 'config.json', 'params.safetensors', 'tokenizer.model', 'source'
FORMATS = (1, 2)  # Read; the last one is written.


@dataclasses.dataclass(frozen=True)
class Export:
  """An exported model that was read."""

  config: config_lib.Config  # Of the run.
  params: dict[str, Any]  # Nested dicts of arrays on a mesh.
  tokenizer: pathlib.Path  # What `data.tokenizers.load` takes.


def export_ema(
  directory: str | os.PathLike, params: Any, *, config: config_lib.Config, tokenizer: str | os.PathLike
) -> pathlib.Path:
  """Writes the folder; a reader sees the old one or the whole new one.

  Args:
    directory: the folder.
    params: nested dicts of arrays, `TrainState.averaged()` of a run.
    config: of the run.
    tokenizer: file of the sentencepiece model, or `source` folder of an import.

  Returns: the folder's path.

  Raises: ValueError naming a parameter that float16 cannot hold.
  """
  with atomic_directory(directory) as partial:
    tensors = {name: _half(name, np.asarray(jax.device_get(leaf))) for name, leaf in trees.flatten_with_paths(params)}
    safetensors.numpy.save_file(tensors, partial / PARAMS)
    (partial / PARAMS).chmod(0o644)  # It was for its owner's eyes alone.
    if os.path.isdir(tokenizer):
      shutil.copytree(tokenizer, partial / SOURCE)
    else:
      shutil.copyfile(tokenizer, partial / TOKENIZER)
    write_manifest(partial, config=config)
  return pathlib.Path(directory)


@contextlib.contextmanager
def atomic_directory(directory: str | os.PathLike) -> Iterator[pathlib.Path]:
  """An empty folder that takes the directory's place when the block ends without an error."""
  directory = pathlib.Path(directory)
  partial = directory.with_name(f'{directory.name}.{os.getpid()}.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    yield partial
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(partial, directory)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def write_manifest(folder: pathlib.Path, *, config: config_lib.Config, digests: Mapping[str, str] | None = None):
  """Writes config.json, which makes the folder an exported model.

  Args:
    folder: with all other files.
    config: of the run.
    digests: SHA-256 of the files where it is known.
  """
  files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())
  digests = {name: (digests or {}).get(name) or safetensors_io.sha256(folder / name) for name in files}
  text = json.dumps({'format': FORMATS[-1], 'config': as_json(config), 'sha256': digests}, indent=2)
  (folder / CONFIG).write_text(text + '\n')


def is_export(directory: str | os.PathLike) -> bool:
  return (pathlib.Path(directory) / CONFIG).is_file()


def load_export(directory: str | os.PathLike, *, mesh: Mesh | None = None) -> Export:
  """Reads the folder back, weights straight into their shards: a process reads and holds its own share, no more.

  mesh: None: the first device. Weights are float32, except bfloat16 ones of a model that computes in bfloat16: to it
  they are the same numbers, in half the memory.

  Raises: FileNotFoundError for a missing file, ValueError for a damaged one or for weights of another model.
  """
  directory = pathlib.Path(directory)
  header = read_manifest(directory)
  config = read_config(header)
  mesh = mesh or mesh_lib.make_mesh(config_lib.MeshConfig(), devices=jax.devices()[:1])
  stored = safetensors_io.Reader(directory / PARAMS)
  wanted = interleaved.abstract_params(config.model)
  if differ := trees.diff_shapes(stored.infos, dict(trees.flatten_with_paths(wanted))):
    raise ValueError(f'{directory / PARAMS} does not fit its {CONFIG}:\n  ' + '\n  '.join(differ))
  placed = dict(trees.flatten_with_paths(partition.shardings(wanted, mesh)))
  half = jnp.dtype(config.model.dtype) == jnp.bfloat16

  def load(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    keep = half and stored.infos[name].dtype == jnp.bfloat16

    def read(index: tuple[slice, ...]) -> np.ndarray:
      array = stored.read(name, index)
      return array if keep else array.astype(np.float32, copy=False)

    return mesh_lib.array_from_callback(leaf.shape, placed[name], read)

  tokenizer = TOKENIZER if TOKENIZER in header['sha256'] else SOURCE
  return Export(config, trees.map_with_path(load, wanted), directory / tokenizer)


def read_manifest(directory: str | os.PathLike) -> dict[str, Any]:
  """The content of an exported folder's config.json, after every file has been checked against it.

  Where several processes share the work, none of them reads all of the weights for their digest's sake.

  Raises: as `load_export`.
  """
  directory = pathlib.Path(directory)
  _must_exist(directory, CONFIG)
  try:
    header = json.loads((directory / CONFIG).read_text())
    expected, version = header['sha256'], header['format']
  except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
    raise ValueError(f'{directory / CONFIG} is damaged ({error}). Export the model again.') from error
  if version not in FORMATS:
    raise ValueError(f'{directory} has format {version}; this version of pdgen reads {list(FORMATS)}.')
  for name, digest in expected.items():
    _must_exist(directory, name)
    if name == PARAMS and jax.process_count() > 1:
      continue
    if safetensors_io.sha256(directory / name) != digest:
      raise ValueError(
        f'{directory / name} is damaged: its SHA-256 is not the one in {CONFIG}. Export the model again.'
      )
  return header


def read_config(manifest: dict[str, Any]) -> config_lib.Config:
  """The configuration in a manifest, of whatever format it is."""
  return config_lib.from_config_dict(config_lib.upgrade(manifest['config'], manifest['format']))


def _must_exist(directory: pathlib.Path, name: str):
  if not (directory / name).is_file():
    raise FileNotFoundError(
      f'{directory} lacks {name}: it is no exported model. `pdgen.train` writes one as `final`, `pdgen.convert import` '
      'makes one of a BAGEL folder.'
    )


def as_json(config: config_lib.Config) -> dict[str, Any]:
  """The configuration as JSON has it (tuples are lists); `config_lib.from_config_dict` reads it back."""
  return json.loads(json.dumps(config_lib.to_config_dict(config).to_dict()))


def _half(name: str, array: np.ndarray) -> np.ndarray:
  if not np.all(np.abs(array) <= np.finfo(np.float16).max):
    raise ValueError(f'{name} holds a value that is not finite in float16. Lower the learning rate, or clip.')
  return np.ascontiguousarray(array.astype(np.float16))
