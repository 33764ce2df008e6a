"""Training trajectories of the shapes world, generated on the fly: a pure function of (kind, seed, index)."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pdgen.core import config
from pdgen.core import rng as rng_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.worlds.shapes import comparisons, faults, language, prompt_space, renderer, scenes, stories

KINDS = ('multi_turn', 'conflict', 'misalignment', 'direct')
DETOUR_SHARE = 0.1  # share of the multi-turn trajectories that take a detour
# Share of the misalignments whose draft shows another scene altogether. Without them 0 of 34 wrong shapes were read
# (docs/experiments.md#other-scenes). The rest leaves each of the seven kinds in 5 % of the mixture.
OTHER_SCENE_SHARE = 0.45
# Weights of the other kinds, 1 by default; higher for errors overlooked longest (docs/experiments.md#error-shares).
_WEIGHTS = {'wrong_count': 1.5, 'malformed': 2.0, 'extra': 1.3}
_TRIES = 8  # attempts to draw an error whose scene contains no held-out pair


def trajectory(kind: str, *, seed: int, index: int) -> trajectory_lib.Trajectory:
  """One finished training trajectory; its prompt is a training prompt, none of its scenes has a held-out pair.

  kind: `multi_turn` has no error, one in ten takes a detour (refine, swap, remove); `conflict`: one plan contradicts
  the prompt; `misalignment`: a draft, or two, does not show its plan; `direct`: one picture without words.
  Its `provenance` names the kind, the errors in order and the detour; `expected` is what the last picture shows.

  Raises: ValueError for an unknown kind.
  """
  if kind not in KINDS:
    raise ValueError(f'Unknown kind {kind!r}. Known: {KINDS}')
  rng = rng_lib.numpy_rng(seed, index, KINDS.index(kind))
  if kind == 'conflict':
    return _conflict(rng)
  if kind == 'misalignment':
    return _misalignment(rng)
  detour = stories.choose(rng, stories.DETOURS) if kind == 'multi_turn' and rng.random() < DETOUR_SHARE else None
  story = stories.tell(rng, split='train', detour=detour)
  if kind == 'direct':
    step = trajectory_lib.Step(draft=renderer.render(story.scene))
    return finished(story, [step], kind=kind, mode=trajectory_lib.DIRECT)
  return finished(story, steps(story, rng=rng), kind=kind)


def corpus(*, seed: int, count: int) -> Iterator[str]:
  """Texts of `count` trajectories for training a tokenizer: prompts with their opening words; others split at tags."""
  kinds = ('multi_turn', 'conflict', 'misalignment')
  opening = config.SequenceConfig().opening
  for index in range(count):
    made = trajectory(kinds[index % len(kinds)], seed=seed, index=index)
    yield opening + made.prompt
    for step in made.steps:
      for text in (step.plan, step.inspection, step.corrected_plan):
        yield from (part for part in _TAG.split(text or '') if part)


_TAG = re.compile(r'<[/\\]?(?:ins|des|refine)>')


def finished(
  story: stories.Story,
  made: list[trajectory_lib.Step],
  *,
  kind: str,
  error_kinds: tuple[str, ...] = (),
  expected: scenes.Scene | None = None,
  **more: Any,
) -> trajectory_lib.Trajectory:
  """The steps as a trajectory of the story's prompt.

  Args:
    story: whose prompt it is.
    made: the steps.
    kind: for the provenance.
    error_kinds: of the errors made in it.
    expected: what the last picture should show; None: the story's last scene.
    more: other fields of the trajectory.
  """
  scene = story.scene if expected is None else expected
  provenance = trajectory_lib.Provenance(source='shapes', kind=kind, errors=error_kinds, detour=story.detour)
  return trajectory_lib.Trajectory(
    prompt=story.prompt,
    steps=tuple(made),
    spec=trajectory_lib.PromptSpec.from_row(story.metadata),
    provenance=provenance,
    expected=tuple(trajectory_lib.Content(name=o.shape, color=o.color, cell=o.cell) for o in scene),
    **more,
  )


def steps(
  story: stories.Story,
  *,
  rng: np.random.Generator,
  wrong: Mapping[int, faults.FaultyStep] | None = None,
  start: int = 0,
  stop: int | None = None,
) -> list[trajectory_lib.Step]:
  """The steps of the beats `start` to `stop` (exclusive).

  Args:
    story: the beats.
    rng: chooses the wording.
    wrong: index of a beat to its error; the other steps are right at once.
    start: index of the first beat.
    stop: index after the last beat; None: all.
  """
  stop = len(story.beats) if stop is None else stop
  made = []
  for i in range(start, stop):
    beat, error = story.beats[i], (wrong or {}).get(i)
    if error is not None:
      made.append(rejected(story, beat, error, rng=rng))
      continue
    text = plan(beat, rng=rng)
    inspection = approval(story, beat, rng=rng)
    made.append(trajectory_lib.Step(plan=text, draft=renderer.render(beat.after), inspection=inspection))
  return made


def plan(beat: stories.Beat, *, rng: np.random.Generator) -> str:
  """The right plan of a beat."""
  return language.plan(beat.instruction, beat.after, new=beat.new, rng=rng)


def wrong_plan(error: faults.Conflict, *, rng: np.random.Generator) -> str:
  """The plan of a conflict, which contradicts the prompt."""
  return language.plan(error.instruction, error.scene, rng=rng)


def approval(story: stories.Story, beat: stories.Beat, *, rng: np.random.Generator) -> str:
  """The inspection that approves a right draft.

  Args:
    story: the prompt.
    beat: the step.
    rng: chooses the wording.
  """
  compared = comparisons.compare(story.metadata, beat.after, beat.after)
  return language.right(compared, beat.missing, extra=beat.extra, rng=rng)


def rejected(
  story: stories.Story,
  beat: stories.Beat,
  error: faults.FaultyStep,
  *,
  rng: np.random.Generator,
  plan_text: str | None = None,
  **more: Any,
) -> trajectory_lib.Step:
  """A step with an error: its inspection rejects the draft, and the refined picture is the right one of the beat.

  Args:
    story: the prompt.
    beat: the right step.
    error: the draft, and the words of the inspection.
    rng: chooses the wording.
    plan_text: the plan, if it is already written.
    **more: other fields of the step.
  """
  planned, stands_for = beat.after, {}
  if isinstance(error, faults.Conflict):
    planned = error.scene
    stands_for = dict(zip((o for o in planned if o not in beat.before), beat.new, strict=False))
  compared = comparisons.compare(story.metadata, planned, error.scene, stands_for=stands_for)
  inspection = language.wrong(compared, error.reasons, error.corrections, rng=rng)
  corrected = None
  if isinstance(error, faults.Conflict):
    corrected = language.plan(' '.join(error.corrections), beat.after, rng=rng)
    plan_text = plan_text or wrong_plan(error, rng=rng)
  return trajectory_lib.Step(
    plan=plan_text or plan(beat, rng=rng),
    draft=error.picture,
    inspection=inspection,
    corrected_plan=corrected,
    refined=renderer.render(beat.after),
    **more,
  )


def conflict_at(kind: str, *, split: str, rng: np.random.Generator) -> tuple[stories.Story, int, faults.Conflict]:
  """A random story with a conflict of that kind. Returns (story, index of the beat, the conflict).

  Args:
    kind: one of `faults.CONFLICTS`.
    split: `heldout` or `train`.
    rng: draws story and conflict.
  """
  while True:
    story = stories.tell(rng, split=split, tasks=faults.CONFLICT_TASKS[kind])
    for i in (int(i) for i in rng.permutation(len(story.beats))):
      error = faults.conflict(kind, story.metadata, story.beats[i], rng=rng)
      if error is not None and may_show(error.scene, split=split):
        return story, i, error


def misalignment_at(
  kind: str, story: stories.Story, i: int, *, split: str, rng: np.random.Generator
) -> faults.FaultyStep | None:
  """A draft of beat `i` with a misalignment of that kind; None if the kind does not apply there.

  Args:
    kind: one of `faults.MISALIGNMENTS`, or `faults.OTHER_SCENE`.
    story: the story.
    i: index of the beat.
    split: `heldout` or `train`.
    rng: draws the error.
  """
  for _ in range(_TRIES):
    error = faults.misalignment(kind, story.beats[i], rng=rng)
    if error is not None and may_show(error.scene, split=split):
      return error
  return None


def may_show(scene: scenes.SeenScene, *, split: str) -> bool:
  """Whether a picture of that split may show the scene: training pictures may not contain a held-out pair."""
  return split != 'train' or not prompt_space.holds_held_out(scenes.whole(scene))


def _conflict(rng: np.random.Generator) -> trajectory_lib.Trajectory:
  kind = stories.choose(rng, faults.CONFLICTS)
  story, i, error = conflict_at(kind, split='train', rng=rng)
  return finished(story, steps(story, rng=rng, wrong={i: error}), kind='conflict', error_kinds=(kind,))


def _misalignment(rng: np.random.Generator) -> trajectory_lib.Trajectory:
  """A trajectory with one misalignment, and a second one at another step if the story has several."""
  kinds = _any_order(rng)
  while True:
    story = stories.tell(rng, split='train')
    i = int(rng.integers(len(story.beats)))
    error = misalignment_at(kinds[0], story, i, split='train', rng=rng)
    if error is not None:
      break
  wrong = {i: (kinds[0], error)}
  others = [j for j in range(len(story.beats)) if j != i]
  if others:
    j = stories.choose(rng, others)
    for kind in _any_order(rng):
      second = misalignment_at(kind, story, j, split='train', rng=rng) if kind != kinds[0] else None
      if second is not None:
        wrong[j] = (kind, second)
        break
  made = steps(story, rng=rng, wrong={k: error for k, (_, error) in wrong.items()})
  return finished(story, made, kind='misalignment', error_kinds=tuple(wrong[k][0] for k in sorted(wrong)))


def _any_order(rng: np.random.Generator) -> list[str]:
  weights = np.array([_WEIGHTS.get(kind, 1.0) for kind in faults.MISALIGNMENTS])
  order = rng.choice(len(weights), size=len(weights), replace=False, p=weights / weights.sum())
  kinds = [faults.MISALIGNMENTS[int(k)] for k in order]
  return [faults.OTHER_SCENE, *kinds] if rng.random() < OTHER_SCENE_SHARE else kinds
