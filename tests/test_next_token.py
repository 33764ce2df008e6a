"""Choosing tokens: greedy, from the softmax, among what is allowed, each trajectory by its own key."""

import jax
import jax.numpy as jnp
import numpy as np

from pdgen.sampling import next_token

_choose = jax.jit(next_token.sample)


def _keys(seeds):
  return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def test_temperature_zero_takes_the_best_that_is_allowed():
  logits = jnp.array([[1.0, 5.0, 3.0], [9.0, 8.0, -1.0]])
  allowed = jnp.array([[True, False, True], [False, True, True]])
  got = _choose(logits, allowed, _keys([0, 1]), jnp.zeros(2, jnp.int32), 0.0)
  assert got.tolist() == [2, 1] and got.dtype == jnp.int32


def test_draws_follow_the_softmax_at_the_temperature():
  count, logits = 20_000, np.array([0.0, 1.0, 5.0, 2.0])
  allowed = np.array([True, True, False, True])
  shape = (count, 4)
  got = _choose(
    jnp.broadcast_to(jnp.asarray(logits, jnp.float32), shape),
    jnp.broadcast_to(jnp.asarray(allowed), shape),
    _keys(np.arange(count) // 100),
    jnp.arange(count) % 100,
    2.0,
  )
  share = np.bincount(got, minlength=4) / count
  weights = np.where(allowed, np.exp(logits / 2.0), 0)
  want = weights / weights.sum()
  # Five standard deviations of a share of 20,000 draws.
  np.testing.assert_allclose(share, want, atol=5 * 0.5 / np.sqrt(count))
  assert share[2] == 0


def test_a_choice_depends_on_its_own_key_and_count_alone():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(6, 50)), jnp.float32)
  allowed = jnp.ones((6, 50), bool)
  seeds, counts = np.array([3, 4, 3, 5, 6, 7]), np.array([0, 0, 9, 2, 3, 4])
  together = _choose(logits, allowed, _keys(seeds), jnp.asarray(counts), 1.0)
  order = np.array([4, 2, 0, 5, 1, 3])
  shuffled = _choose(logits[order], allowed, _keys(seeds[order]), jnp.asarray(counts[order]), 1.0)
  np.testing.assert_array_equal(shuffled, together[order])


def test_another_count_or_another_key_is_another_draw():
  flat, allowed = jnp.zeros((8, 10_000)), jnp.ones((8, 10_000), bool)
  by_count = _choose(flat, allowed, _keys([1] * 8), jnp.arange(8), 1.0)
  by_key = _choose(flat, allowed, _keys(np.arange(8)), jnp.zeros(8, jnp.int32), 1.0)
  assert len(set(by_count.tolist())) > 6 and len(set(by_key.tolist())) > 6
  same = _choose(flat, allowed, _keys([1] * 8), jnp.full(8, 3), 1.0)
  assert len(set(same.tolist())) == 1


def test_noise_is_drawn_only_where_the_temperature_asks_for_it():
  arguments = jnp.zeros((2, 9)), jnp.ones((2, 9), bool), _keys([0, 1]), jnp.zeros(2, jnp.int32), jnp.float32(0)
  (cond,) = [e for e in jax.make_jaxpr(next_token.sample)(*arguments).eqns if e.primitive.name == 'cond']
  greedy, drawn = (str(branch) for branch in cond.params['branches'])
  assert 'random' in drawn and 'random' not in greedy
  whole = str(jax.make_jaxpr(next_token.sample)(*arguments))
  assert whole.count('random_bits') == drawn.count('random_bits') > 0
