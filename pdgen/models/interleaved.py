"""The whole model: tokens and pictures in, next-token logits and picture predictions out."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.models import attention, codecs, layers, mot, remat, siglip


class Interleaved(nnx.Module):
  """BAGEL's layout: embeddings and language head on the und stream, latent projections and time on the gen stream."""

  def __init__(self, cfg: config_lib.ModelConfig, *, rngs: nnx.Rngs):
    attention.check(cfg.attention)
    remat.check(cfg.remat)
    dtype = jnp.dtype(cfg.dtype)
    self.cfg, self.dtype = cfg, dtype
    self.codec = codecs.codec(cfg, rngs=rngs)
    self.embed = layers.Embedding(cfg.vocab_size, cfg.width, dtype=dtype, rngs=rngs)
    self.latent_in = layers.Linear(self.codec.channels, cfg.width, dtype=dtype, rngs=rngs)
    self.time = layers.TimestepEmbedder(cfg.width, dtype=dtype, rngs=rngs)
    self.vit = siglip.Siglip(cfg, rngs=rngs) if cfg.vit else None
    self.trunk = mot.Trunk(cfg, rngs=rngs)
    self.head = layers.Linear(cfg.width, cfg.vocab_size, bias=False, dtype=dtype, rngs=rngs)
    # Zero: the first prediction is the mean of the target, and the trunk gets no noise from an untrained head.
    self.latent_out = layers.Linear(
      cfg.width, self.codec.channels, init=nnx.initializers.zeros_init(), dtype=dtype, rngs=rngs
    )

  def clean_latents(self, batch: packed.PackedBatch, noise: jax.Array | None = None) -> jax.Array:
    """The clean latent of every gen token: f32[B, G, C]. Each picture is encoded once, whatever its copies.

    noise: of a draw from the codec's posterior, where it has one (`codecs.posterior_noise`); None takes the mean. A
    picture smaller than the array that holds it is encoded with zeros around it, which changes its latents (BAGEL,
    QUIRKS 22).
    """
    pixels, patch = codecs.to_pixels(batch.pictures), self.cfg.codec.patch
    if batch.grids is not None:
      height, width = pixels.shape[2:4]
      rows, columns = jnp.arange(height) // patch, jnp.arange(width) // patch
      rows, columns = rows[None, None] < batch.grids[..., :1], columns[None, None] < batch.grids[..., 1:]
      inside = rows[..., :, None] & columns[..., None, :]
      pixels = jnp.where(inside[..., None], pixels, 0.0)
    encoded = self.codec.encode(pixels, noise)  # [B, P, Q, C]
    b, p, q, c = encoded.shape
    columns = pixels.shape[3] // patch
    if self.cfg.interpolate_positions:
      # Spread over the table, ids do not tell places (more patches a side than the table has share them).
      filled = columns if batch.grids is None else jnp.take_along_axis(batch.grids[..., 1], batch.gen.picture, axis=1)
      row, column = jnp.divmod(_index_in_picture(batch.gen), jnp.maximum(filled, 1))
    else:
      row, column = jnp.divmod(batch.gen.patch, self.cfg.max_latent_size)
    index = batch.gen.picture * q + row * columns + column
    return jnp.take_along_axis(encoded.reshape(b, p * q, c), index[..., None], axis=1)

  def hidden(self, batch: packed.PackedBatch, z: jax.Array, t: jax.Array) -> mot.PerExpert:
    """Final hidden states of a packed batch.

    Args:
      batch: packed rows.
      z: f32[B, G, C], latents that the model is fed, noised where batch.gen.copy > 0.
      t: f32[B, G], 1 = noise, 0 = picture.

    Returns: und [B, U, D] and gen [B, G, D].
    """
    x = mot.PerExpert(self.embed_und(batch.und, batch.pictures, batch.vit), self.embed_latents(z, t, batch.gen.patch))
    return self.trunk.forward(x, batch.und.tokens, batch.gen.tokens)

  def extend(
    self, batch: packed.PackedBatch, z: jax.Array, t: jax.Array, cache: attention.KVCache
  ) -> tuple[mot.PerExpert, tuple[jax.Array, jax.Array]]:
    """As `hidden`, for new tokens after a cache. Also returns their (k, v): [L, B, U + G, K, H], und tokens first."""
    x = mot.PerExpert(self.embed_und(batch.und, batch.pictures, batch.vit), self.embed_latents(z, t, batch.gen.patch))
    return self.trunk.extend(x, batch.und.tokens, batch.gen.tokens, cache)

  def embed_und(self, und: packed.UndStream, pictures: jax.Array, vit: packed.VitStream | None = None) -> jax.Array:
    """Input vectors of the und stream: [B, U, D]. Boundary tokens get neither time nor patch position (BAGEL).

    Args:
      und: tokens.
      pictures: [B, P, H, W, 3], uint8 or f32 in [-1, 1].
      vit: the pictures as the ViT sees them; None: it sees `pictures`, all of one size, at `cfg.vit_grid_of` that.
    """
    x = self.embed(und.token_id)
    if self.vit is None or not (pictures if vit is None else vit.pixels).shape[1]:
      return x
    if vit is None:
      features = self._encode_pictures(self.vit, pictures)
      rows, columns = self.cfg.vit_grid_of((pictures.shape[2], pictures.shape[3]))
      index = jnp.maximum(und.picture, 0) * (rows * columns) + und.patch
    else:
      features, index = self.vit(codecs.to_pixels(vit.pixels), vit.position, vit.image), und.patch
    seen = jnp.take_along_axis(features, index[..., None], axis=1)
    return jnp.where((und.picture >= 0)[..., None], seen, x)

  def _encode_pictures(self, encoder: siglip.Siglip, pictures: jax.Array) -> jax.Array:
    """Features of pictures of one size, each in a row of its own: [B, P Q, D]."""
    (rows, columns), vit = self.cfg.vit_grid_of((pictures.shape[2], pictures.shape[3])), encoder.vit
    resized = codecs.resize(pictures, (rows * vit.patch, columns * vit.patch))
    patches = codecs.patchify(codecs.to_pixels(resized), vit.patch)
    b, p, q, c = patches.shape
    spread = self.cfg.interpolate_positions
    position = jnp.asarray(packed.position_ids(rows, columns, vit.max_patches, interpolate=spread))
    position = jnp.broadcast_to(position, (b * p, q))
    return encoder(patches.reshape(b * p, q, c), position, jnp.ones_like(position)).reshape(b, p * q, -1)

  def embed_latents(self, z: jax.Array, t: jax.Array, patch: jax.Array) -> jax.Array:
    """Input vectors of the gen stream: latent projection + time (t = 0 too) + 2-D position. Returns [B, G, D]."""
    rows, columns = jnp.divmod(patch, self.cfg.max_latent_size)
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


