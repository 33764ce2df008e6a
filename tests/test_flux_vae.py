"""The FLUX codec inside of the model: tokens, padding, the posterior, what learns. Its numbers: test_parity_vae."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from support import toy

from pdgen.core import config, packed, trees
from pdgen.core import mesh as mesh_lib
from pdgen.cost import training_flops
from pdgen.data import items as items_lib
from pdgen.models import codecs, interleaved
from pdgen.training import losses, state

VAE, MODEL = toy.VAE, toy.WITH_VAE


@pytest.fixture(scope='module')
def params():
  return toy.params(MODEL)


def _call(function, params, *args):
  run = jax.jit(lambda params, *args: function(nnx.merge(interleaved.graphdef(MODEL), params), *args))
  return run(params, *args)


def _pixels(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)), jnp.float32)


def test_tokens_of_pictures_do_not_depend_on_how_many_are_encoded(params):
  pixels = _pixels(2, 3, 8, 14)
  encode = lambda model, x: model.codec.encode(x)
  z = _call(encode, params, pixels)
  # 4 x 7 latents are 2 x 3 tokens; the last column fills none.
  assert z.shape == (2, 3, 6, MODEL.codec.channels) == (2, 3, 6, 16)
  np.testing.assert_allclose(_call(encode, params, pixels[1]), z[1], atol=1e-5)
  np.testing.assert_allclose(_call(encode, params, pixels[1, 2]), z[1, 2], atol=1e-5)
  decoded = _call(lambda model, z: model.codec.decode(z, rows=2), params, z)
  assert decoded.shape == (2, 3, 8, 12, 3)


def test_the_posterior_is_drawn_from_around_its_mean(params):
  pixels = _pixels(1, 1, 8, 8)
  noise = lambda key: codecs.posterior_noise(MODEL.codec, key, pixels.shape[:-1])
  encode = lambda model, x, key: model.codec.encode(x, noise(key))
  mean = _call(lambda model, x: model.codec.encode(x), params, pixels)
  a, b, again = (_call(encode, params, pixels, jax.random.key(seed)) for seed in (0, 1, 0))
  np.testing.assert_array_equal(a, again)
  assert np.abs(a - b).max() > 1e-3 and np.abs(a - mean).max() > 1e-3
  moments = _call(lambda model, x: model.codec.vae.moments(x[0]), params, pixels)
  draws = _call(
    lambda model, x: jax.vmap(lambda key: model.codec.encode(x, noise(key)))(jax.random.split(jax.random.key(2), 500)),
    params,
    pixels,
  )
  spread = codecs.patchify(VAE.scale * jnp.exp(0.5 * moments[..., VAE.channels :]), 2)
  np.testing.assert_allclose(draws.mean(0)[0, 0], mean[0, 0], atol=0.25 * float(spread.max()))
  np.testing.assert_allclose(draws.std(0)[0, 0] / spread[0], 1, atol=0.2)


def _plan_batch(canvas, fill):
  """A clean picture of 8 x 12 pixels, seen by the ViT at 4 x 8, what lies around it holding `fill`."""
  picture = np.random.default_rng(1).integers(0, 256, (8, 12, 3), dtype=np.uint8)
  row = items_lib.build(
    [items_lib.Latents(pixels=picture), items_lib.Patches(pixels=picture[:4, :8])],
    specials=toy.WORDS.specials,
    model=MODEL,
    sequence=config.SequenceConfig(),
    canvas=canvas,
  )
  row.pictures[:, 8:] = row.pictures[:, :, 12:] = fill
  return picture, packed.check(toy.batch(row))


def test_around_a_smaller_picture_are_zeros_whatever_the_array_holds(params):
  clean = lambda model, batch: model.clean_latents(batch)
  picture, batch = _plan_batch((16, 24), fill=0)
  z = _call(clean, params, batch)
  np.testing.assert_array_equal(_call(clean, params, _plan_batch((16, 24), fill=255)[1]), z)
  padded = np.zeros([16, 24, 3], np.float32)
  padded[:8, :12] = codecs.to_pixels(picture)
  tokens = _call(lambda model, x: model.codec.encode(x), params, jnp.asarray(padded))
  np.testing.assert_allclose(z[0], tokens.reshape(4, 6, -1)[:2, :3].reshape(6, -1), atol=1e-5)
  # Zeros are seen: alone the picture has other latents (QUIRKS 22).
  alone = _call(clean, params, _plan_batch((8, 12), fill=0)[1])
  assert np.abs(alone - z).max() > 1e-2


def test_packed_and_fixed_pictures_look_the_same_to_the_vit(params):
  # The same pixels, once as the model's own pictures, once as packed patches.
  row = toy.row(toy.full_trajectory(), MODEL)
  batch = toy.batch(row)
  patches = codecs.patchify(batch.pictures, MODEL.vit.patch)
  b, p, q, _ = patches.shape
  ids = np.tile(packed.position_ids(4, 4, MODEL.vit.max_patches), p)
  vit = packed.VitStream(
    patches.reshape(b, p * q, -1), jnp.asarray(ids)[None], jnp.repeat(jnp.arange(1, p + 1), q)[None]
  )
  place = jnp.where(batch.und.picture >= 0, batch.und.picture * q + batch.und.patch, 0)
  embed = lambda model, und, pictures, vit: model.embed_und(und, pictures, vit)
  want = _call(embed, params, batch.und, batch.pictures, None)
  got = _call(embed, params, batch.und._replace(patch=place), batch.pictures, vit)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_vit_sees_pictures_at_its_own_size():
  smooth = np.add.outer(np.arange(64), np.arange(64))[..., None] * np.array([1, 0.5, 0.2])
  picture = np.asarray(smooth, np.uint8)
  want = np.asarray(Image.fromarray(picture).resize((28, 28), Image.Resampling.BICUBIC)).astype(int)
  got = np.asarray(codecs.resize(jnp.asarray(picture)[None], (28, 28)))[0].astype(int)
  assert np.abs(got - want).max() <= 1
  assert dataclasses.replace(MODEL, vit=dataclasses.replace(MODEL.vit, image_size=12)).vit_tokens == 9


def test_the_codec_never_learns():
  mesh = mesh_lib.make_mesh(config.MeshConfig(fsdp=1))
  abstract = state.abstract_on_mesh(config.Config(model=MODEL), mesh)
  assert set(abstract.frozen) == {'codec'}
  for tree in (abstract.trainable, abstract.ema):
    assert 'codec' not in tree and 'vit' in tree
  names = [name for name, _ in trees.flatten_with_paths(abstract.opt_state)]
  assert names and not any('codec' in name for name in names)


def test_training_draws_from_the_posterior_if_the_config_says_so(params):
  batch = toy.batch(toy.row(toy.full_trajectory(), MODEL, seed=0))

  def loss(sample):
    codec = dataclasses.replace(MODEL.codec, vae=dataclasses.replace(VAE, sample_posterior=sample))
    experiment = config.Config(model=dataclasses.replace(MODEL, codec=codec))
    return float(
      _call(lambda model, b: losses.interleaved_loss(model, b, jax.random.key(0), experiment)[0], params, batch)
    )

  assert loss(True) != loss(False)


def test_analytic_flops_of_encoding():
  vae = config.VaeConfig(width=64, multipliers=(1, 2, 2), groups=8)
  # XLA does not count what meets only the padding of a convolution: little where pictures are large.
  model = config.ModelConfig(codec=config.CodecConfig(kind='flux', patch=8, vae=vae), image_size=96, max_latent_size=12)
  experiment = config.Config(model=model, data=config.DataConfig(batch_size=1, pictures=1))
  weights = interleaved.abstract_params(model)
  run = jax.jit(lambda params, x: nnx.merge(interleaved.graphdef(model), params).codec.vae.moments(x))
  compiled = run.lower(weights, jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32)).compile().cost_analysis()['flops']
  assert training_flops.train_flops(experiment)['vae'] == pytest.approx(compiled, rel=0.05)


@pytest.mark.parametrize(
  'options', [dict(kind='flux'), dict(kind='pixel', vae=VAE), dict(kind='flux', patch=3, vae=VAE)]
)
def test_codecs_that_make_no_sense_are_refused(options):
  with pytest.raises(ValueError, match='VaeConfig|multiple'):
    config.CodecConfig(**options)
