"""The key/value cache: static slots, each with the metadata of the token it holds.

Visibility is decided by metadata (`core.masks.visible`), never by where a token lies. So padding is an empty slot, a
branch of guidance is a query with another reach, and the text-only branch is the same cache under another segment.
"""

import jax
import jax.numpy as jnp

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.models import attention


def empty(cfg: config_lib.ModelConfig, *, batch: int, slots: int) -> attention.KVCache:
  """An empty cache of `slots` tokens a trajectory: k, v [L, B, slots, K, H] in the compute dtype."""
  shape = (cfg.depth, batch, slots, cfg.num_kv_heads, cfg.head_dim)
  zeros = jnp.zeros((batch, slots), jnp.int32)
  k = jnp.zeros(shape, jnp.dtype(cfg.dtype))
  return attention.KVCache(k, jnp.zeros_like(k), packed.TokenMeta(*(zeros,) * len(packed.TokenMeta._fields)))


def write(
  cache: attention.KVCache,
  kv: tuple[jax.Array, jax.Array],
  tokens: packed.TokenMeta,
  slots: jax.Array,
  *,
  after: jax.Array,
) -> attention.KVCache:
  """Puts new tokens in their slots. kv: [L, B, T, K, H] each. tokens: [B, T]. slots: int32[B, T].

  A token with segment 0 (a trajectory that is not taking part) is not written.
  after: [B, T, D], the final hidden states of the same forward. Where XLA cannot tell that all layers have read the
    cache before it is written, it copies all of it, twice in every step of text; so the slots follow from these, and
    nothing is written where they are not finite.
  """
  size = cache.k.shape[2]
  done = jnp.isfinite(after[:, -1:, 0])
  slots = jnp.where((tokens.segment > 0) & done, slots, size)  # out of range: dropped
  k, v = (scatter_rows(old, slots, new, axis=1) for old, new in zip(cache[:2], kv, strict=True))
  meta = (scatter_rows(old, slots, new) for old, new in zip(cache.tokens, tokens, strict=True))
  return attention.KVCache(k, v, packed.TokenMeta(*meta))


def scatter_rows(into: jax.Array, places: jax.Array, new: jax.Array, *, axis: int = 0) -> jax.Array:
  """Each row's new items in its places; nothing where a place is out of range.

  into: [..., B, N, ...], B at `axis`. places: int32[B, T]. new: [..., B, T, ...].

  The rows are said to be a batch, so that devices that share them write their own: for `into.at[rows, places]` XLA
  gathered what is new, and pictures whole, on all of them. `jax.vmap` says so, too, but moves B to the front first.
  """
  dimensions = jax.lax.ScatterDimensionNumbers(
    update_window_dims=tuple(i for i in range(new.ndim) if i not in (axis, axis + 1)),
    inserted_window_dims=(axis + 1,),
    scatter_dims_to_operand_dims=(axis + 1,),
    operand_batching_dims=(axis,),
    scatter_indices_batching_dims=(0,),
  )
  return jax.lax.scatter(into, places[..., None], new.astype(into.dtype), dimensions, mode='drop')
