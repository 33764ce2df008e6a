"""A painting process as data: a prompt and its steps of plan, draft, inspection, corrected plan and refined picture.

"Draft" is the picture of a step before its inspection; the paper, the README and the gallery call it the sketch.
The texts of plans and inspections are described in `core.tags`. In modes without a process (`core.modes`) a step is a
text, a picture, or a text and the picture after it.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from pdgen.core import modes, tags

MODES = tuple(modes.TABLE)
PROCESS, DIRECT, EDIT, ANSWER, THINK, FREE = 'process', 'direct', 'edit', 'answer', 'think', 'free'
FINISHED = 'finished'
CAPS = PICTURE_CAP, TOKEN_CAP = 'picture_cap', 'token_cap'
UNREADABLE = 'unreadable'
STOPS = (FINISHED, *CAPS, UNREADABLE)

# Parts of a step, in the order of the sequence: fields of `Step`, kinds of `Item`.
TEXT, PLAN, DRAFT, INSPECTION, CORRECTED_PLAN, REFINED = PARTS = (
  'text',
  'plan',
  'draft',
  'inspection',
  'corrected_plan',
  'refined',
)
PICTURES = (DRAFT, REFINED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """One cycle of the process. Pictures are uint8[H, W, 3]."""

  text: str | None = None  # A thought, an answer, ..: what the model wrote in a mode without a process.
  plan: str | None = None  # None in direct mode, and where a model painted without a plan.
  # None in the last step of a partial trajectory, which a sampler continues; elsewhere only where a model without the
  # grammar wrote two plans.
  draft: np.ndarray | None = None
  inspection: str | None = None  # None where the draft ended the trajectory without a word, or it is still to come.
  corrected_plan: str | None = None  # Written after the inspection of a conflict: the plan contradicted the prompt.
  refined: np.ndarray | None = None  # The picture painted after an inspection that holds `<refine>`.
  draft_is_target: bool = True  # False for a draft that a model painted itself: context to learn from, no flow target.

  @property
  def rejected(self) -> bool:
    """The inspection of this step asks for a refined picture."""
    return self.inspection is not None and tags.refine_instruction(self.inspection) is not None

  @property
  def plan_rejected(self) -> bool:
    return self.corrected_plan is not None


class Item(NamedTuple):
  """One part of a trajectory."""

  kind: str  # One of PARTS.
  number: int  # Of its step, from 0.
  step: Step  # The step it belongs to.

  @property
  def is_picture(self) -> bool:
    return self.kind in PICTURES

  @property
  def text(self) -> str:
    return self._content(str)

  @property
  def picture(self) -> np.ndarray:
    """uint8[H, W, 3]."""
    return self._content(np.ndarray)

  def _content(self, kind: type) -> Any:
    content = getattr(self.step, self.kind)
    if not isinstance(content, kind):
      raise TypeError(f'The {self.kind} of step {self.number} is no {kind.__name__}: {type(content).__name__}.')
    return content


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clause:
  """What a prompt asks for, as a clause of GenEval's `include` or `exclude`."""

  name: str  # Class of the objects (official key: `class`).
  count: int = 1
  color: str | None = None
  position: tuple[str, int] | None = None  # (relation, number of the clause it is relative to).

  @classmethod
  def from_row(cls, row: Mapping[str, Any]) -> 'Clause':
    position = row.get('position')
    return cls(
      name=row['class'],
      count=row.get('count', 1),
      color=row.get('color'),
      position=None if position is None else (str(position[0]), int(position[1])),
    )

  def to_row(self) -> dict[str, Any]:
    row: dict[str, Any] = {'class': self.name, 'count': self.count}
    if self.color is not None:
      row['color'] = self.color
    if self.position is not None:
      row['position'] = list(self.position)
    return row


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSpec:
  """What a prompt asks for, in GenEval's terms; `from_row` and `to_row` read and write the official JSON row."""

  tag: str  # The task: `single_object`, `two_object`, ...
  include: tuple[Clause, ...] = ()
  exclude: tuple[Clause, ...] = ()

  @classmethod
  def from_row(cls, row: Mapping[str, Any]) -> 'PromptSpec':
    """Raises: KeyError for a row without `tag`, or a clause without `class`."""
    include, exclude = (tuple(map(Clause.from_row, row.get(name, ()))) for name in ('include', 'exclude'))
    return cls(tag=row['tag'], include=include, exclude=exclude)

  def to_row(self, prompt: str) -> dict[str, Any]:
    """The official row.

    >>> PromptSpec(tag='colors', include=(Clause(name='ring', color='red'),)).to_row('a photo of a red ring')
    {'tag': 'colors', 'include': [{'class': 'ring', 'count': 1, 'color': 'red'}], 'prompt': 'a photo of a red ring'}
    """
    row: dict[str, Any] = {'tag': self.tag, 'include': [clause.to_row() for clause in self.include]}
    if self.exclude:
      row['exclude'] = [clause.to_row() for clause in self.exclude]
    return {**row, 'prompt': prompt}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """What outside services took to make a trajectory. Sums: `a + b`."""

  calls: int = 0
  tokens: int = 0  # Read and written.
  money: float = 0.0  # US dollars.

  def __add__(self, other: 'Cost') -> 'Cost':
    return Cost(calls=self.calls + other.calls, tokens=self.tokens + other.tokens, money=self.money + other.money)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
  """How a trajectory was made; docs/add_a_dataset.md#provenance has a table of the fields."""

  source: str  # World, dataset or model that made it.
  kind: str  # Kind of trajectory: `multi_turn`, `conflict`, `misalignment`, `direct`, `self_sampled`, ...
  errors: tuple[str, ...] = ()  # Kind of each error made, or found, in it, in order.
  detour: str | None = None  # `refine`, `swap` or `remove`, where the story takes one.
  id: str = ''  # Of the trajectory in its source.
  graph: Mapping[str, Any] | None = None  # Scene graph of the prompt, JSON.
  seed: int | None = None  # Of all that was drawn at random for it.
  renderer: str = ''  # What painted the pictures, with its version: `shapes`, a model's name, ...
  writer: str = ''  # What wrote the texts, with its version.
  judge: str = ''  # What judged the pictures, with its version.
  verdicts: tuple[Mapping[str, Any], ...] = ()  # Of the judge, in the order asked; JSON.
  reasons: tuple[str, ...] = ()  # Why it is kept as it is, or how it was repaired, in words.
  cost: Cost | None = None  # None: nothing was asked of a service, or it is not known.

  @property
  def error(self) -> str | None:
    """Kind of the first error."""
    return self.errors[0] if self.errors else None


