"""The example of docs/add_an_evaluator.md: it runs, goes on after a kill, and names what it cannot judge."""

import pathlib
import re

import numpy as np
import pytest

from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import base, report_files
from tests.support import geneval_run

DOCUMENT = pathlib.Path(__file__).parents[1] / 'docs' / 'add_an_evaluator.md'


class Painter(geneval_run.Painter):
  """Paints red all that it is told to paint in any colour."""

  def __init__(self, *, killed_after=None):
    self.painted, self.killed_after = [], killed_after

  def paint(self, prompt, seed):
    if len(self.painted) == self.killed_after:
      raise KeyboardInterrupt
    self.painted.append((prompt, seed))
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[..., 0] = 200 if 'a ' in prompt else 100
    return trajectory_lib.Trajectory(prompt=prompt, steps=(trajectory_lib.Step(plan='It.', draft=picture),))


def test_the_example_is_an_evaluator(tmp_path):
  (code,) = re.findall(r'```python\n(.*?)```', DOCUMENT.read_text(encoding='utf-8'), re.DOTALL)
  namespace = {'__name__': 'example'}
  exec(compile(code, str(DOCUMENT), 'exec'), namespace)
  prompts = base.PromptSet('three', tuple({'prompt': p} for p in ('a red ring', 'a blue ring', 'rings')))
  evaluator = namespace['Redness'](prompts=prompts)
  scores = evaluator.run(Painter(), tmp_path / 'whole')
  assert scores.values['right'].value == pytest.approx(2 / 3) and scores.answered == scores.asked == 3
  with pytest.raises(KeyboardInterrupt):
    evaluator.run(Painter(killed_after=2), tmp_path / 'out')
  assert evaluator.run(Painter(), tmp_path / 'out').values == scores.values
  files = lambda folder: {p.name: p.read_bytes() for p in folder.iterdir()}
  assert files(tmp_path / 'out') == files(tmp_path / 'whole')
  (tmp_path / 'out' / '00001.png').write_bytes(b'GIF89')
  scores = evaluator.run(again := Painter(), tmp_path / 'out')
  assert (scores.answered, scores.asked, len(scores.problems)) == (2, 3, 1) and not again.painted
  assert 'These figures rest on 2 of 3.' in scores.table() and '00001.png' in scores.table()
  report_files.write(tmp_path / 'out', scores)
  with pytest.raises(base.AnotherRunError, match='seed 0 there, 1 given'):
    namespace['Redness'](prompts=prompts, seed=1).run(Painter(), tmp_path / 'out')
