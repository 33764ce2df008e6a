"""Attention over tokens that carry their own visibility (`core.masks.visible`): one interface, several implementations.

`auto` is the fastest one for the devices of the program: `pallas_gpu` on Hopper GPUs, `blockwise` elsewhere.

An implementation is a function from metadata to a `BlockMask`, which is made once a forward pass; `attend` applies it
in every layer. All have the reference's results, forward and backward.

On a mesh each device runs the implementation on its own rows, its own heads and its own queries (`sequence` splits a
row); the keys and values of its rows are gathered from the devices that hold the rest of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec as P

from pdgen.core import mesh as mesh_lib
from pdgen.core import packed
from pdgen.models.attention import base, blockwise, decode, pallas_gpu, reference
from pdgen.models.attention.base import BlockMask as BlockMask
from pdgen.models.attention.base import KVCache as KVCache
from pdgen.models.attention.base import KVCacheLayer as KVCacheLayer

OUTPUT_NAME = base.OUTPUT_NAME
# (query, key, cache) metadata -> BlockMask. query, key: of the tokens of q [B, T, N, H] and of k, v [B, S, K, H].
# cache: of what came before, or None.
Prepare = Callable[[packed.TokenMeta, packed.TokenMeta, packed.TokenMeta | None], BlockMask]


def _reference(query: packed.TokenMeta, key: packed.TokenMeta, cache: packed.TokenMeta | None) -> BlockMask:
  return reference.prepare(query, base.with_cache(key, cache))


def _blockwise(query: packed.TokenMeta, key: packed.TokenMeta, cache: packed.TokenMeta | None) -> BlockMask:
  if cache is not None:
    return decode.prepare(query, cache, few=_FEW)
  # Padding a prompt of a few tokens to a block of 128 costs more than looking at every key does.
  if query.order.shape[1] < blockwise.BLOCK // 8:
    return _reference(query, key, cache)
  return blockwise.prepare(query, key)


def _pallas_gpu(query: packed.TokenMeta, key: packed.TokenMeta, cache: packed.TokenMeta | None) -> BlockMask:
  if cache is not None and query.order.shape[1] <= _FEW:
    return decode.prepare(query, cache, few=_FEW, chunk=_GPU_CHUNK)
  return pallas_gpu.prepare(query, base.with_cache(key, cache))


_GPU_CHUNK = 8192  # Slots of the cache: a GPU reads them in less time than a loop over chunks takes to turn.
_FEW = 2 * blockwise.BLOCK  # New tokens whose scores may be held for a whole chunk of the cache.

AUTO = 'auto'
_HOPPER = ('NVIDIA H100', 'NVIDIA H200', 'NVIDIA GH200')
IMPLEMENTATIONS: dict[str, Prepare] = {
  'reference': _reference,
  'blockwise': _blockwise,
  'pallas_gpu': _pallas_gpu,
}
NAMES = (AUTO, *IMPLEMENTATIONS)  # That a config may say.


def check(name: str):
  """Raises ValueError for an unknown name."""
  if name not in NAMES:
    raise ValueError(f'Unknown attention {name!r}. Known: {sorted(NAMES)}')


def prepare(
  name: str, query: packed.TokenMeta, key: packed.TokenMeta, cache: packed.TokenMeta | None = None
) -> BlockMask:
  """The mask that every layer of a forward pass needs, on the mesh of the program being traced.

  Args:
    name: of one of IMPLEMENTATIONS, or AUTO.
    query: metadata of the new tokens, int32[B, T] a field.
    key: of the tokens of k and v.
    cache: of the tokens in a KV cache that come before them; None without one.

  Raises: ValueError for an unknown name.
  """
  check(name)
  if name == AUTO:
    # Tried on an H200 and compiled for H100; other GPUs have less shared memory than the kernels' blocks take.
    name = 'pallas_gpu' if mesh_lib.device_kind().startswith(_HOPPER) else 'blockwise'
  if mesh_lib.current_mesh() is None:
    return IMPLEMENTATIONS[name](query, key, cache)
  return _prepare_over_mesh(IMPLEMENTATIONS[name], query, key, cache)


def attend(mask: BlockMask, q: jax.Array, k: jax.Array, v: jax.Array, cache: KVCacheLayer | None = None) -> jax.Array:
  """q: [B, T, N, H]; k, v: [B, S, K, H]. Returns [B, T, N, H].

  A query that sees nothing (padding) returns a finite, meaningless value.
  """
  with jax.named_scope('attention'):
    return mask.attend(q, k, v, cache)


_DEVICES = P((*mesh_lib.ROWS, 'sequence'))  # Of what each device holds for itself, along a leading axis of devices.


class _OverMesh(NamedTuple):
  """The mask of each device, with a leading axis over the devices."""

  local: Any

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, cache: KVCacheLayer | None) -> jax.Array:
    """kv heads that the `tensor` axis does not divide are not split over it."""
    split = _is_split(q)
    if split and cache is not None:
      raise ValueError('A row with a KV cache is not split: set config.mesh.sequence to 1 to sample.')
    heads = 'tensor' if k.shape[2] % mesh_lib.axis_size('tensor') == 0 else None
    spec = mesh_lib.drop_indivisible(q.shape, mesh_lib.ROWS, 'sequence', heads)

    def local(mask: Any, q: jax.Array, k: jax.Array, v: jax.Array, cache: KVCacheLayer | None) -> jax.Array:
      if split:
        k, v = _all_gather_tokens((k, v))
      return jax.tree.map(lambda x: x[0], mask).attend(q, k, v, cache)

    of_cache = P(None, spec[0], spec[2])
    layers = KVCacheLayer._make([of_cache, of_cache, P()])  # Partitions in the place of arrays.
    specs = (_DEVICES, spec, spec, spec, None if cache is None else layers)
    return jax.shard_map(local, in_specs=specs, out_specs=spec, check_vma=False)(self.local, q, k, v, cache)


def _prepare_over_mesh(
  make: Prepare, query: packed.TokenMeta, key: packed.TokenMeta, cache: packed.TokenMeta | None
) -> _OverMesh:
  """Each device's mask for its own queries and all keys of its rows."""
  split = _is_split(query.order)
  spec = mesh_lib.drop_indivisible(query.order.shape, mesh_lib.ROWS, 'sequence')

  def local(query: packed.TokenMeta, key: packed.TokenMeta, cache: packed.TokenMeta | None) -> Any:
    return jax.tree.map(lambda x: x[None], make(query, _all_gather_tokens(key) if split else key, cache))

  # check_vma=False: loops inside start from constants, which are the same on all devices.
  mapped = jax.shard_map(local, in_specs=(spec, spec, spec), out_specs=_DEVICES, check_vma=False)
  return _OverMesh(mapped(query, key, cache))


def _is_split(x: jax.Array) -> bool:
  """Whether the tokens of x [B, T, ...] are split over the mesh; a length that does not divide is not."""
  return mesh_lib.axis_size('sequence') > 1 and x.shape[1] % mesh_lib.axis_size('sequence') == 0


def _all_gather_tokens(tree: Any) -> Any:
  """The tokens of all parts of the row, [B, T / parts, ...] to [B, T, ...], in every leaf."""
  return jax.tree.map(lambda x: jax.lax.all_gather(x, 'sequence', axis=1, tiled=True), tree)
