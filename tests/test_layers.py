"""Formulas of the building blocks against values recorded from the reference (golden/README.md)."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdgen.models import latents, layers

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden' / 'b_embeddings.npz')
THETA = 1e6
NEAR, FAR = slice(None, -1), slice(-1, None)  # of the recorded positions; the last is 30000
ZEROS = nnx.initializers.zeros_init()
# What separates float32 rounding from an error (golden/README.md): three times the noise of any array here.
TOLERANCE = 3e-5
# Angles of position 30000 carry the rounding of 30000 * frequency, 1e-3 at worst; the reference's own noise is 3.2e-4.
FAR_TOLERANCE = 5e-4


def _close(got, name, *, tolerance=TOLERANCE, rows=slice(None)):
  want = GOLDEN[name][rows]
  np.testing.assert_allclose(np.asarray(got)[rows], want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize(('name', 'dim', 'side'), [('d64_g16', 64, 16), ('d64_g12', 64, 12), ('d128_g5', 128, 5)])
def test_sincos_2d(name, dim, side):
  rows, columns = np.divmod(np.arange(side**2), side)
  _close(layers.sincos_2d(rows, columns, dim), f'sincos_{name}')


def test_timestep_features():
  _close(layers.timestep_features(jnp.asarray(GOLDEN['t']), 256), 't_freq')


@pytest.mark.parametrize(('rows', 'tolerance'), [(NEAR, TOLERANCE), (FAR, FAR_TOLERANCE)])
def test_rope_angles(rows, tolerance):
  assert GOLDEN['rope_pos'][FAR] == 30000
  cos, sin = layers.rope_angles(jnp.asarray(GOLDEN['rope_pos'], jnp.int32), 16, THETA)
  for got, name in ((cos, 'rope_cos'), (sin, 'rope_sin')):
    _close(jnp.concatenate([got, got], axis=-1), name, tolerance=tolerance, rows=rows)


@pytest.mark.parametrize(('rows', 'tolerance'), [(NEAR, TOLERANCE), (FAR, FAR_TOLERANCE)])
@pytest.mark.parametrize('which', ['q', 'k'])
def test_apply_rope(which, rows, tolerance):
  cos, sin = layers.rope_angles(jnp.asarray(GOLDEN['rope_pos'], jnp.int32)[None], 16, THETA)
  got = layers.apply_rope(jnp.asarray(GOLDEN[f'rope_{which}'])[None], cos, sin)[0]
  _close(got, f'rope_{which}_out', tolerance=tolerance, rows=rows)


def test_apply_rope_computes_in_float32():
  cos, sin = layers.rope_angles(jnp.asarray([[257, 4095]]), 16, THETA)
  x = jnp.asarray(GOLDEN['rope_q'][None, :2], jnp.bfloat16)
  got = layers.apply_rope(x, cos, sin)
  want = layers.apply_rope(x.astype(jnp.float32), cos, sin)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))


def test_rms_norm():
  norm = layers.RMSNorm(64, eps=1e-6)
  norm.scale[...] = jnp.asarray(GOLDEN['norm_w'])
  _close(norm(jnp.asarray(GOLDEN['norm_x'])), 'rms_norm')


def test_layer_norm():
  norm = layers.LayerNorm(64, eps=1e-6)
  norm.scale[...] = jnp.asarray(GOLDEN['norm_w'])
  norm.bias[...] = jnp.asarray(GOLDEN['norm_b'])
  _close(norm(jnp.asarray(GOLDEN['norm_x'])), 'layer_norm')


@pytest.mark.parametrize('norm', [layers.RMSNorm, layers.LayerNorm])
def test_statistics_of_norms_are_float32(norm):
  # In bfloat16 the sum of 4096 squares stops growing at 256: the result would be about four times too large.
  x = jnp.where(jnp.arange(4096) % 2, 1.0, -1.0).astype(jnp.bfloat16)[None]
  got = norm(4096, eps=1e-6)(x)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got.astype(jnp.float32), x.astype(jnp.float32))


def test_patch_order_of_pixels():
  pixels = jnp.asarray(GOLDEN['patchify_in']).transpose(1, 2, 0)
  np.testing.assert_array_equal(latents.patchify(pixels, 14), GOLDEN['patchify_out'])


def test_patch_order_of_latents_and_back():
  grid = jnp.asarray(GOLDEN['latent_in']).transpose(1, 2, 0)[:6, :4]
  tokens = latents.patchify(grid, 2)
  np.testing.assert_array_equal(tokens, GOLDEN['latent_tokens'])
  back = latents.unpatchify(tokens, 2, 3)
  np.testing.assert_array_equal(back.transpose(2, 0, 1), GOLDEN['latent_unpatchified'][0])


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
