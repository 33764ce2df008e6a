"""The key/value cache: static slots, each with the metadata of the token it holds.

Visibility is decided by metadata (`core.masks.visible`), never by where a token lies. So padding is an empty slot, a
branch of guidance is a query with another reach, and the text-only branch is the same cache under another segment.
"""

import jax
import jax.numpy as jnp

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.models import attention


def empty(cfg: config_lib.ModelConfig, *, batch: int, slots: int) -> attention.Past:
  """An empty cache of `slots` tokens a trajectory: k, v [L, B, slots, K, H] in the compute dtype."""
  shape = (cfg.depth, batch, slots, cfg.num_kv_heads, cfg.head_dim)
  zeros = jnp.zeros((batch, slots), jnp.int32)
  k = jnp.zeros(shape, jnp.dtype(cfg.dtype))
  return attention.Past(k, jnp.zeros_like(k), packed.Tokens(*(zeros,) * len(packed.Tokens._fields)))


def write(
  past: attention.Past,
  kv: tuple[jax.Array, jax.Array],
  tokens: packed.Tokens,
  slots: jax.Array,
  *,
  after: jax.Array,
) -> attention.Past:
  """Puts new tokens in their slots. kv: [L, B, T, K, H] each. tokens: [B, T]. slots: int32[B, T].

  A token with segment 0 (a trajectory that is not taking part) is not written.
  after: [B, T, D], the final hidden states of the same forward. Where XLA cannot tell that all layers have read the
    cache before it is written, it copies all of it, twice in every step of text; so the slots follow from these, and
    nothing is written where they are not finite.
  """
  size = past.k.shape[2]
  done = jnp.isfinite(after[:, -1:, 0])
  slots = jnp.where((tokens.segment > 0) & done, slots, size)  # out of range: dropped
  rows = jnp.arange(slots.shape[0])[:, None]
  k, v = (old.at[:, rows, slots].set(new, mode='drop') for old, new in zip(past[:2], kv, strict=True))
  meta = (old.at[rows, slots].set(new, mode='drop') for old, new in zip(past.tokens, tokens, strict=True))
  return attention.Past(k, v, packed.Tokens(*meta))
