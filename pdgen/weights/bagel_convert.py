"""BAGEL-7B-MoT folders to checkpoints of pdgen and back, without having either in memory.

Weights keep their bits and their type, bfloat16 or float32 (float16 is kept as float32); an export of an import has the
bytes of the folder that it came from. A checkpoint is what `pdgen.load` takes: a process that loads it reads the bytes
of its own shards.

The tokenizer of a checkpoint is the caller's to read and check: weights know no tokenizers.
"""

import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import json_file, paths, trees
from pdgen.models import interleaved, layers, presets
from pdgen.models import params as params_lib
from pdgen.weights import bagel, exported, folders, peft_adapters, safetensors_io, source_manifest

# (folder with the tokenizer's files, known ids by name, rows of the embedding); raises ValueError if they do not fit.
PrepareTokenizer = Callable[[pathlib.Path, Mapping[str, int], int], None]

_WEIGHTS = source_manifest.WEIGHTS
_FIXED = 'fixed.safetensors'  # In `source`: the tables that pdgen computes.
_OWN_SETTINGS = ('pdgen_tokenizer.json',)  # What `prepare_tokenizer` may write.
_KEPT = ('.json', '.txt', '.model', '.tiktoken')  # Endings of files that are given back besides the weights.
# The names of new_token_ids in config.json (QUIRKS 6).
_TOKEN_IDS = {
  'bos_token_id': 'im_start',
  'eos_token_id': 'im_end',
  'start_of_image': 'vision_start',
  'end_of_image': 'vision_end',
}
# How far a stored sin-cos table may be from ours: its type's rounding of values up to 1.
_TABLE_TOLERANCE = {'float32': 1e-4, 'float16': 1e-3, 'bfloat16': 1e-2}
AS_SOURCE, FLOAT32 = 'source', 'float32'  # Types of what learned in an export.
MERGED, APART = 'merged', 'apart'  # Where adapters go.


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
    max_latent_size: latent patches a side of its table of positions; None: what config.json says.
    image_size: pixels a side of the pictures to paint; None: 1024, or the largest that its position tables allow.

  Raises: ValueError for a folder of another model, with a line for each cause, for a link out of the folder, or when
    `to` is not empty; FileNotFoundError when there is no such folder.
  """
  source, to = pathlib.Path(source), pathlib.Path(to)
  folders.check_empty(to)
  _check_is_bagel(source)
  readers = {file: safetensors_io.Reader(paths.inside(source, file)) for file in _WEIGHTS}
  model = _model(source, readers[bagel.EMA], max_latent_size)
  entries = _entries(source, model)
  _check_tensors(source, entries, readers)
  if image_size is not None:
    if image_size < 1:
      raise ValueError(f'{image_size=}: a picture has at least one token, {model.codec.patch} pixels a side.')
    model = presets.at_image_size(model, image_size)
  _check_tables(model, readers[bagel.EMA])
  config = config_lib.Config(
    name=source.resolve().name,
    model=model,
    data=config_lib.DataConfig(sources=(), tokenizer=exported.SOURCE),
    sampling=presets.bagel_sampling(model),
  )
  with folders.atomic_directory(to) as partial:
    _keep_source(source, partial / exported.SOURCE, readers, entries, model, prepare_tokenizer)
    ours = {path: found for path, found in _by_path(entries).items() if not path.startswith(bagel.FIXED)}
    digest = _write_ours(partial / exported.PARAMS, ours, readers)
    exported.write_manifest(partial, config=config, digests={exported.PARAMS: digest})
  return config


def export_bagel(source: str | pathlib.Path, to: str | pathlib.Path, *, dtype: str = AS_SOURCE, adapters: str = MERGED):
  """Makes a released folder of a checkpoint that was imported, or of a training run's `final` that began with one.

  What did not learn comes back bit for bit.

  Args:
    source: the checkpoint.
    to: where the folder goes, new or empty.
    dtype: of what learned: AS_SOURCE, the type that each tensor had in the imported folder, or FLOAT32, unrounded.
    adapters: MERGED into their matrices, or APART, in the folder `adapter` in the layout of the PEFT library.

  Raises: ValueError for a checkpoint that was never imported, or when `to` is not empty; FileNotFoundError and
  ValueError as `load_export`.
  """
  source, to = pathlib.Path(source), pathlib.Path(to)
  if dtype not in (AS_SOURCE, FLOAT32):
    raise ValueError(f'{dtype=}: it is {AS_SOURCE!r} or {FLOAT32!r}.')
  if adapters not in (MERGED, APART):
    raise ValueError(f'{adapters=}: it is {MERGED!r} or {APART!r}.')
  folders.check_empty(to)
  header = exported.read_manifest(source)
  config = exported.read_config(source, header)
  if f'{exported.SOURCE}/{exported.IMPORTED}' not in header['sha256']:
    raise ValueError(f'{source} did not come from a BAGEL folder: there is nothing that it could be exported as.')
  ours = safetensors_io.Reader(source / exported.PARAMS)
  exported.check_shapes(ours, dict(trees.flatten_with_paths(exported.abstract_params(source, config))))
  entries = bagel.entries(_shapes(config.model))
  kept = source / exported.SOURCE
  fixed = safetensors_io.Reader(paths.inside(kept, _FIXED))
  files, headers = source_manifest.read(kept, entries)
  tables = {path: (side**2, config.model.width) for path, side in _tables(config.model).items()}
  exported.check_shapes(fixed, {path: np.broadcast_to(0, shape) for path, shape in tables.items()})
  merged = config.model.lora if adapters == MERGED else None
  with folders.atomic_directory(to) as partial:
    if config.model.lora and adapters == APART:
      peft_adapters.write(partial / 'adapter', ours, entries=entries.values(), lora=config.model.lora)
    for name in files:
      shutil.copyfile(paths.inside(kept, name), partial / name)
    for file, start in headers.items():
      kinds = safetensors_io.tensor_infos(start)
      names = safetensors_io.names_in_order(start)
      if dtype == FLOAT32:
        learned = {name for name in names if _has_learned(entries[file, name], kinds[name], ours, merged)}
        full = np.dtype(np.float32)
        kinds = {name: kinds[name]._replace(dtype=full) if name in learned else kinds[name] for name in names}
        start = safetensors_io.header(kinds, metadata=safetensors_io.metadata(start))
      blocks = (
        _rounded(block, kinds[name].dtype, of=name)
        for name in names
        for block in _released_blocks(
          entries[file, name], fixed if entries[file, name].path in fixed.infos else ours, merged
        )
      )
      safetensors_io.write(partial / file, start, blocks)


def _rounded(block: np.ndarray, dtype: np.dtype, *, of: str) -> np.ndarray:
  with np.errstate(over='ignore'):
    out = np.ascontiguousarray(block.astype(dtype, copy=False))
  if out.dtype != block.dtype and not safetensors_io.is_finite(out):
    raise ValueError(f'{of} has learned a number that {dtype} does not hold. Export with --dtype={FLOAT32}.')
  return out


def _has_learned(
  entry: bagel.Entry,
  kind: safetensors_io.TensorInfo,
  ours: safetensors_io.Reader,
  merged: config_lib.LoraConfig | None,
) -> bool:
  """Whether a run wrote the parameter, which keeps what did not learn in the type it came in."""
  stored = ours.infos.get(entry.path)
  return stored is not None and (
    stored.dtype != kind.dtype or merged is not None and peft_adapters.factors(entry.path, ours) is not None
  )


def _check_is_bagel(source: pathlib.Path):
  if not source.is_dir() or (source / folders.CHECKPOINTS).is_dir():
    error = ValueError if source.exists() else FileNotFoundError
    raise error(f'{folders.explain(source)} `convert import` takes a released BAGEL folder.')
  missing = [name for name in (*bagel.JSON, *_WEIGHTS) if not paths.inside(source, name).is_file()]
  if not missing:
    kind = _json(source, 'llm_config.json').get('model_type')
    if kind != 'qwen2':
      raise ValueError(f'The language model of {source} is a {kind!r} (llm_config.json); that of BAGEL is a qwen2.')
    return
  if (source / exported.PARAMS).is_file():
    raise ValueError(
      f'{source} is a model of pdgen already: use it as it is (--checkpoint={source}), or make a released folder '
      f'of it: python -m pdgen.convert export --from={source} --to=..'
    )
  kind = folders.described(source)
  what = f'is a {kind} (config.json), not BAGEL-7B-MoT' if kind else 'is no BAGEL-7B-MoT folder'
  raise ValueError(f'{source} {what}: it lacks {", ".join(missing)}.')


def _model(source: pathlib.Path, ema: safetensors_io.Reader, max_latent_size: int | None) -> config_lib.ModelConfig:
  """What the json files describe, once the side of the table of latent positions agrees with who tells it.

  max_latent_size: the flag, which beats config.json, which beats the default.
  """
  halves = {kind.dtype.name for kind in ema.infos.values()}
  llm, vit, own, autoencoder = (_json(source, name) for name in (*bagel.JSON, 'config.json', 'ae_config.json'))
  where = 'config.json, or the default,' if max_latent_size is None else '--max_latent_size'
  if max_latent_size is not None:
    own = {**own, 'max_latent_size': max_latent_size}
  try:
    model = bagel.from_released(llm, vit, own, autoencoder, dtype='bfloat16' if 'bfloat16' in halves else 'float32')
  except ValueError as error:
    raise ValueError(f'{source}{os.sep}{error}') from error
  table = ema.infos.get('latent_pos_embed.pos_embed')
  side = 0 if table is None or not table.shape else math.isqrt(table.shape[0])
  if table is None or not side or side**2 != table.shape[0]:
    return model  # `_check_tensors` names it.
  if model.max_latent_size != side:
    raise ValueError(
      f'{where} says max_latent_size={model.max_latent_size}, but the table of latent positions in {source} has '
      f'{table.shape[0]} = {side} x {side} rows: pictures of at most {side} latent patches a side, each with the id '
      f'row * {side} + column. Say --max_latent_size={side}. Smaller pictures need no smaller table: see --image_size.'
    )
  return model


def _entries(source: pathlib.Path, model: config_lib.ModelConfig) -> dict[tuple[str, str], bagel.Entry]:
  """The released tensors of a model. source: the folder that describes it, for errors."""
  try:
    return bagel.entries(_shapes(model))
  except Exception as error:  # Whatever sizes that contradict each other cause, anywhere in the model.
    what = ' '.join(str(error).split())[:300]
    raise ValueError(f'The json files of {source} describe no model that could be built: {what}') from error


def _shapes(model: config_lib.ModelConfig) -> dict[str, tuple[int, ...]]:
  """Of all that has a released name: the parameters without adapters, and the fixed tables."""
  leaves = trees.flatten_with_paths(interleaved.abstract_params(model))
  shapes = {path: leaf.shape for path, leaf in leaves if not params_lib.is_adapter(path)}
  return {**shapes, **{path: (side**2, model.width) for path, side in _tables(model).items()}}


def _tables(model: config_lib.ModelConfig) -> dict[str, int]:
  """Patches a side of the fixed tables."""
  if model.vit is None:
    raise ValueError('BAGEL has a ViT; this model has none (config.model.vit).')
  sides = {'latent_position': model.max_latent_size, 'vit_position': model.vit.max_patches}
  return {f'{bagel.FIXED}{name}': side for name, side in sides.items()}


def _check_tensors(source: pathlib.Path, entries: Mapping, readers: Mapping[str, safetensors_io.Reader]):
  """Raises one error, with a line for each cause, when tensors are missing, unexpected, of another shape or type."""
  kinds = {(file, name): kind for file, reader in readers.items() for name, kind in reader.infos.items()}
  found = {key: kind.shape for key, kind in kinds.items()}
  lines = bagel.disagreements(entries, found)
  count = len(entries.keys() ^ found.keys()) + sum(entries[key].shape != found[key] for key in entries.keys() & found)
  mixed = []
  for path, parts in _by_path(entries).items():
    types = {kinds[e.file, e.name].dtype.name for e in parts if (e.file, e.name) in kinds}
    if len(types) > 1:
      mixed.append(f'{parts[0].name} and its like in other layers are {sorted(types)} ({path})')
  if mixed:
    more = f'; so are {len(mixed) - 1} more' if len(mixed) > 1 else ''
    lines.append(f'types: {mixed[0]}{more}. Save all layers in one type.')
  if lines:
    plain = not any('_moe_gen' in name for _, name in kinds)
    hint = ' There is no *_moe_gen weight: this is a plain Qwen2, without the experts that paint.' if plain else ''
    raise ValueError(
      f'{count + len(mixed)} tensors of {source} are not those that its json files describe.{hint}'
      + (f' {lines[0]}' if len(lines) == 1 else '\n  ' + '\n  '.join(lines))
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
  files = sorted(path.name for path in source.iterdir() if path.is_file() and path.suffix in _KEPT)
  for name in files:
    if name in (exported.IMPORTED, *_OWN_SETTINGS):
      raise ValueError(f'{source / name} has the name of a file that a checkpoint has itself: rename it.')
    shutil.copyfile(paths.inside(source, name), folder / name)
  source_manifest.write(folder, files=files, headers={file: reader.header for file, reader in readers.items()})
  fixed = {p: found for p, found in _by_path(entries).items() if p.startswith(bagel.FIXED)}
  _write_ours(folder / _FIXED, fixed, readers)

  told = _json(source, 'config.json').get('new_token_ids', {})
  if not isinstance(told, dict) or not all(type(i) is int and 0 <= i < model.vocab_size for i in told.values()):
    raise ValueError(f'{source / "config.json"}: new_token_ids are no ids below {model.vocab_size}, by name.')
  told = {ours: told[name] for name, ours in _TOKEN_IDS.items() if name in told}
  try:
    prepare_tokenizer(folder, told, model.vocab_size)
  except ValueError as error:
    raise ValueError(str(error).replace(str(folder), str(source))) from error


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
    dtype = readers[one.file].infos[one.name].dtype
    # float32: parameters have its range, and gradients and averages its precision; it holds every float16.
    kinds[name] = safetensors_io.TensorInfo(np.dtype(np.float32) if dtype == np.float16 else dtype, (*stack, *shape))
  blocks = (
    block.astype(kinds[name].dtype, copy=False)
    for name, parts in ours.items()
    for part in parts
    for block in _our_blocks(part, readers[part.file])
  )
  return safetensors_io.write(path, safetensors_io.header(kinds), blocks)


def _our_blocks(entry: bagel.Entry, reader: safetensors_io.Reader) -> Iterator[np.ndarray]:
  """A released tensor with our axes, as blocks that follow one another in our file."""
  for index in _blocks(entry, entry.shape, reader):
    yield bagel.to_ours(reader.read(entry.name, index), entry.layout)


def _released_blocks(
  entry: bagel.Entry, reader: safetensors_io.Reader, lora: config_lib.LoraConfig | None
) -> Iterator[np.ndarray]:
  """Its part of our array with the released axes, as blocks that follow one another in a released file.

  An adapter of the matrix is added to it, in float32 (`models.layers.Linear`).
  """
  layer = () if entry.layer is None else (entry.layer,)
  adapters = peft_adapters.factors(entry.path, reader) if lora else None
  for index in _blocks(entry, reader.infos[entry.path].shape[len(layer) :], reader):
    block = reader.read(entry.path, (*layer, *index))
    if lora and adapters:
      low, high = reader.read(adapters[0], layer), reader.read(adapters[1], (*layer, *index))
      block = block.astype(np.float32) + low.astype(np.float32) @ high.astype(np.float32) * (lora.alpha / lora.rank)
    yield bagel.to_released(block, entry.layout)


def _blocks(entry: bagel.Entry, shape: tuple[int, ...], reader: safetensors_io.Reader) -> Iterator[tuple[slice, ...]]:
  """Parts of a tensor that are read in turn: along the axis that comes first once it is transposed."""
  item = next(iter(reader.infos.values())).dtype.itemsize
  if entry.layout == bagel.CONV:
    return iter([()])  # a few megabytes at most
  axis = 1 if entry.layout == bagel.LINEAR else 0
  pieces = safetensors_io.block_slices(shape[axis], math.prod(shape) // shape[axis] * item)
  return ((*(slice(None),) * axis, piece) for piece in pieces)


def _json(folder: pathlib.Path, name: str) -> dict[str, Any]:
  """The content of a json file of a released folder; nothing of one that is not there."""
  path = paths.inside(folder, name)
  return json_file.read(path) if path.is_file() else {}
