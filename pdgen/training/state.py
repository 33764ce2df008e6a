"""Everything that a training run carries from step to step, and its initialisation straight into shards."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.sharding import Mesh

from pdgen.core import config as config_lib
from pdgen.core import sharding
from pdgen.models import interleaved
from pdgen.training import optimizer

FROZEN = ('codec',)  # Parts of the model that never learn: the autoencoder (BAGEL).


class TrainState(struct.PyTreeNode):
  """Parameters are nested dicts of arrays; `nnx.merge(graphdef, trainable, frozen)` is the model."""

  step: jax.Array  # int32[], steps taken; the random key of the next one is folded from it.
  trainable: Any  # Parameters that learn, float32.
  frozen: Any  # Parameters that do not; disjoint from trainable.
  ema: Any  # Moving average of trainable: what is sampled from.
  opt_state: Any  # Of optimizer.direction.
  bad_steps: jax.Array  # int32[], skipped updates in a row up to now (non-finite loss or gradient).
  skipped_steps: jax.Array  # int32[], skipped updates in all.

  def averaged(self) -> Any:
    """The parameters to sample from: the average where there is one, and what is frozen."""
    return merge(self.ema, self.frozen)


@functools.cache
def graphdef(cfg: config_lib.ModelConfig) -> nnx.GraphDef:
  """The structure of the model, without parameters: `nnx.merge(graphdef, params)` is the model.

  One object for each config: as a static argument of compiled functions, another one would compile them again.
  """
  return nnx.split(_abstract_model(cfg), nnx.Param)[0]


def abstract_params(cfg: config_lib.ModelConfig) -> Any:
  """The parameters as nested dicts of ShapeDtypeStruct."""
  return nnx.to_pure_dict(nnx.split(_abstract_model(cfg), nnx.Param)[1])


def abstract(config: config_lib.Config, mesh: Mesh) -> TrainState:
  """The state of a run as ShapeDtypeStructs with their shardings."""
  shapes = jax.eval_shape(lambda: _initial(config))
  return jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes, sharding.shardings(shapes, mesh)
  )


def create(config: config_lib.Config, mesh: Mesh, params: Any = None) -> TrainState:
  """The state before the first step; each device makes only its own shards.

  params: weights to begin with, nested dicts of arrays; None: random ones, a function of config.seed alone.
  """
  return _initializer(config, mesh)() if params is None else _initializer(config, mesh, given=True)(params)


def keys(seed: int) -> tuple[jax.Array, jax.Array]:
  """The key of the initialisation and the key that those of the steps are folded from."""
  init, steps = jax.random.split(jax.random.key(seed))
  return init, steps


def merge(*parts: Any) -> Any:
  """One nested dict of disjoint nested dicts. Raises ValueError when two hold the same path.

  >>> merge({'a': {'x': 1}}, {'a': {'y': 2}, 'b': 3})
  {'a': {'x': 1, 'y': 2}, 'b': 3}
  """
  out: dict[str, Any] = {}
  for part in parts:
    for key, value in part.items():
      if key not in out:
        out[key] = value
      elif isinstance(value, dict) and isinstance(out[key], dict):
        out[key] = merge(out[key], value)
      else:
        raise ValueError(f'Two parts hold {key!r}; parts must be disjoint.')
  return out


@functools.cache
def _initializer(config: config_lib.Config, mesh: Mesh, *, given: bool = False):
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract(config, mesh))
  if given:
    return jax.jit(lambda params: _of(config, params), out_shardings=shardings)
  return jax.jit(lambda: _initial(config), out_shardings=shardings)


def _abstract_model(cfg: config_lib.ModelConfig) -> interleaved.Interleaved:
  return nnx.eval_shape(lambda: interleaved.Interleaved(cfg, rngs=nnx.Rngs(0)))


def _initial(config: config_lib.Config) -> TrainState:
  model = interleaved.Interleaved(config.model, rngs=nnx.Rngs(params=keys(config.seed)[0]))
  return _of(config, nnx.to_pure_dict(nnx.split(model, nnx.Param)[1]))


def _of(config: config_lib.Config, params: Any) -> TrainState:
  params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  trainable = {name: part for name, part in params.items() if name not in FROZEN}
  return TrainState(
    step=jnp.int32(0),
    trainable=trainable,
    frozen={name: part for name, part in params.items() if name in FROZEN},
    ema=jax.tree.map(jnp.copy, trainable),  # Donated arrays may not be shared.
    opt_state=optimizer.direction(config.train).init(trainable),
    bad_steps=jnp.int32(0),
    skipped_steps=jnp.int32(0),
  )
