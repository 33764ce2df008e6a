"""Between a released BAGEL-7B-MoT folder and a checkpoint of pdgen, both ways, without having either in memory.

    python -m pdgen.convert import --from=BAGEL-7B-MoT --to=checkpoints/bagel
    python -m pdgen.sample --checkpoint=checkpoints/bagel --prompt='a photo of a red ring'
    python -m pdgen.convert export --from=checkpoints/bagel --to=BAGEL-again

Weights keep their bits and their type, bfloat16 or float32; an export of an import has the bytes of the folder that
it came from. A checkpoint is what `pdgen.load` takes: a process that loads it reads the bytes of its own shards.
"""

import argparse
import json
import math
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import presets, sharding
from pdgen.data import byte_level
from pdgen.data import tokenizer as tokenizer_lib
from pdgen.models import bagel_weights, layers
from pdgen.training import export as export_lib
from pdgen.training import state as state_lib
from pdgen.training import tensor_files

_WEIGHTS = (bagel_weights.EMA, bagel_weights.AE)
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
  max_latent_size: int | None = None,
  image_size: int | None = None,
) -> config_lib.Config:
  """Makes a checkpoint of a released folder. Returns its configuration.

  max_latent_size: what the checkpoint must have, if given. image_size: pixels a side of the pictures to paint; None:
  1024, or the largest that its position tables allow.

  Raises: ValueError for a folder of another model, listing every tensor that does not fit, or when `to` is not empty.
  """
  source, to = pathlib.Path(source), pathlib.Path(to)
  _check_empty(to)
  _check_is_bagel(source)
  readers = {file: tensor_files.Reader(source / file) for file in _WEIGHTS}
  model = _model(source, readers[bagel_weights.EMA], max_latent_size)
  entries = bagel_weights.entries(_shapes(model))
  _check_tensors(source, entries, readers)
  if image_size is not None:
    model = presets.at_image_size(model, image_size)
  _check_tables(model, readers[bagel_weights.EMA])
  config = config_lib.Config(
    name=source.resolve().name,
    model=model,
    data=config_lib.DataConfig(world='', tokenizer=export_lib.SOURCE),
    sampling=presets.bagel_sampling(model),
  )
  with export_lib.replacing(to) as partial:
    _keep_source(source, partial / export_lib.SOURCE, readers, entries, model)
    ours = {path: found for path, found in _by_path(entries).items() if not path.startswith(bagel_weights.FIXED)}
    digest = _write_ours(partial / export_lib.PARAMS, ours, readers)
    export_lib.seal(partial, config=config, digests={export_lib.PARAMS: digest})
  return config


def export_bagel(source: str | pathlib.Path, to: str | pathlib.Path):
  """Makes a released folder of a checkpoint that was imported, or of a training run's `final` that began with one.

  Raises: ValueError for a checkpoint that was never imported, or when `to` is not empty; FileNotFoundError and
  ValueError as `load_export`.
  """
  source = pathlib.Path(source)
  _check_empty(pathlib.Path(to))
  header = export_lib.read_header(source)
  if f'{export_lib.SOURCE}/{_MANIFEST}' not in header['sha256']:
    raise ValueError(f'{source} did not come from a BAGEL folder: there is nothing that it could be exported as.')
  kept = source / export_lib.SOURCE
  manifest = json.loads((kept / _MANIFEST).read_text(encoding='utf-8'))
  model = config_lib.from_config_dict(header['config']).model
  entries = bagel_weights.entries(_shapes(model))
  ours, fixed = tensor_files.Reader(source / export_lib.PARAMS), tensor_files.Reader(kept / _FIXED)
  with export_lib.replacing(to) as partial:
    for name in manifest['files']:
      shutil.copyfile(kept / name, partial / name)
    for file, text in manifest['headers'].items():
      start = text.encode()
      start = len(start).to_bytes(8, 'little') + start
      kinds = tensor_files.kinds(start)
      blocks = (
        block.astype(kinds[name].dtype, copy=False)
        for name in tensor_files.names_in_order(start)
        for block in _released_blocks(entries[file, name], fixed if entries[file, name].path in fixed.kinds else ours)
      )
      tensor_files.write(partial / file, start, blocks)


