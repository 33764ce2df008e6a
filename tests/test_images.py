"""Resizing of pictures for the VAE and the ViT beyond what the recorded sizes hold (test_parity_transforms)."""

import numpy as np
import pytest

from pdgen.data import images


@pytest.mark.parametrize('transform', [images.VAE, images.VIT])
def test_sides_are_multiples_of_the_stride_within_the_limits(transform):
  rng = np.random.default_rng(0)
  for width, height in rng.integers(1, 4000, (300, 2)).tolist():
    size = transform.size(width, height)
    assert all(side % transform.stride == 0 and side >= transform.stride for side in size)
    assert max(size) <= transform.max_size + transform.stride // 2
    assert size[0] * size[1] <= transform.max_pixels * 1.1


def test_a_picture_that_fits_is_left_alone():
  picture = np.random.default_rng(0).integers(0, 256, (512, 768, 3), dtype=np.uint8)
  np.testing.assert_array_equal(images.VAE.resize(picture), picture)
  pixels = images.VAE(picture)
  assert pixels.dtype == np.float32
  np.testing.assert_allclose(pixels, picture / 127.5 - 1, atol=1e-6)


def test_more_pictures_share_the_pixels():
  assert images.VIT.size(980, 980) == (980, 980)
  assert max(images.VIT.size(980, 980, pictures=4)) < 980


def test_what_is_no_picture_is_refused():
  with pytest.raises(ValueError, match=r'float64\[8, 8, 3\]'):
    images.VAE(np.zeros([8, 8, 3]))
  with pytest.raises(ValueError, match=r'uint8\[8, 8\]'):
    images.VAE.resize(np.zeros([8, 8], np.uint8))
