"""Paintings of a scene graph: growing subgraphs, a share of them rewritten to refine, swap or remove (paper).

A **painting** is the operations that lead from the empty page to the whole graph. A rewritten one takes a **detour**:
an object is painted with another attribute value and changed later (refine), another object is painted first and
replaced (swap), or an object that the graph does not have is painted and removed (remove). The graph after each
operation decides the picture: a detour is right by construction, and its last graph is the whole graph.
"""

import dataclasses

import numpy as np

from pdgen.construction import subgraphs, taxonomy
from pdgen.core import graph_operations, scene_graph
from pdgen.core import rng as rng_lib

DETOURS = ('refine', 'swap', 'remove')
_COSTS = {'refine': 1, 'swap': 2, 'remove': 2}  # Pictures that a detour takes of those of the other groups.
_STREAM = 203  # random stream of `painting`


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperationShares:
  """Shares of the paintings that take each detour. Raises: ValueError for shares that are none."""

  refine: float = 0.1
  swap: float = 0.1
  remove: float = 0.1

  def __post_init__(self):
    shares = [getattr(self, name) for name in DETOURS]
    if not all(share >= 0 for share in shares) or not sum(shares) <= 1 + 1e-9:
      raise ValueError(f'{self}: shares are at least 0, and at most 1 together.')

  @property
  def add(self) -> float:
    """Share of the paintings that only add."""
    return 1 - self.refine - self.swap - self.remove


@dataclasses.dataclass(frozen=True, kw_only=True)
class Painting:
  """How a scene graph is painted."""

  graph: scene_graph.SceneGraph  # The whole scene: what the last step shows, its objects perhaps in another order.
  steps: tuple[graph_operations.GraphStep, ...]
  detour: str | None = None  # One of DETOURS (`Provenance.detour`).


def painting(
  graph: scene_graph.SceneGraph,
  *,
  vocabulary: taxonomy.Taxonomy,
  seed: int,
  index: int,
  shares: OperationShares | None = None,
  max_pictures: int = subgraphs.MAX_PICTURES,
  asked: scene_graph.SceneGraph | None = None,
) -> Painting:
  """A random painting of the graph: the same for the same arguments.

  Args:
    graph: the whole scene.
    vocabulary: where other values and other objects come from.
    seed: with `index`, determines the painting.
    index: number of the graph.
    shares: of the detours; None: the defaults.
    max_pictures: most steps.
    asked: what the prompt says, a part of `graph`: no refine changes what it states. None: any attribute may be
      painted otherwise first, and the instruction says `for now`.

  Returns: the painting. A graph that does not allow the detour that was drawn (`take` says when) is painted without.

  Raises: ValueError for an empty graph, and for less than one picture.
  """
  shares, rng = shares or OperationShares(), rng_lib.numpy_rng(seed, index, _STREAM)
  drawn = rng.random()
  for detour in DETOURS:
    drawn -= getattr(shares, detour)
    if drawn < 0:
      made = take(detour, graph, vocabulary=vocabulary, rng=rng, max_pictures=max_pictures, asked=asked)
      if made is not None:
        return made
      break
  return Painting(graph=graph, steps=subgraphs.growing(graph, rng=rng, max_pictures=max_pictures))


def take(
  detour: str,
  graph: scene_graph.SceneGraph,
  *,
  vocabulary: taxonomy.Taxonomy,
  rng: np.random.Generator,
  max_pictures: int = subgraphs.MAX_PICTURES,
  asked: scene_graph.SceneGraph | None = None,
) -> Painting | None:
  """A painting with the detour; None where the graph, the vocabulary or `max_pictures` does not allow it.

  refine needs an attribute with another plausible value; swap a single object on which nothing stands; remove an
  object that is not in the graph, and one that is.

  Args:
    detour: one of DETOURS.
    graph: the whole scene.
    vocabulary: where other values and other objects come from.
    rng: draws the order and the detour.
    max_pictures: most steps.
    asked: as for `painting`.

  Raises: ValueError for an unknown detour.
  """
  if detour not in DETOURS:
    raise ValueError(f'Unknown detour {detour!r}. Known: {list(DETOURS)}')
  most = max_pictures - _COSTS[detour]
  if detour == 'refine':
    operations = _refined(graph, vocabulary, asked, most, rng)
  elif detour == 'swap':
    operations = _swapped(graph, vocabulary, most, rng)
  else:
    operations = _removed(graph, vocabulary, most, rng)
  if operations is None:
    return None
  return Painting(graph=graph, steps=graph_operations.steps(operations), detour=detour)


_Operations = list[graph_operations.Operation]


