"""The shapes world's pictures and prompts: exact rendering and detection, and what is held out of training."""

import collections
import doctest
import itertools

import numpy as np
import pytest

from pdgen.core import geometry
from pdgen.worlds import shapes
from pdgen.worlds.shapes import damage, detector, faults, prompt_space, renderer, scenes


def _scene(rng: np.random.Generator) -> scenes.Scene:
  cells = rng.choice(scenes.CELLS, int(rng.integers(1, 5)), replace=False)
  dx, dy = (int(v) for v in rng.integers(scenes.JITTER + 1, size=2))
  names, colors = tuple(scenes.SHAPES), tuple(scenes.COLORS)
  return tuple(scenes.Object(names[int(rng.integers(6))], colors[int(rng.integers(10))], int(c), dx, dy) for c in cells)


def _noisy(picture: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
  return np.clip(np.round(picture + rng.normal(0, 255 * sigma, picture.shape)), 0, 255).astype(np.uint8)


def _seen(picture: np.ndarray) -> list[tuple]:
  return sorted((str(d.shape), d.color, d.cell) for d in shapes.detect(picture))


@pytest.mark.parametrize('module', [geometry, prompt_space, faults])
def test_examples_in_docstrings_hold(module):
  result = doctest.testmod(module)
  assert result.attempted > 0 and result.failed == 0


def test_silhouettes_are_far_apart():
  for (a, x), (b, y) in itertools.combinations(scenes.SHAPES.items(), 2):
    assert (x & y).sum() / (x | y).sum() <= 0.55, (a, b)


def test_colors_are_far_apart_and_far_from_the_background():
  colors = np.array(list(scenes.COLORS.values())) / 255
  between = np.linalg.norm(colors[:, None] - colors, axis=-1)[~np.eye(len(colors), dtype=bool)]
  assert between.min() >= 0.4
  assert np.linalg.norm(colors - np.array(scenes.BACKGROUND) / 255, axis=-1).min() >= 0.45


def test_objects_never_touch_and_stay_inside():
  """Two neighbours at any jitter of the scene leave at least two pixels of background between them."""
  for jitter in range(scenes.JITTER + 1):
    full = [scenes.Object('square', 'red', cell, jitter, jitter) for cell in range(scenes.CELLS)]
    ink = np.any(renderer.render(tuple(full)) != scenes.BACKGROUND, axis=-1)
    assert ink.sum() == 9 * scenes.EXTENT**2
    for axis in (0, 1):
      runs = np.flatnonzero(~ink.any(axis))
      inner = runs[(runs > jitter) & (runs < scenes.SIZE - 2)]
      assert len(inner) >= 4


def test_rendering_is_exact():
  item = scenes.Object('bar', 'orange', 4, 1, 0)
  picture = renderer.render((item,))
  assert picture.dtype == np.uint8 and picture.shape == (32, 32, 3)
  x0, y0, x1, y1 = item.box
  assert (x0, y0, x1, y1) == (12, 14, 21, 18)
  assert np.all(picture[y0 : y1 - 1, x0:x1] == scenes.COLORS['orange'])
  assert np.all(picture[y1 - 1, x0:x1] == np.round(np.array(scenes.COLORS['orange']) * 0.9))
  assert np.all(picture[:y0] == scenes.BACKGROUND) and np.all(picture[y1:] == scenes.BACKGROUND)


def test_every_shape_in_every_color_and_cell_is_detected_with_its_box():
  for (name, color), cell in itertools.product(itertools.product(scenes.SHAPES, scenes.COLORS), range(scenes.CELLS)):
    item = scenes.Object(name, color, cell, cell % 2, (cell + 1) % 2)
    (found,) = shapes.detect(renderer.render((item,)))
    assert (found.shape, found.color, found.cell, found.box) == (name, color, cell, item.box)
    assert found.score == pytest.approx(1.0)


def test_detector_is_exact_on_clean_scenes():
  rng = np.random.default_rng(0)
  for _ in range(2000):
    scene = _scene(rng)
    found = sorted((str(d.shape), d.color, d.cell, d.box) for d in shapes.detect(renderer.render(scene)))
    assert found == sorted((o.shape, o.color, o.cell, o.box) for o in scene)


def test_detector_is_exact_under_noise():
  """Gaussian noise of a tenth of the range on every channel."""
  rng = np.random.default_rng(1)
  for _ in range(4000):
    scene = _scene(rng)
    assert _seen(_noisy(renderer.render(scene), 0.1, rng)) == sorted((o.shape, o.color, o.cell) for o in scene)


def test_detector_sees_an_empty_page_and_a_page_of_noise():
  rng = np.random.default_rng(2)
  assert shapes.detect(renderer.blank()) == []
  assert shapes.detect(_noisy(renderer.blank(), 0.1, rng)) == []
  assert all(d.shape is None for d in shapes.detect(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)))


