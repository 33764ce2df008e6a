"""Attention in blocks, in pure JAX: no [T, S] array ever exists, and blocks in which nobody sees anybody are skipped.

A packed row holds several samples in two streams, so most blocks of its attention matrix are empty: of the 64 in rows
of the shapes config, 24 are visited. Memory grows linearly with the row. Forward and backward equal the
reference to float32 rounding (tests/test_attention.py).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pdgen.core import masks, packed
from pdgen.core import mesh as mesh_lib
from pdgen.models.attention import base, online_softmax

BLOCK = 128  # tokens; on accelerators in rows longer than LONG, LONG_BLOCK: they need more work at a time
LONG, LONG_BLOCK = 4096, 512
SAMPLE = 2**20  # more than any sample has tokens; 2**11 samples a row stay below 2**31


class SortedBlocks(NamedTuple):
  """The key blocks that each query block visits; tokens are sorted by sample and order.

  The trunk keeps the two streams apart; here the tokens of one sample are contiguous, so that the blocks to visit hug
  the diagonal.
  """

  query_sort: jax.Array  # int32[B, T], a permutation of the queries.
  key_sort: jax.Array  # int32[B, S], a permutation of the keys.
  query: packed.TokenMeta  # Sorted metadata in blocks, int32[B, blocks, block] a field; padded with segment 0.
  key: packed.TokenMeta  # The same of the keys.
  order: jax.Array  # int32[B, query blocks, key blocks]; key blocks of each query block, those it may see first.
  num_visits: jax.Array  # int32[query blocks]; key blocks to visit, the most that any row needs.

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, cache: base.KVCacheLayer | None) -> jax.Array:
    """Shapes as of `base.BlockMask`. Returns 0 where a query sees nothing."""
    assert cache is None, 'With a cache: `decode`.'
    t, n, kv_heads, block = q.shape[1], q.shape[2], k.shape[2], self.query.order.shape[-1]
    q = permute(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), self.query_sort)
    k, v = (_heads_first(permute(x, self.key_sort), block, repeat=n // kv_heads) for x in (k, v))
    out = _attend(_heads_first(q, block), k, v, self)
    b, blocks, _, _, h = out.shape
    out = out.transpose(0, 1, 3, 2, 4).reshape(b, blocks * block, n, h)[:, :t]
    return permute(out, jnp.argsort(self.query_sort, axis=1))


def prepare(query: packed.TokenMeta, key: packed.TokenMeta) -> SortedBlocks:
  """Finds the blocks to visit from bounds on each block's metadata: never misses one, rarely visits an empty one."""
  query_sort, key_sort = sort(query), sort(key)
  block = block_of(key.order.shape[1])
  query = packed.TokenMeta(*(in_blocks(permute(field, query_sort), block) for field in query))
  key = packed.TokenMeta(*(in_blocks(permute(field, key_sort), block) for field in key))
  sees = may_see(query, key)
  return SortedBlocks(
    query_sort=query_sort,
    key_sort=key_sort,
    query=query,
    key=key,
    order=jnp.argsort(~sees, axis=-1, stable=True).astype(jnp.int32),
    num_visits=jnp.max(jnp.sum(sees, axis=-1), axis=0).astype(jnp.int32),
  )


def block_of(keys: int) -> int:
  """Tokens of a block where there are so many keys, for the devices of the program."""
  return LONG_BLOCK if keys > LONG and mesh_lib.device_kind() != 'cpu' else BLOCK


def sort(tokens: packed.TokenMeta) -> jax.Array:
  """int32[B, T]: places of the tokens by segment, then order; padding last."""
  segment = jnp.where(tokens.segment > 0, tokens.segment, jnp.iinfo(jnp.int32).max)
  return jnp.lexsort((tokens.order, segment), axis=-1).astype(jnp.int32)


@jax.custom_vjp
def permute(x: jax.Array, places: jax.Array) -> jax.Array:
  """x: [B, T, ...]; places: int32[B, T], each row a permutation. The gradient is a gather too, not a scatter."""
  return jax.vmap(lambda row, p: jnp.take(row, p, axis=0, unique_indices=True))(x, places)


permute.defvjp(
  lambda x, places: (permute(x, places), places),
  lambda places, d: (permute(d, jnp.argsort(places, axis=1)), None),
)


def in_blocks(x: jax.Array, block: int) -> jax.Array:
  """[B, T, ...] to [B, T / block, block, ...], padded with zeros."""
  pad = -x.shape[1] % block
  x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
  return x.reshape(x.shape[0], -1, block, *x.shape[2:])


def _heads_first(x: jax.Array, block: int, *, repeat: int = 1) -> jax.Array:
  """[B, T, heads, H] to [B, blocks, heads * repeat, block, H]; repeated heads stand side by side (GQA)."""
  x = in_blocks(x, block).transpose(0, 1, 3, 2, 4)
  return jnp.repeat(x, repeat, axis=2) if repeat > 1 else x


