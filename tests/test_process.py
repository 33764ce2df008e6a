"""What the process is worth: figures of hand-made trajectories, budgets, folders that go on, the oracle of shapes."""

import dataclasses
import json
import re

import numpy as np
import pytest

from pdgen import evaluate, judges
from pdgen.core import config, tags
from pdgen.core.trajectory import Step, Trajectory
from pdgen.evals import base, intervals, process, process_figures
from pdgen.worlds import shapes
from pdgen.worlds.shapes import language, renderer, scenes

EXACT = judges.judge('exact', shapes)
ROWS = tuple(r for r in shapes.prompts('heldout', per_task=6) if r['tag'] in ('single_object', 'colors'))
REFINE = 'This step is wrong. <refine>Repaint it.</refine>'
KEEP = 'This step is correct.'


class Killed(BaseException):
  """The process is gone."""


@dataclasses.dataclass(frozen=True)
class Painted:
  """What a painter returns."""

  trajectories: list[Trajectory]
  timings: dict[str, float]
  chosen: list[range]


def scene(prompt, *, wrong=False):
  [clause] = shapes.parse(prompt).include
  other = {'red': 'blue', 'blue': 'red'}.get(clause.color or '', 'black')
  shape = next(s for s in scenes.SHAPES if s != clause.name) if wrong and clause.color is None else clause.name
  return (scenes.Object(shape, other if wrong else clause.color or 'red', 3),)


def plan(objects):
  return f'<ins>Add it.</ins><des>The image shows {language.named(objects)} at the {objects[0].place}.</des>'


class Paints:
  """A painter in whose script a prompt's number says what its draft, its inspection and its refined picture are.

  0 right and kept; 1 wrong and overlooked; 2 wrong, rejected, fixed; 3 wrong, rejected, not fixed; 4 right, rejected,
  spoiled; 5 right, rejected, still right.
  """

  def __init__(self, *, killed_in=None, sampling=None):
    self.config = config.Config(sampling=sampling or config.SamplingConfig())
    self.killed_in, self.calls = killed_in, []

  def sample(self, prompts, *, mode=None, seed=0, sampling=None, batch_size=None, pictures=None, inspector=None):
    if len(self.calls) == self.killed_in:
      raise Killed
    self.calls.append((sampling, list(seed)))
    painted = [self.paint(p, s % 6, sampling, inspector) for p, s in zip(prompts, seed, strict=True)]
    timings = {'seconds': len(prompts) * 0.5, 'compile_calls': 0}
    return Painted(painted, timings, [range(10 + s) for s in seed])

  def paint(self, prompt, case, sampling, inspector):
    right, wrong = (renderer.render(scene(prompt, wrong=w)) for w in (False, True))
    step = Step(plan=plan(scene(prompt)), draft=wrong if case in (1, 2, 3) else right)
    if sampling.inspection != 'off':
      text = REFINE if case >= 2 else KEEP
      if sampling.inspection == 'forced':
        text = REFINE
      if inspector is not None:
        text = inspector(Trajectory(prompt=prompt, steps=(step,), stop=None))
      if sampling.max_edits == 0:
        text = KEEP
      step = dataclasses.replace(step, inspection=text)
      if step.rejected:
        step = dataclasses.replace(step, refined=wrong if case in (3, 4) else right)
    return Trajectory(prompt=prompt, steps=(step,))


def evaluator(**changes):
  options = dict(prompts=base.PromptSet('heldout', ROWS), detector=EXACT, inspect=shapes.inspect, batch_size=5)
  return process.Process(**{**options, **changes})


@pytest.fixture(scope='module')
def scores():
  return evaluator().run(Paints(), None)


