"""Protocols: texts that decide what comes next, as small declared formats that are read on the host, round by round.

Models that were fine-tuned to reason with pictures write texts of a form of their own; a program reads each and paints,
goes on or stops. A `Protocol` declares that form: what a text holds, what it decides, what the next picture is painted
from. It belongs to a row of `core.modes`; `inference.rounds` drives it.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

# What a text decides.
PAINT, END = 'paint', 'end'
# What a picture is painted from: an instruction and at most one picture; all texts and pictures so far.
SOURCE, ALL = SEEN = ('source', 'all')
# Which picture is edited: the last one, whatever the text says; the one that the field `source` names.
LAST, NAMED = SOURCES = ('last', 'named')


class UnreadableError(ValueError):
  """A text is not of its protocol's form."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
  """A field of a text.

  Attributes:
    name: of its value.
    mark: regular expression of what comes before the value; it is in the text once (of a field that is not needed, the
      first one counts).
    value: regular expression of all that stands between this mark and the next one; group 1 is the value.
    needed: a text without it cannot be read.
  """

  name: str
  mark: str
  value: str = r'(?s)\s*(.*?)\s*'
  needed: bool = True


class Rule(NamedTuple):
  """What a text decides that holds a pattern."""

  pattern: str  # Regular expression, searched for.
  then: str  # PAINT, END, or why such a text cannot be read.


class Decision(NamedTuple):
  """What a text says."""

  move: str  # PAINT or END.
  values: dict[str, str]  # Of its fields; those that are missing are ''.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
  """How texts of one mode are begun, read and obeyed.

  Attributes:
    rules: the first one whose pattern the text holds decides.
    fields: of a text, in order; nothing comes before the first. (): every text can be read.
    begins: what the host begins each text with, `{round}` being its number from 0; '': nothing.
    choices: words of which the text goes on with one, by the model's own probabilities; (): as it likes.
    kept: how a text that decided to paint is read again in later rounds: its fields, `{round}`, `{source}`; '': as
      written.
    sees: SOURCE or ALL: what the picture is painted from.
    instruction: field that a picture is painted from where it sees the SOURCE.
    source: LAST or NAMED.
    given_name, painted_name: names of pictures: of the given one, and of those that are painted, `{number}` from 0, the
      given one counted.
    paints_first: a prompt without a picture is painted, from its words alone, before the first text.
    edits: pictures that texts may ask for.
    guides_by_prompt: branches of guidance know nothing of what was written and painted since the prompt; else they take
      it for a part of the prompt.
  """

  rules: tuple[Rule, ...]
  fields: tuple[Field, ...] = ()
  begins: str = ''
  choices: tuple[str, ...] = ()
  kept: str = ''
  sees: str = ALL
  instruction: str = ''
  source: str = LAST
  given_name: str = 'given'
  painted_name: str = 'Image #{number}'
  paints_first: bool = False
  edits: int = 2**31 - 1
  guides_by_prompt: bool = False

  def __post_init__(self):
    names = [field.name for field in self.fields]
    if self.sees not in SEEN or self.source not in SOURCES:
      raise ValueError(f'A protocol sees one of {SEEN} and has a source of {SOURCES}: {self.sees!r}, {self.source!r}.')
    if self.sees == SOURCE and self.instruction not in names:
      raise ValueError(f'Protocol: the instruction is the field {self.instruction!r}, but it has {names}.')
    if self.source == NAMED and ('source' not in names or self.sees != SOURCE):
      raise ValueError(f"Protocol: a named source is the field 'source' of a text whose picture sees it: {names}.")

  def begin(self, number: int) -> str:
    """What the host begins text `number` with."""
    return self.begins.format(round=number)

  def read(self, text: str) -> Decision:
    """What a text says and decides. Raises: UnreadableError, naming what is wrong with it."""
    values = _values(text, self.fields)
    for rule in self.rules:
      if re.search(rule.pattern, text):
        if rule.then not in (PAINT, END):
          raise UnreadableError(rule.then)
        return Decision(rule.then, values)
    raise UnreadableError('it decides nothing')

  def kept_text(self, text: str, values: Mapping[str, str], *, number: int, source: str) -> str:
    """A text that decided to paint, as later rounds read it.

    Args:
      text: as it was written.
      values: of its fields.
      number: of the text, from 0.
      source: name of the picture that was edited.
    """
    return self.kept.format(**{**values, 'round': number, 'source': source}) if self.kept else text

  def name(self, number: int, *, given: bool) -> str:
    """Name of a picture.

    >>> TABLE['umm_reflection'].name(0, given=True), TABLE['umm_reflection'].name(0, given=False)
    ('given', 'Image #0')

    Args:
      number: among all, from 0.
      given: the first one is of the prompt.
    """
    return self.given_name if given and number == 0 else self.painted_name.format(number=number)


