"""Image-instruction alignment subset (paper, Table 1): the plan is right, the picture explained (+) or corrected (-).

Wrong pictures are corruptions of a right one (wrong attribute, object, place, count, missing, extra, malformed),
painted by the renderer as edits of it; or they come with a source of bad and good pictures (paper: Gen-Ref).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pdgen.construction import asked as asked_lib
from pdgen.construction import graph_errors, inspections, instructions, multi_turn, rewrites, taxonomy, tools, wording
from pdgen.core import graph_operations, tags
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import records
from pdgen.judges import base

_PLAIN = rewrites.OperationShares(refine=0, swap=0, remove=0)
_TRIES = 20  # Errors that are drawn for one that the world does not keep out.


def make(attempt: tools.Attempt, *, negative: bool) -> trajectory_lib.Trajectory:
  """A rendered sample. negative: one of its pictures is wrong. Raises: tools.RejectionError; BudgetExhausted."""
  asked = asked_lib.draw(attempt)
  painting = multi_turn.plan_painting(attempt, asked, shares=_PLAIN)
  if not negative:
    steps = multi_turn.painted(attempt, asked, painting)
    return multi_turn.finished(attempt, asked, painting, steps, source='constructed')
  number = int(attempt.rng.integers(len(painting.steps)))
  error = drawn(attempt, painting.steps[number], kinds=attempt.tools.config.alignment.kinds)

  def fault(step, text, before) -> trajectory_lib.Step:
    right = multi_turn.right_picture(attempt, asked, text, step.after, before)
    wrong = corrupted(attempt, asked, error, right, before)
    if attempt.judged(multi_turn.question(attempt, asked, text, step.after, wrong, before), wanted=False).ok:
      raise tools.RejectionError(f'judge: step {number + 1}: the error {error.kind} is not to be seen')
    inspection = inspections.misalignment(error, rng=attempt.rng)
    return trajectory_lib.Step(plan=text.plan, draft=wrong, inspection=inspection, refined=right)

  steps = multi_turn.painted(attempt, asked, painting, faulty=number, fault=fault)
  return multi_turn.finished(attempt, asked, painting, steps, source='injected', errors=(error.kind,))


def drawn(attempt: tools.Attempt, step: graph_operations.GraphStep, *, kinds: Sequence[str]) -> graph_errors.GraphError:
  """An error in the picture of a step. kinds: of which it may be. Raises: tools.RejectionError."""
  operation = step.operation
  new = [n.id for n in operation.nodes] if isinstance(operation, graph_operations.Add) else []
  for _ in range(_TRIES):
    kind = taxonomy.choose(attempt.rng, kinds)
    # What is extra or missing changes the background's picture too; all else needs an object.
    if not step.after.nodes and kind != 'extra':
      continue
    error = graph_errors.draw(
      kind, step.after, vocabulary=attempt.tools.vocabulary, rng=attempt.rng, new=new if kind != 'extra' else ()
    )
    if error is not None and not attempt.tools.keeps_out(error.wrong):
      return error
  raise tools.RejectionError(f'error: the step allows none of {", ".join(kinds)}')


def corrupted(
  attempt: tools.Attempt,
  asked: asked_lib.Asked,
  error: graph_errors.GraphError,
  right: np.ndarray,
  before: Sequence[trajectory_lib.Step],
) -> np.ndarray:
  """The picture with the error: uint8[H, W, 3], an edit of the right one.

  Args:
    attempt: of the sample.
    asked: the prompt.
    error: what is shown instead.
    right: the right picture.
    before: finished steps before that of the picture.

  Raises: tools.RejectionError where the renderer cannot paint it.
  """
  render_malformed = getattr(attempt.tools.world, 'render_malformed', None)
  if error.kind == 'malformed' and attempt.tools.config.renderer.name == 'world':
    if render_malformed is None:
      raise tools.RejectionError(f'renderer: the world {attempt.tools.config.world} paints nothing malformed')
    return render_malformed(error.right, error.wanted, rng=attempt.rng)
  text = instructions.PlanText(instruction=inverse(error), description=wording.description(error.wrong))
  shown = (*before, trajectory_lib.Step(plan=text.plan, draft=right, inspection='The intermediate step is correct.'))
  return attempt.render(multi_turn.request(attempt, asked, text, error.wrong, shown), right)


def inverse(error: graph_errors.GraphError) -> str:
  """The instruction that leads from the right picture to the wrong one."""
  if error.kind == 'malformed':
    return f'Distort {wording.the(error.wanted, error.right)}, so that its form is broken and unnatural.'
  kind = {'extra': 'missing', 'missing': 'extra'}.get(error.kind, error.kind)
  turned = graph_errors.GraphError(
    kind=kind,
    right=error.wrong,
    wrong=error.right,
    wanted=error.seen,
    seen=error.wanted,
    attribute=error.attribute,
    relation=error.seen_relation,
    seen_relation=error.relation,
  )
  return inspections.correction(turned)


def of_source(
  attempt: tools.Attempt, source: records.Reader, *, number: int, negative: bool
) -> trajectory_lib.Trajectory:
  """A sample from a source of bad and good pictures (paper: extends Gen-Ref).

  -: the bad picture, what is wrong with it, the source's own instruction, the good picture. +: the good picture and
  why it is right. The plan is the prompt.

  Args:
    attempt: of the sample.
    source: record set of the import, whose trajectories have a draft, an inspection and a refined picture.
    number: of the trajectory.
    negative: whether the bad picture is shown.

  Raises: tools.RejectionError; services.errors.BudgetExhausted.
  """
  if number >= len(source):
    raise tools.RejectionError(f'source: it has {len(source)} samples')
  given = source[number]
  step = next((s for s in given.steps if s.draft is not None and s.refined is not None and s.inspection), None)
  if step is None:
    raise tools.RejectionError('source: the sample has no bad and good picture')
  instruction = tags.refine_instruction(step.inspection or '') or ''
  plan = tags.plan(f'Paint {given.prompt}', given.prompt)
  good = base.Question(prompt=given.prompt, picture=step.refined, plan=plan)  # pyright: ignore[reportArgumentType]
  attempt.approved(good, what='the good picture')
  if negative:
    bad = dataclasses.replace(good, picture=step.draft)
    verdict = attempt.judged(bad, wanted=False)
    if verdict.ok:
      raise tools.RejectionError('judge: the bad picture is not seen to be bad')
    why = ' '.join(verdict.reason.split()).rstrip('.')
    inspection = f'This generation diverges from the prompt. {why}. To correct the image, {tags.refine(instruction)}'
    made = trajectory_lib.Step(
      plan=plan, draft=step.draft, inspection=inspection, refined=step.refined, draft_is_target=False
    )
  else:
    inspection = 'The intermediate step is correct. The image shows what the prompt asks for. Nothing is missing.'
    made = trajectory_lib.Step(plan=plan, draft=step.refined, inspection=inspection)
  origin = given.provenance.source if given.provenance else 'source'
  attempt.notes.insert(0, f'prompt: {origin}')
  errors = ('misalignment',) if negative else ()
  provenance = attempt.provenance(graph=None, source=origin, errors=errors, renderer=origin)
  return trajectory_lib.Trajectory(prompt=given.prompt, steps=(made,), provenance=provenance, metadata=given.metadata)
