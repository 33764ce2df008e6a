"""Error-free painting processes: from a prompt to a sequence of scene edits that ends in a scene of the prompt.

A **beat** is one edit: its instruction, the scene before and the scene after it. It becomes one step of a trajectory. A
**story** is the sequence of beats for one prompt (the paper's growing sub-graphs of a scene graph). Most beats add one
object, or two of one shape and colour. A **detour** changes a colour (refine), replaces an object (swap) or removes one
(remove), the three rewrites of the paper.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from pdgen.core import geometry
from pdgen.worlds.shapes import language, prompt_space, scenes

MAX_BEATS = 5
MAX_SHOWN = 12  # objects, summed over the pictures of a story: an inspection describes each, and a row must hold all
DETOURS = ('refine', 'swap', 'remove')
# Share of each task among the training prompts. A single object needs little. Reading colours from the prompt is
# learned last: only `colors` and `color_attr` ask for it, all other prompts leave the colours open.
TASK_SHARES = (0.06, 0.13, 0.19, 0.14, 0.22, 0.26)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beat:
  """One scene edit of a story."""

  instruction: str  # what the plan says to paint
  before: scenes.Scene  # scene before the edit
  after: scenes.Scene  # scene after the edit
  new: scenes.Scene = ()  # objects of `after` that the instruction adds
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


def _tell(metadata: prompt_space.Metadata, *, rng: np.random.Generator, detour: str | None) -> Story | None:
  chunks = _chunks(metadata, rng=rng, single=detour == 'swap')
  if detour is None:
    beats = list(_plain(chunks, rng=rng))
  elif detour == 'refine':
    beats = list(_with_refine(chunks, rng=rng))
  elif detour == 'swap':
    beats = list(_with_swap(chunks, rng=rng))
  else:
    beats = list(_with_remove(chunks, rng=rng))
  if not 0 < len(beats) <= MAX_BEATS or sum(len(beat.after) for beat in beats) > MAX_SHOWN:
    return None
  return Story(metadata=metadata, beats=tuple(_annotated(metadata, beats)), detour=detour)


# --- what a prompt leaves open: colours, places, order, objects a beat ---


def _chunks(metadata: prompt_space.Metadata, *, rng: np.random.Generator, single: bool) -> list[scenes.Scene]:
  """Draws a scene that satisfies a prompt, as groups of objects that are painted together, in the order of the prompt.

  Args:
    metadata: the prompt.
    rng: draws colours, cells, jitter and the sizes of the groups.
    single: at least one group has a single object.

  Returns: the groups, objects of one shape and colour each.
  """
  dx, dy = (int(v) for v in rng.integers(scenes.JITTER + 1, size=2))
  include = metadata['include']
  if metadata['tag'] == 'counting':
    shape, count = include[0]['class'], include[0]['count']
    sizes = choose(rng, _SPLITS_SINGLE[count] if single else _SPLITS[count])
    alike = rng.random() < 0.8
    color = _color(rng)
    cells = choose(rng, LAYOUTS[count])
    chunks = []
    for size in sizes:
      color = color if alike else _color(rng)
      taken, cells = cells[:size], cells[size:]
      chunks.append(tuple(scenes.Object(shape, color, c, dx, dy) for c in taken))
    return chunks
  if len(include) == 1:
    cells = (int(rng.integers(scenes.CELLS)),)
  elif 'position' in include[1]:
    # The prompt names the second object first: `{second} left of {first}`.
    include = include[::-1]
    cells = choose(rng, PLACEMENTS[include[0]['position'][0]])
  else:
    cells = choose(rng, LAYOUTS[2])
    cells = cells if rng.random() < 0.5 else cells[::-1]
  return [
    (scenes.Object(i['class'], i.get('color') or _color(rng), c, dx, dy),) for i, c in zip(include, cells, strict=True)
  ]


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


# --- beats ---


def _plain(chunks: list[scenes.Scene], *, rng: np.random.Generator, before: scenes.Scene = ()) -> Iterator[Beat]:
  for chunk in chunks:
    after = before + chunk
    yield Beat(instruction=language.add(chunk, rng=rng), before=before, after=after, new=chunk)
    before = after


def _with_refine(chunks: list[scenes.Scene], *, rng: np.random.Generator) -> Iterator[Beat]:
  """Paints one group in another colour first and recolours it before the last group follows. Needs two groups."""
  if len(chunks) < 2:
    return
  at = int(rng.integers(len(chunks) - 1))
  final = chunks[at]
  color = _other(rng, final[0].color)
  first = tuple(dataclasses.replace(o, color=color) for o in final)
  beats = list(_plain([*chunks[:at], first], rng=rng))
  yield from beats
  before = beats[-1].after
  after = tuple(final[first.index(o)] if o in first else o for o in before)
  yield Beat(instruction=language.refine(first, final[0].color, rng=rng), before=before, after=after)
  yield from _plain(chunks[at + 1 :], rng=rng, before=after)


def _with_swap(chunks: list[scenes.Scene], *, rng: np.random.Generator) -> Iterator[Beat]:
  """Paints another shape in the cell of an object of the prompt and replaces it later."""
  at = choose(rng, [i for i, chunk in enumerate(chunks) if len(chunk) == 1])
  start = int(rng.integers(at + 1))
  target = chunks[at][0]
  extra = _extra(chunks, target.cell, rng=rng)
  scene: scenes.Scene = ()
  for i, chunk in enumerate(chunks):
    if i == start:
      yield _add_extra(scene, extra, rng=rng)
      scene = (*scene, extra)
    if i == at:
      after = tuple(o for o in scene if o != extra) + chunk
      yield Beat(instruction=language.swap((extra,), chunk, rng=rng), before=scene, after=after, new=chunk)
    else:
      after = scene + chunk
      yield Beat(instruction=language.add(chunk, rng=rng), before=scene, after=after, new=chunk)
    scene = after


def _with_remove(chunks: list[scenes.Scene], *, rng: np.random.Generator) -> Iterator[Beat]:
  """Paints an object that the prompt does not ask for and removes it later."""
  start = int(rng.integers(len(chunks)))
  end = int(rng.integers(start + 1, len(chunks) + 1))
  extra = _extra(chunks, choose(rng, free_cells(sum(chunks, ()))), rng=rng)
  scene: scenes.Scene = ()
  for i in range(len(chunks) + 1):
    if i == start:
      yield _add_extra(scene, extra, rng=rng)
      scene = (*scene, extra)
    if i == end:
      after = tuple(o for o in scene if o != extra)
      yield Beat(instruction=language.remove((extra,), rng=rng), before=scene, after=after)
      scene = after
    if i < len(chunks):
      yield from _plain([chunks[i]], rng=rng, before=scene)
      scene += chunks[i]


def _add_extra(before: scenes.Scene, extra: scenes.Object, *, rng: np.random.Generator) -> Beat:
  instruction = language.add((extra,), rng=rng, extra=True)
  return Beat(instruction=instruction, before=before, after=(*before, extra), new=(extra,), extra=extra)


def _extra(chunks: list[scenes.Scene], cell: int, *, rng: np.random.Generator) -> scenes.Object:
  used = {o.shape for chunk in chunks for o in chunk}
  shape = choose(rng, [s for s in scenes.SHAPES if s not in used])
  return scenes.Object(shape, _color(rng), cell, chunks[0][0].dx, chunks[0][0].dy)


def _other(rng: np.random.Generator, color: str) -> str:
  return choose(rng, [c for c in scenes.COLORS if c != color])


def _annotated(metadata: prompt_space.Metadata, beats: list[Beat]) -> Iterator[Beat]:
  """Fills in `missing`, and `extra` again while such an object is present and nothing is missing."""
  wanted = {i['class'] for i in metadata['include']}
  for beat in beats:
    missing = []
    for item in metadata['include']:
      count = item['count'] - sum(o.shape == item['class'] for o in beat.after)
      if count > 0:
        missing.append((f'{item["color"]} {item["class"]}' if 'color' in item else item['class'], count))
    extra = beat.extra
    if extra is None and not missing:
      extra = next((o for o in beat.after if o.shape not in wanted), None)
    yield dataclasses.replace(beat, missing=tuple(missing), extra=extra)