def _values(text: str, fields: tuple[Field, ...]) -> dict[str, str]:
  """The values of a text's fields. Raises: UnreadableError naming the field."""
  spots: list[tuple[re.Match, Field]] = []
  for field in fields:
    found = list(re.finditer(field.mark, text))
    if field.needed and len(found) != 1:
      raise UnreadableError(f'{field.name} is there {len(found)} times')
    found = found[:1]
    if found and spots and found[0].start() < spots[-1][0].end():
      raise UnreadableError(f'{field.name} comes before {spots[-1][1].name}')
    spots += [(match, field) for match in found]
  if spots and spots[0][0].start():
    raise UnreadableError(f'{text[: spots[0][0].start()][:20]!r} comes before {spots[0][1].name}')
  values = {field.name: '' for field in fields}
  ends = [match.start() for match, _ in spots[1:]] + [len(text)] * bool(spots)
  for (match, field), end in zip(spots, ends, strict=True):
    value = re.fullmatch(field.value, text[match.end() : end])
    if value is None:
      raise UnreadableError(f'{field.name} is {text[match.end() : end][:60]!r}')
    values[field.name] = value[1] if value.re.groups else ''
  return values


# The rows below hold the strings that the models were trained with, to the letter, and the rules of the programs that
# were released with them; all three under Apache-2.0.

