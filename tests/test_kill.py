"""A run that is killed at random moments, in steps and in saves, ends bit for bit where one that never was does."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
from support import xla_flags

# The suite takes as many as it has time for; `PDGEN_KILLS=20 python -m pytest tests/test_kill.py` takes 20.
KILLS = int(os.environ.get('PDGEN_KILLS', 2))
STEPS = 12 + 6 * KILLS


def start(workdir, cache):
  root = pathlib.Path(__file__).parents[1]
  environment = {**os.environ, 'XLA_FLAGS': xla_flags.without_devices()}
  environment['PYTHONPATH'] = f'{root}{os.pathsep}{environment.get("PYTHONPATH", "")}'
  command = [sys.executable, root / 'tests' / 'support' / 'killable.py', workdir, str(STEPS), cache]
  return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def batches_taken(workdir):
  file = workdir / 'consumed.txt'
  return len(file.read_text().splitlines()) if file.exists() else 0


def consumed(workdir):
  """Step to the digests of the batches that were ever taken for it."""
  taken = {}
  file = workdir / 'consumed.txt'
  for line in file.read_text().splitlines() if file.exists() else ():
    step, digest = line.split()
    taken.setdefault(int(step), set()).add(digest)
  return taken


def test_a_run_that_is_killed_ends_where_one_that_is_not_does(tmp_path):
  cache = str(tmp_path / 'cache')
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  output, _ = (process := start(whole, cache)).communicate(timeout=600)
  assert process.returncode == 0, output[-3000:]

  rng = np.random.default_rng(0)
  lives = []
  for _ in range(KILLS):
    process = start(killed, cache)
    # Alive and at work: it has taken a batch. Then a moment of the next few steps and saves.
    before = batches_taken(killed)
    while process.poll() is None and batches_taken(killed) == before:
      time.sleep(0.02)
    time.sleep(float(rng.uniform(0, 1.5)))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lives.append((process.returncode, max(consumed(killed))))
  assert all(code == -signal.SIGKILL for code, _ in lives), lives
  output, _ = (process := start(killed, cache)).communicate(timeout=600)
  assert process.returncode == 0, output[-3000:]
  print(f'{KILLS} kills, the last batches before them: {[step for _, step in lives]}')

  want = consumed(whole)
  assert sorted(want) == list(range(STEPS)) and all(len(digests) == 1 for digests in want.values())
  assert consumed(killed) == want  # Batches that were taken twice were the same.
  assert (killed / 'final/params.safetensors').read_bytes() == (whole / 'final/params.safetensors').read_bytes()