def main(arguments: Sequence[str] | None = None):
  """The command line."""
  parser = argparse.ArgumentParser(
    prog='python -m pdgen.convert',
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(dest='command', required=True)
  for name, what in (('import', 'a released folder to a checkpoint'), ('export', 'a checkpoint to a released folder')):
    command = commands.add_parser(name, help=what, allow_abbrev=False)
    command.add_argument('--from', dest='source', required=True, help='folder to read')
    command.add_argument('--to', required=True, help='folder to write, new or empty')
    if name == 'import':
      command.add_argument('--max_latent_size', type=int, help='latent patches a side that the checkpoint must have')
      command.add_argument('--image_size', type=int, help='pixels a side of the pictures to paint')
  flags = vars(parser.parse_args(arguments))
  began, name = time.perf_counter(), flags.pop('command')
  try:
    (import_bagel if name == 'import' else export_bagel)(**flags)
  except (FileNotFoundError, ValueError) as error:
    parser.error(str(error))
  size = sum(path.stat().st_size for path in pathlib.Path(flags['to']).rglob('*') if path.is_file())
  print(f'{flags["to"]}: {size / 1e9:.2f} GB in {time.perf_counter() - began:.1f} s')


def _check_empty(to: pathlib.Path):
  if to.exists() and (not to.is_dir() or any(to.iterdir())):
    raise ValueError(f'{to} is not empty, and nothing there is to be lost: name another folder, or remove it.')


def _check_is_bagel(source: pathlib.Path):
  missing = [name for name in (*presets.JSON, *_WEIGHTS) if not (source / name).is_file()]
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


def _model(source: pathlib.Path, ema: tensor_files.Reader, max_latent_size: int | None) -> config_lib.ModelConfig:
  """What the json files describe, once the side of the table of latent positions agrees with all who tell it."""
  halves = {kind.dtype.name for kind in ema.kinds.values()}
  try:
    model = presets.from_released(
      *(_json(source / name) for name in (*presets.JSON, 'config.json', 'ae_config.json')),
      dtype='bfloat16' if 'bfloat16' in halves else 'float32',
    )
  except KeyError as error:
    raise ValueError(f'The json files of {source} lack {error}.') from error
  table = ema.kinds.get('latent_pos_embed.pos_embed')
  side = math.isqrt(table.shape[0]) if table else model.max_latent_size
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
  shapes = {path: leaf.shape for path, leaf in sharding.named_leaves(state_lib.abstract_params(model))}
  return {**shapes, **{path: (side**2, model.width) for path, side in _tables(model).items()}}


def _tables(model: config_lib.ModelConfig) -> dict[str, int]:
  """Patches a side of the fixed tables."""
  sides = {'latent_position': model.max_latent_size, 'vit_position': model.vit.max_patches}
  return {f'{bagel_weights.FIXED}{name}': side for name, side in sides.items()}


def _check_tensors(source: pathlib.Path, entries: Mapping, readers: Mapping[str, tensor_files.Reader]):
  """Raises one error for all tensors that are missing, unexpected, of another shape or type."""
  kinds = {(file, name): kind for file, reader in readers.items() for name, kind in reader.kinds.items()}
  lines = bagel_weights.disagreements(entries, {key: kind.shape for key, kind in kinds.items()})
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


def _check_tables(model: config_lib.ModelConfig, ema: tensor_files.Reader):
  """The fixed tables are computed, so that stored ones must be those that are computed."""
  for entry in bagel_weights.entries({path: (side**2, model.width) for path, side in _tables(model).items()}).values():
    side, dtype = _tables(model)[entry.path], ema.kinds[entry.name].dtype
    for rows in tensor_files.pieces(side**2, 4 * model.width):
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
  readers: Mapping[str, tensor_files.Reader],
  entries: Mapping[tuple[str, str], bagel_weights.Entry],
  model: config_lib.ModelConfig,
):
  """All of the folder but its parameters: json and tokenizer files, headers, fixed tables; a tokenizer in any case."""
  folder.mkdir()
  files = sorted(path.name for path in source.iterdir() if path.is_file() and path.suffix in ('.json', '.txt'))
  for name in files:
    shutil.copyfile(source / name, folder / name)
  headers = {file: reader.header[8:].decode() for file, reader in readers.items()}
  text = json.dumps(dict(files=files, headers=headers))
  (folder / _MANIFEST).write_text(text, encoding='utf-8')
  fixed = {p: found for p, found in _by_path(entries).items() if p.startswith(bagel_weights.FIXED)}
  _write_ours(folder / _FIXED, fixed, readers)

  told = _json(source / 'config.json').get('new_token_ids', {})
  told = {ours: told[name] for name, ours in _TOKEN_IDS.items() if name in told}
  if not byte_level.is_tokenizer(folder):
    print(f'{source} has no tokenizer: texts are read and written as bytes.')
    description = byte_level.bytes_only(told, rows=model.vocab_size)
    (folder / byte_level.JSON).write_text(json.dumps(description), encoding='utf-8')
  words = tokenizer_lib.load(str(folder))
  differ = {name: i for name, i in told.items() if getattr(words.specials, name) != i}
  if differ or words.vocab_size > model.vocab_size:
    raise ValueError(
      f'The tokenizer of {source} has {words.vocab_size} ids, {words.specials}. It does not fit: the weights have '
      f'{model.vocab_size} rows, and config.json says {told}.'
    )


