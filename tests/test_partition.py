"""What learns and what does not: freezing by path, adapters beside frozen matrices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import toy

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import trees
from pdgen.models import interleaved, layers
from pdgen.training import state as state_lib
from pdgen.training import step as step_lib


def names(tree):
  return {name for name, _ in trees.flatten_with_paths(tree)}


def with_train(config, *, lora=None, **changes):
  model = dataclasses.replace(config.model, lora=lora)
  return dataclasses.replace(config, model=model, train=dataclasses.replace(config.train, **changes))


def after_a_step(config, batch):
  """(state before, state after, metrics), on the host."""
  mesh = mesh_lib.make_mesh(config.mesh)
  state = state_lib.init_state(config, mesh)
  before = jax.device_get(state)
  step = step_lib.make_train_step(config, mesh)
  after, metrics = step(state, mesh_lib.put_batch(batch, mesh))
  after, metrics = step(after, mesh_lib.put_batch(batch, mesh))
  return before, jax.device_get(after), metrics


def test_a_frozen_expert_stays_and_has_no_state(tiny, batch):
  config = with_train(tiny, freeze=('trunk/layers/und', 'trunk/und_norm', 'embed', 'head/kernel'), weight_decay=0.1)
  before, after, metrics = after_a_step(config, batch)
  frozen = {n for n in names(before.frozen)}
  everything = names(interleaved.abstract_params(config.model))
  assert frozen == {n for n in everything if n.startswith(('trunk/layers/und/', 'trunk/und_norm', 'embed/', 'head/'))}
  assert names(before.trainable) == names(before.ema) == everything - frozen
  assert not [name for name in names(before.opt_state) if any(name.endswith(n) for n in frozen)]
  assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(before.frozen))
  jax.tree.map(np.testing.assert_array_equal, after.frozen, before.frozen)
  old = dict(trees.flatten_with_paths(before.trainable))
  moved = {name for name, leaf in trees.flatten_with_paths(after.trainable) if np.any(leaf != old[name])}
  assert moved == everything - frozen
  assert float(metrics['skipped_steps']) == 0
  assert names(after.averaged()) == everything


def test_adapters_alone_learn_beside_frozen_matrices(tiny, batch):
  lora = config_lib.LoraConfig(rank=2, alpha=4.0, kernels='gen/(q|down)')
  before, after, _ = after_a_step(with_train(tiny, lora=lora, freeze=('.*',)), batch)
  own = {f'trunk/layers/gen/{matrix}/lora_{part}' for matrix in ('q', 'down') for part in 'ab'}
  assert names(before.trainable) == own
  q = after.trainable['trunk']['layers']['gen']['q']
  assert np.any(q['lora_b'] != 0) and q['lora_a'].shape == (2, 16, 2) and q['lora_b'].shape == (2, 2, 16)
  # Untouched at the start, they change nothing; the model then starts where the frozen one stands.
  jax.tree.map(np.testing.assert_array_equal, after.frozen, before.frozen)
  assert np.all(before.trainable['trunk']['layers']['gen']['q']['lora_b'] == 0)


def test_an_adapter_adds_its_product():
  cfg = config_lib.LoraConfig(rank=2, alpha=3.0)
  rngs = state_lib.nnx.Rngs(0)
  linear = layers.Linear(5, 4, lora=cfg, rngs=rngs)
  rng = np.random.default_rng(0)
  linear.lora_b[...] = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
  x = rng.normal(size=(3, 5)).astype(np.float32)
  kernel = np.asarray(linear.kernel[...]) + 1.5 * np.asarray(linear.lora_a[...]) @ np.asarray(linear.lora_b[...])
  np.testing.assert_allclose(linear(x), x @ kernel, rtol=1e-5, atol=1e-6)


def test_a_model_with_adapters_starts_from_one_without(tiny):
  mesh = mesh_lib.make_mesh(tiny.mesh)
  config = with_train(tiny, lora=config_lib.LoraConfig(rank=2), freeze=('.*',))
  state = state_lib.init_state(config, mesh)
  params = toy.params(tiny.model)
  started = state_lib.init_state(config, mesh, params)
  table = np.asarray(started.frozen['embed']['table']).astype(np.float32)
  np.testing.assert_allclose(table, params['embed']['table'], rtol=2**-8)
  jax.tree.map(np.testing.assert_array_equal, started.trainable, state.trainable)


@pytest.mark.parametrize(
  'freeze, message', [(('trunk/layer',), "matches 'trunk/layer'"), (('.*',), 'leaves nothing to learn')]
)
def test_patterns_that_make_no_sense_are_errors(tiny, freeze, message):
  with pytest.raises(ValueError, match=message):
    state_lib.abstract_state(with_train(tiny, freeze=freeze))


def test_what_is_frozen_takes_less_memory(tiny):
  """Of the compiled step: two bytes a frozen parameter instead of sixteen, and no gradient."""

  def arguments(config):
    mesh = mesh_lib.make_mesh(config.mesh)
    state = state_lib.abstract_on_mesh(config, mesh)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

  frozen = with_train(tiny, freeze=('trunk/layers/und',))
  count = sum(leaf.size for name, leaf in trees.flatten_with_paths(interleaved.abstract_params(tiny.model))
              if name.startswith('trunk/layers/und'))  # fmt: skip
  assert arguments(tiny) - arguments(frozen) == count * (16 - 2)
