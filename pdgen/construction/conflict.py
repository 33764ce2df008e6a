"""Instruction-intermediate conflict subset (paper, Table 1): a plan that contradicts the prompt, noticed and corrected.

`of_trace` makes a sample of what a model wrote and painted itself (`traces`); `make` injects a conflict into a
painting, or makes a right one, where the model has not made enough. `Provenance.source` says which: `self_sampled`,
`injected`, `constructed`.
"""

import dataclasses
from collections.abc import Sequence

from pdgen.construction import asked as asked_lib
from pdgen.construction import (
  graph_errors,
  inspections,
  instructions,
  multi_turn,
  rewrites,
  subgraphs,
  taxonomy,
  tools,
  traces,
)
from pdgen.core import graph_operations, scene_graph, tags
from pdgen.core import trajectory as trajectory_lib
from pdgen.judges import base
from pdgen.services import budget

_PLAIN = rewrites.OperationShares(refine=0, swap=0, remove=0)
_TRIES = 20  # Errors that are drawn for one that contradicts the prompt.
_FILLINGS = 4  # Of a corrected scene, for one that the world does not keep out; each is itself tried often.


def make(attempt: tools.Attempt, *, negative: bool) -> trajectory_lib.Trajectory:
  """A sample of no trace. negative: with an injected conflict. Raises: tools.RejectionError; BudgetExhausted."""
  asked = asked_lib.draw(attempt)
  painting = multi_turn.plan_painting(attempt, asked, shares=_PLAIN)
  if not negative:
    steps = multi_turn.painted(attempt, asked, painting)
    return multi_turn.finished(attempt, asked, painting, steps, source='constructed')
  number, error = injected(attempt, asked, painting)

  def fault(step, text, before) -> trajectory_lib.Step:
    add = graph_operations.growth(step.before, error.wrong)
    wrong = attempt.plan(graph_operations.GraphStep(operation=add, before=step.before, after=error.wrong))
    draft = attempt.render(multi_turn.request(attempt, asked, wrong, error.wrong, before), multi_turn.previous(before))
    question = multi_turn.question(attempt, asked, wrong, error.wrong, draft, before)
    exact = attempt.tools.config.judge.name == 'exact'
    if attempt.judged(question, wanted=exact).ok != exact:  # A model judges by the prompt, a world by the plan.
      raise tools.RejectionError(f'judge: step {number + 1}: the conflict {error.kind} is not to be seen')
    return corrected(attempt, asked, error, painting.graph, wrong.plan, draft, before)

  steps = multi_turn.painted(attempt, asked, painting, faulty=number, fault=fault)
  return multi_turn.finished(attempt, asked, painting, steps, source='injected', errors=(error.kind,))


def corrected(
  attempt: tools.Attempt,
  asked: asked_lib.Asked,
  error: graph_errors.GraphError,
  whole: scene_graph.SceneGraph,
  plan: str,
  draft,
  before: Sequence[trajectory_lib.Step],
  *,
  is_target: bool = True,
) -> trajectory_lib.Step:
  """The step of a conflict: wrong plan, its draft, inspection, corrected plan, the right picture.

  Args:
    attempt: of the sample.
    asked: the prompt.
    error: of the plan.
    whole: the scene that is to be painted.
    plan: the wrong one.
    draft: uint8[H, W, 3], what it shows.
    before: finished steps.
    is_target: `Step.draft_is_target`.
  """
  inspection, right_plan = inspections.conflict(error, whole, rng=attempt.rng)
  instruction, description = tags.plan_parts(right_plan)
  text = instructions.PlanText(instruction=instruction, description=description)
  drafted = trajectory_lib.Step(plan=plan, draft=draft, inspection=inspection)
  refined = multi_turn.right_picture(attempt, asked, text, error.right, [*before, drafted])
  return dataclasses.replace(drafted, corrected_plan=right_plan, refined=refined, draft_is_target=is_target)


