"""The model that comes with the package: it is what its config says, and it paints."""

import dataclasses
import pathlib
import runpy

import numpy as np
import pytest

import pdgen
from pdgen.core import config as config_lib
from pdgen.evals import geneval
from pdgen.worlds import shapes

ROOT = pathlib.Path(__file__).parents[1]
PROMPTS = shapes.prompts('heldout', per_task=2)


@pytest.fixture(scope='module')
def painter():
  return pdgen.load('shapes')


@pytest.fixture(scope='module')
def painted(painter):
  return painter.sample([m['prompt'] for m in PROMPTS], batch_size=len(PROMPTS)).trajectories


def test_it_was_trained_by_the_committed_config(painter):
  committed = runpy.run_path(str(ROOT / 'configs' / 'shapes_inspect.py'))['get_config']()
  assert painter.config == config_lib.from_config_dict(committed)


def test_it_paints_held_out_prompts_and_ends_by_itself(painted):
  right = [geneval.evaluate(m, shapes.detect(t.final))[0] for m, t in zip(PROMPTS, painted, strict=True)]
  assert sum(right) >= 10, dict(zip((m['prompt'] for m in PROMPTS), right, strict=True))  # .98 of 600
  assert {t.stop for t in painted} == {'finished'}
  refined = [s for t in painted for s in t.steps if s.rejected]
  assert refined and all(s.refined is not None for s in refined)


def test_a_prompt_alone_is_painted_as_among_others(painter, painted):
  """The shipped model attends in chunks that are skipped where no row of the batch sees them."""
  number = max(range(len(PROMPTS)), key=lambda i: len(painted[i].pictures))
  alone, among = painter.sample(PROMPTS[number]['prompt'], seed=number).trajectories[0], painted[number]
  texts = [[dataclasses.replace(s, draft=None, refined=None) for s in t.steps] for t in (alone, among)]
  assert texts[0] == texts[1] and alone.stop == among.stop
  for one, other in zip(alone.pictures, among.pictures, strict=True):
    difference = np.abs(one.astype(int) - other)  # within 1e-5 of 2: the same level, or neighbours where they round
    assert difference.max() <= 1 and np.mean(difference > 0) < 0.01
