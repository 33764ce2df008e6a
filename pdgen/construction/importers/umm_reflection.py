"""UMM-Reflection (arXiv 2609.35767): multi-round generation and editing with reflections; parquet.

Columns of the trajectory files (waltstephen/UMM-Reflection, scripts and readers): uid, task (t2i | edit),
trajectory_subtype, user_prompt, think_list, step_action_list (none | edit | done), step_image_list (a picture a step,
or nothing). A response of think_list reads

    <think> [CURRENT_ROUND] .. [SCORE] N/10 [ACTION] edit|done [THINKING] .. [SOURCE_IMAGE] .. </think> [EDIT] ..

with [EDIT] inside or after `<think>`. Response k judges picture k - 1 and asks for picture k:

    edit: picture 0                    given picture: context, no flow target
    [EDIT], [THINKING] of the first    plan: its instruction, its description
    the picture after it               draft
    [THINKING], [EDIT] of the next     inspection: what it thinks, and `<refine>` what it asks for `</refine>`
    the picture after that             refined picture
    [EDIT], [THINKING] after that      plan of the next step, and so on
    [THINKING] of done                 inspection that approves; after a refined picture `metadata['done']`

In trajectories of the subtype `planned_progression` the next response finds the picture right so far: its [THINKING]
approves the draft and its [EDIT] is the next plan. Repairs among them read as plans too: only files outside of the
parquet tell them apart.

The three supervised views of the authors are one trajectory here. Controller (cross-entropy on every response): the
texts. Transition (flow loss on every picture after the first given one): the pictures; of those that were rejected
only with `config.data.sequence.rejected_draft_weight`. Verifier state (cross-entropy on the next response): the
inspections; states one edit before the end are not repeated more often. Lost: [CURRENT_ROUND], [SOURCE_IMAGE] (the
order says both), weights of single words; [SCORE]s are in `metadata['scores']`. The view files, which hold no
pictures, are rejected row by row.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pdgen.construction.importers import base, parquet
from pdgen.core import tags
from pdgen.core import trajectory as trajectory_lib

_COLUMNS = ('uid', 'task', 'trajectory_subtype', 'user_prompt', 'think_list', 'step_action_list', 'step_image_list')
_FIELD = re.compile(r'^[ \t]*\[(CURRENT_ROUND|SCORE|ACTION|THINKING|SOURCE_IMAGE|EDIT)\][ \t]*', re.MULTILINE)
_NOTHING = ('', 'none', 'null', 'n/a')
_PLANNED = 'planned_progression'


class _Response(NamedTuple):
  """What the controller says at a step."""

  thinking: str
  edit: str  # Empty: done.
  score: str
  picture: np.ndarray | None  # Made by the edit.


def rows(source: base.Source, wanted: Callable[[base.Where], bool]) -> Iterator[tuple[base.Where, base.Load]]:
  """Rows of the parquet files; also of the view files, so that each is named among the rejected."""
  return parquet.rows(source, wanted, columns=_COLUMNS, key='uid')


def trajectory(row: Any, pictures: base.Pictures) -> trajectory_lib.Trajectory:
  """Raises: ValueError for a row that lacks a column, or whose responses, actions and pictures do not fit together."""
  if 'step_image_list' not in row:
    raise ValueError('there is no column step_image_list: it is a view, give the trajectory files')
  prompt, task = (base.words(base.column(row, name), what=name) for name in ('user_prompt', 'task'))
  if task not in ('t2i', 'edit'):
    raise ValueError(f"task is {task!r}; known: ['t2i', 'edit']")
  given, responses = _responses(row, pictures, is_edit=task == 'edit')
  subtype = row.get('trajectory_subtype') or ''
  make = _planned if subtype == _PLANNED else _corrected
  steps, metadata = make(responses)
  return trajectory_lib.Trajectory(
    prompt=prompt,
    steps=(*(base.shown(picture) for picture in given), *steps),
    provenance=trajectory_lib.Provenance(source='UMM-Reflection', kind=f'{task}_reflection'),
    metadata={'scores': [response.score for response in responses], 'subtype': subtype, **metadata},
  )


def _responses(row: Any, pictures: base.Pictures, *, is_edit: bool) -> tuple[list[np.ndarray], list[_Response]]:
  """The given pictures, and the responses; the last one is done, all others made a picture."""
  names = ('think_list', 'step_action_list', 'step_image_list')
  thinks, actions, shown = (base.many(base.column(row, name), what=name) for name in names)
  if not len(thinks) == len(actions) == len(shown):
    raise ValueError(f'{", ".join(names)} have {len(thinks)}, {len(actions)} and {len(shown)} entries')
  given, found = [], []
  for number, (think, action, picture) in enumerate(zip(thinks, actions, shown, strict=True)):
    if is_edit and not number:
      given.append(pictures.open(picture, what='step_image_list[0]'))
      continue
    fields = _fields(base.words(think, what=f'think_list[{number}]'), number)
    edit = '' if fields['EDIT'].lower() in _NOTHING else fields['EDIT']
    says, last = fields['ACTION'].lower(), number == len(thinks) - 1
    if says != action or says != ('done' if last else 'edit') or bool(edit) == last:
      raise ValueError(
        f'step {number} of {len(thinks)} says {says!r} with the edit {edit[:40]!r}, recorded is {action!r}: '
        'the last one must be done, all others edits'
      )
    made = None if last else pictures.open(picture, what=f'step_image_list[{number}]')
    found.append(_Response(thinking=fields['THINKING'], edit=edit, score=fields.get('SCORE', ''), picture=made))
  if len(found) < 2:
    raise ValueError('there is no edit: nothing is painted')
  return given, found


def _fields(response: str, number: int) -> dict[str, str]:
  """The fields of a response, by name."""
  if not response.startswith('<think>') or response.count('<think>') != 1 or response.count('</think>') != 1:
    raise ValueError(f'think_list[{number}] is no single <think> block')
  pieces = _FIELD.split(response.replace('<think>', '\n').replace('</think>', '\n'))
  names = pieces[1::2]
  if len(set(names)) != len(names) or not {'ACTION', 'THINKING', 'EDIT'} <= set(names):
    raise ValueError(f'think_list[{number}] has the fields {names}: it needs ACTION, THINKING and EDIT, once each')
  return {name: value.strip() for name, value in zip(names, pieces[2::2], strict=True)}


def _corrected(responses: Sequence[_Response]) -> tuple[list[trajectory_lib.Step], dict[str, Any]]:
  """Plan, draft, inspection with the next edit, refined picture; again."""
  steps, left = [], list(responses)
  while len(left) > 1:
    first, second = left[:2]
    plan = base.plan(first.edit, first.thinking)
    if not second.edit:
      steps.append(trajectory_lib.Step(plan=plan, draft=first.picture, inspection=second.thinking or None))
      return steps, {}
    inspection = f'{second.thinking} {tags.refine(second.edit)}'.strip()
    steps.append(trajectory_lib.Step(plan=plan, draft=first.picture, inspection=inspection, refined=second.picture))
    left = left[2:]
  return steps, {'done': left[0].thinking}


def _planned(responses: Sequence[_Response]) -> tuple[list[trajectory_lib.Step], dict[str, Any]]:
  """Each edit is a plan, what the next response thinks of its picture the inspection, which approves."""
  steps = []
  for number, (response, after) in enumerate(zip(responses, responses[1:], strict=False)):
    description = '' if number else response.thinking  # Of later ones it is the inspection before.
    steps.append(
      trajectory_lib.Step(
        plan=base.plan(response.edit, description), draft=response.picture, inspection=after.thinking or None
      )
    )
  return steps, {}
