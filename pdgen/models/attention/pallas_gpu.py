"""Attention on NVIDIA GPUs: Pallas (Triton) kernels that visit only the blocks in which somebody sees somebody.

FlashAttention-2 over lists of blocks that are made on the device from the tokens' metadata, so that any visibility of
`masks.visible` is taken: packed samples, full and noised copies, branches of guidance. Blocks that are seen as a whole
are not masked. Grouped queries read their kv head in place. On other platforms the kernels are interpreted, slowly: for
tests.

What a token sees, as two intervals in int32: its sample and order in one number (`_place`), and its span in another.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pdgen.core import packed
from pdgen.models.attention import base, blockwise

# Rows of queries and of keys that one program of a kernel holds.
BLOCK_Q, BLOCK_K = 128, 64
_NOWHERE = 2**31 - 1
_MASKED, _FLOOR = -1e30, -1e20  # Scores: of what is not seen, and what the running maximum starts from.


class Tokens(NamedTuple):
  """What decides who sees whom, of sorted and padded tokens: int32[B, T] each."""

  low: jax.Array  # Of queries: the first place of their sample; beyond all places for padding.
  high: jax.Array  # Of queries: the last place that they see.
  place: jax.Array  # Of keys: sample and order in one number; beyond all where only its own span sees it.
  span: jax.Array  # Sample and span in one number; below 0 where there is none, another one for queries and keys.


class Visits(NamedTuple):
  """The blocks of one side that each block of the other side meets."""

  blocks: jax.Array  # int32[B, blocks, blocks of the other side]; those seen as a whole first, then those in part.
  counts: jax.Array  # int32[B, blocks, 2]: how many are seen as a whole, and how many at all.


class BlockLists(NamedTuple):
  """A mask as lists of blocks."""

  query_sort: jax.Array  # int32[B, T], a permutation of the queries.
  key_sort: jax.Array  # int32[B, S], a permutation of the keys.
  query: Tokens
  key: Tokens
  of_queries: Visits  # The key blocks of each query block.
  of_keys: Visits  # The query blocks of each key block.

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, cache: base.KVCacheLayer | None) -> jax.Array:
    """Shapes as of `base.BlockMask`. Returns 0 where a query sees nothing."""
    k, v = base.concat_cache(k, v, cache)
    t, h = q.shape[1], q.shape[3]
    width = max(16, 1 << (h - 1).bit_length())  # Triton's blocks are powers of 2.
    q = _padded(blockwise.permute(q, self.query_sort), self.query.low.shape[1], width)
    k, v = (_padded(blockwise.permute(x, self.key_sort), self.key.low.shape[1], width) for x in (k, v))
    out: Any = _attend(q, k, v, self, h**-0.5)
    return blockwise.permute(out[:, :t, :, :h], jnp.argsort(self.query_sort, axis=1))


def prepare(query: packed.TokenMeta, key: packed.TokenMeta) -> BlockLists:
  """Sorts the tokens and lists the blocks to visit: never misses one, rarely visits an empty one."""
  query_sort, key_sort = blockwise.sort(query), blockwise.sort(key)
  queries = _tokens(query, query_sort, BLOCK_Q, no_span=-2)
  keys = _tokens(key, key_sort, BLOCK_K, no_span=-1)
  seen, whole = _sees(queries, keys)
  return BlockLists(
    query_sort, key_sort, queries, keys, _visits(seen, whole), _visits(seen.swapaxes(1, 2), whole.swapaxes(1, 2))
  )


def _tokens(tokens: packed.TokenMeta, sort: jax.Array, block: int, *, no_span: int) -> Tokens:
  t = packed.TokenMeta(*(blockwise.permute(field, sort) for field in tokens))
  t = packed.TokenMeta(*(jnp.pad(field, ((0, 0), (0, -field.shape[1] % block))) for field in t))
  real, sample = t.segment > 0, t.segment * blockwise.SAMPLE
  return Tokens(
    low=jnp.where(real, sample, _NOWHERE),
    high=jnp.where(real, sample + t.reach, -1),
    place=jnp.where(real & (t.noised == 0), sample + t.order, _NOWHERE),
    span=jnp.where(real & (t.span > 0), sample + t.span, no_span),
  )


def _sees(query: Tokens, key: Tokens) -> tuple[jax.Array, jax.Array]:
  """bool[B, query blocks, key blocks] each: any query of the block may see any key of the other; all see all."""

  def bounds(x: jax.Array, block: int, *, axis: int, least: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest value of each block; `least`: of those that are no smaller and not _NOWHERE."""
    x = x.reshape(x.shape[0], -1, block)
    counted = jnp.ones_like(x, bool) if least is None else (x >= least) & (x < _NOWHERE)
    low = jnp.min(jnp.where(counted, x, _NOWHERE), axis=-1)
    high = jnp.max(jnp.where(counted, x, -_NOWHERE), axis=-1)
    return jnp.expand_dims(low, axis), jnp.expand_dims(high, axis)

  of_query, of_key = functools.partial(bounds, block=BLOCK_Q, axis=2), functools.partial(bounds, block=BLOCK_K, axis=1)
  (low, all_low), (all_high, high) = of_query(query.low), of_query(query.high)
  (first, _), (_, last) = of_key(key.place), of_key(key.place, least=0)
  _, farthest = of_key(key.place)
  by_order = (first <= high) & (last >= low)
  (q_span, q_last), (k_span, k_last) = of_query(query.span, least=0), of_key(key.span, least=0)
  by_span = (q_span <= k_last) & (k_span <= q_last)
  # Padding among queries makes all_low _NOWHERE and all_high -1; noised keys and padding make `farthest` _NOWHERE.
  whole = (first >= all_low) & (farthest <= all_high)
  (q_span, q_last), (k_span, k_last) = of_query(query.span), of_key(key.span)
  whole |= (q_span == q_last) & (k_span == k_last) & (q_span == k_span)
  return by_order | by_span, whole


