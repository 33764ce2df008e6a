"""Prompts to scene graphs: GenEval's templates and the prompts of worlds exactly, free text by a writer model.

from_template('a photo of a red cup')     the graph, or None for any other text
from_world(worlds.get('shapes'), prompt)  by what the world says of its own prompts
from_text('Two dogs on a couch', writer)  by a writer's JSON, strictly checked
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from pdgen.construction import wording, writers
from pdgen.core import geometry, json_file, scene_graph
from pdgen.core import trajectory as trajectory_lib

OPENING = 'a photo of '
COLORS = ('red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'brown', 'black', 'white')  # (GenEval)
COUNTS = {'two': 2, 'three': 3, 'four': 4}
# GenEval's classes: those of COCO, three of them under names that say more.
GENEVAL_NAMES = frozenset(
  (
    'person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|stop sign|'
    'parking meter|bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|backpack|umbrella|handbag|'
    'tie|suitcase|frisbee|skis|snowboard|sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|'
    'tennis racket|bottle|wine glass|cup|fork|knife|spoon|bowl|banana|apple|sandwich|orange|broccoli|carrot|'
    'hot dog|pizza|donut|cake|chair|couch|potted plant|bed|dining table|toilet|tv|laptop|computer mouse|'
    'tv remote|computer keyboard|cell phone|microwave|oven|toaster|sink|refrigerator|book|clock|vase|scissors|'
    'teddy bear|hair drier|toothbrush'
  ).split('|')
)
# Other words for the spatial predicates.
SYNONYMS = {
  'to the left of': 'left of',
  'to the right of': 'right of',
  'on the left of': 'left of',
  'on the right of': 'right of',
  'over': 'above',
  'under': 'below',
  'beneath': 'below',
  'underneath': 'below',
  'on top of': 'on',
  'in': 'inside',
  'within': 'inside',
  'beside': 'next to',
  'near': 'next to',
}
MOST_ALIKE = 12  # Objects that one entry of a writer may count.

# What a writer is to answer; `_graph` checks it, and more.
SCHEMA: dict[str, Any] = {
  'type': 'object',
  'required': ['objects'],
  'additionalProperties': False,
  'properties': {
    'background': {'type': 'string'},
    'objects': {
      'type': 'array',
      'minItems': 1,
      'items': {
        'type': 'object',
        'required': ['id', 'name'],
        'additionalProperties': False,
        'properties': {
          'id': {'type': 'string', 'pattern': '^\\S+$'},
          'name': {'type': 'string'},
          'count': {'type': 'integer', 'minimum': 1, 'maximum': MOST_ALIKE},
          'appearance': {'type': 'object', 'additionalProperties': {'type': 'string'}},
          'state': {'type': 'object', 'additionalProperties': {'type': 'string'}},
        },
      },
    },
    'relations': {
      'type': 'array',
      'items': {
        'type': 'object',
        'required': ['subject', 'predicate', 'object'],
        'additionalProperties': False,
        'properties': {
          'subject': {'type': 'string'},
          'predicate': {'type': 'string'},
          'object': {'type': 'string'},
          'kind': {'enum': list(scene_graph.KINDS)},
        },
      },
    },
  },
}

TASK = """Write the scene graph of a picture's description as JSON. Answer with the JSON object alone.

- Every object that the description names, in its words, in the singular; several that are alike are one entry with
  `count`.
- `appearance`: what an object looks like, by attribute: {{"size": "small", "color": "light brown"}}.
- `state`: what it does or how it is: {{"posture": "sitting", "opening": "closed"}}. One value an attribute.
- `relations` between objects, by id. Spatial ones are: {predicates}. All others are functional, in one verb form:
  "riding", "holding", "looking at". Each fact once, from one side.
- `background`: the surroundings as a noun phrase, if the description has any.
- Nothing that the description does not say.

JSON Schema of the answer:
{schema}

Description: {prompt}"""


class ParsingWorld(Protocol):
  """What a world must offer, as functions of a module or as methods."""

  def parse(self, prompt: str, /) -> trajectory_lib.PromptSpec | None: ...


def from_world(world: ParsingWorld, prompt: str) -> scene_graph.SceneGraph | None:
  """The graph of a world's prompt; None for any other text."""
  spec = world.parse(prompt)
  return None if spec is None else scene_graph.from_spec(spec)


def from_template(prompt: str, *, known: Collection[str] = GENEVAL_NAMES) -> scene_graph.SceneGraph | None:
  """The graph of a prompt by one of GenEval's templates; None for any other text. known: names of objects."""
  spec = parse_template(prompt, known=known)
  return None if spec is None else scene_graph.from_spec(spec)


def parse_template(prompt: str, *, known: Collection[str] = GENEVAL_NAMES) -> trajectory_lib.PromptSpec | None:
  """What a prompt by one of GenEval's six templates asks for; None for any other text.

  Args:
    prompt: the text.
    known: names of objects.

  >>> parse_template('a photo of a red cup and an orange bench').tag
  'color_attr'
  >>> parse_template('a photo of two buses').include
  (Clause(name='bus', count=2, color=None, position=None),)
  >>> parse_template('a photo of a dog right of a tv').include[1].position
  ('right of', 0)
  """
  if not prompt.startswith(OPENING):
    return None
  words = prompt.removeprefix(OPENING)
  count, _, rest = words.partition(' ')
  if count in COUNTS:
    name = next((n for n in known if rest == f'{n}{"es" if n.endswith("s") else "s"}'), None)  # (GenEval's plural)
    if name is None:
      return None
    include = (trajectory_lib.Clause(name=name, count=COUNTS[count]),)
    exclude = (trajectory_lib.Clause(name=name, count=COUNTS[count] + 1),)
    return trajectory_lib.PromptSpec(tag='counting', include=include, exclude=exclude)
  one = _clause(words, known)
  if one is not None:
    return trajectory_lib.PromptSpec(tag='colors' if one.color else 'single_object', include=(one,))
  for relation in ('and', *geometry.RELATIONS):
    first, _, second = words.partition(f' {relation} ')
    a, b = (_clause(part, known) for part in (first, second))
    if a is None or b is None:
      continue
    if relation == 'and' and bool(a.color) == bool(b.color):
      return trajectory_lib.PromptSpec(tag='color_attr' if a.color else 'two_object', include=(a, b))
    if relation != 'and' and not (a.color or b.color):
      placed = trajectory_lib.Clause(name=a.name, position=(relation, 0))
      return trajectory_lib.PromptSpec(tag='position', include=(b, placed))
  return None


