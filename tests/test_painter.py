"""From prompts to the sampler's request, and from what it wrote to trajectories, with a script for a sampler."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from support import toy

from pdgen.core import config, trajectory
from pdgen.sampling import cycle, grammar

Step, Trajectory = trajectory.Step, trajectory.Trajectory
S = toy.WORDS.specials
SAMPLING = config.SamplingConfig(max_pictures=4, max_text_tokens=12, max_tokens=60)
PAINTER = toy.painter(toy.MODEL, SAMPLING)


def _text(text):
  return [S.im_start, *toy.WORDS.encode_with_tags(text), S.im_end]


PAINT = [S.vision_start]
WRITTEN = {
  'finished after one step': _text('<ins>a</ins><des>b</des>') + PAINT,
  'a conflict and a step': [
    *_text('<ins>a</ins><des>b</des>'),
    *PAINT,
    *_text('no <refine>c</refine>'),
    *_text('<ins>d</ins><des>e</des>'),
    *PAINT,
    *_text('<ins>f</ins><des>g</des>'),
    *PAINT,
  ],
  'a misalignment and an inspection that finds nothing': [
    *_text('<ins>a</ins><des>b</des>'),
    *PAINT,
    *_text('no <refine>c</refine>'),
    *PAINT,
    *_text('<ins>f</ins><des>g</des>'),
    *PAINT,
    *_text('good'),
    *_text('<ins>h</ins><des>i</des>'),
    *PAINT,
  ],
  'only a picture': PAINT,
}


class Script:
  """Stands for `cycle.run`: keeps what it is asked and gives out what it was told, a row a prompt."""

  def __init__(self, rows):
    self.rows, self.not_finite = list(rows), None  # number of the row whose picture is not finite
    self.calls = []

  def _cache_size(self):
    return len({jax.tree.map(np.shape, call.batch) for call in self.calls} if self.calls else ())

  def __call__(self, graphdef, params, batch, sampler, spec):
    self.calls.append(types.SimpleNamespace(batch=batch, sampler=sampler, spec=spec))
    size = len(batch.picture_limit)
    rows, self.rows = self.rows[:size], self.rows[size:]
    written = np.full((size, SAMPLING.max_tokens), 77)
    counts, painted = np.zeros(size, int), np.zeros(size, int)
    pictures = np.zeros((size, SAMPLING.max_pictures, 16, 16, 3), np.uint8)
    stop = np.full(size, cycle.PICTURE_CAP)
    for i, (tokens, stopped) in enumerate(rows):
      written[i, : len(tokens)], counts[i], stop[i] = tokens, len(tokens), stopped
      painted[i] = tokens.count(S.vision_start)
      pictures[i] = np.arange(1, 5, dtype=np.uint8)[:, None, None, None] + 10 * i
    return types.SimpleNamespace(
      output_tokens=written,
      output_count=counts,
      pictures=pictures,
      picture_count=painted,
      finite=np.arange(size) != self.not_finite,
      stop=stop,
      text_steps=np.array(7),
      rounds=np.array(2),
    )


@pytest.fixture
def script(monkeypatch):
  def start(*rows):
    script = Script([(tokens, cycle.FINISHED) if isinstance(tokens, list) else tokens for tokens in rows])
    monkeypatch.setattr(cycle, 'run', script)
    return script

  return start


def _shapes(steps):
  """Steps with pictures replaced by their level."""
  level = lambda p: None if p is None else int(p[0, 0, 0])
  return [(s.plan, level(s.draft), s.inspection, s.corrected_plan, level(s.refined)) for s in steps]


def test_texts_and_pictures_become_steps(script):
  script(*WRITTEN.values())
  result = PAINTER.sample(['p', 'q', 'r', 's'])
  finished, conflict, misalignment, bare = result.trajectories
  assert [t.prompt for t in result.trajectories] == ['p', 'q', 'r', 's']
  assert {t.stop for t in result.trajectories} == {trajectory.FINISHED}
  a, d, f, h = (f'<ins>{x}</ins><des>{y}</des>' for x, y in ('ab', 'de', 'fg', 'hi'))
  assert _shapes(finished.steps) == [(a, 1, None, None, None)]
  assert _shapes(conflict.steps) == [(a, 11, 'no <refine>c</refine>', d, 12), (f, 13, None, None, None)]
  assert _shapes(misalignment.steps) == [
    (a, 21, 'no <refine>c</refine>', None, 22),
    (f, 23, 'good', None, None),
    (h, 24, None, None, None),
  ]
  assert _shapes(bare.steps) == [(None, 31, None, None, None)]
  assert misalignment.final[0, 0, 0] == 24 and misalignment.final.dtype == np.uint8
  assert {k: result.timings[k] for k in ('text_steps', 'rounds', 'tokens', 'pictures', 'compile_calls')} == {
    'text_steps': 7,
    'rounds': 2,
    'tokens': sum(map(len, WRITTEN.values())),
    'pictures': 1 + 3 + 4 + 1,
    'compile_calls': 1,
  }
  assert result.timings['seconds'] > 0


@pytest.mark.parametrize(
  ('stop', 'name'), [(cycle.FINISHED, 'finished'), (cycle.PICTURE_CAP, 'picture_cap'), (cycle.TOKEN_CAP, 'token_cap')]
)
def test_the_reason_of_the_end_is_told(script, stop, name):
  script((PAINT, stop))
  [got] = PAINTER.sample('p', mode='direct').trajectories
  assert got.stop == name


WHOLE = toy.full_trajectory()


def _cut(*, steps, **last):
  """The first `steps` steps of the whole trajectory, the last one without what `last` sets to None."""
  kept = list(WHOLE.steps[:steps])
  kept[-1] = dataclasses.replace(kept[-1], **last)
  return dataclasses.replace(WHOLE, steps=tuple(kept), stop=None)


AFTER_INSPECTION = dict(corrected_plan=None, refined=None)
AFTER_DRAFT = dict(inspection=None, **AFTER_INSPECTION)
AFTER_PLAN = dict(draft=None, **AFTER_DRAFT)
NEW_PLAN = '<ins>n</ins><des>m</des>'


@pytest.mark.parametrize(
  ('start', 'state', 'written', 'last_steps'),
  [
    (
      _cut(steps=1, **AFTER_PLAN),
      (grammar.PLAN, 1, False),
      PAINT,
      [('<ins>a</ins><des>b</des>', 1, None, None, None)],
    ),
    (
      _cut(steps=1, **AFTER_DRAFT),
      (grammar.DRAFT, 0, False),
      _text('ok') + _text(NEW_PLAN) + PAINT,
      [('<ins>a</ins><des>b</des>', 'old', 'ok', None, None), (NEW_PLAN, 1, None, None, None)],
    ),
    (
      _cut(steps=1, **AFTER_INSPECTION),
      (grammar.INSPECTION, 1, True),
      PAINT + _text(NEW_PLAN) + PAINT,
      [('<ins>a</ins><des>b</des>', 'old', 'no. <refine>c</refine>', None, 1), (NEW_PLAN, 2, None, None, None)],
    ),
    (
      _cut(steps=1, refined=None),
      (grammar.PLAN, 2, True),
      PAINT,
      [('<ins>a</ins><des>b</des>', 'old', 'no. <refine>c</refine>', '<ins>d</ins><des>e</des>', 1)],
    ),
    (
      _cut(steps=1),
      (grammar.REFINED, 0, False),
      _text(NEW_PLAN) + PAINT,
      [
        ('<ins>a</ins><des>b</des>', 'old', 'no. <refine>c</refine>', '<ins>d</ins><des>e</des>', 'old'),
        (NEW_PLAN, 1, None, None, None),
      ],
    ),
    (
      _cut(steps=2),
      (grammar.INSPECTION, 1, False),
      _text(NEW_PLAN) + PAINT,
      [('<ins>f</ins><des>g</des>', 'old', 'ok. go', None, None), (NEW_PLAN, 1, None, None, None)],
    ),
  ],
  ids=['plan', 'draft', 'inspection', 'corrected_plan', 'refined', 'good_inspection'],
)
def test_a_partial_trajectory_is_continued_where_it_stands(script, start, state, written, last_steps):
  kept_metadata = dataclasses.replace(start, metadata={'tag': 'color'})
  run = script(written)
  [got] = PAINTER.sample(kept_metadata).trajectories
  asked = run.calls[0].batch
  assert (
    int(asked.grammar.last_item[0]),
    int(asked.grammar.texts_since_picture[0]),
    bool(asked.grammar.refining[0]),
  ) == state
  assert int(asked.grammar.tag_state[0]) == grammar.BOUNDARY and not bool(asked.grammar.direct[0])
  assert int(asked.picture_limit[0]) == SAMPLING.max_pictures - len(start.pictures)
  old = {p.tobytes() for p in start.pictures}
  shapes = []
  for step in got.steps:
    level = lambda p: None if p is None else 'old' if p.tobytes() in old else int(p[0, 0, 0])
    shapes.append((step.plan, level(step.draft), step.inspection, step.corrected_plan, level(step.refined)))
  assert shapes[-len(last_steps) :] == last_steps
  assert len(got.steps) == len(start.steps) - 1 + len(last_steps)
  assert got.metadata == {'tag': 'color'} and got.stop == trajectory.FINISHED


def test_what_was_edited_is_read_and_kept_word_for_word(script):
  edited = '<ins>  my OWN plan </ins><des>x, <|im_end|> y</des>'
  run = script(PAINT)
  start = _cut(steps=1, **(AFTER_PLAN | {'plan': edited}))
  [got] = PAINTER.sample(start).trajectories
  assert got.steps[0].plan == edited
  ids = np.asarray(run.calls[0].batch.prefix.und.token_id)[0]
  want = [*_text('a ring'), *_text(edited)]
  assert ids[: len(want)].tolist() == want
  assert want.count(S.im_end) == 2  # That of the edited text stays text.


def test_drafts_of_a_person_stay_no_targets(script):
  script(_text('ok') + _text(NEW_PLAN) + PAINT)
  [got] = PAINTER.sample(_cut(steps=1, draft_is_target=False, **AFTER_DRAFT)).trajectories
  assert [s.draft_is_target for s in got.steps] == [False, True]


def test_batches_are_filled_with_idle_rows_and_seeds_count_up(script):
  run = script(*[PAINT] * 5)
  result = PAINTER.sample(list('abcde'), mode='direct', seed=np.int64(7), batch_size=2)
  assert [t.prompt for t in result.trajectories] == list('abcde')
  assert [call.batch.picture_limit.tolist() for call in run.calls] == [[4, 4], [4, 4], [4, 0]]
  seeds = [jax.random.key_data(call.batch.key)[:, -1].tolist() for call in run.calls]
  assert seeds == [[7, 8], [9, 10], [11, 0]]
  prompts = [call.batch.prefix.und.token_id[:, 1].tolist() for call in run.calls]
  assert prompts == [[ord('a'), ord('b')], [ord('c'), ord('d')], [ord('e'), ord('e')]]
  assert result.timings['compile_calls'] == 1 and result.timings['rounds'] == 6


def test_each_prompt_may_have_its_seed(script):
  run = script(*[PAINT] * 3)
  PAINTER.sample(list('abc'), seed=(5, 5, 2**32 - 1))
  keys = jax.random.key_data(run.calls[0].batch.key)[:, -1].tolist()
  assert keys == [5, 5, 2**32 - 1]


def test_lengths_of_prefixes_are_rounded_up(script):
  run = script(*[PAINT] * 9)
  for prompt in ('a', 'b' * 30, 'c' * 31):
    PAINTER.sample(prompt)
  partial = _cut(steps=1)
  PAINTER.sample([partial, 'd'])
  prefixes = [call.batch.prefix for call in run.calls]
  assert [p.und.label.shape for p in prefixes] == [(1, 32), (1, 32), (1, 64), (2, 64)]
  assert [p.pictures.shape[:2] for p in prefixes] == [(1, 0), (1, 0), (1, 0), (2, 2)]
  assert [p.gen.patch.shape for p in prefixes] == [(1, 0), (1, 0), (1, 0), (2, 8)]
  assert np.asarray(prefixes[0].und.tokens.segment).sum() == 3
  # The prompt next to the partial trajectory is padded with what nobody sees.
  assert np.asarray(prefixes[3].und.tokens.segment)[1].sum() == 3
  assert np.asarray(prefixes[3].gen.tokens.segment).sum(axis=1).tolist() == [8, 0]


def test_modes(script):
  run = script(*[PAINT] * 6)
  results = [PAINTER.sample(['p', _cut(steps=1)], mode=mode).trajectories for mode in trajectory.MODES]
  process, direct = (call.batch for call in run.calls)
  assert process.grammar.direct.tolist() == [False, False]
  # A trajectory that has begun keeps its mode.
  assert direct.grammar.direct.tolist() == [True, False]
  assert direct.grammar.last_item.tolist() == [grammar.PROMPT, grammar.REFINED]
  assert _shapes(results[1][0].steps) == [(None, 1, None, None, None)]
  again = dataclasses.replace(results[1][0], steps=(), stop=None)
  PAINTER.sample(again)
  assert run.calls[2].batch.grammar.direct.tolist() == [True]


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


def test_a_finished_trajectory_goes_on_where_something_is_left(script):
  """Its last draft was rejected, or cut away by whoever edits it."""
  script(PAINT, PAINT)
  rejected = dataclasses.replace(WHOLE, steps=(dataclasses.replace(WHOLE.steps[0], corrected_plan=None, refined=None),))
  planned = Trajectory(prompt='p', steps=(Step(plan=NEW_PLAN),))
  assert {rejected.stop, planned.stop} == {trajectory.FINISHED}
  got = PAINTER.sample([rejected, planned]).trajectories
  assert [len(t.pictures) for t in got] == [2, 1]


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


def test_batches_come_one_by_one_and_join_to_the_whole(script):
  run = script(*[PAINT] * 5)
  parts = PAINTER.sample_batches(list('pqrst'), batch_size=2, mode='direct')
  numbers, first = next(parts)
  assert numbers == [0, 1] and [t.prompt for t in first.trajectories] == ['p', 'q'] and len(run.calls) == 1
  assert [n for n, _ in parts] == [[2, 3], [4]] and len(run.calls) == 3
  run = script(*[PAINT] * 5)
  whole = PAINTER.sample(list('pqrst'), batch_size=2, mode='direct')
  assert [t.prompt for t in whole.trajectories] == list('pqrst') and whole.timings['rounds'] == 6


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


def test_pictures_bound_what_is_added(script):
  run = script(*[PAINT] * 2)
  PAINTER.sample([_cut(steps=1), 'p'], pictures=3)
  assert run.calls[0].batch.picture_limit.tolist() == [2, 3]


def test_a_tokenizer_that_exceeds_the_model_is_refused():
  with pytest.raises(ValueError, match='vocab_size=139 exceeds .*vocab_size=138'):
    toy.painter(dataclasses.replace(toy.MODEL, vocab_size=138), SAMPLING)