def injected(
  attempt: tools.Attempt, asked: asked_lib.Asked, painting: rewrites.Painting
) -> tuple[int, graph_errors.GraphError]:
  """A step of a painting, by number, and an error of its plan that contradicts the prompt. Raises: RejectionError."""
  rng, kinds = attempt.rng, attempt.tools.config.conflict.kinds
  names = [n.name for n in asked.whole.nodes]
  adds = [
    (number, step)
    for number, step in enumerate(painting.steps)
    if isinstance(step.operation, graph_operations.Add) and step.operation.nodes
  ]
  for _ in range(_TRIES if adds else 0):
    number, step = taxonomy.choose(rng, adds)
    kind = taxonomy.choose(rng, kinds)
    new = [n.id for n in step.operation.nodes]
    error = None
    if kind == 'wrong_place':
      error = graph_errors.turned(step.after, rng=rng, new=new)
    if error is None:
      error = graph_errors.draw(kind, step.after, vocabulary=attempt.tools.vocabulary, rng=rng, new=new, avoid=names)
    if error is None or not contradicts(error, asked.stated) or attempt.tools.keeps_out(error.wrong):
      continue
    return number, error
  raise tools.RejectionError(f'error: no conflict {", ".join(kinds)} with the prompt was found')


def contradicts(error: graph_errors.GraphError, stated: scene_graph.SceneGraph) -> bool:
  """Whether an error is against what a prompt states, and not only against a scene that satisfies it."""
  if error.kind not in graph_errors.CONFLICTS or len(error.seen) < len(error.wanted):
    return False
  nodes = [n for n in stated.nodes if n.id in error.wanted]
  if error.relation is not None:
    return error.relation.fact() in {r.fact() for r in stated.relations}
  if error.attribute is not None:
    return any(n.value(error.attribute) is not None for n in nodes)
  return bool(nodes)


def of_trace(attempt: tools.Attempt, trace: trajectory_lib.Trajectory) -> trajectory_lib.Trajectory:
  """A sample of a judged trace. Raises: tools.RejectionError; services.errors.BudgetExhausted."""
  kit, paid = attempt.tools, trace.provenance.cost if trace.provenance else None
  if paid is not None:
    attempt.cost += budget.Cost(calls=paid.calls, prompt_tokens=paid.tokens, money=paid.money)
  if kit.plan_chat is not None:
    return _of_chat(attempt, trace)
  stated = scene_graph.SceneGraph.from_dict(trace.metadata['stated'])
  asked = asked_lib.Asked(
    prompt=trace.prompt, stated=stated, whole=stated, source=trace.metadata['prompt'], spec=trace.spec
  )
  reading = traces.read(trace, stated, kit=kit, rng=attempt.rng)
  if reading.reason:
    raise tools.RejectionError(f'trace: {reading.reason}')
  error = reading.error
  whole = reading.graphs[-1] if error is None else _completed(attempt, error.right, stated)
  made: list[trajectory_lib.Step] = []
  for number, graph in enumerate(reading.graphs[: None if error is None else -1]):
    made.append(_approved(attempt, trace.steps[number], graph, whole))
  if error is None:
    return _finished(attempt, asked, rewrites.Painting(graph=whole, steps=()), made, ())
  step = trace.steps[len(made)]
  draft = trajectory_lib.Trajectory(prompt='', steps=(step,)).final
  own = bool(kit.world.shows(draft, kit.contents(error.wrong)))
  if not own:
    attempt.notes.append('the draft did not show its plan: painted by the renderer')
    draft = attempt.render(
      multi_turn.request(attempt, asked, _text(step), error.wrong, made), multi_turn.previous(made)
    )
  made.append(corrected(attempt, asked, error, whole, step.plan or '', draft, made, is_target=not own))
  painting = _rest(error.right, whole, rng=attempt.rng, most=kit.config.scenes.max_pictures)
  made = multi_turn.painted(attempt, asked, painting, before=made)
  return _finished(attempt, asked, painting, made, (error.kind,))


def _finished(
  attempt: tools.Attempt,
  asked: asked_lib.Asked,
  painting: rewrites.Painting,
  steps: Sequence[trajectory_lib.Step],
  errors: tuple[str, ...],
) -> trajectory_lib.Trajectory:
  attempt.notes.append(f'plans and drafts: {attempt.tools.config.conflict.checkpoint}')
  return multi_turn.finished(attempt, asked, painting, steps, source=traces.SOURCE, errors=errors)


def _approved(
  attempt: tools.Attempt, step: trajectory_lib.Step, graph: scene_graph.SceneGraph, whole: scene_graph.SceneGraph
) -> trajectory_lib.Step:
  """A step of the model's own that is right. graph: what it shows, with the ids of `whole`."""
  inspection = inspections.approval(graph, whole, rng=attempt.rng)
  picture = trajectory_lib.Trajectory(prompt='', steps=(step,)).final
  return trajectory_lib.Step(plan=step.plan, draft=picture, inspection=inspection, draft_is_target=False)


