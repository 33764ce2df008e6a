"""What counts as found, as fixed and as a false alarm, against samplers whose every answer is known."""

import dataclasses
import json

import numpy as np
import pytest

from pdgen import judges
from pdgen.evals import inspection, intervals
from pdgen.worlds import shapes
from pdgen.worlds.shapes import renderer, scenes

KINDS = ('wrong_color', 'missing', 'conflict_shape')
JUDGE = judges.judge('exact', shapes)
REFINE = 'The intermediate step is wrong. <refine> Repaint it. </refine>'
KEEP = 'The intermediate step is correct.'


def drafts(kind, seed, index):
  return shapes.injected(kind, seed=seed, index=index)


def right_picture(trajectory):
  return renderer.render(tuple(scenes.Object(*o) for o in trajectory.expected))


def answer(trajectory, **fields):
  *before, last = trajectory.steps
  return dataclasses.replace(trajectory, steps=(*before, dataclasses.replace(last, **fields)))


def judged(judge, paint=lambda index, t: None):
  """A sampler that paints missing drafts by `paint(index, trajectory)`, inspects the others by `judge(trajectory)`."""

  def sample(trajectories, seed):
    answers = []
    for index, t in enumerate(trajectories):
      if t.steps[-1].draft is None:
        answers.append(answer(t, draft=paint(index, t)))
        continue
      found, refined = judge(t)
      answers.append(answer(t, inspection=REFINE if found else KEEP, refined=refined))
    return answers

  return sample


def test_an_inspector_that_knows_everything_finds_and_fixes_all():
  def sees(t):
    wrong = t.provenance.error is not None
    return wrong, right_picture(t) if wrong else None

  report = inspection.injected(judged(sees), drafts, JUDGE, kinds=KINDS, per_kind=4)
  assert report.found == report.fixed == {kind: intervals.Rate(4, 4) for kind in KINDS}
  assert report.false_alarms == intervals.Rate(0, 4)


def test_an_inspector_that_rejects_everything_and_mends_nothing():
  report = inspection.injected(judged(lambda t: (True, renderer.blank())), drafts, JUDGE, kinds=KINDS, per_kind=3)
  assert report.found == {kind: intervals.Rate(3, 3) for kind in KINDS}
  assert report.fixed == {kind: intervals.Rate(0, 3) for kind in KINDS}
  assert report.false_alarms == intervals.Rate(3, 3)


def test_kinds_are_counted_apart_and_only_what_was_found_can_be_fixed():
  def sees_color_alone(t):
    found = t.provenance.error == 'wrong_color'
    return found, right_picture(t)

  report = inspection.injected(judged(sees_color_alone), drafts, JUDGE, kinds=KINDS, per_kind=3)
  assert report.found == {k: intervals.Rate(3 * (k == 'wrong_color'), 3) for k in KINDS}
  assert report.fixed == {k: intervals.Rate(3, 3) if k == 'wrong_color' else intervals.Rate(0, 0) for k in KINDS}


def test_ending_the_trajectory_after_a_wrong_draft_is_not_finding_it():
  report = inspection.injected(lambda trajectories, seed: trajectories, drafts, JUDGE, kinds=KINDS, per_kind=2)
  assert all(rate == intervals.Rate(0, 2) for rate in report.found.values())


def test_own_drafts_are_judged_by_the_detector_before_they_are_inspected():
  def judge(t):
    wrong = not np.array_equal(t.steps[-1].draft, right_picture(t))
    return wrong, right_picture(t)

  paint = lambda index, t: renderer.blank() if index % 4 == 0 else right_picture(t)
  report = inspection.own(judged(judge, paint), drafts, JUDGE, count=12)
  assert report.found == report.fixed == {'own': intervals.Rate(3, 3)}
  assert report.false_alarms == intervals.Rate(0, 9)


def test_the_seeds_of_painting_and_of_inspecting_differ():
  seeds = []

  def sample(trajectories, seed):
    seeds.append(seed)
    return [answer(t, draft=right_picture(t)) for t in trajectories]

  inspection.own(sample, drafts, JUDGE, count=1, seed=7)
  assert len(set(seeds)) == 2


def test_the_report_reads_as_a_table_and_as_json():
  report = inspection.injected(lambda t, seed: t, drafts, JUDGE, kinds=KINDS, per_kind=2)
  table = report.table()
  assert [line.split()[0] for line in table.splitlines()[1:]] == [*KINDS, 'false']
  assert '0.000 (0.000-0.658) of 2' in table and 'nothing to count' in table
  assert json.loads(json.dumps(report.to_json()))['false_alarms'] == {'hits': 0, 'total': 2}


@pytest.mark.parametrize('hits, total', [(0, 10), (10, 10), (3, 10), (0, 0), (97, 100), (1, 1)])
def test_wilson_interval_solves_its_equation(hits, total):
  """At both ends the observed share lies Z standard errors (of the end) away, unless the end is 0 or 1."""
  low, high = intervals.wilson(hits, total)
  assert 0 <= low <= high <= 1
  if total:
    share = hits / total
    assert low <= share <= high
    for end in (low, high):
      if 1e-9 < end < 1 - 1e-9:
        np.testing.assert_allclose((share - end) ** 2, intervals.Z**2 * end * (1 - end) / total, rtol=1e-9)
