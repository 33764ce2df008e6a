"""What every inspection begins with: each thing the prompt asks for, beside what is planned and what is shown.

    A red ring is planned as a red ring: correct, and shown as a blue ring: wrong. The ring is above the bar: correct.

Each comparison ends with its own verdict, right beside the words that it compares; the verdict of the step is no more
than their sum. A measured dead end: the same words with one verdict at their end. On prompts and plans of two objects,
half of them wrong, a model of this size was still at chance after 250 steps (with a verdict after each comparison it
had left it after 75), and after a training of 2,000 steps it found none of the wrong colours and shapes.
"""

import dataclasses
from collections.abc import Mapping

from pdgen.core import boxes
from pdgen.worlds.shapes import language, prompt_space, scenes

_VERDICT = {True: 'correct', False: 'wrong'}


@dataclasses.dataclass
class _Row:
  """Planned objects that answer one item of the prompt, and what is there in their stead (None: nothing)."""

  planned: list[scenes.Object]
  shown: list[scenes.Object | None]


def compare(
  metadata: prompt_space.Metadata,
  planned: scenes.Scene,
  seen: scenes.Scene,
  *,
  stands_for: Mapping[scenes.Object, scenes.Object] | None = None,
) -> str:
  """The comparisons of a step, as sentences.

  metadata: the prompt. planned: the scene that the plan describes. seen: what the draft shows (shape None: malformed).
  stands_for: planned objects that answer to the prompt in place of others, which they contradict.
  """
  items = {item['class']: item for item in metadata['include']}
  shown, left = _matched(planned, seen)
  rows: dict[str | None, _Row] = {}
  for item in planned:
    shape = (stands_for or {}).get(item, item).shape
    row = rows.setdefault(shape if shape in items else None, _Row([], []))
    row.planned.append(item)
    row.shown.append(shown.get(item))
  sentences = []
  for shape, row in rows.items():
    asked = 'an extra' if shape is None else _asked(items[shape])
    are = 'are' if shape is not None and items[shape]['count'] > 1 else 'is'
    plan = _VERDICT[shape is None or _keeps(row.planned, items[shape])]
    picture = _VERDICT[row.planned == row.shown or all(map(_alike, row.planned, row.shown))]
    sentences.append(
      f'{asked[0].upper()}{asked[1:]} {are} planned as {_listed(row.planned)}: {plan}, and shown as '
      f'{_listed(row.shown, row.planned)}: {picture}.'
    )
  sentences += [f'There is also {language.named((item,))}: wrong.' for item in left]
  return ' '.join(sentences + _relation(metadata, planned))


def _matched(planned: scenes.Scene, seen: scenes.Scene) -> tuple[dict[scenes.Object, scenes.Object], scenes.Scene]:
  """What is there for each planned object: at its place, or else of its looks. And the rest."""
  left, shown = sorted(seen, key=lambda o: o.cell), {}
  for alike in (lambda a, b: a.cell == b.cell, lambda a, b: (a.shape, a.color) == (b.shape, b.color)):
    for item in planned:
      match = next((o for o in left if alike(o, item)), None)
      if item not in shown and match is not None:
        shown[item] = match
        left.remove(match)
  return shown, tuple(left)


def _alike(item: scenes.Object, there: scenes.Object | None) -> bool:
  return there is not None and (item.shape, item.color, item.cell) == (there.shape, there.color, there.cell)


def _asked(item: dict) -> str:
  return prompt_space.noun(item['class'], color=item.get('color'), count=item['count'])


def _keeps(planned: list[scenes.Object], item: dict) -> bool:
  looks = all(o.shape == item['class'] and o.color == item.get('color', o.color) for o in planned)
  return looks and len(planned) <= item['count']


def _listed(shown: list[scenes.Object | None], planned: list[scenes.Object] | None = None) -> str:
  """`two red rings and a blue ring`; what is not where it is planned is `elsewhere`."""
  groups: dict[tuple, int] = {}
  for place, item in enumerate(shown):
    moved = bool(planned and item and item.cell != planned[place].cell)
    key = item and (item.shape, item.shape and item.color, moved)
    groups[key] = groups.get(key, 0) + 1
  words = []
  for key, count in groups.items():
    if key is None:
      words.append('nothing')
    else:
      shape, color, moved = key
      words.append(prompt_space.noun(shape or 'broken object', color=color, count=count) + ' elsewhere' * moved)
  return language.listed(words)


def _relation(metadata: prompt_space.Metadata, planned: scenes.Scene) -> list[str]:
  """How the two objects of a prompt about their position are planned to lie, once both are."""
  first, *others = metadata['include']
  if not others or 'position' not in others[0]:
    return []
  wanted, shape = others[0]['position'][0], others[0]['class']
  a, b = (next((o for o in planned if o.shape == s), None) for s in (shape, first['class']))
  if a is None or b is None:
    return []
  found = boxes.relations(a.box, b.box)
  keeps = wanted in found
  return [f'The {shape} is {wanted if keeps else min(found)} the {first["class"]}: {_VERDICT[keeps]}.'] if found else []
