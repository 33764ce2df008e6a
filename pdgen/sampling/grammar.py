"""What a trajectory may write next: the structure of the sequence, and the format of plans and inspections.

Structure always holds: a text ends with `<|im_end|>` within its cap; after it comes a text or a picture; after a
picture or an inspection a text or the end. The format (`SamplingConfig.grammar`) can be switched off for studies.
The rules of a mode (`core.modes`) are data of its rows, so that a batch may hold any of them. This is the process:

    plan        <ins> words </ins> <des> words </des> <|im_end|>       then a picture
    inspection  words [<refine> words </refine> words] <|im_end|>      without <refine>: a plan, or the end;
                                                                       with it: a picture, or a corrected plan
    after a draft: an inspection, or the end; after a refined picture: a plan, or the end

The other modes say for each place what may follow, and write words, or words and tags, as they like.
Studies change what follows a draft (`SamplingConfig.inspection`), and how often `<refine>` may come (`max_edits`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pdgen.core import config as config_lib
from pdgen.core import modes
from pdgen.core import trajectory as trajectory_lib

# Items of the sequence; `GrammarState.last_item` is the last one that is complete. WORDS: a text without a process.
PROMPT, PLAN, INSPECTION, WORDS, DRAFT, REFINED = range(6)
# Places inside a text; PLAIN: in one without a process.
BOUNDARY, START, INS, INS_CLOSED, DES, DES_CLOSED, TEXT, REFINE, REFINE_CLOSED, PLAIN = range(10)
# Tokens that closing an open plan takes: </ins> <des> </des> <|im_end|>.
_CLOSING = 4
SHORTEST = _CLOSING + 1  # tokens of the shortest plan, so that `max_text_tokens` is at least that
_LENGTHS = 32  # Of what a text begins with: multiples, so that few programs are compiled.
_MAX_TEXTS = 2  # between two pictures: an inspection and a plan


class Begins(struct.PyTreeNode):
  """What every text of a mode without a process begins with, one of several."""

  ids: jax.Array  # int32[B, K, N]; each filled up with -1; of -1 alone: none of them.
  fits: jax.Array  # bool[B, K]; those that the text being written agrees with so far.

  @classmethod
  def of(cls, rows: Sequence[Sequence[Sequence[int]]]) -> 'Begins | None':
    """Of the ids of each row; None where no row has any."""
    longest = max((len(ids) for row in rows for ids in row), default=0)
    if not longest:
      return None
    ids = np.full((len(rows), max(map(len, rows)), -(-longest // _LENGTHS) * _LENGTHS), -1, np.int32)
    for i, row in enumerate(rows):
      for k, one in enumerate(row):
        ids[i, k, : len(one)] = one
    return cls(jnp.asarray(ids), jnp.zeros(ids.shape[:2], bool))

  def due(self, length: jax.Array) -> jax.Array:
    """Ids that may come next in a text of `length` tokens, int32[B, K]; -1: none of this one."""
    index = jnp.minimum(length, self.ids.shape[-1] - 1)[:, None, None]
    ids = jnp.take_along_axis(self.ids, index, axis=2)[..., 0]
    return jnp.where(self.fits & (length < self.ids.shape[-1])[:, None], ids, -1)

  def after(self, token: jax.Array, length: jax.Array, opens: jax.Array) -> 'Begins':
    """After a token was read in a text of `length` tokens, or opened one. opens: bool[B]."""
    due = self.due(length)
    agrees = self.fits & ((due < 0) | (due == token[:, None]))
    return self.replace(fits=jnp.where(opens[:, None], self.ids[:, :, 0] >= 0, agrees))


class GrammarState(struct.PyTreeNode):
  """Where each trajectory stands. Every field [B], but for those of `begins`."""

  last_item: jax.Array  # int32; the last complete item.
  tag_state: jax.Array  # int32; place inside the text being written, BOUNDARY outside.
  length: jax.Array  # int32; tokens of that text so far.
  texts_since_picture: jax.Array  # int32; texts written since the last picture.
  refining: jax.Array  # bool; an inspection asked for the next picture, so it will be a refined one.
  edits: jax.Array  # int32; refined pictures so far.
  texts: jax.Array  # int32; format of its texts: index in `modes.TEXTS`.
  moves: jax.Array  # int32; what may come where in a mode without a process: bits, as of `_moves`.
  begins: 'Begins | None' = None  # What texts begin with; None: no row says so.

  @property
  def is_process(self) -> jax.Array:
    return self.texts == modes.TEXTS.index(modes.STEPS)

  @property
  def painted_last(self) -> jax.Array:
    return (self.last_item == DRAFT) | (self.last_item == REFINED)

  @property
  def may_end(self) -> jax.Array:
    """Where a cap may end a trajectory: it has just looked at a picture, or it may end after its words."""
    ends = _may(self.moves, modes.PLACES.index('text'), modes.MOVES.index(modes.END))
    return (self.tag_state == BOUNDARY) & (self.painted_last | (self.last_item == WORDS) & ends)


class Grammar(NamedTuple):
  """Static facts of the program. Hashable."""

  specials: config_lib.Specials
  vocab_size: int
  max_text_tokens: int
  enforced: bool
  inspection: str = config_lib.FREE


def from_trajectories(
  trajectories: Sequence[trajectory_lib.Trajectory], begins: Sequence[Sequence[Sequence[int]]] = ()
) -> GrammarState:
  """Where partial trajectories continue, one a row: each between two items of the sequence.

  Args:
    trajectories: one a row.
    begins: for each of them the ids that its texts begin with, one of several; no row has any: as they like.
  """
  rows = [_between_items(trajectory) for trajectory in trajectories]
  last_item, texts, refining = (jnp.asarray(column) for column in zip(*rows, strict=True))
  zeros = jnp.zeros_like(last_item)
  rules = [modes.of(trajectory.mode) for trajectory in trajectories]
  return GrammarState(
    last_item=last_item,
    tag_state=jnp.full_like(last_item, BOUNDARY),
    length=zeros,
    texts_since_picture=texts,
    refining=refining,
    edits=jnp.asarray([sum(step.refined is not None for step in t.steps) for t in trajectories], jnp.int32),
    texts=jnp.asarray([modes.TEXTS.index(mode.texts) for mode in rules], jnp.int32),
    moves=jnp.asarray([_moves(mode) for mode in rules], jnp.int32),
    begins=Begins.of(begins),
  )


def _between_items(trajectory: trajectory_lib.Trajectory) -> tuple[int, int, bool]:
  """(last_item, texts_since_picture, refining) after the last part of the trajectory."""
  last, texts, refining = PROMPT, 0, False
  for item in trajectory.items():
    last = _ITEMS[item.kind]
    texts = 0 if item.is_picture else texts + 1
    if item.is_picture:
      refining = False
    elif last == INSPECTION:
      refining = item.step.rejected
  return last, texts, refining


_ITEMS = {
  trajectory_lib.TEXT: WORDS,
  trajectory_lib.PLAN: PLAN,
  trajectory_lib.CORRECTED_PLAN: PLAN,
  trajectory_lib.INSPECTION: INSPECTION,
  trajectory_lib.DRAFT: DRAFT,
  trajectory_lib.REFINED: REFINED,
}


def _moves(mode: modes.Mode) -> int:
  """Bit 3 p + m: at place p of `modes.PLACES` comes move m of `modes.MOVES`."""
  bits = [move in moves for moves in mode.moves for move in modes.MOVES]
  return sum(bit << number for number, bit in enumerate(bits))


def _may(moves: jax.Array, place: jax.Array | int, move: int) -> jax.Array:
  return (moves >> (len(modes.MOVES) * place + move)) & 1 == 1


def after_token(state: GrammarState, token: jax.Array, rules: Grammar) -> GrammarState:
  """The state after a text token was read. token: int32[B]."""
  s = rules.specials
  plan_next = state.last_item != DRAFT  # only a draft is inspected
  if rules.inspection == config_lib.OFF:
    plan_next = jnp.ones_like(plan_next)
  writing = state.tag_state != BOUNDARY
  opened = jnp.where(plan_next, START, TEXT) if rules.enforced else jnp.full_like(state.tag_state, TEXT)
  opened = jnp.where(state.is_process, opened, PLAIN)
  place = state.tag_state
  for tag, to in (
    (s.ins, INS),
    (s.ins_end, INS_CLOSED),
    (s.des, DES),
    (s.des_end, DES_CLOSED),
    (s.refine, REFINE),
    (s.refine_end, REFINE_CLOSED),
  ):
    place = jnp.where(writing & state.is_process & (token == tag), to, place)
  refining = state.refining | (writing & state.is_process & (token == s.refine) & ~plan_next)
  text = jnp.where(state.is_process, jnp.where(plan_next, PLAN, INSPECTION), WORDS)
  closes = writing & (token == s.im_end)
  opens = token == s.im_start
  return state.replace(
    last_item=jnp.where(closes, text, state.last_item),
    tag_state=jnp.where(opens, opened, jnp.where(closes, BOUNDARY, place)),
    length=jnp.where(opens, 0, state.length + 1),
    texts_since_picture=state.texts_since_picture + closes.astype(jnp.int32),
    refining=refining,
    begins=state.begins and state.begins.after(token, state.length, opens),
  )


def after_picture(state: GrammarState, active: jax.Array) -> GrammarState:
  """The state after the next picture was painted and looked at. active: bool[B], trajectories that painted it."""
  item = jnp.where(state.refining, REFINED, DRAFT)
  return state.replace(
    last_item=jnp.where(active, item, state.last_item),
    texts_since_picture=jnp.where(active, 0, state.texts_since_picture),
    refining=state.refining & ~active,
    edits=state.edits + (state.refining & active).astype(jnp.int32),
  )


def allowed_tokens(
  state: GrammarState,
  rules: Grammar,
  *,
  max_edits: jax.Array | int = config_lib.MOST,
  closing: jax.Array | None = None,
) -> jax.Array:
  """Which tokens each trajectory may write next.

  Args:
    state: where each stands.
    rules: static facts.
    max_edits: int32[]; refined pictures a trajectory.
    closing: bool[B]; texts that end now, as those do whose cap is near: what is open is closed. None: no others.

  Returns: bool[B, V], at least one True a row.
  """
  s = rules.specials
  ids = jnp.arange(rules.vocab_size)

  def only(*tokens: int) -> jax.Array:
    return jnp.isin(ids, jnp.array(tokens))

  structure = (s.im_start, s.im_end, s.vision_start, s.vision_end, s.endoftext)
  tags = (s.ins, s.ins_end, s.des, s.des_end, s.refine, s.refine_end)
  words = ~only(*structure, *tags)
  # place -> (what may come, what must come when the cap is near)
  inside = {
    START: (only(s.ins), only(s.ins)),
    INS: (words | only(s.ins_end), only(s.ins_end)),
    INS_CLOSED: (only(s.des), only(s.des)),
    DES: (words | only(s.des_end), only(s.des_end)),
    DES_CLOSED: (only(s.im_end), only(s.im_end)),
    TEXT: (words | only(s.refine, s.im_end), only(s.im_end)),
    REFINE: (words | only(s.refine_end), only(s.refine_end)),
    REFINE_CLOSED: (words | only(s.im_end), only(s.im_end)),
  }
  if not rules.enforced:
    free = (words | only(*tags, s.im_end), only(s.im_end))
    inside = {place: free for place in inside}
  inside[PLAIN] = words | only(s.im_end), only(s.im_end)
  near_cap = state.length >= rules.max_text_tokens - _CLOSING
  if closing is not None:
    near_cap |= closing
  result = _boundary(state, rules, only, max_edits)
  for place, (may, must) in inside.items():
    here = (state.tag_state == place)[:, None]
    result = jnp.where(here, jnp.where(near_cap[:, None], must[None], may[None]), result)
  writes_tags = (state.tag_state == PLAIN) & (state.texts == modes.TEXTS.index(modes.ANY)) & ~near_cap
  result |= writes_tags[:, None] & only(*tags)[None]
  left = state.edits < max_edits
  if rules.inspection == config_lib.FORCED:
    asks = jnp.where(near_cap[:, None], only(s.refine)[None], (words | only(s.refine))[None])
    result = jnp.where(((state.tag_state == TEXT) & left)[:, None], asks, result)
  spent = ~left & (state.last_item == DRAFT) & state.is_process
  result &= ~(spent[:, None] & only(s.refine)[None])
  if state.begins is None:
    return result
  due = jnp.where((state.tag_state == PLAIN)[:, None], state.begins.due(state.length), -1)
  bound = jnp.any(due >= 0, axis=1)
  rows, due = jnp.arange(len(due))[:, None], jnp.where(due >= 0, due, rules.vocab_size)
  one_of = jnp.zeros_like(result).at[rows, due].set(True, mode='drop')
  return jnp.where(bound[:, None], one_of, result)


def _boundary(state: GrammarState, rules: Grammar, only, max_edits: jax.Array | int) -> jax.Array:
  """What may come between two items: bool[B, V]."""
  s = rules.specials
  paint, write, end = only(s.vision_start), only(s.im_start), only(s.endoftext)
  either = paint | write
  after_inspection = jnp.where(state.refining[:, None], either[None], (write | end)[None])
  after_plan = jnp.broadcast_to(paint, after_inspection.shape)
  if not rules.enforced:
    after_plan = jnp.broadcast_to(either, after_inspection.shape)
    after_inspection = after_plan | end[None]
  after_text = jnp.where((state.last_item == PLAN)[:, None], after_plan, after_inspection)
  after_text = jnp.where((state.texts_since_picture >= _MAX_TEXTS)[:, None], paint[None], after_text)
  after_picture = (write | end)[None]
  if rules.inspection in (config_lib.FORCED, config_lib.DICTATED):
    is_due = state.last_item == DRAFT
    if rules.inspection == config_lib.FORCED:
      is_due &= state.edits < max_edits
    after_picture = jnp.where(is_due[:, None], write[None], after_picture)
  at_prompt, painted = (state.last_item == PROMPT)[:, None], state.painted_last[:, None]
  of_process = jnp.where(painted, after_picture, jnp.where(at_prompt, write[None], after_text))
  place = jnp.where(at_prompt[:, 0], 0, jnp.where(painted[:, 0], 2, 1))  # Of `modes.PLACES`.
  declared = jnp.zeros_like(of_process)
  for move, token in enumerate((paint, write, end)):  # In the order of `modes.MOVES`.
    declared |= _may(state.moves, place, move)[:, None] & token[None]
  return jnp.where(state.is_process[:, None], of_process, declared)
