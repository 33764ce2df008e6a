"""What the process is worth: repair and damage rates, accuracy by edit budget, recall of inspections, cost.

The same prompts are painted with the same seeds under several **settings** of the sampler, so that any two of them are
compared pair by pair:

    free            as the model likes
    edits_K         at most K refined pictures a trajectory; edits_0: `<refine>` is forbidden
    no_inspection   a draft is followed by a plan or the end
    forced          every draft is refined
    oracle          every draft is inspected by the world (`worlds.base.OracleWorld`), in the words of its training data
    approved        every draft is approved in those words, right or wrong

A painting is **repaired** if it is wrong with edits_0 and right in a setting, **damaged** the other way round.
Forbidding does harm of its own to a model that has begun to reject a draft
(docs/experiments.md#worth-of-the-process): the same is therefore told against `approved`, where nothing is rejected and
all words are those of training.

Within a trajectory, a step's draft is wrong if its plan contradicts the prompt or the draft does not show the plan; a
wrong draft is **fixed** by a right refined picture, a right one **spoiled** by a wrong one. `Process` is the evaluator;
the folder that it is given gets

    <out>/<setting>.jsonl    one line a prompt; they grow batch by batch
    <out>/run.json           what the paintings were made from
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import tags
from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import base, geneval, process_figures
from pdgen.judges import base as judges_base

FREE, NO_EDITS, NO_INSPECTION, FORCED, ORACLE, APPROVED = (
  'free',
  'edits_0',
  'no_inspection',
  'forced',
  'oracle',
  'approved',
)
SETTINGS = (FREE, NO_EDITS, 'edits_1', 'edits_2', 'edits_3', NO_INSPECTION, FORCED, ORACLE, APPROVED)
_BUDGET = re.compile(r'edits_(\d{1,4})')
_INSPECTIONS = {
  NO_INSPECTION: config_lib.OFF,
  FORCED: config_lib.FORCED,
  ORACLE: config_lib.DICTATED,
  APPROVED: config_lib.DICTATED,
}
_BATCH = 32  # prompts painted and written together, if nothing else is said


class Inspected(Protocol):
  """What an inspector that sees everything finds in a step (`worlds.base.Inspected`)."""

  @property
  def errors(self) -> Sequence[str]: ...

  @property
  def text(self) -> str: ...

  @property
  def approval(self) -> str: ...


class Inspect(Protocol):
  """Inspects a draft uint8[H, W, 3] of a plan (`worlds.base.OracleWorld.inspect`)."""

  def __call__(
    self, prompt: str, plan: str | None, draft: np.ndarray, /, *, before: str | None = None
  ) -> Inspected: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
  """Evaluator: the same prompts and seeds under several settings (`evals.base.Evaluator`).

  A row has `number`, `tag`, `prompt`, `correct`, `reason`, `edits`, `pictures`, `tokens`, `stop`, `well_formed`,
  `seconds` (its share of its batch; None of a batch that compiled) and `steps`: for each draft the `errors` found in it
  (None without an inspecting world), whether it was `inspected` and `rejected`, the errors of its `refined` picture.
  """

  prompts: base.PromptSet  # rows are GenEval metadata
  detector: judges_base.Detector  # of the objects of a picture
  inspect: Inspect | None = None  # the world's inspector; None: steps are not judged, and there is no oracle
  settings: tuple[str, ...] = SETTINGS  # FREE and NO_EDITS among them
  seed: int = 0  # of the first prompt; the next prompts take the next numbers
  batch_size: int | None = None  # trajectories painted together; None: as the painter does
  checkpoint: str = ''  # name of what the painter was loaded from: a folder is of one of them
  name: str = 'process'

  def __post_init__(self):
    for setting in self.settings:
      if setting not in SETTINGS and not _BUDGET.fullmatch(setting):
        raise ValueError(f'Unknown setting {setting!r}. Known: {list(SETTINGS)}, and edits_K of any K.')
      if setting in (ORACLE, APPROVED) and self.inspect is None:
        raise ValueError(
          f'The setting {setting!r} needs a world that inspects (worlds.base.OracleWorld): leave it out.'
        )
    for setting in (FREE, NO_EDITS):
      if setting not in self.settings:
        raise ValueError(f'The other settings are compared with {setting!r}: name it, too.')

  def run(self, painter: base.Painter, out: pathlib.Path | None) -> base.Scores:
    """Figures of a painter. Prompts whose rows are in `out` are not painted again."""
    sampling = painter.config.sampling
    if (sampling.inspection, sampling.max_edits) != (config_lib.FREE, config_lib.MOST):
      raise ValueError('sampling.inspection and sampling.max_edits are what the settings vary: leave them as they are.')
    if out is not None:
      base.claim(out, self._identity(painter))
    rows: dict[str, list[Row]] = {}
    for setting in sorted(self.settings, key=lambda setting: setting != FREE):  # FREE first: budgets start from it.
      rows[setting] = self._rows(painter, out, setting, rows.get(FREE, []))
    rows = {setting: rows[setting] for setting in self.settings}
    values = process_figures.figures(rows, sampling=sampling, references=(NO_EDITS, APPROVED))
    return base.Scores(
      name=self.name,
      values=values,
      asked=len(self.prompts.rows),
      answered=len(rows[FREE]),
      rows=[{'setting': setting, **row} for setting, of in rows.items() for row in of],
      text=process_figures.table(values, self.settings),
    )

  def _identity(self, painter: base.Painter) -> dict[str, Any]:
    settings = dict(evaluator=self.name, seed=self.seed, checkpoint=self.checkpoint, steps_judged=bool(self.inspect))
    return base.identity(painter, self.prompts, **settings)

  def _rows(self, painter: base.Painter, out: pathlib.Path | None, setting: str, free: Sequence['Row']) -> list['Row']:
    """The rows of a setting: those in the folder, and the rest painted and kept there, batch by batch."""
    path, rows = None if out is None else out / f'{setting}.jsonl', dict[int, Row]()
    if path is not None and path.is_file():
      rows = {row['number']: row for row in base.read_rows(path, 'number', 'correct', 'edits', 'steps')}
      if not set(rows) <= set(range(len(self.prompts.rows))):
        raise ValueError(f'{path} has rows of other prompts: it is of another run. Delete it.')
    budget = _BUDGET.fullmatch(setting)
    if budget and painter.config.sampling.grammar:
      # With no more edits than the budget the grammar forbids nothing that was chosen: it would be painted the same.
      rows |= {row['number']: row for row in free if row['edits'] <= int(budget[1])}
    missing, size = [i for i in range(len(self.prompts.rows)) if i not in rows], self.batch_size or _BATCH
    for first in range(0, len(missing), size):
      rows |= {row['number']: row for row in self._painted(painter, setting, missing[first : first + size])}
      if path is not None:
        base.write_atomically(path, ''.join(json.dumps(rows[i]) + '\n' for i in sorted(rows)))
    if path is not None and not missing:  # All of a budget may be those of FREE.
      base.write_atomically(path, ''.join(json.dumps(rows[i]) + '\n' for i in sorted(rows)))
    return [rows[i] for i in sorted(rows)]

  def _painted(self, painter: base.Painter, setting: str, numbers: Sequence[int]) -> Iterator['Row']:
    inspectors = {ORACLE: lambda t: self._oracle(t).text, APPROVED: lambda t: self._oracle(t).approval}
    result = painter.sample(
      [self.prompts.texts[i] for i in numbers],
      seed=[self.seed + i for i in numbers],
      batch_size=self.batch_size or _BATCH,
      sampling=sampling_of(setting, painter.config.sampling),
      inspector=inspectors.get(setting),
    )
    compiled = result.timings.get('compile_calls', 0)
    seconds = None if compiled else result.timings['seconds'] / len(numbers)
    for i, trajectory, chosen in zip(numbers, result.trajectories, result.chosen, strict=True):
      yield {'number': i, **self._row(self.prompts.rows[i], trajectory), 'tokens': len(chosen), 'seconds': seconds}

  def _oracle(self, trajectory: trajectory_lib.Trajectory) -> Inspected:
    assert self.inspect is not None  # As `__post_init__` has it.
    *earlier, step = trajectory.steps
    before = _last_plan(earlier[-1]) if earlier else None
    assert step.draft is not None
    return self.inspect(trajectory.prompt, step.plan, step.draft, before=before)

  def _row(self, prompt: Mapping[str, Any], trajectory: trajectory_lib.Trajectory) -> 'Row':
    found = self.detector.detect(trajectory.final) if trajectory.pictures else []
    correct, reason = geneval.evaluate(prompt, found)
    return {
      'tag': prompt['tag'],
      'prompt': trajectory.prompt,
      'correct': correct,
      'reason': reason,
      'edits': sum(step.refined is not None for step in trajectory.steps),
      'pictures': len(trajectory.pictures),
      'stop': trajectory.stop,
      'well_formed': is_well_formed(trajectory),
      'steps': list(self._steps(trajectory)),
    }

  def _steps(self, trajectory: trajectory_lib.Trajectory) -> Iterator[dict[str, Any]]:
    drafts = [step for step in trajectory.steps if step.draft is not None]
    unknown = [None] * len(drafts)
    before = after = unknown
    if self.inspect is not None:
      before, after = (_examined(trajectory, self.inspect, refined=refined) for refined in (False, True))
    for step, draft, refined in zip(drafts, before, after, strict=True):
      yield {
        'errors': None if draft is None else list(draft.errors),
        'inspected': step.inspection is not None,
        'rejected': step.rejected,
        'refined': None if refined is None or step.refined is None else list(refined.errors),
      }


Row = dict[str, Any]  # as of `Process`


def sampling_of(setting: str, sampling: config_lib.SamplingConfig) -> config_lib.SamplingConfig:
  """The sampler's options in a setting.

  >>> sampling_of('edits_2', config_lib.SamplingConfig()).max_edits
  2
  """
  if budget := _BUDGET.fullmatch(setting):
    return dataclasses.replace(sampling, max_edits=int(budget[1]))
  return dataclasses.replace(sampling, inspection=_INSPECTIONS.get(setting, config_lib.FREE))


def is_well_formed(trajectory: trajectory_lib.Trajectory) -> bool:
  """Whether a trajectory ended by itself and keeps the paper's form.

  Every step has a plan with both its parts and a draft; an inspection holds one whole `<refine>` or no tag; a refined
  picture is there exactly where it is asked for.
  """
  if trajectory.stop != trajectory_lib.FINISHED or not trajectory.steps:
    return False
  return all(_keeps_form(step) for step in trajectory.steps)


def _keeps_form(step: trajectory_lib.Step) -> bool:
  plans = [step.plan or ''] + ([] if step.corrected_plan is None else [step.corrected_plan])
  words = tags.around_refine(step.inspection or '')
  has_tags = any(tag in part for part in words for tag in tags.NAMES)
  order = ['<ins>', '</ins>', '<des>', '</des>']
  are_plans = all(tags.is_plan(p) and [x for x in tags.split(p) if x in tags.NAMES] == order for p in plans)
  return are_plans and step.draft is not None and not has_tags and (step.refined is not None) == step.rejected


def _examined(trajectory: trajectory_lib.Trajectory, inspect: Inspect, *, refined: bool) -> list[Inspected | None]:
  """What is found in each step with a draft, by its draft, or by its refined picture (None where there is none)."""
  found, before = [], None
  for step in trajectory.steps:
    plan, picture = step.plan, step.draft
    if refined:
      plan, picture = _last_plan(step), step.refined
    if step.draft is not None:
      found.append(None if picture is None else inspect(trajectory.prompt, plan, picture, before=before))
    before = _last_plan(step)
  return found


def _last_plan(step: trajectory_lib.Step) -> str | None:
  return step.corrected_plan or step.plan
