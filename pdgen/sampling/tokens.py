"""Choosing the next token of each trajectory from its own key."""

import jax
import jax.numpy as jnp


def choose(
  logits: jax.Array, allowed: jax.Array, keys: jax.Array, counts: jax.Array, temperature: jax.Array
) -> jax.Array:
  """The next token ids, int32[B].

  logits: f32[B, V]. allowed: bool[B, V]; at least one True a row. keys: one key a trajectory; counts: int32[B] tokens
  chosen so far, folded into the key, so that a trajectory's choices do not depend on its neighbours.
  temperature: f32[]; 0 = greedy.
  """
  logits = jnp.where(allowed, logits, -jnp.inf)

  def draw(key: jax.Array, count: jax.Array, row: jax.Array) -> jax.Array:
    noise = jax.random.gumbel(jax.random.fold_in(key, count), row.shape)
    return jnp.argmax(row + temperature * noise)

  # Gumbel-max: argmax(logits + temperature * gumbel) samples from softmax(logits / temperature).
  return jax.vmap(draw)(keys, counts, logits).astype(jnp.int32)
