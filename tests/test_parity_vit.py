"""SigLIP on two packed pictures of different sizes against the reference's, layer by layer."""

import dataclasses
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import golden_folder

from pdgen.core import packed
from pdgen.data import images
from pdgen.models import attention, layers

close, equal, value = golden_folder.close, golden_folder.equal, golden_folder.value
PIXELS = [name for name in golden_folder.matching('c_vit/image*')]


@golden_folder.shared
def _packed():
  """The pictures as `packed.VitStream`, a row of its own, with padding that nobody must see."""
  cfg = golden_folder.model_config()
  vit, spread = cfg.vit, cfg.interpolate_positions
  pictures = [value(name).transpose(1, 2, 0) for name in PIXELS]
  tokens = [images.patches(pixels, vit.patch) for pixels in pictures]
  grids = [(p.shape[0] // vit.patch, p.shape[1] // vit.patch) for p in pictures]
  ids = [packed.position_ids(*grid, vit.max_patches, interpolate=spread) for grid in grids]
  image = np.repeat(np.arange(len(pictures)) + 1, [len(t) for t in tokens])
  padded = [
    np.concatenate([*parts, np.full((3, *parts[0].shape[1:]), fill, parts[0].dtype)])
    for parts, fill in ((tokens, 7), (ids, 1), ([image], 0))
  ]
  return packed.VitStream(*(jnp.asarray(x)[None] for x in padded))


@golden_folder.checks(
  'c_vit/packed_vit_tokens',
  'c_vit/packed_vit_position_ids',
  'c_vit/vit_token_seqlens',
  'c_vit/cu_seqlens',
  inputs=('c_vit/image*',),
)
def test_patches_positions_and_lengths():
  stream = jax.tree.map(lambda x: np.asarray(x)[0, :-3], _packed())
  equal(stream.pixels, 'c_vit/packed_vit_tokens')
  equal(stream.position, 'c_vit/packed_vit_position_ids')
  lengths = np.bincount(stream.image)[1:]
  equal(lengths, 'c_vit/vit_token_seqlens')
  equal(np.cumsum([0, *lengths]), 'c_vit/cu_seqlens')


def _forward(cfg):
  """The parts of the encoder and what the und stream gets: {array: f32[T, ..]}, padding cut off."""

  def run(model, stream):
    vit = model.vit
    out = {'hidden_embeddings': vit.embed(stream.pixels, stream.position)}
    zeros = jnp.zeros_like(stream.image)
    tokens = packed.TokenMeta(stream.image, zeros, zeros, zeros, zeros, zeros)
    mask, x = attention.prepare(cfg.attention, tokens, tokens), out['hidden_embeddings']
    graphdef, weights = nnx.split(vit.layers)
    for i in range(cfg.vit.depth):
      x = nnx.merge(graphdef, jax.tree.map(operator.itemgetter(i), weights))(x, mask)
      out[f'hidden_layer{i}'] = x
    out['vit_out'] = vit.encode(stream.pixels, stream.position, stream.image)
    out['connector_out'] = vit.connect(out['vit_out'])
    out['tokens_for_llm'] = vit(stream.pixels, stream.position, stream.image)
    rows, columns = jnp.divmod(stream.position, cfg.vit.max_patches)
    return {**out, 'pos_emb': layers.sincos_2d(rows, columns, cfg.width)}

  return {name: x[0, :-3] for name, x in golden_folder.compiled(run, cfg)(_packed()).items()}


_OUTPUTS = tuple(
  f'c_vit/{name}'
  for name in ('hidden_embeddings', 'hidden_layer*', 'vit_out', 'connector_out', 'pos_emb', 'tokens_for_llm')
)


@pytest.mark.parametrize('implementation', ['reference', 'blockwise'])
@golden_folder.checks(*_OUTPUTS, inputs=('c_vit/image*',))
def test_every_layer(implementation):
  for name, got in _forward(dataclasses.replace(golden_folder.model_config(), attention=implementation)).items():
    close(got, f'c_vit/{name}')


@golden_folder.checks(*_OUTPUTS, inputs=('c_vit/image*',))
def test_every_layer_in_bfloat16():
  for name, got in _forward(golden_folder.model_config('bfloat16')).items():
    golden_folder.near(got, f'c_vit/{name}')
