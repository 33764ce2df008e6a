"""What a run writes: files that survive a resume, averages, rates."""

import json

import jax.numpy as jnp
import pytest

from pdgen.training import metrics


def lines(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_lines_after_the_checkpoint_are_taken_back_on_resume(tmp_path):
  writer = metrics.Writer(tmp_path)
  for step in (2, 4, 6):
    writer.write(step, {'loss': 1.0 / step, 'bad': float('nan')})
  writer.close()
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 8, "lo')  # Killed while writing.
  writer = metrics.Writer(tmp_path, step=4)
  writer.write(6, {'loss': 9.0})
  writer.close()
  assert lines(tmp_path) == [
    {'step': 2, 'loss': 0.5, 'bad': None},
    {'step': 4, 'loss': 0.25, 'bad': None},
    {'step': 6, 'loss': 9.0},
  ]
  # Writers of the same second share a file, which holds what the last one wrote.
  events = b''.join(file.read_bytes() for file in (tmp_path / 'tensorboard').glob('events*'))
  assert b'loss' in events


def test_progress_averages_and_leaves_pauses_out(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(metrics.time, 'perf_counter', lambda: now[0])
  progress = metrics.Progress(step=10, steps=20)
  assert progress.summary() == {}
  for loss in (1.0, 2.0):
    now[0] += 3.0
    with progress.paused():
      now[0] += 50.0
    progress.add(
      dict(
        loss=jnp.float32(loss),
        ce=jnp.float32(1),
        mse=jnp.float32(1),
        text_accuracy=jnp.float32(0.5),
        learning_rate=jnp.float32(0.1),
        skipped_steps=jnp.int32(loss),
        und_tokens=jnp.float32(30),
        gen_tokens=jnp.float32(60),
      )
    )
  summary = progress.summary()
  assert progress.step == 12
  assert (summary['loss'], summary['skipped_steps']) == (1.5, 2.0)
  assert summary['seconds'] == pytest.approx(6.0)
  assert summary['steps_per_second'] == pytest.approx(2 / 6)
  assert summary['tokens_per_second'] == pytest.approx(180 / 6)
  assert progress.line(summary).startswith('step 12/20  loss 1.5000') and progress.line(summary).endswith('eta 0m24s')
  assert progress.summary() == {}
