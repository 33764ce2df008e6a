"""Trajectories of the shapes world: texts parse, pictures keep them, errors are there, nothing held out is."""

import collections
import functools
import pathlib
import re
import runpy

import numpy as np
import pytest

from pdgen import judges
from pdgen.core import tags
from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import geneval
from pdgen.worlds import shapes
from pdgen.worlds.shapes import comparisons, drafts, faults, language, prompt_space, scenes, stories

ROOT = pathlib.Path(__file__).parents[1]
MIXTURE = ('multi_turn', 'conflict', 'misalignment')  # in equal parts, nearly as in configs/shapes.py
SPOKEN = re.compile(r'[A-Za-z]+')
VERDICTS = {**dict.fromkeys(language.RIGHT, True), **dict.fromkeys(language.WRONG, False)}


@functools.cache
def _made(count: int = 1200) -> tuple[trajectory_lib.Trajectory, ...]:
  return tuple(shapes.trajectory(MIXTURE[i % 3], seed=11, index=i) for i in range(count))


def _texts(made: trajectory_lib.Trajectory) -> list[str]:
  steps = ((s.plan, s.inspection, s.corrected_plan) for s in made.steps)
  return [text for step in steps for text in step if text]


def _right_pictures(made: trajectory_lib.Trajectory):
  """(plan that describes it, picture) of every picture that no inspection rejects."""
  for step in made.steps:
    yield (step.corrected_plan or step.plan, step.refined) if step.rejected else (step.plan, step.draft)


def _described(plan: str) -> list[tuple[str, str, int]]:
  """(shape, colour, cell) of each object that a plan's description names: the text fixes the scene."""
  description = tags.plan_parts(plan)[1]
  found, group = [], None
  places = sorted(scenes.PLACES, key=len, reverse=True)
  tokens = re.findall('|'.join(places) + r'|[a-z]+', description)
  for token in tokens:
    single = token[:-2] if token == 'crosses' else token[:-1] if token.endswith('s') and token != 'cross' else token
    if token in scenes.COLORS:
      group = (None, token)
    elif single in scenes.SHAPES:
      group = (single, group[1])
    elif token in scenes.PLACES:
      found.append((*group, scenes.PLACES.index(token)))
  return sorted(found)


def _seen(picture: np.ndarray) -> list[tuple]:
  return sorted((str(d.shape), d.color, d.cell) for d in shapes.detect(picture))


@pytest.mark.parametrize('kind', shapes.KINDS)
def test_same_seed_and_index_same_trajectory(kind):
  for index in range(5):
    a, b = (shapes.trajectory(kind, seed=3, index=index) for _ in range(2))
    assert (
      a.prompt == b.prompt
      and (a.spec, a.provenance, a.expected) == (b.spec, b.provenance, b.expected)
      and _texts(a) == _texts(b)
    )
    assert all(np.array_equal(p, q) for p, q in zip(a.pictures, b.pictures, strict=True))
  prompts = [shapes.trajectory(kind, seed=s, index=i).prompt for s, i in ((3, 0), (3, 1), (4, 0), (4, 1))]
  assert len(set(prompts)) > 1


def test_unknown_kinds_are_named():
  with pytest.raises(ValueError, match="Unknown kind 'video'"):
    shapes.trajectory('video', seed=0, index=0)
  with pytest.raises(ValueError, match="Unknown error kind 'typo'"):
    shapes.injected('typo', seed=0, index=0)


def test_layout_of_steps():
  for made in _made():
    assert made.stop == trajectory_lib.FINISHED and 1 <= len(made.steps)
    for i, step in enumerate(made.steps):
      last = i == len(made.steps) - 1
      assert step.plan is not None and step.draft is not None and step.draft_is_target
      assert step.inspection is not None  # An inspection stands in every step (paper).
      assert (step.refined is not None) == step.rejected
      assert step.corrected_plan is None or step.rejected
      complete = step.inspection.endswith(('The painting is complete.', 'Nothing is missing.'))
      assert complete == (last and not step.rejected)


def test_texts_parse_and_compare_before_they_judge():
  for made in _made():
    for step in made.steps:
      for plan in (step.plan, step.corrected_plan):
        assert plan is None or all(tags.plan_parts(plan))
      comparisons, verdict = _judgement(step.inspection)
      assert VERDICTS[verdict] == (not step.rejected)
      assert step.inspection.count('<refine>') == step.inspection.count('</refine>') == int(step.rejected)
      # The verdict is the sum of those of the comparisons.
      verdicts = re.findall(r': (correct|wrong)\b', comparisons)
      assert len(verdicts) >= 2 and ('wrong' in verdicts) == step.rejected, step.inspection


