"""Softmax over keys that come in blocks: what was summed so far is scaled down whenever a larger score is met."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

HIDDEN = -1e30  # the score of a key that its query does not see


class Sums(NamedTuple):
  """Of each query, in float32. out: [..., H], weighted values. top: [...], the largest score. total: [...], weights."""

  out: jax.Array
  top: jax.Array
  total: jax.Array


def nothing(queries: tuple[int, ...], width: int) -> Sums:
  """Before the first block. queries: leading dimensions, `...`; width: H."""
  return Sums(jnp.zeros((*queries, width), jnp.float32), jnp.full(queries, HIDDEN), jnp.zeros(queries, jnp.float32))


def add(sums: Sums, scores: jax.Array, weigh: Callable[[jax.Array], jax.Array]) -> Sums:
  """One more block. scores: f32[..., S], HIDDEN where unseen. weigh: of weights [..., S] the f32[..., H] values."""
  top = jnp.maximum(sums.top, jnp.max(scores, axis=-1))
  weights = weights_of(scores, top)
  shrink = jnp.exp(sums.top - top)
  return Sums(sums.out * shrink[..., None] + weigh(weights), top, sums.total * shrink + jnp.sum(weights, axis=-1))


def weights_of(scores: jax.Array, top: jax.Array) -> jax.Array:
  """exp(scores - top), 0 where unseen: a query that has seen nothing keeps top = HIDDEN, and must not get exp(0)."""
  return jnp.where(scores > 0.5 * HIDDEN, jnp.exp(scores - top[..., None]), 0.0)


def result(sums: Sums) -> tuple[jax.Array, jax.Array]:
  """Attention [..., H], 0 where a query saw nothing, and the log of the sum of exponentials, [...]."""
  total = jnp.maximum(sums.total, 1e-30)
  return sums.out / total[..., None], sums.top + jnp.log(total)