def test_figures_of_known_trajectories(scores):
  """Twelve prompts, two of each case."""
  value = lambda name: (scores.values[name].value, scores.values[name].count)
  # Without edits the wrong drafts stay: cases 1, 2, 3. As it likes: 1 and 3 wrong, 4 spoiled.
  assert value('edits_0/accuracy') == (0.5, 12) and value('free/accuracy') == (0.5, 12)
  assert value('free/gain') == (0.0, 12) and 'edits_0/gain' not in scores.values
  assert value('free/repair') == (2 / 6, 6) and value('free/damage') == (2 / 6, 6)
  assert value('free/drafts_right') == (0.5, 12) and value('free/refined_right') == (0.5, 8)
  assert value('free/recall') == (4 / 6, 6) and value('free/precision') == (4 / 8, 8)
  assert value('free/false_alarms') == (4 / 6, 6)
  assert value('free/fixed') == (2 / 6, 6) and value('free/spoiled') == (2 / 6, 6)
  assert value('free/own_repair') == (2 / 6, 6) and value('free/own_damage') == (2 / 6, 6)
  assert value('free/pictures') == (20 / 12, 12) and value('free/edits') == (8 / 12, 12)
  assert value('free/evaluations') == (8 * 20 / 12, 12)
  assert value('free/tokens') == (15.5, 12) and value('free/seconds') == (6 / 20, 20)
  # The oracle rejects what is wrong alone: 1 and 2 are fixed, and nothing is spoiled.
  assert value('oracle/accuracy') == (10 / 12, 12) and value('oracle/false_alarms') == (0, 6)
  assert value('oracle/recall') == (1, 6) and value('oracle/repair') == (4 / 6, 6) and value('oracle/damage') == (0, 6)
  assert value('oracle/gain') == (4 / 12, 12)
  # Approved as it is, a draft stays: as without edits, and what is gained is the same against both.
  assert value('approved/accuracy') == (0.5, 12) and value('approved/edits') == (0, 12)
  assert value('oracle/repair/approved') == (4 / 6, 6) and value('free/damage/approved') == (2 / 6, 6)
  assert value('forced/precision') == (0.5, 12) and value('forced/recall') == (1, 6)
  assert value('no_inspection/finished') == (1, 12) and value('no_inspection/recall') == (0, 6)
  assert {n.split('/recall/')[1] for n in scores.values if '/recall/' in n} == {'wrong_color', 'wrong_shape'}
  for name, e in scores.values.items():
    assert e.count == 0 or e.low <= e.value <= e.high, name
  assert json.loads(json.dumps(scores.to_json(), allow_nan=False))['answered'] == 12


def test_the_table_has_a_line_a_setting_and_no_figure_without_its_count(scores):
  table = scores.table()
  assert [line.split()[0] for line in table.split('\n\n')[0].splitlines()[2:]] == list(process.SETTINGS)
  assert '0.333 (0.097 to 0.700) of 6' in table and 'nan' not in table


def test_budgets_paint_what_needs_more_edits_alone():
  painter = Paints()
  scores = evaluator(settings=('free', 'edits_0', 'edits_1')).run(painter, None)
  painted = [(c.max_edits, seeds) for c, seeds in painter.calls]
  assert [s for most, seeds in painted if most == config.MOST for s in seeds] == list(range(12))
  assert [s for most, seeds in painted if most == 0 for s in seeds] == [s for s in range(12) if s % 6 >= 2]
  assert not [most for most, _ in painted if most == 1]
  rows = {s: [dict(r, setting='') for r in scores.rows if r['setting'] == s] for s in ('free', 'edits_1')}
  assert rows['free'] == rows['edits_1']
  # Without the grammar a text may hold `<refine>` and no picture follow: all are painted.
  loose = Paints(sampling=config.SamplingConfig(grammar=False))
  evaluator(settings=('free', 'edits_0')).run(loose, None)
  assert [s for c, seeds in loose.calls if c.max_edits == 0 for s in seeds] == list(range(12))


