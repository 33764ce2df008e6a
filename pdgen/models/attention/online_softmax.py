"""Streaming (online) softmax over key blocks, as in FlashAttention: sums are rescaled when a larger score is met."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

MASK_VALUE = -1e30  # the score of a key that its query does not see


class SoftmaxState(NamedTuple):
  """What was summed so far, of each query."""

  out: jax.Array  # f32[..., H], weighted values.
  max: jax.Array  # f32[...], the largest score.
  denominator: jax.Array  # f32[...], sum of weights.


def init(queries: tuple[int, ...], width: int) -> SoftmaxState:
  """Before the first block. queries: leading dimensions, `...`; width: H."""
  zeros = jnp.zeros((*queries, width), jnp.float32)
  return SoftmaxState(zeros, jnp.full(queries, MASK_VALUE, jnp.float32), jnp.zeros(queries, jnp.float32))


def update(state: SoftmaxState, scores: jax.Array, values_fn: Callable[[jax.Array], jax.Array]) -> SoftmaxState:
  """One more block.

  Args:
    state: so far.
    scores: f32[..., S], MASK_VALUE where unseen.
    values_fn: from weights f32[..., S] to weighted values f32[..., H].
  """
  largest = jnp.maximum(state.max, jnp.max(scores, axis=-1))
  weights = probabilities(scores, largest)
  shrink = jnp.exp(state.max - largest)
  denominator = state.denominator * shrink + jnp.sum(weights, axis=-1)
  return SoftmaxState(state.out * shrink[..., None] + values_fn(weights), largest, denominator)


def probabilities(scores: jax.Array, largest: jax.Array) -> jax.Array:
  """exp(scores - largest), 0 where unseen: a query that has seen nothing keeps MASK_VALUE, and must not get exp(0)."""
  return jnp.where(scores > 0.5 * MASK_VALUE, jnp.exp(scores - largest[..., None]), 0.0)


def finalize(state: SoftmaxState) -> tuple[jax.Array, jax.Array]:
  """Attention [..., H], 0 where a query saw nothing, and the log of the sum of exponentials, [...]."""
  denominator = jnp.maximum(state.denominator, 1e-30)
  return state.out / denominator[..., None], state.max + jnp.log(denominator)
