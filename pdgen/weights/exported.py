"""Exported model folder: weights (safetensors), config, tokenizer; written atomically, verified by SHA-256.

params.safetensors   one tensor a parameter, named by its path (`trunk/layers/und/q/kernel`). Of `pdgen.convert import`:
                     what it found, bfloat16 or float32. Of a training run's average: what learned in float16, or in
                     float32 where the run began with an import; what did not learn with the bits that it began with
config.json          the experiment, and the SHA-256 of the other files
tokenizer.model      the sentencepiece model, or instead of it
source/              of weights that were imported: the tokenizer and all that the weights came with, which
                     `pdgen.convert export` gives back
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pdgen.core import config as config_lib
from pdgen.core import json_file, paths, trees
from pdgen.core import mesh as mesh_lib
from pdgen.models import attention, interleaved, partition, remat
from pdgen.models import params as params_lib
from pdgen.models import quantize as quantize_lib
from pdgen.weights import folders, safetensors_io

CONFIG, PARAMS, TOKENIZER, SOURCE = folders.CONFIG, 'params.safetensors', 'tokenizer.model', 'source'
IMPORTED = 'source.json'  # In SOURCE: which files `pdgen.convert export` gives back, and the headers of the weights.
FORMATS = (1, 2, 3)  # Read; the last one is written.
_MOST = 8  # Parameters that are listed one by one.


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

  What did not learn (`config.train.freeze`, the codec) keeps every bit. What learned is written in float32 where the
  run began with imported weights, so that `pdgen.convert export` may round it or not, and in float16 elsewhere.

  Args:
    directory: the folder.
    params: nested dicts of arrays, `TrainState.averaged()` of a run.
    config: of the run.
    tokenizer: file of the sentencepiece model, or `source` folder of an import.

  Returns: the folder's path.

  Raises: ValueError naming a parameter that is not finite, or that float16 cannot hold, or a link out of the folder of
    the tokenizer.
  """
  named = dict(trees.flatten_with_paths(params))
  fixed = params_lib.frozen(named, config.train.freeze)
  imported = os.path.isdir(tokenizer) and (pathlib.Path(tokenizer) / IMPORTED).is_file()
  learned = np.dtype(np.float32 if imported else np.float16)
  types = {name: _kept(leaf, imported) if name in fixed else learned for name, leaf in named.items()}
  kinds = {name: safetensors_io.TensorInfo(types[name], tuple(leaf.shape)) for name, leaf in named.items()}
  # Wide types first: numbers then lie where their type wants them.
  kinds = dict(sorted(kinds.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
  with folders.atomic_directory(directory) as partial:
    # One parameter at a time: all of a large model's are never on the host twice.
    blocks = (_stored(name, named[name], kind.dtype) for name, kind in kinds.items())
    digest = safetensors_io.write(partial / PARAMS, safetensors_io.header(kinds), blocks)
    if os.path.isdir(tokenizer):
      folders.copy_files(pathlib.Path(tokenizer), partial / SOURCE)
    else:
      shutil.copyfile(tokenizer, partial / TOKENIZER)
    write_manifest(partial, config=config, digests={PARAMS: digest})
  return pathlib.Path(directory)


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


def load_export(directory: str | os.PathLike, *, mesh: Mesh | None = None, quantize: str | None = None) -> Export:
  """Reads the folder back, weights straight into their shards: a process reads and holds its own share, no more.

  Weights are float32, except bfloat16 ones of a model that computes in bfloat16: to it they are the same numbers, in
  half the memory.

  Args:
    directory: the folder.
    mesh: None: the first device.
    quantize: of `models.quantize.KINDS`: each matrix is quantised before the next one is read. None: they stay whole.

  Raises: FileNotFoundError for a missing file, ValueError for a damaged one or for weights of another model.
  """
  directory = pathlib.Path(directory)
  header = read_manifest(directory, weights=False)
  mesh = mesh or mesh_lib.make_mesh(config_lib.MeshConfig(), devices=jax.devices()[:1])
  with futures.ThreadPoolExecutor(1) as pool:
    checked = pool.submit(_check_digest, directory, PARAMS, header['sha256'][PARAMS])
    try:
      return _load(directory, header, mesh=mesh, quantize=quantize)
    finally:
      checked.result()  # A damaged file is named as such, whatever came of reading it.


def _load(directory: pathlib.Path, header: dict[str, Any], *, mesh: Mesh, quantize: str | None) -> Export:
  config = read_config(directory, header)
  stored = safetensors_io.Reader(directory / PARAMS)
  wanted = abstract_params(directory, config)
  check_shapes(stored, dict(trees.flatten_with_paths(wanted)))
  placed = dict(trees.flatten_with_paths(partition.shardings(wanted, mesh)))
  half = jnp.dtype(config.model.dtype) == jnp.bfloat16

  def load(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array | quantize_lib.Quantized:
    keep = half and stored.infos[name].dtype == jnp.bfloat16

    def read(index: tuple[slice, ...]) -> np.ndarray:
      array = stored.read(name, index)
      return array if keep else array.astype(np.float32, copy=False)

    whole = mesh_lib.array_from_callback(leaf.shape, placed[name], read)
    if quantize is None or not quantize_lib.is_quantizable(name, leaf.shape):
      return whole
    return partition.put(quantize_lib.matrix(whole, quantize), mesh, at=name)

  tokenizer = TOKENIZER if TOKENIZER in header['sha256'] else SOURCE
  return Export(config, trees.map_with_path(load, wanted), directory / tokenizer)


def read_manifest(directory: str | os.PathLike, *, weights: bool = True) -> dict[str, Any]:
  """The content of an exported folder's config.json, after every file has been checked against it.

  weights: whether the weights are checked, too.

  Raises: as `load_export`.
  """
  directory = pathlib.Path(directory)
  if not (directory / CONFIG).is_file():
    raise FileNotFoundError(folders.explain(directory) or _lacks(directory, CONFIG))
  header = json_file.read(directory / CONFIG)
  expected, version, config = (header.get(name) for name in ('sha256', 'format', 'config'))
  if expected is None and version is None:
    raise ValueError(folders.explain(directory) or _damaged(directory, "it holds neither 'format' nor 'sha256'"))
  if type(version) is int and version not in FORMATS:
    raise ValueError(
      f'{directory / CONFIG} has format {version}; this version of pdgen reads {list(FORMATS)}. '
      'Update pdgen, if it is a later one.'
    )
  if type(version) is not int or not isinstance(expected, dict) or not isinstance(config, dict):
    raise ValueError(_damaged(directory, "'format', 'sha256' or 'config' is missing or of another kind"))
  if PARAMS not in expected or not any(name == TOKENIZER or name.startswith(f'{SOURCE}/') for name in expected):
    raise ValueError(_damaged(directory, f"'sha256' names no {PARAMS}, or no tokenizer"))
  for name, digest in expected.items():
    if not paths.inside(directory, name).is_file():
      raise FileNotFoundError(_lacks(directory, name))
    if name != PARAMS or weights:
      _check_digest(directory, name, digest)
  return header


def _check_digest(directory: pathlib.Path, name: str, digest: Any):
  """Raises ValueError for a file that is not what the manifest says.

  Where several processes share the work, none of them reads all of the weights for their digest's sake.
  """
  if name == PARAMS and jax.process_count() > 1:
    return
  if safetensors_io.sha256(directory / name) != digest:
    raise ValueError(f'{directory / name} is damaged: its SHA-256 is not the one in {CONFIG}. Export the model again.')


def read_config(directory: str | os.PathLike, manifest: dict[str, Any]) -> config_lib.Config:
  """The configuration in the manifest of a folder, of whatever format it is. Raises: ValueError naming its file."""
  try:
    return config_lib.from_config_dict(config_lib.upgrade(manifest['config'], manifest['format']))
  except Exception as error:  # Nested values of every wrong type reach every constructor of core.config.
    newer = ' A newer pdgen may have made it: update pdgen.' if 'Unknown key' in str(error) else ''
    raise ValueError(_damaged(directory, _one_line(error)) + newer) from error


def abstract_params(directory: str | os.PathLike, config: config_lib.Config) -> Any:
  """Shapes of the parameters of a folder's model. Raises: ValueError for a configuration that describes none."""
  try:
    _check_numbers(config.model)
    return interleaved.abstract_params(config.model)
  except Exception as error:  # Whatever sizes that contradict each other cause, anywhere in the model.
    raise ValueError(_damaged(directory, f'it describes no model ({_one_line(error)})')) from error


def _check_numbers(cfg: config_lib.ModelConfig):
  """Raises ValueError for a number or a name that shapes no parameter, and with which no picture can be computed."""
  vae = cfg.codec.vae
  wrong = {
    'image_size': cfg.image_size < 1,
    'rope_theta': not 0 < cfg.rope_theta < 1e12,
    'norm_eps': not 0 < cfg.norm_eps <= 1,
    'min_t': not 0 < cfg.min_t <= 1,
    'attention': cfg.attention not in attention.NAMES,
    'remat': cfg.remat not in ('none', *remat.POLICIES),
    # Python loops over blocks and levels.
    'codec': vae is not None
    and not (0 < vae.blocks <= 1000 and 0 < len(vae.multipliers) <= 8 and 0 < abs(vae.scale) < 1e6 > abs(vae.shift)),
  }
  if fields := [f'{name}={getattr(cfg, name)!r}' for name, is_wrong in wrong.items() if is_wrong]:
    raise ValueError(f'config.model.{fields[0]}')


def check_shapes(stored: safetensors_io.Reader, wanted: Mapping[str, Any]):
  """Raises ValueError listing what of a file differs from the arrays, by name, that its model has."""
  if differ := trees.diff_shapes(stored.infos, wanted):
    if len(differ) > _MOST:
      differ = [f'{len(differ)} parameters; the first: {differ[0]}']
    raise ValueError(f'{stored.path} does not fit its {CONFIG}: {"; ".join(differ)}')


def _lacks(directory: pathlib.Path, name: str) -> str:
  return (
    f'{directory} lacks {name}: it is no exported model. `pdgen.train` writes one as `final`, `pdgen.convert import` '
    'makes one of a BAGEL folder.'
  )


def _damaged(directory: str | os.PathLike, what: str) -> str:
  return f'{pathlib.Path(directory) / CONFIG} is damaged: {what}. Export the model again.'


def _one_line(error: Exception) -> str:
  text = error.args[0] if isinstance(error, KeyError) and error.args else error
  return ' '.join(str(text).split())[:300].rstrip('.') or type(error).__name__


def as_json(config: config_lib.Config) -> dict[str, Any]:
  """The configuration as JSON has it (tuples are lists); `config_lib.from_config_dict` reads it back."""
  return json.loads(json.dumps(config_lib.to_config_dict(config).to_dict()))


def _kept(leaf: Any, imported: bool) -> np.dtype:
  """The type that holds every bit of a parameter that did not learn: float16 where it came from there."""
  if imported or leaf.dtype != np.float32:
    return np.dtype(leaf.dtype)
  array = np.asarray(jax.device_get(leaf))
  with np.errstate(over='ignore'):
    half = array.astype(np.float16)
  return half.dtype if half.astype(np.float32).tobytes() == array.tobytes() else array.dtype


def _stored(name: str, leaf: Any, dtype: np.dtype) -> np.ndarray:
  array = np.asarray(jax.device_get(leaf))
  with np.errstate(over='ignore'):
    out = np.ascontiguousarray(array.astype(dtype, copy=False))
  if not safetensors_io.is_finite(out):
    raise ValueError(f'{name} holds a value that is not finite in {dtype}. Lower the learning rate, or clip.')
  return out
