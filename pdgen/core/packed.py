"""The packed batch: two streams of tokens with the metadata that attention goes by. Fields, shapes and dtypes: `spec`.

A row holds several samples (trajectories) one after the other, once as und tokens (text, boundary tokens, ViT
tokens) and once as gen tokens (latents, noised and clean). Named tuples, so that numpy builds them and
jax takes them as pytrees without this module importing jax.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy on the host, jax.Array on a device


class TokenMeta(NamedTuple):
  """Per-token metadata for the attention mask (`core.masks.visible`) and RoPE. Every field is int32[B, T]."""

  segment: Array  # Sample of the row, from 1; 0 is padding.
  order: Array  # Place in the interleaved sequence of the sample, from 0, counting both streams.
  # Last visible order: the last one that the token may see outside its own span. Its own order for text; for a
  # text-blind noised copy (guidance) that of the picture before, so that it does not see the texts since.
  reach: Array
  # Number of the picture copy the token belongs to, from 1 in each sample (attention is full inside a span); 0 for
  # text, which is causal.
  span: Array
  noised: Array  # 1 in a noised copy, whose tokens nobody outside the copy may see.
  position: Array  # RoPE position.


class UndStream(NamedTuple):
  """Tokens of the understanding expert: text, boundary and ViT tokens."""

  tokens: TokenMeta  # int32[B, U] a field.
  token_id: Array  # int32[B, U], vocabulary id; 0 where the token is a ViT patch or padding.
  label: Array  # int32[B, U], id that the token must predict; read only where weight > 0.
  weight: Array  # f32[B, U], weight in the cross-entropy; 0 = not supervised.
  picture: Array  # int32[B, U], picture of the row that a ViT token looks at; -1 for tokens with a vocabulary id.
  # int32[B, U], ViT patch of that picture, row-major; with `PackedBatch.vit`, the token's place there. 0 elsewhere.
  patch: Array


class GenStream(NamedTuple):
  """Tokens of the generation expert: VAE latents, noised and clean."""

  tokens: TokenMeta  # int32[B, G] a field.
  picture: Array  # int32[B, G], picture of the row that the token is a patch of.
  # int32[B, G], position id of the latent patch, row * max_latent_size + column (BAGEL): a place has the same id in
  # pictures of every size.
  patch: Array
  copy: Array  # int32[B, G], number of the noised copy in the row, from 1: one timestep a copy; 0 = clean, t = 0.
  weight: Array  # f32[B, G], weight in the flow loss; 0 on clean copies and padding.


class VitStream(NamedTuple):
  """What the ViT sees, where it sees other pixels than the codec does (BAGEL: another size of the picture)."""

  # uint8 (or f32 in [-1, 1]) [B, V, 3 p p], patches of all pictures of the row, one picture after the other.
  pixels: Array
  position: Array  # int32[B, V], position id of each patch, row * max_patches + column.
  image: Array  # int32[B, V], picture of each patch, from 1 in each row; 0 is padding.


class PackedBatch(NamedTuple):
  """One batch of packed rows."""

  und: UndStream
  gen: GenStream
  # uint8 (or f32 in [-1, 1]) [B, P, H, W, 3], every picture of the row once, however many copies of it the streams
  # hold. H x W is the canvas of the batch.
  pictures: Array
  # int32[B, P, 2], rows and columns of latent patches that each picture fills, from the top left corner of the canvas;
  # None: all of them fill it. What lies outside counts as zero, whatever it holds.
  grids: Array | None = None
  vit: VitStream | None = None  # The ViT's patches; None: it sees `pictures`, which are then all of one size.


class RowBudget(NamedTuple):
  """What a row holds. Names as in `core.config.DataConfig`."""

  und_tokens: int
  gen_tokens: int
  pictures: int
  vit_tokens: int = 0  # 0 where samples carry no `PackedBatch.vit`.


@dataclasses.dataclass(frozen=True)
class Field:
  """An array of a batch: shape, dtype, and the value of its padding."""

  shape: tuple[int, ...]
  dtype: str = 'int32'
  padding: int = 0


def spec(
  budget: RowBudget,
  *,
  canvas: tuple[int, int],
  rows: tuple[int, ...] = (),
  any_size: bool = False,
  vit_values: int = 0,
  pixels: str = 'uint8',
) -> Any:
  """The fields of a batch: a `PackedBatch` of `Field`.

  Args:
    budget: tokens and pictures of a row.
    canvas: (H, W) of the array of pictures.
    rows: leading dimensions; () for one row without batch axis.
    any_size: pictures have sizes of their own (`PackedBatch.grids`).
    vit_values: 3 p p of a ViT patch, where the batch carries `PackedBatch.vit`; 0: it does not.
    pixels: dtype of pictures and of ViT patches.
  """

  def stream(tokens: int, **padding: int) -> Callable[..., Field]:
    return lambda dtype='int32', name='': Field((*rows, tokens), dtype, padding.get(name, 0))

  def meta(field: Callable[..., Field]) -> TokenMeta:
    return TokenMeta(field(), field(), field(), field(), field(), field())

  u, g, v = stream(budget.und_tokens, picture=-1), stream(budget.gen_tokens), stream(budget.vit_tokens)
  vit = VitStream(pixels=Field((*rows, budget.vit_tokens, vit_values), pixels), position=v(), image=v())
  return PackedBatch(
    und=UndStream(meta(u), token_id=u(), label=u(), weight=u('float32'), picture=u(name='picture'), patch=u()),
    gen=GenStream(meta(g), picture=g(), patch=g(), copy=g(), weight=g('float32')),
    pictures=Field((*rows, budget.pictures, *canvas, 3), pixels),
    grids=Field((*rows, budget.pictures, 2)) if any_size else None,
    vit=vit if vit_values else None,
  )


def spec_of(batch: PackedBatch) -> Any:
  """The fields that a batch, or one row without batch axis, must have, read off its largest parts."""
  *rows, pictures, height, width, _ = batch.pictures.shape
  tokens = 0 if batch.vit is None else batch.vit.image.shape[-1]
  budget = RowBudget(batch.und.label.shape[-1], batch.gen.patch.shape[-1], pictures, tokens)
  return spec(
    budget,
    canvas=(height, width),
    rows=tuple(rows),
    any_size=batch.grids is not None,
    vit_values=0 if batch.vit is None else batch.vit.pixels.shape[-1],
    pixels=str(batch.pictures.dtype),
  )


def map_fields(f: Callable[..., Any], tree: Any, *others: Any, name: str = 'batch') -> Any:
  """The tree of named tuples with `f(name, leaf, *leaves of the others)` in place of every leaf; None stays None.

  >>> map_fields(lambda name, x, y: f'{name}: {x + y}', TokenMeta(*range(6)), TokenMeta(*range(6))).reach
  'batch.reach: 4'
  """
  if tree is None:
    return None
  if not hasattr(tree, '_fields'):
    return f(name, tree, *others)
  parts = (
    map_fields(f, part, *(getattr(other, field) for other in others), name=f'{name}.{field}')
    for field, part in zip(tree._fields, tree, strict=True)
  )
  return type(tree)(*parts)


def check(batch: PackedBatch) -> PackedBatch:
  """Returns the batch, or raises ValueError naming the first field whose shape or dtype is not that of `spec`."""
  if batch.pictures.ndim != 5 or batch.pictures.shape[-1] != 3:
    raise ValueError(f'batch.pictures has shape {tuple(batch.pictures.shape)}; it must be [B, P, H, W, 3].')

  def compare(name: str, field: Field, value: Array):
    have = tuple(value.shape), str(value.dtype)
    is_pixels = name == 'batch.vit.pixels' and have[1] in ('uint8', 'float32')
    if have[0] != field.shape or (have[1] != field.dtype and not is_pixels):
      raise ValueError(f'{name} is {have[1]}{list(have[0])}; the batch needs {field.dtype}{list(field.shape)}.')

  map_fields(compare, spec_of(batch), batch)
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
