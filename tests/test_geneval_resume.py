"""GenEval folders: killed in painting and in scoring, folders of other systems, and all that may be wrong with them."""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from pdgen.evals import base, geneval, geneval_folder, intervals, report_files
from pdgen.judges import base as judges_base
from tests.support import geneval_run

ROOT = pathlib.Path(__file__).parents[1]


def files(folder):
  return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def start(out, half, most):
  command = [sys.executable, '-m', 'tests.support.geneval_run', str(out), half, str(most)]
  return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, 'PYTHONPATH': str(ROOT)})


def kill_when(process, done, wanted):
  """Kills a process as soon as `done` counts as much as is wanted. Returns whether it was still running."""
  while process.poll() is None and done() < wanted:
    time.sleep(0.003)
  running = process.poll() is None
  process.kill()
  process.wait()
  return running


@pytest.mark.parametrize('half', ['paint', 'score'])
def test_killed_five_times_it_leaves_the_files_of_one_run(half, tmp_path):
  whole, out = tmp_path / 'whole', tmp_path / 'out'
  geneval_run.main(whole, 'both')
  if half == 'score':
    geneval_run.main(out, 'paint')
    count = lambda: (out / 'scored.jsonl').read_bytes().count(b'\n') if (out / 'scored.jsonl').is_file() else 0
  else:
    count = lambda: len(list(out.glob('*/samples/*.png')))
  rng = random.Random(0)
  kills = 0
  for wanted in (0, 3, 9, 16, 24):
    process = start(out, half, wanted - count() + 3)
    if wanted == 0:
      time.sleep(rng.random())  # Perhaps before anything is there.
    kills += kill_when(process, count, wanted)
  assert kills == 5 and 24 <= count() < 32
  geneval_run.main(out, 'score' if half == 'score' else 'both')
  assert files(out) == files(whole)
  assert 'results.jsonl' in files(out) and len(files(out)) == 4 + 32 + 3


def test_a_line_that_a_kill_has_cut_is_scored_again_and_no_other(tmp_path):
  geneval_run.main(tmp_path, 'both')
  whole = files(tmp_path)
  log = tmp_path / 'scored.jsonl'
  lines = log.read_text().splitlines(keepends=True)
  log.write_text(''.join(lines[:20]) + lines[20][:40])
  asked = []

  class Counts(geneval_run.Detector):
    def detect(self, picture):
      asked.append(picture)
      return super().detect(picture)

  geneval.score_folder(tmp_path, Counts())
  assert len(asked) == 12 and files(tmp_path) == whole
  geneval.score_folder(tmp_path, Counts())
  assert len(asked) == 12
  # A picture that was replaced is seen again; so are all by another detector.
  Image.new('RGB', (8, 8)).save(tmp_path / '00001/samples/0002.png')
  geneval.score_folder(tmp_path, Counts())
  assert len(asked) == 13
  Counts.identity = 'other'
  geneval.score_folder(tmp_path, Counts())
  assert len(asked) == 13 + 32


def test_more_samples_leave_those_that_are_there(tmp_path):
  four = geneval.GenEval(prompts=base.PromptSet('four', geneval_run.ROWS), detector=geneval_run.Detector(), samples=1)
  four.run(geneval_run.Painter(), tmp_path)
  first = files(tmp_path)
  more = geneval.GenEval(prompts=base.PromptSet('four', geneval_run.ROWS), detector=geneval_run.Detector(), samples=3)
  scores = more.run(geneval_run.Painter(), tmp_path)
  now = files(tmp_path)
  assert all(now[name] == first[name] for name in first if name.endswith(('.png', 'run.json', 'metadata.jsonl')))
  assert scores.values['overall'].count == 12 and scores.answered == scores.asked == 4
  with pytest.raises(base.AnotherRunError, match='12 pictures, not 4'):
    four.run(geneval_run.Painter(), tmp_path)
  assert more.run(geneval_run.Painter(), None).values == scores.values
  with pytest.raises(ValueError, match='at least one picture'):
    geneval.GenEval(prompts=base.PromptSet('four', geneval_run.ROWS), detector=geneval_run.Detector(), samples=0).run(
      geneval_run.Painter(), None
    )


