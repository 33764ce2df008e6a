"""Building blocks with the reference's arithmetic: linear, norms, rotary, sin-cos and timestep embeddings.

Parameters are float32 and cast to the compute dtype where they are used; statistics and angles are float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.models import quantize

Initializer = Callable[..., jax.Array]
fan_in = nnx.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')


class Linear(nnx.Module):
  """y = x kernel + bias. kernel: [in, out], or a `quantize.Quantized` in its place."""

  def __init__(
    self,
    in_dim: int,
    out_dim: int,
    *,
    bias: bool = True,
    init: Initializer = fan_in,
    lora: config_lib.LoraConfig | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.kernel = nnx.Param(init(rngs.params(), (in_dim, out_dim), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32)) if bias else None
    self.lora = lora
    if lora is not None:
      self.lora_a = nnx.Param(fan_in(rngs.params(), (in_dim, lora.rank), jnp.float32))
      self.lora_b = nnx.Param(jnp.zeros((lora.rank, out_dim), jnp.float32))
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """x: [..., in]. Returns [..., out] in the compute dtype."""
    x = x.astype(self.dtype)
    # One [tokens, in] matmul: XLA's CPU backend runs the gradient of a [B, T, in] one 25 % slower. But tokens that are
    # split over devices in both axes have no partition as one axis.
    flat = x if mesh_lib.axis_size('sequence') > 1 else x.reshape(-1, x.shape[-1])
    y = quantize.matmul(flat, self.kernel.get_value())
    if self.lora is not None:
      low = flat @ self.lora_a[...].astype(self.dtype)
      y = y + low @ self.lora_b[...].astype(self.dtype) * (self.lora.alpha / self.lora.rank)
    if self.bias is not None:
      y = y + jnp.broadcast_to(self.bias[...].astype(self.dtype), y.shape)
    return y.reshape(*x.shape[:-1], y.shape[-1])


class RMSNorm(nnx.Module):
  """w x / sqrt(mean(x^2) + eps); statistics in float32, product in the input dtype (BAGEL's Qwen2RMSNorm)."""

  def __init__(self, dim: int, *, eps: float):
    self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
    return x32.astype(x.dtype) * jnp.broadcast_to(self.scale[...].astype(x.dtype), x.shape)


class LayerNorm(nnx.Module):
  """Layer norm with scale and bias, statistics in float32."""

  def __init__(self, dim: int, *, eps: float):
    self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32))
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
    scale, bias = (jnp.broadcast_to(p[...], x.shape) for p in (self.scale, self.bias))
    return (x32 * scale + bias).astype(x.dtype)


class GroupNorm(nnx.Module):
  """Statistics of each of `groups` groups of channels over a whole picture, in float32; scale and bias a channel."""

  def __init__(self, channels: int, *, groups: int, eps: float):
    self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
    self.groups, self.eps = groups, eps

  def __call__(self, x: jax.Array, inside: jax.Array | None = None) -> jax.Array:
    """x: [N, H, W, C]; channels of a group are neighbours. inside: bool[N, H, W, 1], what counts; None: all does."""
    grouped = x.astype(jnp.float32).reshape(*x.shape[:3], self.groups, -1)
    where = None if inside is None else inside[..., None]
    mean = lambda x: jnp.mean(x, axis=(1, 2, 4), keepdims=True, where=where)
    grouped = grouped - mean(grouped)
    grouped = grouped * jax.lax.rsqrt(mean(grouped * grouped) + self.eps)
    scale, bias = (jnp.broadcast_to(p[...], x.shape) for p in (self.scale, self.bias))
    return (grouped.reshape(x.shape) * scale + bias).astype(x.dtype)


