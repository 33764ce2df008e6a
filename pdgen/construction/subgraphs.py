"""Ordered growing subgraphs of a scene graph (paper): background first, then one object or counted group a step.

Each subgraph has every relation whose two objects are there, the last one is the whole graph, and none is
contradictory, because no part of a consistent graph is. What stands on or in something follows it where it can. A graph
with more groups than pictures has several groups in a step.
"""

import numpy as np

from pdgen.construction import wording
from pdgen.core import graph_operations, scene_graph
from pdgen.core import rng as rng_lib

MAX_PICTURES = 5  # (paper)
_STREAM = 202  # random stream of `subgraphs`

Group = tuple[str, ...]  # Ids of objects that are added together; () stands for the background.


def subgraphs(
  graph: scene_graph.SceneGraph, *, seed: int, index: int, max_pictures: int = MAX_PICTURES
) -> tuple[scene_graph.SceneGraph, ...]:
  """At least one and at most `max_pictures` subgraphs, each larger than the one before it.

  Args:
    graph: the whole scene.
    seed: with `index`, determines the order.
    index: number of the graph.
    max_pictures: most subgraphs.

  Raises: ValueError for an empty graph, and for less than one picture.
  """
  rng = rng_lib.numpy_rng(seed, index, _STREAM)
  return tuple(step.after for step in growing(graph, rng=rng, max_pictures=max_pictures))


def growing(
  graph: scene_graph.SceneGraph, *, rng: np.random.Generator, max_pictures: int = MAX_PICTURES
) -> tuple[graph_operations.GraphStep, ...]:
  """The same as operations. Raises: as `subgraphs`."""
  return graph_operations.steps(additions(graph, packed(ordered(graph, rng=rng), max_pictures, rng=rng)))


def ordered(graph: scene_graph.SceneGraph, *, rng: np.random.Generator) -> list[Group]:
  """The background and the groups of alike objects in a random order, each after what it stands on or in."""
  groups = [tuple(n.id for n in group) for group in wording.groups(graph.nodes)]
  home = {id: number for number, group in enumerate(groups) for id in group}
  needs: dict[int, set[int]] = {number: set() for number in range(len(groups))}
  for r in graph.relations:
    if ('support', False) in scene_graph.SPATIAL_PREDICATES.get(r.predicate, ()):
      needs[home[r.subject]].add(home[r.object])
  order: list[Group] = [()] if graph.background else []
  left = [int(number) for number in rng.permutation(len(groups))]
  while left:
    # Groups can wait for each other where single objects do not: a ring on a bar, a bar on another ring.
    number = next((n for n in left if not needs[n] & set(left) - {n}), left[0])
    left.remove(number)
    order.append(groups[number])
  return order


def packed(order: list[Group], most: int, *, rng: np.random.Generator) -> list[list[Group]]:
  """Groups in at most so many steps: one a step where there are enough, else neighbours together, at random.

  Raises: ValueError for no groups, and for less than one step.
  """
  if most < 1:
    raise ValueError(f'max_pictures={most}: a painting has at least one picture.')
  if not order:
    raise ValueError('An empty scene graph has no subgraphs to paint.')
  if len(order) <= most:
    return [[group] for group in order]
  # The background stays alone where it can (paper: it comes first).
  first = 1 if order[0] == () and most > 1 else 0
  places = np.arange(first + 1, len(order))
  chosen = rng.choice(places, size=most - 1 - first, replace=False) if most - 1 - first else []
  cuts = [0, *sorted({*([1] if first else []), *(int(c) for c in chosen)}), len(order)]
  return [order[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]


def additions(graph: scene_graph.SceneGraph, steps: list[list[Group]]) -> list[graph_operations.Add]:
  """The operations that add the groups, each with the relations whose second object comes with it."""
  there: set[str] = set()
  made = []
  for step in steps:
    new = [id for group in step for id in group]
    made.append(added(graph, new, there=there, background=() in step))
    there |= set(new)
  return made


def added(
  graph: scene_graph.SceneGraph, new: list[str], *, there: set[str], background: bool = False
) -> graph_operations.Add:
  """The operation that adds objects of a graph.

  Args:
    graph: the whole scene.
    new: ids of the objects that are added, in the order of painting.
    there: ids of those that are there before.
    background: add the background too.
  """
  ids = set(new)
  relations = tuple(r for r in graph.relations if {r.subject, r.object} <= ids | there and ids & {r.subject, r.object})
  return graph_operations.Add(
    nodes=tuple(graph.node(id) for id in new),
    relations=relations,
    background=graph.background if background else '',
  )
