"""Real processes on this machine make one run: the same batches, the same parameters, one checkpoint, one voice."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from support import xla_flags

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import trees
from pdgen.training import distributed
from pdgen.weights import run_checkpoints

# Sums over devices go round another ring in another process: rounding, which Adam's division by small second moments
# makes larger. Measured after the steps: see the assertion.
TOLERANCE = 1e-4

SHRUNK = {
  'model.width': 16,
  'model.depth': 1,
  'model.num_heads': 2,
  'model.num_kv_heads': 1,
  'model.head_dim': 8,
  'model.mlp_dim': 16,
  'model.attention': 'reference',
  'data.batch_size': 8,
  'data.shards': 2,
  'data.packing_bins': 2,
  'train.optimizer': 'adamw',
  'train.learning_rate': '1e-3',
  'train.steps': 10,
  'train.warmup_steps': 2,
  'train.log_every': 2,
  'train.checkpoint_every': 8,
  'train.eval_every': 0,
  'train.self_sample_steps': '()',
  'mesh.data': 2,
  'mesh.fsdp': 4,
}


def start(workdir, *, processes=1, process=0, port=0, arguments=(), **changes):
  """One process of a run of the command line, with 8 / processes devices. arguments: besides the config's."""
  settings = {**SHRUNK, 'mesh.cpu_devices': 8 // processes, **changes}
  command = [sys.executable, '-m', 'pdgen.train', '--config=configs/shapes.py', f'--workdir={workdir}']
  command += [*(f'--config.{name}={value}' for name, value in settings.items()), *arguments]
  environment = {**os.environ, 'XLA_FLAGS': xla_flags.without_devices()}
  if processes > 1:
    address = dict(PDGEN_COORDINATOR=f'localhost:{port}', PDGEN_PROCESSES=processes, PDGEN_PROCESS=process)
    environment.update({name: str(value) for name, value in address.items()})
  root = pathlib.Path(__file__).parents[1]
  return subprocess.Popen(
    command, env=environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def two(workdir, *, second=None, **both):
  """(code, output) of each of two processes that make one run. second: what the second is started with besides."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  given = [{**both, **(second or {} if i else {})} for i in range(2)]
  running = [start(workdir, processes=2, process=i, port=port, **given[i]) for i in range(2)]
  outputs = [process.communicate(timeout=600)[0] for process in running]
  return [(process.returncode, output) for process, output in zip(running, outputs, strict=True)]


def alone(workdir):
  """(code, output) of a run of one process."""
  running = start(workdir)
  output = running.communicate(timeout=600)[0]
  return running.returncode, output


def averaged(workdir):
  mesh = mesh_lib.make_mesh(config_lib.MeshConfig(), devices=jax.devices()[:1])
  _, params = run_checkpoints.load_averaged(workdir / 'checkpoints', mesh=mesh)
  return dict(trees.flatten_with_paths(jax.device_get(params)))


def assert_same(have, want):
  worst = {name: np.abs(have[name] - want[name]).max() / max(np.abs(want[name]).max(), 1e-3) for name in want}
  assert max(worst.values()) < TOLERANCE, worst


def test_two_processes_train_as_one_and_each_goes_on_from_the_others_checkpoint(tmp_path):
  one, both = tmp_path / 'one', tmp_path / 'both'
  code, output = alone(one)
  assert code == 0, output[-3000:]
  results = two(both)
  for code, output in results:
    assert code == 0, output[-3000:]
  want = averaged(one)
  assert_same(averaged(both), want)
  # Metrics are written and said once.
  for workdir in (one, both):
    steps = [json.loads(line)['step'] for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert steps == list(range(2, 11, 2))
  assert 'step 10/10' in results[0][1] and 'step 10/10' not in results[1][1]

  # What two processes saved at step 8, one goes on from, and the other way about, with the same samples.
  for workdir, go_on in ((both, alone), (one, lambda workdir: two(workdir)[0])):
    assert sorted(p.name for p in (workdir / 'checkpoints').iterdir()) == ['10', '8']
    shutil.rmtree(workdir / 'checkpoints' / '10')
    shutil.rmtree(workdir / 'final')
    code, output = go_on(workdir)
    assert code == 0 and 'Resuming from step 8' in output, output[-3000:]
    assert_same(averaged(workdir), want)

  # Two processes branch off the run of one.
  for code, output in two(tmp_path / 'branch', arguments=[f'--branch_from={one}', '--config.train.steps=11']):
    assert code == 0 and f'Branching off {one} at step 10' in output, output[-3000:]
  assert sorted(p.name for p in (tmp_path / 'branch' / 'checkpoints').iterdir()) == ['10', '11']


def test_processes_that_were_started_differently_say_who_and_in_what(tmp_path):
  for code, output in two(tmp_path, second={'train.learning_rate': '2e-3'}):
    assert code != 0
    assert f"config/train/learning_rate: '0.002' in process 1 ({socket.gethostname()}), '0.001' in 0" in output
  assert not (tmp_path / 'checkpoints').exists() or not list((tmp_path / 'checkpoints').iterdir())


@pytest.mark.parametrize(
  'environment, how, given',
  [
    ({}, 'alone', None),
    ({'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'}, 'alone', None),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, 'alone', None),
    (
      {'PDGEN_COORDINATOR': 'a:1', 'PDGEN_PROCESSES': '4', 'PDGEN_PROCESS': '3', 'SLURM_NTASKS': '2'},
      'coordinator',
      dict(coordinator_address='a:1', num_processes=4, process_id=3),
    ),
    (
      {'SLURM_NTASKS': '2', 'SLURM_PROCID': '1', 'SLURM_STEP_NUM_NODES': '2', 'CUDA_VISIBLE_DEVICES': '0,1,2,3'},
      'slurm',
      dict(local_device_ids=[0, 1, 2, 3]),
    ),
    (
      {'SLURM_NTASKS': '2', 'SLURM_PROCID': '1', 'SLURM_STEP_NUM_NODES': '2'},
      'slurm',
      dict(local_device_ids=list(range(8))),
    ),
    ({'SLURM_NTASKS': '16', 'SLURM_PROCID': '1', 'SLURM_STEP_NUM_NODES': '2'}, 'slurm', dict(local_device_ids=None)),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, 'tpu', {}),
    ({'PDGEN_TPU_POD': '1'}, 'tpu', {}),
  ],
)
def test_the_environment_tells_who_the_others_are(monkeypatch, environment, how, given):
  calls = []
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **options: calls.append(options))
  assert distributed.initialize(environment) == how
  assert calls == ([] if given is None else [given])


def test_half_an_address_is_an_error():
  with pytest.raises(ValueError, match='PDGEN_COORDINATOR without PDGEN_PROCESS, PDGEN_PROCESSES'):
    distributed.initialize({'PDGEN_COORDINATOR': 'a:1'})


def test_differences_name_the_few_that_are_not_as_most():
  everyone = [('a', {'code': '1', 'data': 'x'}), ('b', {'code': '2', 'data': 'x'}), ('c', {'code': '1', 'data': 'x'})]
  assert distributed.disagreements(everyone) == ["code: '2' in process 1 (b), '1' in 0, 2"]
  assert distributed.disagreements([('a', {'n': '1'}), ('b', {})]) == ["n: 'absent' in process 1 (b), '1' in 0"]
  assert distributed.disagreements(everyone[:1]) == []


def test_alone_it_needs_nobody_and_hears_sigterm():
  assert distributed.all_gather_text('x') == ['x'] and distributed.is_main_process()
  distributed.check_agreement({'code': '1'})
  before = signal.getsignal(signal.SIGTERM)
  with distributed.preemption_notice() as stop:
    assert not stop(3)
    signal.raise_signal(signal.SIGTERM)
    assert stop(4)
  assert signal.getsignal(signal.SIGTERM) is before
