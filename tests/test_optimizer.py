"""Schedule, decay, averaging, and the step that skips what is not finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import trees
from pdgen.models import interleaved
from pdgen.training import optimizer
from pdgen.training import state as state_lib
from pdgen.training import step as step_lib


def test_the_learning_rate_warms_up_and_falls_along_one_cosine():
  cfg = config_lib.TrainConfig(steps=100, warmup_steps=10, learning_rate=3.0, final_lr_fraction=0.1)
  rates = np.array([float(optimizer.learning_rate(cfg, jnp.int32(step))) for step in range(100)])
  np.testing.assert_allclose(rates[:10], 3.0 * np.arange(1, 11) / 10, rtol=1e-6)
  assert np.argmax(rates) == 9 and np.all(np.diff(rates[9:]) < 0)
  np.testing.assert_allclose(rates[54], (3.0 + 0.3) / 2, rtol=1e-5)  # Half-way down.
  np.testing.assert_allclose(rates[-1], 0.3, rtol=1e-5)


def test_only_kernels_decay(tiny):
  params = interleaved.abstract_params(dataclasses.replace(tiny.model, vit=config_lib.VitConfig()))
  decayed = dict(trees.flatten_with_paths(optimizer.decayed(params)))
  assert decayed['trunk/layers/gen/down/kernel'] and decayed['head/kernel'] and decayed['time/fc1/kernel']
  for name in ('embed/table', 'vit/position/table', 'trunk/layers/und/q/bias', 'trunk/gen_norm/scale'):
    assert not decayed[name]
  cfg = config_lib.TrainConfig(weight_decay=0.5, clip_norm=0.0)
  weights = {'a': {'kernel': jnp.full((2, 2), 4.0), 'bias': jnp.full((2,), 4.0)}}
  tx = optimizer.gradient_transform(cfg)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, weights), tx.init(weights), weights)
  np.testing.assert_allclose(updates['a']['kernel'], 2.0)  # decay * weight
  np.testing.assert_allclose(updates['a']['bias'], 0.0)


def test_directions_equal_optax_adamw():
  cfg = config_lib.TrainConfig(weight_decay=0.1, clip_norm=1.0, b1=0.9, b2=0.98)
  reference = optimizer._promoting(
    optax.chain(
      optax.clip_by_global_norm(1.0), optax.adamw(0.01, b1=0.9, b2=0.98, weight_decay=0.1, mask=optimizer.decayed)
    )
  )
  mine = theirs = {'kernel': jnp.arange(6.0).reshape(2, 3), 'bias': jnp.ones(3)}
  tx = optimizer.gradient_transform(cfg)
  mine_state, theirs_state = tx.init(mine), reference.init(theirs)
  for step in range(3):
    grads = jax.tree.map(lambda x, step=step: jnp.sin(x + step) * 3, mine)
    updates, mine_state = tx.update(grads, mine_state, mine)
    mine = optimizer.apply_updates(mine, updates, jnp.float32(0.01))
    with jax.numpy_dtype_promotion('standard'):  # optax raises float decays to int32 counts.
      updates, theirs_state = reference.update(grads, theirs_state, theirs)
    theirs = optax.apply_updates(theirs, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), mine, theirs)


def test_muon_orthogonalises_each_matrix_of_the_layers_and_leaves_the_rest_to_adam():
  rng = np.random.default_rng(0)
  cfg = config_lib.TrainConfig(optimizer='muon', clip_norm=0.0)
  grads = {
    'trunk': {'layers': {'kernel': jnp.asarray(rng.normal(size=(2, 8, 12)), jnp.float32), 'bias': jnp.ones((2, 12))}},
    'head': {'kernel': jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)},
  }
  tx = optimizer.gradient_transform(cfg)
  updates, _ = tx.update(grads, tx.init(grads), grads)
  for got, gradient in zip(updates['trunk']['layers']['kernel'], grads['trunk']['layers']['kernel'], strict=True):
    left, _, right = np.linalg.svd(np.asarray(gradient), full_matrices=False)
    singular = np.diag(left.T @ np.asarray(got) @ right.T)
    np.testing.assert_allclose(got, (left * singular) @ right, atol=1e-4)  # The gradient's own singular vectors,
    assert np.all(np.abs(singular / (0.2 * 12**0.5) - 1.0) < 0.35)  # all about as long: Newton-Schulz is rough.
  adam = optimizer.gradient_transform(dataclasses.replace(cfg, optimizer='adamw'))
  same, _ = adam.update(grads, adam.init(grads), grads)
  np.testing.assert_allclose(updates['head']['kernel'], same['head']['kernel'])
  np.testing.assert_allclose(updates['trunk']['layers']['bias'], same['trunk']['layers']['bias'])


def test_an_unknown_optimizer_is_named():
  with pytest.raises(ValueError, match=r"Unknown optimizer 'sgd'. Known: \['adamw', 'muon'\]"):
    optimizer.gradient_transform(config_lib.TrainConfig(optimizer='sgd'))


def test_the_average_forgets_the_start_and_then_follows_slowly():
  cfg = config_lib.TrainConfig(ema_decay=0.9)

  def after(step):
    return float(optimizer.update_ema({'w': jnp.float32(0)}, {'w': jnp.float32(1)}, cfg, jnp.int32(step))['w'])

  assert after(0) == pytest.approx(0.9)  # decay 1 / 10
  assert after(10) == pytest.approx(1 - 11 / 20)
  assert after(1000) == pytest.approx(0.1)


@pytest.fixture(scope='module')
def batch(batch):
  """Two of its rows: the steps of this file are of the optimizer, and most of their time is the model's."""
  return jax.tree.map(lambda x: x[:2], batch)