def may_see(query: packed.TokenMeta, key: packed.TokenMeta) -> jax.Array:
  """bool[B, query blocks, key blocks]: False only where no query of the block sees any key of the other."""
  big = jnp.iinfo(jnp.int32).max

  def bounds(tokens: packed.TokenMeta, field: jax.Array, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
    keep = keep & (tokens.segment > 0)
    return jnp.min(jnp.where(keep, field, big), -1), jnp.max(jnp.where(keep, field, -big), -1)

  def overlap(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> jax.Array:
    return (a[0][:, :, None] <= b[1][:, None]) & (b[0][:, None] <= a[1][:, :, None])

  # One number for (sample, order) and one for (sample, span): bounds stay tight in blocks that hold several samples.
  def of_sample(tokens: packed.TokenMeta, field: jax.Array) -> jax.Array:
    return tokens.segment * SAMPLE + field

  def every(tokens: packed.TokenMeta) -> jax.Array:
    return tokens.segment > 0

  same_sample = overlap(*(bounds(t, t.segment, every(t)) for t in (query, key)))
  first_key, _ = bounds(key, of_sample(key, key.order), key.noised == 0)
  _, last_reach = bounds(query, of_sample(query, query.reach), every(query))
  same_span = overlap(*(bounds(t, of_sample(t, t.span), t.span > 0) for t in (query, key)))
  return same_sample & ((first_key[:, None] <= last_reach[:, :, None]) | same_span)


def _row(x: jax.Array, index: jax.Array) -> jax.Array:
  """Block `index[b]` of each row b: [B, blocks, ...] to [B, ...]."""
  return jax.vmap(lambda row, i: jax.lax.dynamic_index_in_dim(row, i, 0, keepdims=False))(x, index)


def _scores(q_i: jax.Array, k_j: jax.Array, mask: SortedBlocks, i: jax.Array, j: jax.Array) -> jax.Array:
  """Masked scores of query block i against key blocks j: f32[B, N, block, block]."""
  query = packed.TokenMeta(*(jax.lax.dynamic_index_in_dim(f, i, 1, keepdims=False) for f in mask.query))
  key = packed.TokenMeta(*(_row(f, j) for f in mask.key))
  scores = jnp.einsum('BNTH,BNSH->BNTS', q_i, k_j, preferred_element_type=jnp.float32)
  return jnp.where(masks.visible(query, key)[:, None], scores, online_softmax.MASK_VALUE)


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: SortedBlocks) -> jax.Array:
  return _forward(q, k, v, mask)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, mask: SortedBlocks):
  """All arrays [B, blocks, N, block, H]. Online softmax over the key blocks of each query block."""

  def query_block(_, i):
    q_i = jax.lax.dynamic_index_in_dim(q, i, 1, keepdims=False)
    order_i = jax.lax.dynamic_index_in_dim(mask.order, i, 1, keepdims=False)

    def visit(step, sums):
      j = order_i[:, step]
      v_j = _row(v, j)
      return online_softmax.update(
        sums,
        _scores(q_i, _row(k, j), mask, i, j),
        lambda w: jnp.einsum('BNTS,BNSH->BNTH', w.astype(v.dtype), v_j, preferred_element_type=jnp.float32),
      )

    nothing = online_softmax.init(q_i.shape[:-1], q_i.shape[-1])
    out, lse = online_softmax.finalize(jax.lax.fori_loop(0, mask.num_visits[i], visit, nothing))
    return None, (out.astype(q.dtype), lse)

  _, (out, lse) = jax.lax.scan(query_block, None, jnp.arange(q.shape[1]))
  # What the backward pass needs besides q, k and v: with these kept (models.remat) it need not run this again.
  out, lse = (checkpoint_name(jnp.moveaxis(x, 0, 1), base.OUTPUT_NAME) for x in (out, lse))
  return out, (q, k, v, mask, out, lse)


def _backward(saved, d_out: jax.Array):
  q, k, v, mask, out, lse = saved
  delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)  # [B, blocks, N, block]
  rows = jnp.arange(q.shape[0])

  def query_block(carry, i):
    q_i, d_out_i, lse_i, delta_i = (
      jax.lax.dynamic_index_in_dim(x, i, 1, keepdims=False) for x in (q, d_out, lse, delta)
    )
    order_i = jax.lax.dynamic_index_in_dim(mask.order, i, 1, keepdims=False)

    def visit(step, carry):
      d_k, d_v, d_q_i = carry
      j = order_i[:, step]
      k_j, v_j = _row(k, j), _row(v, j)
      scores = _scores(q_i, k_j, mask, i, j)
      weights = online_softmax.probabilities(scores, lse_i)
      d_v_j = jnp.einsum('BNTS,BNTH->BNSH', weights.astype(q.dtype), d_out_i, preferred_element_type=jnp.float32)
      d_weights = jnp.einsum('BNTH,BNSH->BNTS', d_out_i, v_j, preferred_element_type=jnp.float32)
      d_scores = (weights * (d_weights - delta_i[..., None])).astype(q.dtype)
      d_q_i = d_q_i + jnp.einsum('BNTS,BNSH->BNTH', d_scores, k_j, preferred_element_type=jnp.float32)
      d_k_j = jnp.einsum('BNTS,BNTH->BNSH', d_scores, q_i, preferred_element_type=jnp.float32)
      return d_k.at[rows, j].add(d_k_j), d_v.at[rows, j].add(d_v_j), d_q_i

    d_k, d_v, d_q_i = jax.lax.fori_loop(0, mask.num_visits[i], visit, (*carry, jnp.zeros(q_i.shape, jnp.float32)))
    return (d_k, d_v), d_q_i

  zeros = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
  (d_k, d_v), d_q = jax.lax.scan(query_block, zeros, jnp.arange(q.shape[1]))
  return jnp.moveaxis(d_q, 0, 1).astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_forward, _backward)
