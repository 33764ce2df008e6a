"""The packed batch: two streams of tokens, with the metadata that decides who sees whom.

A row holds several samples (trajectories) one after the other, once as und tokens (text, boundary tokens, ViT
tokens) and once as gen tokens (latents, noised and clean). Named tuples, so that numpy builds them and
jax takes them as pytrees without this module importing jax.
"""

from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy on the host, jax.Array on a device


class TokenMeta(NamedTuple):
  """Who a token is to attention and RoPE. Every field is int32[B, T]. See `core.masks.visible`.

  segment: sample of the row, from 1; 0 is padding.
  order: place in the interleaved sequence of the sample, from 0, counting both streams.
  reach: last order that the token may see outside its own span. Its own order for text; for a text-blind noised
    copy (guidance) the last order of the picture before, so that it does not see the texts since.
  span: number of the picture copy the token belongs to, from 1 in each sample (attention is full inside a span);
    0 for text, which is causal.
  noised: 1 in a noised copy, whose tokens nobody outside the copy may see.
  position: RoPE position.
  """

  segment: Array
  order: Array
  reach: Array
  span: Array
  noised: Array
  position: Array


class UndStream(NamedTuple):
  """TokenMeta of the understanding expert: text, boundary and ViT tokens.

  tokens: metadata, int32[B, U] each.
  token_id: int32[B, U] vocabulary id; 0 where the token is a ViT patch or padding.
  label: int32[B, U] id that the token must predict; read only where weight > 0.
  weight: f32[B, U] weight in the cross-entropy; 0 = not supervised.
  picture: int32[B, U] picture of the row that a ViT token looks at, -1 for tokens with a vocabulary id.
  patch: int32[B, U] ViT patch of that picture, row-major; with `PackedBatch.vit`, the token's place there. 0 elsewhere.
  """

  tokens: TokenMeta
  token_id: Array
  label: Array
  weight: Array
  picture: Array
  patch: Array


class GenStream(NamedTuple):
  """TokenMeta of the generation expert: VAE latents, noised and clean.

  tokens: metadata, int32[B, G] each.
  picture: int32[B, G] picture of the row that the token is a patch of.
  patch: int32[B, G] position id of the latent patch, row * max_latent_size + column (BAGEL): a place has the same id in
    pictures of every size.
  copy: int32[B, G] number of the noised copy in the row, from 1: one timestep a copy; 0 = clean, t = 0.
  weight: f32[B, G] weight in the flow loss; 0 on clean copies and padding.
  """

  tokens: TokenMeta
  picture: Array
  patch: Array
  copy: Array
  weight: Array


class VitStream(NamedTuple):
  """What the ViT sees, where it sees other pixels than the codec does (BAGEL: another size of the picture).

  pixels: uint8 (or float32 in [-1, 1]) [B, V, 3 p p] patches of all pictures of the row, one picture after the other.
  position: int32[B, V] position id of each patch, row * max_patches + column.
  image: int32[B, V] picture of each patch, from 1 in each row; 0 is padding.
  """

  pixels: Array
  position: Array
  image: Array


class PackedBatch(NamedTuple):
  """One batch of packed rows.

  und, gen: the two streams.
  pictures: uint8 (or float32 in [-1, 1]) [B, P, H, W, 3] every picture of the row once, however many copies of it the
    streams hold.
  grids: int32[B, P, 2] rows and columns of latent patches that each picture fills, from the top left corner of its
    H x W; None: all of them fill it. What lies outside counts as zero, whatever it holds.
  vit: the ViT's patches; None: it sees `pictures`, which are then all of one size.
  """

  und: UndStream
  gen: GenStream
  pictures: Array
  grids: Array | None = None
  vit: VitStream | None = None


def check(batch: PackedBatch) -> PackedBatch:
  """Returns the batch, or raises ValueError naming the first field whose shape does not fit."""
  rows = batch.pictures.shape[0]
  for stream_name, stream in (('und', batch.und), ('gen', batch.gen)):
    want = (rows, stream.tokens.segment.shape[-1])
    fields = {**stream.tokens._asdict(), **{k: v for k, v in stream._asdict().items() if k != 'tokens'}}
    for name, value in fields.items():
      if tuple(value.shape) != want:
        raise ValueError(f'batch.{stream_name}.{name} has shape {tuple(value.shape)}; the batch needs {want}.')
  if batch.grids is not None and tuple(batch.grids.shape) != (*batch.pictures.shape[:2], 2):
    raise ValueError(f'batch.grids has shape {tuple(batch.grids.shape)}; it must be [B, P, 2].')
  if batch.vit is not None and {tuple(x.shape[:2]) for x in batch.vit} != {(rows, batch.vit.image.shape[-1])}:
    raise ValueError(f'batch.vit has shapes {[tuple(x.shape) for x in batch.vit]}; all must begin with [B, V].')
  if batch.pictures.ndim != 5 or batch.pictures.shape[-1] != 3:
    raise ValueError(f'batch.pictures has shape {tuple(batch.pictures.shape)}; it must be [B, P, H, W, 3].')
  return batch


def position_ids(rows: int, columns: int, per_side: int, *, interpolate: bool = False) -> np.ndarray:
  """Position ids of a picture of rows x columns patches in a table of per_side x per_side: int32[rows * columns].

  Row-major; the id of a patch is row * per_side + column (BAGEL's `get_flattened_position_ids_extrapolate`):

  >>> position_ids(2, 3, 10)
  array([ 0,  1,  2, 10, 11, 12], dtype=int32)

  interpolate: the picture is spread over the whole table (BAGEL's `.._interpolate`, for `interpolate_pos`). The
  bucket of a coordinate is decided in float32, whose rounding the reference's ids carry (QUIRKS B10):

  >>> position_ids(2, 3, 10, interpolate=True)
  array([ 0,  3,  6, 50, 53, 56], dtype=int32)

  Raises: ValueError when the picture has more patches a side than the table, and is not interpolated.
  """
  if interpolate:
    row, column = (_buckets(n, per_side) for n in (rows, columns))
  else:
    if max(rows, columns) > per_side:
      raise ValueError(f'A picture of {rows} x {columns} patches does not fit {per_side} position ids a side.')
    row, column = np.arange(rows), np.arange(columns)
  return (row[:, None] * per_side + column[None]).reshape(-1).astype(np.int32)


def fill(batch: PackedBatch) -> dict[str, float]:
  """Share of each budget that holds tokens of samples, not padding."""
  return {
    'und': float(np.mean(np.asarray(batch.und.tokens.segment) > 0)),
    'gen': float(np.mean(np.asarray(batch.gen.tokens.segment) > 0)),
  }


def _buckets(count: int, per_side: int) -> np.ndarray:
  """Bucket, of per_side equal ones of [0, 1), of each of the fractions 0, 1 / count, .. : int64[count]."""
  return np.searchsorted(
    _float32_range(1 / per_side, per_side - 1), _float32_range(0.0, count, 1 / count), side='right'
  )


def _float32_range(start: float, count: int, step: float | None = None) -> np.ndarray:
  """start + i step, rounded as torch.arange does it: in blocks of 16, from the rounded start of each eight."""
  step = start if step is None else step
  i = np.arange(count)
  in_eights = (start + step * (i // 8 * 8)).astype(np.float32).astype(np.float64) + step * (i % 8)
  return np.where(i < count // 16 * 16, in_eights, start + step * i).astype(np.float32)
