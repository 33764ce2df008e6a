"""What the tests of parity at inference share: contexts of texts and pictures in the cache, and what follows them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pdgen.core import config, packed
from pdgen.data import images, packing
from pdgen.data import items as items_lib
from pdgen.models import attention, interleaved
from pdgen.sampling import cycle, flow, grammar, kv_cache, next_token, spans
from support import golden_folder, toy

SAMPLING = config.SamplingConfig(max_tokens=64, contiguous_positions=True)


def text(name):
  """The text of an array of ids."""
  return items_lib.Text(ids=tuple(golden_folder.integers(name)))


def pixels(name):
  """An array f32[3, H, W] as [H, W, 3]."""
  return golden_folder.value(name).transpose(1, 2, 0)


def prefixes(*contexts, cfg):
  """A batch with a context (items of `data.items`) a row, padded to the longest."""
  sizes = [item.pixels.shape[:2] for context in contexts for item in context if isinstance(item, items_lib.Latents)]
  canvas = np.max([(cfg.codec.patch,) * 2, *sizes], axis=0)
  rows = [
    items_lib.build(
      context,
      specials=golden_folder.specials(),
      model=cfg,
      sequence=config.SequenceConfig(),
      canvas=tuple(canvas.tolist()),
    )
    for context in contexts
  ]
  budgets = packed.RowBudget(*(max(sizes) for sizes in zip(*map(packing.sizes, rows), strict=True)))
  return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *(packing.pack_row([row], budgets) for row in rows))


def program(*, text_branch=True, image_branch=True, renorm='none'):
  """What shapes the sampler's program."""
  sampling = dataclasses.replace(SAMPLING, renorm=renorm)
  vocabulary = golden_folder.model_config().vocab_size
  return cycle.SamplerSpec(sampling, golden_folder.specials(), vocabulary, text_branch, image_branch)


def knobs(**changes):
  """The sampler's numbers."""
  flow_steps = changes.pop('flow_steps', 1)
  values = dataclasses.replace(SAMPLING, **{'text_guidance': 1.0, 'image_guidance': 1.0, **changes})
  return flow.SamplerParams.of(values).replace(flow_steps=jnp.int32(flow_steps))


@functools.partial(jax.jit, static_argnames=('cfg', 'shape'))
def begin(params, batch, knobs_, *, cfg, shape):
  """The sampler's state after it has read a `cycle.SampleBatch`."""
  return cycle.prefill(nnx.merge(interleaved.graphdef(cfg), params), batch, knobs_, shape)


def _contexts(prefix):
  """A batch of contexts, each about to be given a picture."""
  rows = prefix.und.token_id.shape[0]
  zeros = jnp.zeros(rows, jnp.int32)
  lane = grammar.from_trajectories([toy.Trajectory(prompt='', steps=(), mode='direct')] * rows)
  keys = jax.vmap(jax.random.key)(jnp.arange(rows))
  tokens = spans.concatenate(prefix.und.tokens, prefix.gen.tokens)
  kept = jnp.max(jnp.where((tokens.segment > 0) & (tokens.span > 0), tokens.order, -1), axis=1)
  return cycle.SampleBatch(prefix, lane, keys, zeros + 1, kept, zeros + config.MOST)


def start(prefix, *, cfg, shape=None):
  """The sampler's state after it has read a batch of contexts, each about to be given a picture."""
  state = begin(golden_folder.params(), _contexts(prefix), knobs(), cfg=cfg, shape=shape or program())
  assert state.status.tolist() == [cycle.WAITING] * len(state.status)
  return state


@functools.partial(jax.jit, static_argnames=('cfg',))
def forward(params, prefix, *, cfg):
  """What the trunk reads and gives for a batch of contexts: two (und, gen) pairs, and the logits of und."""
  model = nnx.merge(interleaved.graphdef(cfg), params)
  clean, t = model.clean_latents(prefix), jnp.zeros(prefix.gen.patch.shape)
  inputs = model.embed_und(prefix.und, prefix.pictures, prefix.vit), model.embed_latents(clean, t, prefix.gen.patch)
  hidden, _ = model.extend(prefix, clean, t, kv_cache.empty(cfg, batch=len(t), slots=0))
  return inputs, tuple(hidden), model.logits(hidden.und)


