"""Errors of a step: injects conflicts (plan against prompt) and misalignments (draft against plan), diagnoses drafts.

`find_faults` diagnoses a draft by comparing the planned scene with the seen one. An injected error and one that the
detector finds in a model's own draft are therefore described in the same words.
"""

import dataclasses

import numpy as np

from pdgen.core import geometry
from pdgen.worlds.shapes import critiques, damage, language, prompt_space, renderer, scenes, stories

CONFLICTS = ('conflict_color', 'conflict_shape', 'conflict_count', 'conflict_relation')
MISALIGNMENTS = ('wrong_color', 'wrong_shape', 'wrong_place', 'wrong_count', 'missing', 'extra', 'malformed')
ERROR_KINDS = CONFLICTS + MISALIGNMENTS
OTHER_SCENE = 'other_scene'  # several misalignments at once; for training, not for evaluation

# Tasks whose prompts a plan can contradict by a conflict of that kind.
CONFLICT_TASKS = {
  'conflict_color': ('colors', 'color_attr'),
  'conflict_shape': prompt_space.TASKS,
  'conflict_count': ('counting',),
  'conflict_relation': ('position',),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaultyStep:
  """A step with an error: its draft and the words of its inspection. Its plan is right, unless it is a `Conflict`."""

  scene: scenes.SeenScene  # what the draft shows, as the detector sees it
  picture: np.ndarray  # uint8[H, W, 3], the draft
  reasons: tuple[str, ...]  # sentences before `<refine>`
  corrections: tuple[str, ...]  # sentences inside `<refine>`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conflict(FaultyStep):
  """A step whose plan contradicts the prompt; the draft shows the plan."""

  scene: scenes.Scene  # what the plan describes and the draft shows
  instruction: str  # instruction of the plan


def conflict(
  kind: str, metadata: prompt_space.Metadata, beat: stories.Beat, *, rng: np.random.Generator
) -> Conflict | None:
  """Replaces the plan of a beat by one that contradicts the prompt; the draft shows the wrong plan.

  Args:
    kind: one of CONFLICTS.
    metadata: the prompt, in GenEval's format.
    beat: the right step.
    rng: chooses the error and its wording.

  Returns: the conflict, or None if the kind does not apply to the beat.
  """
  made = {
    'conflict_color': _conflict_color,
    'conflict_shape': _conflict_shape,
    'conflict_count': _conflict_count,
    'conflict_relation': _conflict_relation,
  }[kind](metadata, beat, rng)
  if made is None:
    return None
  new, reason, correction = made
  scene = beat.before + new
  return Conflict(
    scene=scene,
    picture=renderer.render(scene),
    instruction=language.add(new, rng=rng),
    reasons=(reason,),
    corrections=(correction,),
  )


def misalignment(kind: str, beat: stories.Beat, *, rng: np.random.Generator) -> FaultyStep | None:
  """Replaces the draft of a beat by one that does not show the plan.

  The error is mostly in an object that the beat adds, sometimes in one that was right before.

  Args:
    kind: one of MISALIGNMENTS, or OTHER_SCENE.
    beat: the right step.
    rng: chooses the error and its wording.

  Returns: the faulty step, or None if the kind does not apply to the beat.
  """
  if not beat.after:
    return None
  if kind == OTHER_SCENE:
    drawn, broken = _others(beat.after, rng)
    picture, scene = damage.paint(drawn, broken, rng=rng)
  else:
    victim = stories.choose(rng, beat.new if beat.new and rng.random() < 0.8 else beat.after)
    if kind == 'malformed':
      picture, scene = damage.paint(beat.after, (victim,), rng=rng)
    else:
      scene = _misdrawn(kind, beat.after, victim, rng=rng)
      if scene is None:
        return None
      picture = renderer.render(scene)
  reasons, corrections = critiques.explain(find_faults(beat.after, scene), rng=rng)
  return FaultyStep(scene=scene, picture=picture, reasons=reasons, corrections=corrections)


def find_faults(scene: scenes.Scene, seen: scenes.SeenScene) -> list[critiques.Fault]:
  """The differences between the scene that a picture should show and the scene that it shows; [] if there are none.

  Kinds are those of MISALIGNMENTS. An absent or surplus object is a `wrong_count` if the scene has others of its shape
  and colour, otherwise `missing` or `extra`.

  >>> ring, square = scenes.Object('ring', 'red', 0), scenes.Object('square', 'blue', 5)
  >>> [f.kind for f in find_faults((ring, square), (ring, scenes.Object('square', 'blue', 8)))]
  ['wrong_place']
  """
  matched, rest = scenes.matched(scene, seen)
  left = list(rest)
  found: list[critiques.Fault] = []
  for item, there in matched.items():
    if isinstance(there, scenes.Malformed):
      found.append(critiques.Lost(kind='malformed', wanted=item))
    elif there.shape != item.shape:
      found.append(critiques.Changed(kind='wrong_shape', wanted=item, seen=there))
    elif there.color != item.color:
      found.append(critiques.Changed(kind='wrong_color', wanted=item, seen=there))
  for item in (item for item in scene if item not in matched):
    moved = next((o for o in scenes.whole(left) if scenes.alike(o, item)), None)
    if moved is not None:
      left.remove(moved)
      found.append(critiques.Changed(kind='wrong_place', wanted=item, seen=moved))
    else:
      counts = _counts(item, scene, seen)
      found.append(critiques.Lost(kind='wrong_count' if counts[0] > 1 else 'missing', wanted=item, counts=counts))
  for item in left:
    counts = _counts(item, scene, seen)
    found.append(critiques.Surplus(kind='wrong_count' if counts[0] > 0 else 'extra', seen=item, counts=counts))
  return found


def _counts(item: scenes.Seen, scene: scenes.Scene, seen: scenes.SeenScene) -> tuple[int, int]:
  """Objects of the same shape and colour: (planned, seen)."""
  return sum(scenes.alike(o, item) for o in scene), sum(scenes.alike(o, item) for o in seen)


def _misdrawn(
  kind: str, scene: scenes.Scene, victim: scenes.Object, *, rng: np.random.Generator
) -> scenes.Scene | None:
  alike = sum(scenes.alike(o, victim) for o in scene)
  rest = tuple(o for o in scene if o != victim)
  if kind == 'wrong_color':
    color = stories.choose(rng, [c for c in scenes.COLORS if c != victim.color])
    return _put(scene, victim, dataclasses.replace(victim, color=color))
  if kind == 'wrong_shape':
    shape = stories.choose(rng, [s for s in scenes.SHAPES if s != victim.shape])
    return _put(scene, victim, dataclasses.replace(victim, shape=shape))
  cell = stories.choose(rng, stories.free_cells(scene))
  if kind == 'wrong_place':
    return _put(scene, victim, dataclasses.replace(victim, cell=cell))
  if kind == 'wrong_count':
    return rest if alike > 1 and rng.random() < 0.5 else (*scene, dataclasses.replace(victim, cell=cell))
  if kind == 'missing':
    return rest if alike == 1 else None
  shape, color = stories.choose(rng, tuple(scenes.SHAPES)), stories.choose(rng, tuple(scenes.COLORS))
  extra = scenes.Object(shape, color, cell, victim.dx, victim.dy)
  return None if any(scenes.alike(o, extra) for o in scene) else (*scene, extra)


def _others(scene: scenes.Scene, rng: np.random.Generator) -> tuple[scenes.Scene, scenes.Scene]:
  """Redraws a scene as another one: each object is kept, changed, malformed or removed; sometimes one is added.

  In a draft with a single error, all words but one of the inspection are those of the plan, and a small model copies
  them. Here it has to read the picture. The share of kept objects varies between drafts, so that one object says little
  about the next (docs/experiments.md#other-scenes).

  Returns: (the scene, those of its objects that are malformed).
  """
  while True:
    kept, drawn, broken = rng.uniform(0, 0.8), (), ()
    for item in scene:
      fate = rng.random() if rng.random() >= kept else None
      if fate is None:
        drawn += (item,)
      elif fate < 0.4:
        drawn, broken = (*drawn, item), (*broken, item)
      elif fate < 0.9:
        drawn += (_redrawn(item, rng),)
    if rng.random() < 0.3:
      like = stories.choose(rng, (*scene, *drawn))
      drawn += (dataclasses.replace(like, cell=stories.choose(rng, stories.free_cells(scene))),)
    if broken or drawn != scene:
      return drawn, broken


def _redrawn(item: scenes.Object, rng: np.random.Generator) -> scenes.Object:
  """Changes the shape, the colour, or both."""
  which = int(rng.integers(3))
  shape = stories.choose(rng, [s for s in scenes.SHAPES if s != item.shape]) if which != 0 else item.shape
  color = stories.choose(rng, [c for c in scenes.COLORS if c != item.color]) if which != 1 else item.color
  return dataclasses.replace(item, shape=shape, color=color)


def _put(scene: scenes.Scene, old: scenes.Object, new: scenes.Object) -> scenes.Scene:
  return tuple(new if o == old else o for o in scene)


# --- plans that contradict the prompt: (wrong new objects, reason, correction), or None ---


def _conflict_color(metadata, beat, rng):
  stated = {i['class']: i['color'] for i in metadata['include'] if 'color' in i}
  if not beat.new or beat.new[0].shape not in stated:
    return None
  right = beat.new[0]
  others = [c for s, c in stated.items() if s != right.shape and c != right.color]
  mixed_up = others and rng.random() < 0.4  # the colour of the prompt's other object
  color = others[0] if mixed_up else stories.choose(rng, [c for c in scenes.COLORS if c != right.color])
  new = tuple(dataclasses.replace(o, color=color) for o in beat.new)
  return new, critiques.color_conflict(new[0], right, rng=rng), language.refine(new, right.color, rng=rng)


def _conflict_shape(metadata, beat, rng):
  wanted = {i['class'] for i in metadata['include']}
  if not beat.new:
    return None
  shape = stories.choose(rng, [s for s in scenes.SHAPES if s not in wanted])
  new = tuple(dataclasses.replace(o, shape=shape) for o in beat.new)
  return new, critiques.shape_conflict(new, beat.new, rng=rng), language.swap(new, beat.new, rng=rng)


def _conflict_count(metadata, beat, rng):
  include = metadata['include'][0]
  if beat.missing or not beat.new:
    return None
  cell = stories.choose(rng, stories.free_cells(beat.after))
  surplus = dataclasses.replace(beat.new[0], cell=cell)
  new = tuple(sorted((*beat.new, surplus), key=lambda o: o.cell))
  reason = critiques.count_conflict(include['class'], include['count'] + 1, include['count'], rng=rng)
  return new, reason, language.remove((surplus,), rng=rng)


def _conflict_relation(metadata, beat, rng):
  if not beat.before or not beat.new:
    return None
  other, right = beat.before[0], beat.new[0]
  relation = next(iter(geometry.spatial_relations(right.box, other.box)))
  options = []
  for cell in stories.free_cells(beat.after):
    moved = dataclasses.replace(right, cell=cell)
    found = geometry.spatial_relations(moved.box, other.box)
    if found and relation not in found:
      options.append((moved, sorted(found)[0]))
  moved, wrong = stories.choose(rng, options)
  reason = critiques.relation_conflict(moved, other, wrong, relation, rng=rng)
  return (moved,), reason, language.move(moved, right, rng=rng)
