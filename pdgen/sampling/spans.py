"""Token streams that each sampler step feeds to the model: a text token, noised copies, copies for the context.

Spans are numbered by the order of their first token plus one: no two picture copies of a trajectory share a number,
those of a prefix included (it has more tokens than spans).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pdgen.core import config as config_lib
from pdgen.core import packed

FULL, TEXT_ONLY = 1, 2  # segments of the cache: the trajectory; its texts as they are without pictures


class Branch(NamedTuple):
  """A branch of guidance. It differs from the others in what it may see, not in what the cache holds."""

  segment: int  # FULL or TEXT_ONLY: which entries of the cache it reads.
  reach: jax.Array  # int32[B], last visible order.
  position: jax.Array  # int32[B], RoPE position of the noised copy.


def concatenate(und: packed.TokenMeta, gen: packed.TokenMeta) -> packed.TokenMeta:
  """und tokens first, as the trunk does: int32[B, U + G]."""
  return _side_by_side([und, gen])


def text_tokens(
  token: jax.Array,
  active: jax.Array,
  order: jax.Array,
  position: jax.Array,
  without_pictures: tuple[jax.Array, jax.Array] | None,
) -> packed.UndStream:
  """One text token a trajectory: [B, 1]; with the text-only branch [B, 2], the token once in each segment.

  Args:
    token: int32[B], ids.
    active: bool[B], trajectories that read their token; the others get padding.
    order: int32[B].
    position: int32[B], RoPE position.
    without_pictures: bool[B], trajectories whose text-only branch reads the token too, and int32[B], its RoPE position
      there; None without that branch.
  """
  zeros = jnp.zeros_like(order)
  tokens = packed.TokenMeta(jnp.where(active, FULL, 0), order, order, zeros, zeros, position)
  und = packed.UndStream(tokens, token, token, jnp.zeros(token.shape), zeros - 1, zeros)
  und = jax.tree.map(lambda x: x[:, None], und)
  if without_pictures is not None:
    enters, text_position = without_pictures
    und = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=1), und)
    segment = jnp.stack([und.tokens.segment[:, 0], jnp.where(enters, TEXT_ONLY, 0)], axis=1)
    positions = jnp.stack([position, text_position], axis=1)
    und = und._replace(tokens=und.tokens._replace(segment=segment, position=positions))
  return und


def empty_gen(batch: int) -> packed.GenStream:
  """A gen stream of no tokens."""
  none = jnp.zeros((batch, 0), jnp.int32)
  return packed.GenStream(packed.TokenMeta(*(none,) * len(packed.TokenMeta._fields)), none, none, none, none)


def latent_tokens(cfg: config_lib.ModelConfig, tokens: packed.TokenMeta, grid: tuple[int, int]) -> packed.GenStream:
  """Whole copies of picture 0, one after the other. grid: rows and columns of its latent patches."""
  zeros = jnp.zeros_like(tokens.order)
  ids = packed.position_ids(*grid, cfg.max_latent_size, interpolate=cfg.interpolate_positions)
  patch = jnp.broadcast_to(jnp.tile(ids, tokens.order.shape[1] // len(ids)), zeros.shape)
  return packed.GenStream(tokens, zeros, patch, zeros, jnp.zeros(zeros.shape))


def boundary_tokens(tokens: packed.TokenMeta, ids: jax.Array) -> packed.UndStream:
  """Boundary tokens with the given ids: [B, U]."""
  zeros = jnp.zeros_like(tokens.order)
  ids = jnp.broadcast_to(ids, zeros.shape)
  return packed.UndStream(tokens, ids, ids, jnp.zeros(zeros.shape), zeros - 1, zeros)


def noised_copies(
  cfg: config_lib.ModelConfig,
  specials: config_lib.Specials,
  active: jax.Array,
  branches: list[Branch],
  order: jax.Array,
  grid: tuple[int, int],
) -> tuple[packed.UndStream, packed.GenStream]:
  """A noised copy of the next picture for each branch of guidance, side by side in one forward.

  Args:
    cfg: of the model.
    specials: ids of the boundary tokens.
    active: bool[B], trajectories that wait for a picture; the others get padding.
    branches: of guidance.
    order: int32[B], order of the first copy's first token. The copies follow one another: nobody sees a noised copy by
      its order, but attention in blocks sorts by it.
    grid: rows and columns of latent patches.
  """
  q = grid[0] * grid[1]

  def copies(offsets: Sequence[int]) -> packed.TokenMeta:
    """These tokens of every copy. offsets: their places in the copy."""
    copies = []
    for number, branch in enumerate(branches):
      places = jnp.array([offsets])
      whole = lambda x, shape=(order.shape[0], len(offsets)): jnp.broadcast_to(x[:, None], shape)
      copies.append(
        packed.TokenMeta(
          segment=whole(jnp.where(active, branch.segment, 0)),
          order=order[:, None] + places + number * (q + 2),
          reach=whole(branch.reach),
          span=whole(order + 1 + number),
          noised=whole(jnp.ones_like(order)),
          position=whole(branch.position),
        )
      )
    return _side_by_side(copies)

  boundaries, latents = copies([0, q + 1]), copies(range(1, q + 1))
  ids = jnp.array([[specials.vision_start, specials.vision_end] * len(branches)])
  return boundary_tokens(boundaries, ids), latent_tokens(cfg, latents, grid)


def context_copies(
  cfg: config_lib.ModelConfig,
  specials: config_lib.Specials,
  active: jax.Array,
  order: jax.Array,
  position: jax.Array,
  size: tuple[int, int],
) -> tuple[packed.UndStream, packed.GenStream]:
  """The clean copy of a painted picture and, where the model has a ViT, its ViT copy: `cfg.picture_tokens_of(size)`.

  Args:
    cfg: of the model.
    specials: ids of the boundary tokens.
    active: bool[B], trajectories whose picture was painted; the others get padding.
    order: int32[B], order of the clean copy's first token.
    position: int32[B], RoPE position of the clean copy; the ViT copy has the next one.
    size: (H, W) of the picture.
  """
  grid = cfg.latent_grid_of(size)
  q, n = math.prod(grid), math.prod(cfg.vit_grid_of(size))

  def tokens(offsets: Sequence[int], copy: Sequence[int]) -> packed.TokenMeta:
    """offsets: order minus that of the first token. copy: 0 in the clean copy, 1 in the ViT copy."""
    offset, second = jnp.array([offsets]), jnp.array([copy])
    zeros = jnp.zeros((order.shape[0], offset.shape[1]), jnp.int32)
    start = order[:, None] + second * (q + 2)  # order of the copy's first token
    orders = order[:, None] + offset
    segment = zeros + jnp.where(active, FULL, 0)[:, None]
    return packed.TokenMeta(segment, orders, orders, start + 1, zeros, position[:, None] + second)

  begin, end, vit = specials.vision_start, specials.vision_end, q + 2  # vit: offset of the ViT copy
  und = [(begin, 0, 0, 0, -1), (end, q + 1, 0, 0, -1)]  # (id, offset, copy, patch, picture) each
  if n:
    und.append((begin, vit, 1, 0, -1))
    und += [(0, vit + 1 + patch, 1, patch, 0) for patch in range(n)]
    und.append((end, vit + 1 + n, 1, 0, -1))
  ids, offsets, copy, patch, picture = zip(*und, strict=True)
  stream = boundary_tokens(tokens(offsets, copy), jnp.array([ids]))
  row = lambda values: jnp.broadcast_to(jnp.array([values]), stream.token_id.shape)
  stream = stream._replace(patch=row(patch), picture=row(picture))
  latents = tokens(range(1, q + 1), [0] * q)
  return stream, latent_tokens(cfg, latents, grid)


def _side_by_side(parts: list[packed.TokenMeta]) -> packed.TokenMeta:
  """Metadata of tokens [B, T] each, one part after the other: int32[B, sum of T]."""
  return packed.TokenMeta(*(jnp.concatenate(fields, axis=1) for fields in zip(*parts, strict=True)))
