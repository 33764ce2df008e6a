"""Instructions, descriptions and inspections of scene graphs name what they are about; a writer's are checked."""

import dataclasses
import re

import numpy as np
import pytest

from pdgen.construction import (
  graph_errors,
  inspections,
  instructions,
  rewrites,
  subgraphs,
  taxonomy,
  wording,
  writers,
  written_instructions,
)
from pdgen.core import graph_operations, scene_graph, tags
from pdgen.core.scene_graph import Attribute, Node, Relation, SceneGraph
from pdgen.worlds import shapes

SHIPPED = taxonomy.load()
SHAPES = taxonomy.Taxonomy.from_dict(shapes.TAXONOMY)
EVEN = rewrites.OperationShares(refine=0.25, swap=0.25, remove=0.25)
RNG = lambda: np.random.default_rng(0)

BEAR = Node(
  id='bear.1',
  name='teddy bear',
  appearance=(Attribute('size', 'medium-sized'), Attribute('color', 'light brown'), Attribute('material', 'plush')),
)
CHAIR = Node(id='chair.1', name='chair', appearance=(Attribute('material', 'wooden'),))
ROOM = 'a simple indoor room scene with a wooden floor and a plain wall'
GRAPH = SceneGraph(nodes=(BEAR, CHAIR), relations=(Relation('bear.1', 'on', 'chair.1'),), background=ROOM)
SKATE = SceneGraph(
  nodes=(Node(id='bird.1', name='bird'), Node(id='skateboard.1', name='skateboard')),
  relations=(Relation('bird.1', 'below', 'skateboard.1'),),
)


def painted(count, *, vocabulary=SHIPPED, seed=0):
  for index in range(count):
    graph = taxonomy.sample(vocabulary, seed=seed, index=index)
    yield rewrites.painting(graph, vocabulary=vocabulary, seed=seed, index=index, shares=EVEN)


def test_the_papers_wording():
  adds = subgraphs.additions(GRAPH, [[()], [('chair.1',)], [('bear.1',)]])
  first, second, third = instructions.plans(graph_operations.steps(adds), seed=0, index=3)
  assert re.fullmatch(rf'(Set up|Begin with|Paint) {ROOM}\.', first.instruction)
  assert first.description.endswith(f' {ROOM}.')
  assert re.fullmatch(r'\w+ a wooden chair\.', second.instruction)
  assert third.instruction.split(' ', 1)[1] == 'a medium-sized, light brown plush teddy bear on the chair.'
  assert third.description.split(' ', 3)[3] == (
    f'{ROOM}, with a wooden chair, and now features a newly added medium-sized, light brown plush teddy bear. '
    'The teddy bear is on the chair.'
  )
  assert tags.plan_parts(third.plan) == (third.instruction, third.description)
  assert wording.prompt(GRAPH) == (
    f'A medium-sized, light brown plush teddy bear and a wooden chair in {ROOM}. The teddy bear is on the chair.'
  )


@pytest.mark.parametrize('vocabulary', [SHIPPED, SHAPES], ids=['shipped', 'shapes'])
def test_plans_name_what_is_there_and_what_was_changed(vocabulary):
  for index, painting in enumerate(painted(800, vocabulary=vocabulary)):
    for step, text in zip(painting.steps, instructions.plans(painting.steps, seed=0, index=index), strict=True):
      instruction, description = tags.plan_parts(text.plan)
      assert not wording.unnamed(description, step.after)
      assert all(wording.names(description, a.value) for n in step.after.nodes for a in n.attributes)
      assert step.after.background in description
      operation = step.operation
      ids = {n.id for n in getattr(operation, 'nodes', ())} | set(getattr(operation, 'ids', ()))
      for graph in (step.before, step.after):
        assert not wording.unnamed(instruction, graph.induced(ids & set(graph.ids)))
      for node in getattr(operation, 'nodes', ()):
        assert all(wording.names(instruction, a.value) for a in node.attributes)
      if operation.name == 'refine':
        old = step.before.node(operation.ids[0]).value(operation.attribute)
        assert all(wording.names(instruction, word) for word in (old, operation.value, operation.attribute))
      gone = {n.name for n in step.before.nodes} - {n.name for n in step.after.nodes}
      assert not any(wording.names(description, name) for name in gone)
      assert ('for now' in instruction) == bool(getattr(operation, 'temporary', ()))
      # What the template writes passes the checks of a writer's texts.
      assert written_instructions.check(text.plan, step) == (instruction, description)