def _visits(seen: jax.Array, whole: jax.Array) -> Visits:
  rank = jnp.where(whole, 0, jnp.where(seen, 1, 2))
  counts = jnp.stack([jnp.sum(whole, axis=-1), jnp.sum(seen | whole, axis=-1)], axis=-1)
  return Visits(jnp.argsort(rank, axis=-1, stable=True).astype(jnp.int32), counts.astype(jnp.int32))


def _padded(x: jax.Array, tokens: int, width: int) -> jax.Array:
  """[B, T, heads, H] to [B, tokens, heads, width]."""
  return jnp.pad(x, ((0, 0), (0, tokens - x.shape[1]), (0, 0), (0, width - x.shape[3])))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockLists, scale: float) -> jax.Array:
  return _forward(q, k, v, mask, scale)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockLists, scale: float):
  """q: [B, T, N, H]; k, v: [B, S, K, H]; whole blocks of tokens."""
  (b, t, n, h), (s, kv) = q.shape, k.shape[1:3]
  of_query = [_row((BLOCK_Q,)) for _ in range(3)]
  of_key = [_whole((s,)) for _ in range(2)]
  out, lse = _call(
    functools.partial(_forward_kernel, scale=scale),
    grid=(t // BLOCK_Q, b, n),
    in_specs=[
      _head((BLOCK_Q,), h),
      *(_whole_head(s, h, n // kv),) * 2,
      *of_query,
      *of_key,
      _row((1, s // BLOCK_K)),
      _row((1, 2)),
    ],
    out_specs=[_head((BLOCK_Q,), h), _by_head(BLOCK_Q)],
    out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((b, n, t), jnp.float32)],
    name='attention_forward',
  )(q, k, v, mask.query.low, mask.query.high, mask.query.span, mask.key.place, mask.key.span, *mask.of_queries)
  # What the backward pass needs besides q, k and v: with these kept (models.remat) it need not run this again.
  out, lse = (checkpoint_name(x, base.OUTPUT_NAME) for x in (out, lse))
  return out, (q, k, v, mask, out, lse)


def _backward(scale: float, saved: Any, d_out: jax.Array):
  q, k, v, mask, out, lse = saved
  (b, t, n, h), (s, kv) = q.shape, k.shape[1:3]
  d_out = d_out.astype(q.dtype)
  delta = jnp.einsum('BTNH,BTNH->BNT', out, d_out, preferred_element_type=jnp.float32)
  tokens = (mask.query.low, mask.query.high, mask.query.span, mask.key.place, mask.key.span)
  d_q = _call(
    functools.partial(_d_query_kernel, scale=scale),
    grid=(t // BLOCK_Q, b, n),
    in_specs=[
      _head((BLOCK_Q,), h),
      *(_whole_head(s, h, n // kv),) * 2,
      *(_row((BLOCK_Q,)) for _ in range(3)),
      *(_whole((s,)) for _ in range(2)),
      _row((1, s // BLOCK_K)),
      _row((1, 2)),
      _head((BLOCK_Q,), h),
      *(_by_head(BLOCK_Q) for _ in range(2)),
    ],
    out_specs=_head((BLOCK_Q,), h),
    out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
    name='attention_d_query',
  )(q, k, v, *tokens, *mask.of_queries, d_out, lse, delta)
  group = n // kv
  of_group = pl.BlockSpec((None, t, group, h), lambda i, b, n: (b, 0, n, 0))
  by_group = pl.BlockSpec((None, group, t), lambda i, b, n: (b, n, 0))
  d_k, d_v = _call(
    functools.partial(_d_key_kernel, scale=scale, group=group),
    grid=(s // BLOCK_K, b, kv),
    in_specs=[
      of_group,
      *(_head((BLOCK_K,), h),) * 2,
      *(_whole((t,)) for _ in range(3)),
      *(_row((BLOCK_K,)) for _ in range(2)),
      _row((1, t // BLOCK_Q)),
      _row((1, 2)),
      of_group,
      by_group,
      by_group,
    ],
    out_specs=[_head((BLOCK_K,), h)] * 2,
    out_shape=[jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)],
    name='attention_d_key',
  )(q, k, v, *tokens, *mask.of_keys, d_out, lse, delta)
  return d_q, d_k, d_v, None


_attend.defvjp(_forward, _backward)


# Block specs of a grid of (block, row of the batch, head).


def _head(block: tuple[int], h: int) -> pl.BlockSpec:
  """A block of tokens of one head: of [B, T, N, H]."""
  return pl.BlockSpec((None, *block, None, h), lambda i, b, n: (b, i, n, 0))


def _whole_head(s: int, h: int, group: int) -> pl.BlockSpec:
  """All tokens of the kv head of a query head: of [B, S, K, H]."""
  return pl.BlockSpec((None, s, None, h), lambda i, b, n: (b, 0, jax.lax.div(n, group), 0))


def _row(shape: tuple[int, ...]) -> pl.BlockSpec:
  """A block of [B, T], or with shape (1, X) row i of [B, blocks, X]."""
  if len(shape) == 1:
    return pl.BlockSpec((None, *shape), lambda i, b, n: (b, i))
  return pl.BlockSpec((None, None, *shape[1:]), lambda i, b, n: (b, i, 0))


def _whole(shape: tuple[int]) -> pl.BlockSpec:
  """All of [B, T]'s row."""
  return pl.BlockSpec((None, *shape), lambda i, b, n: (b, 0))


def _by_head(block: int) -> pl.BlockSpec:
  """A block of tokens: of [B, N, T]."""
  return pl.BlockSpec((None, None, block), lambda i, b, n: (b, n, i))


class Launch(NamedTuple):
  """How a kernel is compiled: warps of a program, and stages of its software pipeline."""

  num_warps: int
  num_stages: int


LAUNCH = {'attention_forward': Launch(8, 3), 'attention_d_query': Launch(8, 2), 'attention_d_key': Launch(8, 2)}


def _call(kernel: Any, *, name: str, **options: Any) -> Any:
  """The kernel compiled where the program is for NVIDIA GPUs, and interpreted elsewhere."""

  def run(*args: jax.Array, interpret: bool) -> Any:
    params = plgpu.CompilerParams(**LAUNCH[name]._asdict())
    return pl.pallas_call(kernel, compiler_params=params, interpret=interpret, name=name, **options)(*args)

  return lambda *args: jax.lax.platform_dependent(
    *args, cuda=functools.partial(run, interpret=False), default=functools.partial(run, interpret=True)
  )


_LOG2_E = math.log2(math.e)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
  """In float32, of float32 operands too: Triton would round them to 10 bits."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _visible(low: jax.Array, high: jax.Array, q_span: jax.Array, place: jax.Array, k_span: jax.Array) -> jax.Array:
  """bool[queries, keys]; of arrays that broadcast so."""
  return ((place >= low) & (place <= high)) | (k_span == q_span)


def _walk(blocks: Any, counts: Any, body: Any, carry: Any) -> Any:
  """body(block, carry, masked) over the blocks seen as a whole, then over those seen in part."""
  whole, seen = counts[0], counts[1]
  carry = jax.lax.fori_loop(0, whole, lambda i, c: body(blocks[i], c, masked=False), carry)
  return jax.lax.fori_loop(whole, seen, lambda i, c: body(blocks[i], c, masked=True), carry)


def _forward_kernel(q, k, v, low, high, q_span, place, k_span, blocks, counts, out, lse, *, scale: float):
  queries = q[...]
  mine = low[...][:, None], high[...][:, None], q_span[...][:, None]

  def visit(j, carry, *, masked: bool):
    acc, largest, denominator = carry
    rows = pl.ds(j * BLOCK_K, BLOCK_K)
    scores = _dot(queries, k[rows, :].T) * (scale * _LOG2_E)
    if masked:
      scores = jnp.where(_visible(*mine, place[rows][None], k_span[rows][None]), scores, _MASKED)
    larger = jnp.maximum(largest, jnp.max(scores, axis=1))
    weights, shrink = jnp.exp2(scores - larger[:, None]), jnp.exp2(largest - larger)
    acc = acc * shrink[:, None] + _dot(weights.astype(v.dtype), v[rows, :])
    return acc, larger, denominator * shrink + jnp.sum(weights, axis=1)

  n, h = queries.shape
  start = jnp.zeros((n, h), jnp.float32), jnp.full((n,), _FLOOR, jnp.float32), jnp.zeros((n,), jnp.float32)
  acc, largest, denominator = _walk(blocks, counts, visit, start)
  denominator = jnp.maximum(denominator, 1e-30)
  out[...] = (acc / denominator[:, None]).astype(out.dtype)
  lse[...] = largest + jnp.log2(denominator)


def _d_query_kernel(q, k, v, low, high, q_span, place, k_span, blocks, counts, d_out, lse, delta, d_q, *, scale: float):
  queries, d = q[...], d_out[...]
  lse, delta = lse[...][:, None], delta[...][:, None]
  mine = low[...][:, None], high[...][:, None], q_span[...][:, None]

  def visit(j, acc, *, masked: bool):
    rows = pl.ds(j * BLOCK_K, BLOCK_K)
    keys = k[rows, :]
    scores = _dot(queries, keys.T) * (scale * _LOG2_E)
    if masked:
      scores = jnp.where(_visible(*mine, place[rows][None], k_span[rows][None]), scores, _MASKED)
    d_scores = jnp.exp2(scores - lse) * (_dot(d, v[rows, :].T) - delta)
    return acc + _dot(d_scores.astype(keys.dtype), keys)

  acc = _walk(blocks, counts, visit, jnp.zeros(queries.shape, jnp.float32))
  d_q[...] = (acc * scale).astype(d_q.dtype)


def _d_key_kernel(
  q, k, v, low, high, q_span, place, k_span, blocks, counts, d_out, lse, delta, d_k, d_v, *, scale: float, group: int
):
  keys, values = k[...], v[...]
  mine = place[...][:, None], k_span[...][:, None]

  def of_head(g, carry):
    def visit(i, carry, *, masked: bool):
      d_keys, d_values = carry
      rows = pl.ds(i * BLOCK_Q, BLOCK_Q)
      queries, d = q[rows, g, :], d_out[rows, g, :]
      scores = _dot(keys, queries.T) * (scale * _LOG2_E)
      if masked:
        visible = _visible(low[rows][None], high[rows][None], q_span[rows][None], *mine)
        scores = jnp.where(visible, scores, _MASKED)
      weights = jnp.exp2(scores - lse[g, rows][None])
      d_values = d_values + _dot(weights.astype(d.dtype), d)
      d_scores = weights * (_dot(values, d.T) - delta[g, rows][None])
      return d_keys + _dot(d_scores.astype(queries.dtype), queries), d_values

    return _walk(blocks, counts, visit, carry)

  zeros = jnp.zeros(keys.shape, jnp.float32)
  d_keys, d_values = jax.lax.fori_loop(0, group, of_head, (zeros, zeros))
  d_k[...] = (d_keys * scale).astype(d_k.dtype)
  d_v[...] = d_values.astype(d_v.dtype)
