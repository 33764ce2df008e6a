"""Explanations of errors: the reasons why a step is wrong and the corrective instructions, in words.

A conflict (the plan contradicts the prompt) is followed by a corrected plan, a misalignment (the draft does not show
the plan) by the refined picture (paper). Only the reason of a conflict mentions the prompt.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pdgen.worlds.shapes import language, prompt_space, scenes

_MOST = 2  # faults that one inspection mentions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changed:
  """A planned object that the draft shows in another colour, shape or place."""

  kind: str  # `wrong_color`, `wrong_shape` or `wrong_place`
  wanted: scenes.Object  # planned object
  seen: scenes.Object  # object in the draft


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lost:
  """A planned object that the draft does not show, or shows malformed."""

  kind: str  # `missing`, `wrong_count` or `malformed`
  wanted: scenes.Object  # planned object
  counts: tuple[int, int] = (0, 0)  # objects of that shape and colour, (planned, in the draft)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surplus:
  """An object in the draft that is not planned."""

  kind: str  # `extra` or `wrong_count`
  seen: scenes.Seen  # object in the draft
  counts: tuple[int, int] = (0, 0)  # objects of that shape and colour, (planned, in the draft)


Fault = Changed | Lost | Surplus  # one difference between a draft and its plan; the kinds are `faults.MISALIGNMENTS`


def explain(faults: Sequence[Fault], *, rng: np.random.Generator) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Words the first faults of a draft that does not show its plan. Returns (reasons, corrections), sentences each."""
  reasons, corrections = [], []
  for fault in faults[:_MOST]:
    reason, correction = _words(fault, rng=rng)
    if reason not in reasons:
      reasons.append(reason)
    corrections.append(correction)
  return tuple(reasons), tuple(corrections)


def _words(fault: Fault, *, rng: np.random.Generator) -> tuple[str, str]:
  """(reason, correction)."""
  if isinstance(fault, Changed):
    return _changed(fault, rng=rng)
  if isinstance(fault, Lost):
    return _lost(fault, rng=rng)
  return _surplus(fault, rng=rng)


def _changed(fault: Changed, *, rng: np.random.Generator) -> tuple[str, str]:
  wanted, seen = fault.wanted, fault.seen
  words = _described(wanted)
  if fault.kind == 'wrong_color':
    options = (
      'The {shape} at the {place} is {other}, but the plan asks for {color}.',
      'The {other} {shape} does not match the plan, which asks for {color}.',
      'The plan asks for {what}, not {other}.',
    )
    reason = language.pick(rng, options, other=seen.color, **words)
    return reason, language.refine((seen,), wanted.color, rng=rng)
  if fault.kind == 'wrong_shape':
    options = (
      'There is a {other} at the {place}, but the plan asks for a {shape}.',
      'The {other} does not match the plan, which asks for {what}.',
      'The plan asks for {what}, not a {other}.',
    )
    reason = language.pick(rng, options, other=seen.shape, **words)
    return reason, language.swap((seen,), (wanted,), rng=rng)
  options = (
    'The {shape} is at the {other}, but the plan puts it at the {place}.',
    'The plan puts the {color} {shape} at the {place}, not the {other}.',
  )
  reason = language.pick(rng, options, other=seen.place, **words)
  return reason, language.move(seen, wanted, rng=rng)


def _lost(fault: Lost, *, rng: np.random.Generator) -> tuple[str, str]:
  wanted = fault.wanted
  words = _described(wanted)
  if fault.kind == 'malformed':
    options = (
      'The object at the {place} is broken.',
      'The object at the {place} does not look like {what}.',
      'The plan asks for {what}, but it is broken.',
    )
    reason = language.pick(rng, options, **words)
    options = ('Replace the broken object at the {place} with {what}.', 'Repaint the object at the {place} as {what}.')
    return reason, language.pick(rng, options, **words)
  if fault.kind == 'wrong_count':
    reason = _miscounted(wanted, fault.counts, rng=rng)
  else:
    options = ('The {color} {shape} at the {place} is missing.', 'The plan asks for {what}, but it is missing.')
    reason = language.pick(rng, options, **words)
  return reason, language.add((wanted,), rng=rng)


