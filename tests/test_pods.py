"""The scripts for pods and nodes: what they would do, said by `--dry_run`, and how the one for a node starts again."""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
RUN = ['--config=configs/shapes.py', '--workdir=/data/run 1', '--config.train.steps=5']
POD = ['--name=pd', '--zone=us-east5-a']


def dry(script, *arguments, code=0):
  """What `--dry_run` prints. Nothing but the shell's own tools can be found."""
  done = subprocess.run(
    ['bash', str(ROOT / 'launch' / script), *arguments, '--dry_run'] if '--' not in arguments
    else ['bash', str(ROOT / 'launch' / script), arguments[0], '--dry_run', *arguments[1:]],
    capture_output=True, text=True, env={'PATH': '/usr/bin:/bin'}, cwd='/',
  )  # fmt: skip
  assert done.returncode == code, done.stdout + done.stderr
  return done.stdout if code == 0 else done.stderr


def test_a_node():
  lines = dry('h100_node.sh', *RUN).splitlines()
  assert lines[0] == '+ venv \\[cuda\\]'
  assert 'XLA_PYTHON_CLIENT_MEM_FRACTION=0.94' in lines[1]
  assert lines[1].endswith(
    '.venv/bin/python -m pdgen.train --config=configs/shapes.py --workdir=/data/run\\ 1 --config.train.steps=5'
  )


def test_slurm():
  lines = dry('slurm_h100.sbatch', *RUN).splitlines()
  assert lines[1].startswith('+ srun --kill-on-bad-exit=1 .venv/bin/python -m pdgen.train --config=configs/shapes.py')
  assert 'final/config.json ] || scontrol requeue' in lines[2]
  text = (ROOT / 'launch' / 'slurm_h100.sbatch').read_text()
  # One process a node, told in time before the end.
  assert '#SBATCH --ntasks-per-node=1\n' in text and '#SBATCH --signal=TERM@300\n' in text


def test_a_tpu_pod_from_its_creation_to_its_end():
  made = dry('tpu_pod.sh', 'create', *POD, '--type=v5p-128', '--spot=yes')
  assert 'queued-resources create pd --node-id=pd --zone=us-east5-a --accelerator-type=v5p-128' in made
  assert '--runtime-version=v2-alpha-tpuv5 --spot' in made
  assert '--runtime-version=v2-alpha-tpuv6e\n' in dry('tpu_pod.sh', 'create', *POD, '--type=v6e-256')
  lines = dry('tpu_pod.sh', 'run', *POD, '--nfs=10.0.0.2:/vol', '--', *RUN).splitlines()
  assert [line.split()[1:4] for line in lines[:2]] == [
    ['git', 'archive', '--format=tar.gz'],
    ['gcloud', 'compute', 'tpus'],
  ]
  assert all('--worker=all' in line for line in lines[1:]) and len(lines) == 5
  assert 'PDGEN_TPU_POD=1' in lines[-1] and '--config.train.steps=5' in lines[-1]
  assert 'tail' in dry('tpu_pod.sh', 'logs', *POD) and 'TERM' in dry('tpu_pod.sh', 'stop', *POD)
  assert 'describe pd' in dry('tpu_pod.sh', 'status', *POD) and 'delete pd' in dry('tpu_pod.sh', 'delete', *POD)


def test_a_pod_run_is_dry_wherever_that_is_said_and_quotes_what_the_workers_read():
  command = ['bash', str(ROOT / 'launch' / 'tpu_pod.sh'), 'run', *POD, '--nfs=10.0.0.2:/a b; reboot', '--']
  for place in (0, 1, 3):
    run = ['--config=x', '--workdir', '/mnt/pdgen/run 1']
    run.insert(place, '--dry_run')
    done = subprocess.run([*command, *run], capture_output=True, text=True, env={'PATH': '/usr/bin:/bin'}, cwd='/')
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 5 and '--dry_run' not in done.stdout, done.stderr
    on_workers = [shlex.split(line)[-1].removeprefix('--command=') for line in lines[2:]]  # What the shell there reads.
    assert 'mount -t nfs 10.0.0.2:/a\\ b\\;\\ reboot /mnt/pdgen' in on_workers[0]
    assert '-m pdgen.train --config=x --workdir /mnt/pdgen/run\\ 1 >' in on_workers[2]


