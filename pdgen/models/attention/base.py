"""What attention implementations share: the KV cache, and the interface of a mask that attends."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from pdgen.core import packed

# `checkpoint_name` of what the backward pass needs beside q, k and v: what `models.remat` may keep.
OUTPUT_NAME = 'attended'


class KVCache(NamedTuple):
  """Keys and values computed before, with the tokens they belong to."""

  # Heads before slots: a head's slots then lie side by side, and a CPU attends to them in .7 of the time.
  k: jax.Array  # [L, B, K, S, H], after norm and RoPE.
  v: jax.Array  # [L, B, K, S, H].
  tokens: packed.TokenMeta  # int32[B, S] metadata; segment 0 marks an empty slot.

  @property
  def slots(self) -> int:
    """Of a trajectory: S."""
    return self.k.shape[3]


class KVCacheLayer(NamedTuple):
  """One layer of a KV cache, not yet read out of it."""

  k: jax.Array  # [L, B, K, S, H], all layers.
  v: jax.Array  # [L, B, K, S, H].
  layer: jax.Array  # int32[], which layer.

  def read(self) -> tuple[jax.Array, jax.Array]:
    """k, v of the layer: [B, S, K, H]."""
    return self.k[self.layer].swapaxes(1, 2), self.v[self.layer].swapaxes(1, 2)


class BlockMask(Protocol):
  """Who sees whom in a forward pass, in the form that one implementation computes with. A pytree."""

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, cache: KVCacheLayer | None) -> jax.Array:
    """q: [B, T, N, H]; k, v: [B, S, K, H] of the new tokens. Returns [B, T, N, H].

    A query that sees nothing (padding) gets a finite, meaningless value. What the backward pass needs beside q, k and
    v is named OUTPUT_NAME (`jax.ad_checkpoint.checkpoint_name`).
    """
    ...


def with_cache(key: packed.TokenMeta, cache: packed.TokenMeta | None) -> packed.TokenMeta:
  """Metadata of the cache, then of the new tokens: int32[B, cache + S] a field."""
  if cache is None:
    return key
  return packed.TokenMeta(*(jnp.concatenate(pair, axis=1) for pair in zip(cache, key, strict=True)))


def concat_cache(k: jax.Array, v: jax.Array, cache: KVCacheLayer | None) -> tuple[jax.Array, jax.Array]:
  """Keys and values in the order of `with_cache`: [B, cache + S, K, H]."""
  if cache is None:
    return k, v
  old_k, old_v = cache.read()
  return jnp.concatenate([old_k, k], axis=1), jnp.concatenate([old_v, v], axis=1)