# UMM-Reflection (github.com/waltstephen/UMM-Reflection @85107969, arXiv 2609.35767): assets/prompts; for the form
# v20_controller_protocol, existing_exact_edit_relocation_contract and the rollout, g008_counting.
UMM_REFLECTION_SYSTEM = (
  'You are an image generation, editing, and verification agent operating over an ordered visual trajectory.\n'
  'The original user request remains the final objective throughout the trajectory. A T2I trajectory begins with no '
  'source image; an edit trajectory begins with a given source image. Later visible images are the current '
  'intermediate state.\n'
  'At every reasoning turn, output exactly one assistant response: use one <think> block with these exact tags: '
  '[CURRENT_ROUND], [SCORE], [ACTION], [THINKING], and [SOURCE_IMAGE], then place exactly one [EDIT] field immediately '
  'after </think> in the same response.\n'
  'Use [SOURCE_IMAGE] None before initial T2I generation, given for an external edit source, or Image #N for a '
  'generated intermediate image. Use [ACTION] edit with one concrete [EDIT] instruction to generate or revise the next '
  'image. Use [ACTION] done only when the complete original request is visibly satisfied, with [EDIT] None.\n'
  'For a planned progression, execute only the currently due milestone. Constraints assigned to future milestones are '
  'intentionally pending, not model failures or defects in the current image. Preserve completed milestones while '
  'advancing the next one. Call a constraint failed only when it was due and is visibly incorrect.\n'
  'Judge only visible evidence, preserve unrelated content for edits, and do not invent corruption, rollback state, or '
  'hidden success.\n'
  'For a planned progression, begin first-round [THINKING] with the complete compact milestone plan, then execute only '
  'the currently due milestone. Keep that plan in the persistent history for later verification turns.\n'
  'The [SCORE] field is always written on the fixed protocol scale as N/10, where N is an integer from 0 to 10 and 10 '
  'means the original request is fully satisfied by the current image. Never use another denominator, a percentage, or '
  'a bare number.\n'
  'If the current image already satisfies the complete original request, emit [ACTION] done with [EDIT] None. Never '
  'emit [ACTION] edit with an empty, None, or placeholder [EDIT] payload; that is a done decision.'
)
_NOTHING = (
  *('', 'none', 'null', 'n/a', 'na', 'executable payload', 'executable payload or none'),
  *('concrete generation instruction', 'concrete edit instruction'),
)
_PLACEHOLDERS = (
  r'ground the decision in the visible image\.',
  r'ground the decision only in the request and supplied image context\.',
)
# Of the protocol itself, which an instruction must not hold.
_OWN = r'<think|</think|\[(?:CURRENT_ROUND|SCORE|ACTION|THINKING|SOURCE_IMAGE|EDIT)\]|<\|[^>\r\n]+\|>'
_UMM_REFLECTION = Protocol(
  fields=(
    Field(name='think', mark=r'<think>'),
    Field(name='round', mark=r'(?im)^[ \t]*\[CURRENT_ROUND\]'),
    Field(name='score', mark=r'(?im)^[ \t]*\[SCORE\]', value=r'(?s)[ \t]*(10|\d)[ \t]*/[ \t]*10[ \t]*(?:[\r\n].*)?'),
    Field(name='action', mark=r'(?i)\[ACTION\]', value=r'(?is)[ \t]*(edit|done)[ \t]*(?:[,\r\n].*)?'),
    Field(
      name='thinking',
      mark=r'(?i)\[THINKING\]',
      value=rf'(?s)(?!(?i:\s*(?:{"|".join(_PLACEHOLDERS)})\s*$))(?!.*(?i:\[EDIT\]))(?!.*\n[ \t]*\[[A-Z][A-Z _-]*\])'
      r'\s*(\S|\S.*\S)\s*',
    ),
    Field(name='source', mark=r'(?i)\[SOURCE_IMAGE\]', needed=False),
    Field(name='end of think', mark=r'</think>', value=r'\n'),
    Field(name='edit', mark=r'\[EDIT\]', value=rf'(?s) (?!.*(?i:{_OWN}))(\s*(?i:{"|".join(_NOTHING)})\s*|\S.*\S|\S)'),
  ),
  rules=(
    Rule(r'(?is)\[ACTION\][ \t]*edit.*\[EDIT\] ' + rf'\s*(?:{"|".join(_NOTHING)})\s*\Z', END),  # An alias of `done`.
    Rule(r'(?is)\[ACTION\][ \t]*edit', PAINT),
    Rule(r'(?s)\[EDIT\] None\Z', END),
    Rule('', 'edit is not None where the action is done'),
  ),
  begins='<think>\n[CURRENT_ROUND] Round#{round}\n[SCORE] ',
  choices=tuple(f'{score}/10' for score in range(11)),
  kept='<think>\n[CURRENT_ROUND] Round#{round}\n[SCORE] {score}/10\n[ACTION] edit\n[THINKING] {thinking}\n'
  '[SOURCE_IMAGE] {source}\n</think>\n[EDIT] {edit}',
  sees=SOURCE,
  instruction='edit',
  paints_first=True,
  edits=3,
)

# ThinkMorph (github.com/ThinkMorph/ThinkMorph @c1a48adf, arXiv 2510.27492): inferencer.py.
THINKMORPH_SYSTEM = (
  "\nLet's think step by step to answer the question. For text-based thinking, enclose the process within <think> "
  '</think>, e.g. <think> thinking process here </think>. For visual thinking, enclose the content within '
  '<image_start> </image_end>, e.g. <image_start> thinking image here </image_end>. Finally conclude with the final '
  'answer wrapped in <answer></answer> tags, i.e.<answer> answer here </answer>.\n'
)
_THINKMORPH = Protocol(rules=(Rule('<image_start>', PAINT), Rule('', END)), edits=3, guides_by_prompt=True)

# Zebra-CoT (github.com/multimodal-reasoning-lab/Bagel-Zebra-CoT @16d9972e, arXiv 2507.16746): infz_bf16.py.
ZEBRA_COT_SYSTEM = (
  'You are an AI reasoning assistant capable of step-by-step interleaved text and visual chain of thought. Think step '
  'by step and use visual aids to enhance your problem-solving. Provide your final conclusion clearly in the format of '
  '"Final Answer: <answer here>"'
)
_ZEBRA_COT = Protocol(rules=(Rule('Final Answer:|<answer>', END), Rule('', PAINT)))

TABLE = {'umm_reflection': _UMM_REFLECTION, 'thinkmorph': _THINKMORPH, 'zebra_cot': _ZEBRA_COT}