def test_wording_is_a_function_of_seed_and_index():
  steps = [p.steps for p in painted(30)]
  made = [[instructions.plans(s, seed=seed, index=i) for i, s in enumerate(steps)] for seed in (0, 0, 1)]
  assert made[0] == made[1] != made[2]


def test_references_point_to_one_object():
  at = lambda id, color, place: Node(
    id=id, name='ring', appearance=(Attribute('color', color),), state=(Attribute('place', place),)
  )
  a, b, c = at('a', 'red', 'left'), at('b', 'red', 'top'), at('c', 'blue', 'right')
  graph = SceneGraph(nodes=(a, b, c, Node(id='d', name='bar')))
  assert [wording.the(ids, graph) for ids in (['d'], ['c'], ['a'], ['a', 'b'])] == [
    'the bar',
    'the blue ring',
    'the red ring at the left',
    'the two red rings',
  ]
  birds = SceneGraph(nodes=tuple(Node(id=i, name='bird') for i in 'abc'))
  assert wording.the('a', birds) == 'one of the three birds' and wording.the('abc', birds) == 'the three birds'


def test_relations_of_groups_are_one_sentence():
  nodes = (*(Node(id=i, name='bird') for i in 'ab'), Node(id='c', name='house'))
  both = SceneGraph(nodes=nodes, relations=(Relation('a', 'above', 'c'), Relation('b', 'above', 'c')))
  assert wording.statements(both) == ['The two birds are above the house.']
  assert wording.statements(dataclasses.replace(both, relations=both.relations[:1])) == [
    'One of the two birds is above the house.'
  ]
  riding = SceneGraph(nodes=nodes, relations=(Relation('c', 'riding', 'a'),))
  assert instructions.addition(['a'], riding) == 'Add a bird, so that the house is riding it.'
  assert instructions.addition(['c'], both) == 'Add a house below the two birds.'


# --- inspections ---


def drawn(kind, *, vocabulary=SHIPPED, count=200):
  rng = RNG()
  for index in range(count):
    graph = taxonomy.sample(vocabulary, seed=9, index=index)
    error = graph_errors.draw(kind, graph, vocabulary=vocabulary, rng=rng)
    if error is not None:
      yield error


def test_approvals_name_what_is_missing_extra_and_to_be_changed():
  for painting in painted(500):
    for step in painting.steps:
      text = inspections.approval(step.after, painting.graph, rng=RNG())
      assert tags.refine_instruction(text) is None and 'step is correct.' in text
      left = [n for n in painting.graph.nodes if n.id not in step.after.ids]
      extra = [n for n in step.after.nodes if n.id not in painting.graph.ids]
      assert ('The missing' in text) == bool(left or (painting.graph.background and not step.after.background))
      assert all(wording.names(text, n.name) for n in (*left, *extra))
      assert ('not mention in the prompt' in text) == bool(extra)
      changed = [n for n in step.after.nodes if n.id not in extra and n not in painting.graph.nodes and n not in extra]
      assert ('going to be changed' in text) == bool(changed)
    assert text.endswith(('Nothing is missing.', 'The painting is complete.'))


def test_the_papers_approval():
  text = inspections.approval(
    GRAPH.induced(['chair.1']), dataclasses.replace(GRAPH, nodes=(BEAR,), relations=()), rng=RNG()
  )
  assert text.split('correct. ')[1] == (
    'The chair though does not mention in the prompt, it does not conflict with the prompt. '
    'The missing medium-sized, light brown plush teddy bear is going to be added in the following steps.'
  )


