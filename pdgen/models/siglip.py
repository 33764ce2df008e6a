"""The understanding encoder: SigLIP NaViT on packed patches, and the connector into the und stream (BAGEL).

A row of patches holds pictures of any size, one after the other; each patch knows its picture and its place in it.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import packed
from pdgen.models import attention, layers, partition, remat

_EPS = 1e-6


class Block(nnx.Module):
  """Pre-LayerNorm attention and GELU-tanh MLP, biases everywhere."""

  def __init__(self, cfg: config_lib.VitConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.norm1 = layers.LayerNorm(cfg.width, eps=_EPS)
    self.q, self.k, self.v, self.o = (layers.Linear(cfg.width, cfg.width, dtype=dtype, rngs=rngs) for _ in range(4))
    self.norm2 = layers.LayerNorm(cfg.width, eps=_EPS)
    self.fc1 = layers.Linear(cfg.width, cfg.mlp_dim, dtype=dtype, rngs=rngs)
    self.fc2 = layers.Linear(cfg.mlp_dim, cfg.width, dtype=dtype, rngs=rngs)
    self.num_heads = cfg.num_heads

  def __call__(self, x: jax.Array, mask: attention.BlockMask) -> jax.Array:
    """x: [R, T, width]; mask: of `models.attention.prepare`."""
    h = self.norm1(x)
    q, k, v = (p(h).reshape(*h.shape[:2], self.num_heads, -1) for p in (self.q, self.k, self.v))
    x = x + self.o(attention.attend(mask, q, k, v).reshape(h.shape))
    return x + self.fc2(jax.nn.gelu(self.fc1(self.norm2(x)), approximate=True))


class Siglip(nnx.Module):
  """Patches of pixels in [-1, 1] to features of the model's width."""

  def __init__(self, cfg: config_lib.ModelConfig, *, rngs: nnx.Rngs):
    vit, dtype = cfg.vit, jnp.dtype(cfg.dtype)
    if vit is None:
      raise ValueError('The model has no ViT: config.model.vit is None.')
    # The released checkpoint holds the patch embedding as a linear layer over (row, column, channel) vectors (BAGEL).
    self.patch_embedding = layers.Linear(3 * vit.patch**2, vit.width, dtype=dtype, rngs=rngs)
    self.position = layers.Embedding(vit.max_patches**2, vit.width, dtype=dtype, rngs=rngs)

    @nnx.split_rngs(splits=vit.depth)
    @nnx.vmap
    def stack(rngs):
      return Block(vit, dtype=dtype, rngs=rngs)

    self.layers = stack(rngs)
    self.post_norm = layers.LayerNorm(vit.width, eps=_EPS)
    self.connector1 = layers.Linear(vit.width, cfg.width, dtype=dtype, rngs=rngs)
    self.connector2 = layers.Linear(cfg.width, cfg.width, dtype=dtype, rngs=rngs)
    self.cfg, self.vit, self.dtype = cfg, vit, dtype

  def __call__(self, patches: jax.Array, position: jax.Array, image: jax.Array) -> jax.Array:
    """Features of packed patches: [R, T, D]. Attention is full inside a picture and never crosses pictures.

    Args:
      patches: [R, T, 3 p p], ordered (row, column, channel).
      position: int32[R, T], row * max_patches + column (BAGEL): the id in the learned table and in the fixed sin-cos
        one that is added after the connector.
      image: int32[R, T], picture of each patch, from 1 in each row; 0 is padding.
    """
    hidden = self.encode(patches, position, image)
    rows, columns = jnp.divmod(position, self.vit.max_patches)
    return self.connect(hidden) + layers.sincos_2d(rows, columns, self.cfg.width).astype(self.dtype)

  def encode(self, patches: jax.Array, position: jax.Array, image: jax.Array) -> jax.Array:
    """The encoder alone, its last norm included: [R, T, width]. Arguments as of `__call__`."""
    zeros = jnp.zeros_like(image)
    # The order of all is 0, so that within a segment, a picture, all see all.
    tokens = packed.TokenMeta(segment=image, order=zeros, reach=zeros, span=zeros, noised=zeros, position=zeros)
    mask = attention.prepare(self.cfg.attention, tokens, tokens)
    graphdef, weights = nnx.split(self.layers)

    def body(x: jax.Array, weights: dict) -> tuple[jax.Array, None]:
      weights = partition.gather_params(weights, dtype=self.dtype, layer_of='vit/layers')
      x = mesh_lib.constrain(x, mesh_lib.ROWS, 'sequence')
      return nnx.merge(graphdef, weights)(x, mask), None

    x, _ = jax.lax.scan(remat.wrap(body, self.cfg.remat), self.embed(patches, position), nnx.to_pure_dict(weights))
    return self.post_norm(x)

  def embed(self, patches: jax.Array, position: jax.Array) -> jax.Array:
    """What the first block reads: [R, T, width]."""
    return self.patch_embedding(patches) + self.position(position)

  def connect(self, hidden: jax.Array) -> jax.Array:
    """The connector: [R, T, width] to [R, T, D], without the fixed positions."""
    return self.connector2(jax.nn.gelu(self.connector1(hidden), approximate=True))
