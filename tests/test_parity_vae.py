"""The autoencoder against the reference's: moments, mean, sample, decoding, and what padding does."""

import functools

import jax.numpy as jnp
import numpy as np
from support import golden_folder

from pdgen.models.flux_vae import FluxVae

close, value = golden_folder.close, golden_folder.value
NUMBERS = [name.removeprefix('d_vae/image') for name in golden_folder.matching('d_vae/image*')]


def _hwc(x):
  """The reference's [.., C, H, W] as ours, with a leading axis."""
  x = jnp.asarray(x)
  return jnp.moveaxis(x if x.ndim == 4 else x[None], 1, -1)


def _chw(x):
  return jnp.moveaxis(x, -1, 1)


def _of_vae(method, model, *args):
  return method(model.codec.vae, *args)


def _results(dtype):
  """{array: result}, every block from the golden inputs."""
  cfg = golden_folder.model_config(dtype)
  moments, encode, decode = (
    golden_folder.compiled(functools.partial(_of_vae, f), cfg)
    for f in (FluxVae.moments, FluxVae.encode, FluxVae.decode)
  )
  out = {}
  for i in NUMBERS:
    pixels = _hwc(value(f'd_vae/image{i}'))
    out |= {f'moments{i}': moments(pixels), f'z_mean{i}': encode(pixels)}
    out[f'z_sample{i}'] = encode(pixels, _hwc(value(f'd_vae/eps{i}')))
    out[f'decoded{i}'] = decode(_hwc(value(f'd_vae/z_mean{i}')))
  out['padded_z_mean'] = encode(_hwc(value('d_vae/padded_images')))
  out['z_random_decoded'] = decode(_hwc(value('d_vae/z_random')))
  return {name: _chw(x) for name, x in out.items()}


_OUTPUTS = tuple(
  f'd_vae/{name}' for name in ('moments*', 'z_mean*', 'z_sample*', 'decoded*', 'padded_z_mean', 'z_random_decoded')
)
_INPUTS = tuple(f'd_vae/{name}' for name in ('image*', 'eps*', 'padded_images', 'z_random'))


@golden_folder.checks(*_OUTPUTS, 'd_vae/z_random_uint8', inputs=_INPUTS)
def test_encoding_and_decoding():
  results = _results('float32')
  for name, got in results.items():
    close(got, f'd_vae/{name}')
  # (BAGEL, QUIRKS 33) Truncated, not rounded.
  pixels = jnp.moveaxis(results['z_random_decoded'], 1, -1)[0]
  golden_folder.same_picture(golden_folder.model().codec.to_uint8(pixels), 'd_vae/z_random_uint8')


@golden_folder.checks(*_OUTPUTS, inputs=_INPUTS)
def test_encoding_and_decoding_in_bfloat16():
  for name, got in _results('bfloat16').items():
    golden_folder.near(got, f'd_vae/{name}')


@golden_folder.checks('d_vae/scale_factor', 'd_vae/shift_factor')
def test_scale_and_shift():
  vae = golden_folder.model_config().codec.vae
  close(vae.scale, 'd_vae/scale_factor')
  close(vae.shift, 'd_vae/shift_factor')


@golden_folder.checks('d_vae/padded_images', inputs=('d_vae/image*',))
def test_padding_is_zeros_around_the_top_left_corner():
  want = np.zeros_like(value('d_vae/padded_images'))
  for i, number in enumerate(NUMBERS):
    pixels = value(f'd_vae/image{number}')
    want[i, :, : pixels.shape[1], : pixels.shape[2]] = pixels
  golden_folder.equal(want, 'd_vae/padded_images')
