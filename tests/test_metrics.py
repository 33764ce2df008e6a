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


@pytest.mark.parametrize(
  'bad', [b'{}', b'[]', b'null', b'{"step": null}', b'{"step": NaN}', b'\xff{"step": 2}', b'{"st']
)
def test_a_damaged_line_does_not_block_a_resume(tmp_path, bad, capsys):
  good = [b'{"step": 2, "loss": 0.5}', b'{"step": 4, "loss": 0.25}', b'{"step": 6, "loss": 0.125}']
  (tmp_path / 'metrics.jsonl').write_bytes(b'\n'.join([good[0], bad, *good[1:]]) + b'\n')
  metrics.Writer(tmp_path, step=4).close()
  assert (tmp_path / 'metrics.jsonl').read_bytes() == b'\n'.join(good[:2]) + b'\n'
  assert '1 lines cannot be read (line 2 the first)' in capsys.readouterr().out


def test_a_run_that_begins_sets_aside_what_an_earlier_one_wrote(tmp_path, capsys):
  for content in ('{"step": 2}\n', '{"step": 3}\n', ''):
    (tmp_path / 'metrics.jsonl').write_text(content)
    metrics.Writer(tmp_path).close()
    assert (tmp_path / 'metrics.jsonl').read_text() == ''
  assert (tmp_path / 'metrics.1.jsonl').read_text() == '{"step": 2}\n'
  assert (tmp_path / 'metrics.2.jsonl').read_text() == '{"step": 3}\n'
  assert not (tmp_path / 'metrics.3.jsonl').exists()
  assert capsys.readouterr().out.count('No checkpoint is left') == 2
