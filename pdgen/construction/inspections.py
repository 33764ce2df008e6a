"""Inspections in the paper's templates: a right step approved, a conflict (plan) or misalignment (picture) rejected.

approval      The intermediate step is correct. The dog though does not mention in the prompt, it does not conflict
              with the prompt. The missing cup is going to be added in the following steps.
conflict      The visual conflict in the current image is that the bird is above the skateboard instead of below it,
              which contradicts the overall prompt. .. The correct instruction is <refine>..</refine>
misalignment  This generation diverges from the prompt. The image contains two zebras instead of one. To correct the
              image, <refine>Remove one of the two zebras.</refine>
"""

import dataclasses

import numpy as np

from pdgen.construction import graph_errors, instructions, taxonomy, wording
from pdgen.core import scene_graph, tags

_RIGHT = ('The intermediate step is correct.', 'The current step is correct.')
_COMPLETE = ('Nothing is missing.', 'The painting is complete.')


def approval(graph: scene_graph.SceneGraph, whole: scene_graph.SceneGraph, *, rng: np.random.Generator) -> str:
  """The inspection of a right step: what the prompt does not mention, what is to be changed, what is still missing.

  Args:
    graph: the scene so far, which the picture shows.
    whole: the scene that is to be painted.
    rng: chooses among wordings.
  """
  sentences = [taxonomy.choose(rng, _RIGHT)]
  wanted = {n.id: n for n in whole.nodes}
  extra = [n for n in graph.nodes if n.id not in wanted]
  for group in wording.groups(extra):
    what = wording.the([n.id for n in group], graph)
    does, it, do = ('does', 'it', 'does') if len(group) == 1 else ('do', 'they', 'do')
    sentences.append(
      wording.sentence(f'{what} though {does} not mention in the prompt, {it} {do} not conflict with the prompt')
    )
  for group in wording.groups(n for n in graph.nodes if n.id in wanted):
    what, now = wording.the([n.id for n in group], graph), group[0]
    for attribute in wanted[now.id].attributes:
      value = now.value(attribute.name)
      if attribute.name != scene_graph.PLACE and value not in (None, attribute.value):
        change = f'The {attribute.name} of {what} is going to be changed from {value} to {attribute.value}'
        sentences.append(f'{change} in the following steps.')
  if missing := still_missing(graph, whole):
    sentences.append(missing)
  elif extra:
    what = wording.listed([wording.the([n.id for n in g], graph) for g in wording.groups(extra)])
    sentences.append(wording.sentence(f'{what} {_be(len(extra))} going to be removed in the following steps'))
  elif len(sentences) == 1:
    sentences.append(taxonomy.choose(rng, _COMPLETE))
  return ' '.join(sentences)


def still_missing(graph: scene_graph.SceneGraph, whole: scene_graph.SceneGraph) -> str | None:
  """`The missing cup and two rings are going to be added in the following steps.`; None where nothing is missing."""
  left = [n for n in whole.nodes if n.id not in graph.ids]
  parts = ['background'] if whole.background and not graph.background else []
  parts += [_bare(group) for group in wording.groups(left)]
  if not parts:
    return None
  count = len(left) + (len(parts) > len(wording.groups(left)))
  return f'The missing {wording.listed(parts)} {_be(count)} going to be added in the following steps.'


def conflict(
  error: graph_errors.GraphError, whole: scene_graph.SceneGraph, *, rng: np.random.Generator
) -> tuple[str, str]:
  """The inspection of a step whose plan contradicts the prompt, and the corrected plan.

  Args:
    error: of the plan; the picture shows `error.wrong`.
    whole: the scene that is to be painted.
    rng: chooses among wordings.

  Returns: (inspection, corrected plan).

  Raises: ValueError for an error that contradicts no prompt (`graph_errors.CONFLICTS`).
  """
  if error.kind not in graph_errors.CONFLICTS or len(error.seen) < len(error.wanted):
    raise ValueError(f'An error {error.kind} ({error.seen} for {error.wanted}) of a plan contradicts no prompt.')
  correct = correction(error)
  why, refine = statement(error), tags.refine(correct)
  missing = still_missing(error.right, whole)
  after = f' {missing.removesuffix(".")}, not the error here.' if missing else ''
  inspection = taxonomy.choose(
    rng,
    (
      f'The visual conflict in the current image is that {why}, which contradicts the overall prompt.{after} '
      f'The correct instruction is {refine}',
      f'The intermediate step is wrong. The {details(error)} in the current step does not match the prompt, because '
      f'{why}.{after} The corrective instruction is: {refine}',
    ),
  )
  return inspection, tags.plan(correct, wording.description(error.right))


def misalignment(error: graph_errors.GraphError, *, rng: np.random.Generator) -> str:
  """The inspection of a picture that does not show its plan. rng: chooses among wordings."""
  why, refine = statement(error), tags.refine(correction(error))
  return taxonomy.choose(
    rng,
    (
      f'This generation diverges from the prompt. {wording.sentence(why)} To correct the image, {refine}',
      # (ours) `the plan`, where the paper's template says `the prompt` of both subsets.
      f'The intermediate step is wrong. The {details(error)} in the current step does not match the plan, because '
      f'{why}. The corrective instruction is: {refine}',
    ),
  )


