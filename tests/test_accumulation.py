"""Gradient accumulation: any number of micro-batches takes the step of the whole batch, in less memory."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import toy

from pdgen import train as train_command
from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import packed, trees
from pdgen.cost import hlo, training_flops
from pdgen.data import packing, sequence
from pdgen.models import interleaved, partition
from pdgen.training import accumulation, distributed, losses
from pdgen.training import state as state_lib
from pdgen.training import step as step_lib

# float32 sums of a few thousand terms in another order.
TOLERANCE = 1e-5


def _with(config, accumulate, **changes):
  train = dataclasses.replace(config.train, accumulate=accumulate, **changes.pop('train', {}))
  return dataclasses.replace(config, train=train, **changes)


def _uneven(batch):
  """The batch with rows of very different weights, and with a row that teaches nothing: means of means are wrong."""
  und, gen = batch.und.weight.copy(), batch.gen.weight.copy()
  und[1:5, ::3], gen[5:] = 0.0, 0.0
  und[0] = 0.0
  return batch._replace(und=batch.und._replace(weight=und), gen=batch.gen._replace(weight=gen))


def _gradients(config, batch):
  mesh = mesh_lib.make_mesh(config.mesh)
  alone = dataclasses.replace(config, mesh=config_lib.MeshConfig(fsdp=1))
  state = state_lib.init_state(alone, mesh_lib.make_mesh(alone.mesh))
  # The zero-initialised head would hide most gradients.
  head = state.trainable['latent_out']['kernel']
  state.trainable['latent_out']['kernel'] = jax.random.normal(jax.random.key(1), head.shape) * 0.1
  state = jax.device_put(state, partition.shardings(state, mesh))
  arguments = state.trainable, state.frozen, mesh_lib.put_batch(batch, mesh), jax.random.key(5)
  run = jax.jit(step_lib.gradients(config, mesh)).lower(*arguments).compile()
  (loss, metrics), grads = run(*arguments)
  return float(loss), {name: float(x) for name, x in metrics.items()}, dict(trees.flatten_with_paths(grads))


def _assert_equal(have, want):
  assert have[0] == pytest.approx(want[0], rel=TOLERANCE)
  assert have[1] == pytest.approx(want[1], rel=TOLERANCE)
  for name, grad in want[2].items():
    scale = float(np.abs(grad).max())
    np.testing.assert_allclose(have[2][name], grad, rtol=1e-4, atol=2e-6 * max(scale, 1e-3), err_msg=name)


@pytest.fixture(scope='module')
def whole(tiny, batch):
  return _gradients(tiny, _uneven(batch))


@pytest.mark.parametrize(
  ('accumulate', 'mesh'),
  [
    (4, dict(fsdp=1)),
    (2, dict(data=2, fsdp=2, tensor=2)),
    (4, dict(data=2, fsdp=1, tensor=2, sequence=2)),
  ],
)
def test_loss_metrics_and_gradients_are_those_of_the_whole_batch(tiny, batch, whole, accumulate, mesh, capfd):
  config = _with(tiny, accumulate, mesh=config_lib.MeshConfig(**mesh))
  assert 'verdict_accuracy' in whole[1] and whole[1]['text_tokens'] > 300
  _assert_equal(_gradients(config, _uneven(batch)), whole)
  assert 'rematerialization' not in capfd.readouterr().err


def test_a_batch_that_does_not_divide_is_refused(tiny):
  config = _with(tiny, 4, mesh=config_lib.MeshConfig(data=2, fsdp=2))
  with pytest.raises(ValueError, match=r'accumulate=4: a batch of 8 rows .* data x fsdp = 4 .* a multiple of 16'):
    step_lib.make_train_step(config, mesh_lib.make_mesh(config.mesh))


def test_rows_stay_on_their_devices(tiny, batch):
  """No collective but those of the step itself: what a micro-batch is made of is there already."""
  config = _with(tiny, 2, mesh=config_lib.MeshConfig(data=8, fsdp=1))
  mesh = mesh_lib.make_mesh(config.mesh)
  wide = jax.tree.map(lambda x: np.concatenate([x, x]), batch)

  def split(batch):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return jax.tree.map(lambda x: accumulation.split_rows(x, 2, mesh), batch)

  compiled = jax.jit(split).lower(mesh_lib.put_batch(wide, mesh)).compile()
  assert not hlo.collectives(compiled.as_text(), devices=8)
  rows = np.asarray(split(mesh_lib.put_batch(wide, mesh)).und.label)
  assert rows.shape[:2] == (2, 8)
  np.testing.assert_array_equal(rows[0], wide.und.label[::2])


def test_steps_are_those_of_the_whole_batch(tiny, batch):
  """Both optimizers, adapters beside what is frozen: two steps, and the average."""
  model = dataclasses.replace(tiny.model, lora=config_lib.LoraConfig(rank=2))
  changes = dict(train=dict(optimizer='muon', freeze=('.*/und/.*',)), model=model)
  states = []
  for accumulate in (1, 4):
    given = _with(tiny, accumulate, **changes)
    mesh = mesh_lib.make_mesh(given.mesh)
    state = state_lib.init_state(given, mesh)
    placed = mesh_lib.put_batch(batch, mesh)
    step = step_lib.make_train_step(given, mesh).lower(state, placed).compile()
    for _ in range(2):
      state, metrics = step(state, placed)
    states.append((state, metrics))
  (want, want_metrics), (have, metrics) = states
  assert {n: float(x) for n, x in metrics.items()} == pytest.approx(
    {n: float(x) for n, x in want_metrics.items()}, rel=1e-4
  )
  for name, x in trees.flatten_with_paths(want.averaged()):
    y = dict(trees.flatten_with_paths(have.averaged()))[name]
    # Adam's first directions are signs: where a gradient is nearly 0 its rounding decides. Nearly all must agree.
    assert np.isclose(np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=1e-4, atol=1e-5).mean() > 0.995, name
  for a, b in zip(jax.tree.leaves(want.frozen), jax.tree.leaves(have.frozen), strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_draws_of_the_codecs_posterior_are_those_of_the_whole_batch(tiny):
  vae = dataclasses.replace(toy.VAE, sample_posterior=True)
  model = dataclasses.replace(toy.WITH_VAE, vit=None, codec=dataclasses.replace(toy.WITH_VAE.codec, vae=vae))
  config = dataclasses.replace(tiny, model=model)
  build = lambda seed: sequence.build(
    toy.full_trajectory(), tokenizer=toy.WORDS, model=model, sequence=toy.PLAIN, rng=np.random.default_rng(seed)
  )
  samples = [build(seed) for seed in range(4)]
  budget = packed.RowBudget(*(max(n) for n in zip(*map(packing.sizes, samples), strict=True)))
  batch = toy.batch(*(packing.pack_row([sample], budget) for sample in samples))
  graphdef, params = interleaved.graphdef(model), toy.params(model)
  loss = jax.jit(
    lambda params, batch, key, whole: losses.interleaved_loss(
      nnx.merge(graphdef, params), batch, key, config, whole=whole
    )[0]
  )
  key = jax.random.key(3)
  whole = losses.whole(batch, key, config)
  assert whole.draws.posterior is not None and whole.draws.posterior.shape[:2] == (4, 4)
  rows = lambda tree, k: jax.tree.map(lambda x: x[k : k + 2], tree)
  parts = [loss(params, rows(batch, k), key, whole._replace(draws=rows(whole.draws, k))) for k in (0, 2)]
  assert float(sum(parts)) == pytest.approx(float(loss(params, batch, key, None)), rel=TOLERANCE)
  mean = whole._replace(draws=whole.draws._replace(posterior=jnp.zeros_like(whole.draws.posterior)))
  assert abs(float(loss(params, batch, key, mean)) / float(loss(params, batch, key, whole)) - 1) > 1e-3


def test_a_row_that_is_not_finite_skips_the_whole_step(tiny, batch):
  config = _with(tiny, 4)
  mesh = mesh_lib.make_mesh(config.mesh)
  weight = batch.und.weight.copy()
  weight[6, np.flatnonzero(weight[6])[0]] = np.inf
  bad = batch._replace(und=batch.und._replace(weight=weight))
  before = state_lib.init_state(config, mesh)
  kept = jax.tree.map(np.asarray, before.trainable)
  placed = mesh_lib.put_batch(bad, mesh)
  state, _ = step_lib.make_train_step(config, mesh).lower(before, placed).compile()(before, placed)
  assert int(state.skipped_steps) == 1
  jax.tree.map(np.testing.assert_array_equal, kept, jax.tree.map(np.asarray, state.trainable))


def test_the_compiled_step_takes_less_memory(tiny):
  """Activations of half of the rows, and one more copy of the gradients."""
  data = dataclasses.replace(tiny.data, batch_size=16)
  temporary = []
  for accumulate in (1, 2):
    config = _with(dataclasses.replace(tiny, data=data), accumulate)
    mesh = mesh_lib.make_mesh(config.mesh)
    lowered = step_lib.make_train_step(config, mesh).lower(
      state_lib.abstract_on_mesh(config, mesh), step_lib.abstract_batch(config)
    )
    temporary.append(lowered.compile().memory_analysis().temp_size_in_bytes)
  assert temporary[1] < 0.6 * temporary[0]
  # The same work: a step is a step.
  assert training_flops.train_flops(_with(tiny, 4)) == training_flops.train_flops(tiny)


def test_a_loss_that_cannot_be_summed_is_refused(tiny):
  def own(model, batch, key, config):
    return losses.interleaved_loss(model, batch, key, config)

  mesh = mesh_lib.make_mesh(tiny.mesh)
  step_lib.make_train_step(tiny, mesh, loss=own)
  with pytest.raises(ValueError, match=r'accumulate=2 needs a loss that takes `whole`.*own does not'):
    step_lib.make_train_step(_with(tiny, 2), mesh, loss=own)


def test_a_run_resumes_with_another_number_of_micro_batches(tiny, tmp_path, monkeypatch):
  """The same batches, steps and, within rounding, parameters."""
  config = _with(tiny, 1, train=dict(steps=4, self_sample_steps=(), checkpoint_every=2))
  want = train_command.train(config, tmp_path / 'whole')
  with monkeypatch.context() as patch:
    patch.setattr(distributed, 'preemption_notice', lambda: contextlib.nullcontext(lambda step: step == 2))
    assert int(train_command.train(_with(config, 2), tmp_path / 'run').step) == 2
  have = train_command.train(_with(config, 4), tmp_path / 'run')
  lines = [(tmp_path / name / 'metrics.jsonl').read_text().splitlines() for name in ('whole', 'run')]
  assert int(have.step) == 4 and len(lines[0]) == len(lines[1])
  for (name, x), y in zip(trees.flatten_with_paths(want.ema), jax.tree.leaves(have.ema), strict=True):
    assert np.isclose(np.asarray(x), np.asarray(y), rtol=1e-3, atol=1e-4).mean() > 0.99, name