def test_the_papers_conflict():
  above = Relation('bird.1', 'above', 'skateboard.1')
  error = graph_errors.GraphError(
    kind='wrong_place',
    right=SKATE,
    wrong=dataclasses.replace(SKATE, relations=(above,)),
    wanted=('bird.1',),
    seen=('bird.1',),
    relation=SKATE.relations[0],
    seen_relation=above,
  )
  whole = dataclasses.replace(SKATE, nodes=(*SKATE.nodes, Node(id='painting.1', name='painting')))
  texts = {inspections.conflict(error, whole, rng=np.random.default_rng(i)) for i in range(10)}
  inspection, plan = next(t for t in texts if t[0].startswith('The visual'))
  assert inspection == (
    'The visual conflict in the current image is that the bird is above the skateboard instead of below it, which '
    'contradicts the overall prompt. The missing painting is going to be added in the following steps, not the error '
    'here. The correct instruction is <refine>Remove the bird above the skateboard. Add a bird below the skateboard.'
    '</refine>'
  )
  assert tags.plan_parts(plan)[0] == tags.refine_instruction(inspection) and len(texts) == 2


def test_the_papers_misalignment():
  zebra, meter = Node(id='zebra.1', name='zebra'), Node(id='meter.1', name='parking meter')
  right = SceneGraph(nodes=(zebra, meter))
  wrong = dataclasses.replace(right, nodes=(*right.nodes, Node(id='zebra.2', name='zebra')))
  error = graph_errors.GraphError(
    kind='wrong_count', right=right, wrong=wrong, wanted=('zebra.1',), seen=('zebra.1', 'zebra.2')
  )
  texts = {inspections.misalignment(error, rng=np.random.default_rng(i)) for i in range(10)}
  assert (
    'This generation diverges from the prompt. The image contains two zebras instead of one. To correct the image, '
    '<refine>Remove one of the two zebras.</refine>'
  ) in texts
  assert (
    'The intermediate step is wrong. The number of zebras in the current step does not match the plan, because the '
    'image contains two zebras instead of one. The corrective instruction is: <refine>Remove one of the two zebras.'
    '</refine>'
  ) in texts


@pytest.mark.parametrize('vocabulary', [SHIPPED, SHAPES], ids=['shipped', 'shapes'])
@pytest.mark.parametrize('kind', graph_errors.KINDS)
def test_rejections_name_the_error_and_correct_it(kind, vocabulary):
  made, rng = 0, RNG()
  for error in drawn(kind, vocabulary=vocabulary):
    made += 1
    text = inspections.misalignment(error, rng=rng)
    refine = tags.refine_instruction(text)
    assert refine and 'correct.' not in text and error.kind == kind
    for ids, graph in ((error.wanted, error.right), (error.seen, error.wrong)):
      assert all(wording.names(text, graph.node(id).name) for id in ids)
    if kind == 'wrong_attribute':
      values = [g.node(error.wanted[0]).value(error.attribute) for g in (error.right, error.wrong)]
      assert all(wording.names(refine, value) for value in values) and values[0] != values[1]
    if kind == 'wrong_object':
      assert refine.startswith('Replace')
    if kind == 'missing':
      assert refine.startswith('Add') and not error.right == error.wrong
    if kind == 'extra':
      assert refine.startswith('Remove')
    surplus = len(error.seen) >= len(error.wanted)
    if kind in graph_errors.CONFLICTS and surplus:
      inspection, plan = inspections.conflict(error, error.right, rng=rng)
      assert tags.refine_instruction(inspection) == tags.plan_parts(plan)[0]
      assert not wording.unnamed(tags.plan_parts(plan)[1], error.right)
    else:
      with pytest.raises(ValueError, match='contradicts no prompt'):
        inspections.conflict(error, error.right, rng=rng)
  assert made > 100


@pytest.mark.parametrize(
  'parts, cause',
  [
    (dict(kind='typo'), "Unknown kind of error 'typo'"),
    (dict(kind='missing'), 'lacks what it is about'),
    (dict(kind='extra', wanted=('bear.1',)), 'lacks what it is about'),
    (dict(kind='wrong_place', wanted=('bear.1',), seen=('bear.1',)), 'lacks what it is about'),
    (dict(kind='missing', wanted=('cat.1',)), "about 'cat.1', which is not in its graph"),
  ],
)
def test_bad_errors_are_refused(parts, cause):
  with pytest.raises(ValueError, match=cause):
    graph_errors.GraphError(right=GRAPH, wrong=GRAPH, **parts)


# --- a writer's texts ---


