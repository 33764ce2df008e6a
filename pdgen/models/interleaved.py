"""The whole model: tokens and pictures in, next-token logits and picture predictions out."""

import jax
import jax.numpy as jnp
from flax import nnx

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.models import attention, latents, layers, mot, siglip


class Interleaved(nnx.Module):
  """BAGEL's layout: embeddings and language head on the und stream, latent projections and time on the gen stream."""

  def __init__(self, cfg: config_lib.ModelConfig, *, rngs: nnx.Rngs):
    dtype = jnp.dtype(cfg.dtype)
    self.cfg, self.dtype = cfg, dtype
    self.codec = latents.codec(cfg)
    self.embed = layers.Embedding(cfg.vocab_size, cfg.width, dtype=dtype, rngs=rngs)
    self.latent_in = layers.Linear(self.codec.channels, cfg.width, dtype=dtype, rngs=rngs)
    self.time = layers.TimestepEmbedder(cfg.width, dtype=dtype, rngs=rngs)
    self.vit = siglip.Siglip(cfg.vit, cfg.width, dtype=dtype, rngs=rngs) if cfg.vit else None
    self.trunk = mot.Trunk(cfg, rngs=rngs)
    self.head = layers.Linear(cfg.width, cfg.vocab_size, bias=False, dtype=dtype, rngs=rngs)
    # Zero: the first prediction is the mean of the target, and the trunk gets no noise from an untrained head.
    self.latent_out = layers.Linear(
      cfg.width, self.codec.channels, init=nnx.initializers.zeros_init(), dtype=dtype, rngs=rngs
    )

  def clean_latents(self, batch: packed.PackedBatch) -> jax.Array:
    """The clean latent of every gen token: f32[B, G, C]. Each picture is encoded once, whatever its copies."""
    encoded = self.codec.encode(latents.to_pixels(batch.pictures))  # [B, P, Q, C]
    b, p, q, c = encoded.shape
    index = batch.gen.picture * q + batch.gen.patch
    return jnp.take_along_axis(encoded.reshape(b, p * q, c), index[..., None], axis=1)

  def hidden(self, batch: packed.PackedBatch, z: jax.Array, t: jax.Array) -> mot.Streams:
    """Final hidden states of a packed batch.

    z: f32[B, G, C] latents as the model is fed them, noised where batch.gen.copy > 0. t: f32[B, G], 1 = noise,
    0 = picture. Returns und [B, U, D] and gen [B, G, D].
    """
    x = mot.Streams(self.embed_und(batch.und, batch.pictures), self.embed_latents(z, t, batch.gen.patch))
    return self.trunk.forward(x, batch.und.tokens, batch.gen.tokens)

  def extend(
    self, batch: packed.PackedBatch, z: jax.Array, t: jax.Array, past: attention.Past
  ) -> tuple[mot.Streams, tuple[jax.Array, jax.Array]]:
    """As `hidden`, for new tokens after a past. Also returns their (k, v): [L, B, U + G, K, H], und tokens first."""
    x = mot.Streams(self.embed_und(batch.und, batch.pictures), self.embed_latents(z, t, batch.gen.patch))
    return self.trunk.extend(x, batch.und.tokens, batch.gen.tokens, past)

  def embed_und(self, und: packed.UndStream, pictures: jax.Array) -> jax.Array:
    """Input vectors of the und stream: [B, U, D]. Boundary tokens get neither time nor patch position (BAGEL)."""
    x = self.embed(und.token_id)
    if self.vit is None or not pictures.shape[1]:
      return x
    patches = latents.patchify(latents.to_pixels(pictures), self.cfg.vit.patch)
    b, p, q, c = patches.shape
    side = self.cfg.image_size // self.cfg.vit.patch
    rows, columns = jnp.divmod(jnp.arange(q), side)
    features = self.vit(patches.reshape(b * p, q, c), rows, columns).reshape(b, p * q, -1)
    index = jnp.maximum(und.picture, 0) * q + und.patch
    seen = jnp.take_along_axis(features, index[..., None], axis=1)
    return jnp.where((und.picture >= 0)[..., None], seen, x)

  def embed_latents(self, z: jax.Array, t: jax.Array, patch: jax.Array) -> jax.Array:
    """Input vectors of the gen stream: latent projection + time (t = 0 too) + 2-D position. Returns [B, G, D]."""
    rows, columns = jnp.divmod(patch, self.cfg.latent_grid)
    position = layers.sincos_2d(rows, columns, self.cfg.width).astype(self.dtype)
    return self.latent_in(z) + self.time(t) + position

  def logits(self, und_hidden: jax.Array) -> jax.Array:
    """[..., D] to next-token logits f32[..., V]."""
    return self.head(und_hidden).astype(jnp.float32)

  def prediction(self, gen_hidden: jax.Array) -> jax.Array:
    """[B, G, D] to what the config says is predicted, velocity or clean latents: f32[B, G, C]."""
    return self.latent_out(gen_hidden).astype(jnp.float32)

  def velocity(self, gen_hidden: jax.Array, z: jax.Array, t: jax.Array) -> jax.Array:
    """The velocity noise - clean at z, whatever is predicted: f32[B, G, C]. t: f32[B, G]."""
    prediction = self.prediction(gen_hidden)
    if self.cfg.prediction == 'velocity':
      return prediction
    # Sampling divides by t itself (clamped only against zero): at the last Euler step z then lands on the prediction.
    return (z - prediction) / jnp.maximum(t, 1e-3)[..., None]
