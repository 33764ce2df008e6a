"""Everything that a training run carries from step to step, and its initialisation straight into shards."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.sharding import Mesh

from pdgen.core import config as config_lib
from pdgen.core import trees
from pdgen.models import interleaved, partition
from pdgen.models import params as params_lib
from pdgen.training import optimizer


class TrainState(struct.PyTreeNode):
  """Parameters are nested dicts of arrays; `nnx.merge(graphdef, trainable, frozen)` is the model."""

  step: jax.Array  # int32[], steps taken; the random key of the next one is folded from it.
  trainable: Any  # Parameters that learn, float32.
  frozen: Any  # Parameters that do not, in the types they came in; disjoint from trainable.
  ema: Any  # Moving average of trainable: what is sampled from.
  opt_state: Any  # Of optimizer.gradient_transform.
  bad_steps: jax.Array  # int32[], skipped updates in a row up to now (non-finite loss or gradient).
  skipped_steps: jax.Array  # int32[], skipped updates in all.

  def averaged(self) -> Any:
    """The parameters to sample from: the average where there is one, and what is frozen."""
    return params_lib.merge(self.ema, self.frozen)


def split_trainable(params: Any, cfg: config_lib.TrainConfig) -> tuple[dict[str, Any], dict[str, Any]]:
  """(what learns, in float32; what does not, with its bits and its type).

  Raises: ValueError for a pattern that matches nothing, or for patterns that leave nothing to learn.
  """
  named = dict(trees.flatten_with_paths(params))
  for pattern in cfg.freeze:
    if not params_lib.frozen([name for name in named if not params_lib.is_codec(name)], [pattern]):
      raise ValueError(f'config.train.freeze: no parameter or folder of parameters matches {pattern!r}.')
  fixed = params_lib.frozen(named, cfg.freeze)
  if not named.keys() - fixed:
    raise ValueError(f'{cfg.freeze=} leaves nothing to learn. Learn a part, or adapters (config.model.lora).')
  learns = {name: leaf.astype(jnp.float32) for name, leaf in named.items() if name not in fixed}
  return trees.unflatten(learns), trees.unflatten({name: named[name] for name in named if name in fixed})


def abstract_state(config: config_lib.Config) -> TrainState:
  """The state of a run as ShapeDtypeStructs, for no mesh in particular, with the types of random weights."""
  return jax.eval_shape(lambda: _random(config))


def abstract_on_mesh(config: config_lib.Config, mesh: Mesh) -> TrainState:
  """The state of a run as ShapeDtypeStructs with their shardings."""
  shapes = abstract_state(config)
  return jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes, partition.shardings(shapes, mesh)
  )


def init_state(config: config_lib.Config, mesh: Mesh, params: Any = None) -> TrainState:
  """The state before the first step; each device makes only its own shards.

  Args:
    config: of the run.
    mesh: that the state is sharded over.
    params: weights to begin with, nested dicts of arrays; None: random ones, a function of config.seed alone. Adapters
      (`ModelConfig.lora`) that they lack begin as in a new model.
  """
  return _initializer(config, mesh)() if params is None else _initializer(config, mesh, given=True)(params)


def rng_keys(seed: int) -> tuple[jax.Array, jax.Array]:
  """The key of the initialisation and the key that those of the steps are folded from."""
  init, steps = jax.random.split(jax.random.key(seed))
  return init, steps


@functools.cache
def _initializer(config: config_lib.Config, mesh: Mesh, *, given: bool = False):
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_on_mesh(config, mesh))
  if given:
    return jax.jit(
      lambda params: _from_params(config, _with_adapters(params, _new_params(config))), out_shardings=shardings
    )
  return jax.jit(lambda: _random(config), out_shardings=shardings)


def _new_params(config: config_lib.Config) -> dict[str, Any]:
  model = interleaved.Interleaved(config.model, rngs=nnx.Rngs(params=rng_keys(config.seed)[0]))
  return nnx.to_pure_dict(nnx.split(model, nnx.Param)[1])


def _with_adapters(params: Any, new: Any) -> Any:
  """The parameters, and of the new ones the adapters that they lack."""
  have = {name for name, _ in trees.flatten_with_paths(params)}
  lacking = {
    name: leaf for name, leaf in trees.flatten_with_paths(new) if params_lib.is_adapter(name) and name not in have
  }
  return params_lib.merge(params, trees.unflatten(lacking))


def _random(config: config_lib.Config) -> TrainState:
  """A state of random weights. What the config froze of them is rounded to bfloat16: half the memory."""
  state = _from_params(config, _new_params(config))
  rounded = trees.map_with_path(
    lambda name, leaf: leaf if params_lib.is_codec(name) else leaf.astype(jnp.bfloat16), state.frozen
  )
  return state.replace(frozen=rounded)


def _from_params(config: config_lib.Config, params: Any) -> TrainState:
  trainable, frozen = split_trainable(params, config.train)
  return TrainState(
    step=jnp.int32(0),
    trainable=trainable,
    frozen=frozen,
    ema=jax.tree.map(jnp.copy, trainable),  # Donated arrays may not be shared.
    opt_state=optimizer.gradient_transform(config.train).init(trainable),
    bad_steps=jnp.int32(0),
    skipped_steps=jnp.int32(0),
  )
