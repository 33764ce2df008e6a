"""Scene graphs: each contradiction is refused by name, JSON goes round, operations give the next graph."""

import dataclasses
import json
import re

import pytest

from pdgen.core import geometry, graph_operations, json_file, scene_graph
from pdgen.core import trajectory as trajectory_lib
from pdgen.core.scene_graph import Attribute, Node, Relation, SceneGraph
from pdgen.worlds.shapes import scenes

CUP = Node(id='cup.1', name='cup', appearance=(Attribute('color', 'light blue'),), state=(Attribute('fill', 'full'),))
TABLE = Node(id='table.1', name='dining table', appearance=(Attribute('material', 'wooden'),))
CAT = Node(id='cat.1', name='cat', state=(Attribute('posture', 'sitting'),))
GRAPH = SceneGraph(
  nodes=(CUP, TABLE, CAT),
  relations=(Relation('cup.1', 'on', 'table.1'), Relation('cat.1', 'looking at', 'cup.1')),
  background='a plain kitchen',
)


def at(id: str, place: str) -> Node:
  return Node(id=id, name='ring', state=(Attribute('place', place),))


def related(*words: str) -> SceneGraph:
  """A graph of the relations, each `a predicate b`, over objects a to d."""
  triples = [re.fullmatch(r'(\w) (.+) (\w)', text).groups() for text in words]
  return SceneGraph(
    nodes=tuple(Node(id=i, name='ring') for i in 'abcd'), relations=tuple(Relation(*t) for t in triples)
  )


def test_json_goes_round():
  text = json.dumps(GRAPH.to_dict())
  assert SceneGraph.from_dict(json_file.parse(text.encode(), of='x')) == GRAPH
  assert SceneGraph.from_dict({'objects': []}) == SceneGraph()
  assert [r['kind'] for r in GRAPH.to_dict()['relations']] == ['spatial', 'functional']


@pytest.mark.parametrize(
  'words, cause',
  [
    (('a left of b', 'b left of a'), "'a' comes before itself on the axis x"),
    (('a left of b', 'a right of b'), "'a' comes before itself on the axis x"),
    (('a above b', 'b above c', 'c above a'), "'a' comes before itself on the axis y: 'a above b', 'b above c'"),
    (('a above b', 'c above a', 'b on c'), 'comes before itself on the axis y'),
    (('a in front of b', 'c behind b', 'c in front of a'), 'comes before itself on the axis z'),
    (('a inside b', 'b inside a'), "'a inside b' and 'b inside a' contradict each other"),
    (('a on b', 'b inside a'), "'a on b' contradict each other"),
    (('a on b', 'b inside c', 'c on a'), 'comes before itself on the axis support'),
    (('a inside b', 'b next to a'), "'a inside b' and 'b next to a' contradict each other"),
    (('a left of b', 'b right of a'), "'a left of b' and 'b right of a' say the same twice"),
    (('a next to b', 'b next to a'), 'say the same twice'),
    (('a riding b', 'b riding a'), "'a riding b' and 'b riding a' contradict each other"),
    (('a left of a',), "'a left of a' relates 'a' to itself"),
    (('a left of e',), "'a left of e' points to 'e', and there is no such object"),
    (('f holding b',), "'f holding b' points to 'f'"),
  ],
)
def test_contradictory_relations_are_refused_by_name(words, cause):
  with pytest.raises(ValueError, match=re.escape(cause)):
    related(*words)


def test_what_is_no_contradiction_is_allowed():
  assert related('a left of b', 'a above b', 'b left of c', 'd right of c', 'a holding d', 'c looking at d').relations
  assert related('a looking at b', 'b looking at a', 'a on b', 'c on b', 'b on d').relations


@pytest.mark.parametrize(
  'places, predicate, cause',
  [
    (('left', 'right'), 'right of', "'a right of b' contradicts their places, left and right"),
    (('top', 'bottom'), 'left of', "'a left of b' contradicts their places"),
    (('left', 'left'), 'above', "'a above b' contradicts their places"),
  ],
)
def test_places_contradict_relations(places, predicate, cause):
  nodes = tuple(at(i, p) for i, p in zip('ab', places, strict=True))
  with pytest.raises(ValueError, match=re.escape(cause)):
    SceneGraph(nodes=nodes, relations=(Relation('a', predicate, 'b'),))
  for right in geometry.place_relations(*places):
    assert SceneGraph(nodes=nodes, relations=(Relation('a', right, 'b'),)).relations


def test_a_chain_contradicts_the_places_of_its_ends():
  nodes = (at('a', 'left'), Node(id='b', name='bar'), at('c', 'top left'))
  with pytest.raises(ValueError, match="'a' and 'c' are ordered against their places on the axis x"):
    SceneGraph(nodes=nodes, relations=(Relation('a', 'left of', 'b'), Relation('b', 'left of', 'c')))
  SceneGraph(nodes=(at('a', 'left'), at('c', 'left')), relations=(Relation('a', 'on', 'c'),))


@pytest.mark.parametrize('a', geometry.PLACES)
def test_places_are_related_as_the_boxes_of_shapes_in_them(a):
  for b in set(geometry.PLACES) - {a}:
    for one, other in ((s, t) for s in scenes.SHAPES for t in scenes.SHAPES):
      boxes = (scenes.Object(s, 'red', geometry.PLACES.index(p)).box for s, p in ((one, a), (other, b)))
      assert geometry.spatial_relations(*boxes) == geometry.place_relations(a, b)


