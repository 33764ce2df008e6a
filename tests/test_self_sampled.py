"""Every wrong draft becomes a lesson, right ones at most as many, and the same call gives the same list."""

import dataclasses
import types

import numpy as np
import pytest

from pdgen.construction import self_sampled
from pdgen.core.trajectory import Step
from pdgen.worlds import shapes
from pdgen.worlds.shapes import renderer


class Draws:
  """A painter that renders what is asked for, and something else for requests that `is_wrong` names."""

  def __init__(self, is_wrong, draws_nothing=False):
    self.is_wrong, self.draws_nothing, self.calls = is_wrong, draws_nothing, []

  def sample(self, prompts, *, seed, batch_size, pictures):
    self.calls.append((seed, batch_size, pictures))
    trajectories = []
    for index, prefix in enumerate(prompts):
      *before, last = prefix.steps
      draft = renderer.blank() if self.is_wrong(index) else renderer.render(scene_of(index, seed))
      last = dataclasses.replace(last, draft=None if self.draws_nothing else draft)
      trajectories.append(dataclasses.replace(prefix, steps=(*before, last), stop='picture_cap'))
    return types.SimpleNamespace(trajectories=trajectories)


def scene_of(index, seed):
  return shapes.draft_request(seed=seed, index=index).scene


def same(a: Step, b: Step) -> bool:
  return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Step))


def test_wrong_drafts_are_all_kept_and_right_ones_at_most_as_many():
  found = self_sampled.collect(Draws(lambda i: i % 4 == 1), shapes, count=24, seed=5)
  errors = [t.provenance.error for t in found]
  assert sum(e is not None for e in errors) == 6 and sum(e is None for e in errors) == 6
  # Wrong ones are all there, in the order of the requests, with the draft as context and the right picture after it.
  wrong = [t for t in found if t.provenance.error is not None]
  for index, trajectory in zip(range(1, 24, 4), wrong, strict=True):
    request = shapes.draft_request(seed=5, index=index)
    step = trajectory.steps[len(request.prefix.steps) - 1]
    assert trajectory.prompt == request.prefix.prompt and step.plan == request.prefix.steps[-1].plan
    np.testing.assert_array_equal(step.draft, renderer.blank())
    assert step.rejected and not step.draft_is_target
    np.testing.assert_array_equal(step.refined, renderer.render(request.scene))
  for trajectory in found:
    assert trajectory.provenance.kind == 'self_sampled' and trajectory.stop == 'finished'


def test_more_wrong_than_right_keeps_everything():
  assert len(self_sampled.collect(Draws(lambda i: i % 4 != 1), shapes, count=8, seed=0)) == 8


def test_a_painter_without_faults_teaches_nothing():
  assert self_sampled.collect(Draws(lambda i: False), shapes, count=4, seed=0) == []


def test_the_same_call_gives_the_same_list_and_another_seed_another():
  a, b, c = (self_sampled.collect(Draws(lambda i: i % 3 == 0), shapes, count=12, seed=s) for s in (1, 1, 2))
  assert [t.prompt for t in a] == [t.prompt for t in b]
  assert all(same(x, y) for t, u in zip(a, b, strict=True) for x, y in zip(t.steps, u.steps, strict=True))
  assert [t.prompt for t in a] != [t.prompt for t in c]


def test_one_picture_is_asked_for_in_one_call():
  painter = Draws(lambda i: True)
  self_sampled.collect(painter, shapes, count=3, seed=9, batch_size=2)
  assert painter.calls == [(9, 2, 1)]


def test_a_draft_that_was_not_painted_is_an_error():
  with pytest.raises(ValueError, match='No draft was painted'):
    self_sampled.collect(Draws(lambda i: True, draws_nothing=True), shapes, count=1, seed=0)
