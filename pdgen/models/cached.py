"""Attention of a few tokens to a cache: chunks of it are read where they lie, and those that nobody sees are skipped.

A step of decoding reads the whole cache of every layer, and little else. Of a cache with room for 800 tokens a
trajectory fills 300, and taking a layer out of it, or turning its heads to the front, copies all of it once more.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pdgen.core import masks, packed
from pdgen.models import online_softmax

CHUNK = 128  # slots


class Plan(NamedTuple):
  """What every layer needs.

  past, new: bool[B, T, S], bool[B, T, T]; which slots of the cache, and which of one another, the new tokens see.
  order: int32[chunks]; the chunks of the cache, those that anybody sees first. count: int32[]; how many these are.
  """

  past: jax.Array
  new: jax.Array
  order: jax.Array
  count: jax.Array


def prepare(query: packed.Tokens, past: packed.Tokens) -> Plan:
  """query: the new tokens, [B, T] a field. past: those in the cache, [B, S] a field."""
  visible = masks.visible(query, past)
  slots = visible.shape[-1]
  chunks = jnp.pad(jnp.any(visible, axis=(0, 1)), (0, -slots % CHUNK)).reshape(-1, CHUNK).any(axis=1)
  order = jnp.argsort(~chunks, stable=True).astype(jnp.int32)
  return Plan(visible, masks.visible(query, query), order, jnp.sum(chunks, dtype=jnp.int32))


def attend(
  q: jax.Array, k: jax.Array, v: jax.Array, past_k: jax.Array, past_v: jax.Array, layer: jax.Array, plan: Plan
) -> jax.Array:
  """Online softmax over the chunks. A query that sees nothing (padding) returns 0.

  q: [B, T, N, H]; k, v: [B, T, K, H], of the same tokens. past_k, past_v: [L, B, S, K, H], of which `layer` is read.
  Returns [B, T, N, H].
  """
  b, t, n, h = q.shape
  kv_heads, slots = past_k.shape[3], past_k.shape[2]
  size = min(CHUNK, slots)
  q = q.reshape(b, t, kv_heads, n // kv_heads, h) * jnp.asarray(h**-0.5, q.dtype)

  def add(sums, k, v, visible):
    """Keys and values [B, S, K, H], of which each query sees some: visible, bool[B, T, S]."""
    scores = jnp.einsum('BTKGH,BSKH->BKGTS', q, k, preferred_element_type=jnp.float32)
    return online_softmax.add(
      sums,
      jnp.where(visible[:, None, None], scores, online_softmax.HIDDEN),
      lambda w: jnp.einsum('BKGTS,BSKH->BKGTH', w.astype(v.dtype), v, preferred_element_type=jnp.float32),
    )

  def visit(i, sums):
    first = plan.order[i] * CHUNK
    start = jnp.minimum(first, slots - size)  # The last chunk may begin among the slots of the one before it.
    k, v = (jax.lax.dynamic_slice(x, (layer, 0, start, 0, 0), (1, b, size, *x.shape[3:]))[0] for x in (past_k, past_v))
    visible = jax.lax.dynamic_slice_in_dim(plan.past, start, size, axis=2)
    return add(sums, k, v, visible & (start + jnp.arange(size) >= first)[None, None])

  nothing = online_softmax.nothing((b, kv_heads, n // kv_heads, t), h)
  sums = jax.lax.fori_loop(0, plan.count, visit, add(nothing, k, v, plan.new))
  out, _ = online_softmax.result(sums)
  return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h).astype(q.dtype)
