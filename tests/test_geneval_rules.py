"""GenEval's verdicts, reasons and summaries are those of an independent reading of the official code, on random draws.

With PDGEN_GENEVAL_METADATA set to the official `evaluation_metadata.jsonl`, its rows are drawn too.
"""

import collections
import json
import os
import pathlib

import numpy as np
import pytest

from pdgen.core import geometry
from pdgen.evals import geneval_folder, geneval_report, geneval_rules
from pdgen.judges import base, coco, colors
from tests.support import official_geneval

SIDE = 24
PALETTE = np.array(
  [(220, 20, 20), (240, 140, 10), (230, 220, 20), (20, 160, 40), (20, 40, 220), (130, 20, 160), (250, 150, 190)]
  + [(110, 60, 20), (10, 10, 10), (245, 245, 245)],
  np.int64,
)
NAMES = ('cup', 'dog', 'teddy bear', 'tv remote', 'bus')


def classify(crops, name):
  """In place of CLIP: the colour nearest to the mean of the crop, another one for another class."""
  means = [crop.reshape(-1, 3).mean(axis=0) for crop in crops]
  return [int((np.square(PALETTE - mean).sum(axis=1).argmin() + len(name)) % 10) for mean in means]


class Drawn:
  """A detector of drawn objects that names colours as the official evaluation does."""

  def __init__(self, found):
    self.found = found

  def detect(self, picture):
    return self.found

  def colors(self, picture, objects):
    return [
      geneval_rules.COLORS[classify([crop], item.name)[0]]
      for crop, item in zip(colors.crops(picture, objects), objects, strict=True)
    ]


def draw_metadata(rng, task):
  names = [str(name) for name in rng.permutation(NAMES)[:2]]
  color = lambda: str(rng.choice(geneval_rules.COLORS))
  one = {'class': names[0], 'count': 1}
  two = {'class': names[1], 'count': 1}
  if task == 'counting':
    count = int(rng.integers(2, 5))
    more = {'exclude': [{'class': names[0], 'count': count + 1}]}
    return {'tag': task, 'include': [{**one, 'count': count}], **more, 'prompt': task}
  if task == 'position':
    two = {**two, 'position': [str(rng.choice(geometry.RELATIONS)), 0]}
  if task in ('colors', 'color_attr'):
    one, two = {**one, 'color': color()}, {**two, 'color': color()}
  include = [one] if task in ('single_object', 'colors') else [one, two]
  return {'tag': task, 'include': include, 'prompt': task}


def draw_scene(rng, names):
  """A picture, and detections with boxes, many equal scores, and masks in half of the scenes; more than 16 at times."""
  picture = PALETTE[rng.integers(0, 10, (4, 4))].repeat(6, axis=0).repeat(6, axis=1).astype(np.uint8)
  found = []
  with_masks = rng.random() < 0.5
  for name in names:
    count = int(rng.integers(17, 20)) if rng.random() < 0.02 else int(rng.integers(0, 5))
    for _ in range(count):
      corner = rng.uniform(0, SIDE - 6, 2)
      size = rng.uniform(2, 6, 2) if rng.random() < 0.8 else np.array([5.0, 5.0])
      corner = corner if rng.random() < 0.8 else np.round(corner)
      score = float(rng.choice([0.3, 0.9, 0.95, 0.97, 0.31, rng.random()]))
      mask = rng.random((SIDE, SIDE)) < 0.7 if with_masks else None
      found.append(base.Found(name, None, (*map(float, corner), *map(float, corner + size)), score, mask))
  return picture, [found[i] for i in rng.permutation(len(found))]


def official(picture, found, metadata, *, overlap=1.0):
  boxes, masks = {}, {}
  for item in found:
    boxes.setdefault(item.name, []).append([*item.box, item.score])
    masks.setdefault(item.name, []).append(item.mask)
  boxes = {name: np.array(rows) for name, rows in boxes.items()}
  objects = official_geneval.kept(boxes, masks, metadata['tag'], overlap=overlap)
  verdict = official_geneval.evaluate(picture, objects, metadata, classify)
  return verdict, {name: [box.tolist() for box, _ in pairs] for name, pairs in objects.items()}


def with_colors_that_are_there(rng, metadata, picture, found):
  """The metadata with colours of best objects in half of the clauses: drawn colours are there one time in ten."""
  include = []
  for clause in metadata['include']:
    best = geneval_rules.by_class(metadata, found).get(clause['class'])
    if 'color' in clause and best and rng.random() < 0.5:
      clause = {**clause, 'color': Drawn(found).colors(picture, best[:1])[0]}
    include.append(clause)
  return {**metadata, 'include': include}


