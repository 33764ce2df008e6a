"""What a painter refuses before anything is painted, and what it warns of."""

import dataclasses
import functools

import numpy as np
import pytest
from support import scripted, toy

from pdgen.core import config, trajectory

Step, Trajectory = trajectory.Step, trajectory.Trajectory
PAINT, SAMPLING = scripted.PAINT, scripted.SAMPLING
PAINTER, WHOLE = toy.painter(toy.MODEL, SAMPLING), toy.full_trajectory()


@pytest.fixture
def script(monkeypatch):
  return functools.partial(scripted.play, monkeypatch)


def _with_draft(height, width, dtype='uint8'):
  return Trajectory(prompt='p', steps=(Step(plan='x', draft=np.zeros((height, width, 3), dtype)),))


def _direct(**changes):
  return Trajectory(prompt='p', steps=(Step(draft=toy.picture(1)),), mode='direct', **changes)


def _finished(**parts):
  return Trajectory(prompt='p', steps=(Step(plan='x', draft=toy.picture(1), **parts),))


@pytest.mark.parametrize(
  ('arguments', 'options', 'message'),
  [
    (['p'], dict(mode='sketch'), "Unknown mode 'sketch'.*process.*direct"),
    ([[]], {}, 'at least one prompt'),
    ([['p', 'q']], dict(seed=[1]), '1 seeds for 2 prompts'),
    (['p'], dict(seed=-1), 'Seeds are from 0'),
    ([['p', 'q']], dict(seed=2**32 - 1), 'Seeds are from 0'),
    (['p'], dict(sampling=dataclasses.replace(SAMPLING, max_tokens=33)), 'max_tokens=33 leaves no room.* 34'),
    (['p'], dict(sampling=dataclasses.replace(SAMPLING, max_text_tokens=4)), 'max_text_tokens=4 leaves no room'),
    (['p'], dict(pictures=0), 'may not paint another'),
    (['p'], dict(seed=[1.5]), 'Seeds are from 0 .* not 1.5'),
    (['p'], dict(batch_size=0), 'batch_size=0: a batch holds at least 1'),
    (['p'], dict(batch_size=-3), 'batch_size=-3: a batch holds at least 1'),
    ([_direct(stop=None)], {}, "direct trajectory of 'p' has its picture: nothing is left to paint"),
    ([_direct(stop='finished')], {}, "direct trajectory of 'p' has its picture: nothing is left to paint"),
    ([['q', _direct(stop='picture_cap')]], dict(mode='process'), 'has its picture: nothing is left to paint'),
    ([_finished(inspection=None)], {}, "trajectory of 'p' is finished: nothing is left to paint. With stop=None"),
    ([_finished(inspection='good')], {}, "trajectory of 'p' is finished: nothing is left to paint"),
    (['p' * 100_000], {}, r"The prompt of 'p+'.. has 100,000 tokens, of at most 4,096: shorten it."),
    ([_finished(inspection='no ' * 5000)], {}, r"The inspection of 'p'.. has 15,000 tokens, of at most 4,096"),
    (
      ['p' * 4000],
      dict(batch_size=2000),
      r'2000 trajectories at once, of a prompt of 4,\d{3} tokens.* GiB .*attention scores',
    ),
    (['p'], dict(sampling=dataclasses.replace(SAMPLING, max_tokens=10**9)), r'GiB \(KV cache .*Lower the batch size'),
    (
      ['p'],
      dict(batch_size=10**9),
      r'1000000000 trajectories at once, of a prompt of 32 tokens .*Lower the batch size',
    ),
    ([WHOLE], {}, "'a ring' has 4 pictures and may not paint another"),
    ([_with_draft(12, 16)], {}, 'no whole patches of 8'),
    ([_with_draft(16, 32)], {}, "The trajectory of 'p' does not fit the model: .* 3 position ids a side"),
    ([_with_draft(16, 16, 'float32')], {}, r'picture float32\[16, 16, 3\]; pictures are uint8'),
  ],
)
def test_what_cannot_be_sampled_is_refused(script, arguments, options, message):
  run = script()
  with pytest.raises(ValueError, match=message):
    PAINTER.sample(*arguments, **options)
  assert not run.calls


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(sampling=dataclasses.replace(SAMPLING, max_tokens=10**9)), 'KV cache'),
    (dict(batch_size=0), 'at least 1'),
  ],
)
def test_what_cannot_be_streamed_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    PAINTER.stream('p', **options)
  with pytest.raises(ValueError, match='nothing is left to paint'):
    PAINTER.stream(_finished(inspection=None))


def test_a_picture_that_is_not_finite_is_told(script):
  run = script(PAINT, PAINT, PAINT)
  run.not_finite = 1
  with pytest.warns(UserWarning, match="^1 trajectories have pictures with values that are NaN or infinite.*'q'"):
    result = PAINTER.sample(['p', 'q', 'r'])
  assert result.not_finite == (1,) and len(result.trajectories) == 3
  run = script(*[PAINT] * 4)
  run.not_finite = 0
  with pytest.warns(UserWarning):
    assert PAINTER.sample(list('pqrs'), batch_size=2).not_finite == (0, 2)


def test_words_of_a_model_that_has_learned_none_are_warned_of(script):
  imported = dataclasses.replace(
    PAINTER, config=dataclasses.replace(PAINTER.config, data=config.DataConfig(sources=(), sequence=toy.PLAIN))
  )
  direct = config.SourceConfig(kind='world', name='shapes', mixture=(('direct', 1.0),))
  taught_direct = dataclasses.replace(
    PAINTER, config=dataclasses.replace(PAINTER.config, data=config.DataConfig(sources=(direct,), sequence=toy.PLAIN))
  )
  script(*[PAINT] * 6)
  for painter in (imported, taught_direct):
    with pytest.warns(UserWarning, match='not trained to paint in steps.*--mode=direct'):
      painter.sample('p')
    painter.sample('p', mode='direct')  # Warnings are errors: it says nothing.
  PAINTER.sample('p')


def test_a_picture_without_words_of_a_model_that_has_learned_none_is_warned_of(script):
  def painter(*sources):
    data = config.DataConfig(sources=sources, sequence=toy.PLAIN)
    return dataclasses.replace(PAINTER, config=dataclasses.replace(PAINTER.config, data=data))

  world = functools.partial(config.SourceConfig, kind='world', name='shapes')
  words, own = world(mixture=(('multi_turn', 1.0), ('direct', 0.0))), config.SourceConfig(kind='self_sampled')
  script(*[PAINT] * 9)
  for sources in ((words,), (words, own)):
    with pytest.warns(UserWarning, match='not trained to paint in one go.*--mode=process'):
      painter(*sources).sample('p', mode='direct')
    painter(*sources).sample('p')  # Warnings are errors: it says nothing.
  with pytest.warns(UserWarning, match='not trained to paint in one go'):
    painter(words).stream('p', mode='direct')
  # Where it has learned it, or nothing tells what it has learned, nothing is said.
  direct, records = world(mixture=(('direct', 1.0),)), config.SourceConfig(kind='records', name='x')
  for sources in ((world(),), (words, direct), (), (words, records)):
    painter(*sources).sample('p', mode='direct')


def test_a_tokenizer_that_exceeds_the_model_is_refused():
  with pytest.raises(ValueError, match='vocab_size=139 exceeds .*vocab_size=138'):
    toy.painter(dataclasses.replace(toy.MODEL, vocab_size=138), SAMPLING)
