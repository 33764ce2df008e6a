"""Attention of new tokens to a KV cache, which is read in place, chunk by chunk, unseen chunks skipped.

A step of decoding reads the whole cache of every layer, and little else. Of a cache with room for 800 tokens a
trajectory fills 300, and taking a layer out of it, or turning its heads to the front, copies all of it once more.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from pdgen.core import masks, packed
from pdgen.models.attention import base, blockwise, online_softmax

CHUNK = 128  # slots


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=('cache', 'new', 'order', 'num_visible'), meta_fields=('chunk',)
)
@dataclasses.dataclass(frozen=True)
class CacheChunks:
  """Which chunks of the KV cache a few new tokens read; their scores are held for all of them at once."""

  cache: jax.Array  # bool[B, T, S], which slots of the cache each new token sees.
  new: jax.Array  # bool[B, T, T], which of one another they see.
  order: jax.Array  # int32[chunks], the chunks of the cache, those that anybody sees first.
  num_visible: jax.Array  # int32[], how many these are.
  chunk: int  # Slots of a chunk.

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, cache: base.KVCacheLayer | None) -> jax.Array:
    """Online softmax over the chunks. Shapes as of `base.BlockMask`. A query that sees nothing (padding) returns 0."""
    assert cache is not None, 'Made for a cache (`prepare`), applied to none.'
    b, t, n, h = q.shape
    q = _by_kv_head(q, k.shape[2])

    def visit(i: jax.Array, sums: online_softmax.SoftmaxState) -> online_softmax.SoftmaxState:
      keys, values, start, fresh = _read(cache, self.order[i], self.chunk)
      visible = jax.lax.dynamic_slice_in_dim(self.cache, start, keys.shape[2], axis=2)
      return _add(sums, q, keys, values, visible & fresh)

    sums = _add(online_softmax.init(q.shape[:-1], h), q, k.swapaxes(1, 2), v.swapaxes(1, 2), self.new)
    # On a GPU the host waits for the condition of a loop whose end is not known.
    whole = self.chunk >= cache.k.shape[3]
    sums = visit(jnp.int32(0), sums) if whole else jax.lax.fori_loop(0, self.num_visible, visit, sums)
    out, _ = online_softmax.finalize(sums)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h).astype(q.dtype)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('sort', 'query', 'cache', 'new_order', 'num_new', 'order', 'num_visible'),
  meta_fields=('block',),
)
@dataclasses.dataclass(frozen=True)
class CacheBlocks:
  """Which chunks of the KV cache each block of many new tokens reads; masks are made block by block."""

  sort: jax.Array  # int32[B, T], a permutation of the new tokens: by sample and order.
  query: packed.TokenMeta  # Their metadata, sorted, int32[B, blocks, block] a field; padded with segment 0.
  cache: packed.TokenMeta  # Of the slots, int32[B, S] a field.
  new_order: jax.Array  # int32[blocks, blocks], blocks of new tokens for each block, those that it may see first.
  num_new: jax.Array  # int32[blocks], how many these are.
  order: jax.Array  # int32[blocks, chunks], the same of chunks of the cache.
  num_visible: jax.Array  # int32[blocks]
  block: int  # New tokens of a block, and slots of a chunk.

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, cache: base.KVCacheLayer | None) -> jax.Array:
    """As of `CacheChunks`."""
    assert cache is not None, 'Made for a cache (`prepare`), applied to none.'
    b, t, n, h = q.shape
    q, k, v = (blockwise.in_blocks(blockwise.permute(x, self.sort), self.block).swapaxes(0, 1) for x in (q, k, v))
    k, v = (x.swapaxes(2, 3) for x in (k, v))  # [blocks, B, K, block, H]
    meta = lambda i: packed.TokenMeta(*(jax.lax.dynamic_index_in_dim(f, i, 1, keepdims=False) for f in self.query))

    def of_block(i: jax.Array) -> jax.Array:
      q_i, query = _by_kv_head(q[i], k.shape[2]), meta(i)

      def visit_new(step: jax.Array, sums: online_softmax.SoftmaxState) -> online_softmax.SoftmaxState:
        j = self.new_order[i, step]
        return _add(sums, q_i, k[j], v[j], masks.visible(query, meta(j)))

      def visit(step: jax.Array, sums: online_softmax.SoftmaxState) -> online_softmax.SoftmaxState:
        keys, values, start, fresh = _read(cache, self.order[i, step], self.block)
        part = lambda x: jax.lax.dynamic_slice_in_dim(x, start, keys.shape[2], axis=1)
        slots = packed.TokenMeta(*map(part, self.cache))
        return _add(sums, q_i, keys, values, masks.visible(query, slots) & fresh)

      sums = online_softmax.init(q_i.shape[:-1], h)
      sums = jax.lax.fori_loop(0, self.num_new[i], visit_new, sums)
      sums = jax.lax.fori_loop(0, self.num_visible[i], visit, sums)
      return online_softmax.finalize(sums)[0].astype(q.dtype)

    out = jax.lax.map(of_block, jnp.arange(q.shape[0]))  # [blocks, B, K, G, block, H]
    out = out.transpose(1, 0, 4, 2, 3, 5).reshape(b, -1, n, h)[:, :t]
    return blockwise.permute(out, jnp.argsort(self.sort, axis=1))


def prepare(
  query: packed.TokenMeta, cache: packed.TokenMeta, *, few: int, chunk: int = CHUNK
) -> CacheChunks | CacheBlocks:
  """Finds what the new tokens read.

  Args:
    query: the new tokens, int32[B, T] a field.
    cache: those in the cache, int32[B, S] a field.
    few: new tokens whose scores may be held for a whole chunk.
    chunk: slots of one, for few tokens.
  """
  if query.order.shape[1] > few:
    return _prepare_blocks(query, cache)
  visible = masks.visible(query, cache)
  slots = visible.shape[-1]
  chunks = jnp.pad(jnp.any(visible, axis=(0, 1)), (0, -slots % chunk)).reshape(-1, chunk).any(axis=1)
  order, num_visible = _those(chunks)
  return CacheChunks(visible, masks.visible(query, query), order, num_visible, chunk)


def _prepare_blocks(query: packed.TokenMeta, cache: packed.TokenMeta) -> CacheBlocks:
  sort, block = blockwise.sort(query), blockwise.block_of(query.order.shape[1] + cache.order.shape[1])
  blocks = packed.TokenMeta(*(blockwise.in_blocks(blockwise.permute(f, sort), block) for f in query))
  chunks = packed.TokenMeta(*(blockwise.in_blocks(f, block) for f in cache))
  new_order, num_new = _those(blockwise.may_see(blocks, blocks).any(axis=0))
  order, num_visible = _those(blockwise.may_see(blocks, chunks).any(axis=0))
  return CacheBlocks(sort, blocks, cache, new_order, num_new, order, num_visible, block)


def _those(seen: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Numbers along the last axis, those that are seen first, and how many are: int32[..., N] and int32[...]."""
  return jnp.argsort(~seen, axis=-1, stable=True).astype(jnp.int32), jnp.sum(seen, axis=-1, dtype=jnp.int32)


