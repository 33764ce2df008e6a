"""The FLUX autoencoder (BAGEL's `modules/autoencoder.py`): pixels to latents of an eighth of the sides, and back.

Channels come last inside. Names follow the reference's: `down_0/block_1/conv2` is its `down.0.block.1.conv2`. The
norms' eps is 1e-6, the activation is swish.

A picture may be smaller than the array that holds it. `inside`, bool[N, rows, columns], says so on a grid that divides
the sides of every resolution: what lies outside is zero wherever a convolution looks, and is neither counted by a norm
nor attended to, so that the picture gives what it gives alone.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from pdgen.core import config as config_lib
from pdgen.models import layers

_EPS = 1e-6
_QUERIES = 1024  # that the mid attention looks at together: 1024 x 1024 pixels are 16,384 tokens.


def _expanded(inside: jax.Array, x: jax.Array) -> jax.Array:
  """The grid `inside` at the resolution of x [N, H, W, C]: bool[N, H, W, 1]."""
  fine = jnp.repeat(inside, x.shape[1] // inside.shape[1], axis=1)
  return jnp.repeat(fine, x.shape[2] // inside.shape[2], axis=2)[..., None]


def _within(x: jax.Array, inside: jax.Array | None) -> jax.Array:
  """x: [N, H, W, C], zero outside."""
  return x if inside is None else jnp.where(_expanded(inside, x), x, jnp.zeros((), x.dtype))


def _normed(norm: layers.GroupNorm, x: jax.Array, inside: jax.Array | None) -> jax.Array:
  return norm(x, None if inside is None else _expanded(inside, x))


class ResnetBlock(nnx.Module):
  """Two convolutions of 3, each after a norm and swish, and a shortcut, of 1 where the channels change."""

  def __init__(self, in_dim: int, out_dim: int, *, groups: int, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.norm1 = layers.GroupNorm(in_dim, groups=groups, eps=_EPS)
    self.conv1 = layers.Conv(3, in_dim, out_dim, dtype=dtype, rngs=rngs)
    self.norm2 = layers.GroupNorm(out_dim, groups=groups, eps=_EPS)
    self.conv2 = layers.Conv(3, out_dim, out_dim, dtype=dtype, rngs=rngs)
    self.shortcut = layers.Conv(1, in_dim, out_dim, dtype=dtype, rngs=rngs) if in_dim != out_dim else None

  def __call__(self, x: jax.Array, inside: jax.Array | None = None) -> jax.Array:
    """x: [N, H, W, in]. Returns [N, H, W, out]."""
    h = self.conv1(_within(jax.nn.swish(_normed(self.norm1, x, inside)), inside))
    h = self.conv2(_within(jax.nn.swish(_normed(self.norm2, h, inside)), inside))
    return h + (x if self.shortcut is None else self.shortcut(x))


class AttentionBlock(nnx.Module):
  """One head of full attention over all places of a picture."""

  def __init__(self, dim: int, *, groups: int, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.norm = layers.GroupNorm(dim, groups=groups, eps=_EPS)
    self.q, self.k, self.v, self.o = (layers.Conv(1, dim, dim, dtype=dtype, rngs=rngs) for _ in range(4))

  def __call__(self, x: jax.Array, inside: jax.Array | None = None) -> jax.Array:
    """x: [N, H, W, C]. Without `inside`, padding of a picture is attended to like the rest (QUIRKS 22)."""
    n, height, width, channels = x.shape
    h = _normed(self.norm, x, inside)
    seen = None if inside is None else _expanded(inside, x).reshape(n, 1, height * width)[:, 0]
    q, k, v = (p(h).reshape(n, height * width, channels) for p in (self.q, self.k, self.v))

    def attend(query: jax.Array) -> jax.Array:  # [N, C]
      scores = jnp.einsum('NC,NSC->NS', query, k, preferred_element_type=jnp.float32) * channels**-0.5
      scores = scores if seen is None else jnp.where(seen, scores, -jnp.inf)
      return jnp.einsum('NS,NSC->NC', jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)

    attended = jax.lax.map(attend, jnp.moveaxis(q, 1, 0), batch_size=_QUERIES)
    return x + self.o(jnp.moveaxis(attended, 0, 1).reshape(x.shape))


class Level(nnx.Module):
  """Residual blocks of one resolution; `conv` is that of the change of resolution after them, where there is one."""

  def __init__(self, dims: list[int], *, resized: bool, groups: int, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.blocks = len(dims) - 1
    for i in range(self.blocks):
      setattr(self, f'block_{i}', ResnetBlock(dims[i], dims[i + 1], groups=groups, dtype=dtype, rngs=rngs))
    self.conv = layers.Conv(3, dims[-1], dims[-1], dtype=dtype, rngs=rngs) if resized else None

  def __call__(self, x: jax.Array, inside: jax.Array | None = None) -> jax.Array:
    """x: [N, H, W, in]. Returns [N, H, W, out], before the change of resolution."""
    for i in range(self.blocks):
      x = getattr(self, f'block_{i}')(x, inside)
    return x


class Middle(nnx.Module):
  """Block, attention, block at the coarsest resolution."""

  def __init__(self, dim: int, *, groups: int, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.block_1 = ResnetBlock(dim, dim, groups=groups, dtype=dtype, rngs=rngs)
    self.attention = AttentionBlock(dim, groups=groups, dtype=dtype, rngs=rngs)
    self.block_2 = ResnetBlock(dim, dim, groups=groups, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, inside: jax.Array | None = None) -> jax.Array:
    return self.block_2(self.attention(self.block_1(x, inside), inside), inside)


class Encoder(nnx.Module):
  """Pixels to the moments of the posterior."""

  def __init__(self, cfg: config_lib.VaeConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    groups, dims = cfg.groups, [cfg.width * m for m in cfg.multipliers]
    self.levels = len(dims)
    self.conv_in = layers.Conv(3, 3, cfg.width, dtype=dtype, rngs=rngs)
    for i, (before, dim) in enumerate(zip([cfg.width, *dims], dims, strict=False)):
      widths, resized = [before] + [dim] * cfg.blocks, i + 1 < self.levels
      setattr(self, f'down_{i}', Level(widths, resized=resized, groups=groups, dtype=dtype, rngs=rngs))
    self.mid = Middle(dims[-1], groups=groups, dtype=dtype, rngs=rngs)
    self.norm_out = layers.GroupNorm(dims[-1], groups=groups, eps=_EPS)
    self.conv_out = layers.Conv(3, dims[-1], 2 * cfg.channels, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, inside: jax.Array | None = None) -> jax.Array:
    """x: [N, H, W, 3] in [-1, 1]. Returns [N, H/f, W/f, 2 C]: mean, then log variance."""
    x = self.conv_in(_within(x, inside))
    for i in range(self.levels):
      level = getattr(self, f'down_{i}')
      x = level(x, inside)
      if level.conv is not None:
        # Padded at the bottom and at the right only.
        padded = jnp.pad(_within(x, inside), ((0, 0), (0, 1), (0, 1), (0, 0)))
        x = level.conv(padded, stride=2, padding='VALID')
    x = _normed(self.norm_out, self.mid(x, inside), inside)
    return self.conv_out(_within(jax.nn.swish(x), inside))


class Decoder(nnx.Module):
  """Latents to pixels."""

  def __init__(self, cfg: config_lib.VaeConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    groups, dims = cfg.groups, [cfg.width * m for m in cfg.multipliers]
    self.levels = len(dims)
    self.conv_in = layers.Conv(3, cfg.channels, dims[-1], dtype=dtype, rngs=rngs)
    self.mid = Middle(dims[-1], groups=groups, dtype=dtype, rngs=rngs)
    for i, (before, dim) in enumerate(zip([*dims[1:], dims[-1]], dims, strict=True)):
      widths = [before] + [dim] * (cfg.blocks + 1)
      setattr(self, f'up_{i}', Level(widths, resized=i > 0, groups=groups, dtype=dtype, rngs=rngs))
    self.norm_out = layers.GroupNorm(dims[0], groups=groups, eps=_EPS)
    self.conv_out = layers.Conv(3, dims[0], 3, dtype=dtype, rngs=rngs)

  def __call__(self, z: jax.Array, inside: jax.Array | None = None) -> jax.Array:
    """z: [N, H/f, W/f, C]. Returns [N, H, W, 3], not clipped."""
    x = self.mid(self.conv_in(_within(z, inside)), inside)
    for i in reversed(range(self.levels)):
      level = getattr(self, f'up_{i}')
      x = level(x, inside)
      if level.conv is not None:
        x = level.conv(jnp.repeat(jnp.repeat(_within(x, inside), 2, axis=1), 2, axis=2))
    return self.conv_out(_within(jax.nn.swish(_normed(self.norm_out, x, inside)), inside))


class FluxVae(nnx.Module):
  """Encoder and decoder with the scale and shift of the latents. Latents are float32 whatever the compute dtype."""

  def __init__(self, cfg: config_lib.VaeConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.encoder = Encoder(cfg, dtype=dtype, rngs=rngs)
    self.decoder = Decoder(cfg, dtype=dtype, rngs=rngs)
    self.cfg = cfg

  def moments(self, pixels: jax.Array, inside: jax.Array | None = None) -> jax.Array:
    """f32[N, H, W, 3] in [-1, 1] to f32[N, H/f, W/f, 2 C]: mean and log variance of the posterior, not scaled."""
    return self.encoder(pixels, inside).astype(jnp.float32)

  def encode(self, pixels: jax.Array, noise: jax.Array | None = None, inside: jax.Array | None = None) -> jax.Array:
    """f32[N, H, W, 3] in [-1, 1] to latents f32[N, H/f, W/f, C].

    noise: f32 like the latents; the posterior's mean + exp(log variance / 2) * noise is taken, without it the mean.
    """
    mean, log_variance = jnp.split(self.moments(pixels, inside), 2, axis=-1)
    z = mean if noise is None else mean + jnp.exp(0.5 * log_variance) * noise
    return self.cfg.scale * (z - self.cfg.shift)

  def decode(self, z: jax.Array, inside: jax.Array | None = None) -> jax.Array:
    """Latents f32[N, H/f, W/f, C] to pixels f32[N, H, W, 3], not clipped."""
    return self.decoder(z / self.cfg.scale + self.cfg.shift, inside).astype(jnp.float32)
