"""Instructions (`<ins>`) and descriptions (`<des>`) of graph operations in the paper's wording.

    <ins>Set up a simple indoor room scene with a wooden floor and a plain wall.</ins><des>The image depicts a simple
    indoor room scene with a wooden floor and a plain wall.</des>
    <ins>Add a medium-sized, light brown plush teddy bear on the chair.</ins><des>The image depicts a simple indoor room
    scene .., with a wooden chair, and now features a newly added medium-sized, light brown plush teddy bear. ..</des>

`plans` words a painting: by templates here, or by another `Instructions` (`written_instructions`: a writer model).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from pdgen.construction import taxonomy, wording
from pdgen.core import graph_operations, scene_graph, tags
from pdgen.core import rng as rng_lib

TEMPLATE, WRITER = ('template', 'writer')
_VERBS = ('Add', 'Add', 'Place', 'Paint', 'Draw')
_SETS = ('Set up', 'Begin with', 'Paint')
_OPENERS = ('The image depicts', 'The image depicts', 'The picture shows')
_STREAM = 204  # random stream of `plans`


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanText:
  """The words of one step."""

  instruction: str  # What to paint now.
  description: str  # The whole scene afterwards.
  source: str = TEMPLATE  # Or `writer`.
  rejections: tuple[str, ...] = ()  # Why a writer's texts were not taken, in order.

  @property
  def plan(self) -> str:
    """`<ins>..</ins><des>..</des>`"""
    return tags.plan(self.instruction, self.description)


class Instructions(Protocol):
  """Words a step of a painting."""

  def write(self, step: graph_operations.GraphStep, *, rng: np.random.Generator) -> PlanText: ...


class Templates:
  """Words a step by templates (`Instructions`)."""

  def write(self, step: graph_operations.GraphStep, *, rng: np.random.Generator) -> PlanText:
    """rng: chooses among wordings."""
    return PlanText(instruction=instruction(step, rng=rng), description=description(step, rng=rng))


def plans(
  steps: Sequence[graph_operations.GraphStep], *, seed: int, index: int, by: Instructions | None = None
) -> list[PlanText]:
  """The plan of each step: the same for the same steps, seed and index (and writer).

  Args:
    steps: the painting.
    seed: with `index`, chooses the wording.
    index: number of the painting.
    by: who words them; None: `Templates`.
  """
  rng, by = rng_lib.numpy_rng(seed, index, _STREAM), by or Templates()
  return [by.write(step, rng=rng) for step in steps]


def instruction(step: graph_operations.GraphStep, *, rng: np.random.Generator) -> str:
  """What to paint now. rng: chooses among wordings."""
  operation = step.operation
  if isinstance(operation, graph_operations.Add):
    return ' '.join(_additions(operation, step, rng=rng))
  what = wording.the(operation.ids, step.before)
  if isinstance(operation, graph_operations.Remove):
    return f'{taxonomy.choose(rng, ("Remove", "Erase"))} {what}.'
  if isinstance(operation, graph_operations.Refine):
    return change(operation.ids, step.before, operation.attribute, operation.value)
  new = wording.listed([wording.phrase(group) for group in wording.groups(operation.nodes)])
  where = _where([n.id for n in operation.nodes], step.after, operation.relations, known=set(step.after.ids))
  return f'{taxonomy.choose(rng, ("Replace {} with {}", "Swap {} for {}")).format(what, new)}{where}.'


def change(ids: Iterable[str], graph: scene_graph.SceneGraph, attribute: str, value: str) -> str:
  """The instruction to give an attribute of objects another value.

  Args:
    ids: of objects that have the attribute.
    graph: the scene before the change.
    attribute: its name.
    value: the new value.
  """
  ids = tuple(ids)
  what, old = wording.the(ids, graph), graph.node(ids[0]).value(attribute)
  if attribute == scene_graph.PLACE:
    return f'Move {what} from the {old} to the {value}.'
  return f'Change the {attribute} of {what} from {old} to {value}.'


def description(step: graph_operations.GraphStep, *, rng: np.random.Generator) -> str:
  """The whole scene after the step. rng: chooses among wordings."""
  operation = step.operation
  new = [n.id for n in operation.nodes] if isinstance(operation, graph_operations.Add | graph_operations.Swap) else []
  return wording.description(step.after, new=new, opener=taxonomy.choose(rng, _OPENERS))


def addition(
  ids: Sequence[str], graph: scene_graph.SceneGraph, *, verb: str = 'Add', known: Iterable[str] | None = None
) -> str:
  """The instruction to add objects that are alike, with their relations.

  Args:
    ids: of the objects.
    graph: the scene after the step.
    verb: its first word.
    known: ids of the objects that the instruction may point to; None: all of the graph.
  """
  known = set(graph.ids) if known is None else set(known)
  return f'{verb} {wording.phrase([graph.node(id) for id in ids])}{_where(ids, graph, graph.relations, known=known)}.'


def _additions(
  operation: graph_operations.Add, step: graph_operations.GraphStep, *, rng: np.random.Generator
) -> list[str]:
  """A sentence for the background and one for each group, with its relations to those that are there or named."""
  sentences = [f'{taxonomy.choose(rng, _SETS)} {operation.background}.'] if operation.background else []
  verb, known = taxonomy.choose(rng, _VERBS), set(step.before.ids)
  for group in wording.groups(operation.nodes):
    ids = [n.id for n in group]
    where = _where(ids, step.after, operation.relations, known=known)
    for_now = ' for now' if set(ids) & set(operation.temporary) else ''
    sentences.append(f'{verb} {wording.phrase(group)}{where}{for_now}.')
    known |= set(ids)
  if not operation.nodes and not sentences:
    sentences = [wording.statements(dataclasses.replace(step.after, relations=operation.relations))[0]]
  return sentences


def _where(
  ids: Sequence[str],
  graph: scene_graph.SceneGraph,
  relations: Iterable[scene_graph.Relation],
  *,
  known: set[str],
) -> str:
  """The relations of a group to known objects, as they follow its phrase: ` on the table, so that the cat is below it`.

  Args:
    ids: the group.
    graph: the scene with the group.
    relations: those that may be worded.
    known: ids of the objects that may be pointed to.
  """
  own, after, later = set(ids), [], []
  touching = [r for r in relations if {r.subject, r.object} & own and {r.subject, r.object} <= own | known]
  turned = [_turned(r) if r.object in own and r.subject not in own else r for r in touching]
  it = 'it' if len(ids) == 1 else 'them'
  for subjects, name, objects in wording.facts(graph, turned):
    if set(subjects) == own and not set(objects) & own:
      after.append(f'{wording.predicate(name)} {wording.the(objects, graph)}')
    elif set(objects) == own and not set(subjects) & own:
      be = 'is' if len(subjects) == 1 else 'are'
      later.append(f'{wording.the(subjects, graph)} {be} {wording.predicate(name)} {it}')
    else:  # Of some of the group.
      be = 'is' if len(subjects) == 1 else 'are'
      later.append(f'{wording.the(subjects, graph)} {be} {wording.predicate(name)} {wording.the(objects, graph)}')
  words = f'{"," if graph.node(ids[0]).state and after else ""} {wording.listed(after)}' if after else ''
  return words + (f', so that {wording.listed(later)}' if later else '')


def _turned(relation: scene_graph.Relation) -> scene_graph.Relation:
  """The relation as seen from its object, where a predicate has an inverse."""
  inverse = scene_graph.INVERSE.get(relation.predicate)
  return relation if inverse is None else scene_graph.Relation(relation.object, inverse, relation.subject)
