"""One optimizer step, compiled once."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import packed
from pdgen.models import interleaved, partition
from pdgen.models import params as params_lib
from pdgen.training import accumulation, losses, optimizer
from pdgen.training import state as state_lib


class TrainStep(Protocol):
  """A jitted optimizer step."""

  def __call__(
    self, state: state_lib.TrainState, batch: packed.PackedBatch, /
  ) -> tuple[state_lib.TrainState, losses.Metrics]:
    """The state after the step, and the metrics of the step. The state that goes in is donated."""
    ...

  def lower(self, state: state_lib.TrainState, batch: packed.PackedBatch, /) -> jax.stages.Lowered:
    """The step lowered for these arguments, which may be ShapeDtypeStructs."""
    ...


# (model, batch, key, config) -> (scalar to minimise, further metrics); traced inside of the compiled step. With
# `train.accumulate` above 1 it is given micro-batches, and `whole=..` (`losses.Whole`): what it returns is summed.
Loss = Callable[..., tuple[jax.Array, Any]]


@functools.cache
def make_train_step(config: config_lib.Config, mesh: Mesh, *, loss: Loss = losses.interleaved_loss) -> TrainStep:
  """The jitted step: (state, batch) -> (state, metrics). The state that goes in is donated: use the one that comes out.

  One function for each (config, mesh, loss): asked for twice, it compiles once.

  A step whose loss, gradient or new parameters are not finite changes nothing but the counters. Its random key depends
  on config.seed and state.step alone, so that a resumed run repeats it. metrics (scalars): loss and what `loss` gives
  besides, and learning_rate, grad_norm (before clipping), bad_steps, skipped_steps. Reading one waits for the step.

  Raises: ValueError for a batch that does not divide into micro-batches (`accumulation.check`).
  """
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state_lib.abstract_on_mesh(config, mesh))
  return jax.jit(
    _step(config, mesh, loss),
    donate_argnums=0,
    in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
    out_shardings=(shardings, mesh_lib.replicated(mesh)),
  )


def abstract_batch(config: config_lib.Config) -> packed.PackedBatch:
  """The global batch that the config's data give, as ShapeDtypeStructs."""
  fields = config.batch_spec(config.data.batch_size)
  return packed.map_fields(lambda name, field: jax.ShapeDtypeStruct(field.shape, field.dtype), fields)


def gradients(config: config_lib.Config, mesh: Mesh, *, loss: Loss = losses.interleaved_loss) -> Callable[..., Any]:
  """(trainable, frozen, batch, key) -> ((loss, metrics), gradients of trainable), to be jitted on the mesh."""
  accumulation.check(config, mesh, loss)
  graphdef = interleaved.graphdef(config.model)

  def loss_fn(trainable, frozen, batch, key, *whole):
    params = partition.gather_params(params_lib.merge(trainable, frozen), dtype=config.model.dtype)
    of_whole = {'whole': whole[0]} if whole else {}
    return loss(nnx.merge(graphdef, params), batch, key, config, **of_whole)

  of_batch = jax.value_and_grad(loss_fn, has_aux=True)
  if config.train.accumulate > 1:
    of_batch = accumulation.accumulated(of_batch, config, mesh)

  def run(trainable, frozen, batch: packed.PackedBatch, key: jax.Array):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return of_batch(trainable, frozen, batch, key)

  return run


def _step(config: config_lib.Config, mesh: Mesh, loss: Loss) -> Callable[..., Any]:
  gradients_of = gradients(config, mesh, loss=loss)
  tx = optimizer.gradient_transform(config.train)

  def train_step(state: state_lib.TrainState, batch: packed.PackedBatch):
    key = jax.random.fold_in(state_lib.rng_keys(config.seed)[1], state.step)
    (value, metrics), grads = gradients_of(state.trainable, state.frozen, batch, key)
    with jax.named_scope('optimizer'):
      grad_norm = optax.tree.norm(grads)
      good = jnp.isfinite(value) & jnp.isfinite(grad_norm)
      updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
      rate = optimizer.learning_rate(config.train, state.step)
      trainable = optimizer.apply_updates(state.trainable, updates, rate)
      good &= jnp.isfinite(optimizer.bound_of_parameters(state.trainable, config.train, rate))
      learned = (trainable, optimizer.update_ema(state.ema, trainable, config.train, state.step), opt_state)
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
    return state, {'loss': value, **metrics, 'learning_rate': rate, 'grad_norm': grad_norm, **counters}

  return train_step
