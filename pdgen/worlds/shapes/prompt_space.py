"""Prompts of the six GenEval tasks over the world's shapes, in GenEval's metadata format, and the held-out split.

A **combination** is what a prompt asks to combine. Held-out combinations are chosen by hash, and no training prompt
asks for one. Where there are enough of them, no training picture of the world, right or wrong, shows one either; a
draft that a model paints itself for training may.

| task | combination | all | held out | held out of |
|---|---|---|---|---|
| single_object | the shape; nothing is held out, only the noise is new | 6 | 0 | |
| two_object | two shapes | 15 | 3 | prompts of the task |
| counting | shape x count (2 to 4) | 18 | 4 | prompts of the task |
| colors | colour x shape | 60 | 12 | prompts of the task |
| position | shape, relation, shape; of each pair of shapes one of the four | 60 | 15 | prompts of the task |
| color_attr | (colour, shape), (colour, shape) | 1350 | a fifth | prompts and all scenes |

Pairs kept out of every scene taught that those never meet: position .44 (docs/experiments.md#held-out-pairs).
"""

import functools
import hashlib
import itertools
from collections.abc import Iterable
from typing import Any

from pdgen.core import geometry, scene_graph
from pdgen.core import rng as rng_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.worlds.shapes import scenes

OPENING = 'a photo of '  # of every prompt, as GenEval's
TASKS = ('single_object', 'two_object', 'counting', 'colors', 'position', 'color_attr')
COUNTS = {2: 'two', 3: 'three', 4: 'four'}
INVERSE = {'right of': 'left of', 'below': 'above', 'left of': 'right of', 'above': 'below'}
_SALT = 'pdgen shapes 1 '

Metadata = dict[str, Any]
Combination = tuple


def prompts(split: str, *, per_task: int, seed: int = 0) -> list[Metadata]:
  """GenEval metadata of `per_task` prompts of each task, task after task.

  A task with fewer distinct prompts repeats them in the same order; `index` distinguishes the repetitions. Distinct
  held-out prompts: single_object 6 (those of training), two_object 6, counting 4, colors 12, position 30, color_attr
  over five hundred.

  Args:
    split: `heldout` or `train`.
    per_task: prompts a task.
    seed: determines the order within each task.

  Returns: the metadata, with `tag`, `include`, `exclude` (counting), `prompt` and `index`.

  >>> prompts('train', per_task=1)[0]
  {'tag': 'single_object', 'include': [{'class': 'pole', 'count': 1}], 'prompt': 'a photo of a pole', 'index': 0}

  Raises: ValueError for an unknown split.
  """
  if split not in ('heldout', 'train'):
    raise ValueError(f"Unknown split {split!r}. Known: ['heldout', 'train']")
  chosen = []
  for number, task in enumerate(TASKS):
    pool = task_prompts(split, task)
    order = rng_lib.numpy_rng(seed, number).permutation(len(pool))
    chosen += [{**pool[order[i % len(pool)]], 'index': i} for i in range(per_task)]
  return chosen


def parse(prompt: str) -> trajectory_lib.PromptSpec | None:
  """What a prompt of the world, held out or not, asks for; None for any other text.

  >>> parse('a photo of a red ring').include[0]
  Clause(name='ring', count=1, color='red', position=None)
  >>> parse('a photo of a cat') is None
  True
  """
  row = _by_prompt().get(prompt)
  return None if row is None else trajectory_lib.PromptSpec.from_row(row)


@functools.cache
def _by_prompt() -> dict[str, Metadata]:
  return {row['prompt']: row for task in reversed(TASKS) for row in _everything(task)}


@functools.cache
def task_prompts(split: str, task: str) -> tuple[Metadata, ...]:
  """All distinct prompts of a task and split. The dicts are shared between calls: copy before changing one."""
  everything = tuple(_everything(task))
  if task == 'single_object':
    return everything
  return tuple(p for p in everything if is_held_out(p) == (split == 'heldout'))


def is_held_out(metadata: Metadata) -> bool:
  combination = _combination(metadata)
  return combination in _HELD_OUT or (combination is not None and _hashed_out(combination))


def holds_held_out(scene: scenes.Scene) -> bool:
  """Whether a scene contains a held-out pair of coloured shapes."""
  return any(
    _hashed_out(_colored_pair((a.color, a.shape), (b.color, b.shape)))
    for a, b in itertools.combinations(scene, 2)
    if a.shape != b.shape
  )


def keeps_out(graph: scene_graph.SceneGraph) -> bool:
  """Whether no training picture may show the graph: it has a held-out pair of coloured shapes."""
  return holds_held_out(scenes.of_graph(graph))


def noun(shape: str, *, color: str | None = None, count: int = 1) -> str:
  """A noun phrase: `a red ring`, `an orange ring`, `two rings`, `three red crosses`.

  Args:
    shape: name of the shape.
    color: name of the colour, if it is to be named.
    count: number of objects; up to 5.

  >>> noun('ring', color='orange'), noun('cross', count=2)
  ('an orange ring', 'two crosses')
  """
  words = f'{color} {shape}' if color else shape
  if count > 1:
    return f'{COUNTS.get(count, "five")} {plural(words, count)}'
  return f'{article(words)} {words}'


