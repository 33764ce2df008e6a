"""What may be written next: by hand at every place, and by writers who choose at random among what is allowed."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import toy

from pdgen.core import tags
from pdgen.sampling import grammar

S = toy.WORDS.specials
VOCABULARY = toy.WORDS.vocab_size
WORDS = set(range(VOCABULARY)) - set(dataclasses.astuple(S))
TAGS = {S.ins, S.ins_end, S.des, S.des_end, S.refine, S.refine_end}
CAP = 12


def _rules(*, on=True, cap=CAP, inspection='free'):
  return grammar.Grammar(S, VOCABULARY, cap, on, inspection)


def _rules_of(mode):
  state = grammar.from_trajectories([toy.Trajectory(prompt='', steps=(), mode=mode)])
  return dict(texts=state.texts[0], moves=state.moves[0])


def _lane(**fields):
  start = dict(
    last_item=grammar.PROMPT,
    tag_state=grammar.BOUNDARY,
    length=0,
    texts_since_picture=0,
    refining=False,
    edits=0,
    **_rules_of('direct' if fields.pop('direct', False) else fields.pop('mode', 'process')),
  )
  return grammar.GrammarState(**{k: jnp.asarray([v]) for k, v in {**start, **fields}.items()})


_allowed = jax.jit(grammar.allowed_tokens, static_argnums=1)
_advance = jax.jit(grammar.after_token, static_argnums=2)


def _may(*, on=True, **fields):
  return set(np.flatnonzero(_allowed(_lane(**fields), _rules(on=on))[0]).tolist())


PLACES = {
  grammar.START: {S.ins},
  grammar.INS: WORDS | {S.ins_end},
  grammar.INS_CLOSED: {S.des},
  grammar.DES: WORDS | {S.des_end},
  grammar.DES_CLOSED: {S.im_end},
  grammar.TEXT: WORDS | {S.refine, S.im_end},
  grammar.REFINE: WORDS | {S.refine_end},
  grammar.REFINE_CLOSED: WORDS | {S.im_end},
}
NEAR_CAP = {
  grammar.START: {S.ins},
  grammar.INS: {S.ins_end},
  grammar.INS_CLOSED: {S.des},
  grammar.DES: {S.des_end},
  grammar.DES_CLOSED: {S.im_end},
  grammar.TEXT: {S.im_end},
  grammar.REFINE: {S.refine_end},
  grammar.REFINE_CLOSED: {S.im_end},
}


@pytest.mark.parametrize('place', PLACES)
def test_inside_a_text(place):
  assert _may(tag_state=place, length=3) == PLACES[place]
  assert _may(tag_state=place, length=CAP - 5) == PLACES[place]
  assert _may(tag_state=place, length=CAP - 4) == NEAR_CAP[place]
  assert _may(tag_state=place, length=3, on=False) == WORDS | TAGS | {S.im_end}
  assert _may(tag_state=place, length=CAP - 4, on=False) == {S.im_end}


PAINT, WRITE, END = {S.vision_start}, {S.im_start}, {S.endoftext}


@pytest.mark.parametrize(
  ('fields', 'want', 'want_off'),
  [
    (dict(last_item=grammar.PROMPT), WRITE, WRITE),
    (dict(last_item=grammar.PROMPT, direct=True), PAINT, PAINT),
    (dict(last_item=grammar.PLAN, texts_since_picture=1), PAINT, PAINT | WRITE),
    (dict(last_item=grammar.DRAFT), WRITE | END, WRITE | END),
    (dict(last_item=grammar.DRAFT, direct=True), END, END),
    (dict(last_item=grammar.INSPECTION, texts_since_picture=1), WRITE | END, PAINT | WRITE | END),
    (dict(last_item=grammar.INSPECTION, texts_since_picture=1, refining=True), PAINT | WRITE, PAINT | WRITE | END),
    (dict(last_item=grammar.PLAN, texts_since_picture=2, refining=True), PAINT, PAINT),
    (dict(last_item=grammar.INSPECTION, texts_since_picture=2), PAINT, PAINT),
    (dict(last_item=grammar.REFINED), WRITE | END, WRITE | END),
  ],
)
def test_between_items(fields, want, want_off):
  assert _may(**fields) == want
  assert _may(on=False, **fields) == want_off


def test_lanes_of_a_batch_are_apart():
  lanes = [
    _lane(last_item=i, tag_state=place, mode=m) for i in range(6) for place in range(10) for m in ('process', 'free')
  ]
  together = _allowed(jax.tree.map(lambda *x: jnp.concatenate(x), *lanes), _rules())
  for row, lane in zip(np.asarray(together), lanes, strict=True):
    np.testing.assert_array_equal(row, _allowed(lane, _rules())[0])
  assert np.asarray(together).any(axis=1).all()


@functools.partial(jax.jit, static_argnums=2)
def _step(lane, key, rules, max_edits):
  """One choice for each lane, uniform over the kinds of tokens allowed, so that tags and ends come up often."""
  may = grammar.allowed_tokens(lane, rules, max_edits=max_edits)
  kind = jnp.isin(jnp.arange(VOCABULARY), jnp.array(sorted(WORDS)))
  rare = jnp.where(kind, -2.0, 0.0)[None]
  token = jnp.argmax(jnp.where(may, rare + jax.random.gumbel(key, may.shape), -jnp.inf), axis=-1)
  picture = token == S.vision_start
  after = jax.tree.map(
    lambda read, painted: jnp.where(picture, painted, read),
    grammar.after_token(lane, token, rules),
    grammar.after_picture(lane, picture),
  )
  return token, after


def _random_walks(rules, *, lanes=64, steps=160, mode='process', max_edits=999):
  lane = jax.tree.map(lambda x: jnp.repeat(x, lanes), _lane(mode=mode))
  tokens = []
  for i in range(steps):
    token, lane = _step(lane, jax.random.key(i), rules, max_edits)
    tokens.append(token)
  return np.stack(jax.device_get(tokens), axis=1)


def _items(tokens):
  """('text', ids), ('picture',) and ('end',) of one walk, up to its end; an unfinished text is left out."""
  items, text = [], None
  for token in tokens.tolist():
    if text is not None:
      if token == S.im_end:
        items.append(('text', text))
        text = None
      else:
        text.append(token)
    elif token == S.im_start:
      text = []
    elif token == S.vision_start:
      items.append(('picture',))
    else:
      assert token == S.endoftext
      return [*items, ('end',)]
  return items


def test_random_writers_keep_the_format():
  seen = set()
  for walk in _random_walks(_rules()):
    last, refining = 'prompt', False
    for kind, *ids in _items(walk):
      text = toy.WORDS.decode(ids[0]) if ids else None
      if kind == 'picture':
        assert last in ('plan', 'corrected plan') or (last == 'inspection' and refining)
        last, refining = ('refined' if refining else 'draft'), False
      elif kind == 'end':
        assert last in ('draft', 'refined') or (last == 'inspection' and not refining)
        last = 'end'
      elif last == 'draft':
        refining, last = tags.refine_instruction(text) is not None, 'inspection'
        assert refining == (S.refine in ids[0])
      else:
        tags.plan_parts(text)  # raises when it is not one
        last = 'corrected plan' if refining else 'plan'
      if ids:
        assert len(ids[0]) + 1 <= CAP  # its `im_end` counted
      seen.add(last)
  assert seen == {'plan', 'draft', 'inspection', 'corrected plan', 'refined', 'end'}


def test_random_writers_without_the_format_still_paint_and_end():
  longest, two_texts, tags = 0, False, False
  for walk in _random_walks(_rules(on=False)):
    items = _items(walk)
    kinds = ''.join(kind[0] for kind, *_ in items)
    assert kinds.startswith('t') and 'ttt' not in kinds
    two_texts |= 'tt' in kinds
    assert 'p' in kinds
    texts = [ids[0] for kind, *ids in items if kind == 'text']
    longest = max([longest, *(len(ids) + 1 for ids in texts)])
    tags |= any(TAGS & set(ids) for ids in texts)
  assert longest <= CAP and two_texts and tags


def test_direct_writers_paint_once_and_end():
  for walk in _random_walks(_rules(), lanes=4, steps=2, mode='direct'):
    assert walk.tolist() == [S.vision_start, S.endoftext]


@pytest.mark.parametrize('on', [True, False])
@pytest.mark.parametrize(
  ('mode', 'order'), [('edit', 'pe'), ('answer', 'te'), ('think', 'tpe'), ('think_answer', 'te'), ('free', '[tp]*e?')]
)
def test_writers_of_other_modes_do_what_their_row_says(mode, order, on):
  seen, tags = set(), set()
  for walk in _random_walks(_rules(on=on), lanes=64, steps=40, mode=mode):
    items = _items(walk)
    kinds = ''.join(kind[0] for kind, *_ in items)
    assert re.fullmatch(order, kinds)
    texts = [ids[0] for kind, *ids in items if kind == 'text']
    assert all(len(ids) + 1 <= CAP for ids in texts)
    seen.add(kinds)
    tags |= TAGS & set().union(*texts)
  # Tags are words of who may do as they like, and of nobody else.
  assert tags == (TAGS if mode == 'free' else set())
  assert mode != 'free' or {kinds[0] for kinds in seen} == {'t', 'p'}


@pytest.mark.parametrize('cap', [grammar.SHORTEST, 6, 9])
def test_texts_close_within_the_cap(cap):
  for walk in _random_walks(_rules(cap=cap), lanes=16, steps=40):
    for kind, *ids in _items(walk):
      if kind == 'text':
        assert len(ids[0]) + 1 <= cap


@pytest.mark.parametrize('on', [True, False])
@pytest.mark.parametrize('most', [0, 1])
def test_random_writers_keep_their_budget_of_edits(on, most):
  counts = []
  for walk in _random_walks(_rules(on=on), max_edits=most):
    asked, refining, last = 0, False, 'prompt'
    for kind, *ids in _items(walk):
      if kind == 'text' and last == 'draft':
        refining = S.refine in ids[0]
        asked, last = asked + refining, 'inspection'
      elif kind == 'picture':
        last, refining = ('refined' if refining else 'draft'), False
    counts.append(asked)
    assert asked <= most
  assert max(counts) == most


@pytest.mark.parametrize('cap', [grammar.SHORTEST, 9, CAP])
def test_forced_writers_refine_every_draft(cap):
  seen = set()
  for walk in _random_walks(_rules(cap=cap, inspection='forced'), max_edits=2):
    asked, refining, last = 0, False, 'prompt'
    for kind, *ids in _items(walk):
      if kind == 'end':
        assert last != 'draft' or asked == 2
      elif kind == 'picture':
        last, refining = ('refined' if refining else 'draft'), False
      elif last == 'draft':
        assert len(ids[0]) < cap and ids[0].count(S.refine) == ids[0].count(S.refine_end) == (asked < 2)
        asked, refining, last = asked + (asked < 2), asked < 2, 'inspection'
      else:
        last = 'plan'
    seen.add(asked)
  assert seen == {1, 2} or seen == {0, 1, 2}  # 0: the walk ended inside its first texts.


def test_writers_without_inspection_plan_after_every_picture():
  seen = set()
  for walk in _random_walks(_rules(inspection='off')):
    kinds = [kind for kind, *_ in _items(walk)]
    assert kinds[: 2 * (len(kinds) // 2)] == ['text', 'picture'] * (len(kinds) // 2)
    assert all(tags.is_plan(toy.WORDS.decode(ids[0])) for kind, *ids in _items(walk) if kind == 'text')
    seen |= set(kinds)
  assert seen == {'text', 'picture', 'end'}


def test_a_dictated_draft_is_always_inspected():
  rules = _rules(inspection='dictated')
  may = lambda **fields: set(np.flatnonzero(_allowed(_lane(**fields), rules)[0]).tolist())
  assert may(last_item=grammar.DRAFT) == WRITE and may(last_item=grammar.REFINED) == WRITE | END
  assert may(last_item=grammar.DRAFT, direct=True) == END


def test_a_tag_in_the_prompt_or_between_items_opens_nothing():
  rules = _rules()
  lane = _advance(_lane(last_item=grammar.DRAFT), jnp.array([S.refine]), rules)
  assert not bool(lane.refining[0]) and int(lane.tag_state[0]) == grammar.BOUNDARY


def test_only_an_inspection_asks_for_a_refined_picture():
  rules = _rules(on=False)
  for item, refining in ((grammar.DRAFT, True), (grammar.PROMPT, False), (grammar.REFINED, False)):
    lane = _advance(_lane(last_item=item), jnp.array([S.im_start]), rules)
    lane = _advance(lane, jnp.array([S.refine]), rules)
    assert bool(lane.refining[0]) == refining
    painted = grammar.after_picture(lane, jnp.array([True]))
    assert int(painted.last_item[0]) == (grammar.REFINED if refining else grammar.DRAFT)
    assert not bool(painted.refining[0]) and int(painted.texts_since_picture[0]) == 0
    waiting = grammar.after_picture(lane, jnp.array([False]))
    assert int(waiting.last_item[0]) == item and bool(waiting.refining[0]) == refining
