"""What is saved comes back bit for bit; what is damaged, missing or of another run is refused by name."""

import dataclasses
import gc
import hashlib
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.data import tokenizers
from pdgen.models import partition
from pdgen.training import checkpoints
from pdgen.training import state as state_lib
from pdgen.training import step as step_lib
from pdgen.weights import exported, loading, run_checkpoints

POSITION = {'next': 7, 'waiting': [3, 5]}


@pytest.fixture(scope='module')
def mesh(tiny):
  return mesh_lib.make_mesh(tiny.mesh)


@pytest.fixture(scope='module')
def saved(tiny, mesh, tmp_path_factory):
  """A folder with the checkpoints of steps 0 and 3, and the state of step 3 on the host."""
  folder = tmp_path_factory.mktemp('run') / run_checkpoints.CHECKPOINTS
  state = state_lib.init_state(tiny, mesh)
  with checkpoints.Checkpointer(folder, keep=2) as checkpointer:
    checkpointer.save(state, data={'next': 0, 'waiting': []}, config=tiny)
    state = state.replace(
      step=state.step + 3, ema=jax.tree.map(lambda x: x * 1.5 + 0.25, state.ema), bad_steps=state.bad_steps + 1
    )
    checkpointer.save(state, data=POSITION, config=tiny)
  return folder, jax.device_get(state)


@pytest.fixture
def copy(saved, tmp_path):
  """A copy of that folder, to be spoiled."""
  return shutil.copytree(saved[0], tmp_path / run_checkpoints.CHECKPOINTS)


def restore(folder, config, mesh, **options):
  with checkpoints.Checkpointer(folder, keep=2) as checkpointer:
    return checkpointer.restore(state_lib.abstract_on_mesh(config, mesh), config=config, **options)


def equal(have, want):
  assert jax.tree.structure(have) == jax.tree.structure(want)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(have), want)


def test_the_newest_checkpoint_comes_back_bit_for_bit(saved, tiny, mesh):
  folder, state = saved
  restored = restore(folder, tiny, mesh)
  equal(restored.state, state)
  assert (restored.step, restored.data) == (3, POSITION)
  assert jax.tree.map(lambda x: x.sharding, restored.state) == partition.shardings(restored.state, mesh)
  older = restore(folder, tiny, mesh, step=0)
  assert (older.step, int(older.state.step), older.data['next']) == (0, 0, 0)


def test_a_checkpoint_goes_onto_another_mesh(saved, tiny):
  config = dataclasses.replace(tiny, mesh=config_lib.MeshConfig(data=2, fsdp=2, tensor=2))
  mesh = mesh_lib.make_mesh(config.mesh)
  restored = restore(saved[0], config, mesh)
  equal(restored.state, saved[1])
  kernel = restored.state.ema['head']['kernel']
  assert {shard.data.shape for shard in kernel.addressable_shards} == {(8, 320)}


def test_the_newest_are_kept_and_a_saved_step_is_not_saved_again(tiny, mesh, tmp_path):
  state = state_lib.init_state(tiny, mesh)
  with checkpoints.Checkpointer(tmp_path, keep=2) as checkpointer:
    assert checkpointer.latest is None
    for step in (1, 2, 2, 5):
      checkpointer.save(state.replace(step=jnp.int32(step)), data=POSITION, config=tiny)
      assert checkpointer.latest == step
  assert sorted(p.name for p in tmp_path.iterdir()) == ['2', '5']


def test_a_save_in_the_background_is_not_disturbed_by_the_next_step(tiny, mesh, batch, tmp_path):
  """The step is donated the very buffers that are being written."""
  step = step_lib.make_train_step(tiny, mesh)
  put = mesh_lib.put_batch(batch, mesh)
  state, _ = step(state_lib.init_state(tiny, mesh), put)
  want = jax.tree.map(np.array, state)
  with checkpoints.Checkpointer(tmp_path, keep=2) as checkpointer:
    checkpointer.save(state, data=POSITION, config=tiny)
    for _ in range(3):
      state, _ = step(state, put)
  equal(restore(tmp_path, tiny, mesh).state, want)


