"""Sampling the next token of each trajectory with its own key: greedy, or Gumbel-max at a temperature."""

import jax
import jax.numpy as jnp


def sample(
  logits: jax.Array, allowed: jax.Array, keys: jax.Array, counts: jax.Array, temperature: jax.Array
) -> jax.Array:
  """Samples the next token of each trajectory.

  Args:
    logits: f32[B, V].
    allowed: bool[B, V], at least one True a row.
    keys: [B] PRNG keys, one a trajectory: its choices do not depend on its neighbours.
    counts: int32[B], tokens chosen so far; folded into the key.
    temperature: f32[]; 0 = greedy.

  Returns: ids, int32[B].
  """
  logits = jnp.where(allowed, logits, -jnp.inf)

  def noised(logits: jax.Array) -> jax.Array:
    draw = lambda key, count: jax.random.gumbel(jax.random.fold_in(key, count), logits.shape[1:])
    return logits + temperature * jax.vmap(draw)(keys, counts)

  # Gumbel-max: argmax(logits + temperature * gumbel) samples from softmax(logits / temperature).
  # Greedy text, the default, does without the noise: for BAGEL's vocabulary it is 150,000 numbers a token.
  logits = jax.lax.cond(temperature > 0, noised, lambda logits: logits, logits)
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)