def _by_kv_head(q: jax.Array, kv_heads: int) -> jax.Array:
  """[B, T, N, H] to [B, K, N / K, T, H], scaled."""
  b, t, n, h = q.shape
  q = q * jnp.asarray(h**-0.5, q.dtype)
  return q.reshape(b, t, kv_heads, n // kv_heads, h).transpose(0, 2, 3, 1, 4)


def _read(cache: base.KVCacheLayer, number: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
  """A chunk: keys and values [B, K, C, H], its first slot, and bool[1, 1, C], slots that are of no chunk before it."""
  _, b, kv_heads, slots, h = cache.k.shape
  size = min(chunk, slots)
  first = number * chunk
  start = jnp.minimum(first, slots - size)  # The last chunk may begin among the slots of the one before it.
  read = lambda x: jax.lax.dynamic_slice(x, (cache.layer, 0, 0, start, 0), (1, b, kv_heads, size, h))[0]
  return read(cache.k), read(cache.v), start, (start + jnp.arange(size) >= first)[None, None]


def _add(
  sums: online_softmax.SoftmaxState, q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array
) -> online_softmax.SoftmaxState:
  """q: [B, K, G, T, H]; keys and values [B, K, S, H], of which each query sees some: visible, bool[B, T, S]."""
  scores = jnp.einsum('BKGTH,BKSH->BKGTS', q, k, preferred_element_type=jnp.float32)
  return online_softmax.update(
    sums,
    jnp.where(visible[:, None, None], scores, online_softmax.MASK_VALUE),
    lambda w: jnp.einsum('BKGTS,BKSH->BKGTH', w.astype(v.dtype), v, preferred_element_type=jnp.float32),
  )
