"""GenEval's rules, folder and summary, against hand-worked cases and the official position rule as it is written."""

import json
import shutil

import numpy as np
import pytest

from pdgen import judges
from pdgen.core import geometry
from pdgen.evals import geneval, intervals
from pdgen.judges import base as judges_base
from pdgen.worlds import shapes


def thing(name, color='red', box=(0, 0, 9, 9), score=0.95):
  return judges_base.Found(name, color, box, score)


class Sees:
  """A detector that sees what a function says."""

  def __init__(self, see):
    self.see = see

  def detect(self, picture):
    return self.see(picture)


NOTHING = Sees(lambda picture: [])
EXACT = judges.detector('exact', shapes)


def _official_relative_position(box_a, box_b):
  """`relative_position` of the official evaluate_images.py, on bare boxes."""
  laid = np.array([box_a, box_b])[:, :4].reshape(2, 2, 2)
  center_a, center_b = laid.mean(axis=-2)
  dim_a, dim_b = np.abs(np.diff(laid, axis=-2))[..., 0, :]
  offset = center_a - center_b
  revised_offset = np.maximum(np.abs(offset) - 0.1 * (dim_a + dim_b), 0) * np.sign(offset)
  if np.all(np.abs(revised_offset) < 1e-3):
    return set()
  dx, dy = revised_offset / np.linalg.norm(offset)
  held = {'left of': dx < -0.5, 'right of': dx > 0.5, 'above': dy < -0.5, 'below': dy > 0.5}
  return {name for name, holds in held.items() if holds}


def test_positions_follow_the_official_rule():
  rng = np.random.default_rng(0)
  counts: dict[str, int] = dict.fromkeys(geometry.RELATIONS, 0)
  for _ in range(5000):
    a, b = ((*corner, *(corner + rng.uniform(2, 12, 2))) for corner in rng.uniform(0, 25, (2, 2)))
    found = geometry.spatial_relations(a, b)
    assert found == _official_relative_position(a, b)
    for name in found:
      counts[name] += 1
  assert min(counts.values()) > 500
  assert geometry.spatial_relations((3, 3, 9, 9), (3, 3, 9, 9)) == set()


def _counting(count):
  include, exclude = {'class': 'ring', 'count': count}, {'class': 'ring', 'count': count + 1}
  return {'tag': 'counting', 'include': [include], 'exclude': [exclude], 'prompt': ''}


def _pair(tag, **second):
  include = [{'class': 'ring', 'count': 1}, {'class': 'bar', 'count': 1, **second}]
  return {'tag': tag, 'include': include, 'prompt': ''}


RED_RING = {'tag': 'colors', 'include': [{'class': 'ring', 'count': 1, 'color': 'red'}], 'prompt': ''}
BAR_RIGHT = _pair('position', position=['right of', 0])


@pytest.mark.parametrize(
  'metadata, things, reason',
  [
    (_pair('two_object'), [thing('ring'), thing('bar')], ''),
    (_pair('two_object'), [thing('ring'), thing(None)], 'expected bar>=1, found 0'),
    (_pair('two_object'), [], 'expected ring>=1, found 0\nexpected bar>=1, found 0'),
    (_pair('two_object'), [thing('ring'), thing('bar', score=0.3)], 'expected bar>=1, found 0'),
    (_counting(2), [thing('ring')] * 2, ''),
    (_counting(2), [thing('ring')] * 3, 'expected ring<3, found 3'),
    (_counting(2), [thing('ring'), thing('ring', score=0.9)], 'expected ring>=2, found 1'),
    (_counting(2), [*[thing('ring')] * 2, thing('ring', score=0.9)], ''),
    (RED_RING, [thing('ring', 'red')], ''),
    (RED_RING, [thing('ring', 'blue')], 'expected red ring>=1, found 0 red; and 1 blue'),
    # Only the best-scored object is looked at.
    (
      RED_RING,
      [thing('ring', 'red', score=0.5), thing('ring', 'blue', score=0.6)],
      'expected red ring>=1, found 0 red; and 1 blue',
    ),
    (RED_RING, [thing('ring', 'blue', score=0.5), thing('ring', 'red', score=0.6)], ''),
    (BAR_RIGHT, [thing('ring'), thing('bar', box=(11, 0, 20, 9))], ''),
    (BAR_RIGHT, [thing('ring'), thing('bar', box=(0, 11, 9, 20))], 'expected bar right of target, found below target'),
    (BAR_RIGHT, [thing('bar')], 'expected ring>=1, found 0\nno target for bar to be right of'),
  ],
)
def test_rules(metadata, things, reason):
  assert geneval.evaluate(metadata, things) == (reason == '', reason)


