"""Between pixels and the gen tokens' latent vectors: one interface for every picture codec."""

import jax
import jax.numpy as jnp
from flax import nnx

from pdgen.core import config as config_lib
from pdgen.models import flux_vae


def patchify(pictures: jax.Array, patch: int) -> jax.Array:
  """[..., H, W, C] to [..., Q, patch * patch * C]: row-major patches, each ordered (row, column, channel) (BAGEL).

  What remains of a side that is no multiple of `patch` is dropped (BAGEL).

  >>> import numpy as np
  >>> patchify(np.arange(60.0).reshape(4, 5, 3), 2).shape
  (4, 12)
  """
  *lead, height, width, channels = pictures.shape
  rows, columns = height // patch, width // patch
  x = pictures[..., : rows * patch, : columns * patch, :].reshape(*lead, rows, patch, columns, patch, channels)
  n = len(lead)
  x = x.transpose(*range(n), n, n + 2, n + 1, n + 3, n + 4)
  return x.reshape(*lead, rows * columns, patch * patch * channels)


def unpatchify(tokens: jax.Array, patch: int, rows: int) -> jax.Array:
  """Inverse of `patchify` for pictures of `rows` rows of patches: [..., Q, patch * patch * C] to [..., H, W, C]."""
  *lead, count, dim = tokens.shape
  columns, channels = count // rows, dim // patch**2
  n = len(lead)
  x = tokens.reshape(*lead, rows, columns, patch, patch, channels)
  x = x.transpose(*range(n), n, n + 2, n + 1, n + 3, n + 4)
  return x.reshape(*lead, rows * patch, columns * patch, channels)


def to_pixels(pictures: jax.Array) -> jax.Array:
  """uint8 to float32 in [-1, 1]; what is float32 already stays as it is."""
  return pictures.astype(jnp.float32) / 127.5 - 1.0 if pictures.dtype == jnp.uint8 else pictures


