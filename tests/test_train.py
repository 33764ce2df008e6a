"""The whole loop: a run that is stopped and killed ends bit for bit where a run that never stopped does."""

import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from support import xla_flags

from pdgen import train
from pdgen.construction import self_sampled
from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.data import feed, records
from pdgen.training import checkpoints, loop
from pdgen.training import state as state_lib
from pdgen.weights import exported, run_checkpoints
from pdgen.worlds import shapes


class Scribbler:
  """Stands in for the painter: every draft is noise of its weights' making, so that all of them are wrong."""

  def __init__(self, config, state):
    self.seed = int(abs(float(state.ema['head']['kernel'][0, 0])) * 2**40)

  def sample(self, prompts, *, seed, batch_size, pictures):
    rng = np.random.default_rng((self.seed, seed))
    done = []
    for prefix in prompts:
      draft = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
      done.append(
        dataclasses.replace(prefix, steps=(*prefix.steps[:-1], dataclasses.replace(prefix.steps[-1], draft=draft)))
      )
    return types.SimpleNamespace(trajectories=done)


@pytest.fixture(scope='module')
def tiny(tiny):
  """Of two rows a batch: runs of this file take some 150 steps."""
  return dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, batch_size=2))


@pytest.fixture(autouse=True)
def scribbler(monkeypatch):
  monkeypatch.setattr(train, 'make_painter', Scribbler)


def at_batch(monkeypatch, number, happen):
  """Calls `happen(batch)` instead of passing on that batch of the run, counted from 0; it returns the batch to take."""
  put, count = mesh_lib.put_batch, iter(range(10**6))
  monkeypatch.setattr(
    loop.mesh_lib, 'put_batch', lambda batch, mesh: put(happen(batch) if next(count) == number else batch, mesh)
  )


def terminate(batch):
  os.kill(os.getpid(), signal.SIGTERM)
  return batch


def kill(batch):
  raise KeyboardInterrupt


def lines(workdir):
  return {line['step']: line for line in map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())}


@pytest.fixture(scope='module')
def finished(tiny, tmp_path_factory):
  """Workdir and last state of a run that never stopped."""
  workdir = tmp_path_factory.mktemp('finished')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, 'make_painter', Scribbler)
    return workdir, jax.device_get(train.train(tiny, workdir))


def test_a_run_writes_metrics_checkpoints_drafts_and_a_model(finished, tiny, capsys):
  workdir, state = finished
  written = lines(workdir)
  assert list(written) == [2, 4, 6, 8]
  assert written[8]['loss'] < written[2]['loss'] and written[8]['skipped_steps'] == 0
  assert sorted(p.name for p in (workdir / 'checkpoints').iterdir()) == ['6', '8']
  drafts = records.read(workdir / 'self_sampled' / '0000004')
  assert len(drafts) == tiny.train.self_samples
  assert all(t.provenance and t.provenance.kind == 'self_sampled' for t in drafts)
  stored = exported.load_export(workdir / 'final')
  jax.tree.map(
    lambda have, want: np.testing.assert_array_equal(have, want.astype(np.float16)), stored.params, state.ema
  )
  assert config_lib.from_config_dict(json.loads((workdir / 'config.json').read_text())) == tiny


def test_a_run_may_begin_with_given_weights(finished, tiny, tmp_path, capsys):
  final = finished[0] / 'final'
  # A rate of 0 changes nothing, so that the run ends with what it began with.
  still = dataclasses.replace(tiny.train, steps=1, learning_rate=0.0, self_sample_steps=(), init_from=str(final))
  train.train(dataclasses.replace(tiny, train=still), tmp_path / 'run')
  began, ended = (exported.load_export(folder).params for folder in (final, tmp_path / 'run' / 'final'))
  jax.tree.map(np.testing.assert_array_equal, ended, began)
  other = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, mlp_dim=48), train=still)
  with pytest.raises(ValueError, match=r'trunk/layers/gen/up/kernel: \[2, 16, 32\] there, \[2, 16, 48\] wanted'):
    train.train(other, tmp_path / 'other')
  nowhere = dataclasses.replace(tiny, train=dataclasses.replace(still, init_from='out/nowhere/final'))
  with pytest.raises(FileNotFoundError, match=r"config\.train\.init_from.*: No model 'out/nowhere/final'"):
    train.train(nowhere, tmp_path / 'other')


