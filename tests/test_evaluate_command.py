"""pdgen.evaluate: both halves of GenEval from a file of prompts, pages of evaluators, errors before any painting."""

import html.parser
import json

import pytest

from pdgen import evaluate
from pdgen import flags as flags_lib
from pdgen.evals import geneval
from pdgen.worlds import shapes
from pdgen.worlds.shapes import renderer, scenes
from tests.support import geneval_run


class Painter(geneval_run.Painter):
  """Paints a red ring for every other prompt, a blank for the rest."""

  def paint(self, prompt, seed):
    picture = renderer.render((scenes.Object('ring', 'red', 4),)) if seed % 2 else renderer.blank()
    return geneval_run.trajectory_lib.Trajectory(
      prompt=prompt, steps=(geneval_run.trajectory_lib.Step(plan='It.', draft=picture),)
    )


@pytest.fixture
def loaded(monkeypatch):
  """Stands for every checkpoint; notes whether a world was asked for."""
  asked = []

  def load(parser, flags, *, needs_world=True):
    asked.append(needs_world)
    return Painter(), shapes if needs_world else None

  monkeypatch.setattr(flags_lib, 'load', load)
  return asked


RINGS = [
  {'tag': 'colors', 'include': [{'class': 'ring', 'count': 1, 'color': 'red'}], 'prompt': f'ring {i}'} for i in range(5)
]


def written(tmp_path, rows):
  file = tmp_path / 'evaluation_metadata.jsonl'
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return file


def test_one_machine_paints_and_another_scores(loaded, tmp_path, capsys):
  file, out = written(tmp_path, RINGS), tmp_path / 'out'
  command = ['geneval', f'--prompts={file}', f'--out={out}', '--world=shapes']
  evaluate.main([*command, '--samples=3', '--generate_only', '--batch_size=4'])
  assert '15 trajectories' in capsys.readouterr().out and loaded == [False]
  assert len(list(out.glob('*/samples/*.png'))) == 15 and not (out / 'results.jsonl').exists()
  evaluate.main([*command, '--score_only'])
  assert loaded == [False]  # No checkpoint is needed to score.
  printed = capsys.readouterr().out
  assert '(7 / 15)' in printed and '(5 / 5)' in printed  # Pictures, and prompts of which any picture is right.
  summary = geneval.summary(geneval.read_results(out).results)
  assert (summary.images, summary.prompts, summary.correct_prompts) == (15, 5, 1.0)
  whole = json.loads((out / 'scores.json').read_text())
  evaluate.main([*command, '--samples=3'])  # Both halves: nothing is left to paint.
  assert 'Nothing was left to paint.' in capsys.readouterr().out
  assert json.loads((out / 'scores.json').read_text())['values'] == whole['values']


class Page(html.parser.HTMLParser):
  """Counts tags and finds what is opened and not closed."""

  def __init__(self, text):
    super().__init__()
    self.open, self.sources = [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    if tag not in ('meta', 'img', 'rect', 'br'):
      self.open.append(tag)
    self.sources += [value for name, value in attributes if name in ('src', 'href')]

  def handle_endtag(self, tag):
    if tag not in ('rect',):
      assert self.open.pop() == tag


def test_the_page_is_well_formed_and_shows_what_is_in_the_folder(loaded, tmp_path):
  file, out = written(tmp_path, RINGS), tmp_path / 'out'
  evaluate.main(['geneval', f'--prompts={file}', f'--out={out}', '--world=shapes'])
  page = Page((out / 'index.html').read_text())
  assert page.open == [] and len(page.sources) == 5 and all((out / source).is_file() for source in page.sources)
  told = json.loads((out / 'scores.json').read_text())
  assert 'published_by_others' not in told  # An exact detector is of a small world: nobody has published that.


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['geneval', '--score_only'], '--score_only needs --out'),
    (['geneval', '--generate_only'], '--generate_only needs --out'),
    (['geneval', '--generate_only', '--score_only'], 'not allowed with argument'),
    (['geneval', '--score_only', '--out={0}/o'], 'needs a world'),
    (['geneval', '--score_only', '--out={0}/o', '--world=shapes'], 'No GenEval pictures in'),
    (['geneval', '--score_only', '--out={0}/o', '--world=x'], "no world 'x'"),
    (['geneval', '--score_only', '--out={0}/o', '--detector=x'], "Unknown detector 'x'. Known: ['exact', 'mask2"),
    (['geneval', '--prompts={0}/no_tag.jsonl', '--world=shapes'], "line 2: no JSON object with 'prompt', 'tag'"),
    (['geneval', '--prompts={0}/absent.jsonl'], 'absent.jsonl'),
    (['geneval', '--samples=0'], '--samples: 0 is out of range'),
    (['wise', '--samples=2', '--prompts=x'], 'unrecognized arguments: --samples=2'),
    (['wise'], 'the following arguments are required: --prompts'),
    (['compbench', '--prompts={0}/no_tag.jsonl', '--out={0}/o'], '--category says of which category'),
    (['geneval2', '--prompts={0}/no_tag.jsonl', '--out={0}/o'], "no JSON object with 'prompt', 'atom_count'"),
  ],
)
def test_what_is_wrong_is_one_line_before_anything_is_painted(loaded, arguments, words, tmp_path, capsys):
  (tmp_path / 'no_tag.jsonl').write_text(json.dumps(RINGS[0]) + '\n{"prompt": "a", "include": []}\n')
  with pytest.raises(SystemExit) as ended:
    evaluate.main([argument.format(tmp_path) for argument in arguments])
  told = capsys.readouterr().err
  assert ended.value.code == 2 and words in told and len(told.splitlines()) == 1
  assert not list(tmp_path.glob('o/*/samples'))


def test_inspection_leaves_a_page_of_figures(loaded, tmp_path, monkeypatch):
  class Says(Painter):
    def sample(self, prompts, **settings):
      return geneval_run.Painted(
        [p.with_text('Yes.') if p.steps[-1].draft is not None else self.draft(p) for p in prompts], {}
      )

    def draft(self, prompt):
      return prompt.with_picture(renderer.blank())

  monkeypatch.setattr(flags_lib, 'load', lambda *args, **settings: (Says(), shapes))
  out = tmp_path / 'out'
  evaluate.main(['inspection', '--per_kind=1', '--drafts=2', f'--out={out}'])
  assert Page((out / 'index.html').read_text()).open == []
  assert '| injected/false_alarms | 0.0000 |' in (out / 'scores.md').read_text()
