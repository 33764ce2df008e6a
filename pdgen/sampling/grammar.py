"""What a trajectory may write next: the structure of the sequence, and the format of plans and inspections.

Structure always holds: a text ends with `<|im_end|>` within its cap; after it comes a text or a picture; after a
picture or an inspection a text or the end. The format (`SamplingConfig.grammar`) can be switched off for studies.

    plan        <ins> words </ins> <des> words </des> <|im_end|>       then a picture
    inspection  words [<refine> words </refine> words] <|im_end|>      without <refine>: a plan, or the end;
                                                                       with it: a picture, or a corrected plan
    after a draft: an inspection, or the end; after a refined picture: a plan, or the end
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from pdgen.core import config as config_lib

# Items of the sequence; `Lane.item` is the last one that is complete.
PROMPT, PLAN, INSPECTION, DRAFT, REFINED = range(5)
# Places inside a text.
BETWEEN, START, INS, INS_CLOSED, DES, DES_CLOSED, FREE, REFINE, REFINE_CLOSED = range(9)
# Tokens that closing an open plan takes: </ins> <des> </des> <|im_end|>.
_CLOSING = 4
SHORTEST = _CLOSING + 1  # tokens of the shortest plan, so that `max_text_tokens` is at least that
_MAX_TEXTS = 2  # between two pictures: an inspection and a plan


class Lane(struct.PyTreeNode):
  """Where each trajectory stands. Every field [B]."""

  item: jax.Array  # int32; the last complete item.
  place: jax.Array  # int32; place inside the text being written, BETWEEN outside.
  length: jax.Array  # int32; tokens of that text so far.
  texts: jax.Array  # int32; texts written since the last picture.
  refining: jax.Array  # bool; an inspection asked for the next picture, so it will be a refined one.
  direct: bool | jax.Array  # bool; direct mode: one picture, no words.


class Rules(NamedTuple):
  """Static facts of the program. Hashable."""

  specials: config_lib.Specials
  vocab_size: int
  max_text_tokens: int
  grammar: bool


def advance(lane: Lane, token: jax.Array, rules: Rules) -> Lane:
  """The lane after a text token was read. token: int32[B]."""
  s = rules.specials
  plan_next = lane.item != DRAFT  # only a draft is inspected
  writing = lane.place != BETWEEN
  opened = jnp.where(plan_next, START, FREE) if rules.grammar else jnp.full_like(lane.place, FREE)
  place = lane.place
  for tag, to in (
    (s.ins, INS),
    (s.ins_end, INS_CLOSED),
    (s.des, DES),
    (s.des_end, DES_CLOSED),
    (s.refine, REFINE),
    (s.refine_end, REFINE_CLOSED),
  ):
    place = jnp.where(writing & (token == tag), to, place)
  refining = lane.refining | (writing & (token == s.refine) & ~plan_next)
  closes = writing & (token == s.im_end)
  opens = token == s.im_start
  return lane.replace(
    item=jnp.where(closes, jnp.where(plan_next, PLAN, INSPECTION), lane.item),
    place=jnp.where(opens, opened, jnp.where(closes, BETWEEN, place)),
    length=jnp.where(opens, 0, lane.length + 1),
    texts=lane.texts + closes,
    refining=refining,
  )


def painted(lane: Lane, active: jax.Array) -> Lane:
  """The lane after its picture was painted and looked at again. active: bool[B]."""
  item = jnp.where(lane.refining, REFINED, DRAFT)
  return lane.replace(
    item=jnp.where(active, item, lane.item),
    texts=jnp.where(active, 0, lane.texts),
    refining=lane.refining & ~active,
  )


def allowed(lane: Lane, rules: Rules) -> jax.Array:
  """Which tokens each trajectory may write next: bool[B, V], at least one True a row."""
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
    FREE: (words | only(s.refine, s.im_end), only(s.im_end)),
    REFINE: (words | only(s.refine_end), only(s.refine_end)),
    REFINE_CLOSED: (words | only(s.im_end), only(s.im_end)),
  }
  if not rules.grammar:
    free = (words | only(*tags, s.im_end), only(s.im_end))
    inside = {place: free for place in inside}
  near_cap = lane.length >= rules.max_text_tokens - _CLOSING
  result = _boundary(lane, rules, only)
  for place, (may, must) in inside.items():
    here = (lane.place == place)[:, None]
    result = jnp.where(here, jnp.where(near_cap[:, None], must[None], may[None]), result)
  return result


def _boundary(lane: Lane, rules: Rules, only) -> jax.Array:
  """What may come between two items: bool[B, V]."""
  s = rules.specials
  paint, write, end = only(s.vision_start), only(s.im_start), only(s.endoftext)
  either = paint | write
  after_inspection = jnp.where(lane.refining[:, None], either[None], (write | end)[None])
  after_plan = jnp.broadcast_to(paint, after_inspection.shape)
  if not rules.grammar:
    after_plan = jnp.broadcast_to(either, after_inspection.shape)
    after_inspection = after_plan | end[None]
  after_text = jnp.where((lane.item == PLAN)[:, None], after_plan, after_inspection)
  after_text = jnp.where((lane.texts >= _MAX_TEXTS)[:, None], paint[None], after_text)
  after_prompt = jnp.where(lane.direct[:, None], paint[None], write[None])
  after_picture = jnp.where(lane.direct[:, None], end[None], (write | end)[None])
  picture = (lane.item == DRAFT) | (lane.item == REFINED)
  return jnp.where(picture[:, None], after_picture, jnp.where((lane.item == PROMPT)[:, None], after_prompt, after_text))
