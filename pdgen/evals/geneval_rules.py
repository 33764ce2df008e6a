"""GenEval's rules: do the detections of a picture hold what its metadata asks for?

The rules of the official `evaluate_images.py` (Ghosh et al. 2023, djghosh13/geneval), for any detector. What a reader
would not expect, and what is kept because published figures rest on it:

- Colour and position are those of the best-scored `count` objects of a class alone (the official code marks this
  CHANGED): a second, rightly coloured object does not help, and one too many does no harm outside of the counting task.
- The counting task has a threshold of its own, 0.9, for what it includes and for what it excludes.
- At most 16 objects of a class count. Overlapping ones are dropped after that cut, by default none: `max_overlap` is 1,
  non-maximum suppression is an option of the official script that the official command does not use.
- Overlap counts pixels inclusively: a side is x1 - x0 + 1.
- A position must hold against every object of the clause that it names; a clause whose colour is wrong has no position.

Ours, where the official code depends on the machine: of equal scores the object that was detected later comes first
(numpy's unstable sort, reversed, there), and relations in a reason are sorted (a Python set there).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pdgen.core import geometry
from pdgen.judges import base as judges_base

COLORS = ('red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'brown', 'black', 'white')
TASKS = ('single_object', 'two_object', 'counting', 'colors', 'position', 'color_attr')
COUNTING = 'counting'

Objects = Mapping[str, Sequence[judges_base.Found]]  # class to its objects, best-scored first
ColorsOf = Callable[[Sequence[judges_base.Found]], Sequence[str | None]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """Thresholds; the defaults are the official ones."""

  threshold: float = 0.3  # a detection counts above this score
  counting_threshold: float = 0.9  # the same in the counting task
  max_objects: int = 16  # detections that count, a class
  max_overlap: float = 1.0  # IoU from which the worse of two objects of a class is dropped; 1: never
  position_threshold: float = 0.1  # share of the summed sizes by which an offset is shortened


OFFICIAL = Rules()


def evaluate(
  metadata: Mapping[str, Any],
  detections: Sequence[judges_base.Found],
  *,
  colors_of: ColorsOf | None = None,
  rules: Rules = OFFICIAL,
) -> tuple[bool, str]:
  """Whether the detections satisfy the metadata, and the reason why not (official `evaluate`; "" if they do).

  Args:
    metadata: `tag`, `include` and `exclude` of a prompt.
    detections: in any order.
    colors_of: names the colours of objects; asked only for the objects that a clause about colours looks at. None: they
      are `Found.color`.
    rules: thresholds.
  """
  return judged(metadata, by_class(metadata, detections, rules=rules), colors_of=colors_of, rules=rules)


def by_class(
  metadata: Mapping[str, Any], detections: Sequence[judges_base.Found], *, rules: Rules = OFFICIAL
) -> dict[str, list[judges_base.Found]]:
  """The detections that count, best-scored first, of each class that has some."""
  threshold = rules.counting_threshold if metadata['tag'] == COUNTING else rules.threshold
  found: dict[str, list[judges_base.Found]] = {}
  # Sorted backwards, then reversed: of equal scores the later one is first.
  for item in sorted(detections, key=lambda d: d.score)[::-1]:
    if item.name is not None and item.score > threshold:
      found.setdefault(item.name, []).append(item)
  return {name: _without_overlaps(items[: rules.max_objects], rules.max_overlap) for name, items in found.items()}


def judged(
  metadata: Mapping[str, Any], objects: Objects, *, colors_of: ColorsOf | None = None, rules: Rules = OFFICIAL
) -> tuple[bool, str]:
  """As `evaluate`, for the objects that count (`by_class`)."""
  reasons: list[str] = []
  groups: list[Sequence[judges_base.Found] | None] = []
  for clause in metadata.get('include', []):
    found = objects.get(clause['class'], [])[: clause['count']]
    reason = _broken_clause(clause, found, groups, colors_of or _own_colors, rules)
    reasons += [] if reason is None else [reason]
    groups.append(found if reason is None else None)
  for clause in metadata.get('exclude', []):
    name = clause['class']
    if len(objects.get(name, [])) >= clause['count']:
      reasons.append(f'expected {name}<{clause["count"]}, found {len(objects[name])}')
  return not reasons, '\n'.join(reasons)


def color_namer(detector: judges_base.Detector, picture: np.ndarray) -> ColorsOf | None:
  """`colors_of` of a detector for a picture; None for a detector whose detections bring their colours."""
  name: Callable[..., Sequence[str | None]] | None = getattr(detector, 'colors', None)
  return None if name is None else lambda objects: name(picture, objects)


def _own_colors(objects: Sequence[judges_base.Found]) -> list[str | None]:
  return [item.color for item in objects]


def _broken_clause(
  clause: Mapping[str, Any],
  found: Sequence[judges_base.Found],
  groups: Sequence[Sequence[judges_base.Found] | None],
  colors_of: ColorsOf,
  rules: Rules,
) -> str | None:
  """Why an `include` clause does not hold, or None if it holds.

  Args:
    clause: the clause.
    found: the best-scored objects of its class.
    groups: the objects of the clauses before it; None for a clause that does not hold.
    colors_of: names colours.
    rules: thresholds.
  """
  name, count = clause['class'], clause['count']
  if len(found) < count:
    return f'expected {name}>={count}, found {len(found)}'
  if 'color' in clause:
    colors = list(colors_of(found))
    if colors.count(clause['color']) < count:
      color, others = clause['color'], ', '.join(f'{colors.count(c)} {c}' for c in COLORS if c in colors)
      return f'expected {color} {name}>={count}, found {colors.count(color)} {color}; and {others}'
  if 'position' in clause:
    relation, target = clause['position']
    targets = groups[target]
    if targets is None:
      return f'no target for {name} to be {relation}'
    for item in found:
      for other in targets:
        relations = geometry.spatial_relations(item.box, other.box, threshold=rules.position_threshold)
        if relation not in relations:
          return f'expected {name} {relation} target, found {" and ".join(sorted(relations))} target'
  return None


def _without_overlaps(items: list[judges_base.Found], most: float) -> list[judges_base.Found]:
  """Greedy non-maximum suppression of sorted objects of a class."""
  if most == 1:
    return items
  kept: list[judges_base.Found] = []
  while items:
    best, *rest = items
    kept.append(best)
    items = [item for item in rest if _overlap(best.box, item.box) < most]
  return kept


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
  """IoU of boxes whose last pixels are inside (official `compute_iou`)."""
  common = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
  union = _area(a) + _area(b) - common
  return common / union if union else 0.0


def _area(box: Sequence[float]) -> float:
  return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)