def test_the_average_alone_can_be_loaded(saved, tiny, mesh):
  config, params = run_checkpoints.load_averaged(saved[0], mesh=mesh)
  assert config == tiny
  equal(params, saved[1].ema)
  config, params, words = loading.load_for_sampling(saved[0].parent)
  assert (config, words) == (tiny, 'shapes')
  equal(params, saved[1].ema)


def test_parameters_that_are_not_finite_are_not_saved(tiny, mesh, tmp_path):
  state = state_lib.init_state(tiny, mesh)
  state.ema['head']['kernel'] = state.ema['head']['kernel'].at[3, 5].set(jnp.inf)
  with checkpoints.Checkpointer(tmp_path, keep=2) as checkpointer:
    with pytest.raises(FloatingPointError, match='Step 0 is not saved: ema/head/kernel hold'):
      checkpointer.save(state, data=POSITION, config=tiny)
    assert checkpointer.latest is None


def test_a_checkpoint_that_a_live_run_deletes_while_it_is_read_is_not_called_damaged(copy, saved, mesh, monkeypatch):
  """keep_checkpoints=1: the newer one is there when the older one goes."""
  newer, aside = copy / '3', copy.parent / 'aside'
  newer.rename(aside)
  true_read = run_checkpoints.read_meta

  def meanwhile(path):
    if aside.exists():
      aside.rename(newer)
      shutil.rmtree(copy / '0')
    return true_read(path)

  monkeypatch.setattr(run_checkpoints, 'read_meta', meanwhile)
  equal(run_checkpoints.load_averaged(copy, mesh=mesh)[1], saved[1].ema)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_an_average_that_is_not_finite_is_not_sampled(tiny, mesh, tmp_path, monkeypatch, value):
  monkeypatch.setattr(checkpoints, 'check_finite', lambda *_: None)  # Of a version that saved them.
  state = state_lib.init_state(tiny, mesh)
  state.ema['head']['kernel'] = state.ema['head']['kernel'].at[3, 5].set(value)
  with checkpoints.Checkpointer(tmp_path, keep=1) as checkpointer:
    checkpointer.save(state, data=POSITION, config=tiny)
  with pytest.raises(run_checkpoints.CheckpointError, match='not finite, in ema/head/kernel: the run has diverged'):
    run_checkpoints.load_averaged(tmp_path, mesh=mesh)


def test_a_missing_folder_or_step_says_so(saved, tiny, mesh, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'No checkpoint in .*nothing'):
    run_checkpoints.load_averaged(tmp_path / 'nothing', mesh=mesh)
  with pytest.raises(FileNotFoundError, match=r'No checkpoint of step 9 in .*There are: \[0, 3\]'):
    run_checkpoints.load_averaged(saved[0], mesh=mesh, step=9)
  with pytest.raises(FileNotFoundError, match='neither shipped'):
    loading.load_for_sampling(tmp_path / 'nothing')


def test_another_configuration_is_refused_field_by_field(saved, tiny, mesh):
  other = dataclasses.replace(tiny, seed=1, train=dataclasses.replace(tiny.train, learning_rate=1.0))
  with pytest.raises(run_checkpoints.CheckpointError) as error:
    restore(saved[0], other, mesh)
  assert 'config.seed: 0 saved, 1 given' in str(error.value)
  assert 'config.train.learning_rate: 0.01 saved, 1.0 given' in str(error.value)
  assert str(error.value).count('saved,') == 2
  with_vit = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, vit=config_lib.VitConfig()))
  with pytest.raises(run_checkpoints.CheckpointError, match=r'config.model.vit.depth: .absent. saved, 2 given'):
    restore(saved[0], with_vit, mesh)


def test_fields_that_change_nothing_learned_may_differ(saved, tiny, mesh):
  train = dataclasses.replace(tiny.train, log_every=1, keep_checkpoints=9, eval_every=4)
  model = dataclasses.replace(tiny.model, remat='full', scan_layers=False)
  other = dataclasses.replace(tiny, name='other', train=train, model=model)
  assert restore(saved[0], other, mesh).step == 3