def _by_path(
  entries: Mapping[tuple[str, str], bagel_weights.Entry],
) -> dict[str, list[bagel_weights.Entry]]:
  """The released tensors of each of our arrays, by layer."""
  found: dict[str, list[bagel_weights.Entry]] = {}
  for entry in entries.values():
    found.setdefault(entry.path, []).append(entry)
  return {path: sorted(parts, key=lambda e: e.layer or 0) for path, parts in found.items()}


def _write_ours(
  path: pathlib.Path, ours: Mapping[str, list[bagel_weights.Entry]], readers: Mapping[str, tensor_files.Reader]
) -> str:
  """A file of our arrays, each from its released parts. Returns its SHA-256."""
  kinds = {}
  for name, parts in ours.items():
    one = parts[0]
    shape = bagel_weights.to_ours(np.empty(one.shape, np.bool_), one.layout).shape if len(one.shape) > 1 else one.shape
    stack = () if one.layer is None else (len(parts),)
    kinds[name] = tensor_files.Kind(readers[one.file].kinds[one.name].dtype, (*stack, *shape))
  blocks = (block for parts in ours.values() for part in parts for block in _our_blocks(part, readers[part.file]))
  return tensor_files.write(path, tensor_files.header(kinds), blocks)


def _our_blocks(entry: bagel_weights.Entry, reader: tensor_files.Reader) -> Iterator[np.ndarray]:
  """A released tensor with our axes, as blocks that follow one another in our file."""
  for index in _blocks(entry, entry.shape, reader):
    yield bagel_weights.to_ours(reader.read(entry.name, index), entry.layout)


def _released_blocks(entry: bagel_weights.Entry, reader: tensor_files.Reader) -> Iterator[np.ndarray]:
  """Its part of our array with the released axes, as blocks that follow one another in a released file."""
  layer = () if entry.layer is None else (entry.layer,)
  for index in _blocks(entry, reader.kinds[entry.path].shape[len(layer) :], reader):
    yield bagel_weights.to_released(reader.read(entry.path, (*layer, *index)), entry.layout)


def _blocks(
  entry: bagel_weights.Entry, shape: tuple[int, ...], reader: tensor_files.Reader
) -> Iterator[tuple[slice, ...]]:
  """Parts of a tensor that are read in turn: along the axis that comes first once it is transposed."""
  item = next(iter(reader.kinds.values())).dtype.itemsize
  if entry.layout == bagel_weights.CONV:
    return iter([()])  # a few megabytes at most
  axis = 1 if entry.layout == bagel_weights.LINEAR else 0
  pieces = tensor_files.pieces(shape[axis], math.prod(shape) // shape[axis] * item)
  return ((*(slice(None),) * axis, piece) for piece in pieces)


def _json(path: pathlib.Path) -> dict[str, Any]:
  """The content of a json file; nothing of one that is not there."""
  if not path.is_file():
    return {}
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path} is no json ({error}).') from error


if __name__ == '__main__':
  main()