def test_score_is_the_mean_over_tasks_with_intervals():
  prompts = [RED_RING] * 4 + [_counting(2)] * 2
  pictures = [np.full((2, 2, 3), i, np.uint8) for i in range(6)]
  seen = {0: [thing('ring')], 1: [thing('ring')], 2: [thing('ring')], 3: [], 4: [thing('ring')] * 2, 5: []}
  report = geneval.score(prompts, pictures, Sees(lambda p: seen[int(p[0, 0, 0])]))
  assert {t: (r.hits, r.total) for t, r in report.tasks.items()} == {'colors': (3, 4), 'counting': (1, 2)}
  assert report.overall == pytest.approx((0.75 + 0.5) / 2)
  assert report.tasks['colors'].interval == intervals.wilson(3, 4)
  low, high = intervals.wilson(3, 4)
  low2, high2 = intervals.wilson(1, 2)
  assert report.overall - report.low == pytest.approx(np.hypot(0.75 - low, 0.5 - low2) / 2)
  assert report.high - report.overall == pytest.approx(np.hypot(high - 0.75, high2 - 0.5) / 2)
  assert [f['filename'] for f in report.failures] == ['00003/samples/0000.png', '00005/samples/0000.png']
  assert [f['reason'] for f in report.failures] == ['expected ring>=1, found 0', 'expected ring>=2, found 0']
  assert 'overall' in str(report) and '62.50%' in str(report)


def test_score_names_a_mismatch():
  with pytest.raises(ValueError, match='2 prompts but 1 pictures'):
    geneval.score([RED_RING] * 2, [np.zeros((2, 2, 3), np.uint8)], NOTHING)
  with pytest.raises(ValueError, match='No pictures'):
    geneval.score([], [], NOTHING)


def test_folder_is_the_official_one_and_scores_alike(tmp_path):
  made = [shapes.trajectory('direct', seed=0, index=i) for i in range(12)]
  prompts = [t.spec.to_row(t.prompt) for t in made if t.spec]
  pictures = [t.final for t in made]
  pictures[5] = np.stack([pictures[5], pictures[6]])
  geneval.write_folder(tmp_path, prompts, pictures)
  assert json.loads((tmp_path / '00003' / 'metadata.jsonl').read_text()) == prompts[3]
  assert sorted(p.name for p in (tmp_path / '00005' / 'samples').iterdir()) == ['0000.png', '0001.png']
  read_prompts, read_pictures, names = geneval.read_folder(tmp_path)
  assert len(names) == 13 and names[5:7] == ['00005/samples/0000.png', '00005/samples/0001.png']
  assert read_prompts[:6] == prompts[:6] and read_prompts[6] == prompts[5]
  assert all(np.array_equal(a, b) for a, b in zip(read_pictures[:5], pictures[:5], strict=True))
  report = geneval.score_folder(tmp_path, EXACT)
  rows = [json.loads(line) for line in (tmp_path / 'results.jsonl').read_text().splitlines()]
  assert list(rows[0]) == ['filename', 'tag', 'prompt', 'correct', 'reason', 'metadata', 'details']
  assert json.loads(rows[0]['metadata']) == prompts[0]
  assert [r['filename'] for r in report.failures] == ['00005/samples/0001.png']
  again = geneval.read_results(tmp_path)
  assert again.overall == report.overall and again.results == report.results


