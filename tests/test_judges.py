"""Exact detector and judge, and how they are found."""

import dataclasses

import numpy as np
import pytest

from pdgen import judges
from pdgen.core.trajectory import Content
from pdgen.judges import base
from pdgen.worlds import shapes
from pdgen.worlds.shapes import renderer, scenes

RING, BAR = scenes.Object('ring', 'red', 4), scenes.Object('bar', 'blue', 0)
EXACT = judges.judge('exact', shapes)


def ask(picture, *expected):
  return EXACT.judge(base.Question(prompt='a ring', picture=picture, expected=expected))


def test_the_exact_detector_sees_what_the_world_sees():
  picture = renderer.render((RING, BAR))
  found = judges.detector('exact', shapes).detect(picture)
  want = [(d.name, d.color, d.box, d.score, None) for d in shapes.detect(picture)]
  assert [dataclasses.astuple(f) for f in found] == want and len(want) == 2
  assert judges.detector('exact', shapes).detect(renderer.blank()) == []


def test_the_exact_judge_names_what_is_missing_and_what_is_too_much():
  picture = renderer.render((RING, BAR))
  right = Content('ring', 'red', 4), Content('bar', 'blue', 0)
  assert ask(picture, *right) == base.Verdict(ok=True, reason='', correction=None, confidence=1.0)
  verdict = ask(picture, right[0], Content('bar', 'blue', 2))
  assert not verdict.ok
  assert verdict.reason == (
    'expected blue bar in cell 2, which is not there; found blue bar in cell 0, which is not expected'
  )
  assert verdict.correction == 'Paint blue bar in cell 2. Remove blue bar in cell 0.'
  assert ask(renderer.blank(), right[0]).correction == 'Paint red ring in cell 4.'
  assert ask(picture, right[0]).correction == 'Remove blue bar in cell 0.'


@pytest.mark.parametrize('index', range(4))
def test_the_exact_judge_agrees_with_the_world(index):
  right = shapes.injected(None, seed=0, index=index)
  wrong = shapes.injected('missing', seed=0, index=index)
  for t in (right, wrong):
    draft, expected = t.steps[-1].draft, t.expected
    assert draft is not None and expected is not None
    verdict = EXACT.judge(base.Question(prompt=t.prompt, picture=draft, expected=expected))
    assert verdict.ok == shapes.shows(draft, expected) == (t is right)
    assert bool(verdict.reason) != verdict.ok


@pytest.mark.parametrize('dtype', [np.float32, np.int32, bool])
def test_pictures_of_another_type_are_refused(dtype):
  """Floats in 0..1 would be seen as black."""
  picture = np.ones((32, 32, 3), dtype)
  for look in (lambda: EXACT.detect(picture), lambda: ask(picture), lambda: EXACT.detect(renderer.blank()[..., 0])):
    with pytest.raises(ValueError, match=r'The picture is \w+\[32, 32.*, not uint8\[H, W, 3\]'):
      look()


def test_a_question_without_what_is_expected_is_refused():
  with pytest.raises(ValueError, match="'a ring'.*`expected`"):
    EXACT.judge(base.Question(prompt='a ring', picture=np.zeros((32, 32, 3), np.uint8)))


def test_an_unknown_name_says_which_are_known():
  with pytest.raises(ValueError, match=r"Unknown detector 'eye'. Known: \['exact', 'mask2former', 'opencv'\]"):
    judges.detector('eye', shapes)
  with pytest.raises(ValueError, match=r"Unknown judge 'judy'. Known: \['exact', 'openai', 'self'\]"):
    judges.judge('judy', shapes)
