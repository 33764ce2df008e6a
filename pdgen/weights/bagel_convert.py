"""BAGEL-7B-MoT folders to checkpoints of pdgen and back, without having either in memory.

Weights keep their bits and their type, bfloat16 or float32; an export of an import has the bytes of the folder that
it came from. A checkpoint is what `pdgen.load` takes: a process that loads it reads the bytes of its own shards.

The tokenizer of a checkpoint is the caller's to read and check: weights know no tokenizers.
"""

import json
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import trees
from pdgen.models import interleaved, layers, presets
from pdgen.weights import bagel, exported, safetensors_io

# (folder with the tokenizer's files, known ids by name, rows of the embedding); raises ValueError if they do not fit.
PrepareTokenizer = Callable[[pathlib.Path, Mapping[str, int], int], None]

_WEIGHTS = (bagel.EMA, bagel.AE)
# In `source`: which files to give back, and the headers of the weights; the tables that pdgen computes.
_MANIFEST, _FIXED = 'source.json', 'fixed.safetensors'
# The names of new_token_ids in config.json (QUIRKS 6).
_TOKEN_IDS = {
  'bos_token_id': 'im_start',
  'eos_token_id': 'im_end',
  'start_of_image': 'vision_start',
  'end_of_image': 'vision_end',
}
# How far a stored sin-cos table may be from ours: its type's rounding of values up to 1.
_TABLE_TOLERANCE = {'float32': 1e-4, 'bfloat16': 1e-2}


def import_bagel(
  source: str | pathlib.Path,
  to: str | pathlib.Path,
  *,
  prepare_tokenizer: PrepareTokenizer,
  max_latent_size: int | None = None,
  image_size: int | None = None,
) -> config_lib.Config:
  """Makes a checkpoint of a released folder. Returns its configuration.

  Args:
    source: the released folder.
    to: where the checkpoint goes, new or empty.
    prepare_tokenizer: `data.tokenizers.byte_level.prepare`: checks the tokenizer of the folder, or makes one.
    max_latent_size: what the checkpoint must have; None: whatever it has.
    image_size: pixels a side of the pictures to paint; None: 1024, or the largest that its position tables allow.

  Raises: ValueError for a folder of another model, listing every tensor that does not fit, or when `to` is not empty.
  """
  source, to = pathlib.Path(source), pathlib.Path(to)
  _check_empty(to)
  _check_is_bagel(source)
  readers = {file: safetensors_io.Reader(source / file) for file in _WEIGHTS}
  model = _model(source, readers[bagel.EMA], max_latent_size)
  entries = bagel.entries(_shapes(model))
  _check_tensors(source, entries, readers)
  if image_size is not None:
    model = presets.at_image_size(model, image_size)
  _check_tables(model, readers[bagel.EMA])
  config = config_lib.Config(
    name=source.resolve().name,
    model=model,
    data=config_lib.DataConfig(sources=(), tokenizer=exported.SOURCE),
    sampling=presets.bagel_sampling(model),
  )
  with exported.atomic_directory(to) as partial:
    _keep_source(source, partial / exported.SOURCE, readers, entries, model, prepare_tokenizer)
    ours = {path: found for path, found in _by_path(entries).items() if not path.startswith(bagel.FIXED)}
    digest = _write_ours(partial / exported.PARAMS, ours, readers)
    exported.write_manifest(partial, config=config, digests={exported.PARAMS: digest})
  return config


def export_bagel(source: str | pathlib.Path, to: str | pathlib.Path):
  """Makes a released folder of a checkpoint that was imported, or of a training run's `final` that began with one.

  Raises: ValueError for a checkpoint that was never imported, or when `to` is not empty; FileNotFoundError and
  ValueError as `load_export`.
  """
  source = pathlib.Path(source)
  _check_empty(pathlib.Path(to))
  header = exported.read_manifest(source)
  if f'{exported.SOURCE}/{_MANIFEST}' not in header['sha256']:
    raise ValueError(f'{source} did not come from a BAGEL folder: there is nothing that it could be exported as.')
  kept = source / exported.SOURCE
  manifest = json.loads((kept / _MANIFEST).read_text(encoding='utf-8'))
  model = exported.read_config(header).model
  entries = bagel.entries(_shapes(model))
  ours, fixed = safetensors_io.Reader(source / exported.PARAMS), safetensors_io.Reader(kept / _FIXED)
  with exported.atomic_directory(to) as partial:
    for name in manifest['files']:
      shutil.copyfile(kept / name, partial / name)
    for file, text in manifest['headers'].items():
      start = text.encode()
      start = len(start).to_bytes(8, 'little') + start
      kinds = safetensors_io.tensor_infos(start)
      blocks = (
        block.astype(kinds[name].dtype, copy=False)
        for name in safetensors_io.names_in_order(start)
        for block in _released_blocks(entries[file, name], fixed if entries[file, name].path in fixed.infos else ours)
      )
      safetensors_io.write(partial / file, start, blocks)