@pytest.mark.parametrize(
  'workdirs', [['--workdir=/old', '--workdir=/new 1'], ['--workdir=/old', '--workdir', '/new 1'], ['-workdir=/new 1']]
)
def test_the_last_workdir_counts_as_in_the_run(workdirs):
  """Else the job never sees that it is finished, and queues itself again for ever."""
  assert '+ [ -f /new\\ 1/final/config.json ] ||' in dry('slurm_h100.sbatch', '--config=x', *workdirs)


@pytest.mark.parametrize(
  'script, arguments, message',
  [
    ('h100_node.sh', ['--config=x'], '--workdir=... is missing'),
    ('slurm_h100.sbatch', [], '--config=... is missing'),
    ('tpu_pod.sh', ['create', *POD, '--type=v4-8'], 'unknown --type=v4-8'),
    ('tpu_pod.sh', ['create', '--name=pd'], '--zone=... is missing'),
    ('tpu_pod.sh', ['run', *POD, '--nfs=x'], 'come the arguments of pdgen.train'),
    ('tpu_pod.sh', ['dance'], 'A TPU slice from its creation to its end'),
  ],
)
def test_what_is_missing_is_said(script, arguments, message):
  assert message in dry(script, *arguments, code=2)


def test_every_script_is_clean():
  scripts = sorted(str(p) for p in (ROOT / 'launch').iterdir() if p.suffix in ('.sh', '.sbatch'))
  assert len(scripts) >= 8
  places = f'{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
  shellcheck = shutil.which('shellcheck', path=places)
  assert shellcheck, "pip install '.[test]'"
  done = subprocess.run([shellcheck, '--external-sources', *scripts], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


@pytest.fixture
def node(tmp_path):
  """A function that starts h100_node.sh in a copy of launch/, with a script as its Python. `.log`: the calls of it."""

  def start(python, **environment):
    repo = tmp_path / 'repo'
    subprocess.run(['cp', '-r', str(ROOT / 'launch'), f'{repo}/'] if repo.mkdir() is None else [], check=True)
    (repo / '.venv' / 'bin').mkdir(parents=True)
    (repo / 'launch' / 'venv.sh').write_text('venv() { :; }\n')
    stub = repo / '.venv' / 'bin' / 'python'
    stub.write_text(f'#!/usr/bin/env bash\necho called >> "{tmp_path}/log"\n{python}\n')
    stub.chmod(0o755)
    command = ['bash', str(repo / 'launch' / 'h100_node.sh'), *RUN]
    environment = {**os.environ, **environment}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

  start.log = tmp_path / 'log'
  return start


def test_a_node_starts_a_run_that_died_again(node):
  done = node(f'[ "$(wc -l < "{node.log}")" -ge 3 ] || kill -KILL $$', RETRY_AFTER='0')
  _, errors = done.communicate(timeout=60)
  assert done.returncode == 0 and node.log.read_text().count('called') == 3
  assert errors.count('starting it again') == 2


def test_a_node_does_not_start_again_what_dies_at_once(node):
  done = node('exit 3')
  _, errors = done.communicate(timeout=60)
  assert done.returncode == 3 and 'not started again' in errors and node.log.read_text().count('called') == 1


def test_a_node_hands_on_sigterm_and_waits_for_the_save(node):
  done = node('trap "sleep 0.5; echo saved >&2; exit 0" TERM; while true; do sleep 0.1; done', RETRY_AFTER='0')
  for _ in range(100):
    if node.log.exists():
      break
    time.sleep(0.1)
  time.sleep(0.5)
  done.send_signal(signal.SIGTERM)
  _, errors = done.communicate(timeout=60)
  assert done.returncode == 0 and 'saved' in errors and node.log.read_text().count('called') == 1
