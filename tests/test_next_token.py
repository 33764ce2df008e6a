"""Choosing tokens: greedy, from the softmax or the likeliest of it, among what is allowed, each by its own key."""

import jax
import jax.numpy as jnp
import numpy as np

from pdgen.core import config
from pdgen.sampling import flow, next_token

_sample = jax.jit(next_token.sample, static_argnames=('ranks',))
PLAIN = flow.SamplerParams.of(config.SamplingConfig())


def _params(**numbers):
  return PLAIN.replace(**{name: jnp.asarray(value, getattr(PLAIN, name).dtype) for name, value in numbers.items()})


def _choose(logits, allowed, keys, counts, temperature):
  return _sample(logits, allowed, keys, counts, _params(temperature=temperature)).token


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
  arguments = jnp.zeros((2, 9)), jnp.ones((2, 9), bool), _keys([0, 1]), jnp.zeros(2, jnp.int32), PLAIN
  program = jax.make_jaxpr(next_token.sample)(*arguments)
  (cond,) = [e for e in program.eqns if e.primitive.name == 'cond']
  greedy, drawn = (str(branch) for branch in cond.params['branches'])
  assert 'random' in drawn and 'random' not in greedy
  assert str(program).count('random_bits') == drawn.count('random_bits') > 0


def _draws(logits, count=20_000, **numbers):
  """Shares of the tokens among draws at a temperature, and the log-probability told of each (nan: never drawn)."""
  shape = (count, len(logits))
  choice = _sample(
    jnp.broadcast_to(jnp.asarray(logits, jnp.float32), shape),
    jnp.ones(shape, bool),
    _keys(np.arange(count)),
    jnp.zeros(count, jnp.int32),
    _params(**numbers),
    ranks=True,
  )
  token, told = np.asarray(choice.token), np.asarray(choice.logprob)
  shares = np.bincount(token, minlength=len(logits)) / count
  for i in np.unique(token):
    assert np.ptp(told[token == i]) < 1e-6
  return shares, np.array([told[token == i][0] if (token == i).any() else np.nan for i in range(len(logits))])


LOGITS = np.log([0.1, 0.4, 0.05, 0.3, 0.15])


def test_draws_are_among_the_likeliest_and_their_logprobs_are_told():
  tolerance = 5 * 0.5 / np.sqrt(20_000)
  for numbers, stay in (
    (dict(top_k=2), [1, 3]),
    (dict(top_k=99), range(5)),
    (dict(top_p=0.69), [1, 3]),
    (dict(top_p=0.71), [1, 3, 4]),
    (dict(top_p=1e-6), [1]),
    (dict(top_k=4, top_p=0.8), [1, 3, 4]),  # Of the four's .95: .76 is one too few.
    (dict(top_k=2, top_p=0.5), [1]),  # .4 of .7
  ):
    shares, told = _draws(LOGITS, temperature=1.0, **numbers)
    want = np.where(np.isin(np.arange(5), stay), np.exp(LOGITS), 0)
    want /= want.sum()
    np.testing.assert_allclose(shares, want, atol=tolerance, err_msg=str(numbers))
    np.testing.assert_allclose(told[list(stay)], np.log(want[list(stay)]), atol=1e-5, err_msg=str(numbers))
  # The temperature flattens before the nucleus is cut: at 2 the likeliest two of five have .52 of all.
  shares, _ = _draws(LOGITS, temperature=2.0, top_p=0.5)
  assert (shares > 0).tolist() == [False, True, False, True, False]
  # Equals are not told apart by their place.
  shares, _ = _draws([0.0, 0.0, -1.0, 0.0, -9.0], temperature=1.0, top_k=2)
  np.testing.assert_allclose(shares, [1 / 3, 1 / 3, 0, 1 / 3, 0], atol=tolerance)


def test_greedy_tokens_ignore_the_cuts_and_tell_their_probability_at_temperature_one():
  allowed = jnp.array([[True, False, True, True, True]])
  arguments = jnp.asarray(LOGITS, jnp.float32)[None], allowed, _keys([0]), jnp.zeros(1, jnp.int32)
  choice = _sample(*arguments, _params(top_k=1, top_p=0.1), ranks=True)
  assert choice.token.tolist() == [3]
  np.testing.assert_allclose(choice.logprob, np.log(0.3 / 0.6), atol=1e-6)
  only = _sample(arguments[0], jnp.arange(5)[None] == 2, *arguments[2:], PLAIN, ranks=True)
  assert only.token.tolist() == [2] and only.logprob.tolist() == [0.0]


def test_repeated_words_lose_by_the_penalty():
  logits, allowed = jnp.array([[2.0, 1.5, -1.0, -1.2]] * 3), jnp.array([[True, False, True, True]] * 3)
  repeated = jnp.array([[4, 4], [0, 4], [2, 0]])  # 4: none.
  arguments = allowed, _keys([0] * 3), jnp.zeros(3, jnp.int32)
  got = _sample(logits, *arguments, _params(repetition_penalty=2.0), repeated=repeated)
  assert got.token.tolist() == [0, 0, 0]
  after = np.array([[2.0, -1.0, -1.2], [1.0, -1.0, -1.2], [1.0, -2.0, -1.2]])
  np.testing.assert_allclose(got.logprob, after[:, 0] - np.log(np.exp(after).sum(1)), atol=1e-6)
  got = _sample(logits, *arguments, _params(repetition_penalty=[1.0, 1e3, 1e3]), repeated=repeated)
  np.testing.assert_allclose(np.exp(got.logprob[0]), np.exp(2.0) / np.exp([2.0, -1.0, -1.2]).sum(), atol=1e-6)
  assert got.token.tolist() == [0, 0, 0]
  negative = _sample(-logits, *arguments, _params(repetition_penalty=4.0), repeated=jnp.array([[4, 4], [3, 4], [2, 3]]))
  assert negative.token.tolist() == [3, 2, 3]  # 1.2 and 1.0; .3 and 1.0; .3 and .25 .. of -2, which is worse.


def test_numbers_of_a_row_are_its_own():
  rng = np.random.default_rng(1)
  logits, allowed = jnp.asarray(rng.normal(size=(4, 60)), jnp.float32), jnp.asarray(rng.random((4, 60)) < 0.8)
  keys, counts = _keys([3, 3, 5, 6]), jnp.array([0, 4, 4, 9])
  repeated = jnp.asarray(rng.integers(0, 61, (4, 7)))
  numbers = dict(
    temperature=[0.0, 0.7, 1.3, 0.9],
    top_k=[0, 5, 0, 9],
    top_p=[1.0, 1.0, 0.4, 0.9],
    repetition_penalty=[1.5, 1.0, 1.0, 1.2],
  )
  together = _sample(logits, allowed, keys, counts, _params(**numbers), ranks=True, repeated=repeated)
  for i in range(4):
    one = slice(i, i + 1)
    own = _params(**{name: values[i] for name, values in numbers.items()})
    alone = _sample(logits[one], allowed[one], keys[one], counts[one], own, ranks=True, repeated=repeated[one])
    assert alone.token[0] == together.token[i]
    np.testing.assert_allclose(alone.logprob[0], together.logprob[i], atol=1e-6)
