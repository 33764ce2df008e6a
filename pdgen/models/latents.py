"""Between pixels and the gen tokens' latent vectors: one interface for every picture codec."""

import jax
import jax.numpy as jnp

from pdgen.core import config as config_lib


def patchify(pictures: jax.Array, patch: int) -> jax.Array:
  """[..., H, W, 3] to [..., Q, patch * patch * 3]: row-major patches, each ordered (row, column, channel) (BAGEL).

  >>> import numpy as np
  >>> patchify(np.arange(48.0).reshape(4, 4, 3), 2).shape
  (4, 12)
  """
  *lead, height, width, channels = pictures.shape
  rows, columns = height // patch, width // patch
  x = pictures.reshape(*lead, rows, patch, columns, patch, channels)
  n = len(lead)
  x = x.transpose(*range(n), n, n + 2, n + 1, n + 3, n + 4)
  return x.reshape(*lead, rows * columns, patch * patch * channels)


def unpatchify(tokens: jax.Array, patch: int, rows: int) -> jax.Array:
  """Inverse of `patchify` for pictures of `rows` rows of patches: [..., Q, patch * patch * 3] to [..., H, W, 3]."""
  *lead, count, dim = tokens.shape
  columns, channels = count // rows, dim // patch**2
  n = len(lead)
  x = tokens.reshape(*lead, rows, columns, patch, patch, channels)
  x = x.transpose(*range(n), n, n + 2, n + 1, n + 3, n + 4)
  return x.reshape(*lead, rows * patch, columns * patch, channels)


def to_pixels(pictures: jax.Array) -> jax.Array:
  """uint8 to float32 in [-1, 1]."""
  return pictures.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(pixels: jax.Array) -> jax.Array:
  """float32 in [-1, 1], clipped, to uint8, rounded to the nearest."""
  return jnp.round((jnp.clip(pixels, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


class PixelCodec:
  """The small world's "VAE": patches of pixels in [-1, 1], no parameters, exact both ways."""

  def __init__(self, cfg: config_lib.ModelConfig):
    self.patch = cfg.codec.patch
    self.rows = cfg.latent_grid

  @property
  def channels(self) -> int:
    """Values in a gen token."""
    return 3 * self.patch**2

  def encode(self, pixels: jax.Array) -> jax.Array:
    """f32[..., H, W, 3] in [-1, 1] to latents f32[..., Q, C]."""
    return patchify(pixels, self.patch)

  def decode(self, latents: jax.Array) -> jax.Array:
    """Latents f32[..., Q, C] to f32[..., H, W, 3], not clipped."""
    return unpatchify(latents, self.patch, self.rows)


CODECS = {'pixel': PixelCodec}


def codec(cfg: config_lib.ModelConfig) -> PixelCodec:
  """Raises ValueError for an unknown codec kind."""
  if cfg.codec.kind not in CODECS:
    raise ValueError(f'Unknown codec {cfg.codec.kind!r}. Known: {sorted(CODECS)}')
  return CODECS[cfg.codec.kind](cfg)
