"""Self-sampled critique (paper) of a model's drafts, and injected errors that test an inspector.

`draft_request` gives a partial trajectory, a model paints its next draft, and `review` compares the draft with the
planned scene by the detector and completes the training trajectory, whatever the verdict. `injected` makes the
questions of the inspection metrics.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from pdgen.core import rng as rng_lib
from pdgen.core import scene_graph
from pdgen.core import trajectory as trajectory_lib
from pdgen.worlds.shapes import critiques, detector, faults, renderer, scenes, stories, trajectories

_REQUEST, _REVIEW, _INJECTED = 101, 102, 103  # random streams, distinct from those of `trajectories.KINDS`


@dataclasses.dataclass(frozen=True, kw_only=True)
class DraftRequest:
  """A partial trajectory whose last step has a plan and no draft yet."""

  prefix: trajectory_lib.Trajectory  # the partial trajectory; stop None, draft of the last step None
  scene: scenes.Scene  # what the draft should show
  story: stories.Story  # the story that the prefix is taken from
  beat: int  # index of the last step's beat in the story
  seed: int  # seed of the request
  index: int  # index of the request


def draft_request(*, seed: int, index: int) -> DraftRequest:
  """A step of a training story, asked for at random; the steps before it are the world's own and right."""
  rng = rng_lib.numpy_rng(seed, index, _REQUEST)
  detour = stories.choose(rng, stories.DETOURS) if rng.random() < trajectories.DETOUR_SHARE else None
  story = stories.tell(rng, split='train', detour=detour)
  beat = int(rng.integers(len(story.beats)))
  made = trajectories.steps(story, rng=rng, stop=beat)
  made.append(trajectory_lib.Step(plan=trajectories.plan(story.beats[beat], rng=rng)))
  scene = story.beats[beat].after
  prefix = _partial(story, made, kind='self_sampled', expected=scene)
  return DraftRequest(prefix=prefix, scene=scene, story=story, beat=beat, seed=seed, index=index)


def shows(picture: np.ndarray, expected: Iterable[trajectory_lib.Content]) -> bool:
  """Whether uint8[H, W, 3] `picture` shows the expected objects, each in its cell, and nothing else."""
  seen = [(d.shape, d.color, d.cell) for d in detector.detect(picture)]
  return sorted(map(str, seen)) == sorted(str(tuple(item)) for item in expected)


def contents(graph: scene_graph.SceneGraph) -> tuple[trajectory_lib.Content, ...]:
  """What a picture of a scene graph shows, for `shows`."""
  return tuple(trajectory_lib.Content(name=o.shape, color=o.color, cell=o.cell) for o in scenes.of_graph(graph))


def observed(picture: np.ndarray) -> scenes.SeenScene:
  """The scene that the detector sees in a picture uint8[H, W, 3]."""
  return tuple(d.object for d in detector.detect(picture))


def review(request: DraftRequest, draft: np.ndarray) -> trajectory_lib.Trajectory:
  """Completes a requested trajectory around the model's draft, uint8[H, W, 3], which is no flow target.

  A right draft is approved and painted on, its objects staying where the draft has them to a pixel; a wrong one gets an
  inspection with `<refine>` and the world's right picture. The errors of its provenance are the kinds of the faults
  (faults.MISALIGNMENTS).
  """
  rng = rng_lib.numpy_rng(request.seed, request.index, _REVIEW)
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
  return trajectories.finished(story, [*before, step, *rest], kind='self_sampled', error_kinds=kinds)


def injected(kind: str | None, *, seed: int, index: int) -> trajectory_lib.Trajectory:
  """A partial trajectory on a held-out prompt whose last step has a plan and a draft to be inspected.

  kind: one of faults.ERROR_KINDS, or None for a right draft. Nothing before the last step is wrong.
  The error of its provenance is the kind; `expected` is what a right draft of that step shows.

  Raises: ValueError for an unknown kind.
  """
  if kind is not None and kind not in faults.ERROR_KINDS:
    raise ValueError(f'Unknown error kind {kind!r}. Known: {faults.ERROR_KINDS}')
  number = 0 if kind is None else 1 + faults.ERROR_KINDS.index(kind)
  rng = rng_lib.numpy_rng(seed, index, _INJECTED, number)
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
  conflict = isinstance(error, faults.Conflict)
  text = trajectories.wrong_plan(error, rng=rng) if conflict else trajectories.plan(beat, rng=rng)
  picture = renderer.render(beat.after) if error is None else error.picture
  made.append(trajectory_lib.Step(plan=text, draft=picture))
  kinds = () if kind is None else (kind,)
  return _partial(story, made, kind='injected', error_kinds=kinds, expected=beat.after)


def _partial(story: stories.Story, made: list[trajectory_lib.Step], **more) -> trajectory_lib.Trajectory:
  return trajectories.finished(story, made, stop=None, **more)


def _moved(story: stories.Story, seen: scenes.SeenScene) -> stories.Story:
  """The story with its objects moved to the pixels where they were seen, within the jitter of the grid."""
  at = {(o.shape, o.color, o.cell): o for o in scenes.whole(seen)}

  def move(item: scenes.Object) -> scenes.Object:
    found = at.get((item.shape, item.color, item.cell))
    if found is None:
      return item
    dx, dy = (min(max(d, 0), scenes.JITTER) for d in (found.dx, found.dy))
    return dataclasses.replace(item, dx=dx, dy=dy)

  beats = tuple(dataclasses.replace(b, after=tuple(move(o) for o in b.after)) for b in story.beats)
  return dataclasses.replace(story, beats=beats)
