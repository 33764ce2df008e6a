"""Reads a model's own plan back into a scene graph, and finds the conflict of a graph with what a prompt states.

For worlds whose descriptions name each object with its colour and place, in the words of `wording` or of the shapes
world: `The image depicts a red ring at the left, and now features a newly added blue bar at the top.`
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pdgen.construction import graph_errors, taxonomy, wording
from pdgen.core import geometry, scene_graph, tags

Nodes = tuple[scene_graph.Node, ...]


class UnreadableError(ValueError):
  """A plan whose words are not all understood, or several errors at once."""


def read(plan: str, *, vocabulary: taxonomy.Taxonomy) -> Nodes:
  """The objects that a plan's description names, each with colour and place where they are named.

  Args:
    plan: `<ins>..</ins><des>..</des>`.
    vocabulary: the names and colours.

  Raises: UnreadableError for what is no plan, and words that name an object but are not read.
  """
  try:
    _, description = tags.plan_parts(plan)
  except ValueError as error:
    raise UnreadableError(str(error)) from None
  first = description.partition('.')[0]  # Later sentences are relations.
  phrases, names = _patterns(tuple(vocabulary.objects), _colors(vocabulary))
  nodes: list[scene_graph.Node] = []
  numbers: dict[str, int] = {}
  read_names = 0
  for match in phrases.finditer(first):
    count, color, word, places = match.group('count', 'color', 'name', 'places')
    name = names[word.lower()]
    many = 1 if count.lower() in ('a', 'an') else wording.NUMBERS.index(count.lower())
    at = _PLACE.findall(places or '')
    if at and len(at) != many:
      raise UnreadableError(f'{match.group()!r} names {len(at)} places for {many} objects')
    for k in range(many):
      numbers[name] = numbers.get(name, 0) + 1
      appearance = () if color is None else (scene_graph.Attribute(scene_graph.COLOR, color.lower()),)
      state = (scene_graph.Attribute(scene_graph.PLACE, at[k]),) if at else ()
      id = scene_graph.made_id(name, numbers[name])
      nodes.append(scene_graph.Node(id=id, name=name, appearance=appearance, state=state))
    read_names += 1
  if read_names != len(re.findall(rf'(?<!\w)(?:{"|".join(names)})(?!\w)', first, re.IGNORECASE)) or not nodes:
    raise UnreadableError(f'not all objects of {first!r} were read')
  return tuple(nodes)


def identified(nodes: Iterable[scene_graph.Node], like: Iterable[scene_graph.Node], *, extra: str) -> Nodes:
  """The same objects with the ids of those that they match: by name, and as many attributes as can be.

  Args:
    nodes: the objects.
    like: objects whose ids are taken, each once.
    extra: begins the ids of what matches none.
  """
  left, made = list(like), {}
  nodes = list(nodes)
  order = sorted(
    ((-_agree(a, b), i, j) for i, a in enumerate(nodes) for j, b in enumerate(left) if a.name == b.name),
  )
  taken: set[int] = set()
  for _, i, j in order:
    if i not in made and j not in taken:
      made[i] = left[j].id
      taken.add(j)
  return tuple(
    dataclasses.replace(n, id=made.get(i, f'{extra}{scene_graph.made_id(n.name, i + 1)}')) for i, n in enumerate(nodes)
  )


def conflict(
  nodes: Nodes,
  stated: scene_graph.SceneGraph,
  *,
  new: Sequence[str],
  rng: np.random.Generator,
) -> graph_errors.GraphError | None:
  """How objects contradict what a prompt states; None: they do not. What is missing, or not mentioned, is no error.

  Args:
    nodes: of the plan's description, with ids of `stated` where they match (`identified`).
    stated: what the prompt says.
    new: ids that the step has added: of a wrong place, one of them moves.
    rng: draws the right place.

  Raises: UnreadableError for several errors at once, and a right place that is not found.
  """
  here = {n.id: n for n in nodes}
  wanted = {n.id: n for n in stated.nodes}
  named = {n.name for n in stated.nodes}
  found: list[graph_errors.GraphError] = []
  facts = [r for r in stated.relations if r.subject in here and r.object in here]
  holds = lambda r: r.predicate in geometry.place_relations(here[r.subject].place or '', here[r.object].place or '')
  kept = tuple(r for r in facts if holds(r))
  graph = _graph(nodes, kept)
  for node in nodes:
    color = wanted[node.id].value(scene_graph.COLOR) if node.id in wanted else None
    if color is not None and node.value(scene_graph.COLOR) != color:
      right = _graph((n.replaced(scene_graph.COLOR, color) if n == node else n for n in nodes), kept)
      ids = (node.id,)
      made = graph_errors.GraphError(
        kind='wrong_attribute', right=right, wrong=graph, wanted=ids, seen=ids, attribute=scene_graph.COLOR
      )
      found.append(made)
  for name in named:
    seen = tuple(n.id for n in nodes if n.name == name)
    surplus = {id for id in seen if id not in wanted}
    if surplus and len(seen) > len(surplus):
      right = graph.induced(id for id in graph.ids if id not in surplus)
      left = tuple(id for id in seen if id not in surplus)
      found.append(graph_errors.GraphError(kind='wrong_count', right=right, wrong=graph, wanted=left, seen=seen))
  for r in facts:
    if r in kept:
      continue
    mover = r.subject if r.subject in new or r.object not in new else r.object
    actual = sorted(geometry.place_relations(here[r.subject].place or '', here[r.object].place or ''))
    if not actual:
      raise UnreadableError(f'the places of {r.subject} and {r.object} are in no relation')
    turned = r._replace(predicate=actual[0])
    right = _moved(nodes, mover, (*kept, r), rng=rng)
    wrong = _graph(nodes, (*kept, turned))
    ids = (mover,)
    found.append(
      graph_errors.GraphError(
        kind='wrong_place', right=right, wrong=wrong, wanted=ids, seen=ids, relation=r, seen_relation=turned
      )
    )
  if len(found) > 1:
    raise UnreadableError(f'{len(found)} conflicts at once: {", ".join(e.kind for e in found)}')
  return found[0] if found else None


def _moved(
  nodes: Nodes, mover: str, relations: tuple[scene_graph.Relation, ...], *, rng: np.random.Generator
) -> scene_graph.SceneGraph:
  taken = {n.place for n in nodes if n.id != mover}
  for number in rng.permutation(len(geometry.PLACES)):
    place = geometry.PLACES[int(number)]
    moved = tuple(n.replaced(scene_graph.PLACE, place) if n.id == mover else n for n in nodes)
    if place not in taken and scene_graph.contradiction(moved, relations) is None:
      return _graph(moved, relations)
  raise UnreadableError(f'no right place is free for {mover}')


def _graph(nodes: Iterable[scene_graph.Node], relations: Iterable[scene_graph.Relation]) -> scene_graph.SceneGraph:
  return scene_graph.SceneGraph(nodes=tuple(nodes), relations=tuple(relations))


def _agree(a: scene_graph.Node, b: scene_graph.Node) -> int:
  return sum(b.value(attribute.name) == attribute.value for attribute in a.attributes)


def _colors(vocabulary: taxonomy.Taxonomy) -> tuple[str, ...]:
  known = vocabulary.attributes.get(scene_graph.COLOR)
  return () if known is None else known.values


_PLACES = '|'.join(sorted(geometry.PLACES, key=len, reverse=True))
_PLACE = re.compile(rf'the ({_PLACES})')


@functools.cache
def _patterns(names: tuple[str, ...], colors: tuple[str, ...]) -> tuple[re.Pattern, Mapping[str, str]]:
  """(noun phrases, every spelling of a name to the name)."""
  spelled = {form: name for name in names for form in (name, wording.plural(name), f'{name}s')}
  longest = '|'.join(sorted(map(re.escape, spelled), key=len, reverse=True))
  numbers = '|'.join(wording.NUMBERS[1:])
  color = '|'.join(map(re.escape, colors)) or '(?!)'
  pattern = (
    rf'(?<!\w)(?P<count>an?|{numbers}) (?:newly added )?(?:(?P<color>{color}) )?(?P<name>{longest})(?!\w)'
    rf'(?: at (?P<places>the (?:{_PLACES})(?:(?:,| and) the (?:{_PLACES}))*))?'
  )
  return re.compile(pattern, re.IGNORECASE), {form.lower(): name for form, name in spelled.items()}