@pytest.mark.parametrize('stop', [2, 5], ids=['before the drafts', 'after the drafts'])
def test_resumed_equals_never_stopped(finished, tiny, tmp_path, monkeypatch, stop, capsys):
  # Drafts of an earlier run that never came to a checkpoint are not taken for this run's.
  (tmp_path / 'self_sampled' / '0000004').mkdir(parents=True)
  (tmp_path / 'self_sampled' / '0000004.npz').write_bytes(b'stale')
  with monkeypatch.context() as patch:
    at_batch(patch, stop, terminate)
    before = signal.getsignal(signal.SIGTERM)
    state = train.train(tiny, tmp_path)
    assert int(state.step) == stop + 1 and not (tmp_path / 'final').exists()
    assert signal.getsignal(signal.SIGTERM) is before
    assert f'SIGTERM: saved step {stop + 1}' in capsys.readouterr().out
  with monkeypatch.context() as patch:
    # Killed one step after the checkpoint of step 6: that step is taken again.
    at_batch(patch, 7 - (stop + 1), kill)
    with pytest.raises(KeyboardInterrupt):
      train.train(tiny, tmp_path)
  state = jax.device_get(train.train(tiny, tmp_path))
  assert 'Resuming from step 6' in capsys.readouterr().out
  want_dir, want = finished
  jax.tree.map(np.testing.assert_array_equal, state, want)
  assert lines(tmp_path)[8]['loss'] == lines(want_dir)[8]['loss']
  assert list(lines(tmp_path)) == [2, 4, 6, 8]
  for folder in ('self_sampled', 'final'):
    have, want = (
      {p.relative_to(root): p.read_bytes() for p in (root / folder).rglob('*') if p.is_file()}
      for root in (tmp_path, want_dir)
    )
    assert have == want
  # The data stand at the same place too.
  mesh = mesh_lib.make_mesh(tiny.mesh)
  positions = []
  for workdir in (tmp_path, want_dir):
    with checkpoints.Checkpointer(workdir / 'checkpoints', keep=2) as saved:
      positions.append(saved.restore(state_lib.abstract_on_mesh(tiny, mesh), config=tiny).data)
  assert positions[0] == positions[1]


def test_a_finished_run_is_only_exported_again(finished, tiny, capsys):
  workdir, want = finished
  state = train.train(tiny, workdir)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), want)
  assert 'Resuming from step 8' in capsys.readouterr().out


def test_self_sampled_drafts_reach_the_batches(finished, tiny):
  workdir, _ = finished
  noise = records.read(workdir / 'self_sampled' / '0000004')[0].pictures
  counts = []
  for before in (4, 5):
    data = feed.DataFeed(tiny, self_sampled=self_sampled.read_drafts(tiny, workdir, before=before))
    pictures = np.concatenate([next(data).pictures.reshape(-1, 32, 32, 3) for _ in range(16)])
    data.close()
    # Pictures of the world have a few flat colours; noise has a thousand.
    counts.append(sum(len(np.unique(p.reshape(-1, 3), axis=0)) > 900 for p in pictures))
  assert any(len(np.unique(p.reshape(-1, 3), axis=0)) > 900 for p in noise)
  assert counts[0] == 0 < counts[1]


def test_steps_that_are_not_finite_in_a_row_stop_the_run(tiny, tmp_path, monkeypatch):
  put = mesh_lib.put_batch

  def broken(batch, mesh):
    weight = np.where(batch.und.weight > 0, np.inf, 0).astype(np.float32)
    return put(batch._replace(und=batch.und._replace(weight=weight)), mesh)

  monkeypatch.setattr(loop.mesh_lib, 'put_batch', broken)
  with pytest.raises(FloatingPointError, match='Step 3: 3 steps in a row.*learning_rate'):
    train.train(tiny, tmp_path)


def test_parameters_that_are_not_finite_are_neither_kept_nor_saved(tiny, tmp_path):
  """Loss, gradient and rate are; the rate times the update is not."""
  settings = dataclasses.replace(
    tiny.train, learning_rate=3e38, weight_decay=1e4, checkpoint_every=1, keep_checkpoints=9
  )
  config = dataclasses.replace(tiny, train=settings)
  with pytest.raises(FloatingPointError, match='Step 3: 3 steps in a row.*new parameters.*--branch_from'):
    train.train(config, tmp_path)
  mesh = mesh_lib.make_mesh(config.mesh)
  began = jax.device_get(state_lib.init_state(config, mesh))
  abstract = state_lib.abstract_on_mesh(config, mesh)
  for step in (1, 2):
    state = checkpoints.restore(tmp_path / 'checkpoints', abstract, config=config, step=step).state
    assert int(state.bad_steps) == int(state.skipped_steps) == step
    for part in ('trainable', 'ema', 'opt_state'):
      jax.tree.map(np.testing.assert_array_equal, jax.device_get(getattr(state, part)), getattr(began, part))


