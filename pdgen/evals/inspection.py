"""Inspection metrics (ours): error recall by kind of error, fix rate, and false-alarm rate of a model's inspections.

Neither the paper nor anyone else reports them. A question is a partial trajectory whose last draft is to be inspected;
the sampler continues it by one picture. An error is **found** if the inspection asks to refine, and **fixed** if the
refined picture shows what the step should show. A right draft whose inspection asks to refine is a **false alarm**.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import intervals

# (partial trajectories, seed) -> the same trajectories, each continued by at most one picture.
Sampler = Callable[[Sequence[trajectory_lib.Trajectory], int], Sequence[trajectory_lib.Trajectory]]
# (kind of error or None, seed, index) -> a partial trajectory whose last step has a plan and a draft, and whose
# `expected` is what the step should show. Its provenance names the error.
Drafts = Callable[[str | None, int, int], trajectory_lib.Trajectory]
# (uint8[H, W, 3], expected) -> whether the picture shows just that.
Shows = Callable[[np.ndarray, Sequence[trajectory_lib.Content]], bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """Rates with their intervals."""

  found: dict[str, intervals.Rate]  # recall of each kind of error
  fixed: dict[str, intervals.Rate]  # fix rate of each kind, of the errors found
  false_alarms: intervals.Rate  # share of right drafts whose inspection asks to refine

  def table(self) -> str:
    """One line a kind of error, with 95 % intervals."""
    lines = [f'{"":20} {"found":28} fixed, of those found']
    lines += [f'{kind:20} {str(self.found[kind]):28} {self.fixed[kind]}' for kind in self.found]
    return '\n'.join([*lines, f'{"false alarms":20} {self.false_alarms}'])

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def injected(
  sample: Sampler, drafts: Drafts, shows: Shows, *, kinds: Iterable[str], per_kind: int, seed: int = 0
) -> Report:
  """Metrics of injected errors, with as many right drafts as drafts of one kind.

  Args:
    sample: the sampler of the model.
    drafts: makes the questions.
    detect: the detector.
    kinds: kinds of errors.
    per_kind: questions a kind.
    seed: seed of the questions and of the sampler.
  """
  kinds = list(kinds)
  questions = [drafts(kind, seed, index) for kind in (*kinds, None) for index in range(per_kind)]
  answers = sample(questions, seed)
  outcomes = [_outcome(q, a, shows) for q, a in zip(questions, answers, strict=True)]
  return _report(kinds, [None if q.provenance is None else q.provenance.error for q in questions], outcomes)


def own(sample: Sampler, drafts: Drafts, shows: Shows, *, count: int, seed: int = 0) -> Report:
  """Drafts that the model paints itself: `count` steps, right before it, are painted, judged, and inspected.

  The only kind of error is `own`. The plan and the steps before it are right and come from the world; a draft is
  compared with the scene that the plan describes.

  Args:
    sample: the sampler of the model.
    drafts: makes the questions; their drafts are replaced.
    detect: the detector.
    count: drafts to paint.
    seed: seed of the questions and of the sampler.
  """
  right = [drafts(None, seed, index) for index in range(count)]
  painted = sample([_without_draft(t) for t in right], seed)
  questions = [_with_draft(t, p.steps[len(t.steps) - 1].draft) for t, p in zip(right, painted, strict=True)]
  kinds = [None if _shows(q.steps[-1].draft, q, shows) else 'own' for q in questions]
  answers = sample(questions, seed + 1)
  return _report(['own'], kinds, [_outcome(q, a, shows) for q, a in zip(questions, answers, strict=True)])


def _outcome(question: trajectory_lib.Trajectory, answer: trajectory_lib.Trajectory, shows: Shows) -> tuple[bool, bool]:
  """(found something wrong, and refined it into what the step should show)."""
  step = answer.steps[len(question.steps) - 1]
  return step.rejected, step.rejected and step.refined is not None and _shows(step.refined, question, shows)


def _shows(picture: np.ndarray, question: trajectory_lib.Trajectory, shows: Shows) -> bool:
  if question.expected is None:
    raise ValueError(f'It is not known what a step of {question.prompt!r} should show: give its trajectory `expected`.')
  return shows(picture, question.expected)


def _report(kinds: Sequence[str], errors: Sequence[str | None], outcomes: Sequence[tuple[bool, bool]]) -> Report:
  def of(kind: str | None) -> list[tuple[bool, bool]]:
    return [o for e, o in zip(errors, outcomes, strict=True) if e == kind]

  return Report(
    found={k: intervals.rate(found for found, _ in of(k)) for k in kinds},
    fixed={k: intervals.rate(fixed for found, fixed in of(k) if found) for k in kinds},
    false_alarms=intervals.rate(found for found, _ in of(None)),
  )


def _without_draft(trajectory: trajectory_lib.Trajectory) -> trajectory_lib.Trajectory:
  return _with_draft(trajectory, None)


def _with_draft(trajectory: trajectory_lib.Trajectory, draft: np.ndarray | None) -> trajectory_lib.Trajectory:
  *before, last = trajectory.steps
  return dataclasses.replace(trajectory, steps=(*before, dataclasses.replace(last, draft=draft)))
