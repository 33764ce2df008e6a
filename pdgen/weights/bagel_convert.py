"""BAGEL-7B-MoT folders to checkpoints of pdgen and back, without having either in memory.

Weights keep their bits and their type, bfloat16 or float32 (float16 is kept as float32); an export of an import has the
bytes of the folder that it came from. A checkpoint is what `pdgen.load` takes: a process that loads it reads the bytes
of its own shards.

The tokenizer of a checkpoint is the caller's to read and check: weights know no tokenizers.
"""

import functools
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import paths, trees
from pdgen.models import interleaved, presets
from pdgen.models import params as params_lib
from pdgen.weights import (
  bagel,
  bagel_checks,
  exported,
  folders,
  peft_adapters,
  released,
  safetensors_io,
  shards,
  source_manifest,
  tied_head,
)

# (folder with the tokenizer's files, known ids by name, rows of the embedding); raises ValueError if they do not fit.
PrepareTokenizer = Callable[[pathlib.Path, Mapping[str, int], int], None]

_FIXED = 'fixed.safetensors'  # In `source`: the tables that pdgen computes.
# The names of new_token_ids in config.json (QUIRKS 6).
_TOKEN_IDS = {
  'bos_token_id': 'im_start',
  'eos_token_id': 'im_end',
  'start_of_image': 'vision_start',
  'end_of_image': 'vision_end',
}
AS_SOURCE, FLOAT32 = 'source', 'float32'  # Types of what learned in an export.
MERGED, APART = 'merged', 'apart'  # Where adapters go.


def import_bagel(
  source: str | pathlib.Path,
  to: str | pathlib.Path,
  *,
  prepare_tokenizer: PrepareTokenizer,
  base: str | pathlib.Path | None = None,
  weights: str | pathlib.Path | None = None,
  max_latent_size: int | None = None,
  image_size: int | None = None,
  say: Callable[[str], None] = print,
) -> config_lib.Config:
  """Makes a checkpoint of a released folder. Returns its configuration.

  Args:
    source: the released folder, or with a base a part of one.
    to: where the checkpoint goes, new or empty.
    prepare_tokenizer: `data.tokenizers.byte_level.prepare`: checks the tokenizer of the folder, or makes one.
    base: a whole released folder, which fills in the files and tensors that the source lacks.
    weights: file or index of the language model, a name in the source or a path; None: `released.open_released`.
    max_latent_size: latent patches a side of its table of positions; None: what config.json says.
    image_size: pixels a side of the pictures to paint; None: 1024, or the largest that its position tables allow.
    say: called with lines that say what was taken from where.

  Raises: ValueError for a folder of another model, with a line for each cause, for a link out of the folder, or when
    `to` is not empty; FileNotFoundError when there is no such folder.
  """
  to = pathlib.Path(to)
  folders.check_empty(to)
  given = released.open_released(pathlib.Path(source), base=base, weights=weights)
  model = _model(given, max_latent_size)
  entries = _entries(given, model)
  tensors = {file: _tensors(given, file, entries) for file in released.STEMS}
  bagel_checks.check_tensors(given, entries, tensors)
  if image_size is not None:
    if image_size < 1:
      raise ValueError(f'{image_size=}: a picture has at least one token, {model.codec.patch} pixels a side.')
    model = presets.at_image_size(model, image_size)
  bagel_checks.check_tables(_tables(model), model.width, tensors[bagel.EMA])
  config = config_lib.Config(
    name=given.own.path.resolve().name,
    model=model,
    data=config_lib.DataConfig(sources=(), tokenizer=exported.SOURCE),
    sampling=presets.bagel_sampling(model),
  )
  with folders.atomic_directory(to) as partial:
    corrected = released.corrections(given, entries)
    for line in released.taken(given, tensors, corrected):
      say(line)
    _keep_source(given, partial / exported.SOURCE, tensors, entries, corrected)
    _prepare_tokenizer(given, partial / exported.SOURCE, model, prepare_tokenizer)
    ours = {path: found for path, found in _by_path(entries).items() if not path.startswith(bagel.FIXED)}
    digest = _write_ours(partial / exported.PARAMS, ours, tensors)
    exported.write_manifest(partial, config=config, digests={exported.PARAMS: digest})
  return config


