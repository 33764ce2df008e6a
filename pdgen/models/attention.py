"""Attention over tokens that carry their own visibility (`core.masks.visible`).

An implementation is a pair: `prepare(query, key)` turns metadata into what every layer needs, once a forward
pass; `attend` is called in every layer. All have the reference's results, forward and backward.

On a mesh each device runs the implementation on its own rows, its own heads and its own queries (`sequence` splits a
row); the keys and values of its rows are gathered from the devices that hold the rest of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from pdgen.core import masks, packed, sharding
from pdgen.models import blockwise, cached


class Past(NamedTuple):
  """Keys and values computed before, with the tokens they belong to.

  k, v: [L, B, S, K, H], after norm and RoPE. tokens: int32[B, S] metadata; segment 0 marks an empty slot.
  """

  k: jax.Array
  v: jax.Array
  tokens: packed.Tokens


class PastLayer(NamedTuple):
  """A layer of a past, not yet taken out of it: k, v: [L, B, S, K, H], all of it. layer: int32[], which."""

  k: jax.Array
  v: jax.Array
  layer: jax.Array

  def taken_out(self) -> tuple[jax.Array, jax.Array]:
    """k, v of the layer: [B, S, K, H]."""
    return self.k[self.layer], self.v[self.layer]


class Implementation(NamedTuple):
  """prepare: (query, key, past) -> plan, any pytree. attend: (q, k, v, plan, past) -> [B, T, N, H].

  query, key: metadata of the tokens of q [B, T, N, H] and of k, v [B, S, K, H]. past: None, or the metadata of what
  came before, and its PastLayer.
  """

  prepare: Callable[..., Any]
  attend: Callable[..., jax.Array]


def _prepare_reference(query: packed.Tokens, key: packed.Tokens, past: packed.Tokens | None = None) -> jax.Array:
  return masks.visible(query, _all(key, past))


def _attend_reference(
  q: jax.Array, k: jax.Array, v: jax.Array, plan: jax.Array, past: PastLayer | None = None
) -> jax.Array:
  """Materialised mask, float32 softmax, grouped queries (query head n uses kv head n // (N / K)).

  q: [B, T, N, H]. plan: bool[B, T, S]. A query that sees nothing (padding) returns a finite, meaningless value.
  """
  k, v = _with_past(k, v, past)
  b, t, n, h = q.shape
  kv_heads = k.shape[2]
  q = q.reshape(b, t, kv_heads, n // kv_heads, h) * jnp.asarray(h**-0.5, q.dtype)
  scores = jnp.einsum('BTKGH,BSKH->BKGTS', q, k, preferred_element_type=jnp.float32)
  scores = jnp.where(plan[:, None, None], scores, jnp.float32(-1e30))
  weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
  return jnp.einsum('BKGTS,BSKH->BTKGH', weights, v).reshape(b, t, n, -1)


def _prepare_blockwise(
  query: packed.Tokens, key: packed.Tokens, past: packed.Tokens | None = None
) -> blockwise.Plan | cached.Plan | jax.Array:
  tokens = query.order.shape[1]
  if past is not None and tokens <= _FEW:
    return cached.prepare(query, past)
  # Padding a prompt of a few tokens to a block of 128 costs more than looking at every key does.
  if tokens < blockwise.BLOCK // 8:
    return _prepare_reference(query, key, past)
  return blockwise.prepare(query, _all(key, past))


_FEW = 2 * blockwise.BLOCK  # New tokens whose scores may be held for a whole chunk of the cache.


def _attend_blockwise(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  plan: blockwise.Plan | cached.Plan | jax.Array,
  past: PastLayer | None = None,
) -> jax.Array:
  if isinstance(plan, cached.Plan):
    return cached.attend(q, k, v, *past, plan)
  if isinstance(plan, blockwise.Plan):
    return blockwise.attend(q, *_with_past(k, v, past), plan)
  return _attend_reference(q, k, v, plan, past)


def _all(key: packed.Tokens, past: packed.Tokens | None) -> packed.Tokens:
  """The past, then the new tokens."""
  if past is None:
    return key
  return packed.Tokens(*(jnp.concatenate(pair, axis=1) for pair in zip(past, key, strict=True)))


def _with_past(k: jax.Array, v: jax.Array, past: PastLayer | None) -> tuple[jax.Array, jax.Array]:
  if past is None:
    return k, v
  return tuple(jnp.concatenate(pair, axis=1) for pair in zip(past.taken_out(), (k, v), strict=True))


IMPLEMENTATIONS: dict[str, Implementation] = {
  'reference': Implementation(_prepare_reference, _attend_reference),
  'blockwise': Implementation(_prepare_blockwise, _attend_blockwise),
}


def implementation(name: str) -> Implementation:
  """The implementation of that name, on the mesh of the program being traced. Raises ValueError for an unknown name."""
  if name not in IMPLEMENTATIONS:
    raise ValueError(f'Unknown attention {name!r}. Known: {sorted(IMPLEMENTATIONS)}')
  base = IMPLEMENTATIONS[name]
  return base if sharding.active() is None else Implementation(_prepare_over_mesh(base), _attend_over_mesh(base))


_DEVICES = P((*sharding.ROWS, 'sequence'))  # Of what each device holds for itself, along a leading axis of devices.


def _prepare_over_mesh(base: Implementation) -> Callable[[packed.Tokens, packed.Tokens], Any]:
  """Each device's plan for its own queries and all keys of its rows, with a leading axis over the devices."""

  def prepare(query: packed.Tokens, key: packed.Tokens, past: packed.Tokens | None = None) -> Any:
    split = _is_split(query.order)
    spec = sharding.fitting(query.order.shape, sharding.ROWS, 'sequence')

    def local(query: packed.Tokens, key: packed.Tokens, past: packed.Tokens | None) -> Any:
      return jax.tree.map(lambda x: x[None], base.prepare(query, _whole(key) if split else key, past))

    # check_vma=False: loops inside start from constants, which are the same on all devices.
    mapped = jax.shard_map(local, in_specs=(spec, spec, spec), out_specs=_DEVICES, check_vma=False)
    return mapped(query, key, past)

  return prepare


def _attend_over_mesh(base: Implementation) -> Callable[..., jax.Array]:
  """Plan: of `_prepare_over_mesh`. kv heads that the `tensor` axis does not divide are not split over it."""

  def attend(q: jax.Array, k: jax.Array, v: jax.Array, plan: Any, past: PastLayer | None = None) -> jax.Array:
    split = _is_split(q)
    if split and past is not None:
      raise ValueError('A row with a past is not split: set config.mesh.sequence to 1 to sample.')
    heads = 'tensor' if k.shape[2] % sharding.parts('tensor') == 0 else None
    spec = sharding.fitting(q.shape, sharding.ROWS, 'sequence', heads)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, plan: Any, past: PastLayer | None) -> jax.Array:
      if split:
        k, v = _whole((k, v))
      return base.attend(q, k, v, jax.tree.map(lambda x: x[0], plan), past)

    layers = PastLayer(P(None, *spec), P(None, *spec), P())
    specs = (spec, spec, spec, _DEVICES, None if past is None else layers)
    return jax.shard_map(local, in_specs=specs, out_specs=spec, check_vma=False)(q, k, v, plan, past)

  return attend


def _is_split(x: jax.Array) -> bool:
  """Whether the tokens of x [B, T, ...] are split over the mesh; a length that does not divide is not."""
  return sharding.parts('sequence') > 1 and x.shape[1] % sharding.parts('sequence') == 0


def _whole(tree: Any) -> Any:
  """The tokens of all parts of the row, [B, T / parts, ...] to [B, T, ...], in every leaf."""
  return jax.tree.map(lambda x: jax.lax.all_gather(x, 'sequence', axis=1, tiled=True), tree)
