"""Paintings of scene graphs: operations give the next graph and end in the whole one; the shapes world shows each."""

import collections
import itertools

import numpy as np
import pytest

from pdgen import worlds
from pdgen.construction import graph_errors, rewrites, taxonomy
from pdgen.core import geometry, graph_operations, scene_graph
from pdgen.worlds import base, shapes
from pdgen.worlds.shapes import prompt_space, renderer, scenes, stories

SHIPPED = taxonomy.load()
SHAPES = taxonomy.Taxonomy.from_dict(shapes.TAXONOMY)
EVEN = rewrites.OperationShares(refine=0.25, swap=0.25, remove=0.25)
STORIES = 300


def painted(count, *, vocabulary=SHIPPED, shares=EVEN, seed=0, **more):
  for index in range(count):
    graph = taxonomy.sample(vocabulary, seed=seed, index=index)
    yield rewrites.painting(graph, vocabulary=vocabulary, seed=seed, index=index, shares=shares, **more)


def same(a, b):
  return a.holds(b) and b.holds(a)


@pytest.mark.parametrize('vocabulary', [SHIPPED, SHAPES], ids=['shipped', 'shapes'])
def test_operations_lead_to_the_whole_graph(vocabulary):
  for painting in painted(1500, vocabulary=vocabulary):
    graph, names = scene_graph.SceneGraph(), collections.Counter()
    for step in painting.steps:
      assert step.before == graph
      graph = graph_operations.apply(step.operation, graph)
      assert step.after == graph and graph != step.before
      names[step.operation.name] += 1
    assert same(graph, painting.graph) and len(painting.steps) <= 5
    assert [n for n in ('refine', 'swap', 'remove') if names[n]] == [n for n in [painting.detour] if n]
    assert all(names[n] == 1 for n in rewrites.DETOURS if names[n])


def test_what_a_detour_changes_was_temporary():
  for painting in painted(1000):
    temporary = {id for s in painting.steps for id in getattr(s.operation, 'temporary', ())}
    undone = {id for s in painting.steps for id in getattr(s.operation, 'ids', ())}
    assert temporary == undone and bool(temporary) == bool(painting.detour)
    for step in painting.steps:
      if step.operation.name == 'swap':
        (old,), (new,) = step.operation.ids, step.operation.nodes
        assert old not in painting.graph.ids and new.id in painting.graph.ids
        assert step.before.node(old).name != new.name


def test_relations_come_as_soon_as_both_objects_are_there():
  for painting in painted(1000):
    whole = painting.graph
    for step in painting.steps:
      related = {r.fact() for r in whole.relations if {r.subject, r.object} <= set(step.after.ids)}
      extra = [r for r in step.after.relations if r.fact() not in related]
      assert related <= {r.fact() for r in step.after.relations}
      assert all(r.kind == 'spatial' and not {r.subject, r.object} <= set(whole.ids) for r in extra)


def test_shares_are_met():
  shares = rewrites.OperationShares(refine=0.2, swap=0.1, remove=0.3)
  found = collections.Counter(p.detour for p in painted(3000, shares=shares))
  # Three standard errors, and up to a tenth of the graphs has nothing to refine.
  for name in rewrites.DETOURS:
    share = getattr(shares, name)
    assert 0.85 * share - 0.015 < found[name] / 3000 < share + 0.025, (name, found)
  assert shares.add == pytest.approx(0.4) and set(found) == {None, *rewrites.DETOURS}
  assert {p.detour for p in painted(200, shares=rewrites.OperationShares(refine=0, swap=0, remove=0))} == {None}
  assert {p.detour for p in painted(200, shares=rewrites.OperationShares(refine=0, swap=0, remove=1))} == {'remove'}


@pytest.mark.parametrize('shares', [(0.5, 0.5, 0.5), (-0.1, 0, 0), (float('nan'), 0, 0)])
def test_shares_that_are_none_are_refused(shares):
  with pytest.raises(ValueError, match='shares are at least 0'):
    rewrites.OperationShares(refine=shares[0], swap=shares[1], remove=shares[2])


@pytest.mark.parametrize('most', range(1, 6))
def test_the_cap_on_pictures_holds(most):
  assert all(len(p.steps) <= most for p in painted(300, max_pictures=most))


def test_a_painting_is_a_function_of_seed_and_index():
  assert list(painted(60)) == list(painted(60)) != list(painted(60, seed=1))