def export_bagel(
  source: str | pathlib.Path,
  to: str | pathlib.Path,
  *,
  dtype: str = AS_SOURCE,
  adapters: str = MERGED,
  say: Callable[[str], None] = print,
):
  """Makes a released folder of a checkpoint that was imported, or of a training run's `final` that began with one.

  What did not learn comes back bit for bit. A head that was tied to the embedding, and still equals it, is left out.

  Args:
    source: the checkpoint.
    to: where the folder goes, new or empty.
    dtype: of what learned: AS_SOURCE, the type that each tensor had in the imported folder, or FLOAT32, unrounded.
    adapters: MERGED into their matrices, or APART, in the folder `adapter` in the layout of the PEFT library.
    say: called with a line that says that a tied head is written.

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
  by_name = {name: entry for (_, name), entry in entries.items()}

  def header_of(start: bytes) -> bytes:
    return start if dtype == AS_SOURCE else _unrounded(start, by_name, ours, merged)

  def blocks(name: str, kind: safetensors_io.TensorInfo) -> Iterator[np.ndarray]:
    stored = fixed if by_name[name].path in fixed.infos else ours
    return (_rounded(block, kind.dtype, of=name) for block in _released_blocks(by_name[name], stored, merged))

  with folders.atomic_directory(to) as partial:
    if config.model.lora and adapters == APART:
      peft_adapters.write(partial / 'adapter', ours, entries=entries.values(), lora=config.model.lora)
    for name in files:
      shutil.copyfile(paths.inside(kept, name), partial / name)
    if not any(tied_head.HEAD in safetensors_io.tensor_infos(start) for start in headers.values()):
      file, untied = tied_head.header_with_head(headers)
      kinds = safetensors_io.tensor_infos(header_of(untied[file]))
      if not tied_head.same(*(blocks(name, kinds[name]) for name in (tied_head.HEAD, tied_head.EMBEDDING))):
        headers = untied
        tied_head.untie(partial, file=file)
        say(f'The head has learned: {file} holds it, and {tied_head.LLM} says {tied_head.FIELD}: false.')
    for file, start in ((file, header_of(start)) for file, start in headers.items()):
      kinds = safetensors_io.tensor_infos(start)
      names = safetensors_io.names_in_order(start)
      safetensors_io.write(partial / file, start, (block for name in names for block in blocks(name, kinds[name])))


def _unrounded(
  start: bytes,
  entries: Mapping[str, bagel.Entry],
  ours: safetensors_io.Reader,
  merged: config_lib.LoraConfig | None,
) -> bytes:
  """A header with float32 for what learned. entries: by name."""
  kinds = safetensors_io.tensor_infos(start)
  full = np.dtype(np.float32)
  kinds = {
    name: kinds[name]._replace(dtype=full) if _has_learned(entries[name], kinds[name], ours, merged) else kinds[name]
    for name in safetensors_io.names_in_order(start)
  }
  return safetensors_io.header(kinds, metadata=safetensors_io.metadata(start))


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


def _model(source: released.Released, max_latent_size: int | None) -> config_lib.ModelConfig:
  """What the json files describe, once the side of the table of latent positions agrees with who tells it.

  There is no ViT where config.json says so (`visual_und`) and no tensor is of one.

  max_latent_size: the flag, which beats config.json, which beats the default.
  """
  found = shards.Tensors({**source.base_places(bagel.EMA), **source.own_places(bagel.EMA)})
  halves = {kind.dtype.name for kind in found.infos.values()}
  llm, vit, own, autoencoder = (source.json(name) for name in released.JSON)
  where = 'config.json, or the default,' if max_latent_size is None else '--max_latent_size'
  if max_latent_size is not None:
    own = {**own, 'max_latent_size': max_latent_size}
  if not any(name.startswith(bagel.OF_VIT) for name in found.places) and source.lacks('visual_und'):
    vit = None
  try:
    model = bagel.from_released(llm, vit, own, autoencoder, dtype='bfloat16' if 'bfloat16' in halves else 'float32')
  except ValueError as error:
    file = str(error).split()[0].strip(',:')
    raise ValueError(f'{source.home(file).path}{os.sep}{error}') from error
  table = found.infos.get('latent_pos_embed.pos_embed')
  side = 0 if table is None or not table.shape else math.isqrt(table.shape[0])
  if table is None or not side or side**2 != table.shape[0]:
    return model  # `check_tensors` names it.
  if model.max_latent_size != side:
    raise ValueError(
      f'{where} says max_latent_size={model.max_latent_size}, but the table of latent positions in {source.own.path} '
      f'has {table.shape[0]} = {side} x {side} rows: pictures of at most {side} latent patches a side, each with the '
      f'id row * {side} + column. Say --max_latent_size={side}. Smaller pictures need no smaller table: see '
      '--image_size.'
    )
  return model


def _entries(source: released.Released, model: config_lib.ModelConfig) -> dict[tuple[str, str], bagel.Entry]:
  """The released tensors of a model. source: the folders that describe it, for errors."""
  try:
    return bagel.entries(_shapes(model))
  except Exception as error:  # Whatever sizes that contradict each other cause, anywhere in the model.
    what = ' '.join(str(error).split())[:300]
    where = source.home(released.LLM).path
    raise ValueError(f'The json files of {where} describe no model that could be built: {what}') from error


def _tensors(source: released.Released, file: str, entries: Mapping[tuple[str, str], bagel.Entry]) -> shards.Tensors:
  """All tensors of the folder, and of the base those of the model that the folder lacks."""
  filled = {name: place for name, place in source.base_places(file).items() if (file, name) in entries}
  return shards.Tensors({**source.own_places(file), **filled})


def _shapes(model: config_lib.ModelConfig) -> dict[str, tuple[int, ...]]:
  """Of all that has a released name: the parameters without adapters, and the fixed tables."""
  leaves = trees.flatten_with_paths(interleaved.abstract_params(model))
  shapes = {path: leaf.shape for path, leaf in leaves if not params_lib.is_adapter(path)}
  return {**shapes, **{path: (side**2, model.width) for path, side in _tables(model).items()}}


def _tables(model: config_lib.ModelConfig) -> dict[str, int]:
  """Patches a side of the fixed tables."""
  sides = {'latent_position': model.max_latent_size}
  if model.vit is not None:
    sides['vit_position'] = model.vit.max_patches
  return {f'{bagel.FIXED}{name}': side for name, side in sides.items()}


def _keep_source(
  source: released.Released,
  folder: pathlib.Path,
  tensors: Mapping[str, shards.Tensors],
  entries: Mapping[tuple[str, str], bagel.Entry],
  corrected: Mapping[str, Any],
):
  """All of the folder but its parameters: json and tokenizer files, headers, fixed tables."""
  folder.mkdir()
  headers: dict[str, bytes] = {}
  indices = []
  for file, group in tensors.items():
    starts, index = released.layout(source, file, group)
    headers |= starts
    indices += [index] if index else []
  files = released.copy_files(source, folder, indices=indices, corrected=corrected)
  source_manifest.write(folder, files=files, headers=headers)
  fixed = {p: found for p, found in _by_path(entries).items() if p.startswith(bagel.FIXED)}
  _write_ours(folder / _FIXED, fixed, tensors)


def _prepare_tokenizer(
  source: released.Released, folder: pathlib.Path, model: config_lib.ModelConfig, prepare: PrepareTokenizer
):
  """Checks the tokenizer of the folder, or makes one; with the ids that config.json states."""
  told = source.json(released.CONFIG).get('new_token_ids', {})
  if not isinstance(told, dict) or not all(type(i) is int and 0 <= i < model.vocab_size for i in told.values()):
    where = source.home(released.CONFIG).path / released.CONFIG
    raise ValueError(f'{where}: new_token_ids are no ids below {model.vocab_size}, by name.')
  told = {ours: told[name] for name, ours in _TOKEN_IDS.items() if name in told}
  try:
    prepare(folder, told, model.vocab_size)
  except ValueError as error:
    lacks = not any(one and released.has_tokenizer(one) for one in (source.own, source.base))
    advice = f' {source.advice}' if lacks else ''
    raise ValueError(str(error).replace(str(folder), str(source.own.path)) + advice) from error


def _by_path(
  entries: Mapping[tuple[str, str], bagel.Entry],
) -> dict[str, list[bagel.Entry]]:
  """The released tensors of each of our arrays, by layer."""
  found: dict[str, list[bagel.Entry]] = {}
  for entry in entries.values():
    found.setdefault(entry.path, []).append(entry)
  return {path: sorted(parts, key=lambda e: e.layer or 0) for path, parts in found.items()}


def _write_ours(
  path: pathlib.Path, ours: Mapping[str, list[bagel.Entry]], tensors: Mapping[str, shards.Tensors]
) -> str:
  """A file of our arrays, each from its released parts. Returns its SHA-256."""
  kinds = {}
  for name, parts in ours.items():
    one = parts[0]
    shape = bagel.to_ours(np.empty(one.shape, np.bool_), one.layout).shape if len(one.shape) > 1 else one.shape
    stack = () if one.layer is None else (len(parts),)
    types = {tensors[part.file].infos[part.name].dtype for part in parts}
    # float32: parameters have its range, and gradients and averages its precision; it holds every float16, and layers
    # of several types.
    half = types == {safetensors_io.DTYPES['BF16']}
    kinds[name] = safetensors_io.TensorInfo(safetensors_io.DTYPES['BF16' if half else 'F32'], (*stack, *shape))
  tasks = (
    functools.partial(_our_block, part, tensors[part.file], index, kinds[name].dtype)
    for name, parts in ours.items()
    for part in parts
    for index in _blocks(part, part.shape, tensors[part.file])
  )
  return safetensors_io.write(path, safetensors_io.header(kinds), safetensors_io.in_order(tasks))


def _our_block(entry: bagel.Entry, reader: shards.Tensors, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
  """A part of a released tensor with our axes and type, in the order of our file."""
  return np.ascontiguousarray(bagel.to_ours(reader.read(entry.name, index), entry.layout).astype(dtype, copy=False))


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


def _blocks(
  entry: bagel.Entry, shape: tuple[int, ...], reader: safetensors_io.Reader | shards.Tensors
) -> Iterator[tuple[slice, ...]]:
  """Parts of a tensor that are read in turn: along the axis that comes first once it is transposed."""
  item = next(iter(reader.infos.values())).dtype.itemsize  # One for all: a head and its embedding have equal blocks.
  if entry.layout == bagel.CONV:
    return iter([()])  # a few megabytes at most
  axis = 1 if entry.layout == bagel.LINEAR else 0
  pieces = safetensors_io.block_slices(shape[axis], math.prod(shape) // shape[axis] * item)
  return ((*(slice(None),) * axis, piece) for piece in pieces)
