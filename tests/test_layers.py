"""What the building blocks compute in which type; test_parity_embeddings holds their formulas to the reference."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdgen.models import layers

ZEROS = nnx.initializers.zeros_init()


def test_apply_rope_computes_in_float32():
  # bfloat16 rounds position 257 to 256.
  cos, sin = layers.rope_angles(jnp.asarray([[257, 4095]]), 16, 1e6)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 4, 16)), jnp.bfloat16)
  got = layers.apply_rope(x, cos, sin)
  want = layers.apply_rope(x.astype(jnp.float32), cos, sin)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))


@pytest.mark.parametrize('norm', [layers.RMSNorm, layers.LayerNorm])
def test_statistics_of_norms_are_float32(norm):
  # In bfloat16 the sum of 4096 squares stops growing at 256: the result would be about four times too large.
  x = jnp.where(jnp.arange(4096) % 2, 1.0, -1.0).astype(jnp.bfloat16)[None]
  got = norm(4096, eps=1e-6)(x)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got.astype(jnp.float32), x.astype(jnp.float32))


def test_statistics_of_group_norm_are_float32_and_of_each_group_of_each_picture():
  rng = np.random.default_rng(0)
  x = (rng.normal(size=(2, 3, 5, 6)) * np.repeat([1, 10, 100], 2) + 300).astype(np.float32)
  got = layers.GroupNorm(6, groups=3, eps=1e-6)(jnp.asarray(x))
  groups = np.asarray(got).reshape(2, 15, 3, 2)
  np.testing.assert_allclose(groups.mean((1, 3)), 0, atol=1e-4)
  np.testing.assert_allclose(groups.std((1, 3)), 1, atol=1e-3)
  big = jnp.where(jnp.arange(4096) % 2, 1.0, -1.0).astype(jnp.bfloat16).reshape(1, 1, 2048, 2)
  np.testing.assert_array_equal(layers.GroupNorm(2, groups=1, eps=1e-6)(big), big)


@pytest.mark.parametrize('bias', [True, False])
def test_linear_is_a_product_and_a_bias_for_any_leading_axes(bias):
  linear = layers.Linear(6, 5, bias=bias, init=ZEROS, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(0)
  linear.kernel[...] = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
  if bias:
    linear.bias[...] = jnp.asarray(rng.normal(size=5), jnp.float32)
  x = rng.normal(size=(2, 3, 4, 6)).astype(np.float32)
  want = x @ np.asarray(linear.kernel[...]) + (np.asarray(linear.bias[...]) if bias else 0)
  for case, expected in ((x, want), (x[0, 0], want[0, 0])):
    np.testing.assert_allclose(linear(jnp.asarray(case)), expected, atol=1e-5)


def test_modules_compute_in_their_dtype_and_keep_float32_parameters():
  rngs = nnx.Rngs(0)
  linear, embedding = (
    layers.Linear(8, 8, init=ZEROS, dtype=jnp.bfloat16, rngs=rngs),
    layers.Embedding(9, 8, dtype=jnp.bfloat16, rngs=rngs),
  )
  out = linear(embedding(jnp.arange(9)[None]))
  assert out.dtype == jnp.bfloat16
  assert linear.kernel[...].dtype == embedding.table[...].dtype == jnp.float32


def test_time_zero_has_features():
  # (BAGEL) Clean copies get the embedding of t = 0, which is not zero: [cos | sin] of 0.
  np.testing.assert_array_equal(layers.timestep_features(jnp.zeros((1,)), 8), [[1, 1, 1, 1, 0, 0, 0, 0]])
