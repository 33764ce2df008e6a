"""Scene graphs for construction: sampled, parsed from templates and free text, cut into growing subgraphs."""

import copy
import itertools
import json
import re

import numpy as np
import pytest

from pdgen.construction import prompt_parser, subgraphs, taxonomy, writers
from pdgen.core import geometry, graph_operations, scene_graph
from pdgen.core import trajectory as trajectory_lib
from pdgen.worlds import shapes
from pdgen.worlds.shapes import prompt_space

SHIPPED = taxonomy.load()
SHAPES = taxonomy.Taxonomy.from_dict(shapes.TAXONOMY)
COUNT = 10_000
# What each predicate says of the centres of subject and object, written down anew: the code's own table is under test.
ORDERS = {
  'left of': [('x', -1)],
  'right of': [('x', 1)],
  'above': [('y', -1)],
  'below': [('y', 1)],
  'in front of': [('z', -1)],
  'behind': [('z', 1)],
  'on': [('y', -1), ('bears', 1)],
  'inside': [('bears', 1)],
}


def wrong_with(graph: scene_graph.SceneGraph) -> list[str]:
  """Contradictions, by brute force: the transitive closure of each order."""
  ids = [n.id for n in graph.nodes]
  found = [] if len(set(ids)) == len(ids) else ['ids']
  found += [f'{r} has a missing end' for r in graph.relations if not {r.subject, r.object} <= set(ids)]
  for node in graph.nodes:
    names = [a.name for a in (*node.appearance, *node.state)]
    if len(set(names)) < len(names):
      found.append(f'{node.id} has two values')
  for axis in ('x', 'y', 'z', 'bears'):
    before = np.zeros((len(ids), len(ids)), bool)
    for r in graph.relations:
      for one, sign in ORDERS.get(r.predicate, []):
        if one == axis:
          a, b = (ids.index(end) for end in ((r.subject, r.object) if sign < 0 else (r.object, r.subject)))
          before[a, b] = True
    for k in range(len(ids)):
      before |= before[:, k : k + 1] & before[k : k + 1]
    if before.diagonal().any():
      found.append(f'a cycle of {axis}')
  for r in graph.relations:
    places = [graph.node(end).place for end in (r.subject, r.object)]
    if None not in places and r.predicate in geometry.RELATIONS:
      boxes = [(c % 3, c // 3, c % 3 + 1, c // 3 + 1) for c in map(geometry.PLACES.index, places)]
      if r.predicate not in geometry.spatial_relations(*boxes):
        found.append(f'{r} contradicts {places}')
  return found


def test_the_check_of_these_tests_can_fail():
  nodes = tuple(scene_graph.Node(id=i, name='cup') for i in 'ab')
  graph = scene_graph.SceneGraph(nodes=nodes, relations=(scene_graph.Relation('a', 'left of', 'b'),))
  object.__setattr__(graph, 'relations', (*graph.relations, scene_graph.Relation('b', 'left of', 'a')))
  assert wrong_with(graph) == ['a cycle of x']


@pytest.mark.parametrize('vocabulary, seed', [(SHIPPED, 0), (SHAPES, 1)], ids=['shipped', 'shapes'])
def test_random_graphs_grow_without_contradiction(vocabulary, seed):
  lengths, relations = [], 0
  for index in range(COUNT // 2):
    graph = taxonomy.sample(vocabulary, seed=seed, index=index)
    most = 1 + index % 5
    parts = subgraphs.subgraphs(graph, seed=seed, index=index, max_pictures=most)
    assert not wrong_with(graph) and 1 <= len(parts) <= most
    assert parts[-1].holds(graph) and graph.holds(parts[-1])
    if most > 1 and graph.background:
      assert parts[0].background and (not parts[0].nodes or len(graph.nodes) == 0)
    for small, large in itertools.pairwise((scene_graph.SceneGraph(), *parts)):
      assert large.holds(small) and not small.holds(large)
      related = {r for r in graph.relations if {r.subject, r.object} <= set(large.ids)}
      assert set(large.relations) == related
    if most == 5:
      lengths.append(len(parts))
    relations += len(graph.relations)
  assert relations > COUNT / 4 and len(set(lengths)) == (5 if vocabulary is SHIPPED else 4)


def test_sampling_is_a_function_of_seed_and_index():
  a, b = ([taxonomy.sample(SHIPPED, seed=s, index=i) for i in range(50)] for s in (3, 3))
  assert a == b and a != [taxonomy.sample(SHIPPED, seed=4, index=i) for i in range(50)]
  cut = [subgraphs.subgraphs(g, seed=0, index=1) for g in a]
  assert cut == [subgraphs.subgraphs(g, seed=0, index=1) for g in a]
  assert cut != [subgraphs.subgraphs(g, seed=0, index=2) for g in a]


def test_sampled_graphs_go_round_through_json():
  for index in range(500):
    graph = taxonomy.sample(SHIPPED, seed=5, index=index)
    assert scene_graph.SceneGraph.from_dict(json.loads(json.dumps(graph.to_dict()))) == graph


def test_what_stands_on_something_comes_after_it():
  seen = 0
  for index in range(3000):
    graph = taxonomy.sample(SHIPPED, seed=6, index=index)
    parts = subgraphs.subgraphs(graph, seed=6, index=index)
    first = {id: min(n for n, part in enumerate(parts) if id in part.ids) for id in graph.ids}
    for r in graph.relations:
      if r.predicate in ('on', 'inside'):
        seen += 1
        assert first[r.object] <= first[r.subject]
  assert seen > 50


def test_alike_objects_are_added_together_and_groups_apart():
  rings = [scene_graph.Node(id=f'ring.{n}', name='ring') for n in range(3)]
  bars = [scene_graph.Node(id=f'bar.{n}', name='bar') for n in range(2)]
  graph = scene_graph.SceneGraph(nodes=(*rings, *bars))
  parts = subgraphs.subgraphs(graph, seed=0, index=0)
  assert len(parts) == 2 and len(parts[0].nodes) in (2, 3) and len({n.name for n in parts[0].nodes}) == 1


def test_an_empty_graph_and_no_pictures_are_refused():
  with pytest.raises(ValueError, match='An empty scene graph'):
    subgraphs.subgraphs(scene_graph.SceneGraph(), seed=0, index=0)
  with pytest.raises(ValueError, match='max_pictures=0'):
    subgraphs.subgraphs(taxonomy.sample(SHIPPED, seed=0, index=0), seed=0, index=0, max_pictures=0)


# --- the taxonomy's file ---


@pytest.mark.parametrize(
  'change, cause',
  [
    (lambda t: t.pop('objects'), "The taxonomy has no 'objects'"),
    (lambda t: t['attributes']['color'].update(kind='look'), "The attribute 'color' has the kind 'look'"),
    (lambda t: t['attributes']['color'].update(values=[]), "The attribute 'color' has no values"),
    (lambda t: t['attributes']['color'].update(values=['red', 'red']), 'has a value twice'),
    (lambda t: t['objects'][0].pop('category'), "The object 'ring' has no 'category'"),
    (lambda t: t['objects'][0]['attributes'].update(size=[]), "'ring': its attributes has an unknown key 'size'"),
    (lambda t: t['objects'].append(t['objects'][0]), "has the object 'ring' twice"),
    (lambda t: t['relations'][0].update(subjects=['furniture']), "'left of': subjects names 'furniture'"),
    (lambda t: t.update(backgrounds=[{'text': 'a room', 'categories': ['hat']}]), "The background 'a room'"),
    (lambda t: t.update(objects=[]), 'has no objects'),
  ],
)
def test_a_bad_taxonomy_is_refused_by_name(change, cause):
  made = copy.deepcopy(shapes.TAXONOMY)
  change(made)
  with pytest.raises(ValueError, match=re.escape(cause)):
    taxonomy.Taxonomy.from_dict(made)


# --- templates ---


def test_every_prompt_of_the_shapes_world_is_parsed_as_the_world_does():
  rows = [row for split in ('heldout', 'train') for row in prompt_space.prompts(split, per_task=400)]
  for prompt in {row['prompt'] for row in rows}:
    spec = prompt_parser.parse_template(prompt, known=shapes.SHAPES)
    assert spec == shapes.parse(prompt), prompt
    graph = prompt_parser.from_world(shapes, prompt)
    assert graph == prompt_parser.from_template(prompt, known=shapes.SHAPES) == scene_graph.from_spec(spec)
    assert len(graph.nodes) == sum(clause.count for clause in spec.include)
  assert prompt_parser.from_world(shapes, 'a photo of a cat') is None


def geneval_rows():
  """Rows by GenEval's rules, of every class."""
  an = lambda words: f'{"an" if words[0] in "aeiou" else "a"} {words}'
  names = sorted(prompt_parser.GENEVAL_NAMES)
  for i, (a, b) in enumerate(zip(names, names[7:] + names[:7], strict=True)):
    one, two = {'class': a, 'count': 1}, {'class': b, 'count': 1}
    color, other = prompt_parser.COLORS[i % 10], prompt_parser.COLORS[(i + 3) % 10]
    relation, count = geometry.RELATIONS[i % 4], 2 + i % 3
    many = f'{a}es' if a.endswith('s') else f'{a}s'
    yield dict(tag='single_object', include=[one]), an(a)
    yield dict(tag='two_object', include=[one, two]), f'{an(a)} and {an(b)}'
    counted = [{'class': a, 'count': count}], [{'class': a, 'count': count + 1}]
    yield dict(tag='counting', include=counted[0], exclude=counted[1]), f'{("two", "three", "four")[i % 3]} {many}'
    yield dict(tag='colors', include=[{**one, 'color': color}]), f'{an(color)} {a}'
    yield dict(tag='position', include=[two, {**one, 'position': [relation, 0]}]), f'{an(a)} {relation} {an(b)}'
    pair = [{**one, 'color': color}, {**two, 'color': other}]
    yield dict(tag='color_attr', include=pair), f'{an(color)} {a} and {an(other)} {b}'


def test_every_template_of_geneval_is_parsed():
  rows = list(geneval_rows())
  assert len(rows) == 480
  for row, words in rows:
    prompt = f'a photo of {words}'
    assert prompt_parser.parse_template(prompt) == trajectory_lib.PromptSpec.from_row(row), prompt


@pytest.mark.parametrize(
  'prompt',
  [
    'a red cup',
    'a photo of',
    'a photo of a',
    'a photo of a  cup',
    'a photo of a unicorn',
    'a photo of an cup',
    'a photo of two cup',
    'a photo of five cups',
    'a photo of a red cup and a bench',
    'a photo of a red cup left of a bench',
    'a photo of a cup near a bench',
    'a photo of a cup and a bench and a dog',
    '',
  ],
)
def test_other_texts_are_no_template(prompt):
  assert prompt_parser.from_template(prompt) is None


def test_relations_of_a_template_are_in_the_graph():
  graph = prompt_parser.from_template('a photo of a dog right of a teddy bear')
  assert [str(r) for r in graph.relations] == ['dog.1 right of teddy_bear.1']
  assert len(prompt_parser.from_template('a photo of four buses').nodes) == 4


# --- free text ---


class Fake:
  """A writer of fixed answers, which keeps the tasks."""

  def __init__(self, *answers):
    self.answers, self.tasks = list(answers), []

  def write(self, task, /):
    self.tasks.append(task)
    answer = self.answers.pop(0)
    return answer if isinstance(answer, str) else json.dumps(answer)


PROMPT = 'Two small white dogs sit on top of a wooden bench, and a man is holding an umbrella in a park.'
ANSWER = {
  'background': 'a park',
  'objects': [
    {'id': 'dog', 'name': 'dog', 'count': 2, 'appearance': {'color': 'white'}, 'state': {'posture': 'sitting'}},
    {'id': 'bench', 'name': 'wooden bench'},
    {'id': 'man', 'name': 'man'},
    {'id': 'umbrella', 'name': 'umbrella', 'count': 1},
  ],
  'relations': [
    {'subject': 'dog', 'predicate': 'on top of', 'object': 'bench', 'kind': 'spatial'},
    {'subject': 'man', 'predicate': 'holding', 'object': 'umbrella'},
  ],
}


@pytest.mark.parametrize('form', ['{}', '```json\n{}\n```', ' ```\n{}\n```\n'])
def test_free_text_by_a_writer(form):
  writer = Fake(form.replace('{}', json.dumps(ANSWER)))
  graph = prompt_parser.from_text(PROMPT, writer)
  assert graph.ids == ('dog.1', 'dog.2', 'bench', 'man', 'umbrella') and graph.background == 'a park'
  assert [str(r) for r in graph.relations] == ['dog.1 on bench', 'dog.2 on bench', 'man holding umbrella']
  (task,) = writer.tasks
  assert task.endswith(f'Description: {PROMPT}') and json.dumps(prompt_parser.SCHEMA) in task and 'left of' in task


@pytest.mark.parametrize(
  'change, cause',
  [
    (lambda a: a.pop('objects'), "has no 'objects'"),
    (lambda a: a.update(objects=[]), 'names no object'),
    (lambda a: a.update(objects='dog'), 'objects must be a list'),
    (lambda a: a.update(title='x'), "unknown key 'title'"),
    (lambda a: a['objects'][0].update(count=0), "Object 'dog': its count is 0"),
    (lambda a: a['objects'][0].update(count=True), "Object 'dog': its count is True"),
    (lambda a: a['objects'][0].update(count=99), 'from 1 to 12'),
    (lambda a: a['objects'][0].update(colour='red'), "Object 'dog' has an unknown key 'colour'"),
    (lambda a: a['objects'][1].update(id='dog'), "Two objects have the id 'dog'"),
    (lambda a: a['objects'][1].update(name='cat'), "Object 'bench': the description names no 'cat'"),
    (lambda a: a['objects'][0]['appearance'].update(posture='lying'), "'dog' has two values of posture"),
    (lambda a: a['relations'][0].update(object='couch'), "points to 'couch', and there is no such object"),
    (lambda a: a['relations'][0].update(kind='functional'), 'is spatial'),
    (
      lambda a: a['relations'].append({'subject': 'bench', 'predicate': 'above', 'object': 'dog'}),
      'comes before itself',
    ),
    (lambda a: a['relations'].append(a['relations'][0]), 'say the same twice'),
    (lambda a: a['relations'].append('dog on bench'), 'Relation number 2 must be a JSON object'),
  ],
)
def test_a_bad_answer_is_refused_by_name_and_asked_for_again(change, cause):
  bad = copy.deepcopy(ANSWER)
  change(bad)
  with pytest.raises(ValueError, match=re.escape(cause)):
    prompt_parser.read_answer(json.dumps(bad), prompt=PROMPT)
  writer = Fake(bad, ANSWER)
  assert len(prompt_parser.from_text(PROMPT, writer).nodes) == 5
  assert cause in writer.tasks[1] and 'rejected' in writer.tasks[1]


def test_a_writer_that_never_answers_is_an_error_with_every_reason():
  writer = Fake('Sure!', '{"objects": [', '{"objects": [], "objects": []}')
  with pytest.raises(writers.RejectedError, match='3 answers were rejected.*twice') as caught:
    prompt_parser.from_text(PROMPT, writer)
  assert len(caught.value.reasons) == 3 and 'no JSON' in caught.value.reasons[0]
  with pytest.raises(ValueError, match='tries=0'):
    prompt_parser.from_text(PROMPT, writer, tries=0)


def test_growth_of_subgraphs_is_an_operation():
  graph = taxonomy.sample(SHIPPED, seed=0, index=11)
  parts = subgraphs.subgraphs(graph, seed=0, index=0)
  for small, large in itertools.pairwise((scene_graph.SceneGraph(), *parts)):
    assert graph_operations.apply(graph_operations.growth(small, large), small) == large
