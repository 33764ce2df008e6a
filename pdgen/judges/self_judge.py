"""Judge by the painting model itself: its understanding half inspects a draft, and its inspection is read as a Verdict.

    judges.judge('self', pdgen.load('shapes'))

The painter continues the partial trajectory (prompt, steps before, plan, draft) by its inspection; `<refine>` in it
means wrong. A picture that it may paint after that is not looked at.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from pdgen.core import tags
from pdgen.core import trajectory as trajectory_lib
from pdgen.judges import base


class Painter(Protocol):
  """The part of `pdgen.Painter` that is needed here."""

  def sample(
    self, prompts: list[trajectory_lib.Trajectory], *, seed: int, batch_size: int | None, pictures: int
  ) -> Any:
    """Continues partial trajectories; `trajectories` of the result are the continued ones."""
    ...


def get(painter: Painter, *, model: str = 'self', seed: int = 0, batch_size: int | None = None) -> 'SelfJudge':
  """The judge of a painter. Arguments as of `SelfJudge`."""
  return SelfJudge(painter, model=model, seed=seed, batch_size=batch_size)


@dataclasses.dataclass(frozen=True)
class SelfJudge:
  """Asks a painter for inspections."""

  painter: Painter
  _: dataclasses.KW_ONLY
  model: str = 'self'  # Of the painter, for `Verdict.by`.
  seed: int = 0  # Of texts sampled at a temperature.
  batch_size: int | None = None  # Pictures inspected together, and rows of the compiled program; None: all, at most 32.

  def judge(self, question: base.Question) -> base.Verdict:
    """The model's own inspection of a picture, of the size that it paints or knows.

    Raises: ValueError for a question without a plan: the model has learned to inspect what a plan describes.
    """
    return self.judge_all([question])[0]

  def judge_all(self, questions: Sequence[base.Question]) -> list[base.Verdict]:
    """The verdicts on many pictures, batch by batch. Raises: as `judge`."""
    asked = [_partial(question) for question in questions]
    if not asked:
      return []
    answered = self.painter.sample(asked, seed=self.seed, batch_size=self.batch_size, pictures=1).trajectories
    return [
      self._verdict(trajectory.steps[len(question.steps) - 1])
      for question, trajectory in zip(asked, answered, strict=True)
    ]

  def _verdict(self, step: trajectory_lib.Step) -> base.Verdict:
    before, *rest = tags.around_refine(step.inspection or '')
    if not rest:  # Without a word, the draft ended the trajectory.
      return base.Verdict(ok=True, by=self.model)
    correction, after = rest
    reason = ' '.join(f'{before} {after}'.split())
    return base.Verdict(ok=False, reason=reason, correction=correction or None, by=self.model)


def _partial(question: base.Question) -> trajectory_lib.Trajectory:
  base.check_picture(question.picture)
  if question.plan is None:
    raise ValueError(
      f'The question about {question.prompt!r} has no plan, and a painter inspects what a plan describes.'
    )
  step = trajectory_lib.Step(plan=question.plan, draft=question.picture)
  return trajectory_lib.Trajectory(prompt=question.prompt, steps=(*question.before, step), stop=None)