def test_a_run_does_not_begin_with_weights_that_are_not_finite(finished, tiny, tmp_path, monkeypatch):
  params = state_lib.init_state(tiny, mesh_lib.make_mesh(tiny.mesh)).averaged()
  params['head']['kernel'] = params['head']['kernel'].at[3, 5].set(np.nan)
  monkeypatch.setattr(loop, '_initial_weights', lambda config, mesh: params)
  with pytest.raises(FloatingPointError, match='begins with at step 0: ema/head/kernel, trainable/head/kernel hold'):
    train.train(tiny, tmp_path)


@pytest.fixture
def stopped(tiny, tmp_path, monkeypatch):
  """Config and workdir of a run stopped at step 6 of 8, with checkpoints of steps 4 and 6 and drafts of step 4."""
  config = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, checkpoint_every=2))
  with monkeypatch.context() as patch:
    at_batch(patch, 5, terminate)
    train.train(config, tmp_path / 'run')
  return config, tmp_path / 'run'


def spoil(workdir):
  (shard,) = (workdir / 'self_sampled' / '0000004').glob('*.array_record')
  content = bytearray(shard.read_bytes())
  content[len(content) // 2] ^= 1
  shard.write_bytes(content)


@pytest.mark.parametrize('how', ['damaged', 'gone'])
def test_drafts_that_are_lost_are_painted_again_from_the_weights_of_their_step(finished, stopped, how, capsys):
  config, workdir = stopped
  if how == 'damaged':
    spoil(workdir)
  else:
    shutil.rmtree(workdir / 'self_sampled')
  state = jax.device_get(train.train(config, workdir))
  assert ('made again' in capsys.readouterr().out) == (how == 'damaged')
  jax.tree.map(np.testing.assert_array_equal, state, finished[1])


def test_drafts_that_cannot_be_painted_again_can_be_gone_without(stopped, capsys):
  config, workdir = stopped
  spoil(workdir)
  shutil.rmtree(workdir / 'checkpoints' / '4')
  with pytest.raises(ValueError, match=r"step 4 .*damaged.*No checkpoint of step 4.*lost_drafts='\(4,\)'"):
    train.train(config, workdir)
  without = dataclasses.replace(config, train=dataclasses.replace(config.train, lost_drafts=(4,)))
  assert int(train.train(without, workdir).step) == 8
  assert json.loads((workdir / 'config.json').read_text())['train']['lost_drafts'] == [4]


def test_drafts_of_another_run_are_refused(stopped, tiny):
  config, workdir = stopped
  folder = workdir / 'self_sampled' / '0000004'
  records.write(folder, [shapes.trajectory('multi_turn', seed=9, index=0)], overwrite=True)
  with pytest.raises(ValueError, match=r'self_sampled/0000004: \w{16} saved, \w{16} now'):
    train.train(config, workdir)


def test_a_run_branches_off_another_with_more_steps_another_rate_and_longer_rows(finished, tiny, tmp_path, capsys):
  source = finished[0]
  changed = dataclasses.replace(
    tiny,
    train=dataclasses.replace(tiny.train, steps=11, learning_rate=2e-3),
    data=dataclasses.replace(tiny.data, und_tokens=768),
  )
  with pytest.raises(
    run_checkpoints.CheckpointError, match=f'learning_rate(?s:.*)--workdir=NEW --branch_from={source}'
  ):
    train.train(changed, source)
  capsys.readouterr()
  state = train.train(changed, tmp_path / 'branch', branch_from=source)
  printed = capsys.readouterr().out
  assert f'Branching off {source} at step 8. The learning rate is that of step 8 of 11' in printed
  for line in ('config.train.steps: 8 saved, 11 given', 'config.data.und_tokens: 640 saved, 768 given'):
    assert line in printed
  assert int(state.step) == 11 and list(lines(tmp_path / 'branch')) == [10, 11]
  assert len(records.read(tmp_path / 'branch' / 'self_sampled' / '0000004')) == tiny.train.self_samples
  # The same command goes on with the branch, even where the other run has gone on or is gone.
  shutil.rmtree(tmp_path / 'branch' / 'checkpoints' / '11')
  again = train.train(changed, tmp_path / 'branch', branch_from=tmp_path / 'gone')
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(state))
  with pytest.raises(ValueError, match='steps=8, and .* has taken 8 steps'):
    train.train(tiny, tmp_path / 'other', branch_from=source)
  with pytest.raises(FileNotFoundError, match='No checkpoint in'):
    train.train(changed, tmp_path / 'other', branch_from=tmp_path / 'gone')


def test_an_unchanged_branch_takes_the_steps_of_the_run_itself(stopped, finished, tmp_path):
  config, workdir = stopped
  state = jax.device_get(train.train(config, tmp_path / 'branch', branch_from=str(workdir)))
  jax.tree.map(np.testing.assert_array_equal, state, finished[1])


