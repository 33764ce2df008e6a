"""Drafts that are not the world's own: requests for a model's, their review, and injected errors to test an inspector.

The paper's self-sampled critique in small: a model paints the next draft of a partial trajectory, the detector compares
it with the scene of the plan, and the pair becomes a training trajectory, whatever the verdict.
"""

import dataclasses

import numpy as np

from pdgen.core import seeding
from pdgen.core import trajectory as trajectory_lib
from pdgen.worlds.shapes import critiques, detector, faults, renderer, scenes, stories, trajectories

_REQUEST, _REVIEW, _INJECTED = 101, 102, 103  # numbers of the random streams, apart from those of the kinds


@dataclasses.dataclass(frozen=True, kw_only=True)
class DraftRequest:
  """A partial trajectory whose last step has a plan and wants its draft.

  prefix: the partial trajectory (stop None, the last step's draft None). scene: what the draft should show.
  story, beat: where in which story it stands. seed, index: of the request.
  """

  prefix: trajectory_lib.Trajectory
  scene: scenes.Scene
  story: stories.Story
  beat: int
  seed: int
  index: int


def draft_request(*, seed: int, index: int) -> DraftRequest:
  """A step of a training story, asked for at random; the steps before it are the world's own and right."""
  rng = seeding.generator(seed, index, _REQUEST)
  detour = stories.choose(rng, stories.DETOURS) if rng.random() < trajectories.DETOUR_SHARE else None
  story = stories.tell(rng, split='train', detour=detour)
  beat = int(rng.integers(len(story.beats)))
  made = trajectories.steps(story, rng=rng, stop=beat)
  made.append(trajectory_lib.Step(plan=trajectories.plan(story.beats[beat], rng=rng)))
  prefix = _partial(story, made, kind='self_sampled')
  scene = story.beats[beat].after
  return DraftRequest(prefix=prefix, scene=scene, story=story, beat=beat, seed=seed, index=index)


def observed(picture: np.ndarray) -> scenes.Scene:
  """The scene that the detector sees in uint8[H, W, 3]."""
  return tuple(d.object for d in detector.detect(picture))


def review(request: DraftRequest, draft: np.ndarray) -> trajectory_lib.Trajectory:
  """The finished training trajectory in which uint8[H, W, 3] `draft` is the requested draft (draft_is_target False).

  A right draft is approved and painted on, its objects staying where the draft has them to a pixel; a wrong one gets an
  inspection with `<refine>` and the world's right picture. metadata: as of `trajectory`, `self_sampled` True, `error`
  the kind of the first fault (faults.MISALIGNMENTS) or None, `errors` all of them.
  """
  rng = seeding.generator(request.seed, request.index, _REVIEW)
  seen = observed(draft)
  found = faults.find_faults(request.scene, seen)
  story, beat = request.story, request.story.beats[request.beat]
  *before, asked = request.prefix.steps
  if found:
    reasons, corrections = critiques.explain(found, rng=rng)
    error = faults.FaultyStep(scene=seen, picture=draft, reasons=reasons, corrections=corrections)
    step = trajectories.rejected(story, beat, error, rng=rng, plan_text=asked.plan, draft_is_target=False)
  else:
    inspection = trajectories.approval(story, beat, rng=rng)
    step = dataclasses.replace(asked, draft=draft, inspection=inspection, draft_is_target=False)
    story = _moved(story, seen)
  rest = trajectories.steps(story, rng=rng, start=request.beat + 1)
  kinds = tuple(f.kind for f in found)
  return trajectories.finished(story, [*before, step, *rest], kind='self_sampled', error_kinds=kinds, self_sampled=True)


def injected(kind: str | None, *, seed: int, index: int) -> trajectory_lib.Trajectory:
  """A partial trajectory on a held-out prompt whose last step has a plan and a draft, to be inspected.

  kind: one of faults.ERROR_KINDS, or None for a right draft. Nothing before the last step is wrong.
  metadata['error']: the kind; ['scene']: (shape, colour, cell) of what a right draft of that step shows; ['last']:
  whether the step is the story's last, so that a right draft finishes the painting.

  Raises: ValueError for an unknown kind.
  """
  if kind is not None and kind not in faults.ERROR_KINDS:
    raise ValueError(f'Unknown error kind {kind!r}. Known: {faults.ERROR_KINDS}')
  number = 0 if kind is None else 1 + faults.ERROR_KINDS.index(kind)
  rng = seeding.generator(seed, index, _INJECTED, number)
  error = None
  if kind in faults.CONFLICTS:
    story, i, error = trajectories.conflict_at(kind, split='heldout', rng=rng)
  else:
    while True:
      story = stories.tell(rng, split='heldout')
      i = int(rng.integers(len(story.beats)))
      if kind is None:
        break
      error = trajectories.misalignment_at(kind, story, i, split='heldout', rng=rng)
      if error is not None:
        break
  made = trajectories.steps(story, rng=rng, stop=i)
  beat = story.beats[i]
  plan_wrong = error is not None and error.instruction is not None
  text = trajectories.wrong_plan(error, rng=rng) if plan_wrong else trajectories.plan(beat, rng=rng)
  picture = renderer.render(beat.after) if error is None else error.picture
  made.append(trajectory_lib.Step(plan=text, draft=picture))
  scene = [(o.shape, o.color, o.cell) for o in beat.after]
  kinds = () if kind is None else (kind,)
  return _partial(story, made, kind='injected', error_kinds=kinds, scene=scene, last=i == len(story.beats) - 1)


def _partial(story: stories.Story, made: list[trajectory_lib.Step], **more) -> trajectory_lib.Trajectory:
  return dataclasses.replace(trajectories.finished(story, made, **more), stop=None)


def _moved(story: stories.Story, seen: scenes.Scene) -> stories.Story:
  """The story with the objects that were seen where they were seen, as far as the grid's jitter lets them."""
  at = {(o.shape, o.color, o.cell): o for o in seen}

  def move(item: scenes.Object) -> scenes.Object:
    found = at.get((item.shape, item.color, item.cell))
    if found is None:
      return item
    dx, dy = (min(max(d, 0), scenes.JITTER) for d in (found.dx, found.dy))
    return dataclasses.replace(item, dx=dx, dy=dy)

  beats = tuple(dataclasses.replace(b, after=tuple(move(o) for o in b.after)) for b in story.beats)
  return dataclasses.replace(story, beats=beats)
