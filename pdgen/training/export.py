"""The shipped form of a trained model: a folder of averaged half-precision weights, configuration and tokenizer.

params.safetensors   float16, one tensor a parameter, named by its path (`trunk/layers/und/q/kernel`)
config.json          the experiment, and the SHA-256 of the other two files
tokenizer.model      the sentencepiece model
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from pdgen.core import config as config_lib
from pdgen.core import sharding
from pdgen.training import state as state_lib

CONFIG, PARAMS, TOKENIZER = 'config.json', 'params.safetensors', 'tokenizer.model'
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Export:
  """config: of the run. params: nested dicts of float32 numpy arrays. tokenizer: path of the sentencepiece model."""

  config: config_lib.Config
  params: dict[str, Any]
  tokenizer: pathlib.Path


def export_ema(
  directory: str | os.PathLike, params: Any, *, config: config_lib.Config, tokenizer: str | os.PathLike
) -> pathlib.Path:
  """Writes the folder; a reader sees the old one or the whole new one. Returns its path.

  params: `TrainState.averaged()`. tokenizer: file of the sentencepiece model. Raises: ValueError naming a parameter
  that float16 cannot hold.
  """
  directory = pathlib.Path(directory)
  partial = directory.with_name(f'{directory.name}.{os.getpid()}.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  tensors = {name: _half(name, np.asarray(jax.device_get(leaf))) for name, leaf in sharding.named_leaves(params)}
  safetensors.numpy.save_file(tensors, partial / PARAMS)
  shutil.copyfile(tokenizer, partial / TOKENIZER)
  files = {name: _sha256(partial / name) for name in (PARAMS, TOKENIZER)}
  text = json.dumps(dict(format=_FORMAT, config=as_json(config), sha256=files), indent=2)
  (partial / CONFIG).write_text(text + '\n')
  shutil.rmtree(directory, ignore_errors=True)
  os.replace(partial, directory)
  return directory


def is_export(directory: str | os.PathLike) -> bool:
  return (pathlib.Path(directory) / CONFIG).is_file()


def load_export(directory: str | os.PathLike) -> Export:
  """Reads the folder back; weights come as float32.

  Raises: FileNotFoundError for a missing file, ValueError for a damaged one or for weights of another model.
  """
  directory = pathlib.Path(directory)
  for name in (CONFIG, PARAMS, TOKENIZER):
    if not (directory / name).is_file():
      raise FileNotFoundError(
        f'{directory} lacks {name}: it is no exported model. `pdgen.train` writes one as `final`.'
      )
  try:
    header = json.loads((directory / CONFIG).read_text())
    expected, version = header['sha256'], header['format']
  except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
    raise ValueError(f'{directory / CONFIG} is damaged ({error}). Export the model again.') from error
  if version != _FORMAT:
    raise ValueError(f'{directory} has format {version}; this version of pdgen reads {_FORMAT}.')
  for name in (PARAMS, TOKENIZER):
    if _sha256(directory / name) != expected[name]:
      raise ValueError(
        f'{directory / name} is damaged: its SHA-256 is not the one in {CONFIG}. Export the model again.'
      )
  config = config_lib.from_config_dict(header['config'])
  tensors = safetensors.numpy.load_file(directory / PARAMS)
  wanted = state_lib.abstract_params(config.model)
  differ = [
    f'{name}: {list(tensors[name].shape) if name in tensors else "absent"} stored, {list(leaf.shape)} wanted'
    for name, leaf in sharding.named_leaves(wanted)
    if name not in tensors or tensors[name].shape != leaf.shape
  ]
  if differ:
    raise ValueError(f'{directory / PARAMS} does not fit its {CONFIG}:\n  ' + '\n  '.join(differ))
  params = sharding.map_named(lambda name, _: tensors[name].astype(np.float32), wanted)
  return Export(config, params, directory / TOKENIZER)


def as_json(config: config_lib.Config) -> dict[str, Any]:
  """The configuration as JSON has it (tuples are lists); `config_lib.from_config_dict` reads it back."""
  return json.loads(json.dumps(config_lib.to_config_dict(config).to_dict()))


def _half(name: str, array: np.ndarray) -> np.ndarray:
  if not np.all(np.abs(array) <= np.finfo(np.float16).max):
    raise ValueError(f'{name} holds a value that is not finite in float16. Lower the learning rate, or clip.')
  return np.ascontiguousarray(array.astype(np.float16))


def _sha256(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()
