"""Comparison sentences that open every inspection: shown, planned and asked properties, object by object.

    At the left: shown ring, planned ring, asked ring: correct; shown blue, planned red, asked red: wrong.
    At the top: shown bar, planned bar, asked bar: correct; ..
    Else: shown nothing: correct. Number: planned three, asked two: wrong. The bar, seen from the ring: planned above,
    asked below: wrong.

A sentence gives the place first and then the word that is read there: no word before it can be copied. Words that are
compared are close together, always at the same distance, and their verdict follows directly. Every check has a sentence
in every inspection, because a sentence that is mostly absent is not learned. The step is right when all checks are.

Shown first: 23 of 28 wrong colours read, against 10 of 16 where planned is first (docs/experiments.md#comparisons).
"""

import collections
from collections.abc import Iterable, Mapping

from pdgen.core import geometry
from pdgen.worlds.shapes import language, prompt_space, scenes

_VERDICT = {True: 'correct', False: 'wrong'}


def compare(
  metadata: prompt_space.Metadata,
  planned: scenes.Scene,
  seen: scenes.SeenScene,
  *,
  stands_for: Mapping[scenes.Object, scenes.Object] | None = None,
) -> str:
  """The comparison sentences of one step.

  Args:
    metadata: the prompt, in GenEval's format.
    planned: the scene that the plan describes.
    seen: the scene that the draft shows.
    stands_for: for a plan that contradicts the prompt, the wrong planned objects and the object that each replaces.

  Returns: the sentences, separated by spaces.
  """
  items = {item['class']: item for item in metadata['include']}
  answers = {o: items.get((stands_for or {}).get(o, o).shape) for o in planned}
  shown, left = scenes.matched(planned, seen)
  sentences = [_properties(item, shown.get(item), answers[item]) for item in planned]
  return ' '.join([*sentences, _rest(left), *_counts(answers.values()), *_relation(metadata, planned)])


def _properties(planned: scenes.Object, shown: scenes.Seen | None, item: prompt_space.Metadata | None) -> str:
  """Compares the shape and the colour of one planned object.

  Args:
    planned: the object.
    shown: the object seen in its cell; None if the cell is empty.
    item: the `include` clause of the prompt that the object satisfies; None if the prompt does not ask for it.
  """
  asked_shape, asked_color = ('nothing', None) if item is None else (item['class'], item.get('color'))
  shape, color = _read(shown)
  where = language.at((planned,))
  read = (
    _property(shape, planned.shape, asked_shape, keeps=item is None or asked_shape == planned.shape),
    _property(color, planned.color, asked_color or 'any', keeps=asked_color in (None, planned.color)),
  )
  return f'{where[0].upper()}{where[1:]}: {"; ".join(read)}.'


def _read(shown: scenes.Seen | None) -> tuple[str, str]:
  """The words for the shape and the colour that are shown."""
  if shown is None:
    return 'nothing', 'nothing'
  if isinstance(shown, scenes.Malformed):
    return shown.likeness or 'broken', 'broken'
  return shown.shape, shown.color


def _property(shown: str, planned: str, asked: str, *, keeps: bool) -> str:
  return f'shown {shown}, planned {planned}, asked {asked}: {_VERDICT[keeps and shown == planned]}'


def _rest(left: scenes.SeenScene) -> str:
  """Compares the objects that are seen but not planned, `left`, with none."""
  seen = ' and '.join(f'{_named(item)} {language.at((item,))}' for item in left)
  return f'Else: shown {seen or "nothing"}: {_VERDICT[not left]}.'


def _named(shown: scenes.Seen) -> str:
  return 'a broken object' if isinstance(shown, scenes.Malformed) else language.named((shown,))


def _counts(answers: Iterable[prompt_space.Metadata | None]) -> list[str]:
  """Compares planned with asked numbers; fewer is right, more may follow. answers: each planned object's clause."""
  counted = [item for item in answers if item is not None and item['count'] > 1]
  planned = collections.Counter(item['class'] for item in counted)
  asked = {item['class']: item['count'] for item in counted}
  return [
    f'Number: planned {language.number(planned[name])}, asked {language.number(count)}: '
    f'{_VERDICT[planned[name] <= count]}.'
    for name, count in asked.items()
  ]


def _relation(metadata: prompt_space.Metadata, planned: scenes.Scene) -> list[str]:
  """Compares the planned with the asked spatial relation, once both objects of the prompt are planned."""
  first, *others = metadata['include']
  if not others or 'position' not in others[0]:
    return []
  wanted, shape = others[0]['position'][0], others[0]['class']
  a, b = (next((o for o in planned if o.shape == s), None) for s in (shape, first['class']))
  if a is None or b is None:
    return []
  found = geometry.spatial_relations(a.box, b.box)
  if not found:
    return []
  keeps = wanted in found
  has = wanted if keeps else min(found)
  return [f'The {shape}, seen from the {first["class"]}: planned {has}, asked {wanted}: {_VERDICT[keeps]}.']
