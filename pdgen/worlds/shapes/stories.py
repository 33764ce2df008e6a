"""Error-free painting processes: from a prompt to a sequence of scene edits that ends in a scene of the prompt.

A **story** is the sequence of **beats** for one prompt. It is made from scene graphs (paper): the graph of the prompt,
filled in with colours and places, is painted by operations (`core.graph_operations`), one a beat, and the graph after
the operation decides the scene. A beat becomes one step of a trajectory. Most beats add one object, or two of one shape
and colour. A **detour** changes a colour (refine), replaces an object (swap) or removes one (remove): the three
rewrites of the paper.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pdgen.core import geometry, graph_operations, scene_graph
from pdgen.core import trajectory as trajectory_lib
from pdgen.worlds.shapes import language, prompt_space, scenes

MAX_BEATS = 5
MAX_SHOWN = 12  # objects, summed over the pictures of a story: an inspection describes each, and a row must hold all
DETOURS = ('refine', 'swap', 'remove')
# Share of each task among the training prompts. A single object needs little. Reading colours from the prompt is
# learned last: only `colors` and `color_attr` ask for it, all other prompts leave the colours open.
TASK_SHARES = (0.06, 0.13, 0.19, 0.14, 0.22, 0.26)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beat:
  """One scene edit of a story: an operation on its scene graph."""

  operation: graph_operations.Operation
  graph: scene_graph.SceneGraph  # scene graph after the operation
  instruction: str  # what the plan says to paint
  before: scenes.Scene  # scene before the edit
  after: scenes.Scene  # scene after the edit, that of `graph`
  new: scenes.Scene = ()  # objects of `after` that the operation adds
  missing: tuple[tuple[str, int], ...] = ()  # (words, number) of what the prompt still asks for afterwards
  extra: scenes.Object | None = None  # object that the prompt does not ask for, to be mentioned by the inspection


@dataclasses.dataclass(frozen=True, kw_only=True)
class Story:
  """The beats that lead from an empty page to a scene that satisfies the prompt."""

  metadata: prompt_space.Metadata  # the prompt, in GenEval's format
  beats: tuple[Beat, ...]  # scene edits, in order
  detour: str | None = None  # one of DETOURS, or None

  @property
  def prompt(self) -> str:
    return self.metadata['prompt']

  @property
  def scene(self) -> scenes.Scene:
    return self.beats[-1].after

  @property
  def graph(self) -> scene_graph.SceneGraph:
    """The whole scene graph, with what the prompt leaves open filled in."""
    return self.beats[-1].graph


def tell(
  rng: np.random.Generator, *, split: str, tasks: tuple[str, ...] = prompt_space.TASKS, detour: str | None = None
) -> Story:
  """A random story for a prompt of the split. In training none of its scenes contains a held-out pair.

  Args:
    rng: draws the prompt, the layout and the order of painting.
    split: `heldout` or `train`.
    tasks: the tasks to draw the prompt from, in the proportions of TASK_SHARES.
    detour: one of DETOURS, or None.
  """
  if detour == 'refine':
    tasks = tuple(t for t in tasks if t in _REFINABLE)
  shares = np.cumsum([TASK_SHARES[prompt_space.TASKS.index(t)] for t in tasks])
  task = tasks[int(np.searchsorted(shares, rng.random() * shares[-1], side='right'))]
  pool = prompt_space.task_prompts(split, task)
  while True:
    story = _tell(pool[int(rng.integers(len(pool)))], rng=rng, detour=detour)
    if story is None or (split == 'train' and any(prompt_space.holds_held_out(b.after) for b in story.beats)):
      continue
    return story


_REFINABLE = ('two_object', 'counting', 'position')  # several objects, whose colours the prompt leaves open


def choose(rng: np.random.Generator, options):
  """A uniform choice from a sequence."""
  return options[int(rng.integers(len(options)))]


def free_cells(scene: scenes.Scene) -> list[int]:
  """The grid cells without an object of the scene."""
  taken = {o.cell for o in scene}
  return [c for c in range(scenes.CELLS) if c not in taken]


def asked(metadata: prompt_space.Metadata) -> scene_graph.SceneGraph:
  """The scene graph of a prompt: colours and places that it leaves open are open."""
  return _asked(trajectory_lib.PromptSpec.from_row(metadata))


_asked = functools.lru_cache(maxsize=8192)(scene_graph.from_spec)


class _Edit(NamedTuple):
  """One operation of a story, before it is applied."""

  operation: graph_operations.Operation  # without relations
  instruction: str
  extra: scenes.Object | None = None  # object that the prompt does not ask for


@dataclasses.dataclass(frozen=True)
class _Filled:
  """A scene graph that satisfies a prompt, in the groups that are painted together."""

  groups: tuple[tuple[scene_graph.Node, ...], ...]  # in the order of painting; of one shape and colour each
  relations: tuple[scene_graph.Relation, ...]
  dx: int  # shift of all objects, in pixels
  dy: int

  def scene(self, nodes: Iterable[scene_graph.Node]) -> scenes.Scene:
    return scenes.of_graph(scene_graph.SceneGraph(nodes=tuple(nodes)), dx=self.dx, dy=self.dy)


def _tell(metadata: prompt_space.Metadata, *, rng: np.random.Generator, detour: str | None) -> Story | None:
  filled = _filled(metadata, rng=rng, single=detour == 'swap')
  edits = list({None: _plain, 'refine': _with_refine, 'swap': _with_swap, 'remove': _with_remove}[detour](filled, rng))
  if not 0 < len(edits) <= MAX_BEATS:
    return None
  beats = list(_beats(edits, filled))
  if sum(len(beat.after) for beat in beats) > MAX_SHOWN:
    return None
  return Story(metadata=metadata, beats=tuple(_annotated(metadata, beats)), detour=detour)


def _beats(edits: Iterable[_Edit], filled: _Filled) -> Iterator[Beat]:
  """Applies the operations in turn. A relation enters with the later one of its two objects."""
  graph, before = scene_graph.SceneGraph(), ()
  for edit in edits:
    operation, new = edit.operation, ()
    if isinstance(operation, graph_operations.Add | graph_operations.Swap):
      ids = {n.id for n in operation.nodes}
      there = ids.union(graph.ids)
      related = tuple(r for r in filled.relations if {r.subject, r.object} <= there and ids & {r.subject, r.object})
      operation, new = dataclasses.replace(operation, relations=related), filled.scene(operation.nodes)
    graph = graph_operations.apply(operation, graph)
    after = scenes.of_graph(graph, dx=filled.dx, dy=filled.dy)
    yield Beat(
      operation=operation,
      graph=graph,
      instruction=edit.instruction,
      before=before,
      after=after,
      new=new,
      extra=edit.extra,
    )
    before = after


# --- what a prompt leaves open: colours, places, order, objects a beat ---


def _filled(metadata: prompt_space.Metadata, *, rng: np.random.Generator, single: bool) -> _Filled:
  """Fills in the scene graph of a prompt with colours and places.

  Args:
    metadata: the prompt.
    rng: draws colours, cells, jitter and the sizes of the groups.
    single: at least one group has a single object.
  """
  dx, dy = (int(v) for v in rng.integers(scenes.JITTER + 1, size=2))
  graph, groups = asked(metadata), []
  nodes = graph.nodes
  if metadata['tag'] == 'counting':
    sizes = choose(rng, _SPLITS_SINGLE[len(nodes)] if single else _SPLITS[len(nodes)])
    alike = rng.random() < 0.8
    color = _color(rng)
    cells = choose(rng, LAYOUTS[len(nodes)])
    for size in sizes:
      color = color if alike else _color(rng)
      groups.append(tuple(_fill(n, color, c) for n, c in zip(nodes[:size], cells, strict=False)))
      nodes, cells = nodes[size:], cells[size:]
    return _Filled(tuple(groups), graph.relations, dx, dy)
  if len(nodes) == 1:
    cells = (int(rng.integers(scenes.CELLS)),)
  elif graph.relations:
    # The prompt names the second object first: `{second} left of {first}`.
    nodes = nodes[::-1]
    cells = choose(rng, PLACEMENTS[graph.relations[0].predicate])
  else:
    cells = choose(rng, LAYOUTS[2])
    cells = cells if rng.random() < 0.5 else cells[::-1]
  groups = [(_fill(n, n.value(scene_graph.COLOR) or _color(rng), c),) for n, c in zip(nodes, cells, strict=True)]
  return _Filled(tuple(groups), graph.relations, dx, dy)


def _fill(node: scene_graph.Node, color: str, cell: int) -> scene_graph.Node:
  return scenes.node(node.id, shape=node.name, color=color, cell=cell)


# Cells of several objects: opposite one another, in a line along a side, in a triangle, in the corners. Never in the
# center, which is painted worst. With cells drawn at random, position was 0 of 10 (docs/experiments.md#layouts).
LAYOUTS = {
  2: ((3, 5), (1, 7), (0, 8), (2, 6)),
  3: ((0, 2, 7), (6, 8, 1), (0, 6, 5), (2, 8, 3), (0, 1, 2), (6, 7, 8)),
  4: ((0, 2, 6, 8), (1, 3, 5, 7)),
}
_SPLITS = {2: ((2,), (1, 1)), 3: ((2, 1), (1, 2)) * 3 + ((1, 1, 1),), 4: ((2, 2),) * 4 + ((1, 1, 2), (2, 1, 1))}
_SPLITS_SINGLE = {2: ((1, 1),), 3: ((2, 1), (1, 2)), 4: ((1, 2, 1), (2, 1, 1))}


def _color(rng: np.random.Generator) -> str:
  return choose(rng, tuple(scenes.COLORS))


def _placements(relation: str) -> tuple[tuple[int, int], ...]:
  """(cell of the object, cell of the target): on opposite sides of the picture, mostly half-way along them.

  Diagonals are left out: they satisfy two relations, by a margin of one pixel.
  """
  left, right = (0, 3, 3, 3, 6), (2, 5, 5, 5, 8)
  top, bottom = (0, 1, 1, 1, 2), (6, 7, 7, 7, 8)
  sides = {'left of': (left, right), 'right of': (right, left), 'above': (top, bottom), 'below': (bottom, top)}
  return tuple(zip(*sides[relation], strict=True))


PLACEMENTS = {relation: _placements(relation) for relation in geometry.RELATIONS}


# --- operations ---


def _plain(filled: _Filled, rng: np.random.Generator) -> Iterator[_Edit]:
  return (_add(filled, group, rng) for group in filled.groups)


def _add(filled: _Filled, group: tuple[scene_graph.Node, ...], rng: np.random.Generator) -> _Edit:
  return _Edit(graph_operations.Add(nodes=group), language.add(filled.scene(group), rng=rng))


def _with_refine(filled: _Filled, rng: np.random.Generator) -> Iterator[_Edit]:
  """Paints one group in another colour first and recolours it before the last group follows. Needs two groups."""
  groups = filled.groups
  if len(groups) < 2:
    return
  at = int(rng.integers(len(groups) - 1))
  color = filled.scene(groups[at])[0].color
  other = choose(rng, [c for c in scenes.COLORS if c != color])
  first = tuple(n.replaced(scene_graph.COLOR, other) for n in groups[at])
  for group in (*groups[:at], first):
    yield _add(filled, group, rng)
  change = graph_operations.Refine(ids=tuple(n.id for n in first), attribute=scene_graph.COLOR, value=color)
  yield _Edit(change, language.refine(filled.scene(first), color, rng=rng))
  for group in groups[at + 1 :]:
    yield _add(filled, group, rng)


def _with_swap(filled: _Filled, rng: np.random.Generator) -> Iterator[_Edit]:
  """Paints another shape in the cell of an object of the prompt and replaces it later."""
  at = choose(rng, [i for i, group in enumerate(filled.groups) if len(group) == 1])
  start = int(rng.integers(at + 1))
  (target,) = filled.scene(filled.groups[at])
  extra = _extra(filled, target.cell, rng)
  for i, group in enumerate(filled.groups):
    if i == start:
      yield _add_extra(filled, extra, rng)
    if i == at:
      swap = graph_operations.Swap(ids=(extra.id,), nodes=group)
      yield _Edit(swap, language.swap(filled.scene((extra,)), (target,), rng=rng))
    else:
      yield _add(filled, group, rng)


def _with_remove(filled: _Filled, rng: np.random.Generator) -> Iterator[_Edit]:
  """Paints an object that the prompt does not ask for and removes it later."""
  groups = filled.groups
  start = int(rng.integers(len(groups)))
  end = int(rng.integers(start + 1, len(groups) + 1))
  extra = _extra(filled, choose(rng, free_cells(filled.scene(sum(groups, ())))), rng)
  for i in range(len(groups) + 1):
    if i == start:
      yield _add_extra(filled, extra, rng)
    if i == end:
      yield _Edit(graph_operations.Remove(ids=(extra.id,)), language.remove(filled.scene((extra,)), rng=rng))
    if i < len(groups):
      yield _add(filled, groups[i], rng)


def _add_extra(filled: _Filled, extra: scene_graph.Node, rng: np.random.Generator) -> _Edit:
  scene = filled.scene((extra,))
  add = graph_operations.Add(nodes=(extra,), temporary=(extra.id,))
  return _Edit(add, language.add(scene, rng=rng, extra=True), extra=scene[0])


def _extra(filled: _Filled, cell: int, rng: np.random.Generator) -> scene_graph.Node:
  used = {n.name for group in filled.groups for n in group}
  shape = choose(rng, [s for s in scenes.SHAPES if s not in used])
  return scenes.node(scene_graph.made_id(shape, 1), shape=shape, color=_color(rng), cell=cell)


def _annotated(metadata: prompt_space.Metadata, beats: list[Beat]) -> Iterator[Beat]:
  """Fills in `missing`, and `extra` again while such an object is present and nothing is missing."""
  wanted = {i['class'] for i in metadata['include']}
  for beat in beats:
    lacking, extra = missing(metadata, beat.after), beat.extra
    if extra is None and not lacking:
      extra = next((o for o in beat.after if o.shape not in wanted), None)
    yield dataclasses.replace(beat, missing=lacking, extra=extra)


def missing(metadata: prompt_space.Metadata, scene: scenes.Scene) -> tuple[tuple[str, int], ...]:
  """(words, number) of what the prompt still asks for after a scene."""
  found = []
  for item in metadata['include']:
    count = item['count'] - sum(o.shape == item['class'] for o in scene)
    if count > 0:
      found.append((f'{item["color"]} {item["class"]}' if 'color' in item else item['class'], count))
  return tuple(found)
