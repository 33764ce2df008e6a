"""One optimizer step, compiled once."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from pdgen.core import config as config_lib
from pdgen.core import packed, sharding
from pdgen.training import losses, optimizer
from pdgen.training import state as state_lib

Step = Callable[[state_lib.TrainState, packed.PackedBatch], tuple[state_lib.TrainState, losses.Metrics]]


@functools.cache
def make(config: config_lib.Config, mesh: Mesh) -> Step:
  """The jitted step: (state, batch) -> (state, metrics). The state that goes in is donated: use the one that comes out.

  One function for each (config, mesh): asked for twice, it compiles once.

  A step whose loss or gradient is not finite changes nothing but the counters. Its random key depends on config.seed
  and state.step alone, so that a resumed run repeats it. metrics (scalars): those of `losses.flow_and_text_loss`, and
  learning_rate, grad_norm (before clipping), bad_steps, skipped_steps. Reading one waits for the step.
  """
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state_lib.abstract(config, mesh))
  return jax.jit(
    _step(config),
    donate_argnums=0,
    in_shardings=(shardings, sharding.rows(mesh)),
    out_shardings=(shardings, sharding.replicated(mesh)),
  )


def _step(config: config_lib.Config) -> Step:
  graphdef = state_lib.graphdef(config.model)
  tx = optimizer.direction(config.train)

  def loss_fn(trainable, frozen, batch, key):
    return losses.flow_and_text_loss(nnx.merge(graphdef, state_lib.merge(trainable, frozen)), batch, key, config)

  def train_step(state: state_lib.TrainState, batch: packed.PackedBatch):
    key = jax.random.fold_in(state_lib.keys(config.seed)[1], state.step)
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.trainable, state.frozen, batch, key)
    with jax.named_scope('optimizer'):
      grad_norm = optax.tree.norm(grads)
      good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
      updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
      rate = optimizer.learning_rate(config.train, state.step)
      trainable = optimizer.apply(state.trainable, updates, rate)
      learned = (trainable, optimizer.average(state.ema, trainable, config.train, state.step), opt_state)
      kept = (state.trainable, state.ema, state.opt_state)
      trainable, ema, opt_state = jax.tree.map(lambda new, old: jnp.where(good, new, old), learned, kept)
    skipped = 1 - good.astype(jnp.int32)
    state = state.replace(
      step=state.step + 1,
      trainable=trainable,
      ema=ema,
      opt_state=opt_state,
      bad_steps=(state.bad_steps + 1) * skipped,
      skipped_steps=state.skipped_steps + skipped,
    )
    counters = {'bad_steps': state.bad_steps, 'skipped_steps': state.skipped_steps}
    return state, {**metrics, 'learning_rate': rate, 'grad_norm': grad_norm, **counters}

  return train_step
