"""The painting process as one compiled program: write, paint, look, and again, until every trajectory has ended.

`lax.while_loop` over rounds. A round is a text phase (one token a step for all who write, until each has asked for a
picture or ended) and a picture phase (Euler steps for all who asked, then the picture enters the cache to be looked
at). Nothing returns to Python in between. Trajectories share the steps, never their results: each has its own key,
its own cache slots and its own positions.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, struct

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.models import attention, interleaved, latents
from pdgen.sampling import cache, flow, grammar, streams, tokens

WRITING, WAITING, ENDED = range(3)  # `State.status`
RUNNING, FINISHED, PICTURE_CAP, TOKEN_CAP = range(4)  # `State.stop`
_SHAPING = ('max_pictures', 'max_text_tokens', 'max_tokens', 'grammar', 'renorm', 'closed_positions')


class Program(NamedTuple):
  """What shapes the compiled program. Hashable, a static argument.

  vocab_size: ids of the tokenizer; the language head may have more rows, which are never chosen.
  text_branch, image_branch: whether guidance by texts (by pictures) is on; each is one more branch of a denoising step.
  """

  sampling: config_lib.SamplingConfig
  specials: config_lib.Specials
  vocab_size: int
  text_branch: bool
  image_branch: bool

  @classmethod
  def of(cls, sampling: config_lib.SamplingConfig, specials: config_lib.Specials, vocab_size: int) -> 'Program':
    """The program of a config. What travels in `flow.Knobs` is set to its default: it compiles nothing anew."""
    return cls(
      sampling=config_lib.SamplingConfig(**{name: getattr(sampling, name) for name in _SHAPING}),
      specials=specials,
      vocab_size=vocab_size,
      text_branch=sampling.text_guidance != 1.0,
      image_branch=sampling.image_guidance != 1.0,
    )

  @property
  def rules(self) -> grammar.Rules:
    return grammar.Rules(self.specials, self.vocab_size, self.sampling.max_text_tokens, self.sampling.grammar)


class Request(struct.PyTreeNode):
  """What to continue from, a trajectory a row."""

  prefix: packed.PackedBatch  # one sample a row: the prompt, and the steps so far of a partial trajectory.
  lane: grammar.Lane  # where each prefix stands.
  key: jax.Array  # [B] PRNG keys.
  budget: jax.Array  # int32[B]; pictures it may still paint; 0 for rows that only fill the batch.


class State(struct.PyTreeNode):
  """The loop's state."""

  past: attention.Past  # the cache.
  lane: grammar.Lane  # grammar of each trajectory.
  key: jax.Array  # [B] PRNG keys, never changed; counts are folded in.
  budget: jax.Array  # int32[B]; pictures it may paint in all.
  status: jax.Array  # int32[B]; WRITING, WAITING for its picture, or ENDED.
  stop: jax.Array  # int32[B]; why it ended.
  pending: jax.Array  # int32[B]; the token that is read next.
  slot: jax.Array  # int32[B]; next free cache slot. The text-only branch's entries lie half a cache further on.
  order: jax.Array  # int32[B]; order of the next token.
  position: jax.Array  # int32[B]; RoPE position of the next token.
  text_position: jax.Array  # int32[B]; the same in the text-only branch.
  picture_order: jax.Array  # int32[B]; order of the last picture's last token, -1 before the first picture.
  picture_position: jax.Array  # int32[B]; RoPE position right after that picture, 0 before the first.
  written: jax.Array  # int32[B, E]; every token chosen, `<|vision_start|>` standing for a whole picture.
  written_count: jax.Array  # int32[B]
  pictures: jax.Array  # uint8[B, M, H, W, 3]
  picture_count: jax.Array  # int32[B]
  text_steps: jax.Array  # int32[]; steps of all text phases.
  rounds: jax.Array  # int32[]; picture phases.


