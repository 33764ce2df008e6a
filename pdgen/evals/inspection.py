"""Inspection metrics (ours): error recall by kind of error, fix rate, and false-alarm rate of a model's inspections.

Neither the paper nor anyone else reports them. A question is a partial trajectory whose last draft is to be inspected;
the sampler continues it by one picture. An error is **found** if the inspection asks to refine, and **fixed** if the
refined picture shows what the step should show. A right draft whose inspection asks to refine is a **false alarm**.

`Inspection` is the evaluator; the folder that it is given gets

    <out>/injected.jsonl, own.jsonl    one line a question: what was wrong, whether it was found, whether it was fixed;
                                       they grow batch by batch
    <out>/inspection.json              the rates
    <out>/run.json                     what the answers were made from
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import base, intervals
from pdgen.judges import base as judges_base

# (partial trajectories, seed) -> the same trajectories, each continued by at most one picture.
Sampler = Callable[[Sequence[trajectory_lib.Trajectory], int], Sequence[trajectory_lib.Trajectory]]
# (kind of error or None, seed, index) -> a partial trajectory whose last step has a plan and a draft, and whose
# `expected` is what the step should show. Its provenance names the error.
Drafts = Callable[[str | None, int, int], trajectory_lib.Trajectory]

_BATCH = 32  # questions asked and written together, if nothing else is said
OWN = 'own'  # the kind of an error that the model made itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """Rates with their intervals, and the rows that they come from.

  A row has `prompt`, `error` (kind, or None for a right draft), `found`, `fixed` and the text of the `inspection`.
  """

  found: dict[str, intervals.Rate]  # recall of each kind of error
  fixed: dict[str, intervals.Rate]  # fix rate of each kind, of the errors found
  false_alarms: intervals.Rate  # share of right drafts whose inspection asks to refine
  rows: tuple[Mapping[str, Any], ...] = ()  # one a question

  def table(self) -> str:
    """One line a kind of error, with 95 % intervals."""
    lines = [f'{"":20} {"found":28} fixed, of those found']
    lines += [f'{kind:20} {str(self.found[kind]):28} {self.fixed[kind]}' for kind in self.found]
    return '\n'.join([*lines, f'{"false alarms":20} {self.false_alarms}'])

  def to_json(self) -> dict[str, Any]:
    """The rates: `hits` and `total` of each."""
    return {name: value for name, value in dataclasses.asdict(self).items() if name != 'rows'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection:
  """Evaluator: injected errors of every kind, then errors in the model's own drafts (`evals.base.Evaluator`)."""

  drafts: Drafts  # makes the questions
  judge: judges_base.Judge  # of pictures, by what they should show
  kinds: tuple[str, ...]  # kinds of errors to inject
  per_kind: int = 100  # injected errors of each kind, and right drafts
  own_drafts: int = 500  # drafts that the model paints itself
  seed: int = 0  # of the questions and of the sampler
  batch_size: int | None = None  # trajectories painted together; None: as the painter does
  checkpoint: str = ''  # name of what the painter was loaded from: a folder is of one of them
  questions: str = ''  # name of what makes the questions: a folder is of one of them
  name: str = 'inspection'

  def run(self, painter: base.Painter, out: pathlib.Path | None) -> base.Scores:
    """Rates of a painter. Questions whose answers are in `out` are not asked again."""
    if out is not None:
      base.claim(out, self._identity(painter))

    def sample(trajectories: Sequence[trajectory_lib.Trajectory], seed: int) -> Sequence[trajectory_lib.Trajectory]:
      return painter.sample(trajectories, seed=seed, batch_size=self.batch_size, pictures=1).trajectories

    asked = [(kind, index) for kind in (*self.kinds, None) for index in range(self.per_kind)]
    size = None if out is None else self.batch_size or _BATCH
    reports = {
      'injected': _report(
        self.kinds,
        _kept(
          out, 'injected', len(asked), size, lambda i: _injected(sample, self.drafts, self.judge, asked, self.seed, i)
        ),
      ),
      'own': _report(
        [OWN],
        _kept(out, 'own', self.own_drafts, size, lambda i: _own(sample, self.drafts, self.judge, self.seed, i)),
      ),
    }
    if out is not None:
      figures = {half: report.to_json() for half, report in reports.items()}
      base.write_atomically(out / 'inspection.json', json.dumps(figures, indent=2) + '\n')
    rows = [{'half': half, **row} for half, report in reports.items() for row in report.rows]
    return base.Scores(
      name=self.name,
      values={f'{half}/{name}': e for half, report in reports.items() for name, e in _estimates(report).items()},
      asked=len(rows),
      answered=len(rows),
      rows=rows,
      text=(
        f'Errors injected into drafts of held-out prompts\n{reports["injected"].table()}\n\n'
        f"The model's own drafts of held-out prompts\n{reports['own'].table()}"
      ),
    )

  def _identity(self, painter: base.Painter) -> dict[str, Any]:
    names = ('name', 'kinds', 'per_kind', 'own_drafts', 'seed', 'checkpoint', 'questions')
    return {**{n: getattr(self, n) for n in names}, 'sampling': dataclasses.asdict(painter.config.sampling)}


def injected(
  sample: Sampler, drafts: Drafts, judge: judges_base.Judge, *, kinds: Iterable[str], per_kind: int, seed: int = 0
) -> Report:
  """Metrics of injected errors, with as many right drafts as drafts of one kind.

  Args:
    sample: the sampler of the model.
    drafts: makes the questions.
    judge: of pictures, by what they should show.
    kinds: kinds of errors.
    per_kind: questions a kind.
    seed: seed of the questions and of the sampler.
  """
  kinds = list(kinds)
  asked = [(kind, index) for kind in (*kinds, None) for index in range(per_kind)]
  return _report(kinds, _injected(sample, drafts, judge, asked, seed, range(len(asked))))


