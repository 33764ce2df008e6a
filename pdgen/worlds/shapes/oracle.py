"""Oracle inspector of the shapes world: reads a plan that a model wrote, inspects its draft by the exact detector.

`inspect` says what is wrong with a step, by kind of error, and in the words that a model of this world was trained on.
A plan that contradicts the prompt is found first, as in training; then the draft is compared with the plan.
"""

import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pdgen.core import geometry, tags
from pdgen.core import rng as rng_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.worlds.shapes import (
  comparisons,
  critiques,
  detector,
  faults,
  language,
  prompt_space,
  renderer,
  scenes,
  stories,
)

UNREADABLE_PLAN = 'unreadable_plan'  # Its description is none that the world writes.


class Inspected(NamedTuple):
  """What an inspector that sees everything finds in a step."""

  errors: tuple[str, ...]  # Kinds: of `faults.ERROR_KINDS`, or UNREADABLE_PLAN; () where the step is right.
  text: str  # The inspection, in the world's words.
  approval: str  # Words that approve the step, right or wrong: the draft is taken for what the plan describes.


class _Conflict(NamedTuple):
  """A planned thing that the prompt contradicts."""

  kind: str
  reason: str
  correction: str
  stands_for: dict[scenes.Object, scenes.Object]


def planned(plan: str | None) -> tuple[trajectory_lib.Content, ...] | None:
  """What the description of a plan says that the picture shows; None for one that is not in the world's words.

  >>> planned('<ins>Add a bar.</ins><des>The image shows a red bar at the left and two blue rings at the top and the '
  ...   'bottom right.</des>')[2]
  Content(name='ring', color='blue', cell=8)
  """
  scene = _scene(plan)
  return None if scene is None else tuple(trajectory_lib.Content(o.shape, o.color, o.cell) for o in scene)


def described(plan: str | None) -> np.ndarray | None:
  """The picture uint8[H, W, 3] of what a plan describes; None for a plan that is not in the world's words."""
  scene = _scene(plan)
  return None if scene is None else renderer.render(scene)


def inspect(prompt: str, plan: str | None, draft: np.ndarray, *, before: str | None = None) -> Inspected:
  """What is wrong with a step, and the inspection that says so.

  Where the plan is not in the world's words the draft is taken for it, and compared with the prompt.

  Args:
    prompt: of this world.
    plan: of the step, as a model wrote it.
    draft: uint8[H, W, 3].
    before: plan of the step before; an object that the prompt does not ask for is a conflict in the step that adds it,
      unless its instruction says that it is there `for now` (a detour).

  Raises: ValueError for a prompt of no task of the world.
  """
  spec = prompt_space.parse(prompt)
  if spec is None:
    raise ValueError(f'{prompt!r} is no prompt of the shapes world: what a picture of it should show is not known.')
  metadata = spec.to_row(prompt)
  rng = rng_lib.numpy_rng(zlib.crc32(f'{prompt}|{plan}'.encode()))
  seen = tuple(d.object for d in detector.detect(draft))
  scene, unreadable = _scene(plan), ()
  if scene is None:
    scene, unreadable = scenes.whole(seen), (UNREADABLE_PLAN,)
  is_detour = plan is not None and 'for now' in plan
  new = () if is_detour else tuple(o for o in scene if o not in (_scene(before) or ()))
  conflicts = [*_colors(metadata, scene, rng), *_shapes(metadata, scene, new, rng)]
  conflicts += [*_numbers(metadata, scene, rng), *_relation(metadata, scene, rng)]
  found = faults.find_faults(scene, seen)
  errors = (*unreadable, *(c.kind for c in conflicts), *(f.kind for f in found))
  stands_for = {wrong: right for c in conflicts for wrong, right in c.stands_for.items()}
  compared = comparisons.compare(metadata, scene, seen, stands_for=stands_for)
  text = None
  if conflicts:
    text = language.wrong(compared, (conflicts[0].reason,), (conflicts[0].correction,), rng=rng)
  elif found:
    text = language.wrong(compared, *critiques.explain(found, rng=rng), rng=rng)
  missing, extra = _left(metadata, scene)
  approval = language.right(_as_planned(metadata, scene), missing, extra=extra, rng=rng)
  return Inspected(errors, text or approval, approval)


def _as_planned(metadata: prompt_space.Metadata, scene: scenes.Scene) -> str:
  """The comparisons of a draft that shows a planned scene, every verdict `correct`."""
  return comparisons.compare(metadata, scene, scene).replace(': wrong', ': correct')


# --- plans ---

_COUNTS = {'a': 1, 'an': 1, 'two': 2, 'three': 3, 'four': 4, 'five': 5}
_NAMES = {prompt_space.plural(name, n): name for name in scenes.SHAPES for n in (1, 2)}


def _either(words: Sequence[str]) -> str:
  return '(?:' + '|'.join(sorted(map(re.escape, words), key=len, reverse=True)) + ')'


