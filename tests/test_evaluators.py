"""Every evaluator keeps the protocol: scores in memory and in a folder, resumable, one run a folder."""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest

from pdgen import judges
from pdgen.core import config as config_lib
from pdgen.core.trajectory import Step, Trajectory
from pdgen.evals import base, geneval, inspection, intervals
from pdgen.worlds import shapes
from pdgen.worlds.shapes import renderer, scenes

EXACT = judges.judge('exact', shapes)
KINDS = ('wrong_color', 'missing')


class Killed(BaseException):
  """The process is gone."""


@dataclasses.dataclass(frozen=True)
class Painted:
  """What a painter returns."""

  trajectories: list[Trajectory]
  timings: dict[str, float]


class Paints:
  """A painter whose work is a function of prompt and seed. It is killed in the call of a number, counted from 0."""

  config = config_lib.Config()

  def __init__(self, *, killed_in=None):
    self.calls, self.killed_in = 0, killed_in

  def sample(self, prompts, *, mode=None, seed: int | Sequence[int] = 0, batch_size=None, pictures=None):
    if self.calls == self.killed_in:
      raise Killed
    self.calls += 1
    seeds = range(seed, seed + len(prompts)) if isinstance(seed, int) else seed
    painted = [self.paint(p, s) for p, s in zip(prompts, seeds, strict=True)]
    return Painted(painted, {'seconds': 0.5, 'pictures': len(painted)})

  def paint(self, prompt, seed):
    if isinstance(prompt, str):
      # Every other prompt of a single shape is painted right.
      name = prompt.split()[-1] if seed % 2 and prompt.split()[-1] in shapes.SHAPES else 'ring'
      scene = (scenes.Object(name, 'red', seed % 9),)
      return Trajectory(prompt=prompt, steps=(Step(plan='It.', draft=renderer.render(scene)),))
    *before, last = prompt.steps
    right = renderer.render(tuple(scenes.Object(*o) for o in prompt.expected))
    if last.draft is None:
      last = dataclasses.replace(last, draft=right if seed % 3 else renderer.blank())
    elif seed % 2:
      last = dataclasses.replace(last, inspection='No. <refine> Again. </refine>', refined=right)
    else:
      last = dataclasses.replace(last, inspection='Yes.')
    return dataclasses.replace(prompt, steps=(*before, last))


def make_geneval(**changes):
  rows = tuple(shapes.prompts('heldout', per_task=2))
  options = dict(prompts=base.PromptSet('heldout', rows), detector=EXACT, batch_size=1)
  return geneval.GenEval(**{**options, **changes})


def make_inspection(**changes):
  drafts = lambda kind, seed, index: shapes.injected(kind, seed=seed, index=index)
  return inspection.Inspection(**{**dict(drafts=drafts, judge=EXACT, kinds=KINDS, per_kind=4, own_drafts=9), **changes})


MAKE = {'geneval': make_geneval, 'inspection': make_inspection}


def files(folder):
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.mark.parametrize('make', MAKE.values(), ids=MAKE)
def test_scores_are_the_same_in_memory_and_in_a_folder(make, tmp_path):
  evaluator: base.Evaluator = make()
  without, kept = evaluator.run(Paints(), None), evaluator.run(Paints(), tmp_path / 'out')
  assert without.values == kept.values and list(map(dict, without.rows)) == list(map(dict, kept.rows))
  assert without.name == evaluator.name and without.answered == without.asked > 0
  for name, estimate in without.values.items():
    assert isinstance(estimate, intervals.Estimate) and estimate.low <= estimate.high
    assert estimate.count == 0 or estimate.low <= estimate.value <= estimate.high, name
  assert 0 < sum(0 < e.value < 1 for e in without.values.values())
  # In training: plain numbers under the evaluator's name. For people: a table. For programs: JSON.
  counted = {f'{evaluator.name}/{name}' for name, e in without.values.items() if e.count}
  assert counted <= set(without.scalars()) and all(type(v) is float for v in without.scalars().values())
  assert len(without.table().splitlines()) > 3 and 'rest on' not in without.table()
  told = json.loads(json.dumps(without.to_json(), allow_nan=False))
  assert set(told['values']) == set(without.values) and len(told['rows']) == len(without.rows)


@pytest.mark.parametrize('make', MAKE.values(), ids=MAKE)
@pytest.mark.parametrize('call', [0, 1, 2])
def test_killed_in_any_call_it_goes_on_to_the_same_files(make, call, tmp_path):
  make().run(whole := Paints(), tmp_path / 'whole')
  assert whole.calls == 3
  with pytest.raises(Killed):
    make().run(Paints(killed_in=call), tmp_path / 'killed')
  scores = make().run(again := Paints(), tmp_path / 'killed')
  assert files(tmp_path / 'killed') == files(tmp_path / 'whole')
  assert scores.values == make().run(Paints(killed_in=0), tmp_path / 'whole').values  # Asks nothing any more.
  # A call that was answered is not asked again; the two of own drafts are one answer.
  assert again.calls == (3 - call if make is make_geneval else 3 - min(call, 1))


