"""The understanding encoder: a SigLIP vision transformer on patches, and the connector into the und stream."""

import jax
import jax.numpy as jnp
from flax import nnx

from pdgen.core import config as config_lib
from pdgen.models import layers


class Block(nnx.Module):
  """Pre-LayerNorm attention and GELU-tanh MLP, biases everywhere."""

  def __init__(self, cfg: config_lib.VitConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.norm1 = layers.LayerNorm(cfg.width, eps=1e-6)
    self.q, self.k, self.v, self.o = (layers.Linear(cfg.width, cfg.width, dtype=dtype, rngs=rngs) for _ in range(4))
    self.norm2 = layers.LayerNorm(cfg.width, eps=1e-6)
    self.fc1 = layers.Linear(cfg.width, cfg.mlp_dim, dtype=dtype, rngs=rngs)
    self.fc2 = layers.Linear(cfg.mlp_dim, cfg.width, dtype=dtype, rngs=rngs)
    self.num_heads = cfg.num_heads

  def __call__(self, x: jax.Array) -> jax.Array:
    """x: [images, Q, width]; attention is full inside an image and never crosses images."""
    h = self.norm1(x)
    q, k, v = (p(h).reshape(*h.shape[:2], self.num_heads, -1) for p in (self.q, self.k, self.v))
    scores = jnp.einsum('BTNH,BSNH->BNTS', q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    attended = jnp.einsum('BNTS,BSNH->BTNH', jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)
    x = x + self.o(attended.reshape(h.shape))
    return x + self.fc2(jax.nn.gelu(self.fc1(self.norm2(x)), approximate=True))


class Siglip(nnx.Module):
  """Patches of pixels in [-1, 1] to features of the model's width."""

  def __init__(self, cfg: config_lib.VitConfig, out_dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    # The released checkpoint holds the patch embedding as a linear layer over (row, column, channel) vectors (BAGEL).
    self.patch_embedding = layers.Linear(3 * cfg.patch**2, cfg.width, dtype=dtype, rngs=rngs)
    self.position = layers.Embedding(cfg.max_patches**2, cfg.width, dtype=dtype, rngs=rngs)

    @nnx.split_rngs(splits=cfg.depth)
    @nnx.vmap
    def stack(rngs):
      return Block(cfg, dtype=dtype, rngs=rngs)

    self.layers = stack(rngs)
    self.post_norm = layers.LayerNorm(cfg.width, eps=1e-6)
    self.connector1 = layers.Linear(cfg.width, out_dim, dtype=dtype, rngs=rngs)
    self.connector2 = layers.Linear(out_dim, out_dim, dtype=dtype, rngs=rngs)
    self.cfg, self.out_dim, self.dtype = cfg, out_dim, dtype

  def __call__(self, patches: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """patches: [images, Q, 3 p p] ordered (row, column, channel); rows, columns: int32[Q]. Returns [images, Q, D].

    The learned table and the fixed sin-cos one added after the connector share the id row * max_patches + column.
    """
    x = self.patch_embedding(patches) + self.position(rows * self.cfg.max_patches + columns)[None]
    graphdef, weights = nnx.split(self.layers)
    x, _ = jax.lax.scan(lambda x, w: (nnx.merge(graphdef, w)(x), None), x, weights)
    x = self.connector2(jax.nn.gelu(self.connector1(self.post_norm(x)), approximate=True))
    return x + layers.sincos_2d(rows, columns, self.out_dim).astype(self.dtype)[None]