@pytest.fixture
def folder(tmp_path):
  """An official folder of six prompts that are painted right, scored."""
  made = [shapes.trajectory('direct', seed=0, index=i) for i in range(6)]
  geneval.write_folder(tmp_path, [t.spec.to_row(t.prompt) for t in made if t.spec], [t.final for t in made])
  geneval.score_folder(tmp_path, EXACT)
  return tmp_path


def test_a_prompt_without_a_picture_does_not_silently_drop_out(folder):
  whole = geneval.score_folder(folder, EXACT)
  assert (whole.answered, whole.asked, whole.missing) == (6, 6, ()) and 'rest on' not in str(whole)
  (folder / '00002' / 'samples' / '0000.png').unlink()
  shutil.rmtree(folder / '00004')
  for report in (geneval.score_folder(folder, EXACT), geneval.read_results(folder)):
    assert (report.answered, report.asked, report.missing) == (4, 6, (2, 4))
    assert 'These figures rest on 4 of 6 prompts; without a picture: 00002, 00004.' in str(report)


def test_half_a_results_file_is_not_scored_as_a_whole(folder):
  results = folder / 'results.jsonl'
  whole = results.read_text()
  assert geneval.read_results(folder).overall == 1
  for cut, words in (
    (whole[:-20], 'results.jsonl, line 6: no JSON object'),
    ('\n'.join(whole.splitlines()[:3]), 'has 3 rows for 6 pictures: it is not whole'),
    (whole.replace('"correct"', '"corect"', 1), "line 1: no JSON object with .*'correct'"),
    ('', 'has no rows'),
  ):
    results.write_text(cut)
    with pytest.raises(ValueError, match=words):
      geneval.read_results(folder)
  # Another machine may have the results alone; the official script writes whole paths.
  alone = folder / 'alone'
  alone.mkdir()
  (alone / 'results.jsonl').write_text(whole.replace('"filename": "', '"filename": "/data/run/'))
  assert geneval.read_results(alone).answered == 6


@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.int64, bool])
def test_pictures_of_another_type_are_refused(dtype, tmp_path):
  """Floats in 0..1 would be written, and scored, as black."""
  row, picture = shapes.prompts('heldout', per_task=1)[0], np.ones((32, 32, 3), dtype)
  for write in (
    lambda: geneval.write_folder(tmp_path, [row], [picture]),
    lambda: geneval.write_folder(tmp_path, [row], [picture[None]]),
    lambda: geneval.write_prompt(tmp_path, 0, row, [picture]),
    lambda: geneval.score([row], [picture], NOTHING),
    lambda: geneval.score([row], [np.zeros((32, 32), np.uint8)], NOTHING),
  ):
    with pytest.raises(ValueError, match=r'picture of prompt 0 is \w+\[32, 32.*, not uint8\[H, W, 3\]'):
      write()
  assert not list(tmp_path.iterdir())


def test_damaged_files_are_named(folder):
  picture = folder / '00001' / 'samples' / '0000.png'
  picture.write_bytes(picture.read_bytes()[:60])
  with pytest.raises(ValueError, match='00001/samples/0000.png is no whole picture'):
    geneval.read_folder(folder)
  assert '00001/samples/0000.png: no whole picture' in geneval.score_folder(folder, EXACT).problems[0]
  (folder / '00000' / 'metadata.jsonl').write_text('{"tag": "colors"')
  with pytest.raises(ValueError, match='00000/metadata.jsonl: line 1: no JSON object'):
    geneval.read_folder(folder)
  report = geneval.score_folder(folder, EXACT)
  assert report.missing == (0, 1) and 'These figures rest on 4 of 6 prompts' in str(report)


def test_reading_an_empty_folder_says_what_is_missing(tmp_path):
  with pytest.raises(FileNotFoundError, match='No GenEval pictures'):
    geneval.read_folder(tmp_path)
