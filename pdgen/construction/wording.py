"""Scene graphs in words: noun phrases, references that point to one object, relations, descriptions, prompts."""

import re
from collections.abc import Iterable, Sequence

from pdgen.core import scene_graph

NUMBERS = ('no', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten', 'eleven', 'twelve')
IRREGULAR = {
  'person': 'people',
  'man': 'men',
  'woman': 'women',
  'child': 'children',
  'mouse': 'mice',
  'goose': 'geese',
  'sheep': 'sheep',
  'fish': 'fish',
  'knife': 'knives',
  'leaf': 'leaves',
  'wolf': 'wolves',
  'shelf': 'shelves',
  'bookshelf': 'bookshelves',
  'potato': 'potatoes',
  'tomato': 'tomatoes',
  'scissors': 'scissors',
  'skis': 'skis',
}
# Predicates that a sentence words otherwise than a graph.
_PREDICATES = {'left of': 'to the left of', 'right of': 'to the right of'}

Nodes = Sequence[scene_graph.Node]


def plural(name: str) -> str:
  """The plural of an object's name: of its last word.

  >>> plural('toy car'), plural('bench'), plural('cherry'), plural('police man'), plural('toy'), plural('bus')
  ('toy cars', 'benches', 'cherries', 'police men', 'toys', 'buses')
  """
  *before, last = name.split(' ')
  if last in IRREGULAR:
    last = IRREGULAR[last]
  elif re.search(r'[^aeiou]y$', last):
    last = f'{last[:-1]}ies'
  else:
    last += 'es' if re.search(r'(s|x|z|ch|sh)$', last) else 's'
  return ' '.join([*before, last])


def number(count: int) -> str:
  """`one`, `two`, ..; in figures above twelve."""
  return NUMBERS[count] if count < len(NUMBERS) else str(count)


def article(words: str) -> str:
  """`a` or `an`.

  >>> article('orange ring'), article('uniform'), article('hour'), article('one-eyed cat')
  ('an', 'a', 'an', 'a')
  """
  sounds = re.match(r'(uni|use|eu|one\b|ut)', words) is None and words[0] in 'aeiou'
  return 'an' if sounds or re.match(r'(hour|honest)', words) else 'a'


def listed(parts: Sequence[str]) -> str:
  """`a`, `a and b`, `a, b and c`."""
  return parts[0] if len(parts) == 1 else f'{", ".join(parts[:-1])} and {parts[-1]}'


def sentence(words: str) -> str:
  """With a capital and a full stop."""
  return f'{words[0].upper()}{words[1:]}.'


def groups(nodes: Iterable[scene_graph.Node]) -> list[list[scene_graph.Node]]:
  """Objects that are alike but for their places together, in the order of the first of them."""
  found: dict[tuple, list[scene_graph.Node]] = {}
  for node in nodes:
    found.setdefault(node.kind(), []).append(node)
  return list(found.values())


def looks(node: scene_graph.Node) -> str:
  """Adjectives and name, as in the paper: a comma after the size.

  >>> values = {'size': 'medium-sized', 'color': 'light brown', 'material': 'plush'}
  >>> appearance = tuple(scene_graph.Attribute(*item) for item in values.items())
  >>> looks(scene_graph.Node(id='a', name='teddy bear', appearance=appearance))
  'medium-sized, light brown plush teddy bear'
  """
  adjectives = [a.value for a in node.appearance if not a.value.startswith('with ')]
  if len(adjectives) > 1 and node.appearance[0].name == 'size':
    adjectives[0] += ','
  return ' '.join([*adjectives, node.name])


def phrase(nodes: Nodes, *, lead: str = '') -> str:
  """The noun phrase of a group of objects that are alike: `a small red cup that is full`, `two red rings at the left`.

  Args:
    nodes: the group.
    lead: an adjective before all others, `newly added`.
  """
  first, count = nodes[0], len(nodes)
  words = looks(first)
  if count > 1:
    words = words.removesuffix(first.name) + plural(first.name)
  words = f'{lead} {words}' if lead else words
  words = f'{article(words) if count == 1 else number(count)} {words}'
  after = [a.value for a in first.appearance if a.value.startswith('with ')]
  if after:
    words += f' {listed(after)}'
  states = [a.value for a in first.state if a.name != scene_graph.PLACE]
  if states:
    words += f' that {"is" if count == 1 else "are"} {listed(states)}'
  return words + _at(nodes)


def _at(nodes: Nodes) -> str:
  places = [f'the {node.place}' for node in nodes if node.place is not None]
  return f' at {listed(places)}' if places else ''


def the(ids: Iterable[str], graph: scene_graph.SceneGraph) -> str:
  """A reference to objects of one name that no other object of the graph shares, as short as possible.

  `the cup`, `the two cups`, `the red cup`, `the red cup at the left`; `one of the three red cups` where all are alike.

  Raises: KeyError for an id that is not in the graph.
  """
  nodes = [graph.node(id) for id in ids]
  first, count = nodes[0], len(nodes)
  chosen = {n.id for n in nodes}
  same_name = [n for n in graph.nodes if n.name == first.name and n.id not in chosen]
  alike = [n for n in same_name if n.appearance == first.appearance]
  name = first.name if count == 1 else plural(first.name)
  how_many = '' if count == 1 else f'{number(count)} '
  if not same_name:
    return f'the {how_many}{name}'
  words = looks(first).removesuffix(first.name)
  if not alike:
    return f'the {how_many}{words}{name}'
  if all(n.place is not None for n in (*nodes, *alike)):
    return f'the {how_many}{words}{name}{_at(nodes)}'
  states = [a.value for a in first.state if a.name != scene_graph.PLACE]
  if states and all(n.state != first.state for n in alike):
    return f'the {how_many}{words}{name} that {"is" if count == 1 else "are"} {listed(states)}'
  several = f'{words}{plural(first.name)}'
  return f'{number(count)} of the {number(len(alike) + count)} {several}'


def predicate(name: str) -> str:
  """A predicate as a sentence has it: `to the left of`, `riding`."""
  return _PREDICATES.get(name, name)


def facts(
  graph: scene_graph.SceneGraph, relations: Iterable[scene_graph.Relation]
) -> list[tuple[tuple[str, ...], str, tuple[str, ...]]]:
  """Relations as (subjects, predicate, objects): alike objects with the same relation to the same ones are one fact."""
  kinds = {n.id: n.kind() for n in graph.nodes}
  of_subject: dict[tuple, list[str]] = {}
  for r in relations:
    of_subject.setdefault((r.subject, r.predicate, kinds[r.object]), []).append(r.object)
  found: dict[tuple, list[str]] = {}
  for (subject, name, _), objects in of_subject.items():
    found.setdefault((kinds[subject], name, tuple(objects)), []).append(subject)
  return [(tuple(subjects), name, objects) for (_, name, objects), subjects in found.items()]


def statements(graph: scene_graph.SceneGraph) -> list[str]:
  """A sentence for each fact of the graph: `The two birds are above the house.`"""
  return [
    sentence(f'{the(subjects, graph)} {"is" if len(subjects) == 1 else "are"} {predicate(name)} {the(objects, graph)}')
    for subjects, name, objects in facts(graph, graph.relations)
  ]


def description(graph: scene_graph.SceneGraph, *, new: Iterable[str] = (), opener: str = 'The image depicts') -> str:
  """The whole scene (`<des>`), in the paper's words: `The image depicts ..., and now features a newly added ...`.

  Args:
    graph: the scene.
    new: ids of the objects that the step has added.
    opener: the first words.
  """
  new = set(new)
  old_groups = [phrase(g) for g in groups(n for n in graph.nodes if n.id not in new)]
  new_groups = groups(n for n in graph.nodes if n.id in new)
  if not (old_groups or graph.background):  # The first objects of a page: there is nothing to add them to.
    old_groups, new_groups = [phrase(g) for g in new_groups], []
  words = ', with '.join(part for part in (graph.background, listed(old_groups) if old_groups else '') if part)
  if new_groups:
    added = listed([phrase(g, lead='newly added') for g in new_groups])
    words += f', and now features {added}'
  return ' '.join([f'{opener} {words or "an empty page"}.', *statements(graph)])


def prompt(graph: scene_graph.SceneGraph) -> str:
  """A prompt that asks for the graph: `A red cup and a table in a plain kitchen. The cup is on the table.`"""
  words = listed([phrase(g) for g in groups(graph.nodes)]) if graph.nodes else ''
  words = ' in '.join(part for part in (words, graph.background) if part)
  if not words:
    raise ValueError('An empty scene graph asks for nothing.')
  return ' '.join([sentence(words), *statements(graph)])


def unnamed(text: str, graph: scene_graph.SceneGraph) -> list[str]:
  """Names of the objects of a graph that a text does not name, in the singular or plural.

  >>> graph = scene_graph.SceneGraph(nodes=(scene_graph.Node(id='a', name='cup'), scene_graph.Node(id='b', name='cat')))
  >>> unnamed('Two cups stand on a catwalk.', graph)
  ['cat']
  """
  return list(dict.fromkeys(n.name for n in graph.nodes if not names(text, n.name)))


def names(text: str, name: str) -> bool:
  """Whether a text has the name of an object as a word, in the singular or plural."""
  either = '|'.join(re.escape(word) for word in (name, plural(name)))
  return re.search(rf'(?<!\w)({either})(?!\w)', text, re.IGNORECASE) is not None