def _surplus(fault: Surplus, *, rng: np.random.Generator) -> tuple[str, str]:
  seen = fault.seen
  if isinstance(seen, scenes.Malformed):
    where = f'broken object at the {seen.place}'
    return f'There is a {where}, which is not in the plan.', f'Remove the {where}.'
  if fault.kind == 'wrong_count':
    reason = _miscounted(seen, fault.counts, rng=rng)
  else:
    options = ('The {color} {shape} at the {place} is not in the plan.', 'There is {what}, which is not in the plan.')
    reason = language.pick(rng, options, **_described(seen))
  return reason, language.remove((seen,), rng=rng)


def _miscounted(item: scenes.Object, counts: tuple[int, int], *, rng: np.random.Generator) -> str:
  want, have = counts
  options = (
    'There {are} {have} {color} {shapes}, but the plan asks for {want}.',
    'The plan asks for {want} {color} {wanted}, but there {are} {have}.',
  )
  return language.pick(
    rng,
    options,
    are='is' if have == 1 else 'are',
    have=language.number(have),
    want=language.number(want),
    color=item.color,
    shapes=prompt_space.plural(item.shape, have),
    wanted=prompt_space.plural(item.shape, want),
  )


def _described(item: scenes.Object) -> dict[str, str]:
  """What templates say of an object."""
  return {'color': item.color, 'shape': item.shape, 'place': item.place, 'what': language.named((item,))}


# --- plans that contradict the prompt ---


def color_conflict(new: scenes.Object, right: scenes.Object, *, rng: np.random.Generator) -> str:
  """The reason against a plan with a colour that the prompt does not ask for.

  Args:
    new: the planned object, in the wrong colour.
    right: the object that the prompt asks for.
    rng: chooses the template.
  """
  options = (
    'The {shape} is {wrong}, but the prompt asks for {color}.',
    'The {wrong} {shape} contradicts the prompt, which asks for {what}.',
  )
  what = language.named((right,))
  return language.pick(rng, options, shape=right.shape, wrong=new.color, color=right.color, what=what)


def shape_conflict(new: scenes.Scene, right: scenes.Scene, *, rng: np.random.Generator) -> str:
  """The reason against a plan with a shape that the prompt does not ask for. Names no colours: a prompt may have none.

  Args:
    new: the planned objects, of the wrong shape.
    right: the objects that the prompt asks for.
    rng: chooses the template.
  """
  count = len(new)
  options = (
    '{There} {wrong}, but the prompt asks for {what}.',
    'The {wrongs} {verb} the prompt, which asks for {what}.',
  )
  return language.pick(
    rng,
    options,
    There='There is' if count == 1 else 'There are',
    wrong=prompt_space.noun(new[0].shape, count=count),
    wrongs=prompt_space.plural(new[0].shape, count),
    verb='contradicts' if count == 1 else 'contradict',
    what=prompt_space.noun(right[0].shape) if count == 1 else prompt_space.plural(right[0].shape, count),
  )


def count_conflict(shape: str, have: int, want: int, *, rng: np.random.Generator) -> str:
  """The reason against a plan with more objects of a shape than the prompt asks for.

  Args:
    shape: name of the shape.
    have: number of planned objects.
    want: number that the prompt asks for.
    rng: chooses the template.
  """
  options = (
    'There are {have} {shapes}, but the prompt asks for {want}.',
    '{have} {shapes} contradict the prompt, which asks for {want}.',
  )
  words = {'have': language.number(have), 'want': language.number(want), 'shapes': prompt_space.plural(shape, have)}
  text = language.pick(rng, options, **words)
  return text[0].upper() + text[1:]


def relation_conflict(
  moved: scenes.Object, other: scenes.Object, wrong: str, relation: str, *, rng: np.random.Generator
) -> str:
  """The reason against a plan with a spatial relation that the prompt does not ask for.

  Args:
    moved: the object in the wrong place.
    other: the object that it is seen from.
    wrong: the planned relation.
    relation: the relation that the prompt asks for.
    rng: chooses the template.
  """
  options = (
    'The {a} is {wrong} the {b}, but the prompt asks for {relation}.',
    'The {a} is {wrong} the {b}, which contradicts the prompt. It should be {relation} the {b}.',
  )
  return language.pick(rng, options, a=moved.shape, b=other.shape, wrong=wrong, relation=relation)