def check(rng, metadata, names, *, overlap=1.0):
  picture, found = draw_scene(rng, names)
  metadata = with_colors_that_are_there(rng, metadata, picture, found)
  rules = geneval_rules.Rules(max_overlap=overlap)
  row = geneval_folder.result('x', metadata, picture, Drawn(found), rules=rules)
  (correct, reason), details = official(picture, found, metadata, overlap=overlap)
  assert (row['correct'], row['reason']) == (correct, reason), (metadata, found)
  assert json.loads(row['details']) == details
  return correct, reason


def test_verdicts_and_reasons_are_the_official_ones_on_random_draws_of_all_tasks():
  """10,000 draws; equal scores are drawn often."""
  rng = np.random.default_rng(0)
  seen: dict[str, collections.Counter] = {task: collections.Counter() for task in geneval_rules.TASKS}
  kinds: collections.Counter[str] = collections.Counter()
  for number in range(10_000):
    task = geneval_rules.TASKS[number % 6]
    overlap = 1.0 if number % 5 else 0.5  # The option of the official script.
    correct, reason = check(rng, draw_metadata(rng, task), NAMES, overlap=overlap)
    seen[task][correct] += 1
    kinds.update(w for w in ('; and', 'no target', 'target, found', '<', '>=') if w in reason)
  assert all(min(count[True], count[False]) > 20 for count in seen.values()), seen
  assert min(kinds.values()) > 20 and len(kinds) == 5, kinds


def test_rows_of_the_official_file_are_judged_officially():
  file = os.environ.get('PDGEN_GENEVAL_METADATA')
  if not file:
    pytest.skip('PDGEN_GENEVAL_METADATA names no official evaluation_metadata.jsonl')
  rng = np.random.default_rng(1)
  rows = [json.loads(line) for line in pathlib.Path(file).read_text(encoding='utf-8').splitlines()]
  assert len(rows) == 553 and {row['tag'] for row in rows} == set(geneval_rules.TASKS)
  assert {clause['class'] for row in rows for clause in row['include']} <= set(coco.NAMES)
  for row in rows * 3:
    check(rng, row, {clause['class'] for clause in row['include']})


def test_crops_are_the_official_ones():
  rng = np.random.default_rng(2)
  for _ in range(200):
    picture, found = draw_scene(rng, NAMES)
    ours = colors.crops(picture, found)
    theirs = official_geneval.crops(picture, [(np.array(item.box), item.mask) for item in found])
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
  with pytest.raises(ValueError, match=r'mask is bool\[2, 2\], not bool\[24, 24\]'):
    colors.crops(picture, [base.Found('cup', mask=np.ones((2, 2), bool))])


def test_colors_by_pixels_name_what_most_pixels_are():
  picture = np.full((20, 20, 3), 128, np.uint8)
  words = ('red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'brown', 'black', 'white')
  for word, color in zip(words, PALETTE, strict=True):
    picture[5:15, 5:15] = color
    mask = np.zeros((20, 20), bool)
    mask[6:14, 6:14] = True
    inside, masked = base.Found('cup', box=(5, 5, 15, 15)), base.Found('cup', box=(0, 0, 20, 20), mask=mask)
    assert colors.by_pixels(picture, [inside, masked]) == [word, word]
  outside, nothing = base.Found('cup', box=(40, 40, 50, 50)), base.Found('cup', box=(0, 0, 9, 9), mask=mask & False)
  assert colors.by_pixels(picture, [outside, nothing]) == [None, None]


def test_both_summaries_are_the_official_ones():
  rng = np.random.default_rng(3)
  for _ in range(50):
    rows = []
    for number in range(int(rng.integers(1, 40))):
      metadata = draw_metadata(rng, geneval_rules.TASKS[int(rng.integers(0, 6))])
      for k in range(int(rng.integers(1, 5))):
        name, correct = f'{number:05}/samples/{k:04}.png', bool(rng.random() < 0.4)
        told = {'reason': '', 'metadata': json.dumps(metadata), 'details': '{}', 'prompt': metadata['prompt']}
        rows.append({'filename': name, 'tag': metadata['tag'], 'correct': correct, **told})
    summary = geneval_report.summary(rows)
    assert str(summary) == official_geneval.summary(rows)
    report = geneval_report.Report.of(rows)
    assert report.overall == pytest.approx(summary.overall)
    assert {tag: (r.hits, r.total) for tag, r in report.tasks.items()} == {t: s[1:] for t, s in summary.tasks.items()}
  with pytest.raises(ValueError, match='No pictures'):
    geneval_report.summary([])
