"""The analytic FLOP count against what XLA counts in the compiled step, layers unrolled, no rematerialisation."""

import dataclasses

import jax
import pytest

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.cost import training_flops
from pdgen.models import interleaved
from pdgen.training import optimizer
from pdgen.training import state as state_lib
from pdgen.training import step as step_lib


def compiled_flops(config, batch):
  """What XLA counts in the compiled step of that config."""
  mesh = mesh_lib.make_mesh(config.mesh)
  rows, und, gen = config.data.batch_size, config.data.und_tokens, config.data.gen_tokens

  def shaped(x, length):
    return jax.ShapeDtypeStruct((rows, length), x.dtype)

  abstract = batch._replace(
    und=jax.tree.map(lambda x: shaped(x, und), batch.und),
    gen=jax.tree.map(lambda x: shaped(x, gen), batch.gen),
    pictures=jax.ShapeDtypeStruct((rows, config.data.pictures, *batch.pictures.shape[2:]), batch.pictures.dtype),
  )
  step = step_lib.make_train_step(config, mesh).lower(state_lib.abstract_on_mesh(config, mesh), abstract)
  return step.compile().cost_analysis()['flops']


@pytest.fixture(scope='module')
def wide(tiny):
  """Wide enough that matmuls are nearly all of the work, as in every model of use; every part is a share that shows."""
  model = dataclasses.replace(
    tiny.model,
    width=192,
    num_heads=3,
    num_kv_heads=1,
    head_dim=64,
    mlp_dim=512,
    vocab_size=2048,
    codec=config_lib.CodecConfig(patch=8),
    max_latent_size=4,
    vit=config_lib.VitConfig(width=128, depth=1, mlp_dim=512),
    scan_layers=False,
  )
  data = dataclasses.replace(tiny.data, batch_size=2, und_tokens=192, gen_tokens=320, pictures=24)
  return dataclasses.replace(tiny, model=model, data=data)


def test_the_analytic_count_is_within_five_percent_of_the_compiled_one(wide, batch):
  counted = training_flops.train_flops(wide)
  assert counted['total'] == sum(value for name, value in counted.items() if name != 'total')
  for part in ('projections', 'mlp', 'attention', 'vocabulary', 'vit'):
    assert counted[part] > 0.08 * counted['total']
  assert counted['total'] == pytest.approx(compiled_flops(wide, batch), rel=0.05)


def test_muon_adds_its_newton_schulz_iterations(wide):
  params = interleaved.abstract_params(wide.model)

  def compiled(train):
    tx = optimizer.gradient_transform(train)
    update = jax.jit(tx.update).lower(params, jax.eval_shape(tx.init, params), params)
    return update.compile().cost_analysis()['flops']

  muon = dataclasses.replace(wide.train, optimizer='muon')
  counted = training_flops.train_flops(dataclasses.replace(wide, train=muon))
  assert counted['optimizer'] == pytest.approx(compiled(muon) - compiled(wide.train), rel=0.05)
  assert counted['total'] == training_flops.train_flops(wide)['total'] + counted['optimizer']


def test_rows_are_counted_whatever_is_in_them(tiny):
  one = training_flops.train_flops(tiny)
  more = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, batch_size=16))
  twice = training_flops.train_flops(more)
  assert all(twice[name] == 2 * one[name] for name in one)
