"""AdamW or Muon in two halves: optax gives the direction, the step scales it by a rate that follows the step count."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from pdgen.core import config as config_lib
from pdgen.core import trees
from pdgen.models import params as params_lib


def gradient_transform(cfg: config_lib.TrainConfig) -> optax.GradientTransformation:
  """Gradients to a direction, without the learning rate: clip by global norm, the optimizer, decoupled decay.

  The learning rate is left to `apply_updates`, which reads it off the step of the run: a skipped update delays nothing.

  Raises: ValueError for an unknown cfg.optimizer.
  """
  if cfg.optimizer not in _OPTIMIZERS:
    raise ValueError(f'Unknown optimizer {cfg.optimizer!r}. Known: {sorted(_OPTIMIZERS)}')
  return _promoting(
    optax.chain(
      optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity(),
      _OPTIMIZERS[cfg.optimizer](cfg),
      optax.add_decayed_weights(cfg.weight_decay, mask=decayed) if cfg.weight_decay else optax.identity(),
    )
  )


def _promoting(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """The transformation where dtype promotion is strict, too: optax raises float decays to int32 counts."""

  def update(updates: Any, state: Any, params: Any = None) -> Any:
    with jax.numpy_dtype_promotion('standard'):
      return inner.update(updates, state, params)

  return optax.GradientTransformation(inner.init, update)


def _adam(cfg: config_lib.TrainConfig) -> optax.GradientTransformation:
  return optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2)


def _muon(cfg: config_lib.TrainConfig) -> optax.GradientTransformation:
  """Muon on the matrices of the trunk's layers, Adam on the rest.

  Updates of matrices have the root mean square 0.2, that of Adam's (Liu et al., arXiv 2502.16982): one learning rate
  serves both.
  """
  scaled = optax.stateless(lambda updates, _: jax.tree.map(lambda x: 0.2 * max(x.shape[-2:]) ** 0.5 * x, updates))
  muon = optax.chain(optax.contrib.scale_by_muon(weight_dimension_numbers=_matrices), scaled)
  return optax.partition(
    {'muon': muon, 'adam': _adam(cfg)},
    lambda params: trees.map_with_path(lambda name, _: 'muon' if params_lib.is_hidden_matrix(name) else 'adam', params),
  )


# Adam's is at most 1 / sqrt((1 - b2) (1 - b1^2 / b2)), 12 with the defaults; Muon's 0.2 sqrt(width), about 30 in BAGEL.
_LARGEST_UPDATE = 1e6
_OPTIMIZERS = {'adamw': _adam, 'muon': _muon}


def _matrices(params):
  """The last two axes of each array are a matrix, those before them (stacked layers) a batch."""
  return jax.tree.map(lambda x: optax.contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1), params)


def decayed(params) -> dict:
  """Which parameters decay: the kernels of matmuls. Not embeddings, position tables, norms and biases.

  By name, not by rank: in stacked layers a bias has two dimensions too.
  """
  return trees.map_with_path(lambda name, _: params_lib.is_kernel(name), params)


def learning_rate(cfg: config_lib.TrainConfig, step: jax.Array) -> jax.Array:
  """Linear warm-up from learning_rate / warmup_steps, then one cosine to final_lr_fraction at the last step. f32[].

  >>> cfg = config_lib.TrainConfig(steps=12, warmup_steps=2, learning_rate=1.0, final_lr_fraction=0.5)
  >>> [round(float(learning_rate(cfg, jnp.int32(step))), 3) for step in (0, 1, 2, 6, 11)]
  [0.5, 1.0, 0.988, 0.75, 0.5]
  """
  done = step.astype(jnp.float32) + 1.0  # The first step already learns, the last one takes the final rate.
  warm = done / max(cfg.warmup_steps, 1)
  progress = jnp.clip((done - cfg.warmup_steps) / max(cfg.steps - cfg.warmup_steps, 1), 0.0, 1.0)
  cosine = cfg.final_lr_fraction + (1.0 - cfg.final_lr_fraction) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
  return cfg.learning_rate * jnp.where(done <= cfg.warmup_steps, warm, cosine)


def apply_updates(params, updates, rate: jax.Array):
  """params - rate * updates, leaf by leaf."""
  return jax.tree.map(lambda p, u: p - rate * u, params, updates)


def bound_of_parameters(params, cfg: config_lib.TrainConfig, rate: jax.Array) -> jax.Array:
  """What neither the new parameters nor the numbers on the way to them and to their average exceed, f32[].

  Not finite where the old parameters are not, or the rate is out of all proportion. A look at the new parameters
  themselves would change how XLA fuses and so rounds them (docs/experiments.md#finite).
  """
  largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)).astype(jnp.float32) for leaf in jax.tree.leaves(params)]))
  # Twice, for the average takes a difference of parameters.
  return 2.0 * (largest + rate * (_LARGEST_UPDATE + cfg.weight_decay * largest))


def update_ema(ema, params, cfg: config_lib.TrainConfig, step: jax.Array):
  """Exponential moving average after `step` steps, with decay min(ema_decay, (1 + step) / (10 + step)).

  The early decays are small, so that the average forgets the initialisation.
  """
  step = step.astype(jnp.float32)
  decay = jnp.minimum(cfg.ema_decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), ema, params)
