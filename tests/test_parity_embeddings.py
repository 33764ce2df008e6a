"""Position ids, fixed tables, timesteps, rotary angles, norms and patch orders against the reference's."""

import re

import jax.numpy as jnp
import numpy as np
from support import golden_folder

from pdgen.core import packed
from pdgen.data import images
from pdgen.data import items as items_lib
from pdgen.models import codecs, layers
from pdgen.training import losses

close, equal, value = golden_folder.close, golden_folder.equal, golden_folder.value


def _named(pattern, number=int):
  """(array, its numbers) of the arrays whose whole name matches."""
  found = [(n, re.fullmatch(f'b_embeddings/{pattern}', n)) for n in golden_folder.names()]
  found = [(n, *map(number, match.groups())) for n, match in found if match]
  assert found
  return found


@golden_folder.checks('b_embeddings/pos_extrapolate_*', 'b_embeddings/pos_interpolate_*')
def test_position_ids():
  for interpolate, kind in ((False, 'extrapolate'), (True, 'interpolate')):
    for name, rows, columns, per_side in _named(rf'pos_{kind}_(\d+)x(\d+)_max(\d+)'):
      equal(packed.position_ids(rows, columns, per_side, interpolate=interpolate), name)


@golden_folder.checks('b_embeddings/interp*_counts', 'b_embeddings/interp*_rows')
def test_buckets_of_interpolated_ids():
  # Pictures of one column: ids are rows of buckets times the side of the table.
  for name, per_side in _named(r'interp(\d+)_rows'):
    counts = name.replace('_rows', '_counts')
    ids = [packed.position_ids(n, 1, per_side, interpolate=True) for n in range(1, len(value(counts)) + 1)]
    equal([len(i) for i in ids], counts)
    equal(np.concatenate(ids) // per_side, name)


@golden_folder.checks('b_embeddings/sincos_*')
def test_sincos_tables():
  for name, dim, side in _named(r'sincos_d(\d+)_g(\d+)'):
    rows, columns = np.divmod(np.arange(side**2), side)
    close(layers.sincos_2d(rows, columns, dim), name)


@golden_folder.checks(
  'b_embeddings/t_freq', 'b_embeddings/t_emb', 'b_embeddings/t_emb_int0', inputs=('b_embeddings/t',)
)
def test_timestep_embedding():
  time = golden_folder.model().time
  t = jnp.asarray(value('b_embeddings/t'))
  close(layers.timestep_features(t, time.channels), 'b_embeddings/t_freq')
  close(time(t), 'b_embeddings/t_emb')
  close(time(jnp.zeros(1)), 'b_embeddings/t_emb_int0')


@golden_folder.checks('b_embeddings/rope_*_out', 'b_embeddings/rope_[ics]*', inputs=('b_embeddings/rope_*',))
def test_rotary_embedding():
  cfg = golden_folder.model_config()
  positions = value('b_embeddings/rope_pos')
  close(layers.rope_frequencies(cfg.head_dim, cfg.rope_theta), 'b_embeddings/rope_inv_freq')
  cos, sin = layers.rope_angles(jnp.asarray(positions, jnp.int32)[None], cfg.head_dim, cfg.rope_theta)
  states = {name: jnp.asarray(value(f'b_embeddings/rope_{name}'))[None] for name in 'qk'}
  rotated = {name: layers.apply_rope(x, cos, sin) for name, x in states.items()}
  # The noise of a table is that of its farthest position: it grows with the position. Nearer ones are held to less.
  near = positions <= positions.max() / 16
  assert near.any()
  for rows, multiple in ((..., golden_folder.NOISE_MULTIPLE), (near, golden_folder.NOISE_MULTIPLE / 8)):
    for table, name in ((cos, 'cos'), (sin, 'sin')):
      twice = jnp.concatenate([table, table], axis=-1)[0]  # as the reference holds it
      close(twice[rows], f'b_embeddings/rope_{name}', rows=rows, multiple=multiple)
    for which, got in rotated.items():
      close(got[0][rows], f'b_embeddings/rope_{which}_out', rows=rows, multiple=multiple)


@golden_folder.checks(
  'b_embeddings/rms_norm', 'b_embeddings/layer_norm', inputs=('b_embeddings/norm_x', 'b_embeddings/norm_[wb]')
)
def test_norms_of_tokens():
  x, w, b = (jnp.asarray(value(f'b_embeddings/norm_{name}')) for name in 'xwb')
  eps = float(golden_folder.readme(r'Qwen2RMSNorm\(eps ([\d.e-]+)\)', golden_folder.model_config().norm_eps))
  rms, layer = layers.RMSNorm(len(w), eps=eps), layers.LayerNorm(len(w), eps=1e-6)
  rms.scale[...] = layer.scale[...] = w
  layer.bias[...] = b
  close(rms(x), 'b_embeddings/rms_norm')
  close(layer(x), 'b_embeddings/layer_norm')


@golden_folder.checks('b_embeddings/group_norm', inputs=('b_embeddings/gn_[xwb]',))
def test_group_norm():
  x, w, b = (jnp.asarray(value(f'b_embeddings/gn_{name}')) for name in 'xwb')
  norm = layers.GroupNorm(len(w), groups=golden_folder.model_config().codec.vae.groups, eps=1e-6)
  norm.scale[...], norm.bias[...] = w, b
  close(norm(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2), 'b_embeddings/group_norm')


@golden_folder.checks('b_embeddings/patchify_out', inputs=('b_embeddings/patchify_in',))
def test_patches_of_pixels():
  pixels, patch = value('b_embeddings/patchify_in').transpose(1, 2, 0), golden_folder.model_config().vit.patch
  equal(images.patches(pixels, patch), 'b_embeddings/patchify_out')
  equal(codecs.patchify(jnp.asarray(pixels), patch), 'b_embeddings/patchify_out')


@golden_folder.checks(
  'b_embeddings/latent_tokens', 'b_embeddings/latent_unpatchified', inputs=('b_embeddings/latent_in',)
)
def test_patches_of_latents():
  codec = golden_folder.model_config().codec
  patch = codec.patch // codec.vae.downsample
  rows, columns = (side // patch for side in value('b_embeddings/latent_unpatchified').shape[2:])
  padded = jnp.asarray(value('b_embeddings/latent_in')).transpose(1, 2, 0)
  # The picture fills the top left corner of the padded latents; what makes no whole token is dropped.
  tokens = codecs.patchify(padded, patch).reshape(padded.shape[0] // patch, padded.shape[1] // patch, -1)
  tokens = tokens[:rows, :columns].reshape(rows * columns, -1)
  equal(tokens, 'b_embeddings/latent_tokens')
  back = codecs.unpatchify(tokens[None], patch, rows)
  equal(back.transpose(0, 3, 1, 2), 'b_embeddings/latent_unpatchified')


@golden_folder.checks('b_embeddings/len2weight_square', inputs=('b_embeddings/len2weight_n',))
def test_weights_of_texts():
  lengths = golden_folder.integers('b_embeddings/len2weight_n')
  close([items_lib.length_weight(n) for n in lengths], 'b_embeddings/len2weight_square')


@golden_folder.checks('b_embeddings/tshift_*')
def test_shifted_timesteps():
  listed = golden_folder.readme(r'raw \[(-inf,[^\]]*)\]', '-inf,-3,-.5,0,.7,2.5')
  raw = jnp.asarray([float(x) for x in listed.split(',')])
  for name, shift in _named(r'tshift_([\d.]+)', float):
    close(losses.logit_normal(raw, shift=shift), name)