def _clause(words: str, known: Collection[str]) -> trajectory_lib.Clause | None:
  """`a red cup`, `an orange` (the fruit), `an orange orange`."""
  match = re.fullmatch(rf'an? (?:({"|".join(COLORS)}) )?(.+)', words)
  if match is None:
    return None
  color, name = match.groups()
  right = words.startswith('an ' if (color or name)[0] in 'aeiou' else 'a ')
  return trajectory_lib.Clause(name=name, color=color) if right and name in known else None


def from_text(prompt: str, writer: writers.Writer, *, tries: int = 3) -> scene_graph.SceneGraph:
  """The graph of any description, by a writer. What is not accepted is asked for again, with the reason.

  Args:
    prompt: the description.
    writer: answers with JSON of SCHEMA.
    tries: answers at most.

  Raises: writers.RejectedError with the reason against each answer: JSON that is none or has another form, objects that
    the description does not name, relations without an end, and every contradiction (`core.scene_graph`).
  """
  read = lambda answer: read_answer(answer, prompt=prompt)
  what = f'The scene graph of {prompt[:60]!r}'
  graph, _ = writers.ask(writer, task(prompt), read, tries=tries, what=what)
  return graph


def task(prompt: str) -> str:
  """What a writer is asked for the graph of a description."""
  schema = json.dumps(SCHEMA)
  return TASK.format(predicates=', '.join(scene_graph.SPATIAL_PREDICATES), schema=schema, prompt=prompt)


def read_answer(answer: str, *, prompt: str) -> scene_graph.SceneGraph:
  """The graph in a writer's answer, with or without a code fence.

  Args:
    answer: JSON of SCHEMA.
    prompt: the description that it is of.

  Raises: ValueError naming the id and the cause.
  """
  fenced = re.fullmatch(r'\s*```(?:json)?\s*\n(.*)\n\s*```\s*', answer, re.DOTALL)
  graph = _graph(json_file.parse((fenced[1] if fenced else answer).encode(), of='The answer'))
  for node in graph.nodes:
    # By the last word: `dog` of `bulldog puppy` is another one, `teddy bear` of `bear` the same.
    if not wording.names(prompt, node.name.split(' ')[-1]):
      raise ValueError(f'Object {node.id!r}: the description names no {node.name!r}.')
  return graph


def _graph(values: dict[str, Any]) -> scene_graph.SceneGraph:
  """A graph of SCHEMA: counted entries become objects of their own, and synonyms of predicates the predicates."""
  scene_graph.check_keys(values, {'background', 'objects', 'relations'}, needed=('objects',), of='The answer')
  for key in ('objects', 'relations'):
    if not isinstance(values.get(key, []), list):
      raise ValueError(f'The answer: {key} must be a list, not {values[key]!r}.')
  if not values['objects']:
    raise ValueError('The answer names no object.')
  nodes: list[scene_graph.Node] = []
  alike: dict[str, list[str]] = {}
  for number, entry in enumerate(values['objects']):
    group = _counted(entry, number=number)
    if entry['id'] in alike:
      raise ValueError(f'Two objects have the id {entry["id"]!r}.')
    alike[entry['id']] = [n.id for n in group]
    nodes += group
  relations = []
  for number, entry in enumerate(values.get('relations', [])):
    named = entry
    if isinstance(entry, Mapping) and isinstance(entry.get('predicate'), str):
      named = {**entry, 'predicate': SYNONYMS.get(entry['predicate'], entry['predicate'])}
    relation = scene_graph.relation_from_dict(named, number=number)
    for end in (relation.subject, relation.object):
      if end not in alike:
        raise ValueError(f'The relation {str(relation)!r} points to {end!r}, and there is no such object.')
    relations += [
      relation._replace(subject=a, object=b) for a in alike[relation.subject] for b in alike[relation.object]
    ]
  return scene_graph.SceneGraph(
    nodes=tuple(nodes), relations=tuple(relations), background=values.get('background') or ''
  )


def _counted(entry: Any, *, number: int) -> list[scene_graph.Node]:
  count = entry.get('count', 1) if isinstance(entry, Mapping) else 1
  node = scene_graph.node_from_dict(
    {k: v for k, v in entry.items() if k != 'count'} if isinstance(entry, Mapping) else entry, number=number
  )
  if type(count) is not int or not 1 <= count <= MOST_ALIKE:
    raise ValueError(f'Object {node.id!r}: its count is {count!r}: it must be a number from 1 to {MOST_ALIKE}.')
  if count == 1:
    return [node]
  made = [{**scene_graph.node_to_dict(node), 'id': f'{node.id}.{k + 1}'} for k in range(count)]
  return [scene_graph.node_from_dict(values, number=number) for values in made]