def plural(words: str, count: int) -> str:
  if count == 1:
    return words
  return f'{words}es' if words.endswith('s') else f'{words}s'


def article(words: str) -> str:
  return 'an' if words[0] in 'aeiou' else 'a'


def _everything(task: str) -> Iterable[Metadata]:
  shapes, colors = tuple(scenes.SHAPES), tuple(scenes.COLORS)
  if task == 'single_object':
    for shape in shapes:
      yield _metadata(task, noun(shape), _object(shape))
  elif task == 'two_object':
    for a, b in itertools.permutations(shapes, 2):
      yield _metadata(task, f'{noun(a)} and {noun(b)}', _object(a), _object(b))
  elif task == 'counting':
    for shape, count in itertools.product(shapes, COUNTS):
      exclude = [{'class': shape, 'count': count + 1}]
      yield _metadata(task, noun(shape, count=count), _object(shape, count=count), exclude=exclude)
  elif task == 'colors':
    for color, shape in itertools.product(colors, shapes):
      yield _metadata(task, noun(shape, color=color), _object(shape, color=color))
  elif task == 'position':
    for a, b in itertools.permutations(shapes, 2):
      for relation in geometry.RELATIONS:
        yield _metadata(task, f'{noun(b)} {relation} {noun(a)}', _object(a), _object(b, position=[relation, 0]))
  elif task == 'color_attr':
    for a, b in itertools.permutations(shapes, 2):
      for c, d in itertools.permutations(colors, 2):
        words = f'{noun(a, color=c)} and {noun(b, color=d)}'
        yield _metadata(task, words, _object(a, color=c), _object(b, color=d))
  else:
    raise ValueError(f'Unknown task {task!r}. Known: {TASKS}')


def _metadata(task: str, words: str, *include: dict[str, Any], exclude: list | None = None) -> Metadata:
  metadata = {'tag': task, 'include': list(include)}
  if exclude:
    metadata['exclude'] = exclude
  return {**metadata, 'prompt': OPENING + words}


def _object(shape: str, *, count: int = 1, **rest: Any) -> dict[str, Any]:
  return {'class': shape, 'count': count, **rest}


# --- combinations ---


def _pair(a: str, b: str) -> Combination:
  return 'pair', *sorted((a, b))


def _relation(a: str, relation: str, b: str) -> Combination:
  """The canonical form of a relation: A right of B is B left of A."""
  return ('relation', a, relation, b) if relation in ('left of', 'above') else ('relation', b, INVERSE[relation], a)


def _colored_pair(a: tuple[str, str], b: tuple[str, str]) -> Combination:
  return 'colored_pair', *sorted((a, b))


def _combination(metadata: Metadata) -> Combination | None:
  """The combination that a prompt asks for; None for a single object."""
  task, include = metadata['tag'], metadata['include']
  if task == 'two_object':
    return _pair(*(i['class'] for i in include))
  if task == 'counting':
    return 'count', include[0]['class'], include[0]['count']
  if task == 'colors':
    return 'colored', include[0]['color'], include[0]['class']
  if task == 'position':
    return _relation(include[1]['class'], include[1]['position'][0], include[0]['class'])
  if task == 'color_attr':
    return _colored_pair(*((i['color'], i['class']) for i in include))
  return None


def _hash(combination: Combination) -> int:
  return int.from_bytes(hashlib.blake2b((_SALT + repr(combination)).encode(), digest_size=8).digest(), 'big')


def _by_hash(combinations: Iterable[Combination]) -> list[Combination]:
  return sorted(combinations, key=_hash)


@functools.cache
def _hashed_out(combination: Combination) -> bool:
  """Whether a pair of coloured shapes is held out: a fifth of them is, by hash (they are too many for a table)."""
  return combination[0] == 'colored_pair' and _hash(combination) % 5 == 0


def _held_out() -> frozenset[Combination]:
  """The held-out combinations: lowest hashes first, skipping one whose shape, colour or count has reached its limit."""
  shapes, colors = tuple(scenes.SHAPES), tuple(scenes.COLORS)
  pairs = _spread([_pair(a, b) for a, b in itertools.combinations(shapes, 2)], limit=3)
  counts = _spread([('count', s, n) for s in shapes for n in COUNTS], limit=4, twice=COUNTS)
  colored = _spread([('colored', c, s) for c in colors for s in shapes], limit=12, twice=(*shapes, *colors))
  relations = [
    _by_hash(_relation(a, r, b) for r in geometry.RELATIONS)[0] for a, b in itertools.combinations(shapes, 2)
  ]
  return frozenset((*pairs, *counts, *colored, *relations))


def _spread(combinations: list[Combination], *, limit: int, twice: Iterable = ()) -> list[Combination]:
  chosen, left = [], {w: 2 if w in twice else 1 for c in combinations for w in c[1:]}
  for combination in _by_hash(combinations):
    if len(chosen) < limit and all(left[w] for w in combination[1:]):
      chosen.append(combination)
      for word in combination[1:]:
        left[word] -= 1
  return chosen


_HELD_OUT = _held_out()