def own(sample: Sampler, drafts: Drafts, judge: judges_base.Judge, *, count: int, seed: int = 0) -> Report:
  """Drafts that the model paints itself: `count` steps, right before it, are painted, judged, and inspected.

  The only kind of error is `own`. The plan and the steps before it are right and come from the world; a draft is
  compared with the scene that the plan describes.

  Args:
    sample: the sampler of the model.
    drafts: makes the questions; their drafts are replaced.
    judge: of pictures, by what they should show.
    count: drafts to paint.
    seed: seed of the questions and of the sampler.
  """
  return _report([OWN], _own(sample, drafts, judge, seed, range(count)))


Row = dict[str, Any]  # as of `Report.rows`


def _injected(
  sample: Sampler,
  drafts: Drafts,
  judge: judges_base.Judge,
  asked: Sequence[tuple[str | None, int]],
  seed: int,
  numbers: range,
) -> list[Row]:
  """The answers to some of the questions (kind, index) that are asked: each has the seed of its number."""
  questions = [drafts(kind, seed, index) for kind, index in asked[numbers.start : numbers.stop]]
  answers = sample(questions, seed + numbers.start)
  errors = [None if q.provenance is None else q.provenance.error for q in questions]
  return [_row(q, a, e, judge) for q, a, e in zip(questions, answers, errors, strict=True)]


def _own(sample: Sampler, drafts: Drafts, judge: judges_base.Judge, seed: int, numbers: range) -> list[Row]:
  """Drafts of some numbers, painted by the model itself, and its answers about them."""
  right = [drafts(None, seed, index) for index in numbers]
  painted = sample([_without_draft(t) for t in right], seed + numbers.start)
  questions = [_with_draft(t, p.steps[len(t.steps) - 1].draft) for t, p in zip(right, painted, strict=True)]
  errors = [None if _is_right(_draft(q), q, judge) else OWN for q in questions]
  answers = sample(questions, seed + 1 + numbers.start)
  return [_row(q, a, e, judge) for q, a, e in zip(questions, answers, errors, strict=True)]


def _kept(
  out: pathlib.Path | None, half: str, count: int, size: int | None, ask: Callable[[range], list[Row]]
) -> list[Row]:
  """The answers of a half: those in the folder, and the rest asked for and kept there, batch by batch.

  Args:
    out: the folder; None: nothing is kept.
    half: names the file.
    count: questions of the half.
    size: questions of a batch; None: all at once.
    ask: the answers to the questions of some numbers.

  Raises: ValueError for a file that is damaged or holds more answers than there are questions.
  """
  rows: list[Row] = []
  path = None if out is None else out / f'{half}.jsonl'
  if path is not None and path.is_file():
    rows = base.read_rows(path, 'error', 'found', 'fixed')
    if len(rows) > count:
      raise ValueError(f'{path} holds {len(rows)} answers to {count} questions: it is of another run. Delete it.')
  while len(rows) < count:
    rows += ask(range(len(rows), min(count, len(rows) + (size or count))))
    if path is not None:
      base.write_atomically(path, ''.join(json.dumps(row) + '\n' for row in rows))
  return rows


def _estimates(report: Report) -> dict[str, intervals.Estimate]:
  found = {f'found/{kind}': r.estimate for kind, r in report.found.items()}
  fixed = {f'fixed/{kind}': r.estimate for kind, r in report.fixed.items()}
  return {**found, **fixed, 'false_alarms': report.false_alarms.estimate}


def _row(
  question: trajectory_lib.Trajectory,
  answer: trajectory_lib.Trajectory,
  error: str | None,
  judge: judges_base.Judge,
) -> dict[str, Any]:
  step = answer.steps[len(question.steps) - 1]
  fixed = step.rejected and step.refined is not None and _is_right(step.refined, question, judge)
  return {
    'prompt': question.prompt,
    'error': error,
    'found': step.rejected,
    'fixed': fixed,
    'inspection': step.inspection,
  }


def _is_right(picture: np.ndarray, question: trajectory_lib.Trajectory, judge: judges_base.Judge) -> bool:
  plan = question.steps[-1].plan
  asked = judges_base.Question(
    prompt=question.prompt, picture=picture, plan=plan, expected=question.expected, spec=question.spec
  )
  return judge.judge(asked).ok


def _report(kinds: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Report:
  def of(kind: str | None) -> list[Mapping[str, Any]]:
    return [row for row in rows if row['error'] == kind]

  return Report(
    found={k: intervals.rate(row['found'] for row in of(k)) for k in kinds},
    fixed={k: intervals.rate(row['fixed'] for row in of(k) if row['found']) for k in kinds},
    false_alarms=intervals.rate(row['found'] for row in of(None)),
    rows=tuple(rows),
  )


def _draft(question: trajectory_lib.Trajectory) -> np.ndarray:
  draft = question.steps[-1].draft
  if draft is None:
    raise ValueError(f'No draft was painted for {question.prompt!r}. Raise sampling.max_tokens.')
  return draft


def _without_draft(trajectory: trajectory_lib.Trajectory) -> trajectory_lib.Trajectory:
  return _with_draft(trajectory, None)


def _with_draft(trajectory: trajectory_lib.Trajectory, draft: np.ndarray | None) -> trajectory_lib.Trajectory:
  *before, last = trajectory.steps
  return dataclasses.replace(trajectory, steps=(*before, dataclasses.replace(last, draft=draft)))
