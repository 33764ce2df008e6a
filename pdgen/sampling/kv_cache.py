"""The KV cache of the sampler: static slots, each with the metadata of the token it holds.

Visibility is decided by metadata (`core.masks.visible`), never by the slot of a token. Padding is an empty slot, a
branch of guidance is a query with another reach, and the text-only branch is the same cache under another segment.
"""

import jax
import jax.numpy as jnp

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.models import attention


def empty(cfg: config_lib.ModelConfig, *, batch: int, slots: int) -> attention.KVCache:
  """An empty cache of `slots` tokens a trajectory: k, v [L, B, K, slots, H] in the compute dtype."""
  shape = (cfg.depth, batch, cfg.num_kv_heads, slots, cfg.head_dim)
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
  """Writes new tokens into their slots, once all layers have read the cache.

  The slots depend on the final hidden states: an optimization barrier. Where XLA cannot tell that all layers have read
  the cache before it is written, it copies the whole cache twice in every decode step. XLA's CPU compiler removes
  `jax.lax.optimization_barrier` before it looks for copies (docs/experiments.md#decode). The barrier has a side effect:
  nothing is written where a hidden state is not finite.

  Args:
    cache: to be written.
    kv: k and v of the new tokens, [L, B, T, K, H] each.
    tokens: their metadata, int32[B, T] a field. One with segment 0 (its trajectory does not take part) is not written.
    slots: int32[B, T], where they go.
    after: [B, T, D], final hidden states of the forward that computed kv.
  """
  size = cache.slots
  barrier = jnp.isfinite(after[:, -1:, 0])
  slots = jnp.where((tokens.segment > 0) & barrier, slots, size)  # out of range: dropped
  k, v = (scatter_rows(old, slots, new.swapaxes(2, 3), axes=(1, 3)) for old, new in zip(cache[:2], kv, strict=True))
  meta = (scatter_rows(old, slots, new) for old, new in zip(cache.tokens, tokens, strict=True))
  return attention.KVCache(k, v, packed.TokenMeta(*meta))


def scatter_rows(into: jax.Array, places: jax.Array, new: jax.Array, *, axes: tuple[int, int] = (0, 1)) -> jax.Array:
  """Writes each row's new items into its places; nothing where a place is out of range.

  The scatter has the rows as a batch dimension, so that each device writes its own rows: for `into.at[rows, places]`
  XLA gathered all new items, and whole pictures, on every device. `jax.vmap` gives one too, but moves B to the front.

  Args:
    into: [..., B, .., N, ...], B and N at `axes`.
    places: int32[B, T], in [0, N).
    new: the same with T in the place of N.
    axes: those of B and of N, that of B first.
  """
  row, place = axes
  dimensions = jax.lax.ScatterDimensionNumbers(
    update_window_dims=tuple(i for i in range(new.ndim) if i not in axes),
    inserted_window_dims=(place,),
    scatter_dims_to_operand_dims=(place,),
    operand_batching_dims=(row,),
    scatter_indices_batching_dims=(0,),
  )
  return jax.lax.scatter(into, places[..., None], new.astype(into.dtype), dimensions, mode='drop')