def test_every_harmless_field_exists():
  known = {name for name, _ in checkpoints._flat(exported.as_json(config_lib.Config()))}
  for name in checkpoints.MAY_DIFFER_ON_RESUME:
    assert any(k == name or k.startswith(f'{name}.') for k in known), name


def test_arrays_of_another_shape_are_listed_with_both_sides(saved, tiny, mesh):
  abstract = state_lib.abstract_on_mesh(tiny, mesh)
  abstract.ema['head']['kernel'] = jax.ShapeDtypeStruct((16, 99), jnp.float32)
  del abstract.ema['embed']
  with checkpoints.Checkpointer(saved[0], keep=2) as checkpointer:
    with pytest.raises(run_checkpoints.CheckpointError) as error:
      checkpointer.restore(abstract, config=tiny)
  assert 'ema/head/kernel: float32[16, 640] there, float32[16, 99] wanted' in str(error.value)
  assert 'ema/embed/table: float32[640, 16] there, absent wanted' in str(error.value)
  assert str(error.value).count(' there, ') == 2


def test_a_digest_sees_every_bit_and_no_sharding():
  mesh = mesh_lib.make_mesh(config_lib.MeshConfig(data=2, fsdp=4))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16)), jnp.float32)
  want = run_checkpoints.digests({'x': x})
  split = jax.device_put(x, mesh_lib.batch_sharding(mesh))
  on_devices = tuple(int(s) for s in run_checkpoints._digest_on_device(split))
  assert {'x': '{:08x}{:08x}'.format(*on_devices)} == want == run_checkpoints.digests({'x': split})
  for other in (jnp.int32(3), x.astype(jnp.bfloat16), x[0, :3].astype(jnp.float16), jnp.arange(5) > 2):
    assert run_checkpoints.digest(np.asarray(other), np) == tuple(map(int, run_checkpoints._digest_on_device(other)))
  bits = np.asarray(x).view(np.uint32)
  for place in ((0, 0), (7, 15), (3, 2)):
    for bit in range(32):
      flipped = bits.copy()
      flipped[place] ^= np.uint32(1 << bit)
      assert run_checkpoints.digests({'x': jnp.asarray(flipped.view(np.float32))}) != want
  swapped = x.at[0, 0].set(x[0, 1]).at[0, 1].set(x[0, 0])
  assert run_checkpoints.digests({'x': swapped}) != want


def test_an_array_that_changed_on_its_way_is_named(saved, tiny, mesh, monkeypatch):
  """Damage that the file format itself does not notice."""
  true_load = run_checkpoints.ocp.load_checkpointables

  def spoiled(path, wanted):
    loaded = true_load(path, wanted)
    if 'state' in loaded:
      table = loaded['state']['ema']['embed']['table']
      loaded['state']['ema']['embed']['table'] = table.at[5, 3].multiply(1 + 2**-23)
    return loaded

  monkeypatch.setattr(run_checkpoints.ocp, 'load_checkpointables', spoiled)
  with pytest.raises(run_checkpoints.CheckpointError, match='damaged: ema/embed/table do not match the digests'):
    restore(saved[0], tiny, mesh)


# Orbax drops the coroutines of the other reads when one fails; they complain when they are collected.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_no_damaged_file_loads_silently(copy, saved, tiny, mesh):
  """50 bits flipped and files cut short, anywhere in it: an error that names the checkpoint, or no harm."""
  files = sorted(f for f in (copy / '3').rglob('*') if f.is_file() and f.stat().st_size)
  rng = np.random.default_rng(0)
  refused = 0
  for number in range(50):
    file = files[int(rng.integers(len(files)))]
    good = file.read_bytes()
    place = int(rng.integers(len(good)))
    flipped = good[:place] + bytes([good[place] ^ 1 << int(rng.integers(8))]) + good[place + 1 :]
    file.write_bytes(flipped if number % 2 else good[:place])
    try:
      restored = restore(copy, tiny, mesh)
    except run_checkpoints.CheckpointError as error:
      assert str(copy / '3') in str(error)
      refused += 1
    else:
      equal(restored.state, saved[1])
      assert restored.data == POSITION
    file.write_bytes(good)
  gc.collect()
  assert refused > 15, refused  # Some files hold nothing that is read.
  equal(restore(copy, tiny, mesh).state, saved[1])