def test_malformed_objects_have_no_shape_and_a_low_score():
  rng, ways = np.random.default_rng(3), collections.Counter()
  for _ in range(200):
    scene = _scene(rng)
    victim = scene[int(rng.integers(len(scene)))]
    picture, seen = damage.paint(scene, (victim,), rng=rng)
    found = shapes.detect(picture)
    here = [d for d in found if d.cell == victim.cell]
    assert here and all(d.shape is None and d.score < 0.5 for d in here)
    (damaged,) = (o for o in seen if o not in scene)
    assert damaged in {scenes.Malformed(d.likeness, d.cell) for d in here}
    ways[damaged.likeness is None] += 1
    rest = sorted((d.shape, d.color, d.cell) for d in found if d.cell != victim.cell)
    assert rest == sorted((o.shape, o.color, o.cell) for o in scene if o != victim)
  assert min(ways.values()) > 25, ways  # a silhouette of several colours, or none


def test_scores_cross_the_counting_threshold_with_the_shape():
  rng = np.random.default_rng(4)
  for _ in range(300):
    picture = _noisy(renderer.render(_scene(rng)), 0.2, rng)
    for found in shapes.detect(picture):
      assert 0 <= found.score <= 1 and (found.score > 0.9) == (found.shape is not None)


def test_detector_names_what_it_cannot_read():
  with pytest.raises(ValueError, match='uint8'):
    detector.detect(np.zeros((32, 32, 3), np.float32))


# --- prompts ---


def test_prompts_read_as_geneval():
  by_words = {
    p['prompt']: p for t in shapes.TASKS for s in ('train', 'heldout') for p in prompt_space.task_prompts(s, t)
  }
  assert by_words['a photo of four crosses'] == {
    'tag': 'counting',
    'include': [{'class': 'cross', 'count': 4}],
    'exclude': [{'class': 'cross', 'count': 5}],
    'prompt': 'a photo of four crosses',
  }
  assert by_words['a photo of a ring left of a square'] == {
    'tag': 'position',
    'include': [{'class': 'square', 'count': 1}, {'class': 'ring', 'count': 1, 'position': ['left of', 0]}],
    'prompt': 'a photo of a ring left of a square',
  }
  assert by_words['a photo of an orange ring and a blue square'] == {
    'tag': 'color_attr',
    'include': [
      {'class': 'ring', 'count': 1, 'color': 'orange'},
      {'class': 'square', 'count': 1, 'color': 'blue'},
    ],
    'prompt': 'a photo of an orange ring and a blue square',
  }


@pytest.mark.parametrize('task', shapes.TASKS)
def test_splits_part_the_prompts(task):
  train, heldout = prompt_space.task_prompts('train', task), prompt_space.task_prompts('heldout', task)
  if task == 'single_object':
    assert train == heldout
    return
  words = {p['prompt'] for p in train}
  assert words.isdisjoint(p['prompt'] for p in heldout)
  assert 0.18 < len(heldout) / (len(train) + len(heldout)) < 0.6


def test_the_same_combination_in_other_words_is_held_out_too():
  for prompt in prompt_space.task_prompts('heldout', 'two_object'):
    a, b = (i['class'] for i in prompt['include'])
    assert f'a photo of a {b} and a {a}' in {p['prompt'] for p in prompt_space.task_prompts('heldout', 'two_object')}
  opposite = {'left of': 'right of', 'right of': 'left of', 'above': 'below', 'below': 'above'}
  held = {p['prompt'] for p in prompt_space.task_prompts('heldout', 'position')}
  for prompt in prompt_space.task_prompts('heldout', 'position'):
    a, b = prompt['include']
    assert f'a photo of a {a["class"]} {opposite[b["position"][0]]} a {b["class"]}' in held


def test_everything_a_heldout_prompt_is_made_of_is_trained():
  """Each shape with most colours, most counts, each relation; each colour with most shapes."""
  colors = prompt_space.task_prompts('train', 'colors')
  for shape in scenes.SHAPES:
    assert sum(p['include'][0]['class'] == shape for p in colors) >= 8
    assert sum(p['include'][0]['class'] == shape for p in prompt_space.task_prompts('train', 'counting')) >= 2
    for relation in geometry.RELATIONS:
      made = [p for p in prompt_space.task_prompts('train', 'position') if p['include'][1]['position'][0] == relation]
      assert any(shape == p['include'][k]['class'] for p in made for k in (0, 1))
  for color in scenes.COLORS:
    assert sum(p['include'][0]['color'] == color for p in colors) >= 4
  for count in (2, 3, 4):
    assert sum(p['include'][0]['count'] == count for p in prompt_space.task_prompts('train', 'counting')) >= 4


def test_prompts_are_unique_while_there_are_any_and_told_apart_by_index():
  chosen = shapes.prompts('heldout', per_task=100)
  assert len(chosen) == 600
  for task in shapes.TASKS:
    mine = [p for p in chosen if p['tag'] == task]
    assert [p['index'] for p in mine] == list(range(100))
    distinct = len({p['prompt'] for p in mine})
    assert distinct == min(100, len(prompt_space.task_prompts('heldout', task)))
  assert chosen == shapes.prompts('heldout', per_task=100)
  assert chosen != shapes.prompts('heldout', per_task=100, seed=1)
  with pytest.raises(ValueError, match='Unknown split'):
    shapes.prompts('test', per_task=1)