_PLACE = rf'the {_either(scenes.PLACES)}'
_GROUP = (
  rf'({_either(tuple(_COUNTS))}) ({_either(tuple(scenes.COLORS))}) ({_either(tuple(_NAMES))}) at '
  rf'({_PLACE}(?:(?:, {_PLACE})* and {_PLACE})?)'
)
_DESCRIPTION = re.compile(rf'{_either(language.OPENERS)} {_GROUP}(?:(?:,| and|, and now) {_GROUP})*\.')


def _scene(plan: str | None) -> scenes.Scene | None:
  """The scene of a plan's description; None where it cannot be read."""
  if plan is None or not tags.is_plan(plan):
    return None
  _, words = tags.plan_parts(plan)
  if not _DESCRIPTION.fullmatch(words):
    return None
  scene = []
  for count, color, name, places in re.findall(_GROUP, words):
    cells = [scenes.PLACES.index(p.removeprefix('the ')) for p in re.findall(_PLACE, places)]
    if len(cells) != _COUNTS[count]:
      return None
    scene += [scenes.Object(_NAMES[name], color, cell) for cell in cells]
  return tuple(scene) if len({o.cell for o in scene}) == len(scene) else None


# --- plans against prompts ---


def _colors(metadata: prompt_space.Metadata, scene: scenes.Scene, rng: np.random.Generator) -> list[_Conflict]:
  stated = {i['class']: i['color'] for i in metadata['include'] if 'color' in i}
  found = []
  for item in scene:
    color = stated.get(item.shape, item.color)
    if color != item.color:
      right = scenes.Object(item.shape, color, item.cell)
      reason = critiques.color_conflict(item, right, rng=rng)
      found.append(_Conflict('conflict_color', reason, language.refine((item,), color, rng=rng), {}))
  return found


def _shapes(
  metadata: prompt_space.Metadata, scene: scenes.Scene, new: scenes.Scene, rng: np.random.Generator
) -> list[_Conflict]:
  """Objects of `new` that the prompt does not ask for, in place of those that it asks for and that are not planned."""
  wanted = {i['class']: i for i in metadata['include']}
  others = [o for o in new if o.shape not in wanted]
  lacking = [n for n, i in wanted.items() for _ in range(i['count'] - sum(o.shape == n for o in scene))]
  found = []
  for item, name in zip(others, lacking, strict=False):
    right = scenes.Object(name, wanted[name].get('color', item.color), item.cell)
    reason = critiques.shape_conflict((item,), (right,), rng=rng)
    correction = language.swap((item,), (right,), rng=rng)
    found.append(_Conflict('conflict_shape', reason, correction, {item: right}))
  return found


def _numbers(metadata: prompt_space.Metadata, scene: scenes.Scene, rng: np.random.Generator) -> list[_Conflict]:
  """More than the prompt asks for, where it counts."""
  if not metadata.get('exclude'):
    return []
  [item] = metadata['include']
  there = [o for o in scene if o.shape == item['class']]
  surplus = there[item['count'] :]
  if not surplus:
    return []
  reason = critiques.count_conflict(item['class'], len(there), item['count'], rng=rng)
  alike = tuple(o for o in surplus if scenes.alike(o, surplus[0]))
  return [_Conflict('conflict_count', reason, language.remove(alike, rng=rng), {})]


def _relation(metadata: prompt_space.Metadata, scene: scenes.Scene, rng: np.random.Generator) -> list[_Conflict]:
  first, *others = metadata['include']
  if not others or 'position' not in others[0]:
    return []
  wanted = others[0]['position'][0]
  moved, other = (next((o for o in scene if o.shape == s), None) for s in (others[0]['class'], first['class']))
  if moved is None or other is None:
    return []
  there = geometry.spatial_relations(moved.box, other.box)
  if wanted in there:
    return []
  free = [scenes.Object(moved.shape, moved.color, cell) for cell in stories.free_cells(scene)]
  options = [o for o in free if geometry.spatial_relations(o.box, other.box) == {wanted}]
  wrong = min(there) if there else 'at'
  reason = critiques.relation_conflict(moved, other, wrong, wanted, rng=rng)
  if not options:  # No cell on that side of the other object is free.
    return [_Conflict('conflict_relation', reason, language.remove((moved,), rng=rng), {})]
  return [_Conflict('conflict_relation', reason, language.move(moved, options[0], rng=rng), {})]


def _left(
  metadata: prompt_space.Metadata, scene: scenes.Scene
) -> tuple[tuple[tuple[str, int], ...], scenes.Object | None]:
  """What the prompt still asks for after a scene, and an object that it does not ask for, once nothing is missing."""
  missing = stories.missing(metadata, scene)
  wanted = {i['class'] for i in metadata['include']}
  return missing, None if missing else next((o for o in scene if o.shape not in wanted), None)