def to_uint8(pixels: jax.Array) -> jax.Array:
  """float32 in [-1, 1], clipped, to uint8, rounded to the nearest."""
  return jnp.round((jnp.clip(pixels, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def resize(pictures: jax.Array, size: tuple[int, int]) -> jax.Array:
  """uint8[..., H, W, 3] to uint8[..., *size, 3], bicubic with antialiasing as PIL's (a = -1/2).

  PIL rounds between its two passes, so that single levels may differ by 1.
  """
  *lead, height, width, channels = pictures.shape
  if (height, width) == size:
    return pictures
  resized = jax.image.resize(pictures.astype(jnp.float32), (*lead, *size, channels), 'cubic', antialias=True)
  return jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)


def resize_each(pictures: jax.Array, have: jax.Array, want: jax.Array, canvas: tuple[int, int]) -> jax.Array:
  """As `resize`, of pictures that each fill a part of the array, from the top left corner, and each to its own size.

  Args:
    pictures: uint8[B, H, W, 3].
    have: int32[B, 2], (height, width) that each fills.
    want: int32[B, 2], (height, width) that each is to have.
    canvas: (H', W') of the result.

  Returns: uint8[B, H', W', 3]; what is outside of a picture means nothing.
  """

  def weights(axis: int) -> jax.Array:
    """f32[B, H, H'] of one axis, by the rule of `jax.image.resize`."""
    size, most = have[:, axis, None, None].astype(jnp.float32), pictures.shape[1 + axis]
    inverse = size / want[:, axis, None, None].astype(jnp.float32)
    places = jnp.arange(most, dtype=jnp.float32)[None, :, None]
    at = (jnp.arange(canvas[axis], dtype=jnp.float32)[None, None] + 0.5) * inverse - 0.5
    x = jnp.abs(at - places) / jnp.maximum(inverse, 1.0)
    near, far = ((1.5 * x - 2.5) * x) * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    kernel = jnp.where((x >= 2.0) | (places >= size), 0.0, jnp.where(x >= 1.0, far, near))
    total = jnp.sum(kernel, axis=1, keepdims=True)
    return kernel / jnp.where(total == 0.0, 1.0, total)

  pixels, precision = pictures.astype(jnp.float32), jax.lax.Precision.HIGHEST
  resized = jnp.einsum('BHWC,BHR,BWS->BRSC', pixels, weights(0), weights(1), precision=precision)
  return jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)


class PixelCodec(nnx.Module):
  """The small world's "VAE": patches of pixels in [-1, 1], no parameters, exact both ways."""

  def __init__(self, cfg: config_lib.ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.patch = cfg.codec.patch
    self.channels = cfg.codec.channels
    self.rows = cfg.latent_grid

  def encode(self, pixels: jax.Array, noise: jax.Array | None = None, *, inside: jax.Array | None = None) -> jax.Array:
    """f32[..., H, W, 3] in [-1, 1] to latents f32[..., Q, C], row-major.

    noise, inside: as of `FluxCodec`; unused, there is no posterior, and a patch sees nothing beside it.
    """
    return patchify(pixels, self.patch)

  def decode(self, latents: jax.Array, *, rows: int | None = None, inside: jax.Array | None = None) -> jax.Array:
    """Latents f32[..., Q, C] to f32[..., H, W, 3], not clipped.

    rows: of latents; None: of the model's own pictures. inside: unused, as in `encode`.
    """
    return unpatchify(latents, self.patch, rows or self.rows)

  def to_uint8(self, pixels: jax.Array) -> jax.Array:
    """Decoded pixels as a picture, rounded: what was encoded from a picture gives that picture back."""
    return to_uint8(pixels)


class FluxCodec(nnx.Module):
  """The FLUX VAE; 2 x 2 neighbouring latents make a gen token, ordered (row, column, channel) (BAGEL)."""

  def __init__(self, cfg: config_lib.ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    vae = cfg.codec.vae
    if vae is None:
      raise ValueError(f'{cfg.codec=} has no vae: the `flux` codec is one.')
    self.vae = flux_vae.FluxVae(vae, dtype=dtype, rngs=rngs)
    self.patch = cfg.codec.patch // vae.downsample
    self.channels = cfg.codec.channels
    self.rows = cfg.latent_grid

  def encode(self, pixels: jax.Array, noise: jax.Array | None = None, *, inside: jax.Array | None = None) -> jax.Array:
    """f32[..., H, W, 3] in [-1, 1] to latents f32[..., Q, C], row-major; what fills no whole token is dropped.

    inside: bool[..., rows, columns] of tokens, those of a picture that fills a part of the array: its latents are those
    of the picture alone. None: all of it, zeros around a smaller picture among it (QUIRKS 22).

    noise: of a draw from the posterior (`posterior_noise`); None takes its mean. Pictures, the axis before H, are
    encoded one after the other, all rows of a batch, the axes before that, at once: the finest level of one picture of
    1024 x 1024 alone takes half a gigabyte. So that axis must not be one that devices share: each would encode all
    pictures.
    """
    *lead, height, width, _ = pixels.shape
    pixels = pixels.reshape(-1, *lead[-1:], height, width, 3) if lead else pixels[None, None]
    noise = None if noise is None else noise.reshape(*pixels.shape[:2], *noise.shape[-3:])
    inside = None if inside is None else inside.reshape(*pixels.shape[:2], *inside.shape[-2:])
    each = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (pixels, noise, inside))
    z = jnp.moveaxis(jax.lax.map(lambda args: self.vae.encode(*args), each), 0, 1)
    tokens = patchify(z, self.patch)
    return tokens.reshape(*lead, *tokens.shape[2:])

  def decode(self, latents: jax.Array, *, rows: int | None = None, inside: jax.Array | None = None) -> jax.Array:
    """Latents f32[..., Q, C] to f32[..., H, W, 3], not clipped.

    rows: of latents; None: of the model's own pictures. inside: as of `encode`.
    """
    z = unpatchify(latents, self.patch, rows or self.rows)
    inside = None if inside is None else inside.reshape(-1, *inside.shape[-2:])
    pixels = self.vae.decode(z.reshape(-1, *z.shape[-3:]), inside)
    return pixels.reshape(*z.shape[:-3], *pixels.shape[1:])

  def to_uint8(self, pixels: jax.Array) -> jax.Array:
    """Decoded pixels as a picture, truncated (BAGEL's `decode_image`, QUIRKS 33)."""
    return (jnp.clip(pixels * 0.5 + 0.5, 0.0, 1.0) * 255).astype(jnp.uint8)


def posterior_noise(cfg: config_lib.CodecConfig, key: jax.Array, shape: tuple[int, ...]) -> jax.Array | None:
  """The normal draws of the posterior of pictures: f32[..., H / f, W / f, C]. None for a codec without a posterior.

  shape: (..., H, W) of the pictures.
  """
  if cfg.vae is None:
    return None
  *lead, height, width = shape
  size = (height // cfg.vae.downsample, width // cfg.vae.downsample, cfg.vae.channels)
  return jax.random.normal(key, (*lead, *size), jnp.float32)


CODECS = {'pixel': PixelCodec, 'flux': FluxCodec}


def codec(cfg: config_lib.ModelConfig, *, rngs: nnx.Rngs | None = None) -> PixelCodec | FluxCodec:
  """The codec that the config names. rngs: of its initial parameters, if it has any.

  Raises: ValueError for an unknown codec kind.
  """
  if cfg.codec.kind not in CODECS:
    raise ValueError(f'Unknown codec {cfg.codec.kind!r}. Known: {sorted(CODECS)}')
  return CODECS[cfg.codec.kind](cfg, dtype=jnp.dtype(cfg.dtype), rngs=rngs or nnx.Rngs(0))
