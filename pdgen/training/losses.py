"""The training objective: flow matching on noised picture copies, cross-entropy on supervised text, in float32."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import packed
from pdgen.models import codecs, interleaved

Metrics = dict[str, jax.Array]


class Draws(NamedTuple):
  """What is random in the loss of a batch."""

  t: jax.Array  # f32[B, G], 1 = noise; 0 on clean copies.
  noise: jax.Array  # f32[B, G, C]
  posterior: jax.Array | None  # f32[B, P, ..], normal draws of the codec's posterior; None: its mean is taken.


class Totals(NamedTuple):
  """What the weighted means of a batch divide by: f32[] each."""

  text_weight: jax.Array  # Of the cross-entropy.
  flow_weight: jax.Array  # Of the flow loss.
  text_tokens: jax.Array  # Supervised und tokens.
  verdict_tokens: jax.Array  # Those weighted above all ordinary text.


class Whole(NamedTuple):
  """What the loss of a micro-batch needs to know of the batch that it is a part of (`training.accumulation`)."""

  draws: Draws  # Of the rows of the micro-batch.
  totals: Totals  # Of all rows of the batch.


def interleaved_loss(
  model: interleaved.Interleaved,
  batch: packed.PackedBatch,
  key: jax.Array,
  config: config_lib.Config,
  *,
  whole: Whole | None = None,
) -> tuple[jax.Array, Metrics]:
  """L = lambda_ce * CE + MSE (paper), with random timesteps and noise.

  Every noised copy draws one timestep. The clean latents are drawn from the posterior of a codec that has one, if the
  config says so.

  Args:
    model: with the parameters to differentiate by.
    batch: packed rows.
    key: of timesteps, noise and posterior.
    config: of the run.
    whole: the rows are a micro-batch of this batch; the key is not used.

  Returns: the loss and the metrics, as `noised_loss`. Those of the micro-batches of a batch add up to its own.
  """
  draws = draw(batch, key, config) if whole is None else whole.draws
  clean = model.clean_latents(batch, draws.posterior).astype(jnp.float32)
  totals = None if whole is None else whole.totals
  return noised_loss(model, batch, clean=clean, noise=draws.noise, t=draws.t, config=config, totals=totals)


def whole(batch: packed.PackedBatch, key: jax.Array, config: config_lib.Config) -> Whole:
  """Draws and totals of a whole batch. A micro-batch is given its own rows of the draws."""
  return Whole(draw(batch, key, config), totals(batch, config.data.sequence))


def draw(batch: packed.PackedBatch, key: jax.Array, config: config_lib.Config) -> Draws:
  """Timesteps, noise and, where the config says so, draws of the codec's posterior for all rows of a batch."""
  key_t, key_noise = jax.random.split(key)
  vae, posterior = config.model.codec.vae, None
  t = timesteps(key_t, batch.gen.copy, shift=config.train.timestep_shift)
  if vae is not None and vae.sample_posterior:
    posterior = codecs.posterior_noise(config.model.codec, jax.random.fold_in(key, 2), batch.pictures.shape[:4])
  noise = jax.random.normal(key_noise, (*batch.gen.patch.shape, config.model.codec.channels), jnp.float32)
  return Draws(t, noise, posterior)


def totals(batch: packed.PackedBatch, cfg: config_lib.SequenceConfig) -> Totals:
  """The sums of weights that the means of a batch divide by."""
  count = lambda mask: jnp.sum(mask.astype(jnp.float32))
  und = batch.und
  return Totals(
    jnp.sum(und.weight), jnp.sum(batch.gen.weight), count(und.weight > 0), count(und.weight > _ordinary(cfg))
  )


def noised_loss(
  model: interleaved.Interleaved,
  batch: packed.PackedBatch,
  *,
  clean: jax.Array,
  noise: jax.Array,
  t: jax.Array,
  config: config_lib.Config,
  totals: Totals | None = None,
) -> tuple[jax.Array, Metrics]:
  """lambda_ce * CE + MSE, each a weighted mean over the supervised tokens of the whole batch.

  The model sees z_t = t * noise + (1 - t) * clean; the velocity is noise - clean (paper, BAGEL). A model that predicts
  x is scored on the velocity that its x implies, with t clamped to `model.min_t` where that divides by t. A batch
  without supervised text (or without noised copies) has CE (or MSE) 0.

  Args:
    model: with the parameters to differentiate by.
    batch: packed rows.
    clean: f32[B, G, C], latents of the pictures.
    noise: f32[B, G, C].
    t: f32[B, G], 1 = noise; 0 on clean copies.
    config: of the run.
    totals: of the batch that these rows are a part of; None: of these rows.

  Returns: the loss, and float32 scalars: loss, ce, mse, text_accuracy (share of supervised tokens whose label is the
  most likely one), verdict_accuracy (the same over tokens weighted above all ordinary text, if the config weights
  verdicts so), text_tokens and flow_tokens (supervised), und_tokens and gen_tokens (not padding).
  """
  z = t[..., None] * noise + (1.0 - t[..., None]) * clean
  und_hidden, gen_hidden = model.hidden(batch, z, t)
  with jax.named_scope('losses'):
    mse, flow_metrics = flow_loss(
      model.prediction(gen_hidden),
      clean=clean,
      noise=noise,
      t=t,
      weight=batch.gen.weight,
      cfg=config.model,
      total=None if totals is None else totals.flow_weight,
    )
    scores = _token_losses(model, und_hidden, batch.und.label, chunk=config.train.loss_chunk)
    ce, text_metrics = _text_metrics(scores, batch.und, cfg=config.data.sequence, totals=totals)
    loss = config.train.lambda_ce * ce + mse
  counts = {
    'und_tokens': jnp.sum(batch.und.tokens.segment > 0).astype(jnp.float32),
    'gen_tokens': jnp.sum(batch.gen.tokens.segment > 0).astype(jnp.float32),
  }
  return loss, {'loss': loss, 'ce': ce, 'mse': mse, **text_metrics, **flow_metrics, **counts}