def test_a_link_in_the_place_of_the_exported_model_is_replaced(stopped, tmp_path):
  config, workdir = stopped
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'elsewhere' / 'mine').write_text('')
  (workdir / 'final').symlink_to(tmp_path / 'elsewhere')
  train.train(config, workdir)
  assert not (workdir / 'final').is_symlink() and exported.load_export(workdir / 'final').config == config
  assert os.listdir(tmp_path / 'elsewhere') == ['mine']
  shutil.rmtree(workdir / 'final')
  for place in (workdir / 'final', workdir / 'strips'):
    place.write_text('')
    with pytest.raises(NotADirectoryError, match=f'{place} is no folder'):
      train.train(config, workdir)
    place.unlink()


def test_two_runs_do_not_share_a_workdir(tiny, tmp_path):
  with (tmp_path / 'lock').open('w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError, match='Another run is at work'):
      train.train(tiny, tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ['lock']


def test_another_configuration_does_not_resume(finished, tiny):
  with pytest.raises(run_checkpoints.CheckpointError, match='config.seed: 0 saved, 7 given'):
    train.train(dataclasses.replace(tiny, seed=7), finished[0])


def test_the_command_line_trains_scores_and_exports(tmp_path):
  """configs/shapes.py, shrunk by flags, with the true painter on the way and at the end."""
  shrunk = {
    'model.width': 16,
    'model.depth': 1,
    'model.num_heads': 2,
    'model.num_kv_heads': 1,
    'model.head_dim': 8,
    'model.mlp_dim': 16,
    'model.attention': 'reference',
    'mesh.data': 1,
    'mesh.cpu_devices': 1,
    'train.steps': 2,
    'train.log_every': 1,
    'train.eval_every': 1,
    'train.eval_prompts': 1,
    'train.self_sample_steps': '(1,)',
    'train.self_samples': 4,
    'sampling.flow_steps': 1,
    'sampling.max_pictures': 8,
    'sampling.max_text_tokens': 8,
    'sampling.max_tokens': 80,
  }
  command = [sys.executable, '-m', 'pdgen.train', '--config=configs/shapes.py', f'--workdir={tmp_path}']
  command += [f'--config.{name}={value}' for name, value in shrunk.items()]
  command += ['--profile_steps=1:2']
  environment = {**os.environ, 'XLA_FLAGS': xla_flags.without_devices()}
  environment['JAX_COMPILATION_CACHE_DIR'] = str(tmp_path / 'compiled')
  done = subprocess.run(command, capture_output=True, text=True, env=environment)
  assert done.returncode == 0, done.stderr[-3000:]
  assert 'step 2/2  loss' in done.stdout and 'geneval/overall' in done.stdout
  assert exported.load_export(tmp_path / 'final').config.model.width == 16
  assert sorted(p.name for p in (tmp_path / 'strips').iterdir()) == ['0000001.png', '0000002.png']
  assert (tmp_path / 'strips' / '0000001.png').read_bytes().startswith(b'\x89PNG')
  written = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  scores = [line for line in written if 'geneval/overall' in line]
  assert [line['step'] for line in scores] == [1, 2]
  assert set(scores[0]) >= {'geneval/overall', 'geneval/position', 'eval/finished'}
  assert len(list((tmp_path / 'profile').rglob('*.xplane.pb'))) == 1
  assert list((tmp_path / 'compiled').glob('jit_train_step-*'))  # The next such command does not compile the step.
  # A model of random weights paints nothing right.
  drafts = records.read(tmp_path / 'self_sampled' / '0000001')
  assert len(drafts) == 4 and all(t.provenance and t.provenance.error for t in drafts)


def test_trajectories_of_ones_own_are_trained_on_and_resumed_exactly(tiny, tmp_path, monkeypatch):
  """A record set as the only source; the run that is stopped takes the batches of the one that is not."""
  own = [shapes.trajectory(shapes.KINDS[i % 3], seed=7, index=i) for i in range(40)]
  records.write(tmp_path / 'own', own, shard_records=16)
  source = config_lib.SourceConfig(kind='records', name=str(tmp_path / 'own'))
  config = dataclasses.replace(
    tiny,
    data=dataclasses.replace(tiny.data, sources=(source,)),
    train=dataclasses.replace(tiny.train, self_sample_steps=()),
  )
  want = jax.device_get(train.train(config, tmp_path / 'whole'))
  with monkeypatch.context() as patch:
    at_batch(patch, 4, terminate)
    train.train(config, tmp_path / 'stopped')
  have = jax.device_get(train.train(config, tmp_path / 'stopped'))
  jax.tree.map(np.testing.assert_array_equal, have, want)
