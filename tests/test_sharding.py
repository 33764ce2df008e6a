"""The partition table, its errors, and the same step on one device and on eight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import trees
from pdgen.models import interleaved, partition
from pdgen.training import state as state_lib
from pdgen.training import step as step_lib

# float32 sums over rows and shards in another order.
TOLERANCE = 1e-5


def _every_part(model):
  codec = config_lib.CodecConfig(kind='flux', patch=16, vae=config_lib.VaeConfig(width=32, multipliers=(1, 1, 2)))
  lora = config_lib.LoraConfig(kernels='.*')
  return dataclasses.replace(model, vit=config_lib.VitConfig(), codec=codec, lora=lora)


def test_every_parameter_of_every_part_has_exactly_one_rule(tiny):
  cfg = _every_part(tiny.model)
  names = [name for name, _ in trees.flatten_with_paths(interleaved.abstract_params(cfg))]
  assert {name.split('/')[0] for name in names} >= {
    'embed',
    'trunk',
    'vit',
    'head',
    'time',
    'latent_in',
    'latent_out',
    'codec',
  }
  for name in names:
    assert partition.spec(name) == partition.spec(f'opt_state/1/mu/{name}')


def test_every_rule_is_used(tiny):
  cfg = _every_part(tiny.model)
  used = {id(partition.spec(name)) for name, _ in trees.flatten_with_paths(interleaved.abstract_params(cfg))}
  assert {id(partition) for _, partition in partition.RULES} == used


@pytest.mark.parametrize('name', ['trunk/layers/und/r/kernel', 'embedding/table', 'trunk/layers/und/q/kernel/value'])
def test_a_path_without_a_rule_is_an_error(name):
  with pytest.raises(ValueError, match=f'0 rules of models.partition.RULES match {name!r}'):
    partition.spec(name)


def test_a_dimension_that_does_not_divide_is_an_error_naming_it():
  mesh = mesh_lib.make_mesh(config_lib.MeshConfig(fsdp=8))
  tree = {'latent_in': {'kernel': jax.ShapeDtypeStruct((12, 16), jnp.float32)}}
  with pytest.raises(ValueError, match=r'latent_in/kernel \[12, 16\]: 12 does not divide by fsdp = 8'):
    partition.shardings(tree, mesh)


def test_meshes():
  assert dict(mesh_lib.make_mesh(config_lib.MeshConfig()).shape) == dict(data=1, fsdp=8, tensor=1, sequence=1)
  cfg = config_lib.MeshConfig(data=2, fsdp=-1, tensor=2)
  assert dict(mesh_lib.make_mesh(cfg).shape) == dict(data=2, fsdp=2, tensor=2, sequence=1)
  assert mesh_lib.make_mesh(config_lib.MeshConfig(fsdp=1)).size == 1
  for bad in (
    config_lib.MeshConfig(data=3),
    config_lib.MeshConfig(data=4, fsdp=4),
    config_lib.MeshConfig(data=-1),
    config_lib.MeshConfig(data=0),
  ):
    with pytest.raises(ValueError, match='MeshConfig'):
      mesh_lib.make_mesh(bad)


def test_axes_may_share_a_side_of_a_slice():
  class Chip:
    platform, device_kind, core_on_chip, slice_index, process_index = 'tpu', 'TPU v6 lite', 0, 0, 0

    def __init__(self, number):
      self.id, self.coords = number, (number % 16, number // 16, 0)

  mesh = mesh_lib.make_mesh(config_lib.MeshConfig(fsdp=64, sequence=4), devices=[Chip(i) for i in range(256)])
  assert dict(mesh.shape) == dict(data=1, fsdp=64, tensor=1, sequence=4)
  rows = [[chip.coords for chip in row] for row in mesh.devices.reshape(64, 4)]
  assert all(len({y for _, y, _ in row}) == 1 or len({x for x, _, _ in row}) == 1 for row in rows)  # Neighbours.


def test_rows_that_do_not_divide_are_an_error():
  mesh = mesh_lib.make_mesh(config_lib.MeshConfig(data=2, fsdp=4))
  with pytest.raises(ValueError, match=r'6 rows does not divide among data x fsdp = 8.*batch_size to a multiple of 8'):
    mesh_lib.put_batch({'x': np.zeros((6, 3))}, mesh)


def test_eight_devices_train_as_one_does(tiny, batch, capfd):
  want_state, want_metrics = _train(tiny, batch, steps=2)
  mesh = config_lib.MeshConfig(data=2, fsdp=2, tensor=2)
  state, metrics = _train(dataclasses.replace(tiny, mesh=mesh), batch, steps=2)
  kernel = state.trainable['trunk']['layers']['und']['up']['kernel']
  assert kernel.sharding.spec == P(None, 'fsdp', 'tensor')
  assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 16 // mesh.fsdp, 32 // mesh.tensor)}
  for step in range(2):
    for name in want_metrics[step]:
      np.testing.assert_allclose(metrics[step][name], want_metrics[step][name], rtol=TOLERANCE, err_msg=name)
  # Adam's first directions are signs: where a gradient is nearly 0 its rounding decides. Nearly all must agree.
  for (name, have), want in zip(
    trees.flatten_with_paths(state.trainable), jax.tree.leaves(want_state.trainable), strict=True
  ):
    close = np.isclose(np.asarray(have), np.asarray(want), rtol=1e-4, atol=1e-5)
    assert close.mean() > 0.999, name
  assert 'rematerialization' not in capfd.readouterr().err


def test_the_state_starts_in_shards_with_the_values_of_one_device(tiny):
  mesh = mesh_lib.make_mesh(config_lib.MeshConfig(data=2, fsdp=2, tensor=2))
  sharded = state_lib.init_state(tiny, mesh)
  assert jax.tree.map(lambda x: x.sharding, sharded) == partition.shardings(sharded, mesh)
  alone = state_lib.init_state(tiny, mesh_lib.make_mesh(tiny.mesh))
  for (name, have), want in zip(trees.flatten_with_paths(sharded), jax.tree.leaves(alone), strict=True):
    np.testing.assert_allclose(np.asarray(have), np.asarray(want), rtol=1e-6, atol=1e-7, err_msg=name)


def _train(config, batch, *, steps):
  mesh = mesh_lib.make_mesh(config.mesh)
  alone = dataclasses.replace(config, mesh=config_lib.MeshConfig(fsdp=1))
  state = state_lib.init_state(alone, mesh_lib.make_mesh(alone.mesh))
  state, metrics = jax.device_put(state, partition.shardings(state, mesh)), []
  for _ in range(steps):
    state, step_metrics = step_lib.make_train_step(config, mesh)(state, mesh_lib.put_batch(batch, mesh))
    metrics.append({name: float(value) for name, value in step_metrics.items()})
  return state, metrics