class Content(NamedTuple):
  """One object that a picture should show."""

  name: str  # Class of the object.
  color: str | None = None
  cell: int | None = None  # Cell of the world's grid, where the world has one.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
  """A prompt and the steps that paint it.

  Raises: ValueError for an unknown mode or stop, for parts that are not those of the prompt, and for a step whose parts
    are out of order or not those of its mode.
  """

  prompt: str  # Its texts alone, joined by a space: what identifies it.
  steps: tuple[Step, ...]
  mode: str = PROCESS  # Name of a row of `core.modes`: `process` (plan, draft, inspect, refine), `direct`, `edit`, ..
  # `finished`: the painter ended by itself; one of CAPS: a limit did; `unreadable`: what it wrote last is not of the
  # form that its mode's protocol reads; None: it is partial.
  stop: str | None = FINISHED
  spec: PromptSpec | None = None  # What the prompt asks for; None where that is not known.
  provenance: Provenance | None = None
  expected: tuple[Content, ...] | None = None  # What the last picture (of a partial one: the next) should show.
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # JSON of the user's; pdgen never reads it.
  # Texts and pictures (uint8[H, W, 3], any size) of the prompt, in order; (): it is one text.
  parts: tuple[str | np.ndarray, ...] = ()

  def __post_init__(self):
    mode = modes.of(self.mode)
    if self.parts and joined(self.parts) != self.prompt:
      raise ValueError(f'The prompt {self.prompt!r} has other texts than its parts: {joined(self.parts)!r}.')
    if self.stop is not None and self.stop not in STOPS:
      raise ValueError(f'Unknown stop {self.stop!r}. Known: {[*STOPS, None]}')
    for number, step in enumerate(self.steps):
      where = f'Step {number} of the trajectory of {self.prompt!r}'
      have = {part for part in PARTS if getattr(step, part) is not None}
      if mode.texts == modes.STEPS:
        may = set(PARTS) - {TEXT}
      else:
        may = {part for part, has in ((TEXT, mode.writes), (DRAFT, mode.paints)) if has}
      if have - may:
        raise ValueError(f'{where} has a {sorted(have - may)[0]}, but those of mode {self.mode!r} have: {sorted(may)}.')
      if step.draft is None and (step.inspection is not None or step.refined is not None):
        raise ValueError(f'{where} has an inspection or a refined picture, but no draft that it could be about.')
      if step.inspection is None and (step.refined is not None or step.corrected_plan is not None):
        raise ValueError(f'{where} has a corrected plan or a refined picture, but no inspection that asks for it.')

  def items(self) -> Iterator[Item]:
    """Every part that is there, in the order of the sequence (the prompt comes before them)."""
    for number, step in enumerate(self.steps):
      for kind in PARTS:
        if getattr(step, kind) is not None:
          yield Item(kind, number, step)

  @property
  def given(self) -> tuple[str | np.ndarray, ...]:
    """Texts and pictures of the prompt, in order."""
    return self.parts or (self.prompt,)

  @property
  def given_pictures(self) -> list[np.ndarray]:
    """Every picture of the prompt: uint8[H, W, 3], of any size."""
    return [part for part in self.parts if not isinstance(part, str)]

  @property
  def texts(self) -> list[str]:
    """Every text that the model wrote, in order."""
    return [item.text for item in self.items() if not item.is_picture]

  @property
  def pictures(self) -> list[np.ndarray]:
    """Every picture in the order of painting; none of the prompt."""
    return [item.picture for item in self.items() if item.is_picture]

  @property
  def final(self) -> np.ndarray:
    """The picture that the trajectory ends with: uint8[H, W, 3].

    Raises: ValueError when there is none yet.
    """
    pictures = self.pictures
    if not pictures:
      raise ValueError(f'The trajectory of {self.prompt!r} holds no picture yet.')
    return pictures[-1]

  def with_text(self, text: str) -> 'Trajectory':
    """The trajectory with one more text: the inspection of a draft, the corrected plan of a rejected one, or a plan.

    A plan right after a draft (`SamplingConfig.inspection` is `off`) begins a step; so does every text of a mode
    without a process.
    """
    if modes.of(self.mode).texts != modes.STEPS:
      return dataclasses.replace(self, steps=(*self.steps, Step(text=text)))
    last = self.steps[-1] if self.steps else None
    if last and last.draft is not None and last.inspection is None and not tags.is_plan(text):
      return self._with_last(inspection=text)
    if last and last.rejected and last.refined is None and last.corrected_plan is None:
      return self._with_last(corrected_plan=text)
    return dataclasses.replace(self, steps=(*self.steps, Step(plan=text)))

  def with_picture(self, picture: np.ndarray) -> 'Trajectory':
    """The trajectory with one more picture, uint8[H, W, 3]: a draft, or the refined one of a rejected draft.

    One that follows neither begins a step without a plan: direct mode, or a model without the grammar.
    """
    last = self.steps[-1] if self.steps else None
    if last and last.draft is None:
      return self._with_last(draft=picture)
    if last and last.rejected and last.refined is None:
      return self._with_last(refined=picture)
    return dataclasses.replace(self, steps=(*self.steps, Step(draft=picture)))

  def _with_last(self, **parts: Any) -> 'Trajectory':
    *before, last = self.steps
    return dataclasses.replace(self, steps=(*before, dataclasses.replace(last, **parts)))


def joined(parts: Iterable[str | np.ndarray]) -> str:
  """The prompt that identifies texts and pictures: its texts, joined by a space.

  >>> joined(['make it night', np.zeros((2, 2, 3), np.uint8), 'and add a moon'])
  'make it night and add a moon'
  """
  return ' '.join(part for part in parts if isinstance(part, str))