def test_a_folder_of_another_system_is_scored_with_all_that_is_wrong_named(tmp_path):
  rng = np.random.default_rng(0)
  rows = [dict(row) for row in geneval_run.ROWS] * 3
  for number, row in enumerate(rows):
    geneval.write_prompt(tmp_path, number, row, rng.integers(0, 256, (2, 8, 8, 3), np.uint8))
  folder = lambda number: tmp_path / f'{number:05}'
  whole = geneval.score_folder(tmp_path, geneval_run.Detector())
  assert whole.problems == () and whole.missing == ()
  picture = folder(0) / 'samples' / '0000.png'
  Image.open(picture).save(picture.with_suffix('.jpg'))  # Twice the same number.
  shutil.copy(picture, folder(0) / 'samples' / '00001.png')
  shutil.copy(picture, folder(0) / 'samples' / '0007.png')  # Another number, the same picture.
  for file in (folder(1) / 'samples').iterdir():
    file.unlink()
  (folder(2) / 'samples' / '0000.png').write_bytes(picture.read_bytes()[:60])
  (folder(3) / 'metadata.jsonl').write_text(json.dumps({'prompt': 'a car', 'include': []}))
  (folder(4) / 'metadata.jsonl').write_text('{"tag": "two_')
  (folder(5) / 'metadata.jsonl').unlink()
  for file in (folder(6) / 'samples').iterdir():
    file.write_bytes(b'')
  (folder(7) / 'metadata.jsonl').write_text('[1]')
  shutil.rmtree(folder(8))
  shutil.copytree(folder(9), tmp_path / '9')
  for file in list((folder(10) / 'samples').iterdir()):
    Image.open(file).save(file.with_suffix('.jpeg'))
    file.unlink()
  (folder(11) / 'samples' / '0000.png.bak').write_bytes(b'nothing')
  (tmp_path / 'notes').mkdir()
  report = geneval.score_folder(tmp_path, geneval_run.Detector())
  told = '\n'.join(report.problems)
  for words in (
    '00000/samples/0000.jpg: the same number as 0000.png; it is not scored',
    '00000/samples/0001.png: the same number as 00001.png; it is not scored',
    '00000/samples/0007.png: the same file as 00000/samples/0000.png; both are scored',
    '00001: no picture',
    '00002/samples/0000.png: no whole picture',
    '00003/metadata.jsonl: no tag; its pictures are not scored',
    '00004/metadata.jsonl: line 1: no JSON object',
    '00005/metadata.jsonl: missing',
    '00006/samples/0000.png: no whole picture',
    '00007/metadata.jsonl: no JSON object',
    '00008: no picture',
    '9: the same prompt as 00009; it is not scored',
  ):
    assert words in told, f'{words}\n{told}'
  assert report.missing == (1, 3, 4, 5, 6, 7, 8) and (report.answered, report.asked) == (5, 12)
  names = [row['filename'] for row in report.results]
  assert '00010/samples/0000.jpeg' in names and not any('bak' in name or name.startswith('9/') for name in names)
  assert len(names) == 3 + 1 + 2 + 2 + 2
  scores = geneval.GenEval(prompts=None, detector=geneval_run.Detector()).score(tmp_path)
  assert (scores.asked, scores.answered) == (12, 5)
  table = scores.table()
  assert 'These figures rest on 5 of 12 prompts' in table and '00004/metadata.jsonl' in table
  # Against the official prompts: another prompt under a number, and numbers that there are not.
  given = [*rows[:9], {**rows[9], 'prompt': 'another'}, rows[10], rows[11], rows[0]]
  report = geneval.score_folder(tmp_path, geneval_run.Detector(), prompts=given)
  assert '00009/metadata.jsonl: not the prompt of this number' in '\n'.join(report.problems)
  assert report.missing == (1, 3, 4, 5, 6, 7, 8, 9, 12)
  report = geneval.score_folder(tmp_path, geneval_run.Detector(), prompts=given[:3])
  assert '00003: there are 3 prompts; it is not scored' in report.problems