def _judgement(inspection: str) -> tuple[str, str]:
  """The comparisons of an inspection, and the sentence of its verdict."""
  verdict = next(v for v in re.findall(r'[^.]+\.', inspection) if v.strip() in VERDICTS)
  return inspection[: inspection.index(verdict)], verdict.strip()


def test_every_right_picture_shows_what_its_plan_describes():
  """So text alone fixes a picture up to the scene's jitter."""
  for made in _made():
    for plan, picture in _right_pictures(made):
      if plan is not None:
        assert _seen(picture) == _described(plan), plan


def test_an_inspection_says_what_the_picture_shows():
  """Every shape and every colour that the draft shows, and no other, is among those that it calls shown."""
  reviewed = [shapes.review(r, _blank()) for r in (shapes.draft_request(seed=5, index=i) for i in range(20))]
  for made in [*_made(), *reviewed]:
    for step in made.steps:
      comparisons, _ = _judgement(step.inspection)
      said = {word for words in re.findall(r'shown (.*?)(?:, planned|: )', comparisons) for word in words.split()}
      seen = shapes.detect(step.draft)
      wanted = {word for d in seen for word in (d.likeness or 'broken', d.color if d.shape else 'broken')}
      said -= {'a', 'an', 'and', 'nothing', 'object', 'at', 'the', *' '.join(scenes.PLACES).split()}
      besides = {'broken'} & said  # Of an object that is not planned, no more is said than that it is broken.
      assert said <= wanted, (step.inspection, seen)
      assert wanted - said <= (set(scenes.SHAPES) if besides else set()), (step.inspection, seen)


OBJECT = functools.partial(scenes.Object, dx=0, dy=0)
RING, BAR = OBJECT('ring', 'red', 1), OBJECT('bar', 'blue', 7)
ABOVE = {
  'include': [{'class': 'bar', 'count': 1}, {'class': 'ring', 'count': 1, 'position': ['above', 0]}],
  'prompt': 'a photo of a ring above a bar',
}
A_RED_RING = 'At the top: shown ring, planned ring, asked ring: correct; shown red, planned red, asked any: correct.'
NOTHING = 'At the top: shown nothing, planned ring, asked ring: wrong; shown nothing, planned red, asked any: wrong.'
ELSE = ' Else: shown nothing: correct.'


@pytest.mark.parametrize(
  ('planned', 'seen', 'want'),
  [
    ((RING,), (RING,), A_RED_RING + ELSE),
    ((RING,), (), NOTHING + ELSE),
    ((RING,), (scenes.Malformed('ring', 1),), A_RED_RING.replace('shown red', 'shown broken')[:-8] + 'wrong.' + ELSE),
    (
      (RING,),
      (BAR, OBJECT('ring', 'red', 0)),
      NOTHING + ' Else: shown a red ring at the top left and a blue bar at the bottom: wrong.',
    ),
    (
      (OBJECT('cross', 'pink', 4), RING, OBJECT('bar', 'blue', 0)),
      (OBJECT('cross', 'pink', 4), scenes.Malformed(None, 1), OBJECT('bar', 'green', 0)),
      'At the center: shown cross, planned cross, asked nothing: correct; '
      + 'shown pink, planned pink, asked any: correct. '
      + NOTHING.replace('nothing', 'broken')
      + ' At the top left: shown bar, planned bar, asked bar: correct; shown green, planned blue, asked any: wrong.'
      + ELSE
      + ' The ring, seen from the bar: planned right of, asked above: wrong.',
    ),
  ],
)
def test_comparisons(planned, seen, want):
  assert comparisons.compare(ABOVE, planned, seen) == want


def test_comparisons_of_counts_and_of_plans_that_contradict_the_prompt():
  three = {'include': [{'class': 'ring', 'count': 3, 'color': 'red'}], 'prompt': 'a photo of three red rings'}
  rings = tuple(OBJECT('ring', 'red', i) for i in range(4))
  blue = OBJECT('ring', 'blue', 2)
  assert comparisons.compare(three, rings[:2], (rings[0], OBJECT('ring', 'pink', 1))) == (
    'At the top left: shown ring, planned ring, asked ring: correct; shown red, planned red, asked red: correct. '
    'At the top: shown ring, planned ring, asked ring: correct; shown pink, planned red, asked red: wrong. '
    'Else: shown nothing: correct. Number: planned two, asked three: correct.'
  )
  assert 'Number: planned four, asked three: wrong.' in comparisons.compare(three, rings, rings)
  assert 'shown blue, planned blue, asked red: wrong.' in comparisons.compare(three, (blue,), (blue,))
  assert comparisons.compare(three, (BAR,), (BAR,), stands_for={BAR: blue}).startswith(
    'At the bottom: shown bar, planned bar, asked ring: wrong; shown blue, planned blue, asked red: wrong.'
  )


