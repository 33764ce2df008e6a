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
from pdgen.models import blockwise


class Past(NamedTuple):
  """Keys and values computed before, with the tokens they belong to.

  k, v: [L, B, S, K, H] (inside a layer: [B, S, K, H]), after norm and RoPE.
  tokens: int32[B, S] metadata; segment 0 marks an empty slot.
  """

  k: jax.Array
  v: jax.Array
  tokens: packed.Tokens


class Implementation(NamedTuple):
  """prepare: (query tokens, key tokens) -> plan, any pytree. attend: (q, keys, values, plan) -> [B, T, N, H].

  keys and values are tuples of [B, S_i, K, H], in the order of the key tokens: the cache and the new tokens are
  attended to where they lie, never copied together.
  """

  prepare: Callable[[packed.Tokens, packed.Tokens], Any]
  attend: Callable[..., jax.Array]


def _prepare_reference(query: packed.Tokens, key: packed.Tokens) -> jax.Array:
  return masks.visible(query, key)


def _attend_reference(
  q: jax.Array, keys: tuple[jax.Array, ...], values: tuple[jax.Array, ...], plan: jax.Array
) -> jax.Array:
  """Materialised mask, float32 softmax, grouped queries (query head n uses kv head n // (N / K)).

  q: [B, T, N, H]. plan: bool[B, T, S]. A query that sees nothing (padding) returns a finite, meaningless value.
  """
  b, t, n, h = q.shape
  kv_heads = keys[0].shape[2]
  q = q.reshape(b, t, kv_heads, n // kv_heads, h) * jnp.asarray(h**-0.5, q.dtype)
  scores = [jnp.einsum('BTKGH,BSKH->BKGTS', q, k, preferred_element_type=jnp.float32) for k in keys]
  scores = scores[0] if len(scores) == 1 else jnp.concatenate(scores, axis=-1)
  scores = jnp.where(plan[:, None, None], scores, jnp.float32(-1e30))
  weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
  out, start = 0.0, 0
  for v in values:
    out = out + jnp.einsum('BKGTS,BSKH->BTKGH', weights[..., start : start + v.shape[1]], v)
    start += v.shape[1]
  return out.reshape(b, t, n, -1)


def _prepare_blockwise(query: packed.Tokens, key: packed.Tokens) -> blockwise.Plan | jax.Array:
  # Padding the one or two tokens of a decoding step to a block of 128 costs more than looking at every key does.
  few = query.order.shape[1] < blockwise.BLOCK // 8
  return _prepare_reference(query, key) if few else blockwise.prepare(query, key)


def _attend_blockwise(
  q: jax.Array, keys: tuple[jax.Array, ...], values: tuple[jax.Array, ...], plan: blockwise.Plan | jax.Array
) -> jax.Array:
  attend = blockwise.attend if isinstance(plan, blockwise.Plan) else _attend_reference
  return attend(q, keys, values, plan)


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

  def prepare(query: packed.Tokens, key: packed.Tokens) -> Any:
    split = _is_split(query.order)
    spec = sharding.fitting(query.order.shape, sharding.ROWS, 'sequence')

    def local(query: packed.Tokens, key: packed.Tokens) -> Any:
      return jax.tree.map(lambda x: x[None], base.prepare(query, _whole(key) if split else key))

    # check_vma=False: loops inside start from constants, which are the same on all devices.
    return jax.shard_map(local, in_specs=(spec, spec), out_specs=_DEVICES, check_vma=False)(query, key)

  return prepare


def _attend_over_mesh(base: Implementation) -> Callable[..., jax.Array]:
  """Plan: of `_prepare_over_mesh`. kv heads that the `tensor` axis does not divide are not split over it."""

  def attend(q: jax.Array, keys: tuple[jax.Array, ...], values: tuple[jax.Array, ...], plan: Any) -> jax.Array:
    split = _is_split(q)
    if split and len(keys) > 1:
      raise ValueError('A row with a past is not split: set config.mesh.sequence to 1 to sample.')
    heads = 'tensor' if keys[0].shape[2] % sharding.parts('tensor') == 0 else None
    spec = sharding.fitting(q.shape, sharding.ROWS, 'sequence', heads)

    def local(q: jax.Array, keys: tuple[jax.Array, ...], values: tuple[jax.Array, ...], plan: Any) -> jax.Array:
      if split:
        keys, values = _whole((keys, values))
      return base.attend(q, keys, values, jax.tree.map(lambda x: x[0], plan))

    mapped = jax.shard_map(local, in_specs=(spec, spec, spec, _DEVICES), out_specs=spec, check_vma=False)
    return mapped(q, keys, values, plan)

  return attend


def _is_split(x: jax.Array) -> bool:
  """Whether the tokens of x [B, T, ...] are split over the mesh; a length that does not divide is not."""
  return sharding.parts('sequence') > 1 and x.shape[1] % sharding.parts('sequence') == 0


def _whole(tree: Any) -> Any:
  """The tokens of all parts of the row, [B, T / parts, ...] to [B, T, ...], in every leaf."""
  return jax.tree.map(lambda x: jax.lax.all_gather(x, 'sequence', axis=1, tiled=True), tree)