def _check_empty(to: pathlib.Path):
  if to.exists() and (not to.is_dir() or any(to.iterdir())):
    raise ValueError(f'{to} is not empty, and nothing there is to be lost: name another folder, or remove it.')


def _check_is_bagel(source: pathlib.Path):
  missing = [name for name in (*bagel.JSON, *_WEIGHTS) if not (source / name).is_file()]
  if not missing:
    kind = _json(source / 'llm_config.json').get('model_type')
    if kind != 'qwen2':
      raise ValueError(f'The language model of {source} is a {kind!r} (llm_config.json); that of BAGEL is a qwen2.')
    return
  if not source.is_dir():
    raise FileNotFoundError(f'There is no folder {source}.')
  described = _json(source / 'config.json')
  kind = ' '.join(described.get('architectures') or [described.get('model_type', '')]).strip()
  what = f'is a {kind} (config.json), not BAGEL-7B-MoT' if kind else 'is no BAGEL-7B-MoT folder'
  raise ValueError(f'{source} {what}: it lacks {", ".join(missing)}.')


def _model(source: pathlib.Path, ema: safetensors_io.Reader, max_latent_size: int | None) -> config_lib.ModelConfig:
  """What the json files describe, once the side of the table of latent positions agrees with all who tell it."""
  halves = {kind.dtype.name for kind in ema.infos.values()}
  try:
    model = bagel.from_released(
      *(_json(source / name) for name in (*bagel.JSON, 'config.json', 'ae_config.json')),
      dtype='bfloat16' if 'bfloat16' in halves else 'float32',
    )
  except KeyError as error:
    raise ValueError(f'The json files of {source} lack {error}.') from error
  table = ema.infos.get('latent_pos_embed.pos_embed')
  if table is None:
    return model  # `_check_tensors` names it among what is missing.
  side = math.isqrt(table.shape[0])
  for asked, where in ((max_latent_size, '--max_latent_size'), (model.max_latent_size, 'config.json, or the default,')):
    if asked is not None and asked != side:
      raise ValueError(
        f'{where} says max_latent_size={asked}, but the table of latent positions in {source} has {table.shape[0]} = '
        f'{side} x {side} rows: pictures of at most {side} latent patches a side, each with the id row * {side} + '
        f'column. Say {side}, or nothing. Smaller pictures need no smaller table: see --image_size.'
      )
  return model


def _shapes(model: config_lib.ModelConfig) -> dict[str, tuple[int, ...]]:
  """Of all that has a released name: the parameters, and the fixed tables."""
  shapes = {path: leaf.shape for path, leaf in trees.flatten_with_paths(interleaved.abstract_params(model))}
  return {**shapes, **{path: (side**2, model.width) for path, side in _tables(model).items()}}


def _tables(model: config_lib.ModelConfig) -> dict[str, int]:
  """Patches a side of the fixed tables."""
  if model.vit is None:
    raise ValueError('BAGEL has a ViT; this model has none (config.model.vit).')
  sides = {'latent_position': model.max_latent_size, 'vit_position': model.vit.max_patches}
  return {f'{bagel.FIXED}{name}': side for name, side in sides.items()}


def _check_tensors(source: pathlib.Path, entries: Mapping, readers: Mapping[str, safetensors_io.Reader]):
  """Raises one error for all tensors that are missing, unexpected, of another shape or type."""
  kinds = {(file, name): kind for file, reader in readers.items() for name, kind in reader.infos.items()}
  lines = bagel.disagreements(entries, {key: kind.shape for key, kind in kinds.items()})
  for path, found in _by_path(entries).items():
    types = {kinds[e.file, e.name].dtype.name for e in found if (e.file, e.name) in kinds}
    if len(types) > 1 or 'float16' in types:
      lines.append(f'types: {found[0].name} and its like in other layers are {sorted(types)} ({path})')
  if lines:
    plain = not any('_moe_gen' in name for _, name in kinds)
    hint = ' There is no *_moe_gen weight: this is a plain Qwen2, without the experts that paint.' if plain else ''
    raise ValueError(
      f'{len(lines)} tensors of {source} are not those that its json files describe.{hint}\n  ' + '\n  '.join(lines)
    )


