"""The training objective: flow matching on noised picture copies, cross-entropy on supervised text, in float32."""

import jax
import jax.numpy as jnp

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.models import interleaved

Metrics = dict[str, jax.Array]


def flow_and_text_loss(
  model: interleaved.Interleaved, batch: packed.PackedBatch, key: jax.Array, config: config_lib.Config
) -> tuple[jax.Array, Metrics]:
  """L = lambda_ce * CE + MSE (paper), with random timesteps and noise; see `loss_of_noised`.

  Every noised copy draws one timestep. The clean latents are drawn from the posterior of a codec that has one, if the
  config says so.
  """
  key_t, key_noise = jax.random.split(key)
  vae = config.model.codec.vae
  key_posterior = jax.random.fold_in(key, 2) if vae is not None and vae.sample_posterior else None
  t = timesteps(key_t, batch.gen.copy, shift=config.train.timestep_shift)
  clean = model.clean_latents(batch, key_posterior).astype(jnp.float32)
  noise = jax.random.normal(key_noise, clean.shape, jnp.float32)
  return loss_of_noised(model, batch, clean=clean, noise=noise, t=t, config=config)


def loss_of_noised(
  model: interleaved.Interleaved,
  batch: packed.PackedBatch,
  *,
  clean: jax.Array,
  noise: jax.Array,
  t: jax.Array,
  config: config_lib.Config,
) -> tuple[jax.Array, Metrics]:
  """lambda_ce * CE + MSE, each a weighted mean over the supervised tokens of the whole batch.

  clean, noise: f32[B, G, C]; t: f32[B, G], 0 on clean copies. The model sees z_t = t * noise + (1 - t) * clean; the
  velocity is noise - clean (paper, BAGEL). A model that predicts x is scored on the velocity that its x implies, with t
  clamped to `model.min_t` where that divides by t. A batch without supervised text (or without noised copies) has CE
  (or MSE) 0.

  Returns: the loss, and float32 scalars: loss, ce, mse, text_accuracy (share of supervised tokens whose label is the
  most likely one), verdict_accuracy (the same over tokens weighted above all ordinary text, if the config weights
  verdicts so), text_tokens and flow_tokens (supervised), und_tokens and gen_tokens (not padding).
  """
  z = t[..., None] * noise + (1.0 - t[..., None]) * clean
  und_hidden, gen_hidden = model.hidden(batch, z, t)
  with jax.named_scope('losses'):
    mse, flow_metrics = flow_loss(
      model.prediction(gen_hidden), clean=clean, noise=noise, t=t, weight=batch.gen.weight, cfg=config.model
    )
    ce, text_metrics = text_loss(model.logits(und_hidden), batch.und, cfg=config.data.sequence)
    loss = config.train.lambda_ce * ce + mse
  counts = {
    'und_tokens': jnp.sum(batch.und.tokens.segment > 0).astype(jnp.float32),
    'gen_tokens': jnp.sum(batch.gen.tokens.segment > 0).astype(jnp.float32),
  }
  return loss, {'loss': loss, 'ce': ce, 'mse': mse, **text_metrics, **flow_metrics, **counts}


def timesteps(key: jax.Array, copy: jax.Array, *, shift: float) -> jax.Array:
  """One shifted logit-normal timestep a noised copy, 0 on clean copies. copy: int32[B, G]. Returns f32[B, G]."""
  rows, length = copy.shape
  t = logit_normal(jax.random.normal(key, (rows, length + 1), jnp.float32), shift=shift)
  return jnp.where(copy > 0, jnp.take_along_axis(t, copy, axis=1), 0.0)


def logit_normal(raw: jax.Array, *, shift: float) -> jax.Array:
  """Timesteps of normal draws: t = sigmoid(raw), then t <- s t / (1 + (s - 1) t) (BAGEL); -inf is t = 0, the picture.

  A shift above 1 moves weight to the noise end, t = 1.
  """
  t = jax.nn.sigmoid(raw)
  return shift * t / (1.0 + (shift - 1.0) * t)


def flow_loss(
  prediction: jax.Array,
  *,
  clean: jax.Array,
  noise: jax.Array,
  t: jax.Array,
  weight: jax.Array,
  cfg: config_lib.ModelConfig,
) -> tuple[jax.Array, Metrics]:
  """Mean squared velocity error. prediction (of what cfg says), clean, noise: f32[B, G, C]; t, weight: f32[B, G].

  For `x`: v = (z - x) / max(t, min_t) against (z - clean) / max(t, min_t), so that the noise cancels out.
  """
  if cfg.prediction == 'x':
    error = jnp.mean((prediction - clean) ** 2, axis=-1) / jnp.maximum(t, cfg.min_t) ** 2
  else:
    error = jnp.mean((prediction - (noise - clean)) ** 2, axis=-1)
  return _weighted_mean(error, weight), {'flow_tokens': jnp.sum(weight > 0).astype(jnp.float32)}


def text_loss(logits: jax.Array, und: packed.UndStream, *, cfg: config_lib.SequenceConfig) -> tuple[jax.Array, Metrics]:
  """Weighted mean cross-entropy of the supervised und tokens. logits: f32[B, U, V]."""
  each, right = cross_entropy(logits, und.label)
  ce = _weighted_mean(each, und.weight)
  supervised = und.weight > 0
  metrics = {
    'text_accuracy': _weighted_mean(right, supervised),
    'text_tokens': jnp.sum(supervised).astype(jnp.float32),
  }
  ordinary = max(cfg.plan_weight, cfg.inspection_weight, cfg.boundary_weight)
  if cfg.verdict_weight > ordinary and not cfg.length_weighting:
    metrics['verdict_accuracy'] = _weighted_mean(right, und.weight > ordinary)
  return ce, metrics


def cross_entropy(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Of every token, f32[...], and whether its label is the most likely one. logits: f32[..., V]; label: int32[...]."""
  top = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
  log_normalizer = top + jnp.log(jnp.sum(jnp.exp(logits - top[..., None]), axis=-1))
  label_logit = jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
  # Cheaper than an argmax over the vocabulary.
  return log_normalizer - label_logit, label_logit >= top


def _weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
  """sum(w v) / sum(w) over all axes; 0 where nothing has weight."""
  weight = weight.astype(jnp.float32)
  total = jnp.sum(weight)
  # Where the weight is 0 the value must not matter, not even as 0 * inf.
  summed = jnp.sum(jnp.where(weight > 0, weight * values.astype(jnp.float32), 0.0))
  return summed / jnp.where(total > 0, total, 1.0)
