"""Loss and every gradient of a packed batch: the same on eight devices, however they are arranged, as on one."""

import dataclasses

import jax
import numpy as np
import pytest

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import trees
from pdgen.data import pipeline
from pdgen.models import mot, partition
from pdgen.training import state as state_lib
from pdgen.training import step as step_lib

# float32 sums over rows, heads and parts of rows in another order: measured, 5e-7.
TOLERANCE = 1e-5
# Its gradient is zero but for rounding: a softmax does not see what is added to all of its scores.
ZERO = 'vit/layers/k/bias'


def mesh_config(data, fsdp, tensor, sequence):
  return config_lib.MeshConfig(data=data, fsdp=fsdp, tensor=tensor, sequence=sequence)


def experiment(tiny, *, name, vit):
  model = dataclasses.replace(tiny.model, attention=name, num_heads=4, num_kv_heads=2, vit=vit)
  # A quarter of 136 gen tokens ends inside of a picture's four.
  data = dataclasses.replace(tiny.data, und_tokens=768 if vit else 640, gen_tokens=136)
  train = dataclasses.replace(tiny.train, loss_chunk=64 if vit else 0)
  return dataclasses.replace(tiny, model=model, data=data, train=train)


@pytest.fixture(scope='module')
def rows(tiny):
  """Config name to (experiment, its first batch, random parameters, what one device makes of them)."""
  made = {}
  for name, vit in (
    ('reference', None),
    ('blockwise', config_lib.VitConfig(width=16, depth=1, num_heads=2, mlp_dim=24)),
  ):
    config = experiment(tiny, name=name, vit=vit)
    batches = pipeline.batches(config)
    batch = next(batches)
    batches.close()
    rng = np.random.default_rng(0)
    start = state_lib.init_state(config, mesh_lib.make_mesh(mesh_config(1, 1, 1, 1))).trainable
    # The last projection starts at zero, behind which all gradients are zero.
    params = jax.tree.map(lambda x: np.asarray(x) + 0.02 * rng.normal(size=x.shape).astype(np.float32), start)  # noqa: B023
    made[name] = (config, batch, params, gradients(config, batch, params, mesh_config(1, 1, 1, 1)))
  return made


def gradients(config, batch, params, mesh_cfg):
  """(loss, {path: gradient}) on the mesh."""
  mesh = mesh_lib.make_mesh(mesh_cfg)
  where = partition.shardings(params, mesh)
  one = mesh_lib.replicated(mesh)
  f = jax.jit(
    step_lib.gradients(config, mesh),
    in_shardings=(where, {}, mesh_lib.batch_sharding(mesh), None),
    out_shardings=((one, one), where),
  )
  put = jax.device_put(params, where), {}, mesh_lib.put_batch(batch, mesh), jax.random.key(3)
  (loss, _), found = jax.device_get(f(*put))
  return float(loss), dict(trees.flatten_with_paths(found))


@pytest.mark.parametrize(
  'name, shape',
  [
    ('reference', (8, 1, 1, 1)),
    ('reference', (1, 8, 1, 1)),
    ('reference', (2, 2, 2, 1)),
    ('reference', (1, 2, 1, 4)),
    ('reference', (1, 1, 2, 4)),
    ('blockwise', (2, 2, 2, 1)),
    ('blockwise', (1, 1, 2, 4)),
  ],
)
def test_loss_and_every_gradient_equal_those_of_one_device(rows, name, shape):
  config, batch, params, (want_loss, want) = rows[name]
  loss, found = gradients(config, batch, params, mesh_config(*shape))
  assert loss == pytest.approx(want_loss, rel=TOLERANCE)
  assert found.keys() == want.keys()
  worst = {n: np.abs(found[n] - want[n]).max() / np.abs(want[n]).max() for n in want if n != ZERO}
  assert max(worst.values()) < TOLERANCE, worst
  if ZERO in want:
    assert max(np.abs(x[ZERO]).max() for x in (found, want)) < 1e-6 * np.abs(want['vit/layers/v/bias']).max()


def test_the_rows_hold_several_samples_and_pictures_that_the_sequence_axis_cuts(rows):
  for _, batch, _, _ in rows.values():
    assert (batch.und.tokens.segment.max(axis=1) > 1).all()
    for tokens in (batch.und.tokens, batch.gen.tokens):
      cut = tokens.order.shape[1] // 4
      same = lambda field: field[:, cut - 1 :: cut][:, :3] == field[:, cut::cut][:, :3]  # noqa: B023
      inside = same(tokens.segment) & same(tokens.span) & (tokens.span[:, cut::cut][:, :3] > 0)
      assert inside.any() or tokens is batch.und.tokens


def test_joining_the_streams_on_a_split_row_keeps_each_part_on_its_device():
  mesh = mesh_lib.make_mesh(mesh_config(2, 1, 1, 4))
  und, gen = np.arange(2 * 8).reshape(2, 8), 100 + np.arange(2 * 4).reshape(2, 4)

  @jax.jit
  def both(und, gen):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      joined = mot.concat_streams(und, gen)
      return joined, mot.split_streams(joined, 8)

  put = jax.device_put((und, gen), mesh_lib.batch_sharding(mesh))
  joined, parted = both(*put)
  np.testing.assert_array_equal(joined[0], [0, 1, 100, 2, 3, 101, 4, 5, 102, 6, 7, 103])
  np.testing.assert_array_equal(parted.und, und)
  np.testing.assert_array_equal(parted.gen, gen)
  text = both.lower(*put).compile().as_text()
  assert not [word for word in ('all-gather', 'all-to-all', 'collective-permute', 'all-reduce') if word in text]


def test_what_does_not_divide_is_an_error_naming_it(rows):
  config, batch, _, _ = rows['reference']
  mesh = mesh_lib.make_mesh(mesh_config(1, 1, 1, 3))
  with pytest.raises(ValueError, match=r'\[8, 640\]: 640 does not divide among sequence = 3.*und_tokens'):
    mesh_lib.put_batch(batch, mesh)
