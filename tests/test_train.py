"""The whole loop: a run that is stopped and killed ends bit for bit where a run that never stopped does."""

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

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
    pictures = np.concatenate([next(data).pictures.reshape(-1, 32, 32, 3) for _ in range(4)])
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
  environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
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