def test_verdicts_and_what_is_shown_are_decisive():
  rings = tuple(OBJECT('ring', 'red', i) for i in range(2))
  text = comparisons.compare(ABOVE, (*rings, BAR), (rings[0], BAR)) + ' This step is wrong. It is shown.'
  found = {m for pattern in language.DECISIVE for m in re.findall(pattern, text)}
  assert found == {'correct', 'wrong', 'ring', 'red', 'bar', 'blue', 'nothing'}


def test_what_is_shown_and_not_planned_tells_of_a_fault():
  (pattern,) = language.FAULTS
  seen = (scenes.Malformed(None, RING.cell), OBJECT('bar', 'pink', BAR.cell), OBJECT('pole', 'red', 0))
  text = comparisons.compare(ABOVE, (RING, BAR, OBJECT('ring', 'red', 8)), seen)
  found = [m.group() for m in re.finditer(pattern, text)]
  assert found == ['broken', 'broken', 'pink', 'nothing', 'nothing'], text
  assert not re.search(pattern, comparisons.compare(ABOVE, (RING, BAR), (RING, BAR)))


def test_every_right_step_leaves_what_was_there_pixel_identical():
  """Ink of a right picture stays in the next one, unless the next plan changes, replaces or removes something."""
  checked = 0
  for made in _made():
    if made.provenance.detour is not None:
      continue
    right = [picture for _, picture in _right_pictures(made)]
    for before, after in zip(right[:-1], right[1:], strict=True):
      ink = np.any(before != scenes.BACKGROUND, axis=-1)
      assert np.array_equal(before[ink], after[ink]) and not np.array_equal(before, after)
      checked += 1
  assert checked > 500


def test_final_pictures_keep_their_prompts():
  made = [*_made(), *(shapes.trajectory('direct', seed=11, index=i) for i in range(400))]
  report = geneval.score(
    [t.spec.to_row(t.prompt) for t in made], [t.final for t in made], judges.detector('exact', shapes)
  )
  assert report.overall == 1.0 and set(report.tasks) == set(shapes.TASKS)
  assert min(s.total for s in report.tasks.values()) > 50


def test_rejected_drafts_are_wrong_and_approved_ones_are_not():
  for made in _made():
    for step in made.steps:
      if step.rejected:
        right = _described(step.corrected_plan or step.plan)
        assert _seen(step.draft) != right and _seen(step.refined) == right


def test_conflicts_show_their_plan_and_misalignments_do_not():
  for made in _made():
    for step in made.steps:
      if step.rejected:
        assert (_seen(step.draft) == _described(step.plan)) == step.plan_rejected
        judged = step.inspection[step.inspection.index('step is wrong.') :]
        assert ('prompt' in judged) == step.plan_rejected


def test_conflicting_plans_contradict_the_prompt():
  """The wrong scene itself could not be finished into the prompt's: its error is in what the prompt fixes."""
  for made in _made():
    (kind, *_) = made.provenance.errors or [None]
    if kind not in faults.CONFLICTS:
      continue
    (step,) = (s for s in made.steps if s.plan_rejected)
    wrong, right = _described(step.plan), _described(step.corrected_plan)
    wanted = {i['class']: i for i in made.spec.to_row('')['include']}
    if kind == 'conflict_color':
      assert any(s in wanted and c != wanted[s]['color'] for s, c, _ in wrong)
    elif kind == 'conflict_shape':
      assert any(s not in wanted for s, _, _ in wrong) and all(s in wanted for s, _, _ in right)
    elif kind == 'conflict_count':
      assert len(wrong) == made.spec.to_row('')['exclude'][0]['count']
    else:
      ok, reason = geneval.evaluate(made.spec.to_row(made.prompt), shapes.detect(step.draft))
      assert not ok and 'target' in reason


