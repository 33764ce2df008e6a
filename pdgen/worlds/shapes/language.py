"""Text templates of plans and inspections, several wordings for each statement.

Text is most of the training cost and is therefore short: 15 to 35 words a plan, 35 to 80 an inspection, a vocabulary
of under 200 words. An inspection compares (`comparisons`) before it judges, by the paper's two templates: "The
intermediate step is correct. ... The missing ... is going to be added in the following steps." and "The intermediate
step is wrong. ... <refine> ... </refine>".
"""

from collections.abc import Sequence

import numpy as np

from pdgen.worlds.shapes import prompt_space, scenes

RIGHT = ('The intermediate step is correct.', 'The current step is correct.', 'This step is correct.')
WRONG = ('The intermediate step is wrong.', 'The current step is wrong.', 'This step is wrong.')

# What decides in an inspection: verdicts (paper: `The intermediate step is wrong.`), the `<refine>` tag, and what is
# `shown`: a faulty draft is rare, so that what was planned is mostly what is shown, and reading the picture pays late.
DECISIVE = (r'\b(?:correct|wrong)\b', '<refine>', r'(?<=\bshown )[^,:;.]+')
# What is shown and not planned.
FAULTS = (r'(?<=\bshown )(\w+)(?=, planned (?!\1\b))',)