def _check_tables(model: config_lib.ModelConfig, ema: safetensors_io.Reader):
  """The fixed tables are computed, so that stored ones must be those that are computed."""
  for entry in bagel.entries({path: (side**2, model.width) for path, side in _tables(model).items()}).values():
    side, dtype = _tables(model)[entry.path], ema.infos[entry.name].dtype
    for rows in safetensors_io.block_slices(side**2, 4 * model.width):
      row, column = np.divmod(np.arange(rows.start, rows.stop), side)
      computed = np.asarray(layers.sincos_2d(row, column, model.width))
      error = np.abs(computed - ema.read(entry.name, (rows,)).astype(np.float32)).max()
      if not error <= _TABLE_TOLERANCE[dtype.name]:
        raise ValueError(
          f'{entry.name} is off by up to {error:.2g} from the sin-cos table that BAGEL has and pdgen computes in its '
          'place. The model was trained with other positions.'
        )


def _keep_source(
  source: pathlib.Path,
  folder: pathlib.Path,
  readers: Mapping[str, safetensors_io.Reader],
  entries: Mapping[tuple[str, str], bagel.Entry],
  model: config_lib.ModelConfig,
  prepare_tokenizer: PrepareTokenizer,
):
  """All of the folder but its parameters: json and tokenizer files, headers, fixed tables; a tokenizer in any case."""
  folder.mkdir()
  files = sorted(path.name for path in source.iterdir() if path.is_file() and path.suffix in ('.json', '.txt'))
  for name in files:
    shutil.copyfile(source / name, folder / name)
  headers = {file: reader.header[8:].decode() for file, reader in readers.items()}
  text = json.dumps({'files': files, 'headers': headers})
  (folder / _MANIFEST).write_text(text, encoding='utf-8')
  fixed = {p: found for p, found in _by_path(entries).items() if p.startswith(bagel.FIXED)}
  _write_ours(folder / _FIXED, fixed, readers)

  told = _json(source / 'config.json').get('new_token_ids', {})
  told = {ours: told[name] for name, ours in _TOKEN_IDS.items() if name in told}
  prepare_tokenizer(folder, told, model.vocab_size)


def _by_path(
  entries: Mapping[tuple[str, str], bagel.Entry],
) -> dict[str, list[bagel.Entry]]:
  """The released tensors of each of our arrays, by layer."""
  found: dict[str, list[bagel.Entry]] = {}
  for entry in entries.values():
    found.setdefault(entry.path, []).append(entry)
  return {path: sorted(parts, key=lambda e: e.layer or 0) for path, parts in found.items()}


def _write_ours(
  path: pathlib.Path, ours: Mapping[str, list[bagel.Entry]], readers: Mapping[str, safetensors_io.Reader]
) -> str:
  """A file of our arrays, each from its released parts. Returns its SHA-256."""
  kinds = {}
  for name, parts in ours.items():
    one = parts[0]
    shape = bagel.to_ours(np.empty(one.shape, np.bool_), one.layout).shape if len(one.shape) > 1 else one.shape
    stack = () if one.layer is None else (len(parts),)
    kinds[name] = safetensors_io.TensorInfo(readers[one.file].infos[one.name].dtype, (*stack, *shape))
  blocks = (block for parts in ours.values() for part in parts for block in _our_blocks(part, readers[part.file]))
  return safetensors_io.write(path, safetensors_io.header(kinds), blocks)


def _our_blocks(entry: bagel.Entry, reader: safetensors_io.Reader) -> Iterator[np.ndarray]:
  """A released tensor with our axes, as blocks that follow one another in our file."""
  for index in _blocks(entry, entry.shape, reader):
    yield bagel.to_ours(reader.read(entry.name, index), entry.layout)


def _released_blocks(entry: bagel.Entry, reader: safetensors_io.Reader) -> Iterator[np.ndarray]:
  """Its part of our array with the released axes, as blocks that follow one another in a released file."""
  layer = () if entry.layer is None else (entry.layer,)
  for index in _blocks(entry, reader.infos[entry.path].shape[len(layer) :], reader):
    yield bagel.to_released(reader.read(entry.path, (*layer, *index)), entry.layout)


def _blocks(entry: bagel.Entry, shape: tuple[int, ...], reader: safetensors_io.Reader) -> Iterator[tuple[slice, ...]]:
  """Parts of a tensor that are read in turn: along the axis that comes first once it is transposed."""
  item = next(iter(reader.infos.values())).dtype.itemsize
  if entry.layout == bagel.CONV:
    return iter([()])  # a few megabytes at most
  axis = 1 if entry.layout == bagel.LINEAR else 0
  pieces = safetensors_io.block_slices(shape[axis], math.prod(shape) // shape[axis] * item)
  return ((*(slice(None),) * axis, piece) for piece in pieces)


def _json(path: pathlib.Path) -> dict[str, Any]:
  """The content of a json file; nothing of one that is not there."""
  if not path.is_file():
    return {}
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path} is no json ({error}).') from error
