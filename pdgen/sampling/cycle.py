"""The painting process as one compiled program: write, paint, look, and again, until every trajectory has ended.

`lax.while_loop` over rounds. A round is a text phase (one token a step for all who write, until each has asked for a
picture or ended) and a picture phase (Euler steps for all who asked, then the picture enters the cache to be looked
at). Nothing returns to Python in between. Trajectories share the steps, never their results: each has its own key,
its own cache slots and its own positions.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.models import attention, interleaved
from pdgen.sampling import canvas, flow, kv_cache, next_token, spans, stop_texts
from pdgen.sampling import grammar as grammar_lib
from pdgen.sampling.sampler_spec import SamplerSpec as SamplerSpec

WRITING, WAITING, ENDED = range(3)  # `State.status`
RUNNING, FINISHED, PICTURE_CAP, TOKEN_CAP = range(4)  # `State.stop`


class SampleBatch(struct.PyTreeNode):
  """What to continue from, a trajectory a row."""

  prefix: packed.PackedBatch  # one sample a row: the prompt, and the steps so far of a partial trajectory.
  grammar: grammar_lib.GrammarState  # where each prefix stands.
  key: jax.Array  # [B] PRNG keys.
  picture_limit: jax.Array  # int32[B]; pictures it may still paint; 0 for rows that only fill the batch.
  kept_order: jax.Array  # int32[B]; guidance by texts leaves in what comes up to this order; -1: nothing.
  texts_until: jax.Array  # int32[B]; the branch without pictures has the texts before this order.
  clean: jax.Array | None = None  # f32[B, G, C]; latents of `prefix`, whose pictures are encoded apart; None: here.
  grids: canvas.Grids | None = None  # Of the pictures to paint; None: all have `SamplerSpec.size`.


class State(struct.PyTreeNode):
  """The loop's state."""

  cache: attention.KVCache  # the cache.
  grammar: grammar_lib.GrammarState  # grammar of each trajectory.
  grids: canvas.Grids | None  # as of `SampleBatch`.
  key: jax.Array  # [B] PRNG keys, never changed; counts are folded in.
  picture_limit: jax.Array  # int32[B]; pictures it may paint in all.
  status: jax.Array  # int32[B]; WRITING, WAITING for its picture, or ENDED.
  stop: jax.Array  # int32[B]; why it ended.
  next_input: jax.Array  # int32[B]; the token that is read next.
  slot: jax.Array  # int32[B]; next free cache slot. The text-only branch's entries lie half a cache further on.
  order: jax.Array  # int32[B]; order of the next token.
  position: jax.Array  # int32[B]; RoPE position of the next token.
  text_position: jax.Array  # int32[B]; the same in the text-only branch.
  texts_until: jax.Array  # int32[B]; as of `SampleBatch`.
  picture_order: jax.Array  # int32[B]; last order that guidance by texts leaves in: of a picture, or of kept texts.
  picture_position: jax.Array  # int32[B]; RoPE position right after that.
  output_tokens: jax.Array  # int32[B, E]; every token chosen, `<|vision_start|>` standing for a whole picture.
  output_logprobs: jax.Array  # f32[B, E]; `next_token.Choice.logprob` of each; of dictated ones too, as if chosen.
  output_count: jax.Array  # int32[B]
  stop_state: jax.Array  # int32[B]; how much of a stop text the text being written holds (`stop_texts.StopTexts`).
  pictures: jax.Array  # uint8[B, M, H, W, 3]; each in the top left corner, and what is beside it means nothing.
  picture_count: jax.Array  # int32[B]
  finite: jax.Array  # bool[B]; no picture so far holds a NaN or an infinite value.
  text_steps: jax.Array  # int32[]; decode steps of all text phases.
  rounds: jax.Array  # int32[]; picture phases.


@functools.partial(jax.jit, static_argnames=('graphdef', 'spec'))
def run(
  graphdef: nnx.GraphDef, params: nnx.State, batch_in: SampleBatch, sampler: flow.SamplerParams, spec: SamplerSpec
) -> State:
  """Samples a batch of trajectories to their ends: the final state, on the device. One program, no host in the loop.

  graphdef: structure of the model (`interleaved.graphdef`). params: its parameters.
  """
  model = nnx.merge(graphdef, params)

  def round_(state: State) -> State:
    state = text_phase(model, state, sampler, spec)
    waiting = jnp.any(state.status == WAITING)
    return jax.lax.cond(waiting, lambda s: picture_phase(model, s, sampler, spec), lambda s: s, state)

  state = prefill(model, batch_in, sampler, spec)
  return jax.lax.while_loop(lambda s: jnp.any(s.status != ENDED), round_, state)


