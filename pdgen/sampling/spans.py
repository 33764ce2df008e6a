"""The few tokens a step of the sampler feeds: a text token, noised copies, the clean and ViT copies of a picture.

Spans are numbered by the order of their first token plus one: no two picture copies of a trajectory share a number,
those of a prefix included (it has more tokens than spans).
"""

import jax
import jax.numpy as jnp

from pdgen.core import config as config_lib
from pdgen.core import packed

FULL, TEXT_ONLY = 1, 2  # segments of the cache: the trajectory; its texts as they are without pictures


def concatenate(und: packed.TokenMeta, gen: packed.TokenMeta) -> packed.TokenMeta:
  """und tokens first, as the trunk does: int32[B, U + G]."""
  return packed.TokenMeta(*(jnp.concatenate(pair, axis=1) for pair in zip(und, gen, strict=True)))


def text_tokens(
  token: jax.Array, active: jax.Array, order: jax.Array, position: jax.Array, text_position: jax.Array | None
) -> packed.UndStream:
  """One text token a trajectory, twice (in both segments) with the position in the text-only one. Arguments [B]."""
  zeros = jnp.zeros_like(order)
  tokens = packed.TokenMeta(jnp.where(active, FULL, 0), order, order, zeros, zeros, position)
  und = packed.UndStream(tokens, token, token, jnp.zeros(token.shape), zeros - 1, zeros)
  und = jax.tree.map(lambda x: x[:, None], und)
  if text_position is not None:
    und = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=1), und)
    segment = und.tokens.segment * jnp.array([[1, TEXT_ONLY]])
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
  branches: list[tuple[int, jax.Array, jax.Array]],
  order: jax.Array,
  grid: tuple[int, int] | None = None,
) -> tuple[packed.UndStream, packed.GenStream]:
  """A noised copy of the next picture for each branch of guidance, side by side in one forward.

  grid: rows and columns of its latent patches; None: of the model's own pictures.
  branches: (segment, reach [B], position [B]) each. A branch differs from the others in what it may see, not in what is
  stored: it is the same cache, read with another reach or segment.
  """
  grid = grid or (cfg.latent_grid, cfg.latent_grid)
  q = grid[0] * grid[1]

  def copy(number: int, segment: int, reach: jax.Array, position: jax.Array, offsets: list[int]) -> packed.TokenMeta:
    offsets = jnp.array([offsets])
    whole = lambda x: jnp.broadcast_to(x[:, None], (order.shape[0], offsets.shape[1]))
    return packed.TokenMeta(
      segment=whole(jnp.where(active, segment, 0)),
      order=order[:, None] + offsets,
      reach=whole(reach),
      span=whole(order + 1 + number),
      noised=whole(jnp.ones_like(order)),
      position=whole(position),
    )

  und, latent = (
    packed.TokenMeta(
      *(
        jnp.concatenate(f, axis=1)
        for f in zip(*(copy(n, *branch, offsets) for n, branch in enumerate(branches)), strict=True)
      )
    )
    for offsets in ([0, q + 1], list(range(1, q + 1)))
  )
  ids = jnp.array([[specials.vision_start, specials.vision_end] * len(branches)])
  return boundary_tokens(und, ids), latent_tokens(cfg, latent, grid)


def context_copies(
  cfg: config_lib.ModelConfig,
  specials: config_lib.Specials,
  active: jax.Array,
  order: jax.Array,
  position: jax.Array,
) -> tuple[packed.UndStream, packed.GenStream]:
  """The clean copy of a painted picture and, where the model has one, its ViT copy."""
  q, n = cfg.latent_tokens, cfg.vit_tokens

  def tokens(offsets: list[int], copy: list[int]) -> packed.TokenMeta:
    offsets, copy = jnp.array([offsets]), jnp.array([copy])
    zeros = jnp.zeros((order.shape[0], offsets.shape[1]), jnp.int32)
    start = order[:, None] + copy * (q + 2)  # order of the copy's first token
    orders = order[:, None] + offsets
    segment = zeros + jnp.where(active, FULL, 0)[:, None]
    return packed.TokenMeta(segment, orders, orders, start + 1, zeros, position[:, None] + copy)

  ids, offsets, copy, patch, picture = (
    [specials.vision_start, specials.vision_end],
    [0, q + 1],
    [0, 0],
    [0, 0],
    [-1, -1],
  )
  if n:
    ids += [specials.vision_start, *[0] * n, specials.vision_end]
    offsets += range(q + 2, q + n + 4)
    copy += [1] * (n + 2)
    patch += [0, *range(n), 0]
    picture += [-1, *[0] * n, -1]
  und = boundary_tokens(tokens(offsets, copy), jnp.array([ids]))
  row = lambda values: jnp.broadcast_to(jnp.array([values]), und.token_id.shape)
  und = und._replace(patch=row(patch), picture=row(picture))
  return und, latent_tokens(cfg, tokens(list(range(1, q + 1)), [0] * q), (cfg.latent_grid, cfg.latent_grid))