_VERBS = ('Add', 'Paint', 'Draw', 'Put')
OPENERS = ('The image shows', 'The picture shows', 'The image depicts', 'The scene has')
_NUMBERS = ('no', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


def pick(rng: np.random.Generator, options: Sequence[str], **words: str) -> str:
  """A random template, filled in."""
  return options[int(rng.integers(len(options)))].format(**words)


def number(count: int) -> str:
  """`one`, `two`, ..."""
  return _NUMBERS[count]


def listed(parts: Sequence[str]) -> str:
  """`a`, `a and b`, `a, b and c`."""
  return parts[0] if len(parts) == 1 else f'{", ".join(parts[:-1])} and {parts[-1]}'


def at(group: scenes.SeenScene) -> str:
  """`at the left and the top`."""
  return f'at {listed([f"the {o.place}" for o in group])}'


def named(group: scenes.Scene) -> str:
  """`a red ring`, `two red rings`, for objects of one shape and colour."""
  return prompt_space.noun(group[0].shape, color=group[0].color, count=len(group))


def the(item: scenes.Object) -> str:
  """`the red ring`."""
  return f'the {item.color} {item.shape}'


def _these(group: scenes.Scene) -> str:
  return f'the {group[0].color} {prompt_space.plural(group[0].shape, len(group))} {at(group)}'


def groups(scene: scenes.Scene) -> list[scenes.Scene]:
  """Objects of the same shape and colour together, in the order of painting."""
  found: dict[tuple[str, str], list[scenes.Object]] = {}
  for item in scene:
    found.setdefault((item.shape, item.color), []).append(item)
  return [tuple(group) for group in found.values()]


# --- plans ---


def plan(instruction: str, scene: scenes.Scene, *, rng: np.random.Generator, new: scenes.Scene = ()) -> str:
  """A plan: `<ins>instruction</ins><des>the whole scene</des>`.

  Args:
    instruction: what to paint now.
    scene: the whole scene afterwards.
    rng: chooses the template.
    new: objects that the description may call new, if they come last.
  """
  parts = [f'{named(g)} {at(g)}' for g in groups(scene)]
  if len(parts) > 1 and new and set(groups(scene)[-1]) <= set(new) and rng.random() < 0.3:
    words = f'{pick(rng, OPENERS)} {listed(parts[:-1])}, and now {parts[-1]}.'
  else:
    words = f'{pick(rng, OPENERS)} {listed(parts)}.'
  return f'<ins>{instruction}</ins><des>{words}</des>'


def add(group: scenes.Scene, *, rng: np.random.Generator, extra: bool = False) -> str:
  """The instruction to add objects of one shape and colour.

  Args:
    group: the objects.
    rng: chooses the template.
    extra: the prompt does not ask for them; the instruction says that they are temporary.
  """
  end = ' for now.' if extra else '.'
  if rng.random() < 0.1:  # Rarer than any single verb: the likeliest plan names the object before its place.
    where = at(group)
    return f'{where[0].upper()}{where[1:]}, {pick(rng, _VERBS).lower()} {named(group)}{end}'
  return f'{pick(rng, _VERBS)} {named(group)} {at(group)}{end}'


def refine(old: scenes.Scene, color: str, *, rng: np.random.Generator) -> str:
  """The instruction to change the colour of objects of one shape and colour.

  Args:
    old: the objects before the change.
    color: the new colour.
    rng: chooses the template.
  """
  return pick(rng, ('Change the color of {what} to {color}.', 'Make {what} {color}.'), what=_these(old), color=color)


def swap(old: scenes.Scene, new: scenes.Scene, *, rng: np.random.Generator) -> str:
  """The instruction to replace objects by others in the same cells.

  Args:
    old: the objects, of one shape and colour.
    new: their replacements, of one shape and colour.
    rng: chooses the template.
  """
  return pick(rng, ('Replace {what} with {new}.', 'Swap {what} for {new}.'), what=_these(old), new=named(new))


def remove(group: scenes.Scene, *, rng: np.random.Generator) -> str:
  """The instruction to remove objects of one shape and colour."""
  return pick(rng, ('Remove {what}.', 'Erase {what}.'), what=_these(group))


def move(item: scenes.Object, to: scenes.Object, *, rng: np.random.Generator) -> str:
  """The instruction to move an object.

  Args:
    item: the object.
    to: the same object in its new place.
    rng: chooses the template.
  """
  return pick(
    rng,
    (*['Move {what} from the {old} to the {new}.'] * 2, 'Remove {what} at the {old}. Add {it} at the {new}.'),
    what=the(item), it=named((item,)), old=item.place, new=to.place,
  )  # fmt: skip


# --- inspections ---


def right(
  compared: str, missing: Sequence[tuple[str, int]], *, rng: np.random.Generator, extra: scenes.Object | None = None
) -> str:
  """The inspection that approves a step. The painting is complete if nothing is missing and nothing is extra.

  Args:
    compared: the sentences of `comparisons.compare`.
    missing: what the prompt still asks for, as (words, number).
    rng: chooses the template.
    extra: an object that the prompt does not ask for and that a later step removes.
  """
  parts = [compared, pick(rng, RIGHT)]
  if extra is not None:
    parts.append(
      pick(
        rng,
        (
          '{what} though does not mention in the prompt, it does not conflict with the prompt.',  # (paper)
          '{what} is not mentioned in the prompt, but it does not conflict with the prompt.',
        ),
        what=f'The {extra.color} {extra.shape}',
      )
    )
  if missing:
    parts.append(_missing(missing, rng=rng))
  elif extra is not None:
    parts.append('It is going to be removed in the following steps.')
  else:
    parts.append(pick(rng, ('The painting is complete.', 'Nothing is missing.')))
  return ' '.join(parts)


def _missing(missing: Sequence[tuple[str, int]], *, rng: np.random.Generator) -> str:
  are = 'are' if len(missing) > 1 or missing[0][1] > 1 else 'is'
  several = lambda words, n: f'{number(n)} {prompt_space.plural(words, n)}'
  short = listed([words if n == 1 else several(words, n) for words, n in missing])
  full = listed([f'{prompt_space.article(words)} {words}' if n == 1 else several(words, n) for words, n in missing])
  options = (
    'The missing {short} {are} going to be added in the following steps.',
    'The missing {short} will be added in the following steps.',
    '{full} {are} still missing and will be added in the following steps.',
  )
  return pick(rng, options, short=short, full=full[0].upper() + full[1:], are=are)


def wrong(compared: str, reasons: Sequence[str], corrections: Sequence[str], *, rng: np.random.Generator) -> str:
  """The inspection that rejects a step: verdict, reasons, and the corrective instruction in `<refine>`.

  Args:
    compared: the sentences of `comparisons.compare`.
    reasons: sentences of `critiques`.
    corrections: sentences of `critiques`, or instructions.
    rng: chooses the template.
  """
  lead = pick(rng, ('', '', '', '', '', 'The corrective instruction is: '))
  return f'{compared} {pick(rng, WRONG)} {" ".join(reasons)} {lead}<refine>{" ".join(corrections)}</refine>'