class Conv(nnx.Module):
  """2-D convolution with bias. kernel: [rows, columns, in, out]."""

  def __init__(
    self, size: int, in_dim: int, out_dim: int, *, dtype: jax.typing.DTypeLike = jnp.float32, rngs: nnx.Rngs
  ):
    self.kernel = nnx.Param(fan_in(rngs.params(), (size, size, in_dim, out_dim), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32))
    self.dtype = dtype

  def __call__(self, x: jax.Array, *, stride: int = 1, padding: str = 'SAME') -> jax.Array:
    """x: [N, H, W, in]. Returns [N, H', W', out] in the compute dtype."""
    y = jax.lax.conv_general_dilated(
      x.astype(self.dtype),
      self.kernel[...].astype(self.dtype),
      window_strides=(stride, stride),
      padding=padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return y + self.bias[...].astype(self.dtype)[None, None, None, :]


class Embedding(nnx.Module):
  """A table of vectors looked up by id. table: [V, D]."""

  def __init__(self, size: int, dim: int, *, dtype: jax.typing.DTypeLike = jnp.float32, rngs: nnx.Rngs):
    self.table = nnx.Param(jax.random.normal(rngs.params(), (size, dim), jnp.float32) * dim**-0.5)
    self.dtype = dtype

  def __call__(self, ids: jax.Array) -> jax.Array:
    """ids: int32[...]. Returns [..., D]."""
    return mesh_lib.shard_embedding_grad(jnp.take(self.table[...].astype(self.dtype), ids, axis=0))


class TimestepEmbedder(nnx.Module):
  """Time in [0, 1], not scaled by 1000, through [cos | sin] of 256 channels and a two-layer MLP (BAGEL)."""

  channels = 256

  def __init__(self, dim: int, *, dtype: jax.typing.DTypeLike = jnp.float32, rngs: nnx.Rngs):
    self.fc1 = Linear(self.channels, dim, dtype=dtype, rngs=rngs)
    self.fc2 = Linear(dim, dim, dtype=dtype, rngs=rngs)

  def __call__(self, t: jax.Array) -> jax.Array:
    """t: f32[...]. Returns [..., D]."""
    return self.fc2(jax.nn.silu(self.fc1(timestep_features(t, self.channels))))


def timestep_features(t: jax.Array, channels: int) -> jax.Array:
  """[cos | sin] features of t: f32[..., channels]. The frequencies fall from 1 to 1/10000 (BAGEL)."""
  half = channels // 2
  frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
  angles = jnp.einsum('...,F->...F', t.astype(jnp.float32), frequencies, precision='highest')
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sincos_2d(rows: jax.Array, columns: jax.Array, dim: int) -> jax.Array:
  """Fixed 2-D sin-cos position embedding of patches (BAGEL).

  rows, columns: int32[...]. Returns f32[..., dim]: the first half encodes the column, the second the row; inside
  each half all sines, then all cosines. Computed where it is needed: BAGEL's table would be a 59 MB constant.
  """
  quarter = dim // 4
  omega = 10000.0 ** (-jnp.arange(quarter, dtype=jnp.float32) / quarter)
  parts = []
  for coordinate in (columns, rows):
    angles = jnp.einsum('...,F->...F', coordinate.astype(jnp.float32), omega, precision='highest')
    parts += [jnp.sin(angles), jnp.cos(angles)]
  return jnp.concatenate(parts, axis=-1)


def rope_frequencies(head_dim: int, theta: float) -> jax.Array:
  """1 / theta^(2 i / head_dim): f32[head_dim // 2]."""
  return theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)


def rope_angles(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
  """cos and sin of the rotary angles: f32[..., head_dim // 2] each.

  float32 throughout: bfloat16 rounds position 257 to 256, and rounded frequencies drift with the context (QUIRKS B6).
  """
  frequencies = rope_frequencies(head_dim, theta)
  angles = jnp.einsum('...,F->...F', positions.astype(jnp.float32), frequencies, precision='highest')
  return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotates halves (not pairs) of each head. x: [B, T, heads, H]; cos, sin: f32[B, T, H // 2]. float32 inside."""
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos[:, :, None, :], sin[:, :, None, :]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