@pytest.mark.parametrize(
  'parts, cause',
  [
    ({'state': (Attribute('color', 'red'),)}, "Object 'cup.1' has two values of color: light blue, red"),
    ({'state': (Attribute('fill', 'full'), Attribute('look', 'empty'))}, 'states that exclude each other: full, empty'),
    ({'state': (Attribute('place', 'upstairs'),)}, "'cup.1' has the place 'upstairs'"),
    ({'name': 'cup</ins>'}, "Object 'cup.1': its name is 'cup</ins>'"),
    ({'name': ''}, 'its name is'),
    ({'appearance': (Attribute('color', 'red\n'),)}, 'its color is'),
    ({'id': 'a cup'}, "'a cup' is no id"),
  ],
)
def test_bad_objects_are_refused_by_name(parts, cause):
  with pytest.raises(ValueError, match=re.escape(cause)):
    dataclasses.replace(CUP, **parts)


@pytest.mark.parametrize(
  'change, cause',
  [
    (lambda d: d['objects'].append(d['objects'][0]), "Two objects have the id 'cup.1'"),
    (lambda d: d['objects'][0].pop('name'), "Object 'cup.1' has no 'name'"),
    (lambda d: d['objects'][1].pop('id'), "Object number 1 has no 'id'"),
    (lambda d: d['objects'][0].update(colour='red'), "Object 'cup.1' has an unknown key 'colour'"),
    (lambda d: d['objects'][0].update(state=['full']), "Object 'cup.1': state must map attributes to values"),
    (lambda d: d['objects'][0].update(state={'fill': 3}), "Object 'cup.1': its fill is 3"),
    (lambda d: d['objects'].append('cup'), "Object number 3 must be a JSON object, not 'cup'"),
    (lambda d: d.update(objects={}), 'objects must be a list'),
    (lambda d: d.pop('objects'), "has no 'objects'"),
    (lambda d: d.update(edges=[]), "unknown key 'edges'"),
    (lambda d: d['relations'][0].pop('object'), "Relation number 0 has no 'object'"),
    (lambda d: d['relations'][0].update(kind='functional'), "'cup.1 on table.1' is spatial, not 'functional'"),
    (lambda d: d['relations'][1].update(kind='spatial'), 'The spatial predicates are'),
    (lambda d: d['relations'][0].update(object='desk.1'), "points to 'desk.1', and there is no such object"),
    (lambda d: d.update(background='a <des>'), 'The background is'),
  ],
)
def test_bad_json_is_refused_by_name(change, cause):
  made = GRAPH.to_dict()
  change(made)
  with pytest.raises(ValueError, match=re.escape(cause)):
    SceneGraph.from_dict(made)


def test_subgraphs():
  small = GRAPH.induced(['cup.1', 'table.1'])
  assert [str(r) for r in small.relations] == ['cup.1 on table.1'] and GRAPH.holds(small) and not small.holds(GRAPH)
  assert GRAPH.holds(SceneGraph(nodes=(Node(id='cup.1', name='cup'),)))
  assert not GRAPH.holds(SceneGraph(nodes=(CUP.replaced('color', 'red'),)))
  assert not GRAPH.holds(SceneGraph(background='a garden'))


def test_a_spec_that_points_forward_is_refused():
  clauses = (trajectory_lib.Clause(name='bar', position=('above', 0)),)
  with pytest.raises(ValueError, match='does not come before it'):
    scene_graph.from_spec(trajectory_lib.PromptSpec(tag='position', include=clauses))


def test_operations_fold_to_the_graphs():
  table, cup = graph_operations.Add(nodes=(TABLE,), background=GRAPH.background), GRAPH.relations[:1]
  stand_in = Node(id='vase.1', name='vase')
  steps = graph_operations.steps(
    (
      table,
      graph_operations.Add(nodes=(stand_in,), relations=(Relation('vase.1', 'on', 'table.1'),), temporary=('vase.1',)),
      graph_operations.Swap(ids=('vase.1',), nodes=(CUP.replaced('color', 'red'),), relations=cup),
      graph_operations.Refine(ids=('cup.1',), attribute='color', value='light blue'),
      graph_operations.Add(nodes=(CAT,), relations=GRAPH.relations[1:]),
      graph_operations.Remove(ids=('cup.1',)),
    )
  )
  assert [list(s.after.ids) for s in steps[1:3]] == [['table.1', 'vase.1'], ['table.1', 'cup.1']]
  assert steps[4].after.holds(GRAPH) and GRAPH.holds(steps[4].after)
  assert steps[5].after.ids == ('table.1', 'cat.1') and not steps[5].after.relations
  assert all(a.after == b.before for a, b in zip(steps, steps[1:], strict=False))
  assert graph_operations.apply(graph_operations.growth(steps[0].after, GRAPH), steps[0].after).holds(GRAPH)


@pytest.mark.parametrize(
  'operation, error, cause',
  [
    (graph_operations.Add(), ValueError, 'adds nothing'),
    (graph_operations.Add(nodes=(CUP,)), ValueError, "Two objects have the id 'cup.1'"),
    (graph_operations.Add(relations=(Relation('table.1', 'on', 'cup.1'),)), ValueError, 'comes before itself'),
    (graph_operations.Remove(ids=('dog.1',)), KeyError, "No object 'dog.1'"),
    (graph_operations.Remove(ids=()), ValueError, 'names no object'),
    (graph_operations.Refine(ids=('cup.1',), attribute='size', value='big'), KeyError, "has no 'size'"),
    (graph_operations.Refine(ids=('cup.1',), attribute='fill', value='full'), ValueError, 'is full before the change'),
  ],
)
def test_operations_that_cannot_be_are_refused(operation, error, cause):
  with pytest.raises(error, match=cause):
    graph_operations.apply(operation, GRAPH)


def test_growth_needs_a_subgraph():
  with pytest.raises(ValueError, match='does not grow'):
    graph_operations.growth(SceneGraph(nodes=(CUP.replaced('color', 'red'),)), GRAPH)