@functools.partial(jax.jit, static_argnames=('graphdef', 'program'))
def run(graphdef: nnx.GraphDef, params: nnx.State, request: Request, knobs: flow.Knobs, program: Program) -> State:
  """Samples a batch of trajectories to their ends. One call, one program, no host in the loop."""
  model = nnx.merge(graphdef, params)

  def writing(state: State) -> jax.Array:
    return jnp.any(state.status == WRITING)

  def round_(state: State) -> State:
    state = jax.lax.while_loop(writing, lambda s: write_token(model, s, knobs, program), state)
    waiting = jnp.any(state.status == WAITING)
    return jax.lax.cond(waiting, lambda s: paint(model, s, knobs, program), lambda s: s, state)

  state = start(model, request, knobs, program)
  return jax.lax.while_loop(lambda s: jnp.any(s.status != ENDED), round_, state)


def start(model: interleaved.Interleaved, request: Request, knobs: flow.Knobs, program: Program) -> State:
  """Reads the prefix into the cache and decides what each trajectory does first."""
  cfg, sampling, prefix = model.cfg, program.sampling, request.prefix
  batch, u = prefix.und.token_id.shape
  g = prefix.gen.picture.shape[1]
  # The caps count the tokens of a trajectory, not the padding of its batch: its end must not depend on its neighbours.
  slots = (1 + program.image_branch) * (u + g + sampling.max_tokens)
  past, nothing = (cache.empty(cfg, batch=batch, slots=n) for n in (slots, 0))
  both = streams.concatenate(prefix.und.tokens, prefix.gen.tokens)
  slot = jnp.broadcast_to(jnp.arange(u + g), (batch, u + g))
  clean = model.clean_latents(prefix) if g else jnp.zeros((batch, 0, model.codec.channels))
  hidden, kv = model.extend(prefix, clean, jnp.zeros((batch, g)), nothing)
  past = cache.write(past, kv, both, slot, after=hidden.und)
  if program.image_branch:
    # The same texts once more, as they are without the pictures between them.
    is_text = (prefix.und.tokens.segment > 0) & (prefix.und.tokens.span == 0)
    text = prefix.und.tokens._replace(segment=jnp.where(is_text, streams.TEXT_ONLY, 0))
    if sampling.closed_positions:
      text = text._replace(position=jnp.cumsum(is_text, axis=1) - 1)
    _, kv = _extend_text(model, prefix.und._replace(tokens=text), nothing)
    past = cache.write(past, kv, text, slot[:, :u] + slots // 2, after=hidden.und)

  real = both.segment > 0
  in_picture = real & (both.span > 0)
  last = jnp.argmax(jnp.where(prefix.und.tokens.segment > 0, prefix.und.tokens.order, -1), axis=1)
  ready = request.budget > 0
  position = jnp.max(jnp.where(real, both.position, -1), axis=1) + 1
  texts = jnp.sum((prefix.und.tokens.segment > 0) & (prefix.und.tokens.span == 0), axis=1)
  state = State(
    past=past,
    lane=request.lane,
    key=request.key,
    budget=request.budget,
    status=jnp.where(ready, WRITING, ENDED),
    stop=jnp.where(ready, RUNNING, PICTURE_CAP),
    pending=jnp.zeros((batch,), jnp.int32),
    slot=jnp.full((batch,), u + g, jnp.int32),
    order=jnp.max(jnp.where(real, both.order, -1), axis=1) + 1,
    position=position,
    text_position=texts if sampling.closed_positions else position,
    picture_order=jnp.max(jnp.where(in_picture, both.order, -1), axis=1),
    picture_position=jnp.max(jnp.where(in_picture, both.position, -1), axis=1) + 1,
    written=jnp.zeros((batch, sampling.max_tokens), jnp.int32),
    written_count=jnp.zeros((batch,), jnp.int32),
    pictures=jnp.zeros((batch, sampling.max_pictures, cfg.image_size, cfg.image_size, 3), jnp.uint8),
    picture_count=jnp.zeros((batch,), jnp.int32),
    text_steps=jnp.zeros((), jnp.int32),
    rounds=jnp.zeros((), jnp.int32),
  )
  final = jnp.take_along_axis(hidden.und, last[:, None, None], axis=1)[:, 0]
  return _decide(model, state, final, ready, knobs, program)


def write_token(model: interleaved.Interleaved, state: State, knobs: flow.Knobs, program: Program) -> State:
  """One step of the text phase: every writing trajectory reads its pending token and chooses the next."""
  active = state.status == WRITING
  state, hidden = read_token(model, state, program)
  return _decide(model, state, hidden, active, knobs, program)


def read_token(model: interleaved.Interleaved, state: State, program: Program) -> tuple[State, jax.Array]:
  """Every writing trajectory reads its pending token. Also returns the final hidden states, [B, D]."""
  active = state.status == WRITING
  text_position = state.text_position if program.image_branch else None
  und = streams.text(state.pending, active, state.order, state.position, text_position)
  slots = state.slot[:, None]
  if program.image_branch:
    slots = slots + jnp.array([[0, state.past.k.shape[2] // 2]])
  hidden, kv = _extend_text(model, und, state.past)
  lane = grammar.advance(state.lane, state.pending, program.rules)
  state = state.replace(
    past=cache.write(state.past, kv, und.tokens, slots, after=hidden.und),
    lane=jax.tree.map(lambda new, old: jnp.where(active, new, old), lane, state.lane),
    slot=state.slot + active,
    order=state.order + active,
    position=state.position + active,
    text_position=state.text_position + active,
    text_steps=state.text_steps + 1,
  )
  return state, hidden.und[:, 0]


def paint(model: interleaved.Interleaved, state: State, knobs: flow.Knobs, program: Program) -> State:
  """The picture phase: those who wait are given a picture, look at it, and decide whether to go on."""
  active = state.status == WAITING
  z = denoise(model, state, knobs, program)
  # What is looked at is the picture as it is given out, so that a trajectory can be continued from its pictures.
  picture = model.codec.to_uint8(model.codec.decode(z))
  und, gen = streams.seen_copies(model.cfg, program.specials, active, state.order, state.position)
  seen = packed.PackedBatch(und, gen, picture[:, None])
  z = model.codec.encode(latents.to_pixels(picture)[:, None])[:, 0]
  hidden, kv = model.extend(seen, z, jnp.zeros(z.shape[:2]), state.past)

  tokens_ = streams.concatenate(und.tokens, gen.tokens)
  count, copies = tokens_.order.shape[1], 2 if model.vit is not None else 1
  order, position = state.order + active * count, state.position + active * copies
  index = jnp.where(active, state.picture_count, state.pictures.shape[1])
  state = state.replace(
    past=cache.write(state.past, kv, tokens_, state.slot[:, None] + jnp.arange(count)[None], after=hidden.und),
    lane=grammar.painted(state.lane, active),
    slot=state.slot + active * count,
    order=order,
    position=position,
    text_position=state.text_position if program.sampling.closed_positions else position,
    picture_order=jnp.where(active, order - 1, state.picture_order),
    picture_position=jnp.where(active, position, state.picture_position),
    pictures=cache.put(state.pictures, index[:, None], picture[:, None]),
    picture_count=state.picture_count + active,
    rounds=state.rounds + 1,
  )
  return _decide(model, state, hidden.und[:, -1], active, knobs, program)


def denoise(model: interleaved.Interleaved, state: State, knobs: flow.Knobs, program: Program) -> jax.Array:
  """The latents of the next picture, from the noise of each trajectory's own key: f32[B, Q, C]."""

  def noise(key: jax.Array, count: jax.Array) -> jax.Array:
    # Texts fold in 0, 1, 2, ...; pictures count down from the other end.
    key = jax.random.fold_in(key, jnp.uint32(0xFFFFFFFF) - count)
    return jax.random.normal(key, (model.cfg.latent_tokens, model.codec.channels))

  z = jax.vmap(noise)(state.key, state.picture_count)
  return flow.euler(z, velocities(model, state, knobs, program), knobs)


def velocities(
  model: interleaved.Interleaved,
  state: State,
  knobs: flow.Knobs,
  program: Program,
  *,
  grid: tuple[int, int] | None = None,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """The guided velocity of the pictures that are waited for, as a function of z: f32[B, Q, C] and t: f32[].

  One forward a call for all branches of guidance. grid: rows and columns of the pictures' latent patches; None: of the
  model's own.
  """
  active = state.status == WAITING
  branches = [(streams.FULL, state.order - 1, state.position)]
  if program.text_branch:
    branches.append((streams.FULL, state.picture_order, state.picture_position))
  if program.image_branch:
    branches.append((streams.TEXT_ONLY, state.order - 1, state.text_position))

  def forward(z: jax.Array, t: jax.Array, count: int) -> list[jax.Array]:
    und, gen = streams.noised_copies(model.cfg, program.specials, active, branches[:count], state.order, grid)
    copies = packed.PackedBatch(und, gen, _no_pictures(model, z.shape[0]))
    t = jnp.broadcast_to(t, (z.shape[0], count * z.shape[1]))
    z = jnp.tile(z, (1, count, 1))
    hidden, _ = model.extend(copies, z, t, state.past)
    return jnp.split(model.velocity(hidden.gen, z, t), count, axis=1)

  def guided(z: jax.Array, t: jax.Array) -> jax.Array:
    v, *others = forward(z, t, len(branches))
    v_text = others[0] if program.text_branch else None
    v_image = others[-1] if program.image_branch else None
    return flow.guide(v, v_text, v_image, knobs, renorm=program.sampling.renorm)

  def plain(z: jax.Array, t: jax.Array) -> jax.Array:
    return forward(z, t, 1)[0]

  def velocity(z: jax.Array, t: jax.Array) -> jax.Array:
    return jax.lax.cond(flow.is_guided(t, knobs), guided, plain, z, t) if len(branches) > 1 else plain(z, t)

  return velocity


def worst_round(cfg: config_lib.ModelConfig, sampling: config_lib.SamplingConfig) -> int:
  """The most tokens that a trajectory takes until it has looked at its next picture: two texts, two picture copies."""
  return 2 * (sampling.max_text_tokens + 2) + cfg.latent_tokens + 2 + (cfg.vit_tokens + 2 if cfg.vit else 0)


def _decide(
  model: interleaved.Interleaved,
  state: State,
  hidden: jax.Array,
  active: jax.Array,
  knobs: flow.Knobs,
  program: Program,
) -> State:
  """Chooses what each active trajectory does next: a token, a picture, or the end. hidden: [B, D]."""
  logits = model.logits(hidden)[:, : program.vocab_size]
  allowed = grammar.allowed(state.lane, program.rules)
  token = tokens.choose(logits, allowed, state.key, state.written_count, knobs.temperature)
  # Caps end a trajectory only where it has just looked at a picture, so that it ends with a whole one.
  looked = (state.lane.place == grammar.BETWEEN) & (state.lane.item >= grammar.DRAFT)
  room = state.past.k.shape[2] // (1 + program.image_branch) - state.slot
  stop = jnp.where(looked & (room < worst_round(model.cfg, program.sampling)), TOKEN_CAP, RUNNING)
  stop = jnp.where(looked & (state.picture_count >= state.budget), PICTURE_CAP, stop)
  stop = jnp.where(token == program.specials.endoftext, FINISHED, stop)
  goes_on = active & (stop == RUNNING)
  status = jnp.where(goes_on, jnp.where(token == program.specials.vision_start, WAITING, WRITING), ENDED)
  index = jnp.where(goes_on, state.written_count, state.written.shape[1])
  return state.replace(
    stop=jnp.where(active, stop, state.stop),
    status=jnp.where(active, status, state.status),
    pending=jnp.where(goes_on, token, state.pending),
    written=cache.put(state.written, index[:, None], token[:, None]),
    written_count=state.written_count + goes_on,
  )


def _extend_text(model: interleaved.Interleaved, und: packed.UndStream, past: attention.Past):
  """Reads text tokens alone: no gen stream, no pictures."""
  batch = und.token_id.shape[0]
  nothing = packed.PackedBatch(und, streams.no_gen(batch), _no_pictures(model, batch))
  return model.extend(nothing, jnp.zeros((batch, 0, model.codec.channels)), jnp.zeros((batch, 0)), past)


def _no_pictures(model: interleaved.Interleaved, batch: int) -> jax.Array:
  return jnp.zeros((batch, 0, model.cfg.image_size, model.cfg.image_size, 3), jnp.uint8)