def details(error: graph_errors.GraphError) -> str:
  """What is wrong, in a few words: `color of the cup`, `number of zebras`, `extra dog`."""
  if error.kind == 'extra':
    return f'extra {wording.looks(error.wrong.node(error.seen[0]))}'
  concerned = error.wanted if error.relation is None else (error.relation.subject,)
  what = wording.the(concerned, error.right)
  name = error.right.node(error.wanted[0]).name
  return {
    'wrong_attribute': f'{error.attribute} of {what}',
    'wrong_object': f'object in the place of {what}',
    'wrong_place': f'place of {what}',
    'wrong_count': f'number of {wording.plural(name)}',
    'missing': f'absence of {what}',
    'malformed': f'form of {what}',
  }[error.kind]


def statement(error: graph_errors.GraphError) -> str:
  """What is wrong, as a clause without capital or full stop: `the color of the cup is red instead of blue`."""
  right, wrong = error.right, error.wrong
  if error.kind == 'extra':
    return f'there {_be(len(error.seen))} {_phrase(error.seen, wrong)}, which is not asked for'
  what, verb = wording.the(error.wanted, right), _be(len(error.wanted))
  if error.kind == 'missing':
    return f'{_phrase(error.wanted, right)} {verb} missing'
  if error.kind == 'malformed':
    return f'{what} {verb} malformed'
  if error.kind == 'wrong_object':
    return f'there {_be(len(error.seen))} {_phrase(error.seen, wrong)} instead of {_phrase(error.wanted, right)}'
  if error.kind == 'wrong_count':
    name = right.node(error.wanted[0]).name
    have, want = len(error.seen), len(error.wanted)
    words = wording.looks(right.node(error.wanted[0])).removesuffix(name)
    words += name if have == 1 else wording.plural(name)
    return f'the image contains {wording.number(have)} {words} instead of {wording.number(want)}'
  if error.relation is not None and error.seen_relation is not None:
    a, b = (wording.the([id], right) for id in (error.relation.subject, error.relation.object))
    is_, not_ = (wording.predicate(r.predicate) for r in (error.seen_relation, error.relation))
    return f'{a} is {is_} {b} instead of {not_} it'
  attribute = error.attribute or ''
  have, want = (g.node(i[0]).value(attribute) for g, i in ((wrong, error.seen or error.wanted), (right, error.wanted)))
  if attribute == scene_graph.PLACE:
    return f'{_named(error.wanted, right)} {verb} at the {have} instead of the {want}'
  return f'the {attribute} of {what} is {have} instead of {want}'


def correction(error: graph_errors.GraphError) -> str:
  """The corrective instruction, from the wrong scene to the right one."""
  right, wrong, wanted, seen = error.right, error.wrong, error.wanted, error.seen
  if error.kind == 'wrong_attribute':
    attribute = error.attribute or ''
    return instructions.change(seen or wanted, wrong, attribute, right.node(wanted[0]).value(attribute) or '')
  if error.kind == 'wrong_object':
    return f'Replace {wording.the(seen, wrong)} with {_phrase(wanted, right)}.'
  if error.kind == 'wrong_place':
    if error.relation is None or error.seen_relation is None:
      place = right.node(wanted[0]).place or ''
      return instructions.change(seen or wanted, wrong, scene_graph.PLACE, place)
    a, b = (wording.the([id], wrong) for id in (error.relation.subject, error.relation.object))
    is_, not_ = (wording.predicate(r.predicate) for r in (error.relation, error.seen_relation))
    new = _phrase((error.relation.subject,), right)
    return f'Remove {a} {not_} {b}. Add {new} {is_} {b}.'
  if error.kind == 'malformed':
    return f'Repaint {wording.the(wanted, right)} as {_phrase(wanted, right)}.'
  surplus = [id for id in seen if id not in right.ids]
  if surplus:
    return f'Remove {wording.the(surplus, wrong)}.'
  return instructions.addition([id for id in wanted if id not in wrong.ids], right)


def _phrase(ids: tuple[str, ...], graph: scene_graph.SceneGraph) -> str:
  return wording.phrase([graph.node(id) for id in ids])


def _named(ids: tuple[str, ...], graph: scene_graph.SceneGraph) -> str:
  """A reference that does not say the place."""
  bare = (dataclasses.replace(n, state=tuple(a for a in n.state if a.name != scene_graph.PLACE)) for n in graph.nodes)
  return wording.the(ids, dataclasses.replace(graph, nodes=tuple(bare), relations=()))


def _bare(group: list[scene_graph.Node]) -> str:
  """`red cup`, `two red cups`."""
  words, name = wording.looks(group[0]), group[0].name
  return words if len(group) == 1 else f'{wording.number(len(group))} {words.removesuffix(name)}{wording.plural(name)}'


def _be(count: int) -> str:
  return 'is' if count == 1 else 'are'
