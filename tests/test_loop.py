"""The training loop by itself: a loss, data and evaluators of somebody else's, profiler traces, the transfer guard."""

import contextlib
import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.core import trees
from pdgen.data import tokenizers
from pdgen.evals import base, intervals
from pdgen.training import distributed, loop, profiling

TOKENIZER = tokenizers.files('shapes')


class Repeats:
  """Data of one batch, for ever. Its state is the number of batches taken."""

  def __init__(self, batch, state):
    self.batch, self.began, self.taken, self.closed = batch, state or 0, state or 0, False

  def __next__(self):
    self.taken += 1
    return self.batch

  def state(self):
    return self.taken

  def fingerprint(self):
    return 'repeats'

  def close(self):
    self.closed = True


class CountsCalls:
  """An evaluator whose score is what the painter says."""

  def __init__(self, name):
    self.name, self.painters = name, []

  def run(self, painter, out):
    assert out is None
    self.painters.append(painter)
    strip = np.full((4, 4, 3), 200, np.uint8)
    score = intervals.Estimate(float(painter), 0.0, 9.0, 1)
    return base.Scores(name=self.name, values={'painter': score}, asked=1, answered=1, strip=strip)


def shrink(model, batch, key, config):
  """Another loss: the head is to vanish."""
  unused = 0.0 * jnp.sum(batch.und.weight)
  return jnp.mean(model.head.kernel[...] ** 2) + unused, {'head': jnp.max(jnp.abs(model.head.kernel[...]))}


@pytest.fixture(scope='module')
def config(tiny):
  """One for all tests: it compiles once."""
  train = dict(steps=4, log_every=1, checkpoint_every=0, eval_every=2, self_sample_steps=(), warmup_steps=0)
  return dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, **train))


@pytest.fixture
def opened(batch):
  """Opens `Repeats`, and the list of what was opened."""

  class Opens:
    made: list[Repeats] = []

    def __call__(self, *, step, share, state):
      assert share == (0, 1) and step == (state or 0)
      self.made.append(Repeats(batch, state))
      return self.made[-1]

  return Opens()


def lines(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_a_loss_data_and_evaluators_of_ones_own(config, tmp_path, opened, monkeypatch, capsys):
  agreed = {}
  monkeypatch.setattr(distributed, 'check_agreement', agreed.update)
  evaluators = [CountsCalls('first'), CountsCalls('second')]
  seen = []
  state = loop.train(
    config,
    tmp_path,
    data=opened,
    tokenizer=TOKENIZER,
    evaluators=evaluators,
    make_painter=lambda state: int(state.step),
    at_steps={1: lambda step, state, data: seen.append((step, int(state.step), data))},
    loss=shrink,
    profile_steps=(1, 3),
  )
  # The loss is minimised, and only what it reports is reported.
  steps = [line for line in lines(tmp_path) if 'loss' in line]
  assert [line['step'] for line in steps] == [1, 2, 3, 4]
  assert all(later['loss'] < earlier['loss'] for earlier, later in zip(steps, steps[1:], strict=False))
  assert 'head' in steps[0] and 'ce' not in steps[0] and 'tokens_per_second' not in steps[0]
  printed = capsys.readouterr().out
  assert 'step 4/4  loss' in printed and ' ce ' not in printed
  # Nothing else of the model has a gradient.
  moments = dict(trees.flatten_with_paths(state.opt_state[1].mu))
  assert [name for name, moment in moments.items() if jnp.any(moment != 0)] == ['head/kernel']
  # Evaluated are steps 2 and 4 (the end), all evaluators by the same painter.
  assert [e.painters for e in evaluators] == [[2, 4], [2, 4]]
  assert [line['second/painter'] for line in lines(tmp_path) if 'second/painter' in line] == [2.0, 4.0]
  strips = ['0000002.png', '0000002_second.png', '0000004.png', '0000004_second.png']
  assert sorted(p.name for p in (tmp_path / 'strips').iterdir()) == strips
  # The callback came before the batch of its step was taken, with the data that the loop reads.
  (data,) = opened.made
  assert seen == [(1, 1, data)] and data.taken == 4 and data.closed
  # Parameters with their sharding are in the table that a run begins with.
  assert 'trainable/trunk/layers/und/q/kernel' in printed and 'Sharding' in printed
  # All processes were asked whether they read the same data, besides configuration and code.
  assert agreed['data'] == 'repeats' and agreed['config/train/steps'] == '4' and {'code', 'jax'} <= set(agreed)
  traces = [p.relative_to(tmp_path / 'profile').parts[:2] for p in tmp_path.rglob('*.xplane.pb')]
  assert traces == [('plugins', 'profile')]


def test_a_run_that_resumes_opens_its_data_where_they_were(config, tmp_path, opened, monkeypatch):
  run = lambda: loop.train(config, tmp_path, data=opened, tokenizer=TOKENIZER, loss=shrink)
  with monkeypatch.context() as patch:
    patch.setattr(distributed, 'preemption_notice', lambda: contextlib.nullcontext(lambda step: step == 3))
    assert int(run().step) == 3
  assert int(run().step) == 4
  assert [(data.began, data.taken, data.closed) for data in opened.made] == [(0, 3, True), (3, 4, True)]


def test_a_transfer_that_nobody_asked_for_is_an_error(config, tmp_path, opened, monkeypatch):
  monkeypatch.setattr(loop.mesh_lib, 'put_batch', lambda batch, mesh: batch)  # The step would move it by itself.
  with pytest.raises(jax.errors.JaxRuntimeError, match='Disallowed host-to-device transfer'):
    loop.train(config, tmp_path, data=opened, tokenizer=TOKENIZER, loss=shrink)
  assert opened.made[0].closed


def test_a_trace_holds_the_chosen_steps(tmp_path, monkeypatch):
  calls = []
  monkeypatch.setattr(profiling.jax.profiler, 'start_trace', lambda folder: calls.append('start'))
  monkeypatch.setattr(profiling.jax.profiler, 'stop_trace', lambda: calls.append('stop'))

  def run(first, last, steps):
    calls.clear()
    tracer = profiling.StepTracer(pathlib.Path(tmp_path), steps)
    for step in range(first, last):
      tracer.start(step)
      calls.append(step)
      tracer.stop(step, jnp.zeros(()))
    tracer.close()
    return list(calls)

  assert run(0, 5, (1, 3)) == [0, 'start', 1, 2, 'stop', 3, 4]
  assert run(2, 4, (1, 3)) == ['start', 2, 'stop', 3]  # Resumed among them.
  assert run(0, 2, (1, 3)) == [0, 'start', 1, 'stop']  # Ended among them.
  assert run(3, 5, (1, 3)) == [3, 4] and run(0, 2, None) == [0, 1]


@pytest.mark.parametrize('text', ['', '3', '3:3', '4:3', 'a:b', '-1:2', '1:2:3'])
def test_steps_to_trace_are_two_numbers(text):
  with pytest.raises(ValueError, match='write A:B'):
    profiling.parse_steps(text)
