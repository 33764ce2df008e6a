"""Decode attention: a few new tokens to a KV cache, which is read in place, chunk by chunk, unseen chunks skipped.

A step of decoding reads the whole cache of every layer, and little else. Of a cache with room for 800 tokens a
trajectory fills 300, and taking a layer out of it, or turning its heads to the front, copies all of it once more.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pdgen.core import masks, packed
from pdgen.models.attention import base, online_softmax

CHUNK = 128  # slots


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=('cache', 'new', 'order', 'num_visible'), meta_fields=('chunk',)
)
@dataclasses.dataclass(frozen=True)
class CacheChunks:
  """Which chunks of the KV cache the new tokens read."""

  cache: jax.Array  # bool[B, T, S], which slots of the cache each new token sees.
  new: jax.Array  # bool[B, T, T], which of one another they see.
  order: jax.Array  # int32[chunks], the chunks of the cache, those that anybody sees first.
  num_visible: jax.Array  # int32[], how many these are.
  chunk: int  # Slots of a chunk.

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, cache: base.KVCacheLayer | None) -> jax.Array:
    """Online softmax over the chunks. Shapes as of `base.BlockMask`. A query that sees nothing (padding) returns 0."""
    assert cache is not None, 'Made for a cache (`prepare`), applied to none.'
    b, t, n, h = q.shape
    kv_heads, slots = cache.k.shape[3], cache.k.shape[2]
    size = min(self.chunk, slots)
    q = q.reshape(b, t, kv_heads, n // kv_heads, h) * jnp.asarray(h**-0.5, q.dtype)

    def add(sums, k, v, visible):
      """Keys and values [B, S, K, H], of which each query sees some: visible, bool[B, T, S]."""
      scores = jnp.einsum('BTKGH,BSKH->BKGTS', q, k, preferred_element_type=jnp.float32)
      return online_softmax.update(
        sums,
        jnp.where(visible[:, None, None], scores, online_softmax.MASK_VALUE),
        lambda w: jnp.einsum('BKGTS,BSKH->BKGTH', w.astype(v.dtype), v, preferred_element_type=jnp.float32),
      )

    def visit(i, sums):
      first = self.order[i] * self.chunk
      start = jnp.minimum(first, slots - size)  # The last chunk may begin among the slots of the one before it.
      chunk = lambda x: jax.lax.dynamic_slice(x, (cache.layer, 0, start, 0, 0), (1, b, size, *x.shape[3:]))[0]
      visible = jax.lax.dynamic_slice_in_dim(self.cache, start, size, axis=2)
      return add(sums, chunk(cache.k), chunk(cache.v), visible & (start + jnp.arange(size) >= first)[None, None])

    nothing = online_softmax.init((b, kv_heads, n // kv_heads, t), h)
    sums = add(nothing, k, v, self.new)
    # On a GPU the host waits for the condition of a loop whose end is not known.
    sums = visit(0, sums) if size == slots else jax.lax.fori_loop(0, self.num_visible, visit, sums)
    out, _ = online_softmax.finalize(sums)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h).astype(q.dtype)


def prepare(query: packed.TokenMeta, cache: packed.TokenMeta, *, chunk: int = CHUNK) -> CacheChunks:
  """query: the new tokens, int32[B, T] a field. cache: those in the cache, int32[B, S] a field. chunk: slots of one."""
  visible = masks.visible(query, cache)
  slots = visible.shape[-1]
  chunks = jnp.pad(jnp.any(visible, axis=(0, 1)), (0, -slots % chunk)).reshape(-1, chunk).any(axis=1)
  order = jnp.argsort(~chunks, stable=True).astype(jnp.int32)
  return CacheChunks(
    cache=visible,
    new=masks.visible(query, query),
    order=order,
    num_visible=jnp.sum(chunks, dtype=jnp.int32),
    chunk=chunk,
  )
