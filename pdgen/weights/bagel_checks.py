"""Whether the tensors of a released folder are those of the model that its json files describe."""

from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from pdgen.models import layers
from pdgen.weights import bagel, released, safetensors_io, shards

# How far a stored sin-cos table may be from ours: its type's rounding of values up to 1.
_TABLE_TOLERANCE = {'float32': 1e-4, 'float16': 1e-3, 'bfloat16': 1e-2}
_MOST = 4  # Shapes, or parts of the model, that are listed one by one.
Key = tuple[str, str]  # Released file and name of a tensor.


def check_tensors(source: released.Released, entries: Mapping[Key, bagel.Entry], tensors: Mapping[str, shards.Tensors]):
  """Raises one error, with a line for each cause, when tensors are missing, unexpected or of another shape.

  Args:
    source: the folder and its base.
    entries: the tensors of the model by released file and name.
    tensors: what there is, by released file.
  """
  kinds = {(file, name): kind for file, group in tensors.items() for name, kind in group.infos.items()}
  of_base = {(file, name) for file in tensors for name in source.base_places(file)}
  differ = [key for key in sorted(entries.keys() & kinds) if entries[key].shape != kinds[key].shape]
  lines = disagreements(entries, {key: kind.shape for key, kind in kinds.items()}, filled=of_base & kinds.keys())
  if source.base and (filled := [key for key in differ if key in of_base]):
    name, shape, want = filled[0][1], list(kinds[filled[0]].shape), list(entries[filled[0]].shape)
    lines.append(
      f'mis-shaped: {len(filled)} tensors that {source.base.path} fills in; the first: {name} {shape}, {want} wanted. '
      'It is not the model that this one was tuned from.'
    )
  if not lines:
    return
  missing = any(line.startswith('missing') for line in lines)
  plain = not any('_moe_gen' in name for _, name in kinds)
  hint = ' There is no *_moe_gen weight: this is a plain Qwen2, without the experts that paint.' if plain else ''
  hint += f' {source.advice}' if missing else ''
  home = source.home(released.LLM)
  described = 'its json files describe' if home is source.own else f'the json files of {home.path} describe'
  count = len(entries.keys() ^ kinds.keys()) + len(differ)
  raise ValueError(
    f'{count} tensors of {source.own.path} are not those that {described}.{hint}'
    + _with_names(source, f' {lines[0]}' if len(lines) == 1 else '\n  ' + '\n  '.join(lines))
  )


def _with_names(source: released.Released, text: str) -> str:
  """The released names of files as the folder calls them."""
  for file, one in source.own.weights.items():
    text = text.replace(file, one.path.name)
  return text


def disagreements(
  wanted: Mapping[Key, bagel.Entry], found: Mapping[Key, tuple[int, ...]], *, filled: Set[Key] = frozenset()
) -> list[str]:
  """One line for each cause: a tensor or a group of them that is missing, unexpected or of another shape.

  Args:
    wanted: released tensors by released file and name.
    found: shapes by released file and name.
    filled: which of them a base fills in: its shapes are told elsewhere.
  """
  lacking, extra = sorted(wanted.keys() - (found.keys() - filled)), sorted(found.keys() - wanted)
  lines = []
  if prefix := _common_prefix(lacking, extra):
    lines = [f'prefixed: all {len(extra)} names begin with {prefix!r} ({extra[0][0]}). Save them without it.']
    meant = {(file, name.removeprefix(prefix)) for file, name in extra}
  elif prefix := _lost_prefix(lacking, extra):
    lines = [f'unprefixed: all {len(extra)} names lack {prefix!r} ({extra[0][0]}). Save them with it.']
    meant = {(file, prefix + name) for file, name in extra}
  else:
    meant = set()
  lacking = [key for key in lacking if key not in meant and key not in filled]
  extra = [] if meant else extra
  vit = [key for key in wanted if key[0] == bagel.EMA and key[1].startswith(bagel.OF_VIT)]
  if vit and set(vit) <= set(lacking):
    lacking = [key for key in lacking if not key[1].startswith(bagel.OF_VIT)]
    lines.append(
      f'missing: the ViT ({len(vit)} tensors vit_model.*, connector.*, vit_pos_embed.*; {bagel.EMA}), as fine-tunes '
      'for text to image lack it. Add those of the release that it was tuned from (--base), or say '
      '"visual_und": false in config.json.'
    )
  lines += _grouped('missing', lacking, found, {key: entry.shape for key, entry in wanted.items()})
  lines += _grouped('unexpected', extra, wanted, found)
  differ = [key for key in sorted(wanted.keys() & found.keys() - filled) if wanted[key].shape != found[key]]
  shapes = [f'{key[1]} {list(found[key])}, {list(wanted[key].shape)} wanted ({key[0]})' for key in differ]
  if len(shapes) > _MOST:
    files = ', '.join(bagel.JSON)
    shapes = [f'{len(shapes)} tensors; the first: {shapes[0]}. Are the sizes in {files} those of the weights?']
  return lines + [f'mis-shaped: {line}' for line in shapes]


