"""Weight-only quantisation for sampling: int8 per output channel, int4 per block of 32 rows.

What is quantised: the kernels of the scanned layers (both experts, ViT), 92 % of BAGEL-7B's parameters. The language
head stays, whose dequantised copy would take more than it saves; so do embeddings, norms, biases, adapters, latent
projections, connector and VAE, activations and the KV cache. A quantised kernel is a pytree of two arrays in the place
of the kernel in the nested dict of parameters; `layers.Linear` computes with it. Layers are scanned: no more than one
is ever dequantised.

int8: q = round(w / s), s = max |w| of the output channel / 127 (symmetric). int4: q = round(w / s), s = -m / 8, m the
value of largest magnitude of a block with its sign, so that all 16 levels are used (llama.cpp's Q4_0); s is rounded to
bfloat16 first. Every weight takes 4.5 bits. Why not qwix: docs/experiments.md#quantised-weights.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from pdgen.models import params as params_lib

KINDS = ('int8', 'int4')
BLOCK = 32  # Rows of an int4 scale; fewer where the rows are no multiple.
BYTES = {'int8': 1.0, 'int4': 4.5 / 8}  # Of a weight, its share of the scales included where it counts.
_SMALLEST = 8  # Rows of a block, below which scales take more than int8 would.


class Quantized(struct.PyTreeNode):
  """A matrix [.., in, out] as integers and their scales. Leading axes (layers) may be scanned."""

  values: jax.Array  # int8[.., in, out]; or uint8[.., in / 2, out]: rows 2 i in the low, 2 i + 1 in the high half, + 8.
  scale: jax.Array  # f32[.., 1, out]; or bf16[.., blocks, out].

  @property
  def kind(self) -> str:
    return 'int8' if self.values.dtype == jnp.int8 else 'int4'


def params(tree: Any, kind: str) -> Any:
  """The parameters with their large matrices quantised, leaf by leaf. Those that are so already stay.

  Args:
    tree: nested dict of arrays, on a mesh or not.
    kind: `int8` or `int4`.

  Raises: ValueError for another kind, or for a tree that is quantised as the other one.
  """
  check(kind)

  def convert(path: tuple[Any, ...], leaf: Any) -> Any:
    if isinstance(leaf, Quantized):
      if leaf.kind != kind:
        raise ValueError(f'The weights are {leaf.kind} already; {kind} is made of whole ones. Load the model again.')
      return leaf
    return matrix(leaf, kind) if is_quantizable('/'.join(str(key.key) for key in path), leaf.shape) else leaf

  return jax.tree_util.tree_map_with_path(convert, tree, is_leaf=lambda x: isinstance(x, Quantized))


def check(kind: str):
  """Raises ValueError for an unknown kind."""
  if kind not in KINDS:
    raise ValueError(f'Unknown quantisation {kind!r}. Known: {list(KINDS)}')


def is_quantizable(name: str, shape: tuple[int, ...]) -> bool:
  """Whether the parameter of that path and shape is quantised: a matrix of the scanned layers."""
  return params_lib.is_hidden_matrix(name) and math.gcd(shape[-2], BLOCK) >= _SMALLEST


@functools.partial(jax.jit, static_argnames='kind')
def matrix(w: jax.Array, kind: str) -> Quantized:
  """Quantises [.., in, out], one matrix after the other: at most one is in float32 at a time."""
  convert = {'int8': _to_int8, 'int4': _to_int4}[kind]
  for _ in w.shape[:-2]:
    convert = functools.partial(jax.lax.map, convert)
  return convert(w)


def whole(tree: Any, dtype: jax.typing.DTypeLike) -> Any:
  """The parameters with each quantised matrix as the numbers that it stands for."""

  def convert(leaf: Any) -> Any:
    if not isinstance(leaf, Quantized):
      return leaf
    one = functools.partial(dequantize, dtype=dtype)
    return (jax.vmap(one) if leaf.values.ndim == 3 else one)(leaf)

  return jax.tree.map(convert, tree, is_leaf=lambda x: isinstance(x, Quantized))


def dequantize(w: Quantized, dtype: jax.typing.DTypeLike) -> jax.Array:
  """The matrix [in, out]. For more axes: `jax.vmap`."""
  if w.kind == 'int8':
    return w.values.astype(dtype) * jnp.broadcast_to(w.scale.astype(dtype), w.values.shape)
  rows, out = 2 * w.values.shape[0], w.values.shape[1]
  low, high = w.values & 15, w.values >> 4
  q = jnp.stack([low, high], axis=1).reshape(w.scale.shape[0], -1, out).astype(dtype) - jnp.asarray(8, dtype)
  return (q * w.scale.astype(dtype)[:, None]).reshape(rows, out)


def matmul(x: jax.Array, w: jax.Array | Quantized) -> jax.Array:
  """x w in the type of x: [T, in] and [in, out] to [T, out]; w may be quantised, or of a wider type.

  int8 values are exact in bfloat16: they are multiplied as they are, and the sums, in float32, by the scales.
  """
  if not isinstance(w, Quantized):
    return x @ w.astype(x.dtype)
  if w.kind == 'int4':
    return x @ dequantize(w, x.dtype)
  y = jnp.matmul(x, w.values.astype(x.dtype), preferred_element_type=jnp.float32)
  return (y * jnp.broadcast_to(w.scale, (*y.shape[:-1], w.scale.shape[-1]))).astype(x.dtype)


def _to_int8(w: jax.Array) -> Quantized:
  w = w.astype(jnp.float32)
  scale = _divisor(jnp.max(jnp.abs(w), axis=0, keepdims=True) / 127)
  values = jnp.round(w / jnp.broadcast_to(scale, w.shape)).astype(jnp.int8)
  return Quantized(values=values, scale=scale)


def _to_int4(w: jax.Array) -> Quantized:
  rows, out = w.shape
  blocks = w.astype(jnp.float32).reshape(-1, math.gcd(rows, BLOCK), out)
  high, low = jnp.max(blocks, axis=1), jnp.min(blocks, axis=1)
  extreme = jnp.where(high > -low, high, low)
  scale = _divisor(extreme / -8).astype(jnp.bfloat16)
  q = jnp.round(blocks / jnp.broadcast_to(scale.astype(jnp.float32)[:, None], blocks.shape))
  q = (jnp.clip(q, -8, 7) + 8).astype(jnp.uint8).reshape(rows // 2, 2, out)
  return Quantized(values=q[:, 0] | (q[:, 1] << 4), scale=scale)


def _divisor(scale: jax.Array) -> jax.Array:
  """Blocks of zeros stay zeros; so do weights too small for a scale that is a normal number."""
  return jnp.where(jnp.abs(scale) < jnp.finfo(jnp.float32).tiny, 1.0, scale)