def _completed(
  attempt: tools.Attempt, right: scene_graph.SceneGraph, stated: scene_graph.SceneGraph
) -> scene_graph.SceneGraph:
  """A whole scene that satisfies the prompt and begins with the right graph."""
  missing = tuple(n for n in stated.nodes if n.id not in right.ids)
  relations = (*right.relations, *(r for r in stated.relations if r not in right.relations))
  try:
    graph = scene_graph.SceneGraph(nodes=right.nodes + missing, relations=relations)
  except ValueError as error:
    raise tools.RejectionError(f'trace: {error}') from None
  for _ in range(_FILLINGS):
    whole = asked_lib.filled(graph, vocabulary=attempt.tools.vocabulary, rng=attempt.rng)
    if whole is not None and not attempt.tools.keeps_out(whole):
      return whole
  raise tools.RejectionError('trace: no scene goes on from the corrected one')


def _rest(right: scene_graph.SceneGraph, whole: scene_graph.SceneGraph, *, rng, most: int) -> rewrites.Painting:
  """What is left to paint after the right graph."""
  left = whole.induced(id for id in whole.ids if id not in right.ids)
  steps, graph = [], right
  if left.nodes:
    for groups in subgraphs.packed(subgraphs.ordered(left, rng=rng), most, rng=rng):
      add = subgraphs.added(whole, [id for group in groups for id in group], there=set(graph.ids))
      after = graph_operations.apply(add, graph)
      steps.append(graph_operations.GraphStep(operation=add, before=graph, after=after))
      graph = after
  return rewrites.Painting(graph=whole, steps=tuple(steps))


def _text(step: trajectory_lib.Step) -> instructions.PlanText:
  instruction, description = tags.plan_parts(step.plan or '')
  return instructions.PlanText(instruction=instruction, description=description)


def _of_chat(attempt: tools.Attempt, trace: trajectory_lib.Trajectory) -> trajectory_lib.Trajectory:
  """A sample of a trace whose plans a chat model has judged: it ends with the corrected picture, unfinished."""
  (verdict,) = trace.provenance.verdicts if trace.provenance else ({},)
  stated = scene_graph.SceneGraph.from_dict(trace.metadata['stated'])
  asked = asked_lib.Asked(prompt=trace.prompt, stated=stated, whole=stated, source=trace.metadata['prompt'])
  attempt.verdicts.append(dict(verdict))
  wrong = verdict['verdict'] == traces.WRONG
  made: list[trajectory_lib.Step] = []
  count = verdict['step'] if wrong else len(trace.steps)
  for number, step in enumerate(trace.steps[:count]):
    picture = trajectory_lib.Trajectory(prompt='', steps=(step,)).final
    question = base.Question(prompt=trace.prompt, picture=picture, plan=step.plan, before=tuple(made))
    attempt.approved(question, what=f'step {number + 1}')
    after = 'Nothing is missing.' if number == len(trace.steps) - 1 else _LATER
    inspection = f'The intermediate step is correct. {after}'
    made.append(trajectory_lib.Step(plan=step.plan, draft=picture, inspection=inspection, draft_is_target=False))
  if wrong:
    step, reason = trace.steps[count], verdict['reason'].rstrip('.')
    inspection = (
      f'The visual conflict in the current image is that {reason}, which contradicts the overall prompt. The missing '
      'painting will be added in the following steps, not the error here. The correct instruction is '
      f'{tags.refine(verdict["correction"])}'
    )
    plan = tags.plan(verdict['correction'], verdict['description'])
    drafted = trajectory_lib.Step(plan=step.plan, draft=step.draft, inspection=inspection)
    text = instructions.PlanText(instruction=verdict['correction'], description=verdict['description'])
    request = multi_turn.request(attempt, asked, text, None, [*made, drafted])
    refined = attempt.render(request, step.draft)
    question = base.Question(prompt=trace.prompt, picture=refined, plan=plan, before=tuple(made))
    attempt.approved(question, what='the corrected picture')
    made.append(dataclasses.replace(drafted, corrected_plan=plan, refined=refined, draft_is_target=False))
  painting = rewrites.Painting(graph=stated, steps=())
  sample = _finished(attempt, asked, painting, made, ('conflict',) if wrong else ())
  return dataclasses.replace(sample, expected=None, stop=None if wrong else trajectory_lib.FINISHED)


_LATER = 'What the prompt asks for and is not there yet is going to be added in the following steps.'
