"""Drafts of a model under review, and errors injected to test an inspector, with the exact detector as the oracle."""

import numpy as np
import pytest

from pdgen.core import tags
from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import geneval
from pdgen.worlds import shapes
from pdgen.worlds.shapes import critiques, drafts, faults, renderer, scenes

RING = scenes.Object('ring', 'red', 0)
SQUARES = (scenes.Object('square', 'blue', 4), scenes.Object('square', 'blue', 8))


def _requests(count: int):
  return [shapes.draft_request(seed=7, index=i) for i in range(count)]


def test_a_request_wants_the_next_draft():
  for request in _requests(100):
    assert request.prefix.stop is None
    *before, last = request.prefix.steps
    assert last.plan is not None and last.draft is None and last.inspection is None
    assert all(s.draft is not None and s.inspection is not None and not s.rejected for s in before)
    assert request.scene == request.story.beats[request.beat].after
  assert {len(r.prefix.steps) for r in _requests(100)} >= {1, 2, 3}


def test_a_right_draft_is_approved_and_painted_on():
  ended = 0
  for request in _requests(150):
    draft = renderer.render(request.scene)
    made = shapes.review(request, draft)
    step = made.steps[len(request.prefix.steps) - 1]
    assert made.provenance.error is None and made.provenance.kind == 'self_sampled'
    assert made.stop == trajectory_lib.FINISHED
    assert step.draft is draft and not step.draft_is_target and not step.rejected and step.refined is None
    assert made.steps[: len(request.prefix.steps) - 1] == request.prefix.steps[:-1]
    assert step.plan == request.prefix.steps[-1].plan
    assert all(s.draft_is_target for s in made.steps if s is not step)
    ended += step is made.steps[-1]
    assert ('in the following steps' in step.inspection) == (step is not made.steps[-1])
    assert geneval.evaluate(made.spec.to_row(made.prompt), shapes.detect(made.final))[0]
  assert 20 < ended < 130


def test_a_right_draft_that_is_noisy_or_a_pixel_away_is_approved_and_kept_in_place():
  rng = np.random.default_rng(0)
  moved = 0
  for request in _requests(60):
    scene = tuple(scenes.Object(o.shape, o.color, o.cell, 1 - o.dx, 1 - o.dy) for o in request.scene)
    clean = renderer.render(scene)
    made = shapes.review(request, np.clip(clean + rng.normal(0, 12, clean.shape), 0, 255).astype(np.uint8))
    assert made.provenance.error is None
    later = made.steps[len(request.prefix.steps) :]
    if later and request.story.detour is None:
      ink = np.any(clean != scenes.BACKGROUND, axis=-1)
      assert np.array_equal(later[0].draft[ink], clean[ink])
      moved += 1
  assert moved > 10


def test_a_wrong_draft_is_rejected_and_refined():
  rng = np.random.default_rng(1)
  tried = dict.fromkeys(faults.MISALIGNMENTS, 0)
  for request in _requests(120):
    kind = faults.MISALIGNMENTS[int(rng.integers(len(faults.MISALIGNMENTS)))]
    error = faults.misalignment(kind, request.story.beats[request.beat], rng=rng)
    if error is None:
      continue
    made = shapes.review(request, error.picture)
    step = made.steps[len(request.prefix.steps) - 1]
    assert kind in made.provenance.errors, (made.provenance.errors, kind)
    assert step.rejected and not step.draft_is_target and step.corrected_plan is None
    assert np.array_equal(step.refined, renderer.render(request.scene))
    assert geneval.evaluate(made.spec.to_row(made.prompt), shapes.detect(made.final))[0]
    tried[kind] += 1
  assert min(tried.values()) >= 5


def test_review_copes_with_any_picture():
  rng = np.random.default_rng(2)
  for request in _requests(30):
    for draft in (rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), renderer.blank()):
      made = shapes.review(request, draft)
      assert made.steps[len(request.prefix.steps) - 1].rejected
      assert len(tags.refine_instruction(made.steps[len(request.prefix.steps) - 1].inspection)) > 10


@pytest.mark.parametrize(
  'seen, kinds',
  [
    ((RING, *SQUARES), []),
    ((scenes.Object('ring', 'pink', 0), *SQUARES), ['wrong_color']),
    ((scenes.Object('bar', 'red', 0), *SQUARES), ['wrong_shape']),
    ((scenes.Object('bar', 'pink', 0), *SQUARES), ['wrong_shape']),
    ((scenes.Object('ring', 'red', 5), *SQUARES), ['wrong_place']),
    (SQUARES, ['missing']),
    ((RING, SQUARES[0]), ['wrong_count']),
    ((RING, *SQUARES, scenes.Object('square', 'blue', 1)), ['wrong_count']),
    ((RING, *SQUARES, scenes.Object('bar', 'blue', 1)), ['extra']),
    ((scenes.Malformed(None, 0), *SQUARES), ['malformed']),
    ((RING, *SQUARES, scenes.Malformed('square', 1)), ['extra']),
    ((scenes.Object('ring', 'pink', 0), SQUARES[0]), ['wrong_color', 'wrong_count']),
    ((), ['missing', 'wrong_count', 'wrong_count']),
  ],
)
def test_faults_are_named(seen, kinds):
  found = faults.find_faults((RING, *SQUARES), seen)
  assert [f.kind for f in found] == kinds
  reasons, corrections = critiques.explain(found, rng=np.random.default_rng(0))
  assert bool(reasons) == bool(corrections) == bool(kinds)


@pytest.mark.parametrize('kind', [None, *faults.ERROR_KINDS])
def test_injected_errors_are_what_they_say_and_the_oracle_finds_all(kind):
  """The detector against the plan, and the plan against the prompt, finds every error and raises no false alarm."""
  lengths = set()
  for index in range(60):
    made = shapes.injected(kind, seed=1, index=index)
    assert made.stop is None and made.provenance.error == kind
    assert made.provenance == shapes.injected(kind, seed=1, index=index).provenance
    step = made.steps[-1]
    assert step.plan is not None and step.draft is not None and step.inspection is None
    assert all(s.inspection is not None and not s.rejected for s in made.steps[:-1])
    lengths.add(len(made.steps))
    right = tuple(scenes.Object(*o) for o in made.expected)
    found = [f.kind for f in faults.find_faults(right, drafts.observed(step.draft))]
    if kind is None:
      assert found == []
    elif kind in faults.CONFLICTS:
      assert found
    else:
      assert kind in found
  assert lengths >= ({2} if kind == 'conflict_relation' else {1, 2})


def test_injected_errors_stand_on_held_out_prompts():
  train = {p['prompt'] for p in shapes.prompts('train', per_task=2000) if p['tag'] != 'single_object'}
  for index in range(100):
    made = shapes.injected(faults.ERROR_KINDS[index % len(faults.ERROR_KINDS)], seed=2, index=index)
    assert made.prompt not in train
