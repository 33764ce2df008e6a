"""Sampling the next token of each trajectory with its own key: temperature, top-k, top-p, repetition penalty."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pdgen.core import config as config_lib
from pdgen.sampling import flow


class Choice(NamedTuple):
  """What was chosen. Every field [B]."""

  token: jax.Array  # int32
  logprob: jax.Array  # f32; of the token, in the distribution that it was drawn from; greedy: at temperature 1.


def sample(
  logits: jax.Array,
  allowed: jax.Array,
  keys: jax.Array,
  counts: jax.Array,
  sampler: flow.SamplerParams,
  *,
  ranks: bool = False,
  repeated: jax.Array | None = None,
) -> Choice:
  """Samples the next token of each trajectory.

  In this order: repetition penalty (CTRL, arXiv 1909.05858), what is not allowed, temperature, the `top_k` likeliest,
  the fewest likeliest whose probabilities sum to `top_p` (nucleus, arXiv 1904.09751). Numbers of `sampler` may be [B],
  one for each trajectory.

  Args:
    logits: f32[B, V].
    allowed: bool[B, V], at least one True a row.
    keys: [B] PRNG keys, one a trajectory: its choices do not depend on its neighbours.
    counts: int32[B], tokens chosen so far; folded into the key.
    sampler: `temperature` (0 = greedy), and `top_k` (0 = all), `top_p`, `repetition_penalty` where the next two say so.
    ranks: `top_k` and `top_p` count.
    repeated: int32[B, N], tokens that the penalty is for; V or more: none. None: it does not count.
  """
  per_row = lambda number: jnp.broadcast_to(number, logits.shape[:1])[:, None]
  temperature = per_row(sampler.temperature)
  if repeated is not None:
    logits = _penalised(logits, repeated, per_row(sampler.repetition_penalty))
  logits = jnp.where(allowed, logits, -jnp.inf)
  draws = temperature > 0
  scale = jnp.where(draws, temperature, 1.0)
  if ranks:
    likeliest = _likeliest(logits, scale, per_row(sampler.top_k), per_row(sampler.top_p))
    logits = jnp.where(draws & ~likeliest, -jnp.inf, logits)

  def noised(logits: jax.Array) -> jax.Array:
    draw = lambda key, count: jax.random.gumbel(jax.random.fold_in(key, count), logits.shape[1:])
    return logits + temperature * jax.vmap(draw)(keys, counts)

  # Gumbel-max: argmax(logits + temperature * gumbel) samples from softmax(logits / temperature).
  # Greedy text, the default, does without the noise: for BAGEL's vocabulary it is 150,000 numbers a token.
  noisy = jax.lax.cond(jnp.any(sampler.temperature > 0), noised, lambda logits: logits, logits)
  token = jnp.argmax(noisy, axis=-1).astype(jnp.int32)
  chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)
  logprob = (chosen / scale)[:, 0] - jax.nn.logsumexp(logits / scale, axis=-1)
  return Choice(token, jnp.minimum(logprob, 0.0))  # Rounding may put a certain token above.


def last_words(
  tokens: jax.Array, count: jax.Array, length: jax.Array, specials: config_lib.Specials, *, absent: int
) -> jax.Array:
  """Words among the last tokens of each trajectory, in their places; `absent` elsewhere: int32[B, N].

  Args:
    tokens: int32[B, N], chosen so far.
    count: int32[B], how many they are.
    length: int32[B], how many of the last ones count.
    specials: ids that are no words.
    absent: what stands where no word is.
  """
  places = jnp.arange(tokens.shape[1])[None]
  recent = (places < count[:, None]) & (places >= (count - length)[:, None])
  return jnp.where(recent & ~jnp.isin(tokens, jnp.asarray(dataclasses.astuple(specials))), tokens, absent)


def _penalised(logits: jax.Array, repeated: jax.Array, penalty: jax.Array) -> jax.Array:
  """Positive logits of repeated tokens divided by the penalty, negative ones multiplied by it."""
  rows = jnp.arange(logits.shape[0])[:, None]
  again = jnp.zeros(logits.shape, bool).at[rows, repeated].set(True, mode='drop')
  return jnp.where(again, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def _likeliest(logits: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
  """Which tokens may be drawn: bool[B, V]. Those as likely as the last one are among them. Other arguments [B, 1]."""
  keys = _in_order(logits)
  wanted = jnp.where(top_k > 0, top_k, logits.shape[-1])
  of_k = keys >= _largest(lambda t: jnp.sum(keys >= t, axis=-1, keepdims=True) >= wanted)
  shares = jax.nn.softmax(jnp.where(of_k, logits, -jnp.inf) / temperature, axis=-1)  # The nucleus is one of the top k.
  mass = lambda t: jnp.sum(jnp.where(keys >= t, shares, 0), axis=-1, keepdims=True)
  # All of it is all of them: sums of shares may come to 1 before the last.
  return of_k & ((top_p >= 1) | (keys >= _largest(lambda t: mass(t) >= top_p)))


def _in_order(x: jax.Array) -> jax.Array:
  """Floats as uint32 of the same order."""
  bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
  sign = jnp.uint32(1 << 31)
  return jnp.where(bits >= sign, ~bits, bits | sign)


def _largest(holds: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """The largest uint32, [B, 1], for which something holds that holds for all below it, and for 0 in any case.

  Bit by bit: for a vocabulary 32 sums are less than a sort, and compile in a fraction of its time.
  """

  def bit(i: jax.Array, found: jax.Array) -> jax.Array:
    higher = found | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
    return jnp.where(holds(higher), higher, found)

  rows = jax.eval_shape(holds, jax.ShapeDtypeStruct((1, 1), jnp.uint32)).shape[0]
  return jax.lax.fori_loop(0, 32, bit, jnp.zeros((rows, 1), jnp.uint32))
