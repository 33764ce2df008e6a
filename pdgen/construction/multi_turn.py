"""Multi-turn subset (paper, Table 1): prompt -> graph -> painting -> plans -> pictures -> judge -> approvals.

`painted` makes the steps of a painting; the two other subsets put one wrong step into it (`Fault`).
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from pdgen.construction import asked as asked_lib
from pdgen.construction import inspections, instructions, renderers, rewrites, tools
from pdgen.core import graph_operations, scene_graph
from pdgen.core import trajectory as trajectory_lib
from pdgen.judges import base

# (the step, its right plan, the steps before) -> the step with its error.
Fault = Callable[
  [graph_operations.GraphStep, instructions.PlanText, Sequence[trajectory_lib.Step]], trajectory_lib.Step
]


def make(attempt: tools.Attempt) -> trajectory_lib.Trajectory:
  """A sample. Raises: tools.RejectionError; services.errors.BudgetExhausted."""
  asked = asked_lib.draw(attempt)
  painting = plan_painting(attempt, asked, shares=attempt.tools.config.scenes.operations)
  steps = painted(attempt, asked, painting)
  return finished(attempt, asked, painting, steps, source='constructed')


def plan_painting(
  attempt: tools.Attempt, asked: asked_lib.Asked, *, shares: rewrites.OperationShares
) -> rewrites.Painting:
  """The operations that paint a scene; none of their graphs is one that the world keeps out.

  Args:
    attempt: of the sample.
    asked: the prompt and its scene.
    shares: of detours.

  Raises: tools.RejectionError where a detour shows what is kept out, however often it is drawn.
  """
  for index in range(_TRIES):
    made = rewrites.painting(
      asked.whole,
      vocabulary=attempt.tools.vocabulary,
      seed=attempt.seed,
      index=index,
      shares=shares,
      max_pictures=attempt.tools.config.scenes.max_pictures,
      asked=asked.stated,
    )
    if not any(attempt.tools.keeps_out(step.after) for step in made.steps):
      return made
  raise tools.RejectionError('scene: every detour shows what the world keeps out')


def painted(
  attempt: tools.Attempt,
  asked: asked_lib.Asked,
  painting: rewrites.Painting,
  *,
  before: Sequence[trajectory_lib.Step] = (),
  first: int = 0,
  faulty: int | None = None,
  fault: Fault | None = None,
) -> list[trajectory_lib.Step]:
  """The steps of a painting: plan, picture that the judge approves, inspection that approves it.

  Args:
    attempt: of the sample.
    asked: the prompt and its scene.
    painting: the operations.
    before: finished steps, whose last picture is the previous one.
    first: number of the first operation that is painted.
    faulty: number of the operation that `fault` makes; None: all are right.
    fault: makes a step with an error, whose last picture is right.

  Raises: tools.RejectionError; services.errors.BudgetExhausted.
  """
  made = list(before)
  for number, step in enumerate(painting.steps):
    if number < first:
      continue
    text = attempt.plan(step)
    if number == faulty and fault is not None:
      made.append(fault(step, text, made))
      continue
    picture = right_picture(attempt, asked, text, step.after, made)
    inspection = inspections.approval(step.after, painting.graph, rng=attempt.rng)
    made.append(trajectory_lib.Step(plan=text.plan, draft=picture, inspection=inspection))
  return made


def right_picture(
  attempt: tools.Attempt,
  asked: asked_lib.Asked,
  text: instructions.PlanText,
  graph: scene_graph.SceneGraph,
  before: Sequence[trajectory_lib.Step],
) -> np.ndarray:
  """The picture of a plan that the judge approves: uint8[H, W, 3].

  Args:
    attempt: of the sample.
    asked: the prompt.
    text: the plan.
    graph: what the picture shows.
    before: finished steps.

  Raises: tools.RejectionError; services.errors.BudgetExhausted.
  """
  picture = attempt.render(request(attempt, asked, text, graph, before), previous(before))
  attempt.approved(question(attempt, asked, text, graph, picture, before), what=f'step {len(before) + 1}')
  return picture


def question(
  attempt: tools.Attempt,
  asked: asked_lib.Asked,
  text: instructions.PlanText,
  graph: scene_graph.SceneGraph,
  picture: np.ndarray,
  before: Sequence[trajectory_lib.Step],
) -> base.Question:
  """What a judge is asked of a picture, uint8[H, W, 3]. Other arguments as of `right_picture`."""
  return base.Question(
    prompt=asked.prompt,
    picture=picture,
    plan=text.plan,
    expected=attempt.tools.contents(graph),
    spec=asked.spec,
    before=before,
  )


def request(
  attempt: tools.Attempt,
  asked: asked_lib.Asked,
  text: instructions.PlanText,
  graph: scene_graph.SceneGraph | None,
  before: Sequence[trajectory_lib.Step],
) -> renderers.RenderRequest:
  """What a renderer is asked for a plan. Arguments as of `right_picture`."""
  return renderers.RenderRequest(
    instruction=text.instruction,
    description=text.description,
    scene=graph,
    seed=attempt.seed,
    prompt=asked.prompt,
    before=tuple(before),
  )


def previous(before: Sequence[trajectory_lib.Step]) -> np.ndarray | None:
  """The last picture of finished steps; None where there is none."""
  if not before:
    return None
  return before[-1].draft if before[-1].refined is None else before[-1].refined


def finished(
  attempt: tools.Attempt,
  asked: asked_lib.Asked,
  painting: rewrites.Painting,
  steps: Sequence[trajectory_lib.Step],
  *,
  source: str,
  errors: tuple[str, ...] = (),
) -> trajectory_lib.Trajectory:
  """The sample of finished steps.

  Args:
    attempt: that made them.
    asked: the prompt.
    painting: what they paint.
    steps: all of them.
    source: for the provenance.
    errors: kinds of the errors made in it.
  """
  attempt.notes.insert(0, f'prompt: {asked.source}')
  return trajectory_lib.Trajectory(
    prompt=asked.prompt,
    steps=tuple(steps),
    spec=asked.spec,
    provenance=dataclasses.replace(
      attempt.provenance(graph=painting.graph, source=source, errors=errors), detour=painting.detour
    ),
    expected=attempt.tools.contents(painting.graph),
  )


_TRIES = 20  # Paintings that are drawn for one that shows nothing that is kept out.
