"""Operations on scene graphs: add, refine (change an attribute), swap, remove (paper: rewritten steps).

The graph after the operation decides the picture: `apply` makes it, and what contradicts itself cannot be made. A
`GraphStep` is one step of a painting process; `steps` folds operations from the empty page.
"""

import dataclasses
from collections.abc import Iterable

from pdgen.core import scene_graph

NAMES = ('add', 'refine', 'swap', 'remove')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Add:
  """Adds objects, relations between objects that are then there, and the background."""

  nodes: tuple[scene_graph.Node, ...] = ()
  relations: tuple[scene_graph.Relation, ...] = ()
  background: str = ''  # Empty: as it is.
  temporary: tuple[str, ...] = ()  # Ids of what a later operation changes or takes away: the instruction says so.
  name = 'add'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refine:
  """Gives an attribute of some objects another value."""

  ids: tuple[str, ...]
  attribute: str  # Its name; the objects have one.
  value: str  # The new value.
  name = 'refine'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swap:
  """Replaces objects, with their relations, by others."""

  ids: tuple[str, ...]  # Of what goes.
  nodes: tuple[scene_graph.Node, ...]  # What comes, painted last.
  relations: tuple[scene_graph.Relation, ...] = ()  # Of what comes.
  name = 'swap'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remove:
  """Removes objects, with their relations."""

  ids: tuple[str, ...]
  name = 'remove'


Operation = Add | Refine | Swap | Remove


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphStep:
  """One step of a painting process."""

  operation: Operation
  before: scene_graph.SceneGraph
  after: scene_graph.SceneGraph  # What the picture of the step shows.


def apply(operation: Operation, graph: scene_graph.SceneGraph) -> scene_graph.SceneGraph:
  """The graph after the operation.

  >>> ring = scene_graph.Node(id='ring.1', name='ring', appearance=(scene_graph.Attribute('color', 'red'),))
  >>> graph = apply(Add(nodes=(ring,)), scene_graph.SceneGraph())
  >>> apply(Refine(ids=('ring.1',), attribute='color', value='blue'), graph).node('ring.1').value('color')
  'blue'

  Raises: KeyError for an id, or an attribute of an object, that is not there; ValueError for what changes nothing, and
    where the new graph contradicts itself.
  """
  if isinstance(operation, Add):
    if not (operation.nodes or operation.relations or operation.background):
      raise ValueError('The operation adds nothing.')
    return dataclasses.replace(
      graph,
      nodes=graph.nodes + operation.nodes,
      relations=graph.relations + operation.relations,
      background=operation.background or graph.background,
    )
  going = [graph.node(id) for id in operation.ids]
  if not going:
    raise ValueError(f'The operation {operation.name} names no object.')
  if isinstance(operation, Refine):
    if all(node.value(operation.attribute) == operation.value for node in going):
      raise ValueError(f'The {operation.attribute} of {operation.ids} is {operation.value} before the change.')
    changed = {node.id: node.replaced(operation.attribute, operation.value) for node in going}
    return dataclasses.replace(graph, nodes=tuple(changed.get(node.id, node) for node in graph.nodes))
  left = graph.induced(id for id in graph.ids if id not in operation.ids)
  if isinstance(operation, Remove):
    return left
  return apply(Add(nodes=operation.nodes, relations=operation.relations), left)


def growth(before: scene_graph.SceneGraph, after: scene_graph.SceneGraph) -> Add:
  """The operation that adds what `after` has more than `before`, its subgraph.

  Raises: ValueError if `before` is no subgraph, or an object of it has fewer attributes than in `after`.
  """
  old = {node.id: node for node in before.nodes}
  if not after.holds(before) or any(old.get(node.id, node) != node for node in after.nodes):
    raise ValueError(f'The graph of {list(after.ids)} does not grow from that of {list(before.ids)}.')
  return Add(
    nodes=tuple(node for node in after.nodes if node.id not in old),
    relations=tuple(r for r in after.relations if r not in before.relations),
    background='' if before.background else after.background,
  )


def steps(operations: Iterable[Operation]) -> tuple[GraphStep, ...]:
  """The steps of operations, one after the other, from the empty page. Raises: as `apply`."""
  graph, made = scene_graph.SceneGraph(), []
  for operation in operations:
    after = apply(operation, graph)
    made.append(GraphStep(operation=operation, before=graph, after=after))
    graph = after
  return tuple(made)
