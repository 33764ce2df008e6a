"""Taxonomy: objects with plausible attributes, states, relations and backgrounds; samples scene graphs from it.

A taxonomy is a JSON file. `taxonomy.json` beside this module is the shipped one; the shapes world has its own
(`pdgen.worlds.shapes.TAXONOMY`). Its form:

    {"attributes": {"color": {"kind": "appearance", "values": ["red", "light blue"]},
                    "place": {"kind": "state", "values": ["left", "right"], "required": true, "distinct": true}},
     "objects": [{"name": "cup", "category": "dishes", "attributes": {"color": [], "material": ["glass"]}}],
     "relations": [{"predicate": "on", "subjects": ["dishes"], "objects": ["table"]}],
     "backgrounds": [{"text": "a plain kitchen", "categories": ["dishes", "furniture"]}]}

The order of `attributes` is the order of wording. An object's attribute has the values that are listed with it; `[]`
means all of them. `required`: every object that can have the attribute has it. `distinct`: no two objects of a graph
have the same value. `subjects` and `objects` of a relation name categories or objects, `*` all. A background without
`categories` suits every object.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pdgen.core import json_file, scene_graph
from pdgen.core import rng as rng_lib

SHIPPED = pathlib.Path(__file__).with_name('taxonomy.json')
_STREAM = 201  # random stream of `sample`
_PARTICULAR = 3  # A predicate of particular objects is as likely as so many and one that all objects have.
_TRIES = 4  # relations that are proposed for an object before it goes without


@dataclasses.dataclass(frozen=True, kw_only=True)
class Property:
  """One attribute that objects can have."""

  name: str
  kind: str  # scene_graph.APPEARANCE or STATE
  values: tuple[str, ...]
  required: bool = False  # Of every object that can have it.
  distinct: bool = False  # No two objects of a graph share a value.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectClass:
  """One kind of object."""

  name: str
  category: str
  attributes: Mapping[str, tuple[str, ...]]  # Attribute to its plausible values; in the order of wording.


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelationRule:
  """Objects that can be in a relation."""

  predicate: str
  subjects: tuple[str, ...]  # Categories or names; `*`: all.
  objects: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Background:
  """One background."""

  text: str  # Noun phrase.
  categories: tuple[str, ...] = ()  # Of the objects that suit it; empty: all.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shares:
  """How large and how rich sampled graphs are."""

  groups: tuple[int, int] = (1, 4)  # Fewest and most groups; a group is one object or several that are alike.
  counted: float = 0.15  # Groups of several objects.
  most: int = 4  # Objects of such a group at most.
  attribute: float = 0.5  # Attributes that are stated, of those that an object can have.
  relation: float = 0.7  # Groups after the first that are related to an earlier one.
  second: float = 0.3  # Those among them that are related once more, and again of these.
  background: float = 0.8  # Graphs with a background, where the taxonomy has any.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taxonomy:
  """What scene graphs are drawn from."""

  attributes: Mapping[str, Property]  # In the order of wording.
  objects: Mapping[str, ObjectClass]
  relations: tuple[RelationRule, ...] = ()
  backgrounds: tuple[Background, ...] = ()

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> 'Taxonomy':
    """Reads the JSON form. Raises: ValueError naming the entry and the cause."""
    known = {'attributes', 'objects', 'relations', 'backgrounds'}
    scene_graph.check_keys(values, known, needed=('attributes', 'objects'), of='The taxonomy')
    attributes = {name: _property(name, entry) for name, entry in values['attributes'].items()}
    objects: dict[str, ObjectClass] = {}
    for entry in values['objects']:
      made = _object_class(entry, attributes)
      if made.name in objects:
        raise ValueError(f'The taxonomy has the object {made.name!r} twice.')
      objects[made.name] = made
    if not objects:
      raise ValueError('The taxonomy has no objects.')
    named = {*objects, *(o.category for o in objects.values()), '*'}
    relations = tuple(_relation_rule(entry, named) for entry in values.get('relations', ()))
    backgrounds = tuple(_background(entry, named) for entry in values.get('backgrounds', ()))
    return cls(attributes=attributes, objects=objects, relations=relations, backgrounds=backgrounds)

  def others(self, name: str) -> list[str]:
    """Objects that can stand in for one: those of its category; all others where it is alone or not in the taxonomy."""
    category = self.objects[name].category if name in self.objects else None
    near = [o.name for o in self.objects.values() if o.category == category and o.name != name]
    return near or [o for o in self.objects if o != name]

  def values(self, node: scene_graph.Node, attribute: str) -> list[str]:
    """Other values that an attribute of an object can have; [] for what the taxonomy does not know."""
    known = self.objects[node.name].attributes.get(attribute) if node.name in self.objects else None
    if known is None:
      known = self.attributes[attribute].values if attribute in self.attributes else ()
    other = dict(node.state)
    other.pop(attribute, None)
    return [v for v in known if v != node.value(attribute) and not _excluded(v, other.values())]

  def draw_node(
    self, name: str, *, id: str, rng: np.random.Generator, share: float, taken: Iterable[scene_graph.Node] = ()
  ) -> scene_graph.Node | None:
    """An object of that name with random attributes.

    Args:
      name: of the object.
      id: of the node.
      rng: draws the attributes.
      share: of the attributes that are stated.
      taken: objects whose values of `distinct` attributes are taken.

    Returns: the node; None where all values of a required attribute are taken.
    """
    groups: dict[str, list[scene_graph.Attribute]] = {scene_graph.APPEARANCE: [], scene_graph.STATE: []}
    for attribute, values in self.objects[name].attributes.items():
      known = self.attributes[attribute]
      if not known.required and rng.random() >= share:
        continue
      if known.distinct:
        used = {node.value(attribute) for node in taken}
        values = [v for v in values if v not in used]
      if known.kind == scene_graph.STATE and groups[known.kind]:
        values = [v for v in values if not _excluded(v, (a.value for a in groups[known.kind]))]
      if values:
        groups[known.kind].append(scene_graph.Attribute(attribute, choose(rng, values)))
      elif known.required:
        return None
    appearance, state = (tuple(groups[kind]) for kind in (scene_graph.APPEARANCE, scene_graph.STATE))
    return scene_graph.Node(id=id, name=name, appearance=appearance, state=state)

  def suited(self, background: str) -> list[str]:
    """Names of the objects that suit a background; all for one that the taxonomy does not have."""
    return self._suited.get(background, self._suited[''])

  @functools.cached_property
  def _suited(self) -> dict[str, list[str]]:
    """Names of the objects that suit each background."""
    suited = {
      b.text: [o.name for o in self.objects.values() if {o.category, o.name} & set(b.categories)] or list(self.objects)
      for b in self.backgrounds
    }
    return {**suited, '': list(self.objects)}

  @functools.cached_property
  def _predicates(self) -> dict[tuple[str, str], list[str]]:
    """Predicates from one object's name to another's; those of particular objects more often than those of all."""
    suits = lambda names, o: bool({'*', o.name, o.category} & set(names))
    found: dict[tuple[str, str], list[str]] = {}
    for a, b in itertools.product(self.objects.values(), repeat=2):
      rules = [r for r in self.relations if suits(r.subjects, a) and suits(r.objects, b)]
      particular = [r.predicate for r in rules if not {'*'} == {*r.subjects, *r.objects}]
      found[a.name, b.name] = [r.predicate for r in rules] + _PARTICULAR * particular
    return found


def load(path: str | os.PathLike = SHIPPED) -> Taxonomy:
  """Reads a taxonomy file. Raises: FileNotFoundError; ValueError naming the entry and the cause."""
  return Taxonomy.from_dict(json_file.read(path))


def sample(taxonomy: Taxonomy, *, seed: int, index: int, shares: Shares | None = None) -> scene_graph.SceneGraph:
  """A random scene graph: the same for the same taxonomy, shares, seed and index.

  Args:
    taxonomy: what it is drawn from.
    seed: with `index`, determines the graph.
    index: number of the graph.
    shares: size and richness; None: the defaults.
  """
  graph = sample_unless(lambda objects: False, taxonomy, seed=seed, index=index, shares=shares)
  assert graph is not None
  return graph


def sample_unless(
  unwanted: Callable[[scene_graph.SceneGraph], bool],
  taxonomy: Taxonomy,
  *,
  seed: int,
  index: int,
  shares: Shares | None = None,
) -> scene_graph.SceneGraph | None:
  """As `sample`; None where `unwanted` says so of the objects alone, before relations are drawn between them."""
  shares, rng = shares or Shares(), rng_lib.numpy_rng(seed, index, _STREAM)
  background = ''
  if taxonomy.backgrounds and rng.random() < shares.background:
    background = choose(rng, taxonomy.backgrounds).text
  low, high = shares.groups
  names = [str(n) for n in rng.permutation(taxonomy.suited(background))[: int(rng.integers(low, high + 1))]]
  groups: list[list[scene_graph.Node]] = []
  for name in names:
    taken = [node for group in groups for node in group]
    count = int(rng.integers(2, shares.most + 1)) if shares.most > 1 and rng.random() < shares.counted else 1
    group = _group(taxonomy, name, count, rng=rng, share=shares.attribute, taken=taken)
    if group:
      groups.append(group)
  objects = scene_graph.SceneGraph(nodes=tuple(node for group in groups for node in group), background=background)
  if unwanted(objects):
    return None
  relations: list[scene_graph.Relation] = []
  for number in range(1, len(groups)):
    share = shares.relation
    while rng.random() < share:
      new = _related(taxonomy, groups, number, relations, rng=rng)
      relations += new
      share = shares.second if new else 0.0
  return dataclasses.replace(objects, relations=tuple(relations)) if relations else objects


def choose(rng: np.random.Generator, options: Sequence[Any]) -> Any:
  """A uniform choice from a sequence."""
  return options[int(rng.integers(len(options)))]


def _group(
  taxonomy: Taxonomy, name: str, count: int, *, rng: np.random.Generator, share: float, taken: list[scene_graph.Node]
) -> list[scene_graph.Node]:
  """Objects that are alike but for `distinct` attributes."""
  first = taxonomy.draw_node(name, id=scene_graph.made_id(name, 1), rng=rng, share=share, taken=taken)
  group = [] if first is None else [first]
  for number in range(2, count + 1 if group else 0):
    node = dataclasses.replace(group[0], id=scene_graph.made_id(name, number))
    for attribute in node.attributes:
      if attribute.name in taxonomy.attributes and taxonomy.attributes[attribute.name].distinct:
        used = {other.value(attribute.name) for other in (*taken, *group)}
        left = [v for v in taxonomy.values(node, attribute.name) if v not in used]
        if not left:
          return group
        node = node.replaced(attribute.name, choose(rng, left))
    group.append(node)
  return group


def _related(
  taxonomy: Taxonomy,
  groups: list[list[scene_graph.Node]],
  number: int,
  relations: list[scene_graph.Relation],
  *,
  rng: np.random.Generator,
) -> list[scene_graph.Relation]:
  """Relates a group to an earlier one, in a way that contradicts nothing; [] where no way was found."""
  nodes = [node for group in groups for node in group]
  for _ in range(_TRIES):
    pair = groups[number], groups[int(rng.integers(number))]
    subjects, objects = pair if rng.random() < 0.5 else pair[::-1]
    known = taxonomy._predicates[subjects[0].name, objects[0].name]
    if len(subjects) + len(objects) > 2:  # Two people do not ride one horse.
      known = [p for p in known if p in scene_graph.SPATIAL_PREDICATES]
    if not known:
      continue
    predicate = choose(rng, known)
    new = [scene_graph.Relation(a.id, predicate, b.id) for a in subjects for b in objects]
    if scene_graph.contradiction(nodes, (*relations, *new)) is None:
      return new
  return []


def _excluded(value: str, others: Iterable[str]) -> bool:
  excluded = scene_graph.EXCLUDED.get(value)
  return excluded is not None and any(other in excluded for other in others)


# --- reading ---


def _property(name: str, entry: Any) -> Property:
  of = f'The attribute {name!r}'
  scene_graph.check_words(name, of=of)
  scene_graph.check_keys(entry, {'kind', 'values', 'required', 'distinct'}, needed=('kind', 'values'), of=of)
  if entry['kind'] not in (scene_graph.APPEARANCE, scene_graph.STATE):
    raise ValueError(f'{of} has the kind {entry["kind"]!r}: it is appearance or state.')
  values = _words(entry['values'], of=f'{of}: values')
  if not values:
    raise ValueError(f'{of} has no values.')
  flags = {key: bool(entry.get(key, False)) for key in ('required', 'distinct')}
  return Property(name=name, kind=entry['kind'], values=values, **flags)


def _object_class(entry: Any, attributes: Mapping[str, Property]) -> ObjectClass:
  of = f'The object {entry["name"]!r}' if isinstance(entry, Mapping) and 'name' in entry else 'An object'
  scene_graph.check_keys(entry, {'name', 'category', 'attributes'}, needed=('name', 'category'), of=of)
  for key in ('name', 'category'):
    scene_graph.check_words(entry[key], of=f'{of}: its {key}')
  own = entry.get('attributes', {})
  scene_graph.check_keys(own, set(attributes), of=f'{of}: its attributes')
  # In the order of the taxonomy, which is that of wording.
  chosen = {n: _words(own[n], of=f'{of}: its {n}') or attributes[n].values for n in attributes if n in own}
  return ObjectClass(name=entry['name'], category=entry['category'], attributes=chosen)


def _relation_rule(entry: Any, named: set[str]) -> RelationRule:
  scene_graph.check_keys(entry, {'predicate', 'subjects', 'objects'}, needed=('predicate',), of='A relation')
  of = f'The relation {entry["predicate"]!r}'
  scene_graph.check_words(entry['predicate'], of=of)
  ends = (_known(entry.get(key, ['*']), named, of=f'{of}: {key}') for key in ('subjects', 'objects'))
  subjects, objects = ends
  return RelationRule(predicate=entry['predicate'], subjects=subjects, objects=objects)


def _background(entry: Any, named: set[str]) -> Background:
  scene_graph.check_keys(entry, {'text', 'categories'}, needed=('text',), of='A background')
  scene_graph.check_words(entry['text'], of='A background')
  of = f'The background {entry["text"]!r}: categories'
  return Background(text=entry['text'], categories=_known(entry.get('categories', []), named, of=of))


def _words(values: Any, *, of: str) -> tuple[str, ...]:
  if not isinstance(values, list):
    raise ValueError(f'{of} must be a list, not {values!r}.')
  for value in values:
    scene_graph.check_words(value, of=of)
  if len(set(values)) < len(values):
    raise ValueError(f'{of} has a value twice: {values}.')
  return tuple(values)


def _known(values: Any, named: set[str], *, of: str) -> tuple[str, ...]:
  words = _words(values, of=of)
  unknown = [word for word in words if word not in named]
  if unknown:
    raise ValueError(f'{of} names {unknown[0]!r}, which is no object or category.')
  return words