def graphdef(cfg: config_lib.ModelConfig) -> nnx.GraphDef:
  """The structure of the model, without parameters: `nnx.merge(graphdef, params)` is the model.

  One object for each config: as a static argument of compiled functions, another one would compile them again.
  """
  return _abstract(cfg)[0]


def sampling_graphdef(cfg: config_lib.ModelConfig) -> nnx.GraphDef:
  """`graphdef` with its layers scanned, as the sampler runs them: unrolled, a token step takes twice as long.

  What training does best is `ModelConfig.scan_layers`; parameters and results are the same.
  """
  return graphdef(dataclasses.replace(cfg, scan_layers=True))


def abstract_params(cfg: config_lib.ModelConfig) -> Any:
  """The parameters as nested dicts of ShapeDtypeStruct."""
  return jax.tree.map(lambda leaf: leaf, _abstract(cfg)[1])  # Dicts that the caller may change.


@functools.cache
def _abstract(cfg: config_lib.ModelConfig) -> tuple[nnx.GraphDef, Any]:
  """Structure and parameters. Tracing a model with an autoencoder takes seconds, most of them in flax."""
  graphdef, params = nnx.split(nnx.eval_shape(lambda: Interleaved(cfg, rngs=nnx.Rngs(0))), nnx.Param)
  return graphdef, nnx.to_pure_dict(params)


def _index_in_picture(gen: packed.GenStream) -> jax.Array:
  """The number of each token in its copy of a picture, from 0: int32[B, G]. 0 for padding.

  The tokens of a copy stand together, in order; copies of a picture differ in span, frames of one span in picture.
  """
  whose = jnp.stack([gen.tokens.segment, gen.tokens.span, gen.picture])
  index = jax.lax.broadcasted_iota(jnp.int32, gen.picture.shape, 1)
  begins = jnp.any(whose != jnp.roll(whose, 1, axis=2), axis=0)
  first = jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
  return jnp.where(gen.tokens.segment > 0, index - first, 0)