@pytest.fixture
def fresh(tiny):
  """(state, step) before the first step; the step takes numpy batches."""
  mesh = mesh_lib.make_mesh(tiny.mesh)
  step = step_lib.make_train_step(tiny, mesh)
  return state_lib.init_state(tiny, mesh), lambda state, batch: step(state, mesh_lib.put_batch(batch, mesh))


def test_a_step_learns_averages_and_counts(tiny, batch, fresh):
  state, step = fresh
  before = jax.device_get(state)
  state, metrics = step(state, batch)
  assert int(state.step) == 1 and int(metrics['bad_steps']) == 0
  assert float(metrics['learning_rate']) == pytest.approx(tiny.train.learning_rate / 2)
  for (name, old), new, ema in zip(
    trees.flatten_with_paths(before.trainable),
    jax.tree.leaves(state.trainable),
    jax.tree.leaves(state.ema),
    strict=True,
  ):
    np.testing.assert_allclose(ema, 0.1 * old + 0.9 * np.asarray(new), rtol=1e-5, atol=1e-7, err_msg=name)
  # The zero-initialised head keeps its gradient from the gen trunk in the first step; the rest learns at once.
  assert np.any(before.trainable['latent_out']['kernel'] != np.asarray(state.trainable['latent_out']['kernel']))
  assert np.any(before.trainable['embed']['table'] != np.asarray(state.trainable['embed']['table']))
  first = float(metrics['loss'])
  for _ in range(15):
    state, metrics = step(state, batch)
  assert float(metrics['loss']) < 0.9 * first


def test_every_step_draws_its_own_noise_and_repeats_it(batch, fresh, tiny):
  _, step = fresh
  mesh = mesh_lib.make_mesh(tiny.mesh)

  def mse_at(number):
    at = jax.device_put(jnp.int32(number), mesh_lib.replicated(mesh))
    state = state_lib.init_state(tiny, mesh).replace(step=at)
    return float(step(state, batch)[1]['mse'])

  assert mse_at(0) == mse_at(0) != mse_at(1)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(batch, fresh):
  state, step = fresh
  state, _ = step(state, batch)
  before = jax.device_get(state)
  # One supervised token with an infinite weight: the loss and every gradient are not finite.
  broken = batch._replace(und=batch.und._replace(weight=np.where(batch.und.weight > 0, np.inf, 0).astype(np.float32)))
  for count in (1, 2):
    state, metrics = step(state, broken)
    assert not np.isfinite(float(metrics['loss']))
    assert (int(metrics['bad_steps']), int(metrics['skipped_steps'])) == (count, count)
  assert int(state.step) == 3
  for name in ('trainable', 'ema', 'opt_state'):
    jax.tree.map(np.testing.assert_array_equal, getattr(before, name), jax.device_get(getattr(state, name)))
  state, metrics = step(state, batch)
  assert (int(metrics['bad_steps']), int(metrics['skipped_steps'])) == (0, 2)
  assert np.any(before.trainable['embed']['table'] != np.asarray(state.trainable['embed']['table']))