def test_shares_of_errors_detours_tasks_and_pictures():
  made = _made(4000)
  share = collections.Counter(e for t in made for e in set(t.provenance.errors))
  mixture = runpy.run_path(str(ROOT / 'configs' / 'shapes.py'))['get_config']().data.sources[0]['mixture']
  with_error = collections.Counter((t.provenance.kind, e) for t in made for e in set(t.provenance.errors))
  of_kind = collections.Counter(t.provenance.kind for t in made)
  for error in shapes.ERROR_KINDS:
    # About a twentieth of what the world makes, of conflicts 5.25 %; in training a quarter are the model's own drafts.
    parts = [part * with_error[kind, error] / of_kind[kind] for kind, part in mixture if kind in of_kind]
    assert sum(parts) > 0.045, error
  assert 0.2 < share[faults.OTHER_SCENE] / len(made) < 0.26
  detours = collections.Counter(t.provenance.detour for t in made if t.provenance.kind == 'multi_turn')
  assert set(detours) == {None, 'refine', 'swap', 'remove'}
  assert 0.07 < 1 - detours[None] / detours.total() < 0.13
  tasks = collections.Counter(t.spec.tag for t in made)
  assert all(0.04 < tasks[t] / len(made) < 0.3 for t in shapes.TASKS)
  pictures = [len(t.pictures) for t in made]
  assert 2.0 < np.mean(pictures) < 3.0
  assert max(len(t.steps) for t in made) <= 5


def test_drafts_of_other_scenes_are_wrong_in_any_place_whatever_the_others_show():
  """Whoever learns from them cannot tell what is shown from what was planned, nor from what is right elsewhere."""
  rng = np.random.default_rng(0)
  differences, right = collections.Counter(), collections.Counter()
  for _ in range(600):
    beat = stories.tell(rng, split='train').beats[-1]
    wrong = faults.misalignment(faults.OTHER_SCENE, beat, rng=rng)
    assert {o.cell for o in drafts.observed(wrong.picture)} == {o.cell for o in wrong.scene}
    differences[len(wrong.scene) - len(beat.after)] += 1
    if len(beat.after) == 2:
      right[tuple(o in wrong.scene for o in beat.after)] += 1
  assert min(differences[d] for d in (-1, 0, 1)) > 30, differences
  assert min(right[k] / right.total() for k in ((False, True), (True, False), (False, False))) > 0.15, right


def test_texts_are_short_and_their_vocabulary_small():
  words = collections.defaultdict(list)
  vocabulary = set()
  for made in _made():
    for step in made.steps:
      for name in ('plan', 'inspection', 'corrected_plan'):
        text = re.sub(r'</?(ins|des|refine)>', ' ', getattr(step, name) or '')
        vocabulary |= set(SPOKEN.findall(text))
        if text:
          words[name].append(len(SPOKEN.findall(text)))
  assert len(vocabulary) <= 200
  assert np.mean(words['plan']) < 25 and np.mean(words['inspection']) < 60
  assert max(max(v) for v in words.values()) < 140


def test_nothing_held_out_is_in_a_training_trajectory():
  """Neither its prompt nor, in any picture, right or wrong, a held-out pair of coloured shapes."""
  made = [*_made(), *(shapes.trajectory('direct', seed=5, index=i) for i in range(800))]
  made += [shapes.review(r, _blank()) for r in (shapes.draft_request(seed=5, index=i) for i in range(300))]
  held = {p['prompt'] for t in shapes.TASKS[1:] for p in prompt_space.task_prompts('heldout', t)}
  for trajectory in made:
    assert trajectory.prompt not in held
    for picture in trajectory.pictures:
      seen = scenes.whole(drafts.observed(picture))
      assert not prompt_space.holds_held_out(seen), (trajectory.prompt, seen)


def test_the_scan_for_held_out_things_can_fail():
  assert all(prompt_space.is_held_out(p) for t in shapes.TASKS[1:] for p in prompt_space.task_prompts('heldout', t))
  found = 0
  for index in range(400):
    made = shapes.injected(None, seed=0, index=index)
    found += prompt_space.holds_held_out(scenes.whole(drafts.observed(made.final)))
  assert found > 30


def test_corpus_is_plain_text_of_the_world():
  texts = list(shapes.corpus(seed=0, count=30))
  assert texts == list(shapes.corpus(seed=0, count=30))
  assert sum(t.startswith('Please create the image step-by-step: a photo of') for t in texts) == 30
  assert not any('<' in t or '>' in t for t in texts)
  assert any('The corrective' in t or 'wrong' in t for t in texts) and any(t.startswith('The image') for t in texts)


def _blank() -> np.ndarray:
  return np.full((scenes.SIZE, scenes.SIZE, 3), scenes.BACKGROUND, np.uint8)
