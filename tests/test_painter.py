"""From prompts to the sampler's request, and from what it wrote to trajectories, with a script for a sampler."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from support import scripted, toy

from pdgen.core import trajectory
from pdgen.sampling import cycle, grammar

Step, Trajectory = trajectory.Step, trajectory.Trajectory
PAINT, S, SAMPLING = scripted.PAINT, scripted.S, scripted.SAMPLING
PAINTER = toy.painter(toy.MODEL, SAMPLING)


def _text(text):
  return [S.im_start, *toy.WORDS.encode_with_tags(text), S.im_end]


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


@pytest.fixture
def script(monkeypatch):
  return functools.partial(scripted.play, monkeypatch)


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
  assert int(asked.grammar.tag_state[0]) == grammar.BOUNDARY and bool(asked.grammar.is_process[0])
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
  results = [PAINTER.sample(['p', _cut(steps=1)], mode=mode).trajectories for mode in ('process', 'direct')]
  process, direct = (call.batch for call in run.calls)
  assert process.grammar.is_process.tolist() == [True, True]
  # A trajectory that has begun keeps its mode.
  assert direct.grammar.is_process.tolist() == [False, True]
  assert direct.grammar.last_item.tolist() == [grammar.PROMPT, grammar.REFINED]
  assert _shapes(results[1][0].steps) == [(None, 1, None, None, None)]
  again = dataclasses.replace(results[1][0], steps=(), stop=None)
  PAINTER.sample(again)
  assert run.calls[2].batch.grammar.is_process.tolist() == [False]


def test_a_finished_trajectory_goes_on_where_something_is_left(script):
  """Its last draft was rejected, or cut away by whoever edits it."""
  script(PAINT, PAINT)
  rejected = dataclasses.replace(WHOLE, steps=(dataclasses.replace(WHOLE.steps[0], corrected_plan=None, refined=None),))
  planned = Trajectory(prompt='p', steps=(Step(plan=NEW_PLAN),))
  assert {rejected.stop, planned.stop} == {trajectory.FINISHED}
  got = PAINTER.sample([rejected, planned]).trajectories
  assert [len(t.pictures) for t in got] == [2, 1]


def test_batches_come_one_by_one_and_join_to_the_whole(script):
  run = script(*[PAINT] * 5)
  parts = PAINTER.sample_batches(list('pqrst'), batch_size=2, mode='direct')
  numbers, first = next(parts)
  assert numbers == [0, 1] and [t.prompt for t in first.trajectories] == ['p', 'q'] and len(run.calls) == 1
  assert [n for n, _ in parts] == [[2, 3], [4]] and len(run.calls) == 3
  run = script(*[PAINT] * 5)
  whole = PAINTER.sample(list('pqrst'), batch_size=2, mode='direct')
  assert [t.prompt for t in whole.trajectories] == list('pqrst') and whole.timings['rounds'] == 6


def test_pictures_bound_what_is_added(script):
  run = script(*[PAINT] * 2)
  PAINTER.sample([_cut(steps=1), 'p'], pictures=3)
  assert run.calls[0].batch.picture_limit.tolist() == [2, 3]