@pytest.fixture(scope='module')
def folder(saved, tiny, tmp_path_factory):
  folder = tmp_path_factory.mktemp('export') / 'final'
  return exported.export_ema(folder, saved[1].averaged(), config=tiny, tokenizer=tokenizers.ASSETS / 'shapes.model')


def test_an_export_holds_half_precision_configuration_and_tokenizer(folder, saved, tiny):
  assert sorted(p.name for p in folder.iterdir()) == ['config.json', 'params.safetensors', 'tokenizer.model']
  stored = exported.load_export(folder)
  assert stored.config == tiny
  equal(stored.params, jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), saved[1].ema))
  assert tokenizers.load(str(stored.tokenizer)).encode('a red ring') == tokenizers.load('shapes').encode('a red ring')
  assert (folder / 'params.safetensors').stat().st_size < 2.2 * sum(x.size for x in jax.tree.leaves(saved[1].ema))
  config, params, words = loading.load_for_sampling(folder)
  assert config == tiny and pathlib.Path(words) == folder / 'tokenizer.model'
  equal(params, stored.params)


def test_exporting_again_replaces_the_folder(folder, saved, tiny, tmp_path):
  folder = shutil.copytree(folder, tmp_path / 'final')
  (folder / 'stale').write_text('')
  exported.export_ema(folder, saved[1].averaged(), config=tiny, tokenizer=tokenizers.ASSETS / 'shapes.model')
  assert sorted(os.listdir(tmp_path)) == ['final'] and not (folder / 'stale').exists()
  assert all(file.stat().st_mode & 0o044 == 0o044 for file in folder.iterdir())  # others may sample it, too


def test_a_damaged_export_is_refused_by_file(folder, tmp_path):
  for name in ('params.safetensors', 'tokenizer.model'):
    copied = shutil.copytree(folder, tmp_path / name)
    good = (copied / name).read_bytes()
    (copied / name).write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    with pytest.raises(ValueError, match=f'{name} is damaged'):
      exported.load_export(copied)
    (copied / name).unlink()
    with pytest.raises(FileNotFoundError, match=f'lacks {name}'):
      exported.load_export(copied)
  folder = shutil.copytree(folder, tmp_path / 'cut')
  (folder / 'config.json').write_text((folder / 'config.json').read_text()[:100])
  with pytest.raises(ValueError, match=r'config.json is damaged'):
    exported.load_export(folder)


def test_an_export_of_another_model_lists_what_differs(folder, tmp_path):
  folder = shutil.copytree(folder, tmp_path / 'other')
  header = json.loads((folder / 'config.json').read_text())
  header['config']['model']['mlp_dim'] = 48
  (folder / 'config.json').write_text(json.dumps(header))
  assert (
    header['sha256']['params.safetensors'] == hashlib.sha256((folder / 'params.safetensors').read_bytes()).hexdigest()
  )
  with pytest.raises(ValueError, match=r'trunk/layers/gen/up/kernel: \[2, 16, 32\] there, \[2, 16, 48\] wanted'):
    exported.load_export(folder)


@pytest.mark.parametrize('value', [1e6, np.nan])
def test_a_weight_that_float16_cannot_hold_is_named(saved, tiny, tmp_path, value):
  params = jax.tree.map(np.copy, saved[1].ema)
  params['head']['kernel'][0, 0] = value
  with pytest.raises(ValueError, match='head/kernel holds a value'):
    exported.export_ema(tmp_path / 'x', params, config=tiny, tokenizer=tokenizers.ASSETS / 'shapes.model')