def test_an_inspection_is_written_batch_by_batch(tmp_path):
  """Killed at any call it loses one batch at most, and its answers are those of one call."""
  whole = make_inspection().run(Paints(), None)
  with pytest.raises(Killed):
    make_inspection(batch_size=5).run(Paints(killed_in=5), tmp_path / 'out')  # In the second of two calls of a batch.
  kept = [(tmp_path / 'out' / f'{half}.jsonl').read_text().count('\n') for half in ('injected', 'own')]
  assert kept == [12, 5]
  again = Paints()
  scores = make_inspection(batch_size=5).run(again, tmp_path / 'out')
  assert again.calls == 2 and scores.values == whole.values and list(scores.rows) == list(whole.rows)


def test_half_a_file_of_answers_is_asked_for_again_or_refused(tmp_path):
  whole = make_inspection().run(Paints(), tmp_path)
  answers = tmp_path / 'injected.jsonl'
  lines = answers.read_text().splitlines(keepends=True)
  answers.write_text(''.join(lines[:4]))
  assert make_inspection().run(Paints(), tmp_path).values == whole.values
  answers.write_text(''.join(lines)[:-9])
  with pytest.raises(ValueError, match='injected.jsonl, line 12: no JSON object'):
    make_inspection().run(Paints(), tmp_path)
  answers.write_text(''.join(lines + lines[:1]))
  with pytest.raises(ValueError, match='holds 13 answers to 12 questions'):
    make_inspection().run(Paints(), tmp_path)
  (tmp_path / 'run.json').write_text('{"name"')
  with pytest.raises(base.AnotherRunError, match='run.json is damaged'):
    make_inspection().run(Paints(), tmp_path)


def test_a_folder_with_more_prompts_than_the_set_is_not_scored_as_it(tmp_path):
  make_geneval().run(Paints(), tmp_path)
  row, picture = shapes.prompts('heldout', per_task=1)[0], renderer.blank()
  geneval.write_prompt(tmp_path, 12, row, [picture])
  with pytest.raises(base.AnotherRunError, match='holds 13 prompts, not 12'):
    make_geneval().run(Paints(), tmp_path)


def test_control_characters_of_a_task_are_shown_escaped():
  scores = base.Scores(name='x', values={'a\x1b[31m': intervals.rate([True]).estimate}, asked=1, answered=1)
  assert scores.table().startswith(r'a\x1b[31m') and '\x1b' not in scores.table()


@pytest.mark.parametrize('make', MAKE.values(), ids=MAKE)
def test_a_folder_is_of_one_run(make, tmp_path):
  make().run(Paints(), tmp_path / 'out')
  before = files(tmp_path / 'out')
  with pytest.raises(base.AnotherRunError, match='seed 0 there, 1 given'):
    make(seed=1).run(Paints(), tmp_path / 'out')
  with pytest.raises(base.AnotherRunError, match="checkpoint '' there, 'other' given"):
    make(checkpoint='other').run(Paints(), tmp_path / 'out')
  painter = Paints()
  painter.config = dataclasses.replace(
    painter.config, sampling=dataclasses.replace(painter.config.sampling, flow_steps=99)
  )
  with pytest.raises(base.AnotherRunError, match='sampling'):
    make().run(painter, tmp_path / 'out')
  assert files(tmp_path / 'out') == before
  (tmp_path / 'theirs').mkdir()
  (tmp_path / 'theirs' / 'thesis.txt').touch()
  with pytest.raises(base.AnotherRunError, match='is not empty'):
    make().run(Paints(), tmp_path / 'theirs')
  assert list(files(tmp_path / 'theirs').values()) == [b'']


def test_a_strip_shows_the_first_of_each_task():
  strip = make_geneval().run(Paints(), None).strip
  assert strip is not None
  rows = 6 * (2 * 32 + 8)
  assert strip.dtype == np.uint8 and strip.shape[0] == rows

  # Nothing to see, nothing to show.
  class PaintsNothing(Paints):
    def paint(self, prompt, seed):
      return Trajectory(prompt=prompt, steps=(), stop='token_cap')

  scores = make_geneval().run(PaintsNothing(), None)
  assert scores.strip is None and scores.details == {'eval/finished': 0.0, 'eval/pictures': 0.0}
  assert scores.values['overall'].value == 0


def test_scores_say_how_many_of_the_prompts_they_rest_on():
  rate = intervals.rate([True, False]).estimate
  scores = base.Scores(name='x', values={'a': rate, 'b': intervals.rate([]).estimate}, asked=3, answered=2)
  assert scores.table().splitlines() == [
    f'{"a":<24} 0.500 ({rate.low:.3f}-{rate.high:.3f}) of 2',
    f'{"b":<24} nothing to count',
    'These figures rest on 2 of 3.',
  ]
  assert scores.scalars() == {'x/a': 0.5}
  assert scores.to_json()['values']['b']['value'] is None


def test_prompts_are_read_in_the_official_row_format(tmp_path):
  rows = shapes.prompts('heldout', per_task=1)
  file = tmp_path / 'evaluation_metadata.jsonl'
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows) + '\n')
  read = base.PromptSet.read(file)
  assert (read.name, list(read.rows), read.texts) == ('evaluation_metadata', rows, [r['prompt'] for r in rows])
  assert read.digest == base.PromptSet('other', tuple(rows)).digest != base.PromptSet('a', tuple(rows[1:])).digest
  file.write_text('{"Prompt": "a"}\n{"prompt": "b"}\n')
  with pytest.raises(ValueError, match="line 2: no JSON object with 'Prompt'"):
    base.PromptSet.read(file, key='Prompt')
