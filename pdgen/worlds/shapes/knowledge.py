"""Prompts that name what is wanted by a fact, the WISE of shapes: sides, colours and counts of things, opposites.

    a photo of a shape with three sides                     triangle
    a photo of a bar in the color of grass                  green bar
    a photo of as many rings as a tricycle has wheels       three rings
    a photo of a ring opposite of left of a square          ring right of a square

What the prompt resolves to is GenEval metadata, so that pictures are judged exactly. In process mode the plan says it
in words before anything is painted; in direct mode nothing does. Nobody can know a fact that was never told, and a
model that begins from nothing has been told nothing but its training prompts. What is held out is made of known parts:

| split | the fact | the phrasing | what it resolves to |
|---|---|---|---|
| `trained` | trained | trained with this fact | a training prompt: only the noise is new |
| `phrasing` | trained | trained with other facts only | a training prompt |
| `combination` | trained | trained with this fact | a held-out combination (`prompt_space`) |
| `chain` | two trained facts, never together | trained, but for those of `sides` and `opposite` | a training prompt |

A chain: "as many rings as a triangle has sides", "a bar in the opposite of the color of snow".
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pdgen.core import rng as rng_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.worlds.shapes import prompt_space

SIDES, COLOR, COUNT, OPPOSITE = KNOWLEDGE = ('sides', 'color', 'count', 'opposite')
TRAINED, PHRASING, COMBINATION, CHAIN = KNOWLEDGE_SPLITS = ('trained', 'phrasing', 'combination', 'chain')
_STREAM, _PROMPTS = 104, 105  # random streams, distinct from those of `trajectories` and `drafts`
_SALT = 'pdgen shapes knowledge 1 '


class Fact(NamedTuple):
  """Something that one must know to understand a prompt."""

  kind: str  # of KNOWLEDGE
  answer: str | int  # a shape, a colour, a number, or a relation
  words: tuple[str, ...]  # of the prompt, in place of the answer


_NUMBERS = ('no', 'three', 'four equal', 'twelve')
_THINGS = {
  'red': ('blood', 'ripe tomatoes', 'a fire engine'),
  'orange': ('carrots', 'pumpkins', 'a tangerine'),
  'yellow': ('lemons', 'butter', 'a sunflower'),
  'green': ('grass', 'frogs', 'a cucumber'),
  'blue': ('the sky', 'the sea', 'a whale'),
  'purple': ('plums', 'violets', 'an aubergine'),
  'pink': ('flamingos', 'pigs', 'a tongue'),
  'brown': ('chocolate', 'bears', 'a walnut'),
  'black': ('coal', 'tar', 'a raven'),
  'white': ('snow', 'milk', 'a swan'),
}
_OWNERS = {
  2: (('a bird', 'legs'), ('a bicycle', 'wheels'), ('a face', 'eyes')),
  3: (('a clover', 'leaves'), ('a tricycle', 'wheels'), ('a traffic light', 'lamps')),
  4: (('a dog', 'legs'), ('a car', 'wheels'), ('a year', 'seasons')),
}
_FACTS = (
  *(Fact(SIDES, shape, (n,)) for shape, n in zip(('ring', 'triangle', 'square', 'cross'), _NUMBERS, strict=True)),
  *(Fact(COLOR, color, (thing,)) for color, things in _THINGS.items() for thing in things),
  *(Fact(COUNT, count, owner) for count, owners in _OWNERS.items() for owner in owners),
  *(Fact(OPPOSITE, relation, (other,)) for relation, other in prompt_space.INVERSE.items()),
  Fact(OPPOSITE, 'black', ('white',)),
  Fact(OPPOSITE, 'white', ('black',)),
)
# `noun`: the object without what the fact says; `other`: the object that a relation is about.
_PHRASINGS = {
  SIDES: (
    'a shape with {0} sides',
    'a shape that has {0} sides',
    'a figure of {0} sides',
    'a figure whose sides are {0}',
  ),
  COLOR: (
    '{noun} in the color of {0}',
    '{noun} of the same color as {0}',
    '{noun} colored like {0}',
    '{noun} with the color of {0}',
  ),
  COUNT: (
    'as many {noun} as {0} has {1}',
    '{noun}, one for each of the {1} of {0}',
    '{noun} equal in number to the {1} of {0}',
    'the number of {1} of {0} in {noun}',
  ),
  OPPOSITE: (
    '{noun} opposite of {0} {other}',
    '{noun} in the reverse of {0} {other}',
    '{noun} not {0} but the opposite {other}',
    '{noun} in what {0} is the opposite of {other}',
  ),
}
# Held-out facts. Sides are equal, because a bar and a pole have four sides, too.
_CHAINS = (
  *((Fact(COUNT, n, (owner, 'sides')), _PHRASINGS[COUNT]) for n, owner in ((3, 'a triangle'), (4, 'a square'))),
  *(
    (Fact(SIDES, shape, owner), ('a shape with as many equal sides as {0} has {1}',))
    for shape, count in (('triangle', 3), ('square', 4))
    for owner in _OWNERS[count]
  ),
  *(
    (Fact(OPPOSITE, color, (thing,)), ('{noun} in the opposite of the color of {0}',))
    for color, opposite in (('black', 'white'), ('white', 'black'))
    for thing in _THINGS[opposite]
  ),
)
# Of the tasks that prompts of evaluations are made of: one fact and nothing else to get wrong.
_TASKS = {SIDES: ('single_object',), COLOR: ('colors',), COUNT: ('counting',), OPPOSITE: ('position', 'colors')}


def knowledge_prompts(split: str, *, per_kind: int, seed: int = 0) -> list[dict[str, Any]]:
  """`per_kind` prompts of each kind of fact that the split has, kind after kind; all four, but `combination` no `sides`
  and `chain` no `color`.

  A kind with fewer distinct prompts repeats them in the same order; `index` distinguishes the repetitions.

  Args:
    split: one of KNOWLEDGE_SPLITS.
    per_kind: prompts a kind.
    seed: determines the order within each kind.

  Returns: GenEval metadata of what is wanted, with `knowledge` (the kind), `split`, `fact` (its words) and `plain`,
    the world's own prompt for the same.

  >>> row = knowledge_prompts('chain', per_kind=1)[0]
  >>> row['prompt'], row['plain']
  ('a photo of a shape with as many equal sides as a tricycle has wheels', 'a photo of a triangle')

  Raises: ValueError for an unknown split.
  """
  if split not in KNOWLEDGE_SPLITS:
    raise ValueError(f'Unknown split {split!r}. Known: {list(KNOWLEDGE_SPLITS)}')
  chosen = []
  for number, kind in enumerate(KNOWLEDGE):
    pool = _pool(split, kind)
    order = rng_lib.numpy_rng(seed, _PROMPTS, number).permutation(len(pool))
    chosen += [{**pool[order[i % len(pool)]], 'index': i} for i in range(per_kind if pool else 0)]
  return chosen


def asked_by_fact(made: trajectory_lib.Trajectory, *, seed: int, index: int) -> trajectory_lib.Trajectory:
  """A training trajectory whose prompt names one thing by a trained fact; as it is, where no fact fits.

  Its words, pictures and `spec` stay. Its `metadata` get `knowledge`, `fact` and `plain`.

  Args:
    made: of the world, with its spec.
    seed: with `index`, determines fact and phrasing.
    index: of the trajectory.

  Raises: ValueError for a trajectory without a spec.
  """
  if made.spec is None:
    raise ValueError(f'It is not known what {made.prompt!r} asks for: no fact can be put in its place.')
  row = made.spec.to_row(made.prompt)
  rng = rng_lib.numpy_rng(seed, index, _STREAM)
  by_kind: dict[str, list[tuple[int, Fact]]] = {}
  for place, fact in _places(row, _FACTS):
    by_kind.setdefault(fact.kind, []).append((place, fact))
  if not by_kind:
    return made
  # Kinds first: of colours there are the most things.
  place, fact = _choose(rng, by_kind[_choose(rng, sorted(by_kind))])
  prompt = _worded(row, place, fact, _choose(rng, _trained(fact)))
  told = {'knowledge': fact.kind, 'fact': ' '.join(fact.words), 'plain': made.prompt}
  return dataclasses.replace(made, prompt=prompt, metadata={**made.metadata, **told})


@functools.cache
def _pool(split: str, kind: str) -> tuple[dict[str, Any], ...]:
  """All prompts of a kind and split."""
  asked = 'heldout' if split == COMBINATION else 'train'
  rows = [row for task in _TASKS[kind] for row in prompt_space.task_prompts(asked, task)]
  if asked == 'heldout':
    rows = [row for row in rows if prompt_space.is_held_out(row)]
  if split == CHAIN:
    facts = {fact: phrasings for fact, phrasings in _CHAINS if fact.kind == kind}
  else:
    held = lambda fact: tuple(p for p in _PHRASINGS[fact.kind] if p not in _trained(fact))
    facts = {fact: held(fact) if split == PHRASING else _trained(fact) for fact in _FACTS if fact.kind == kind}
  made = []
  for row in rows:
    for place, fact in _places(row, tuple(facts)):
      for phrasing in facts[fact]:
        told = {'knowledge': kind, 'split': split, 'fact': ' '.join(fact.words), 'plain': row['prompt']}
        made.append({**row, **told, 'prompt': _worded(row, place, fact, phrasing)})
  return tuple(made)


def _trained(fact: Fact) -> tuple[str, ...]:
  """The phrasings that a fact is trained with: all but one, which other facts are trained with."""
  digest = hashlib.blake2b((_SALT + repr(tuple(fact))).encode(), digest_size=8).digest()
  phrasings = _PHRASINGS[fact.kind]
  held = int.from_bytes(digest, 'big') % len(phrasings)
  return phrasings[:held] + phrasings[held + 1 :]


def _places(row: prompt_space.Metadata, facts: tuple[Fact, ...]) -> Iterator[tuple[int, Fact]]:
  """(number of the clause, fact) for all that a prompt says and a fact can say."""
  for number, clause in enumerate(row['include']):
    is_plain = clause['count'] == 1 and 'color' not in clause and 'position' not in clause
    related = any('position' in c for c in row['include'])
    said = {COUNT: clause['count'] if clause['count'] > 1 else None, COLOR: clause.get('color')}
    said[SIDES] = clause['class'] if is_plain and not related else None
    said[OPPOSITE] = clause['position'][0] if 'position' in clause else clause.get('color')
    yield from ((number, fact) for fact in facts if fact.answer == said[fact.kind])


def _worded(row: prompt_space.Metadata, place: int, fact: Fact, phrasing: str) -> str:
  """The prompt with a fact in the place of what it says."""
  nouns = [prompt_space.noun(c['class'], color=c.get('color'), count=c['count']) for c in row['include']]
  clause = row['include'][place]
  if 'position' in clause and fact.kind == OPPOSITE:
    words = phrasing.format(*fact.words, noun=nouns[place], other=nouns[clause['position'][1]])
    return prompt_space.OPENING + words
  bare = prompt_space.plural(clause['class'], clause['count']) if fact.kind == COUNT else None
  noun = bare or prompt_space.noun(clause['class'])
  nouns[place] = phrasing.format(*fact.words, noun=noun, other='').strip()
  return prompt_space.OPENING + ' and '.join(nouns)


def _choose(rng: np.random.Generator, options: Any) -> Any:
  return options[int(rng.integers(len(options)))]