def prefill(
  model: interleaved.Interleaved, batch_in: SampleBatch, sampler: flow.SamplerParams, spec: SamplerSpec
) -> State:
  """Reads the prefix into the cache and decides what each trajectory does first."""
  cfg, sampling, prefix = model.cfg, spec.sampling, batch_in.prefix
  batch, u = prefix.und.token_id.shape
  g = prefix.gen.picture.shape[1]
  # The caps count the tokens of a trajectory, not the padding of its batch: its end must not depend on its neighbours.
  slots = (1 + spec.image_branch) * (u + g + sampling.max_tokens)
  cache, nothing = (kv_cache.empty(cfg, batch=batch, slots=n) for n in (slots, 0))
  both = spans.concatenate(prefix.und.tokens, prefix.gen.tokens)
  slot = jnp.broadcast_to(jnp.arange(u + g), (batch, u + g))
  if (clean := batch_in.clean) is None:
    clean = model.clean_latents(prefix) if g else jnp.zeros((batch, 0, model.codec.channels))
  hidden, kv = model.extend(prefix, clean, jnp.zeros((batch, g)), nothing)
  cache = kv_cache.write(cache, kv, both, slot, after=hidden.und)
  in_texts = lambda tokens: (tokens.span == 0) & (tokens.order < batch_in.texts_until[:, None])
  is_text = (prefix.und.tokens.segment > 0) & in_texts(prefix.und.tokens)
  if spec.image_branch:
    # The same texts once more, as they are without the pictures between them.
    text = prefix.und.tokens._replace(segment=jnp.where(is_text, spans.TEXT_ONLY, 0))
    if sampling.contiguous_positions:
      text = text._replace(position=jnp.cumsum(is_text, axis=1) - 1)
    _, kv = _extend_text(model, prefix.und._replace(tokens=text), nothing)
    cache = kv_cache.write(cache, kv, text, slot[:, :u] + slots // 2, after=hidden.und)

  real = both.segment > 0
  in_picture = real & (both.span > 0)
  last = jnp.argmax(jnp.where(prefix.und.tokens.segment > 0, prefix.und.tokens.order, -1), axis=1)
  ready = batch_in.picture_limit > 0
  picture_order = batch_in.kept_order
  position_after = lambda these: jnp.max(jnp.where(real & these, both.position, -1), axis=1) + 1
  text_position = position_after(in_picture | in_texts(both))
  state = State(
    cache=cache,
    grammar=batch_in.grammar,
    grids=batch_in.grids,
    key=batch_in.key,
    picture_limit=batch_in.picture_limit,
    status=jnp.where(ready, WRITING, ENDED),
    stop=jnp.where(ready, RUNNING, PICTURE_CAP),
    next_input=jnp.zeros((batch,), jnp.int32),
    slot=jnp.full((batch,), u + g, jnp.int32),
    order=jnp.max(jnp.where(real, both.order, -1), axis=1) + 1,
    position=position_after(real),
    text_position=jnp.sum(is_text, axis=1) if sampling.contiguous_positions else text_position,
    texts_until=batch_in.texts_until,
    picture_order=picture_order,
    picture_position=position_after(both.order <= picture_order[:, None]),
    output_tokens=jnp.zeros((batch, sampling.max_tokens), jnp.int32),
    output_logprobs=jnp.zeros((batch, sampling.max_tokens)),
    output_count=jnp.zeros((batch,), jnp.int32),
    stop_state=jnp.full((batch,), stop_texts.NEVER, jnp.int32),
    pictures=jnp.zeros((batch, sampling.max_pictures, *(spec.size or cfg.own_size), 3), jnp.uint8),
    picture_count=jnp.zeros((batch,), jnp.int32),
    finite=jnp.ones((batch,), bool),
    text_steps=jnp.zeros((), jnp.int32),
    rounds=jnp.zeros((), jnp.int32),
  )
  final = jnp.take_along_axis(hidden.und, last[:, None, None], axis=1)[:, 0]
  return choose_next(model, state, final, ready, sampler, spec)


def text_phase(model: interleaved.Interleaved, state: State, sampler: flow.SamplerParams, spec: SamplerSpec) -> State:
  """Decode steps until every trajectory has asked for a picture or has ended."""
  writing = lambda s: jnp.any(s.status == WRITING)
  return jax.lax.while_loop(writing, lambda s: decode_step(model, s, sampler, spec), state)


def dictated_text(
  model: interleaved.Interleaved, state: State, sampler: flow.SamplerParams, spec: SamplerSpec, tokens: jax.Array
) -> State:
  """Decode steps in which some trajectories take down a text that the host gives; the others write on by themselves.

  Args:
    model: with its parameters.
    state: of the loop; those that are dictated to write, and have chosen to begin a text.
    sampler: how tokens are chosen.
    spec: grammar and caps.
    tokens: int32[B, T], the text and its `<|im_end|>`, then -1; all of a row -1: nothing is dictated to it.
  """
  count = jnp.max(jnp.sum(tokens >= 0, axis=1))
  step = lambda i, s: decode_step(model, s, sampler, spec, dictated=tokens[:, i])
  return jax.lax.fori_loop(0, count, step, state)


def decode_step(
  model: interleaved.Interleaved,
  state: State,
  sampler: flow.SamplerParams,
  spec: SamplerSpec,
  *,
  dictated: jax.Array | None = None,
) -> State:
  """One step of the text phase: every writing trajectory reads its next_input token and chooses the next.

  Args:
    model: with its parameters.
    state: of the loop.
    sampler: how tokens are chosen.
    spec: grammar and caps.
    dictated: int32[B], the token that is taken instead of a choice; -1: the model chooses. None: it does everywhere.
  """
  active = state.status == WRITING
  state, hidden = append_token(model, state, spec)
  return choose_next(model, state, hidden, active, sampler, spec, dictated=dictated)


def append_token(model: interleaved.Interleaved, state: State, spec: SamplerSpec) -> tuple[State, jax.Array]:
  """Every writing trajectory reads its next_input token. Also returns the final hidden states, [B, D]."""
  active = state.status == WRITING
  one = active.astype(jnp.int32)
  in_texts = active & (state.order < state.texts_until)
  without_pictures = (in_texts, state.text_position) if spec.image_branch else None
  und = spans.text_tokens(state.next_input, active, state.order, state.position, without_pictures)
  slots = state.slot[:, None]
  if spec.image_branch:
    slots = slots + jnp.array([[0, state.cache.slots // 2]])
  hidden, kv = _extend_text(model, und, state.cache)
  grammar = grammar_lib.after_token(state.grammar, state.next_input, spec.grammar)
  state = state.replace(
    cache=kv_cache.write(state.cache, kv, und.tokens, slots, after=hidden.und),
    grammar=jax.tree.map(
      lambda new, old: jnp.where(active.reshape(-1, *[1] * (new.ndim - 1)), new, old), grammar, state.grammar
    ),
    slot=state.slot + one,
    order=state.order + one,
    position=state.position + one,
    text_position=state.text_position + in_texts.astype(jnp.int32),
    text_steps=state.text_steps + 1,
  )
  return state, hidden.und[:, 0]


def picture_phase(
  model: interleaved.Interleaved, state: State, sampler: flow.SamplerParams, spec: SamplerSpec
) -> State:
  """The picture phase: those who wait are given a picture, look at it, and decide whether to go on."""
  active = state.status == WAITING
  one = active.astype(jnp.int32)
  layout = _layout(model, state, spec)
  # What is looked at is the picture as it is given out, so that a trajectory can be continued from its pictures.
  pixels = layout.decode(model.codec, denoise(model, state, sampler, spec))
  picture = model.codec.to_uint8(pixels)
  und, gen = spans.context_copies(spec.specials, active, state.order, state.position, layout.latent, layout.vit)
  seen = packed.PackedBatch(und, gen, picture[:, None], vit=layout.vit_patches(model.vit, picture))
  z = layout.encode(model.codec, picture)
  hidden, kv = model.extend(seen, z, jnp.zeros(z.shape[:2]), state.cache)

  tokens_ = spans.concatenate(und.tokens, gen.tokens)
  count, copies = layout.picture_tokens, 2 if model.vit is not None else 1
  order, position = state.order + one * count, state.position + one * copies
  index = jnp.where(active, state.picture_count, state.pictures.shape[1])
  state = state.replace(
    cache=kv_cache.write(state.cache, kv, tokens_, state.slot[:, None] + layout.slots(tokens_), after=hidden.und),
    grammar=grammar_lib.after_picture(state.grammar, active),
    slot=state.slot + one * count,
    order=order,
    position=position,
    text_position=state.text_position if spec.sampling.contiguous_positions else position,
    picture_order=jnp.where(active, order - 1, state.picture_order),
    picture_position=jnp.where(active, position, state.picture_position),
    pictures=kv_cache.scatter_rows(state.pictures, index[:, None], picture[:, None]),
    picture_count=state.picture_count + one,
    finite=state.finite & (jnp.isfinite(pixels).all(axis=(1, 2, 3)) | ~active),
    rounds=state.rounds + 1,
  )
  return choose_next(model, state, hidden.und[:, -1], active, sampler, spec)


def denoise(model: interleaved.Interleaved, state: State, sampler: flow.SamplerParams, spec: SamplerSpec) -> jax.Array:
  """The latents of the next picture, from the noise of each trajectory's own key: f32[B, Q, C]."""
  cells = _layout(model, state, spec).latent.total

  def noise(key: jax.Array, count: jax.Array) -> jax.Array:
    # Texts fold in 0, 1, 2, ...; pictures count down from the other end.
    key = jax.random.fold_in(key, jnp.uint32(0xFFFFFFFF) - count.astype(jnp.uint32))
    return jax.random.normal(key, (cells, model.codec.channels))  # Of a cell it is the same whatever their number.

  z = jax.vmap(noise)(state.key, state.picture_count)
  steps = None
  if spec.drafts:  # Rows that do not wait hold nobody up.
    steps = jnp.where(state.grammar.refining, sampler.flow_steps, sampler.draft_steps)
    steps = jnp.where(state.status == WAITING, steps, 0)
  velocity, memory = velocities(model, state, sampler, spec)
  return flow.integrate(z, velocity, sampler, solver=spec.sampling.solver, steps=steps, memory=memory)


def velocities(
  model: interleaved.Interleaved, state: State, sampler: flow.SamplerParams, spec: SamplerSpec
) -> tuple[flow.Velocity, Any]:
  """The guided velocity of the next pictures, and the memory that it begins with; one forward for all branches.

  Args:
    model: with its parameters.
    state: of the loop; trajectories that do not wait for a picture get padding.
    sampler: scales and interval of guidance.
    spec: which branches there are, and the size of the pictures.
  """
  cells = _layout(model, state, spec).latent
  active = state.status == WAITING
  branches = [spans.Branch(spans.FULL, state.order - 1, state.position)]
  if spec.text_branch:
    branches.append(spans.Branch(spans.FULL, state.picture_order, state.picture_position))
  if spec.image_branch:
    branches.append(spans.Branch(spans.TEXT_ONLY, state.order - 1, state.text_position))

  def forward(at: flow.At, count: int) -> list[jax.Array]:
    und, gen = spans.noised_copies(spec.specials, active, branches[:count], state.order, cells)
    copies = packed.PackedBatch(und, gen, _no_pictures(model, at.z.shape[0]))
    t = jnp.broadcast_to(jnp.reshape(at.t, (-1, 1)), (at.z.shape[0], count * at.z.shape[1]))
    z = jnp.tile(at.z, (1, count, 1))
    hidden, _ = model.extend(copies, z, t, state.cache)
    # Zero where no picture is: what is there stays finite, and no norm counts it.
    return [cells.mask(v) for v in jnp.split(model.velocity(hidden.gen, z, t), count, axis=1)]

  def guide(at: flow.At, v: jax.Array, others: list[jax.Array]) -> jax.Array:
    v_text, v_image = others[0] if spec.text_branch else None, others[-1] if spec.image_branch else None
    result, on = flow.guide(v, v_text, v_image, sampler, renorm=spec.sampling.renorm), flow.is_guided(at.t, sampler)
    return jnp.where(on[:, None, None], result, v) if on.ndim else result

  kept = None
  if spec.reuses:
    zeros = jnp.zeros((state.status.shape[0], cells.total, model.codec.channels))
    kept = flow.Kept(jnp.zeros(state.status.shape, jnp.int32), [zeros for _ in branches[1:]])
  return flow.with_guidance(forward, guide, sampler, branches=len(branches)), kept


def max_tokens_per_round(sampling: config_lib.SamplingConfig, picture_tokens: Any) -> Any:
  """The most tokens that a trajectory takes until it has looked at its next picture: two texts, two picture copies.

  picture_tokens: of these copies, a number or those of each trajectory (`canvas.Layout.picture_tokens`).
  """
  return 2 * (sampling.max_text_tokens + 2) + picture_tokens


def choose_next(
  model: interleaved.Interleaved,
  state: State,
  hidden: jax.Array,
  active: jax.Array,
  sampler: flow.SamplerParams,
  spec: SamplerSpec,
  *,
  dictated: jax.Array | None = None,
) -> State:
  """Chooses what each active trajectory does next: a token, a picture, or the end.

  Args:
    model: with its parameters.
    state: of the loop.
    hidden: [B, D], final hidden state of the last token of each trajectory.
    active: bool[B], trajectories that choose.
    sampler: how tokens are chosen, and the budget of edits.
    spec: grammar and caps.
    dictated: as of `decode_step`.
  """
  logits = model.logits(hidden)[:, : spec.vocab_size]
  closing = state.stop_state == stop_texts.COMPLETE if sampler.stops is not None else None
  allowed = grammar_lib.allowed_tokens(state.grammar, spec.grammar, max_edits=sampler.max_edits, closing=closing)
  # No text is open between two items, and the length is that of the last one.
  length = jnp.where(state.grammar.tag_state == grammar_lib.BOUNDARY, 0, state.grammar.length)
  written = state.output_tokens, state.output_count, length
  repeated = next_token.last_words(*written, spec.specials, absent=spec.vocab_size) if spec.penalises else None
  token, logprob = next_token.sample(
    logits, allowed, state.key, state.output_count, sampler, ranks=spec.ranks, repeated=repeated
  )
  if dictated is not None:
    token = jnp.where(dictated >= 0, dictated, token)
  # Caps end a trajectory only where it has just looked at a picture, so that it ends with a whole one, or may end.
  may_end, looked = state.grammar.may_end, state.grammar.may_end & state.grammar.painted_last
  room = state.cache.slots // (1 + spec.image_branch) - state.slot
  most = max_tokens_per_round(spec.sampling, _layout(model, state, spec).picture_tokens)
  stop = jnp.where(may_end & (room < most), TOKEN_CAP, RUNNING)
  stop = jnp.where(looked & (state.picture_count >= state.picture_limit), PICTURE_CAP, stop)
  stop = jnp.where(token == spec.specials.endoftext, FINISHED, stop)
  goes_on = active & (stop == RUNNING)
  status = jnp.where(goes_on, jnp.where(token == spec.specials.vision_start, WAITING, WRITING), ENDED)
  index = jnp.where(goes_on, state.output_count, state.output_tokens.shape[1])
  if (stops := sampler.stops) is not None:
    after = jnp.where(
      token == spec.specials.im_start, stops.begin, stops.after[state.stop_state, token].astype(jnp.int32)
    )
    state = state.replace(stop_state=jnp.where(goes_on, after, state.stop_state))
  return state.replace(
    stop=jnp.where(active, stop, state.stop),
    status=jnp.where(active, status, state.status),
    next_input=jnp.where(goes_on, token, state.next_input),
    output_tokens=kv_cache.scatter_rows(state.output_tokens, index[:, None], token[:, None]),
    output_logprobs=kv_cache.scatter_rows(state.output_logprobs, index[:, None], logprob[:, None]),
    output_count=state.output_count + goes_on.astype(jnp.int32),
  )


def _layout(model: interleaved.Interleaved, state: State, spec: SamplerSpec) -> canvas.Layout:
  return canvas.layout(model.cfg, spec.size, spec.most, state.grids)


def _extend_text(model: interleaved.Interleaved, und: packed.UndStream, cache: attention.KVCache):
  """Reads text tokens alone: no gen stream, no pictures."""
  batch = und.token_id.shape[0]
  nothing = packed.PackedBatch(und, spans.empty_gen(batch), _no_pictures(model, batch))
  return model.extend(nothing, jnp.zeros((batch, 0, model.codec.channels)), jnp.zeros((batch, 0)), cache)


def _no_pictures(model: interleaved.Interleaved, batch: int) -> jax.Array:
  return jnp.zeros((batch, 0, model.cfg.image_size, model.cfg.image_size, 3), jnp.uint8)