def _refined(
  graph: scene_graph.SceneGraph,
  vocabulary: taxonomy.Taxonomy,
  asked: scene_graph.SceneGraph | None,
  most: int,
  rng: np.random.Generator,
) -> _Operations | None:
  groups = subgraphs.ordered(graph, rng=rng)
  stated = set() if asked is None else {(n.id, a.name) for n in asked.nodes for a in n.attributes}
  options = []
  for group in groups if most >= 1 else ():
    for attribute in graph.node(group[0]).attributes if group else ():
      others = {n.value(attribute.name) for n in graph.nodes if n.name == graph.node(group[0]).name}
      values = [v for v in vocabulary.values(graph.node(group[0]), attribute.name) if v not in others]
      if attribute.name != scene_graph.PLACE and values and not any((id, attribute.name) in stated for id in group):
        options.append((group, attribute, values))
  if not options:
    return None
  group, attribute, values = taxonomy.choose(rng, options)
  value = taxonomy.choose(rng, values)
  packed = subgraphs.packed(groups, most, rng=rng)
  adds = subgraphs.additions(graph, packed)
  at = next(number for number, step in enumerate(packed) if group in step)
  nodes = tuple(n.replaced(attribute.name, value) if n.id in group else n for n in adds[at].nodes)
  adds[at] = dataclasses.replace(adds[at], nodes=nodes, temporary=group)
  change = graph_operations.Refine(ids=group, attribute=attribute.name, value=attribute.value)
  end = int(rng.integers(at + 1, len(adds) + 1))
  return [*adds[:end], change, *adds[end:]]


def _swapped(
  graph: scene_graph.SceneGraph, vocabulary: taxonomy.Taxonomy, most: int, rng: np.random.Generator
) -> _Operations | None:
  bears = {r.object for r in graph.relations if r.predicate in ('on', 'inside')}
  names = {n.name for n in graph.nodes}
  groups = subgraphs.ordered(graph, rng=rng)
  options = [group for group in groups if len(group) == 1 and not bears & set(group)]
  rest = len(groups) > 1
  if not options or most < rest:
    return None
  group = taxonomy.choose(rng, options)
  target = graph.node(group[0])
  others = [name for name in vocabulary.others(target.name) if name not in names]
  if not others:
    return None
  stand_in = _drawn(taxonomy.choose(rng, others), graph, vocabulary, rng=rng, instead_of=target)
  if stand_in is None:
    return None
  left = [other for other in groups if other != group]
  packed = subgraphs.packed(left, most, rng=rng) if left else []
  start = int(rng.integers(bool(graph.background), len(packed) + 1))
  end = int(rng.integers(start, len(packed) + 1))
  adds = subgraphs.additions(graph, [*packed[:end], [group], *packed[end:]])
  swap = graph_operations.Swap(ids=(stand_in.id,), nodes=adds[end].nodes, relations=adds[end].relations)
  there = {id for step in packed[:start] for other in step for id in other}
  # The stand-in is where the target will be. What the target does, it does not.
  instead = lambda id: stand_in.id if id == target.id else id
  relations = tuple(
    scene_graph.Relation(instead(r.subject), r.predicate, instead(r.object))
    for r in subgraphs.added(graph, [target.id], there=there).relations
    if r.kind == scene_graph.SPATIAL
  )
  add = graph_operations.Add(nodes=(stand_in,), relations=relations, temporary=(stand_in.id,))
  return [*adds[:start], add, *adds[start:end], swap, *adds[end + 1 :]]


def _removed(
  graph: scene_graph.SceneGraph, vocabulary: taxonomy.Taxonomy, most: int, rng: np.random.Generator
) -> _Operations | None:
  names = {n.name for n in graph.nodes}
  others = [name for name in vocabulary.suited(graph.background) if name not in names]
  groups = subgraphs.ordered(graph, rng=rng)
  first = int(bool(graph.background))
  if not others or most < 1 + first or len(groups) <= first:
    return None
  extra = _drawn(taxonomy.choose(rng, others), graph, vocabulary, rng=rng)
  if extra is None:
    return None
  adds = subgraphs.additions(graph, subgraphs.packed(groups, most, rng=rng))
  start = int(rng.integers(first, len(adds)))
  end = int(rng.integers(start + 1, len(adds) + 1))
  add = graph_operations.Add(nodes=(extra,), temporary=(extra.id,))
  remove = graph_operations.Remove(ids=(extra.id,))
  return [*adds[:start], add, *adds[start:end], remove, *adds[end:]]


def _drawn(
  name: str,
  graph: scene_graph.SceneGraph,
  vocabulary: taxonomy.Taxonomy,
  *,
  rng: np.random.Generator,
  instead_of: scene_graph.Node | None = None,
) -> scene_graph.Node | None:
  """An object that is not in the graph; instead of another: in its place."""
  taken = [n for n in graph.nodes if n != instead_of]
  node = vocabulary.draw_node(name, id=scene_graph.made_id(name, 1), rng=rng, share=0.5, taken=taken)
  if node is None or instead_of is None:
    return node
  state = tuple(a for a in node.state if a.name != scene_graph.PLACE)
  place = tuple(a for a in instead_of.state if a.name == scene_graph.PLACE)
  return dataclasses.replace(node, state=state + place)
