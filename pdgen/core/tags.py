"""The tags `<ins>`, `<des>`, `<refine>` and the texts they structure: plans and inspections (paper, Figs. 2-4).

A plan is `<ins>what to paint now</ins><des>the whole scene so far</des>`; an inspection is free text that holds
`<refine>corrective instruction</refine>` exactly when something is wrong.
"""

import re

# By the names of `core.config.Specials`.
TAGS = {
  'ins': '<ins>',
  'ins_end': '</ins>',
  'des': '<des>',
  'des_end': '</des>',
  'refine': '<refine>',
  'refine_end': '</refine>',
}
# Every spelling that is read, to its name. The paper prints the last closing tag as <\refine>; it is written </refine>.
NAMES = {**{text: name for name, text in TAGS.items()}, '<\\refine>': 'refine_end'}

_TAG = re.compile('(' + '|'.join(re.escape(text) for text in NAMES) + ')')
_REFINE_END = re.compile(r'<[/\\]refine>')


def split(text: str) -> list[str]:
  """The text cut at its tags, tags included, empty parts left out.

  >>> split('<ins>Add a ring.</ins>')
  ['<ins>', 'Add a ring.', '</ins>']
  """
  return [part for part in _TAG.split(text) if part]


def plan(instruction: str, description: str) -> str:
  """The text of a plan.

  >>> plan('Add a ring.', 'A ring.')
  '<ins>Add a ring.</ins><des>A ring.</des>'
  """
  return f'<ins>{instruction}</ins><des>{description}</des>'


def plan_parts(text: str) -> tuple[str, str]:
  """Splits a plan into its instruction and its description.

  >>> plan_parts('<ins>Add a red ring.</ins><des>A red ring.</des>')
  ('Add a red ring.', 'A red ring.')

  Raises: ValueError for a text that is not a plan.
  """
  begin, middle, end = TAGS['ins'], TAGS['ins_end'] + TAGS['des'], TAGS['des_end']
  instruction, between, rest = text.removeprefix(begin).partition(middle)
  if not (text.startswith(begin) and between and rest.endswith(end)):
    raise ValueError(f'Not a plan: {text!r}. A plan reads <ins>...</ins><des>...</des>.')
  return instruction, rest.removesuffix(end)


def is_plan(text: str) -> bool:
  """Whether a text is a plan, which `plan_parts` splits.

  >>> is_plan('<ins>Add a ring.</ins><des>A ring.</des>'), is_plan('This step is correct.')
  (True, False)
  """
  begin, middle, end = TAGS['ins'], TAGS['ins_end'] + TAGS['des'], TAGS['des_end']
  return text.startswith(begin) and text.endswith(end) and middle in text


def refine(instruction: str) -> str:
  """The corrective instruction in its tags, as an inspection holds it.

  >>> refine('Remove the ring.')
  '<refine>Remove the ring.</refine>'
  """
  return f'<refine>{instruction}</refine>'


def refine_instruction(inspection: str) -> str | None:
  r"""The corrective instruction of an inspection, or None when it finds nothing wrong.

  >>> refine_instruction('The step is wrong. <refine> Remove the ring. </refine>')
  'Remove the ring.'
  >>> refine_instruction('It is wrong. <refine>Remove it.<\\refine>')
  'Remove it.'
  >>> refine_instruction('The intermediate step is correct.') is None
  True
  """
  parts = around_refine(inspection)
  return parts[1] if len(parts) == 3 else None


def around_refine(text: str) -> list[str]:
  """The text cut around its first corrective instruction: [before, instruction, after], or [text] without one.

  >>> around_refine('Wrong. <refine> Add a ring. </refine> Then go on.')
  ['Wrong. ', 'Add a ring.', ' Then go on.']
  """
  # No regular expression of the whole: it would look for an end after every `<refine>`, quadratic in the text.
  before, opening, rest = text.partition(TAGS['refine'])
  closing = _REFINE_END.search(rest) if opening else None
  return [text] if closing is None else [before, rest[: closing.start()].strip(), rest[closing.end() :]]
