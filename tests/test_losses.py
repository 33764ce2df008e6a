"""The objective against hand-made formulas, and the loss mask: what is supervised moves the loss, nothing else does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdgen.core import mesh as mesh_lib
from pdgen.core import packed
from pdgen.models import interleaved
from pdgen.training import losses
from pdgen.training import state as state_lib
from pdgen.training import step as step_lib

# float32 sums of a few thousand terms in another order.
TOLERANCE = 1e-5


@pytest.fixture(scope='module')
def model(tiny):
  mesh = mesh_lib.make_mesh(tiny.mesh)
  params = state_lib.init_state(tiny, mesh).trainable
  # The zero-initialised head would hide the flow loss's dependence on everything but the target.
  head = params['latent_out']['kernel']
  params['latent_out']['kernel'] = jax.random.normal(jax.random.key(1), head.shape) * 0.1
  return nnx.merge(interleaved.graphdef(tiny.model), params)


@pytest.fixture(scope='module')
def row(batch):
  """The row of the first batch with the most padding."""
  i = int(np.argmax((batch.und.tokens.segment == 0).sum(axis=1)))
  return jax.tree.map(lambda x: jnp.asarray(x[i : i + 1]), batch)


@pytest.fixture(scope='module')
def loss_of(model, tiny):
  """(batch) -> loss and metrics, at one fixed key."""
  graphdef, params = nnx.split(model)

  @jax.jit
  def run(batch):
    return losses.interleaved_loss(nnx.merge(graphdef, params), batch, jax.random.key(3), tiny)

  return run


def test_the_whole_loss_equals_the_formulas(model, loss_of, row, tiny):
  loss, metrics = loss_of(row)
  graphdef, params = nnx.split(model)

  @jax.jit
  def outputs(z, t):
    model = nnx.merge(graphdef, params)
    und, gen = model.hidden(row, z, t)
    return jax.nn.log_softmax(model.logits(und)), model.prediction(gen)

  key_t, key_noise = jax.random.split(jax.random.key(3))
  clean = np.asarray(model.clean_latents(row))
  noise = np.asarray(jax.random.normal(key_noise, clean.shape))
  raw = 1 / (1 + np.exp(-np.asarray(jax.random.normal(key_t, (1, clean.shape[1] + 1)))))
  shift = tiny.train.timestep_shift
  t = np.where(row.gen.copy > 0, (shift * raw / (1 + (shift - 1) * raw))[0][np.asarray(row.gen.copy)], 0.0)
  z = t[..., None] * noise + (1 - t[..., None]) * clean
  log_p, x = (np.asarray(out) for out in outputs(z.astype(np.float32), t.astype(np.float32)))
  divisor = np.maximum(t, tiny.model.min_t)[..., None]
  weight = np.asarray(row.gen.weight)
  mse = (weight * (((z - x) / divisor - (z - clean) / divisor) ** 2).mean(-1)).sum() / weight.sum()
  weight = np.asarray(row.und.weight)
  label = np.asarray(row.und.label)
  ce = -(weight * np.take_along_axis(log_p, label[..., None], -1)[..., 0]).sum() / weight.sum()

  np.testing.assert_allclose(metrics['mse'], mse, rtol=TOLERANCE)
  np.testing.assert_allclose(metrics['ce'], ce, rtol=TOLERANCE)
  np.testing.assert_allclose(loss, tiny.train.lambda_ce * ce + mse, rtol=TOLERANCE)
  right = log_p.argmax(-1) == label
  np.testing.assert_allclose(metrics['text_accuracy'], right[weight > 0].mean(), rtol=TOLERANCE)
  assert float(metrics['text_tokens']) == (weight > 0).sum()
  assert float(metrics['verdict_accuracy']) == pytest.approx(right[weight > 1].mean(), rel=TOLERANCE)


def test_a_model_that_predicts_velocity_is_scored_on_it(row, tiny):
  cfg = dataclasses.replace(tiny.model, prediction='velocity')
  rng = np.random.default_rng(0)
  prediction, clean, noise = rng.normal(size=(3, *row.gen.patch.shape, 5)).astype(np.float32)
  weight = np.asarray(row.gen.weight)
  have, _ = losses.flow_loss(prediction, clean=clean, noise=noise, t=weight * 0.1, weight=row.gen.weight, cfg=cfg)
  want = (weight * ((prediction - (noise - clean)) ** 2).mean(-1)).sum() / weight.sum()
  np.testing.assert_allclose(have, want, rtol=TOLERANCE)


def test_a_copy_has_one_timestep_and_the_clean_copies_have_none(row):
  t = np.asarray(losses.timesteps(jax.random.key(0), row.gen.copy, shift=4.0))
  copy = np.asarray(row.gen.copy)
  assert np.all(t[copy == 0] == 0)
  each = [set(t[copy == number].tolist()) for number in range(1, copy.max() + 1)]
  assert all(len(values) == 1 for values in each)
  assert len(set().union(*each)) == copy.max() > 3


def test_timesteps_are_logit_normal_and_shifted():
  copy = jnp.asarray(np.arange(1, 4001)[None])
  plain = np.asarray(losses.timesteps(jax.random.key(0), copy, shift=1.0))
  assert abs(np.median(plain) - 0.5) < 0.02 and abs((plain < 1 / (1 + np.e)).mean() - 0.1587) < 0.02
  shifted = np.asarray(losses.timesteps(jax.random.key(0), copy, shift=4.0))
  np.testing.assert_allclose(shifted, 4 * plain / (1 + 3 * plain), rtol=1e-5)


def test_flipping_a_label_moves_the_loss_exactly_where_it_is_supervised(loss_of, row, tiny):
  # No two labels are equally likely: among random logits some are, to float32's digits of the whole loss.
  logits = jnp.broadcast_to(
    0.05 * jnp.arange(tiny.model.vocab_size, dtype=jnp.float32), (*row.und.label.shape, tiny.model.vocab_size)
  )
  text_loss = jax.jit(lambda und: losses.text_loss(logits, und, cfg=tiny.data.sequence)[0])

  def flipped(i):
    label = (row.und.label[0, i] + 7) % tiny.model.vocab_size
    return row._replace(und=row.und._replace(label=row.und.label.at[0, i].set(label)))

  weight = np.asarray(row.und.weight)[0]
  before = float(text_loss(row.und))
  for i in range(len(weight)):
    moved = float(text_loss(flipped(i).und)) != before
    assert moved == (weight[i] > 0), f'label {i} of weight {weight[i]}: {moved=}'
  # And through the whole model: the first and the last of either kind.
  before = float(loss_of(row)[0])
  for kind in (np.flatnonzero(weight > 0), np.flatnonzero(weight == 0)):
    for i in (kind[0], kind[-1]):
      assert (float(loss_of(flipped(i))[0]) != before) == (weight[i] > 0), i


def test_every_visible_token_reaches_the_loss_and_padding_does_not(loss_of, row, tiny):
  """A token of a sample can move the loss of what comes after it; padding can move nothing."""
  before = float(loss_of(row)[0])
  segment = np.asarray(row.und.tokens.segment)[0]
  texts = np.flatnonzero((segment == 1) & (np.asarray(row.und.tokens.span)[0] == 0))[:40]
  padding = np.flatnonzero(segment == 0)
  assert len(padding)
  for i in [*texts, *padding]:
    token = (row.und.token_id[0, i] + 7) % tiny.model.vocab_size
    flipped = row._replace(und=row.und._replace(token_id=row.und.token_id.at[0, i].set(token)))
    assert (float(loss_of(flipped)[0]) != before) == (segment[i] > 0), i


def test_the_flow_target_matters_exactly_where_it_is_weighted(model, row, tiny):
  rng = np.random.default_rng(0)
  shape = (*row.gen.patch.shape, model.codec.channels)
  prediction, clean, noise = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(3))
  t = jnp.asarray(rng.uniform(size=shape[:2]), jnp.float32)

  @jax.jit
  def loss(clean):
    return losses.flow_loss(prediction, clean=clean, noise=noise, t=t, weight=row.gen.weight, cfg=tiny.model)[0]

  gradient = np.abs(np.asarray(jax.grad(loss)(clean))).sum(-1)
  np.testing.assert_array_equal(gradient > 0, np.asarray(row.gen.weight) > 0)
  assert 0 < (gradient > 0).sum() < gradient.size


def test_a_timestep_below_min_t_is_clamped_in_the_loss_only(row, tiny):
  ones = jnp.ones((*row.gen.patch.shape, 3))
  cfg = dataclasses.replace(tiny.model, min_t=0.25)
  for t, want in ((0.01, 1 / 0.25**2), (0.5, 1 / 0.5**2)):
    loss, _ = losses.flow_loss(
      ones * 2, clean=ones, noise=ones, t=jnp.full(row.gen.patch.shape, t), weight=row.gen.weight, cfg=cfg
    )
    assert float(loss) == pytest.approx(want)


def test_nothing_supervised_is_a_loss_of_zero_with_a_zero_gradient(batch, tiny):
  mesh = mesh_lib.make_mesh(tiny.mesh)
  bare = batch._replace(
    und=batch.und._replace(weight=np.zeros_like(batch.und.weight)),
    gen=batch.gen._replace(weight=np.zeros_like(batch.gen.weight)),
  )
  _, metrics = step_lib.make_train_step(tiny, mesh)(state_lib.init_state(tiny, mesh), mesh_lib.put_batch(bare, mesh))
  assert all(np.isfinite(value) for value in metrics.values())
  assert float(metrics['loss']) == float(metrics['grad_norm']) == 0 == int(metrics['skipped_steps'])


def test_a_weight_of_zero_silences_even_a_value_that_is_not_finite(tiny):
  logits = jnp.zeros((1, 2, 5)).at[0, 1, 3].set(jnp.inf)
  tokens = packed.TokenMeta(*(jnp.ones((1, 2), jnp.int32) for _ in packed.TokenMeta._fields))
  ids = jnp.zeros((1, 2), jnp.int32)
  und = packed.UndStream(tokens, ids, ids, jnp.asarray([[2.0, 0.0]]), ids, ids)
  assert float(losses.text_loss(logits, und, cfg=tiny.data.sequence)[0]) == pytest.approx(np.log(5))


@pytest.mark.parametrize('chunk', [100, 448])
def test_the_loss_of_texts_in_chunks_is_the_same(model, row, tiny, chunk):
  graphdef, params = nnx.split(model)

  def loss(params, chunk):
    config = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, loss_chunk=chunk))
    return losses.interleaved_loss(nnx.merge(graphdef, params), row, jax.random.key(3), config)

  run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
  (want, want_metrics), want_grads = run(params, 0)
  (have, metrics), grads = run(params, chunk)
  assert float(have) == pytest.approx(float(want), rel=TOLERANCE)
  assert {name: float(x) for name, x in metrics.items()} == pytest.approx(
    {name: float(x) for name, x in want_metrics.items()}, rel=TOLERANCE
  )
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