def timesteps(key: jax.Array, copy: jax.Array, *, shift: float) -> jax.Array:
  """One shifted logit-normal timestep a noised copy: f32[B, G], 0 on clean copies. copy: int32[B, G]."""
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
  total: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
  """Mean squared velocity error.

  For `x`: v = (z - x) / max(t, min_t) against (z - clean) / max(t, min_t), so that the noise cancels out.

  Args:
    prediction: f32[B, G, C], of what cfg.prediction names.
    clean: f32[B, G, C], latents of the pictures.
    noise: f32[B, G, C].
    t: f32[B, G], 1 = noise.
    weight: f32[B, G] of each token; 0 on clean copies and padding.
    cfg: of the model.
    total: weight to divide by; None: the sum of `weight`.

  Returns: f32[], and the metric flow_tokens.
  """
  if cfg.prediction == 'x':
    error = jnp.mean((prediction - clean) ** 2, axis=-1) / jnp.maximum(t, cfg.min_t) ** 2
  else:
    error = jnp.mean((prediction - (noise - clean)) ** 2, axis=-1)
  return _weighted_mean(error, weight, total), {'flow_tokens': jnp.sum(weight > 0).astype(jnp.float32)}


def text_loss(logits: jax.Array, und: packed.UndStream, *, cfg: config_lib.SequenceConfig) -> tuple[jax.Array, Metrics]:
  """Weighted mean cross-entropy of the supervised und tokens. logits: f32[B, U, V]."""
  return _text_metrics(cross_entropy(logits, und.label), und, cfg=cfg)


def _token_losses(
  model: interleaved.Interleaved, hidden: jax.Array, label: jax.Array, *, chunk: int
) -> tuple[jax.Array, jax.Array]:
  """`cross_entropy` of hidden states [B, U, D], of at most `chunk` tokens of a row (of a device's part) at a time.

  152,000 logits of 16,000 tokens would be 10 GB. Each device walks over its own tokens, so that the gradient of the
  head is summed over the devices once, not in every chunk.
  """
  if not chunk or label.shape[1] // mesh_lib.axis_size('sequence') <= chunk:
    return cross_entropy(model.logits(hidden), label)
  graphdef, head = nnx.split(model.head)
  head = jax.tree.map(lambda x: x.astype(jnp.float32), nnx.to_pure_dict(head))  # Its gradient is summed in float32.

  def local(head, hidden: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    b, u = label.shape
    chunks = -(-u // chunk)

    def apart(x: jax.Array) -> jax.Array:
      x = jnp.pad(x, ((0, 0), (0, chunks * chunk - u)) + ((0, 0),) * (x.ndim - 2))
      return jnp.moveaxis(x.reshape(b, chunks, chunk, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def of_chunk(args: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
      hidden, label = args
      return cross_entropy(nnx.merge(graphdef, head)(hidden).astype(jnp.float32), label)

    scores = jax.lax.map(of_chunk, (apart(hidden), apart(label)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(b, -1)[:, :u], scores)

  if mesh_lib.current_mesh() is None:
    return local(head, hidden, label)
  tokens, axes = P(mesh_lib.ROWS, 'sequence'), {*mesh_lib.ROWS, 'sequence'}
  mapped = jax.shard_map(local, in_specs=(P(), tokens, tokens), out_specs=tokens, axis_names=axes, check_vma=False)
  return mapped(head, hidden, label)


def _text_metrics(
  scores: tuple[jax.Array, jax.Array],
  und: packed.UndStream,
  *,
  cfg: config_lib.SequenceConfig,
  totals: Totals | None = None,
) -> tuple[jax.Array, Metrics]:
  nll, correct = scores
  supervised = und.weight > 0
  weight, tokens, verdicts = (None, None, None) if totals is None else (totals[0], totals[2], totals[3])
  metrics = {
    'text_accuracy': _weighted_mean(correct, supervised, tokens),
    'text_tokens': jnp.sum(supervised).astype(jnp.float32),
  }
  if cfg.verdict_weight > _ordinary(cfg) and not cfg.length_weighting:
    metrics['verdict_accuracy'] = _weighted_mean(correct, und.weight > _ordinary(cfg), verdicts)
  return _weighted_mean(nll, und.weight, weight), metrics


def _ordinary(cfg: config_lib.SequenceConfig) -> float:
  """The largest weight of a token that decides nothing."""
  plans = (cfg.plan_weight, cfg.corrected_plan_weight, cfg.rejected_plan_weight)
  return max(*plans, cfg.inspection_weight, cfg.boundary_weight)


def cross_entropy(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Of every token, f32[...], and whether its label is the most likely one. logits: f32[..., V]; label: int32[...]."""
  top = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
  log_normalizer = top + jnp.log(jnp.sum(jnp.exp(logits - top[..., None]), axis=-1))
  label_logit = jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
  # Cheaper than an argmax over the vocabulary.
  return log_normalizer - label_logit, label_logit >= top


def _weighted_mean(values: jax.Array, weight: jax.Array, total: jax.Array | None = None) -> jax.Array:
  """sum(w v) / total over all axes, total None: sum(w); 0 where that is 0."""
  weight = weight.astype(jnp.float32)
  total = jnp.sum(weight) if total is None else total
  # Where the weight is 0 the value must not matter, not even as 0 * inf.
  summed = jnp.sum(jnp.where(weight > 0, weight * values.astype(jnp.float32), 0.0))
  return summed / jnp.where(total > 0, total, 1.0)