def files(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize('call', [0, 2, 4, 8])
def test_killed_in_any_call_it_goes_on_to_the_same_files(call, scores, tmp_path):
  whole = evaluator().run(Paints(), tmp_path / 'whole')
  # As text: a figure of nothing is NaN, which equals itself in no dataclass from Python 3.13 on.
  assert repr(whole.values) == repr(scores.values) and list(whole.rows) == list(scores.rows)
  with pytest.raises(Killed):
    evaluator().run(Paints(killed_in=call), tmp_path / 'killed')
  assert repr(evaluator().run(again := Paints(), tmp_path / 'killed').values) == repr(whole.values)
  assert files(tmp_path / 'killed') == files(tmp_path / 'whole') and len(again.calls) == 17 - call
  evaluator().run(Paints(killed_in=0), tmp_path / 'killed')  # Paints nothing any more.


def test_a_folder_takes_more_settings_and_no_other_run(tmp_path):
  evaluator(settings=('free', 'edits_0')).run(Paints(), tmp_path)
  evaluator(settings=('free', 'edits_0', 'oracle')).run(more := Paints(), tmp_path)
  assert {c.inspection for c, _ in more.calls} == {'dictated'}
  with pytest.raises(base.AnotherRunError, match='seed 0 there, 1 given'):
    evaluator(seed=1).run(Paints(), tmp_path)
  (tmp_path / 'free.jsonl').write_text((tmp_path / 'free.jsonl').read_text()[:-9])
  with pytest.raises(ValueError, match='free.jsonl, line 12: no JSON object'):
    evaluator().run(Paints(), tmp_path)


def test_without_an_inspecting_world_paintings_are_scored_alone():
  scores = evaluator(inspect=None, settings=('free', 'edits_0')).run(Paints(), None)
  assert scores.values['free/repair'].count == 6 and not [n for n in scores.values if 'recall' in n]
  assert 'Steps' not in scores.table()


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    (dict(settings=('free', 'edits_0', 'edit_1')), "Unknown setting 'edit_1'. Known: ['free', 'edits_0'"),
    (dict(settings=('free', 'edits_-1', 'edits_0')), "Unknown setting 'edits_-1'"),
    (dict(settings=('free',)), "The other settings are compared with 'edits_0'"),
    (
      dict(inspect=None, settings=('free', 'edits_0', 'approved')),
      "The setting 'approved' needs a world that inspects",
    ),
    (dict(inspect=None), "The setting 'oracle' needs a world that inspects"),
  ],
)
def test_settings_that_cannot_be_are_named(options, words):
  with pytest.raises(ValueError, match=re.escape(words)) as error:
    evaluator(**options)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('sampling', [dict(max_edits=1), dict(inspection='off')])
def test_a_config_that_varies_what_the_settings_do_is_refused(sampling):
  with pytest.raises(ValueError, match='are what the settings vary'):
    evaluator().run(Paints(sampling=config.SamplingConfig(**sampling)), None)


def test_the_command_line_refuses_in_one_line(capsys):
  for flags, words in (
    (['--settings=free,edits_0,orcale'], "Unknown setting 'orcale'"),
    (['--per_task=0'], 'out of range'),
    (['--sampling.inspection=sometimes'], "Unknown inspection 'sometimes'"),
  ):
    with pytest.raises(SystemExit) as stop:
      evaluate.main(['process', *flags])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and error.count('\n') == 1


def test_steps_that_a_cap_cut_are_not_counted():
  step = {'errors': ['extra'], 'inspected': False, 'rejected': False, 'refined': None}
  row = dict(tag='a', correct=True, edits=0, pictures=1, tokens=1, stop='picture_cap', well_formed=False, seconds=1.0)
  count = lambda **changes: (
    process_figures.figures(
      {'free': [{**row, 'steps': [step], **changes}]}, sampling=config.SamplingConfig(flow_steps=1), references=['free']
    )['free/recall'].count
  )
  assert count() == 0 and count(stop='finished') == 1
  assert count(steps=[step, dict(step, inspected=True)]) == 2


GOOD = Step(plan='<ins>a</ins><des>b</des>', draft=renderer.blank(), inspection=KEEP)


