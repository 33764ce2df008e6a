"""Scene graph: objects with attributes (appearance, state) and relations (spatial, functional) (paper, Fig. 3).

A `SceneGraph` that exists is free of contradictions: every constructor checks, and names the object and the cause.
One node is one object; objects that are alike (`three birds`) are nodes of their own, and wordings count them. The
shapes world makes its stories from these graphs, `pdgen.construction` its training data: one vocabulary for both.

A graph as JSON (`to_dict`, `from_dict`):

    {"background": "a simple indoor room with a wooden floor",
     "objects": [{"id": "bear.1", "name": "teddy bear", "appearance": {"color": "light brown"}, "state": {"posture":
                  "sitting"}}, {"id": "chair.1", "name": "chair"}],
     "relations": [{"subject": "bear.1", "predicate": "on", "object": "chair.1", "kind": "spatial"}]}
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pdgen.core import geometry
from pdgen.core import trajectory as trajectory_lib

SPATIAL, FUNCTIONAL = KINDS = ('spatial', 'functional')
APPEARANCE, STATE = ('appearance', 'state')
COLOR, PLACE = ('color', 'place')  # Attributes that pdgen itself reads. A place is one of `geometry.PLACES`.

# Spatial predicates, a closed list: what each says of an order, as (axis, whether the subject comes first in it).
# x from left to right, y from top to bottom, z from front to back; support: what stands or lies in what comes first.
SPATIAL_PREDICATES: Mapping[str, tuple[tuple[str, bool], ...]] = {
  'left of': (('x', True),),
  'right of': (('x', False),),
  'above': (('y', True),),
  'below': (('y', False),),
  'in front of': (('z', True),),
  'behind': (('z', False),),
  'on': (('y', True), ('support', False)),
  'inside': (('support', False),),
  'next to': (),
}
INVERSE = {
  'left of': 'right of',
  'right of': 'left of',
  'above': 'below',
  'below': 'above',
  'in front of': 'behind',
  'behind': 'in front of',
  'next to': 'next to',
}
# Functional predicates, an open list. Of these only one direction can hold.
ONE_WAY = frozenset({'riding', 'carrying', 'holding', 'wearing', 'pulling', 'pushing', 'driving', 'eating', 'pouring'})
# States of which an object has at most one, whatever attribute names them.
EXCLUSIVE_STATES = (
  frozenset({'sitting', 'standing', 'lying', 'walking', 'running', 'flying', 'swimming'}),
  frozenset({'open', 'closed'}),
  frozenset({'lit', 'unlit'}),
  frozenset({'empty', 'full'}),
  frozenset({'wet', 'dry'}),
  frozenset({'asleep', 'awake', 'sleeping'}),
)
EXCLUDED = {state: group for group in EXCLUSIVE_STATES for state in group}  # The states that one excludes, and itself.
MAX_NODES = 64


class Attribute(NamedTuple):
  """One attribute of an object."""

  name: str  # `color`, `size`, `posture`, ...
  value: str  # `light brown`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
  """One object. Raises: ValueError naming the object for bad words and for two values that exclude each other."""

  id: str  # Unique in its graph; no spaces.
  name: str  # `teddy bear`
  appearance: tuple[Attribute, ...] = ()  # What it looks like, in the order of wording.
  state: tuple[Attribute, ...] = ()  # What it does, how it is, where it is in the picture.

  def __post_init__(self):
    if not isinstance(self.id, str) or not self.id or self.id.split() != [self.id] or len(self.id) > 64:
      raise ValueError(f'{self.id!r} is no id of an object: it is a word of at most 64 characters.')
    where = f'Object {self.id!r}'
    check_words(self.name, of=f'{where}: its name')
    values: dict[str, str] = {}
    for attribute in self.attributes:
      check_words(attribute.name, of=f'{where}: the name of an attribute')
      check_words(attribute.value, of=f'{where}: its {attribute.name}')
      if attribute.name in values:
        raise ValueError(f'{where} has two values of {attribute.name}: {values[attribute.name]}, {attribute.value}.')
      values[attribute.name] = attribute.value
    for group in EXCLUSIVE_STATES if len(self.state) > 1 else ():
      both = [a.value for a in self.state if a.value in group]
      if len(both) > 1:
        raise ValueError(f'{where} has states that exclude each other: {", ".join(both)}.')
    if self.place is not None and self.place not in geometry.PLACES:
      raise ValueError(f'{where} has the place {self.place!r}. Known: {list(geometry.PLACES)}')

  @property
  def attributes(self) -> tuple[Attribute, ...]:
    return self.appearance + self.state

  @property
  def place(self) -> str | None:
    """Place in the picture, one of `geometry.PLACES`."""
    return self.value(PLACE)

  def value(self, name: str) -> str | None:
    """Value of an attribute; None where it is left open."""
    for group in (self.appearance, self.state):
      for attribute in group:
        if attribute[0] == name:
          return attribute[1]
    return None

  def replaced(self, name: str, value: str) -> 'Node':
    """The node with another value of an attribute that it has. Raises: KeyError if it has none of that name."""
    if self.value(name) is None:
      raise KeyError(f'Object {self.id!r} has no {name!r}.')
    change = lambda group: tuple(Attribute(name, value) if a.name == name else a for a in group)
    return dataclasses.replace(self, appearance=change(self.appearance), state=change(self.state))

  def kind(self) -> tuple:
    """What two objects share that are alike: name and attributes but the place."""
    return self.name, self.appearance, tuple(a for a in self.state if a.name != PLACE)


class Relation(NamedTuple):
  """`subject` `predicate` `object`, as `cup.1 on table.1`."""

  subject: str  # Id of a node.
  predicate: str  # Key of SPATIAL_PREDICATES, or a functional one.
  object: str  # Id of a node.

  @property
  def kind(self) -> str:
    return SPATIAL if self.predicate in SPATIAL_PREDICATES else FUNCTIONAL

  def fact(self) -> 'Relation':
    """The same fact in one form: `b right of a` as `a left of b`."""
    inverse = INVERSE.get(self.predicate)
    turned = inverse is not None and (inverse, self.object) < (self.predicate, self.subject)
    return Relation(self.object, inverse, self.subject) if turned and inverse else self

  def __str__(self) -> str:
    return f'{self.subject} {self.predicate} {self.object}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneGraph:
  """A scene. Raises: ValueError naming the object or relation, and the cause, for what is contradictory."""

  nodes: tuple[Node, ...] = ()  # In the order of painting, where there is one.
  relations: tuple[Relation, ...] = ()  # Each fact once.
  background: str = ''  # Noun phrase, `a simple indoor room with a wooden floor`; empty: left open.

  def __post_init__(self):
    if self.background:
      check_words(self.background, of='The background')
    cause = contradiction(self.nodes, self.relations)
    if cause:
      raise ValueError(cause)

  @property
  def ids(self) -> tuple[str, ...]:
    return tuple(n.id for n in self.nodes)

  def node(self, id: str) -> Node:
    """Raises: KeyError for an id that is not in the graph."""
    for node in self.nodes:
      if node.id == id:
        return node
    raise KeyError(f'No object {id!r} in the graph. There are: {list(self.ids)}')

  def induced(self, ids: Iterable[str]) -> 'SceneGraph':
    """The subgraph of some objects, with every relation between them and the background."""
    kept = set(ids)
    nodes = tuple(n for n in self.nodes if n.id in kept)
    relations = tuple(r for r in self.relations if r.subject in kept and r.object in kept)
    return dataclasses.replace(self, nodes=nodes, relations=relations)

  def holds(self, other: 'SceneGraph') -> bool:
    """Whether `other` is a subgraph: its objects, attributes, relations and background are all here."""
    facts = {r.fact() for r in self.relations}
    mine = {n.id: n for n in self.nodes}
    return (
      other.background in ('', self.background)
      and all(r.fact() in facts for r in other.relations)
      and all(
        n.id in mine
        and n.name == mine[n.id].name
        and set(n.appearance) <= set(mine[n.id].appearance)
        and set(n.state) <= set(mine[n.id].state)
        for n in other.nodes
      )
    )

  def to_dict(self) -> dict[str, Any]:
    """As JSON; empty parts are left out."""
    made: dict[str, Any] = {'background': self.background} if self.background else {}
    made['objects'] = [node_to_dict(n) for n in self.nodes]
    made['relations'] = [{**r._asdict(), 'kind': r.kind} for r in self.relations]
    return made

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> 'SceneGraph':
    """Inverse of `to_dict`. Raises: ValueError naming the id and the cause."""
    check_keys(values, {'background', 'objects', 'relations'}, needed={'objects'}, of='The scene graph')
    objects, relations = (_listed(values, key) for key in ('objects', 'relations'))
    return cls(
      nodes=tuple(node_from_dict(o, number=i) for i, o in enumerate(objects)),
      relations=tuple(relation_from_dict(r, number=i) for i, r in enumerate(relations)),
      background=values.get('background', ''),
    )


def from_spec(spec: trajectory_lib.PromptSpec) -> SceneGraph:
  """The scene graph that a templated prompt asks for, exactly: what the prompt leaves open is open in the graph.

  >>> clauses = (trajectory_lib.Clause(name='ring', count=2), trajectory_lib.Clause(name='bar', position=('above', 0)))
  >>> graph = from_spec(trajectory_lib.PromptSpec(tag='position', include=clauses))
  >>> graph.ids, [str(r) for r in graph.relations]
  (('ring.1', 'ring.2', 'bar.1'), ['bar.1 above ring.1', 'bar.1 above ring.2'])
  """
  numbers: dict[str, int] = {}
  groups: list[list[Node]] = []
  relations = []
  for clause in spec.include:
    group = []
    for _ in range(clause.count):
      numbers[clause.name] = numbers.get(clause.name, 0) + 1
      appearance = () if clause.color is None else (Attribute(COLOR, clause.color),)
      group.append(Node(id=made_id(clause.name, numbers[clause.name]), name=clause.name, appearance=appearance))
    if clause.position is not None:
      predicate, target = clause.position
      if not 0 <= target < len(groups):
        raise ValueError(f'{clause.name!r} is {predicate} clause {target}, which does not come before it.')
      relations += [Relation(a.id, predicate, b.id) for a in group for b in groups[target]]
    groups.append(group)
  return SceneGraph(nodes=tuple(n for group in groups for n in group), relations=tuple(relations))


def made_id(name: str, number: int) -> str:
  """The id that pdgen gives to the object of that name and number, from 1: `teddy_bear.1`."""
  return f'{"_".join(name.split())}.{number}'


# --- checks ---


def contradiction(nodes: Iterable[Node], relations: Iterable[Relation]) -> str | None:
  """What is wrong with a graph of these nodes and relations, in one sentence; None if nothing is."""
  by_id: dict[str, Node] = {}
  for node in nodes:
    if node.id in by_id:
      return f'Two objects have the id {node.id!r}.'
    by_id[node.id] = node
  if len(by_id) > MAX_NODES:
    return f'{len(by_id)} objects are too many: a graph has at most {MAX_NODES}.'
  facts: dict[Relation, Relation] = {}
  for relation in relations:
    absent = [end for end in (relation.subject, relation.object) if end not in by_id]
    if absent:
      return f'The relation {str(relation)!r} points to {absent[0]!r}, and there is no such object.'
    if relation.subject == relation.object:
      return f'The relation {str(relation)!r} relates {relation.subject!r} to itself.'
    fact = relation.fact()
    if fact in facts:
      return f'The relations {str(facts[fact])!r} and {str(relation)!r} say the same twice.'
    facts[fact] = relation
    turned = Relation(relation.object, relation.predicate, relation.subject)
    if relation.predicate in ONE_WAY and turned in facts:
      return f'The relations {str(turned)!r} and {str(relation)!r} contradict each other.'
  return (_inside_and_beside(facts.values()) or _out_of_order(facts.values(), by_id)) if facts else None


def _inside_and_beside(relations: Iterable[Relation]) -> str | None:
  pairs: dict[frozenset, Relation] = {}
  for r in sorted((r for r in relations if r.kind == SPATIAL), key=lambda r: r.predicate != 'inside'):
    other = pairs.setdefault(frozenset((r.subject, r.object)), r)
    if other != r and other.predicate == 'inside':
      return f'The relations {str(other)!r} and {str(r)!r} contradict each other.'
  return None


def _out_of_order(relations: Iterable[Relation], by_id: Mapping[str, Node]) -> str | None:
  """A cycle of an order (a left of b left of a), or a relation that the places of two objects contradict."""
  after: dict[str, dict[str, list[str]]] = {}  # axis -> object -> the objects that come directly after it
  for r in relations:
    for axis, first in SPATIAL_PREDICATES.get(r.predicate, ()):
      low, high = (r.subject, r.object) if first else (r.object, r.subject)
      after.setdefault(axis, {}).setdefault(low, []).append(high)
    a, b = by_id[r.subject].place, by_id[r.object].place
    if r.predicate in geometry.RELATIONS and a is not None and b is not None:
      if r.predicate not in geometry.place_relations(a, b):
        return f'The relation {str(r)!r} contradicts their places, {a} and {b}.'
  on = any(r.predicate == 'on' for r in relations)
  for axis, edges in after.items():
    for start in edges:
      reached, waiting = set(), [start]
      while waiting:
        for end in edges.get(waiting.pop(), ()):
          if end not in reached:
            reached.add(end)
            waiting.append(end)
      if start in reached:
        said = ', '.join(repr(str(r)) for r in relations if {r.subject, r.object} <= {start, *reached})
        return f'Object {start!r} comes before itself on the axis {axis}: {said}.'
      for end in reached:
        if not _in_places(axis, by_id[start].place, by_id[end].place, same_row=on):
          return f'{start!r} and {end!r} are ordered against their places on the axis {axis}.'
  return None


def _in_places(axis: str, first: str | None, second: str | None, *, same_row: bool) -> bool:
  """Whether two places allow the order. same_row: things that stand on each other are there, and may share a cell."""
  if first is None or second is None or axis not in ('x', 'y'):
    return True
  a, b = (geometry.PLACES.index(place) for place in (first, second))
  return a % 3 < b % 3 if axis == 'x' else a // 3 < b // 3 + same_row


def check_words(text: Any, *, of: str):
  """Raises ValueError, beginning with `of`, for what is no plain words in one line (tags would end a plan early)."""
  if not isinstance(text, str) or not _are_words(text):
    raise ValueError(f'{of} is {text!r}: it must be words in one line, without <, >, braces or spaces at the ends.')


@functools.lru_cache(maxsize=4096)  # Of a vocabulary, the same ones again and again.
def _are_words(text: str) -> bool:
  return bool(text) and text == ' '.join(text.split()) and not set('<>\\{}') & set(text)


def check_keys(values: Any, known: set[str], *, of: str, needed: Iterable[str] = ()):
  """Raises ValueError, beginning with `of`, for what is no mapping with these keys.

  Args:
    values: what is read.
    known: the keys that it may have.
    of: what an error calls it.
    needed: the keys that it must have.
  """
  if not isinstance(values, Mapping):
    raise ValueError(f'{of} must be a JSON object, not {values!r}.')
  unknown, absent = sorted(set(values) - known), sorted(set(needed) - set(values))
  if unknown:
    raise ValueError(f'{of} has an unknown key {unknown[0]!r}. Known: {sorted(known)}')
  if absent:
    raise ValueError(f'{of} has no {absent[0]!r}.')


# --- JSON ---


def node_from_dict(values: Any, *, number: int) -> Node:
  """Reads one object. number: of it, from 0, for errors. Raises: ValueError."""
  of = f'Object {values["id"]!r}' if isinstance(values, Mapping) and 'id' in values else f'Object number {number}'
  check_keys(values, {'id', 'name', APPEARANCE, STATE}, needed=('id', 'name'), of=of)
  for group in (APPEARANCE, STATE):
    if not isinstance(values.get(group, {}), Mapping):
      raise ValueError(f'{of}: {group} must map attributes to values, not {values[group]!r}.')
  appearance, state = (itertools.starmap(Attribute, values.get(group, {}).items()) for group in (APPEARANCE, STATE))
  return Node(id=values['id'], name=values['name'], appearance=tuple(appearance), state=tuple(state))


def relation_from_dict(values: Any, *, number: int) -> Relation:
  """Reads one relation. number: of it, from 0, for errors. Raises: ValueError, also for a kind that is not its own."""
  of = f'Relation number {number}'
  check_keys(values, {*Relation._fields, 'kind'}, needed=Relation._fields, of=of)
  for key in Relation._fields:
    check_words(values[key], of=f'{of}: its {key}')
  relation = Relation(*(values[key] for key in Relation._fields))
  if values.get('kind', relation.kind) != relation.kind:
    raise ValueError(
      f'The relation {str(relation)!r} is {relation.kind}, not {values["kind"]!r}. '
      f'The spatial predicates are {list(SPATIAL_PREDICATES)}; all others are functional.'
    )
  return relation


def node_to_dict(node: Node) -> dict[str, Any]:
  made: dict[str, Any] = {'id': node.id, 'name': node.name}
  groups = ((APPEARANCE, node.appearance), (STATE, node.state))
  return {**made, **{group: dict(attributes) for group, attributes in groups if attributes}}


def _listed(values: Mapping[str, Any], key: str) -> list:
  found = values.get(key, [])
  if not isinstance(found, list):
    raise ValueError(f'The scene graph: {key} must be a list, not {found!r}.')
  return found