@functools.partial(jax.jit, static_argnames=('cfg', 'shape'))
def _read(params, state, *, cfg, shape):
  model = nnx.merge(interleaved.graphdef(cfg), params)
  state, hidden = cycle.append_token(model, state, shape)
  logits = model.logits(hidden)
  everything = jnp.ones(logits.shape, bool)
  greedy = flow.SamplerParams.of(config.SamplingConfig())
  return state, logits, next_token.sample(logits, everything, state.key, state.output_count, greedy).token


def read(state, ids, *, cfg, shape=None):
  """The state after a text, read token by token. ids: of every row."""
  for token in ids:
    state = state.replace(status=jnp.zeros_like(state.status) + cycle.WRITING, next_input=jnp.asarray(token, jnp.int32))
    state, _, _ = _read(golden_folder.params(), state, cfg=cfg, shape=shape or program())
  return state.replace(status=jnp.zeros_like(state.status) + cycle.WAITING)


def write(state, count, *, cfg, shape=None):
  """Greedy text from `<|im_start|>` on. Returns the tokens that are read, [count, B], and the logits after each."""
  pending = jnp.full_like(state.next_input, golden_folder.specials().im_start)
  fed, found = [], []
  for _ in range(count):
    fed.append(np.asarray(pending))
    state = state.replace(status=jnp.zeros_like(state.status) + cycle.WRITING, next_input=pending)
    state, logits, pending = _read(golden_folder.params(), state, cfg=cfg, shape=shape or program())
    found.append(np.asarray(logits))
  return np.stack(fed), np.stack(found), np.asarray(pending)


def _of_grid(shape, grid, cfg):
  """The program for pictures of so many rows and columns of latent patches."""
  return shape._replace(size=tuple(n * cfg.codec.patch for n in grid))


@functools.partial(jax.jit, static_argnames=('cfg', 'shape', 'grid'))
def velocity(params, state, z, t, knobs_, *, cfg, shape, grid):
  """The guided velocity of the next pictures: f32[B, Q, C]."""
  shape = _of_grid(shape, grid, cfg)
  of, memory = cycle.velocities(nnx.merge(interleaved.graphdef(cfg), params), state, knobs_, shape)
  return of(flow.At(z, t), memory)[0]


@functools.partial(jax.jit, static_argnames=('cfg', 'shape', 'grid'))
def paint(params, state, z, knobs_, *, cfg, shape, grid):
  """From noise to latents, pixels [B, H, W, 3] and picture uint8[B, H, W, 3], as the sampler's picture phase does."""
  model = nnx.merge(interleaved.graphdef(cfg), params)
  velocity, memory = cycle.velocities(model, state, knobs_, _of_grid(shape, grid, cfg))
  z = flow.integrate(z, velocity, knobs_, memory=memory)
  decoded = model.codec.decode(z, rows=grid[0])
  return z, decoded, model.codec.to_uint8(decoded)


def in_order(tokens_, *arrays, segment=spans.FULL, row=0):
  """Rows of arrays [B, T, ..] that belong to a segment, in the order of the interleaved sequence."""
  order = np.asarray(tokens_.order[row])
  mine = np.flatnonzero(np.asarray(tokens_.segment[row]) == segment)
  mine = mine[np.argsort(order[mine], kind='stable')]
  plain = lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x
  found = [np.asarray(plain(array[row]))[mine] for array in arrays]
  return found[0] if len(found) == 1 else found


def cached(state, layer, *, segment=spans.FULL, row=0):
  """Keys and values of a layer in the order of the sequence: [T, K, H] each."""
  cache: attention.KVCache = state.cache
  k, v = (x[layer].swapaxes(1, 2) for x in (cache.k, cache.v))  # Slots before heads.
  return in_order(cache.tokens, k, v, segment=segment, row=row)


def transform(name):
  """An ImageTransform of an array (max, min, stride)."""
  longest, shortest, stride = golden_folder.integers(name)
  return images.ImageTransform(max_size=longest, min_size=shortest, stride=stride)