def test_the_report_names_problems_and_shows_figures_of_others_apart(tmp_path):
  geneval_run.main(tmp_path, 'paint')
  (tmp_path / '00001' / 'samples' / '0001.png').write_bytes(b'<html>')
  scores = geneval.GenEval(prompts=None, detector=geneval_run.Detector(), published='geneval').score(tmp_path)
  report_files.write(tmp_path, scores)
  told = json.loads((tmp_path / 'scores.json').read_text())
  assert told['problems'] == list(scores.problems) and len(told['problems']) == 1
  assert told['published_by_others'][0]['source'] == 'arXiv 2604.04746' and 'published' not in str(told['values'])
  text = (tmp_path / 'scores.md').read_text()
  ours, others = text.split('## Published by others, not measured here')
  assert 'BAGEL' not in ours and '| overall |' in ours and '00001/samples/0001.png' in ours
  assert 'arXiv 2604.04746' in others and '| 0.83 |' in others
  page = (tmp_path / 'index.html').read_text()
  assert page.count('<article ') == 31 and page.count('<rect ') > 31
  assert page.index('Measured by this run') < page.index('class="foreign"') < page.index('arXiv 2604.04746')
  assert '<option value="two_object">two_object (16)</option>' in page and '<option value="wrong">' in page
  assert 'src="00000/samples/0000.png"' in page and 'http' not in page.replace('http-equiv', '')


def test_text_of_others_is_escaped_on_the_page(tmp_path):
  row = {**geneval_run.ROWS[0], 'prompt': '<script>alert(1)</script>', 'tag': '"><i>'}
  geneval.write_prompt(tmp_path, 0, row, [np.zeros((8, 8, 3), np.uint8)])
  page = report_files.page(geneval.GenEval(prompts=None, detector=geneval_run.Detector()).score(tmp_path))
  assert '<script>alert' not in page and '"><i>' not in page


def test_intervals_resample_prompts_where_they_have_several_pictures():
  pictures = [(prompt, (prompt * 7 + k) % 3 == 0) for prompt in range(40) for k in range(4)]
  rate = intervals.clustered_rate(pictures)
  assert rate.value == pytest.approx(sum(right for _, right in pictures) / 160)
  shares = np.array([np.mean([right for p, right in pictures if p == prompt]) for prompt in range(40)])
  rng = np.random.default_rng(1)
  means = [shares[rng.integers(0, 40, 40)].mean() for _ in range(4000)]
  assert rate.interval == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=0.01)
  # Four copies of one answer are one answer: as wide as Wilson's of 40 prompts, not of 160.
  copies = intervals.clustered_rate([(p, p % 2 == 0) for p in range(40) for _ in range(4)])
  low, high = intervals.wilson(20, 40)
  assert copies.interval == pytest.approx((low, high), abs=0.02)
  assert intervals.clustered_rate([(p, True) for p in range(40) for _ in range(4)]).interval == intervals.wilson(40, 40)
  assert intervals.clustered_rate([(p, False) for p in range(40) for _ in range(4)]).interval == intervals.wilson(0, 40)
  assert intervals.clustered_rate([(p, p > 9) for p in range(40)]).interval == intervals.wilson(30, 40)


def test_six_tasks_that_are_all_right_are_exactly_right():
  for count in range(1, 20):
    assert intervals.combined([intervals.rate([True]).estimate] * count).value == 1.0


def test_colors_are_asked_for_only_where_a_clause_looks_at_them(tmp_path):
  class Names(geneval_run.Detector):
    def detect(self, picture):
      return [judges_base.Found(n, None, (0, 0, 4, 4), s) for n, s in (('cup', 0.5), ('cup', 0.6), ('dog', 0.9))]

    def colors(self, picture, objects):
      named.append([item.score for item in objects])
      return ['red'] * len(objects)

  named: list[list[float]] = []
  picture = np.zeros((8, 8, 3), np.uint8)
  clause = {'class': 'cup', 'count': 1}
  plain, colored = {'tag': 'colors', 'include': [clause], 'prompt': ''}, {'class': 'cup', 'count': 1, 'color': 'red'}
  assert geneval_folder.result('x', plain, picture, Names())['correct'] and not named
  assert geneval_folder.result('x', {**plain, 'include': [colored]}, picture, Names())['correct']
  assert named == [[0.6]]