def _common_prefix(lacking: list[Key], extra: list[Key]) -> str:
  """What stands before wanted names in all unexpected ones, which are of one file; empty: nothing."""
  if len({file for file, _ in extra}) != 1:
    return ''
  file, first = extra[0]
  ends = [name for of, name in lacking if of == file and first.endswith(f'.{name}')]
  prefix = first.removesuffix(max(ends, key=len)) if ends else ''
  known = set(lacking)
  all_begin = all(name.startswith(prefix) and (file, name.removeprefix(prefix)) in known for _, name in extra)
  return prefix if all_begin else ''


def _lost_prefix(lacking: list[Key], extra: list[Key]) -> str:
  """What all unexpected names, which are of one file, lack to be wanted ones; empty: nothing."""
  if len({file for file, _ in extra}) != 1:
    return ''
  file, first = extra[0]
  known = set(lacking)
  ends = [name.removesuffix(first) for of, name in lacking if of == file and name.endswith(f'.{first}')]
  return next((start for start in ends if all((file, start + name) in known for _, name in extra)), '')


def _grouped(
  what: str,
  names: list[Key],
  others: Mapping[Key, Any],
  shapes: Mapping[Key, tuple[int, ...]],
) -> list[str]:
  """A line for each largest part of the model of which all tensors are so. others: those that are not."""
  groups: dict[Key, list[Key]] = {}
  generation = [key for key in names if '_moe_gen' in key[1]]
  if len(generation) > _MOST and not any('_moe_gen' in name for _, name in others):
    groups[bagel.EMA, '*_moe_gen'] = generation
    names = [key for key in names if key not in generation]
  kept = {(file, folder) for file, name in others for folder in _folders(name)}
  for file, name in names:
    part = next((folder for folder in _folders(name) if (file, folder) not in kept), name)
    groups.setdefault((file, part), []).append((file, name))
  if len(groups) > _MOST:  # Of a part of a model, all the rest.
    count, (file, name) = sum(map(len, groups.values())), next(iter(groups.values()))[0]
    return [f'{what}: {count} tensors in {len(groups)} parts of the model; the first: {name} ({file})']
  return [
    f'{what}: {keys[0][1]} {list(shapes[keys[0]])} ({file})' if len(keys) == 1
    else f'{what}: {part}.* ({len(keys)} tensors, {file})'
    for (file, part), keys in groups.items()
  ]  # fmt: skip


def _folders(name: str) -> list[str]:
  """The parts of the model that a released name lies in, largest first."""
  parts = name.split('.')
  return ['.'.join(parts[:n]) for n in range(1, len(parts))]


def check_tables(sides: Mapping[str, int], width: int, tensors: shards.Tensors):
  """The fixed tables are computed, so that stored ones must be those that are computed.

  Args:
    sides: patches a side of each, by our path.
    width: of the model.
    tensors: of ema.safetensors.

  Raises: ValueError for one that differs.
  """
  for entry in bagel.entries({path: (side**2, width) for path, side in sides.items()}).values():
    side, dtype = sides[entry.path], tensors.infos[entry.name].dtype
    for rows in safetensors_io.block_slices(side**2, 4 * width):
      row, column = np.divmod(np.arange(rows.start, rows.stop), side)
      computed = np.asarray(layers.sincos_2d(row, column, width))
      error = np.abs(computed - tensors.read(entry.name, (rows,)).astype(np.float32)).max()
      if not error <= _TABLE_TOLERANCE[dtype.name]:
        raise ValueError(
          f'{entry.name} is off by up to {error:.2g} from the sin-cos table that BAGEL has and pdgen computes in its '
          'place. The model was trained with other positions.'
        )
