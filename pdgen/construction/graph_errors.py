"""Errors of a step as scene graphs: what the plan or the picture shows instead of the right graph, by kind.

An error of a plan is a conflict (plan contradicts prompt), one of a picture a misalignment (picture does not show its
plan). `draw` makes one for a renderer; a judge that found one makes a `GraphError` itself. `inspections` words it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pdgen.construction import taxonomy
from pdgen.core import geometry, scene_graph

KINDS = ('wrong_attribute', 'wrong_object', 'wrong_place', 'wrong_count', 'missing', 'extra', 'malformed')
# A plan that leaves something out, or adds what the prompt does not mention, contradicts nothing (paper: templates).
CONFLICTS = ('wrong_attribute', 'wrong_object', 'wrong_place', 'wrong_count')


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphError:
  """One error. Raises: ValueError for an unknown kind, and for parts that its kind does not have or lacks."""

  kind: str  # One of KINDS.
  right: scene_graph.SceneGraph  # What should be shown.
  wrong: scene_graph.SceneGraph  # What is shown instead; of a malformed object the same.
  wanted: tuple[str, ...] = ()  # Ids in `right` of the objects concerned; none of an extra one.
  seen: tuple[str, ...] = ()  # Ids in `wrong` of the objects concerned; none of a missing one.
  attribute: str | None = None  # Its name: of wrong_attribute, and of wrong_place where the place is an attribute.
  relation: scene_graph.Relation | None = None  # That should hold: of wrong_place, where no attribute says the place.
  seen_relation: scene_graph.Relation | None = None  # That holds instead.

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f'Unknown kind of error {self.kind!r}. Known: {list(KINDS)}')
    for ids, graph in ((self.wanted, self.right), (self.seen, self.wrong)):
      absent = [id for id in ids if id not in graph.ids]
      if absent:
        raise ValueError(f'The error {self.kind} is about {absent[0]!r}, which is not in its graph: {list(graph.ids)}')
    related = self.relation is not None and self.seen_relation is not None
    needs = {
      'wrong_attribute': bool(self.wanted and self.attribute),
      'wrong_object': bool(self.wanted and self.seen),
      'wrong_place': bool(self.wanted and (related or self.attribute == scene_graph.PLACE)),
      'wrong_count': bool(self.wanted and self.seen) and len(self.wanted) != len(self.seen),
      'missing': bool(self.wanted),
      'extra': bool(self.seen),
      'malformed': bool(self.wanted),
    }
    if not needs[self.kind]:
      raise ValueError(
        f'The error {self.kind} lacks what it is about: {self.wanted=}, {self.seen=}, {self.attribute=}.'
      )


def draw(
  kind: str,
  graph: scene_graph.SceneGraph,
  *,
  vocabulary: taxonomy.Taxonomy,
  rng: np.random.Generator,
  new: Sequence[str] = (),
  avoid: Sequence[str] = (),
) -> GraphError | None:
  """A random error of that kind in the picture, or plan, of a graph; None where the graph does not allow one.

  Args:
    kind: one of KINDS.
    graph: what should be shown.
    vocabulary: where other values and other objects come from.
    rng: draws the error.
    new: ids of the objects that the step adds: the error is in one of them, if there are any.
    avoid: names of objects that an error must not show: those that the prompt asks for later.

  Raises: ValueError for an unknown kind.
  """
  if kind not in KINDS:
    raise ValueError(f'Unknown kind of error {kind!r}. Known: {list(KINDS)}')
  nodes = [graph.node(id) for id in new or graph.ids]
  order = [nodes[int(i)] for i in rng.permutation(len(nodes))]
  taken = {*avoid, *(n.name for n in graph.nodes)}
  if kind == 'extra':
    return _extra(graph, taken, vocabulary, rng)
  for node in order:
    if kind == 'wrong_attribute':
      made = _wrong_attribute(graph, node, vocabulary, rng)
    elif kind == 'wrong_object':
      made = _wrong_object(graph, node, taken, vocabulary, rng)
    elif kind == 'wrong_place':
      made = _wrong_place(graph, node, rng)
    elif kind == 'wrong_count':
      made = _wrong_count(graph, node, rng)
    elif kind == 'missing':
      left = graph.induced(id for id in graph.ids if id != node.id)
      made = GraphError(kind=kind, right=graph, wrong=left, wanted=(node.id,))
    else:
      made = GraphError(kind=kind, right=graph, wrong=graph, wanted=(node.id,), seen=(node.id,))
    if made is not None:
      return made
  return None


def turned(graph: scene_graph.SceneGraph, *, rng: np.random.Generator, new: Sequence[str]) -> GraphError | None:
  """A wrong place against a relation, among objects that have places; None where the graph allows none.

  Args:
    graph: what should be shown.
    rng: draws relation and place.
    new: ids of the objects of which one is in the wrong place.
  """
  options = [
    (r, id)
    for r in graph.relations
    for id in (r.subject, r.object)
    if id in new
    and r.predicate in geometry.RELATIONS
    and None not in (graph.node(r.subject).place, graph.node(r.object).place)
  ]
  taken = {n.place for n in graph.nodes}
  for number in rng.permutation(len(options)):
    relation, id = options[int(number)]
    inverse = relation._replace(predicate=scene_graph.INVERSE[relation.predicate])
    relations = tuple(inverse if r == relation else r for r in graph.relations)
    for place in rng.permutation([p for p in geometry.PLACES if p not in taken]):
      moved = graph.node(id).replaced(scene_graph.PLACE, str(place))
      nodes = tuple(moved if n.id == id else n for n in graph.nodes)
      if scene_graph.contradiction(nodes, relations) is None:
        wrong = dataclasses.replace(graph, nodes=nodes, relations=relations)
        ids = (id,)
        return GraphError(
          kind='wrong_place', right=graph, wrong=wrong, wanted=ids, seen=ids, relation=relation, seen_relation=inverse
        )
  return None


def _extra(
  graph: scene_graph.SceneGraph, taken: set[str], vocabulary: taxonomy.Taxonomy, rng: np.random.Generator
) -> GraphError | None:
  names = [name for name in vocabulary.suited(graph.background) if name not in taken]
  if not names:
    return None
  name = taxonomy.choose(rng, names)
  id = scene_graph.made_id(name, 1)
  node = vocabulary.draw_node(name, id=id, rng=rng, share=0.5, taken=graph.nodes)
  if node is None:
    return None
  wrong = dataclasses.replace(graph, nodes=(*graph.nodes, node))
  return GraphError(kind='extra', right=graph, wrong=wrong, seen=(id,))


def _wrong_attribute(
  graph: scene_graph.SceneGraph, node: scene_graph.Node, vocabulary: taxonomy.Taxonomy, rng: np.random.Generator
) -> GraphError | None:
  own = [a.name for a in node.attributes if a.name != scene_graph.PLACE and vocabulary.values(node, a.name)]
  if not own:
    return None
  attribute = taxonomy.choose(rng, own)
  other = node.replaced(attribute, taxonomy.choose(rng, vocabulary.values(node, attribute)))
  wrong = _put(graph, node.id, other)
  return GraphError(
    kind='wrong_attribute', right=graph, wrong=wrong, wanted=(node.id,), seen=(node.id,), attribute=attribute
  )


def _wrong_object(
  graph: scene_graph.SceneGraph,
  node: scene_graph.Node,
  taken: set[str],
  vocabulary: taxonomy.Taxonomy,
  rng: np.random.Generator,
) -> GraphError | None:
  names = [name for name in vocabulary.others(node.name) if name not in taken]
  if not names:
    return None
  name = taxonomy.choose(rng, names)
  other = dataclasses.replace(node, id=scene_graph.made_id(name, 1), name=name)
  wrong = _put(graph, node.id, other)
  return GraphError(kind='wrong_object', right=graph, wrong=wrong, wanted=(node.id,), seen=(other.id,))


def _wrong_place(graph: scene_graph.SceneGraph, node: scene_graph.Node, rng: np.random.Generator) -> GraphError | None:
  """The inverse of a relation; of an object with a place, a free place that contradicts no relation."""
  made = []
  if node.place is not None:
    places = [p for p in geometry.PLACES if p not in {n.place for n in graph.nodes}]
    for place in places:
      other = node.replaced(scene_graph.PLACE, place)
      nodes = [other if n.id == node.id else n for n in graph.nodes]
      if scene_graph.contradiction(nodes, graph.relations) is None:
        made.append((place, graph.relations))
  else:
    for number, relation in enumerate(graph.relations):
      inverse = scene_graph.INVERSE.get(relation.predicate, relation.predicate)
      if node.id in (relation.subject, relation.object) and inverse != relation.predicate:
        turned = relation._replace(predicate=inverse)
        relations = (*graph.relations[:number], turned, *graph.relations[number + 1 :])
        if scene_graph.contradiction(graph.nodes, relations) is None:
          made.append(((relation, turned), relations))
  if not made:
    return None
  what, relations = taxonomy.choose(rng, made)
  ids = (node.id,)
  if isinstance(what, str):
    wrong = _put(graph, node.id, node.replaced(scene_graph.PLACE, what))
    return GraphError(kind='wrong_place', right=graph, wrong=wrong, wanted=ids, seen=ids, attribute=scene_graph.PLACE)
  wrong = dataclasses.replace(graph, relations=relations)
  return GraphError(
    kind='wrong_place', right=graph, wrong=wrong, wanted=ids, seen=ids, relation=what[0], seen_relation=what[1]
  )


def _wrong_count(graph: scene_graph.SceneGraph, node: scene_graph.Node, rng: np.random.Generator) -> GraphError | None:
  """One more of a group, or one less of a group of several."""
  group = [n.id for n in graph.nodes if n.kind() == node.kind()]
  if len(group) > 1 and rng.random() < 0.5:
    wrong = graph.induced(id for id in graph.ids if id != node.id)
    left = tuple(id for id in group if id != node.id)
    return GraphError(kind='wrong_count', right=graph, wrong=wrong, wanted=tuple(group), seen=left)
  numbers = (scene_graph.made_id(node.name, number) for number in range(2, scene_graph.MAX_NODES + 2))
  id = next(id for id in numbers if id not in graph.ids)
  twin = dataclasses.replace(node, id=id)
  if node.place is not None:
    places = [p for p in geometry.PLACES if p not in {n.place for n in graph.nodes}]
    if not places:
      return None
    twin = twin.replaced(scene_graph.PLACE, taxonomy.choose(rng, places))
  wrong = dataclasses.replace(graph, nodes=(*graph.nodes, twin))
  return GraphError(kind='wrong_count', right=graph, wrong=wrong, wanted=tuple(group), seen=(*group, id))


def _put(graph: scene_graph.SceneGraph, id: str, node: scene_graph.Node) -> scene_graph.SceneGraph:
  """The graph with another object in the relations of one."""
  end = lambda other: node.id if other == id else other
  return dataclasses.replace(
    graph,
    nodes=tuple(node if n.id == id else n for n in graph.nodes),
    relations=tuple(scene_graph.Relation(end(r.subject), r.predicate, end(r.object)) for r in graph.relations),
  )