def test_nothing_that_the_prompt_states_is_painted_otherwise():
  refined = 0
  for index in range(600):
    graph = taxonomy.sample(SHIPPED, seed=2, index=index)
    painting = rewrites.painting(graph, vocabulary=SHIPPED, seed=0, index=index, shares=EVEN, asked=graph)
    assert painting.detour != 'refine'
    bare = scene_graph.SceneGraph(nodes=tuple(scene_graph.Node(id=n.id, name=n.name) for n in graph.nodes))
    painting = rewrites.painting(graph, vocabulary=SHIPPED, seed=0, index=index, shares=EVEN, asked=bare)
    refined += painting.detour == 'refine'
  assert refined > 60


def test_an_unknown_detour_is_refused():
  graph = taxonomy.sample(SHIPPED, seed=0, index=0)
  with pytest.raises(ValueError, match="Unknown detour 'move'"):
    rewrites.take('move', graph, vocabulary=SHIPPED, rng=np.random.default_rng(0))


# --- the shapes world ---


def agrees(graph, picture):
  """Whether the detector sees the objects and relations of a graph, and nothing else."""
  seen = {(d.name, d.color, scenes.PLACES[d.cell]): d.box for d in shapes.detect(picture)}
  wanted = {n.id: (n.name, n.value('color'), n.place) for n in graph.nodes}
  return sorted(map(str, seen)) == sorted(map(str, wanted.values())) and all(
    r.predicate in geometry.spatial_relations(seen[wanted[r.subject]], seen[wanted[r.object]]) for r in graph.relations
  )


def test_pictures_of_every_step_of_the_worlds_stories_agree_with_their_graphs():
  rng, related = np.random.default_rng(0), 0
  for index in range(STORIES):
    detour = (*stories.DETOURS, None)[index % 4]
    story = stories.tell(rng, split=('train', 'heldout')[index % 2], detour=detour)
    graph = scene_graph.SceneGraph()
    for beat in story.beats:
      graph = graph_operations.apply(beat.operation, graph)
      assert beat.graph == graph and agrees(graph, renderer.render(beat.after))
    assert {b.operation.name for b in story.beats} - {'add'} == ({detour} if detour else set())
    related += bool(graph.relations)
    assert graph.holds(stories.asked(story.metadata)) and set(graph.ids) == set(stories.asked(story.metadata).ids)
    assert bool(graph.relations) == (story.metadata['tag'] == 'position')
  assert related > 20


def test_pictures_of_sampled_paintings_agree_with_their_graphs():
  world, related = worlds.require(shapes, base.GraphWorld), 0
  for painting in painted(STORIES, vocabulary=SHAPES):
    for step in painting.steps:
      picture = world.render_graph(step.after)
      assert agrees(step.after, picture) and world.shows(picture, world.contents(step.after))
      related += len(step.after.relations)
  assert related > STORIES


def test_errors_are_seen_and_only_they():
  rng, found = np.random.default_rng(1), collections.Counter()
  kinds = [kind for kind in graph_errors.KINDS if kind != 'malformed']  # No graph says how an object is malformed.
  for index, kind in itertools.product(range(60), kinds):
    graph = taxonomy.sample(SHAPES, seed=3, index=index)
    error = graph_errors.draw(kind, graph, vocabulary=SHAPES, rng=rng)
    if error is None:
      continue
    found[kind] += 1
    picture = shapes.render_graph(error.wrong)
    assert agrees(error.wrong, picture) and not shapes.shows(picture, shapes.contents(graph))
    before, after = (set(g.nodes) for g in (graph, error.wrong))
    assert len(before - after) <= 1 and len(after - before) <= 1
  assert all(found[kind] > 50 for kind in kinds)


@pytest.mark.parametrize(
  'node, cause',
  [
    (scene_graph.Node(id='cat.1', name='cat'), "Object 'cat.1' is no shape of the world"),
    (scene_graph.Node(id='ring.1', name='ring'), "Object 'ring.1' is no shape of the world with a colour and a place"),
    (scenes.node('bar.1', shape='bar', color='red', cell=3), "Objects 'ring.9' and 'bar.1' are both at the left"),
  ],
)
def test_what_the_world_cannot_show_is_refused_by_name(node, cause):
  ring = scenes.node('ring.9', shape='ring', color='blue', cell=3)
  with pytest.raises(ValueError, match=cause):
    shapes.render_graph(scene_graph.SceneGraph(nodes=(ring, node)))
  with pytest.raises(ValueError, match='one background'):
    shapes.render_graph(scene_graph.SceneGraph(nodes=(ring,), background='a room'))


def test_the_graph_of_a_prompt_leaves_open_what_it_does():
  row = prompt_space.prompts('train', per_task=1)[4]
  graph = stories.asked(row)
  assert row['tag'] == 'position' and all(not n.attributes for n in graph.nodes) and len(graph.relations) == 1