class Fake:
  """A writer of fixed answers, which keeps the tasks."""

  def __init__(self, *answers):
    self.answers, self.tasks = list(answers), []

  def write(self, task, /):
    self.tasks.append(task)
    return self.answers.pop(0)


STEP = graph_operations.steps(subgraphs.additions(GRAPH, [[(), ('chair.1',)], [('bear.1',)]]))[1]
GOOD = (
  '<ins>Seat a medium-sized, light brown plush teddy bear on it.</ins><des>The image depicts a room with a wooden '
  'chair, and now features a newly added medium-sized teddy bear in light brown plush on the chair.</des>'
)


def test_a_writers_text_is_taken():
  writer = Fake(f' {GOOD}\n')
  (text,) = instructions.plans([STEP], seed=0, index=0, by=written_instructions.WriterInstructions(writer=writer))
  assert text.plan == GOOD and text.source == 'writer' and text.rejections == ()
  assert 'it adds objects' in writer.tasks[0] and '"teddy bear"' in writer.tasks[0]


REFINED = graph_operations.steps(
  [
    graph_operations.Add(nodes=(CHAIR.replaced('material', 'metal'),)),
    graph_operations.Refine(ids=('chair.1',), attribute='material', value='wooden'),
    graph_operations.Add(nodes=(BEAR,), temporary=('bear.1',)),
    graph_operations.Remove(ids=('bear.1',)),
    graph_operations.Add(nodes=tuple(Node(id=i, name='cup') for i in 'ab')),
  ]
)


@pytest.mark.parametrize(
  'answer, step, cause',
  [
    ('Of course!', STEP, 'Not a plan'),
    (GOOD.replace('</des>', ''), STEP, 'Not a plan'),
    (GOOD.replace('room', 'room <refine>'), STEP, 'The description holds a tag'),
    (GOOD.replace('room', 'room\n'), STEP, 'words in one line'),
    (GOOD.replace('chair', 'stool'), STEP, "does not name ['chair']"),
    (GOOD.replace('plush teddy bear on it', 'toy'), STEP, "The instruction does not name ['teddy bear']"),
    (GOOD.replace('wooden', 'metal'), STEP, "does not say that the chair is 'wooden'"),
    ('<ins>Change the chair.</ins><des>A wooden chair.</des>', REFINED[1], "does not say 'wooden', the new material"),
    ('<ins>Make it wooden.</ins><des>A wooden chair.</des>', REFINED[1], "does not name ['chair']"),
    (
      '<ins>Remove the teddy bear.</ins><des>A wooden chair, no teddy bear.</des>',
      REFINED[3],
      'not in the picture any',
    ),
    ('<ins>Add cups.</ins><des>A wooden chair and cups.</des>', REFINED[4], 'that there are two cups'),
  ],
)
def test_a_writers_bad_text_is_refused_with_the_reason(answer, step, cause):
  with pytest.raises(ValueError, match=re.escape(cause)):
    written_instructions.check(answer, step)
  writer = Fake(answer, answer)
  by = written_instructions.WriterInstructions(writer=writer, tries=2)
  text = by.write(step, rng=RNG())
  assert text.source == 'template' and len(text.rejections) == 2 and cause in text.rejections[0]
  assert cause in writer.tasks[1] and text.plan == instructions.Templates().write(step, rng=RNG()).plan
  with pytest.raises(writers.RejectedError, match=re.escape(cause)):
    dataclasses.replace(by, writer=Fake(answer, answer), fallback=False).write(step, rng=RNG())


def test_a_second_answer_is_taken_and_the_first_reason_kept():
  text = written_instructions.WriterInstructions(writer=Fake('no', GOOD)).write(STEP, rng=RNG())
  assert text.source == 'writer' and len(text.rejections) == 1 and 'Not a plan' in text.rejections[0]


def test_a_temporary_object_is_named_to_the_writer():
  writer = Fake('no')
  written_instructions.WriterInstructions(writer=writer, tries=1).write(REFINED[2], rng=RNG())
  assert 'only for now: bear.1' in writer.tasks[0]
  assert isinstance(written_instructions.INSTRUCTIONS['template'](), instructions.Templates)


def test_an_empty_graph_asks_for_nothing():
  with pytest.raises(ValueError, match='asks for nothing'):
    wording.prompt(scene_graph.SceneGraph())
