"""Token streams that each sampler step feeds to the model: a text token, noised copies, copies for the context.

Spans are numbered by the order of their first token plus one: no two picture copies of a trajectory share a number,
those of a prefix included (it has more tokens than spans).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.sampling import canvas

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


def latent_tokens(tokens: packed.TokenMeta, cells: canvas.Cells) -> packed.GenStream:
  """Whole copies of picture 0, one after the other. cells: of a copy."""
  zeros = jnp.zeros_like(tokens.order)
  patch = jnp.broadcast_to(jnp.tile(cells.ids, (1, tokens.order.shape[1] // cells.total)), zeros.shape)
  return packed.GenStream(tokens, zeros, patch, zeros, jnp.zeros(zeros.shape))


def boundary_tokens(tokens: packed.TokenMeta, ids: jax.Array) -> packed.UndStream:
  """Boundary tokens with the given ids: [B, U]."""
  zeros = jnp.zeros_like(tokens.order)
  ids = jnp.broadcast_to(ids, zeros.shape)
  return packed.UndStream(tokens, ids, ids, jnp.zeros(zeros.shape), zeros - 1, zeros)


def noised_copies(
  specials: config_lib.Specials,
  active: jax.Array,
  branches: list[Branch],
  order: jax.Array,
  cells: canvas.Cells,
) -> tuple[packed.UndStream, packed.GenStream]:
  """A noised copy of the next picture for each branch of guidance, side by side in one forward.

  Args:
    specials: ids of the boundary tokens.
    active: bool[B], trajectories that wait for a picture; the others get padding.
    branches: of guidance.
    order: int32[B], order of the first copy's first token. The copies follow one another: nobody sees a noised copy by
      its order, but attention in blocks sorts by it.
    cells: latent cells of a copy; those that are not of a row's own picture are padding.
  """
  q = cells.total

  def copies(offsets: jax.Array, here: jax.Array) -> packed.TokenMeta:
    """These tokens of every copy. offsets: int32[1 or B, T], their places in the copy. here: bool[1 or B, T]."""
    copies = []
    for number, branch in enumerate(branches):
      whole = lambda x, shape=(order.shape[0], offsets.shape[1]): jnp.broadcast_to(x[:, None], shape)
      copies.append(
        packed.TokenMeta(
          segment=jnp.where(here, whole(jnp.where(active, branch.segment, 0)), 0),
          order=order[:, None] + offsets + number * (q + 2),
          reach=whole(branch.reach),
          span=whole(order + 1 + number),
          noised=whole(jnp.ones_like(order)),
          position=whole(branch.position),
        )
      )
    return _side_by_side(copies)

  ends = _offsets(0, cells.own + 1)
  boundaries = copies(ends, jnp.ones((1, 2), bool))
  latents = copies(jnp.arange(1, q + 1)[None], jnp.asarray(cells.here))
  ids = jnp.array([[specials.vision_start, specials.vision_end] * len(branches)])
  return boundary_tokens(boundaries, ids), latent_tokens(latents, cells)


def context_copies(
  specials: config_lib.Specials,
  active: jax.Array,
  order: jax.Array,
  position: jax.Array,
  latent: canvas.Cells,
  vit: canvas.Cells,
) -> tuple[packed.UndStream, packed.GenStream]:
  """The clean copy of a painted picture and, where the model has a ViT, its ViT copy: `Layout.picture_tokens`.

  Args:
    specials: ids of the boundary tokens.
    active: bool[B], trajectories whose picture was painted; the others get padding.
    order: int32[B], order of the clean copy's first token.
    position: int32[B], RoPE position of the clean copy; the ViT copy has the next one.
    latent: latent cells of the picture; those that are not of a row's own are padding.
    vit: ViT cells; none without a ViT.
  """
  q, n = latent.own, vit.own

  def tokens(offsets: jax.Array, copy: jax.Array, here: jax.Array) -> packed.TokenMeta:
    """offsets: order minus that of the first token. copy: 0 in the clean copy, 1 in the ViT copy. [1 or B, T] each."""
    zeros = jnp.zeros((order.shape[0], offsets.shape[1]), jnp.int32)
    start = order[:, None] + copy * (q + 2)  # order of the copy's first token
    orders = order[:, None] + offsets
    segment = jnp.where(here, zeros + jnp.where(active, FULL, 0)[:, None], 0)
    return packed.TokenMeta(segment, orders, orders, zeros + start + 1, zeros, position[:, None] + zeros + copy)

  # Of the und stream: the boundaries of the clean copy, then the whole ViT copy, whose end is the last token.
  parts = [(0, specials.vision_start, -1), (q + 1, specials.vision_end, -1)]  # (offset, id, picture) of tokens
  if vit.total:
    places = np.arange(vit.total, dtype=np.int32)[None]
    parts += [(q + 2, specials.vision_start, -1), (q + 3 + places, 0, 0), (q + 3 + n, specials.vision_end, -1)]
  counts = np.array([1, 1, 1, vit.total, 1][: len(parts)])
  each = lambda values: jnp.asarray(np.repeat(np.array(values, np.int32), counts)[None])
  offsets = _offsets(*(offset for offset, _, _ in parts))
  copy, here = each([0, 0, 1, 1, 1][: len(parts)]), jnp.ones((1, 2), bool)
  if vit.total:
    here = jnp.pad(jnp.asarray(vit.here), ((0, 0), (3, 1)), constant_values=True)
  stream = boundary_tokens(tokens(offsets, copy, here), each([token for _, token, _ in parts]))
  picture = jnp.broadcast_to(each([picture for _, _, picture in parts]), stream.token_id.shape)
  patch = jnp.where(picture >= 0, jnp.arange(offsets.shape[1])[None] - 3, 0)
  stream = stream._replace(patch=patch, picture=picture)
  places = jnp.arange(1, latent.total + 1)[None]
  latents = tokens(places, jnp.zeros_like(places), jnp.asarray(latent.here))
  return stream, latent_tokens(latents, latent)


def _offsets(*parts: Any) -> jax.Array:
  """Numbers, or int32[1 or B, T], side by side: int32[1 or B, sum of T]."""
  parts = tuple(jnp.atleast_2d(jnp.asarray(part, jnp.int32)) for part in parts)
  rows = max(part.shape[0] for part in parts)
  return jnp.concatenate([jnp.broadcast_to(part, (rows, part.shape[1])) for part in parts], axis=1)


def _side_by_side(parts: list[packed.TokenMeta]) -> packed.TokenMeta:
  """Metadata of tokens [B, T] each, one part after the other: int32[B, sum of T]."""
  return packed.TokenMeta(*(jnp.concatenate(fields, axis=1) for fields in zip(*parts, strict=True)))
