"""The canvas of a batch: its rows paint pictures of one size, or each of its own with the rest of the canvas masked.

A batch of one size has no masks: every picture fills the canvas. Where sizes differ, a row has as many cells as the
largest picture (latents, and patches of the ViT), a flat list of which its own come first, row-major in its own
picture; the others are padding, of which nothing sees anything and nothing enters the cache. Noise is drawn by the
number of a cell, so that a row gets what it gets alone. Pixels lie in the top left corner of a canvas that holds every
picture, and the codec is told which part each fills (`models.codecs`). All of it is data of the rows (`Grids`): one
program paints any sizes that fit its canvas.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.models import codecs, siglip

Size = tuple[int, int] | None  # (H, W) of pictures; None: the model's own.


class Most(NamedTuple):
  """The most cells that the picture of a row has, where sizes differ. Static."""

  latent: int
  vit: int  # 0 without a ViT.


class Grids(struct.PyTreeNode):
  """Rows and columns of cells of the pictures that each trajectory paints. Every field int32[B, 2]."""

  latent: jax.Array
  vit: jax.Array  # 0 without a ViT.

  @classmethod
  def of(cls, cfg: config_lib.ModelConfig, sizes: Sequence[tuple[int, int]]) -> 'Grids':
    """sizes: (H, W) of each."""
    grids = [cfg.latent_grid_of(size) for size in sizes], [cfg.vit_grid_of(size) for size in sizes]
    return cls(*(jnp.asarray(grid, jnp.int32) for grid in grids))


class Cells(NamedTuple):
  """Cells of a copy of a picture, of every row."""

  total: int  # Of a row; those of its own picture come first.
  own: Any  # int32[1 or B, 1], how many these are.
  ids: Any  # int32[1 or B, total], position ids.

  @property
  def here(self) -> Any:
    """Which cells are of the row's own picture: bool[1 or B, total]."""
    return np.arange(self.total, dtype=np.int32)[None] < self.own

  def mask(self, x: jax.Array) -> jax.Array:
    """x: [B, total, C], zero where no picture is."""
    return x if isinstance(self.own, np.ndarray) else jnp.where(self.here[..., None], x, jnp.zeros((), x.dtype))


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where the cells and the pixels of a batch lie; `layout` makes one."""

  cfg: config_lib.ModelConfig
  size: tuple[int, int]  # (H, W) of the canvas.
  latent: Cells
  vit: Cells
  grids: Grids | None  # None: all pictures have the size of the canvas.

  @property
  def picture_tokens(self) -> int | jax.Array:
    """Tokens of a painted picture in the context (`ModelConfig.picture_tokens_of`): of all rows, or int32[B]."""
    if self.grids is None:
      return self.cfg.picture_tokens_of(self.size)
    return (self.latent.own + 2 + (self.vit.own + 2 if self.vit.total else 0))[:, 0]

  @property
  def most_tokens(self) -> int:
    """Of any row."""
    return self.latent.total + 2 + (self.vit.total + 2 if self.vit.total else 0)

  def slots(self, tokens: packed.TokenMeta) -> jax.Array:
    """Numbers of new tokens in the cache: int32[1 or B, T], without gaps. tokens: that are written."""
    if self.grids is None:
      return jnp.arange(tokens.segment.shape[1])[None]
    return jnp.cumsum(tokens.segment > 0, axis=1) - 1

  def decode(self, codec: Any, z: jax.Array) -> jax.Array:
    """Latents f32[B, Q, C] to pixels f32[B, H, W, 3], not clipped, 0 outside of each picture."""
    rows, columns = self.cfg.latent_grid_of(self.size)
    if self.grids is None:
      return codec.decode(z, rows=rows)
    inside, index = self._inside, _place(self.grids.latent, (rows, columns))
    on_canvas = jnp.take_along_axis(z, jnp.minimum(index, z.shape[1] - 1)[..., None], axis=1)
    on_canvas = jnp.where(inside.reshape(index.shape)[..., None], on_canvas, 0.0)
    return jnp.where(self._pixels(inside), codec.decode(on_canvas, rows=rows, inside=inside), 0.0)

  def encode(self, codec: Any, picture: jax.Array) -> jax.Array:
    """Pictures uint8[B, H, W, 3] to the latents of their cells: f32[B, Q, C]."""
    pixels = codecs.to_pixels(picture)
    if self.grids is None:
      return codec.encode(pixels[:, None])[:, 0]
    inside = self._inside
    pixels = jnp.where(self._pixels(inside), pixels, 0.0)
    z = codec.encode(pixels[:, None], inside=inside[:, None])[:, 0]
    return self.latent.mask(_flat(z, self.grids.latent, inside.shape[2], self.latent.total))

  def vit_patches(self, vit: siglip.Siglip | None, picture: jax.Array) -> packed.VitStream | None:
    """The pictures as the ViT sees them; None: `Interleaved.embed_und` sees to that. picture: as of `encode`."""
    if self.grids is None or vit is None:
      return None
    patch, grid = vit.vit.patch, self.grids.vit
    rows, columns = self.cfg.vit_grid_of(self.size)
    canvas = rows * patch, columns * patch
    seen = codecs.resize_each(picture, self.grids.latent * self.cfg.codec.patch, grid * patch, canvas)
    pixels = _flat(codecs.patchify(seen, patch), grid, columns, self.vit.total)
    return packed.VitStream(pixels, self.vit.ids, self.vit.here.astype(jnp.int32))

  @property
  def _inside(self) -> jax.Array:
    """Cells of the canvas that each picture fills: bool[B, rows, columns]."""
    assert self.grids is not None
    rows, columns = map(jnp.arange, self.cfg.latent_grid_of(self.size))
    of_row, of_column = rows[None] < self.grids.latent[:, :1], columns[None] < self.grids.latent[:, 1:]
    return of_row[:, :, None] & of_column[:, None]

  def _pixels(self, inside: jax.Array) -> jax.Array:
    """The same of pixels: bool[B, H, W, 1]."""
    patch = self.cfg.codec.patch
    return jnp.repeat(jnp.repeat(inside, patch, axis=1), patch, axis=2)[..., None]


def layout(cfg: config_lib.ModelConfig, size: Size, most: Most | None = None, grids: Grids | None = None) -> Layout:
  """The layout of a batch.

  Args:
    cfg: of the model.
    size: (H, W) of all pictures, or of the canvas that holds them; None: the model's own.
    most: cells of a row; None: pictures are of one size.
    grids: the size of each row's pictures, where `most` is given.
  """
  size, tables = size or cfg.own_size, [cfg.max_latent_size, cfg.vit.max_patches if cfg.vit else 1]
  spread = cfg.interpolate_positions
  if most is None or grids is None:
    assert most is None, 'A batch of several sizes needs the grid of each row (SampleBatch.grids).'
    found = cfg.latent_grid_of(size), cfg.vit_grid_of(size)
    both = [_filled(*grid, table, spread) for grid, table in zip(found, tables, strict=True)]
    return Layout(cfg, size, *both, grids=None)
  both = [
    Cells(count, jnp.prod(grid, axis=1, keepdims=True), _position_ids(grid, count, table, spread))
    for grid, count, table in zip((grids.latent, grids.vit), most, tables, strict=True)
  ]
  return Layout(cfg, size, *both, grids=grids)


def _filled(rows: int, columns: int, per_side: int, spread: bool) -> Cells:
  """The cells of pictures of one size; none without a ViT."""
  ids = packed.position_ids(rows, columns, per_side, interpolate=spread) if rows else np.zeros(0, np.int32)
  return Cells(len(ids), np.array([[len(ids)]], np.int32), ids[None])


def _position_ids(grid: jax.Array, count: int, per_side: int, spread: bool) -> jax.Array:
  """`packed.position_ids` of the cells of each row's grid [B, 2]: int32[B, count]; 0 where it has no such cell."""
  lengths = range(1, per_side + 1)
  ids = [packed.position_ids(n, 1, per_side, interpolate=spread) // per_side for n in lengths]
  along = jnp.asarray(np.stack([np.zeros(per_side, np.int32), *(np.pad(x, (0, per_side - len(x))) for x in ids)]))
  row, column = jnp.divmod(jnp.arange(count)[None], jnp.maximum(grid[:, 1:], 1))
  row = jnp.minimum(row, per_side - 1)
  found = along[grid[:, :1], row] * per_side + along[grid[:, 1:], column]
  return jnp.where(jnp.arange(count)[None] < jnp.prod(grid, axis=1, keepdims=True), found, 0)


def _place(grid: jax.Array, canvas: tuple[int, int]) -> jax.Array:
  """Number of each cell of the canvas in the list of a row, if its picture covers it: int32[B, rows * columns]."""
  row, column = jnp.divmod(jnp.arange(math.prod(canvas))[None], canvas[1])
  return row * grid[:, 1:] + column


def _flat(x: jax.Array, grid: jax.Array, columns: int, count: int) -> jax.Array:
  """The cells of each picture, first in a list, of cells of the canvas [B, rows * columns, C]: [B, count, C]."""
  row, column = jnp.divmod(jnp.arange(count)[None], jnp.maximum(grid[:, 1:], 1))
  return jnp.take_along_axis(x, jnp.minimum(row * columns + column, x.shape[1] - 1)[..., None], axis=1)