@pytest.mark.parametrize(
  ('step', 'is_whole'),
  [
    (GOOD, True),
    (dataclasses.replace(GOOD, inspection=None), True),
    (dataclasses.replace(GOOD, inspection=REFINE, refined=renderer.blank()), True),
    (dataclasses.replace(GOOD, inspection=REFINE, refined=renderer.blank(), corrected_plan=GOOD.plan), True),
    (dataclasses.replace(GOOD, inspection=REFINE), False),
    (dataclasses.replace(GOOD, refined=renderer.blank()), False),
    (dataclasses.replace(GOOD, inspection=KEEP + '<refine>'), False),
    (dataclasses.replace(GOOD, inspection=REFINE + REFINE, refined=renderer.blank()), False),
    (dataclasses.replace(GOOD, plan='a red ring'), False),
    (dataclasses.replace(GOOD, plan='<ins>a<ins></ins><des>b</des>'), False),
    (dataclasses.replace(GOOD, plan=None), False),
    (dataclasses.replace(GOOD, draft=None, inspection=None), False),
  ],
)
def test_well_formed(step, is_whole):
  assert process.is_well_formed(Trajectory(prompt='a', steps=(step,))) == is_whole
  assert not process.is_well_formed(Trajectory(prompt='a', steps=(step,), stop='token_cap'))


# --- intervals ---


def test_the_paired_interval_is_narrower_than_that_of_independent_prompts():
  """Two settings that differ in 2 of 100 prompts: the interval of their difference does not see what they share."""
  e = intervals.ratio([1, 1] + [0] * 98)
  assert e.value == 0.02 and 0 <= e.low < 0.02 < e.high < 0.06
  assert intervals.ratio([1, 1] + [0] * 98) == e
  assert intervals.ratio([], []).count == 0 and np.isnan(intervals.ratio([0], [0]).value)


def test_a_clustered_rate_is_wider_than_wilsons_where_trials_of_a_prompt_agree():
  alike, apart = intervals.cautious_rate([5, 0] * 10, [5, 5] * 10), intervals.cautious_rate([1, 0] * 50, [1, 1] * 50)
  assert alike.value == apart.value == 0.5 and alike.count == apart.count == 100
  assert alike.high - alike.low > 1.5 * (apart.high - apart.low)
  certain = intervals.cautious_rate([2] * 10, [2] * 10)
  assert certain.low == intervals.wilson(20, 20)[0] < 1 == certain.high


# --- the oracle of the shapes world ---


@pytest.mark.parametrize('kind', [None, *shapes.ERROR_KINDS])
def test_the_oracle_finds_every_injected_error_and_says_so(kind):
  for index in range(8):
    asked = shapes.injected(kind, seed=1, index=index)
    last = asked.steps[-1]
    before = asked.steps[-2].plan if len(asked.steps) > 1 else None
    got = shapes.inspect(asked.prompt, last.plan, last.draft, before=before)
    assert (kind in got.errors) if kind else got.errors == ()
    assert (tags.refine_instruction(got.text) is not None) == (kind is not None)
    assert not re.search('wrong|refine', got.approval)
    if kind is None or not kind.startswith('conflict'):
      assert set(shapes.planned(last.plan)) == set(asked.expected)


def test_the_oracle_approves_the_worlds_own_trajectories_in_its_words():
  for index in range(40):
    made, before = shapes.trajectory('multi_turn', seed=2, index=index), None
    for step in made.steps:
      got = shapes.inspect(made.prompt, step.plan, step.draft, before=before)
      assert got.errors == ()
      # What is compared, up to the order of objects, and what is still missing.
      told, wanted = (
        sorted(re.findall(r'shown [^:]+: \w+|painting is complete', t)) for t in (got.text, step.inspection)
      )
      assert [x for x in told if 'shown' in x] == [x for x in wanted if 'shown' in x]
      before = step.plan


def test_plans_in_other_words_are_not_read():
  ring = renderer.render((scenes.Object('ring', 'red', 0),))
  for text in (
    None,
    'a ring',
    '<ins>a</ins><des>A ring.</des>',
    plan(scene('a photo of a ring')).replace('a red', 'two red'),
  ):
    assert shapes.planned(text) is None
    assert shapes.inspect('a photo of a ring', text, ring).errors == ('unreadable_plan',)
  with pytest.raises(ValueError, match="'a cat' is no prompt of the shapes world"):
    shapes.inspect('a cat', None, ring)
