"""T2I-CompBench++'s rules over boxes: numeracy, and 2-D spatial relations (Karine-Huang/T2I-CompBench, UniDet_eval).

Numeracy: of each object that the prompt counts, half a point for being there and half for the right number, averaged.
Spatial: a quarter of the confidence of each of the two objects, and half a point for the place; below 0.5 it is 0.

Quirks, kept:
- A class that holds the word counts as it where the word itself was not found: `phone` finds `cell phone`.
- Duplicates are dropped by IoU or by one box being inside of the other, of more than 0.9, in order of confidence.
- `on top of` is a relation of the official list without a rule: its place scores 0. `near`, `next to` and `on side of`
  are measured in pixels (150), so they depend on the size of the picture.
- Of several objects of a class the most confident one has the place.

Ours: nouns are found by the list of objects or by the words around the relation, not by spaCy's tagger; the detector is
any of COCO's, not UniDet with its 700 classes: prompts of classes that it does not know are named and not scored.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence

from pdgen.judges import base as judges_base

THRESHOLD = 0.5  # a detection counts above this score (official: of UniDet's configuration)
_NUMBERS = ('one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight')
_COUNTS = {'a': 1, 'an': 1, **{word: n for n, word in enumerate(_NUMBERS, 1)}}
_NEAR = ('next to', 'on side of', 'near')
# In the order in which the official script looks for them.
_RELATIONS = (
  *('on side of', 'next to', 'near', 'on the left of', 'on the right of', 'on the bottom of', 'on the top of'),
  'on top of',
)
_PIXELS, _IOU, _SAME = 150, 0.1, 0.9
_PERSONS = ('girl', 'boy', 'man', 'woman')
_RENAMED = {**dict.fromkeys(_PERSONS, 'person'), 'ship': 'boat', 'goldfish': 'fish', 'painting': 'picture'}
_COCO = {'television': 'tv', 'sofa': 'couch', 'plane': 'airplane'}  # ours: for detectors of COCO's classes


@dataclasses.dataclass(frozen=True)
class Score:
  """Of a picture."""

  value: float  # from 0 to 1
  reason: str  # what is missing or wrong; empty at 1


def read_objects(lines: Sequence[str]) -> dict[str, str]:
  """Plurals and singulars to singulars, of lines `cat - cats` (official `new_objects.txt`).

  >>> read_objects(['cat - cats'])
  {'cat': 'cat', 'cats': 'cat'}
  """
  words: dict[str, str] = {}
  for line in lines:
    singular, dash, plural = (part.strip().lower() for part in line.partition(' - '))
    if singular:
      words |= {singular: singular, (plural if dash or plural else singular): singular}
  return words


def counted(prompt: str, objects: Mapping[str, str]) -> list[tuple[str, int]]:
  """The objects that a prompt counts: (singular, number).

  >>> counted('two cats and a wine glass', {'cats': 'cat', 'wine glass': 'wine glass'})
  [('cat', 2), ('wine glass', 1)]
  """
  words = re.findall(r'\w+', prompt)
  found = []
  for i, word in enumerate(words):
    if word not in _COUNTS:
      continue
    name = next((objects[t] for n in (2, 1) if (t := ' '.join(words[i + 1 : i + 1 + n])) in objects), None)
    if name is not None:
      found.append((name, _COUNTS[word]))
  return found


def numeracy(targets: Sequence[tuple[str, int]], detections: Sequence[judges_base.Found]) -> Score:
  """The score of counts.

  Args:
    targets: as of `counted`; at least one.
    detections: in any order.
  """
  names: list[str] = []
  boxes: list[Sequence[float]] = []
  for item in _confident(detections):
    if not any(item.name == n and _same(item.box, b) for n, b in zip(names, boxes, strict=True)):
      names.append(item.name or '')
      boxes.append(item.box)
  points, reasons = 0.0, []
  for target, count in targets:
    name = _RENAMED.get(target, target)
    name = name if name in names else _COCO.get(name, name)
    if name not in names:
      names = [name if name in other else other for other in names]
    if found := names.count(name):
      points += 0.5 + (0.5 if found == count else 0.0)
    if found != count:
      reasons.append(f'expected {count} {target}, found {found}')
  return Score(points / len(targets), '\n'.join(reasons))


def relation(prompt: str) -> tuple[str, str, str] | None:
  """(first object, relation, second object) of a prompt, or None where it has none.

  >>> relation('a bird on the left of a wine glass')
  ('bird', 'on the left of', 'wine glass')
  """
  word = next((w for w in _RELATIONS if w in prompt), None)
  if word is None:
    return None
  first, _, second = prompt.partition(word)
  nouns = [re.sub(r'^(a|an|the|one)\s+', '', part.strip(' .,')) for part in (first, second)]
  return (nouns[0], word, nouns[1]) if all(nouns) else None


def spatial(asked: tuple[str, str, str], detections: Sequence[judges_base.Found]) -> Score:
  """The score of a relation.

  Args:
    asked: as of `relation`.
    detections: in any order.
  """
  first, word, second = asked
  best: dict[str, judges_base.Found] = {}
  for item in _confident(detections):
    best.setdefault(item.name or '', item)
  a, b = (_of(name, best) for name in (first, second))
  missing = [name for name, item in ((first, a), (second, b)) if item is None]
  score = sum(0.25 * item.score for item in (a, b) if item is not None)
  reason = ', '.join(f'no {name}' for name in missing)
  if a is not None and b is not None:
    place = _place(word, a.box, b.box)
    score += place / 2
    reason = '' if place == 1 else f'{first} is not {word} {second} ({place:.2f})'
  return Score(score if score >= 0.5 else 0.0, reason)


def unknown(names: Collection[str], classes: Collection[str]) -> list[str]:
  """Those of the prompt's objects that a detector of some classes cannot find, by name or by a class that holds it."""
  return [
    name
    for name in names
    if not any(_RENAMED.get(name, name) in known or _COCO.get(name, name) == known for known in classes)
  ]


def _confident(detections: Sequence[judges_base.Found]) -> list[judges_base.Found]:
  found = [item for item in detections if item.name is not None and item.score > THRESHOLD]
  return sorted(found, key=lambda item: -item.score)


def _of(name: str, best: Mapping[str, judges_base.Found]) -> judges_base.Found | None:
  known = 'person' if name in _PERSONS else name
  return best.get(known) or best.get(_COCO.get(known, known))


def _same(a: Sequence[float], b: Sequence[float]) -> bool:
  """Boxes whose last pixels are inside, of one object."""
  width, height = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
  common = max(0.0, width) * max(0.0, height)
  first, second = ((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b))
  return max(common / (first + second - common), common / first, common / second) > _SAME


def _place(word: str, a: Sequence[float], b: Sequence[float]) -> float:
  """How well the place of `a` relative to `b` agrees with a relation (official `determine_position`)."""
  x, y = ((b[i] + b[i + 2]) / 2 - (a[i] + a[i + 2]) / 2 for i in (0, 1))
  if word in _NEAR:
    close = abs(x) < _PIXELS or abs(y) < _PIXELS
    return 1.0 if close else _PIXELS / max(abs(x), abs(y))
  along, across = (x, y) if word.endswith(('right of', 'left of')) else (y, x)
  wanted = {'on the right of': -1, 'on the left of': 1, 'on the bottom of': -1, 'on the top of': 1}.get(word, 0)
  if along * wanted <= 0 or abs(along) <= abs(across):
    return 0.0
  overlap = _iou(a, b)
  return 1.0 if overlap < _IOU else _IOU / overlap


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
  common = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
  union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - common
  return common / union if union else 0.0
