"""Pictures to latents and back, without losing a level."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from support import toy

from pdgen.core import config
from pdgen.models import codecs


def test_every_level_survives_the_way_to_latents_and_back():
  levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
  codec = codecs.codec(toy.MODEL)
  z = codec.encode(codecs.to_pixels(jnp.asarray(levels)))
  np.testing.assert_array_equal(codecs.to_uint8(codec.decode(z)), levels)
  assert float(z.min()) == -1.0 and float(z.max()) == 1.0


@pytest.mark.parametrize(('size', 'patch', 'lead'), [(16, 8, (2, 3)), (32, 4, ()), (24, 8, (1,))])
def test_round_trip_of_batches(size, patch, lead):
  cfg = config.ModelConfig(image_size=size, codec=config.CodecConfig(patch=patch), max_latent_size=8)
  codec = codecs.codec(cfg)
  pictures = np.random.default_rng(0).integers(0, 256, (*lead, size, size, 3), dtype=np.uint8)
  z = codec.encode(codecs.to_pixels(jnp.asarray(pictures)))
  assert z.shape == (*lead, cfg.latent_tokens, codec.channels)
  np.testing.assert_array_equal(codecs.to_uint8(codec.decode(z)), pictures)


def test_out_of_range_is_clipped_and_values_round_to_the_nearest_level():
  pixels = jnp.asarray([-7.0, -1.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 0.999, 1.0, 3.0])
  np.testing.assert_array_equal(codecs.to_uint8(pixels), [0, 0, 0, 1, 255, 255, 255])


def test_clean_latents_are_those_of_each_tokens_picture_and_patch():
  row = toy.row(toy.full_trajectory(), toy.MODEL, seed=0)
  model = toy.model(toy.MODEL)
  other = row._replace(pictures=row.pictures[::-1].copy())
  z = np.asarray(model.clean_latents(toy.batch(row, other)))
  for got, pictures in zip(z, (row.pictures, other.pictures), strict=True):
    for i, (picture, patch) in enumerate(zip(row.gen.picture, row.gen.patch, strict=True)):
      y, x = (8 * place for place in divmod(patch, toy.MODEL.max_latent_size))
      want = pictures[picture, y : y + 8, x : x + 8].astype(np.float32) / 127.5 - 1
      np.testing.assert_allclose(got[i], want.ravel(), atol=1e-6)


def test_an_unknown_codec_lists_the_known_ones():
  cfg = dataclasses.replace(toy.MODEL, codec=config.CodecConfig(kind='jpeg'))
  with pytest.raises(ValueError, match='pixel'):
    codecs.codec(cfg)
