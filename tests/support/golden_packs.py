"""The reference's packs, rebuilt from its sequence plans: shared by the parity tests of packing and of training."""

import jax
import numpy as np

from pdgen.core import config, packed
from pdgen.data import items as items_lib
from pdgen.data import packing
from support import golden_folder

# BAGEL weighs the labels of a text by 1 / sqrt(length) and boundary labels by 1, and drops what a variant says.
SEQUENCE = config.SequenceConfig(length_weighting=True)
_TEXT, _VIT, _VAE = range(3)


def samples(file, prefix, *, images=None):
  """Items of each sample of a pack. images: prefix of where they are; None: zeros of the size of the video's frames."""
  out = []
  while golden_folder.matching(f'{file}/{prefix}in{len(out)}_plan'):
    out.append(_items(file, f'{prefix}in{len(out)}', images, len(out)))
  assert out
  return out


def _items(file, sample, images, number):
  ids = iter(_listed(f'{file}/{sample}_text'))
  pixels = iter(_listed(f'{images}in{number}_image') if images else ())
  items = []
  for row in golden_folder.integers(f'{file}/{sample}_plan'):
    kind, loss, special_loss, special_label, droppable, starts, _, frame_delta = row
    shared = dict(end_label=special_label if special_loss else None, droppable=bool(droppable))
    if kind == _TEXT:
      items.append(items_lib.Text(ids=tuple(golden_folder.integers(next(ids))), weights=float(loss), **shared))
      continue
    picture = golden_folder.value(next(pixels)).transpose(1, 2, 0) if images else _empty_frame(file)
    if kind == _VIT:
      items.append(items_lib.Patches(pixels=picture, **shared))
    else:
      video = dict(goes_on=not starts, frame_delta=None if frame_delta == -1 else frame_delta)
      items.append(items_lib.Latents(pixels=picture, learned=bool(loss), **shared, **video))
  assert next(ids, None) is None and next(pixels, None) is None
  return items


def _listed(prefix):
  """Arrays prefix0, prefix1, .. ."""
  return [f'{prefix}{i}' for i in range(len(golden_folder.matching(f'{prefix}*')))]


def _empty_frame(file):
  rows, columns = golden_folder.integers(f'{file}/vid_frame_tokens')
  patch = golden_folder.model_config().codec.patch
  return np.zeros([rows * patch, columns * patch, 3], np.float32)


def pack(samples_, *, canvas, drop=(), spare=0, length_weighting=True):
  """The samples in one row, without batch axis. drop: SequenceConfig fields that are 1. spare: places left empty."""
  sequence = config.SequenceConfig(length_weighting=length_weighting, **{**_NEVER, **{field: 1.0 for field in drop}})
  rng, model = np.random.default_rng(0), golden_folder.model_config()
  kept = [items_lib.drop(items, sequence=sequence, rng=rng) for items in samples_]
  rows = [
    items_lib.build(items, specials=golden_folder.specials(), model=model, sequence=sequence, canvas=canvas)
    for items in kept
  ]
  total = np.sum([packing.sizes(row) for row in rows], axis=0) + spare
  return packing.pack_row(rows, packed.RowBudget(*total.tolist()))


_NEVER = dict(drop_text=0.0, drop_clean=0.0, drop_vit=0.0)


def canvas(samples_):
  """The smallest (H, W) that holds every picture for the VAE: what the reference pads a pack to."""
  pictures = [item.pixels.shape for items in samples_ for item in items if isinstance(item, items_lib.Latents)]
  return tuple(np.max(pictures, axis=0)[:2].tolist())


def places(row):
  """Where the reference puts each und and each gen token of the row: in the order of samples, then of tokens."""
  tokens = packed.TokenMeta(*(np.concatenate(pair) for pair in zip(row.und.tokens, row.gen.tokens, strict=True)))
  order = np.lexsort((tokens.order, np.where(tokens.segment > 0, tokens.segment, np.iinfo(np.int32).max)))
  place = np.empty_like(order)
  place[order] = np.arange(len(order))
  return np.split(place, [len(row.und.label)])


def in_reference_order(row, und, gen):
  """Values of both streams [U, ..] and [G, ..] in the order of the reference's one sequence, without padding."""
  out = np.concatenate([np.asarray(jax.device_get(x)) for x in (und, gen)])
  result = np.empty_like(out)
  result[np.concatenate(places(row))] = out
  return result[: int((row.und.tokens.segment > 0).sum() + (row.gen.tokens.segment > 0).sum())]
