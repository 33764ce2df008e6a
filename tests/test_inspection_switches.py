"""Switches of inspection and budgets of edits hold for every trajectory of a random-weight model; dictated words."""

import dataclasses
import re

import numpy as np
import pytest
from support import toy

from pdgen.core import config, tags, trajectory
from pdgen.inference import painter as painter_lib

GREEDY = config.SamplingConfig(max_pictures=6, max_text_tokens=12, max_tokens=200, flow_steps=1)
WARM = dataclasses.replace(GREEDY, temperature=0.5)
PAINTER = toy.refining_painter(toy.MODEL, GREEDY)
PROMPTS = [f'{i} rings' for i in range(8)]
# The last row of every batch, so that all have the shapes of one program: a step with an edit, then a draft.
PARTIAL = dataclasses.replace(
  toy.full_trajectory(), steps=(toy.full_trajectory().steps[0], toy.full_trajectory().steps[2]), stop=None
)


def paint(sampling=WARM, *, seed=0, prompts=PROMPTS, inspector=None, **changes):
  """The prompts and, as the last one, PARTIAL with a seed of its own."""
  sampling = dataclasses.replace(sampling, **changes)
  seeds = [*range(seed, seed + len(prompts)), 99]
  result = PAINTER.sample([*prompts, PARTIAL], seed=seeds, sampling=sampling, batch_size=9, inspector=inspector)
  return result.trajectories


def edits(t):
  return sum(step.refined is not None for step in t.steps)


def content(t):
  texts = [item.text for item in t.items() if not item.is_picture]
  return texts, t.stop, [p.tobytes() for p in t.pictures]


def assert_same(one, other):
  assert content(one)[:2] == content(other)[:2] and len(one.pictures) == len(other.pictures)
  for a, b in zip(one.pictures, other.pictures, strict=True):
    assert np.abs(a.astype(int) - b).max() <= 1  # float32 sums of another length, rounded to a level


@pytest.fixture(scope='module')
def free():
  return paint()


def test_at_most_k_edits_and_one_program_for_every_budget(free):
  assert max(map(edits, free)) >= 2
  compiled = painter_lib._compiled_programs()
  for most in (0, 1, 2):
    *got, continued = paint(max_edits=most)
    assert max(map(edits, got)) == most
    assert sum(text.count('<refine>') for t in got for text in content(t)[0]) == sum(map(edits, got))
    assert edits(continued) <= max(most, 1)  # That which it was given counts.
    for one, other in zip(got, free[:-1], strict=True):
      # What needs no more is not changed by the budget; the rest is the same until the budget is used up.
      assert edits(one) <= most and (edits(other) > most or content(one) == content(other))
      assert content(one)[0][0] == content(other)[0][0]
  assert [content(t) for t in paint(max_edits=100)] == [content(t) for t in free]
  assert painter_lib._compiled_programs() == compiled


def test_forced_every_draft_is_refined():
  for sampling in (GREEDY, WARM):
    for t in paint(sampling, inspection='forced')[:-1]:
      for number, step in enumerate(t.steps):
        # A draft that reaches a cap is the last picture.
        is_cut = t.stop in trajectory.CAPS and number == len(t.steps) - 1 and step.inspection is None
        assert is_cut or (step.rejected and step.refined is not None)
        assert step.inspection is None or len(toy.WORDS.encode_with_tags(step.inspection)) < WARM.max_text_tokens
  first = paint(inspection='forced', max_edits=1)
  assert {edits(t) for t in first} == {1} and all(t.steps[0].rejected for t in first)
  assert first[-1].steps[1].refined is None and paint(inspection='forced')[-1].steps[1].refined is not None


def test_off_there_is_no_inspection_and_plans_follow_drafts():
  *got, continued = paint(inspection='off')
  steps = [step for t in got for step in t.steps] + list(continued.steps[1:])
  assert all(s.inspection is None and s.refined is None and s.corrected_plan is None for s in steps)
  assert all(tags.is_plan(s.plan) and s.draft is not None for s in steps)
  assert max(len(t.steps) for t in got) > 2 and len(continued.steps) > 2


@pytest.mark.parametrize('changes', [dict(max_edits=1), dict(inspection='forced'), dict(inspection='off')], ids=str)
def test_a_batch_is_as_each_alone(changes):
  together = paint(**changes)
  for i in (0, 3):
    [alone, _] = paint(seed=i, prompts=PROMPTS[i : i + 1], **changes)
    assert_same(alone, together[i])


def scripted(t):
  """Rejects the drafts of steps with an even number."""
  assert t.stop is None and t.steps[-1].draft is not None and t.steps[-1].inspection is None
  return 'no <refine>a</refine>' if len(t.steps) % 2 else 'yes'


def test_dictated_every_draft_gets_the_words_of_the_inspector(free):
  got = paint(inspection='dictated', inspector=scripted)
  # The draft that PARTIAL ends with is the first that is dictated to.
  assert got[-1].steps[0] == PARTIAL.steps[0] and got[-1].steps[1].inspection == 'yes'
  inspected = [(i, step) for t in got[:-1] for i, step in enumerate(t.steps) if step.inspection is not None]
  assert {step.inspection for _, step in inspected} == {'no <refine>a</refine>', 'yes'}
  for i, step in inspected:
    assert step.rejected == (i % 2 == 0) == (step.refined is not None)
  for t, other in zip(got[:-1], free, strict=False):
    assert all(step.inspection is not None for step in t.steps) or t.stop in trajectory.CAPS
    # Until the first inspection it is the model's own painting, and noise is that of the picture's number.
    assert t.steps[0].plan == other.steps[0].plan
    np.testing.assert_allclose(t.steps[0].draft.astype(int), other.steps[0].draft, atol=1)
  [alone, _] = paint(seed=3, prompts=PROMPTS[3:4], inspection='dictated', inspector=scripted)
  assert_same(alone, got[3])


def test_dictating_the_models_own_words_changes_nothing():
  """Greedily: what is dictated is in the cache as if the model had written it."""
  own = paint(GREEDY)
  words = {t.prompt: [step.inspection for step in t.steps] for t in own}
  got = paint(GREEDY, inspection='dictated', inspector=lambda t: words[t.prompt][len(t.steps) - 1])
  assert sum(map(edits, own)) > 9
  for one, other in zip(got, own, strict=True):
    assert_same(one, other)


@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda: paint(inspection='dictated'), "sampling.inspection='dictated' without an inspector"),
    (lambda: paint(inspector=scripted), "sampling.inspection='free' with an inspector"),
    (lambda: PAINTER.stream('a', sampling=dataclasses.replace(WARM, inspection='dictated')), 'without an inspector'),
    (lambda: paint(inspection='dictated', inspector=lambda t: 'too many words'), 'has 15 tokens of 12: raise'),
  ],
  ids=['none', 'unasked', 'streamed', 'too long'],
)
def test_an_inspector_is_there_exactly_when_it_is_asked_for(call, words):
  with pytest.raises(ValueError, match=re.escape(words)) as error:
    call()
  assert '\n' not in str(error.value)
