"""The training forward on the reference's pack, layer by layer, both losses and every gradient."""

import dataclasses
import operator
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import golden_folder, golden_packs

from pdgen.core import config, packed, trees
from pdgen.models import attention, interleaved, layers, mot
from pdgen.models import params as params_lib
from pdgen.training import losses
from pdgen.weights import bagel

close, near, value = golden_folder.close, golden_folder.near, golden_folder.value
LAMBDA_CE = float(golden_folder.readme(r'loss = ([\d.]+) \* ce', '0.7'))
_INPUTS = tuple(
  f'e_train/{name}'
  for name in ('in*_plan', 'in*_text*', 'in*_image*', 'noise', 'pk_packed_timesteps', 'timestep_shift')
)


def _experiment(dtype='float32', **model):
  cfg = dataclasses.replace(golden_folder.model_config(dtype), remat='none', **model)
  return config.Config(
    model=cfg, train=config.TrainConfig(lambda_ce=LAMBDA_CE), data=config.DataConfig(sequence=golden_packs.SEQUENCE)
  )


@golden_folder.shared
def _pack(length_weighting):
  """The pack as a batch of one row, with places that nobody fills."""
  samples = golden_packs.samples('e_train', '', images='e_train/')
  canvas = golden_packs.canvas(samples)
  return golden_packs.pack(samples, canvas=canvas, spare=2, length_weighting=length_weighting)


def _batch(*, length_weighting=False):
  return jax.tree.map(lambda x: jnp.asarray(x)[None], _pack(length_weighting))


@golden_folder.shared
def _latent_inputs(shift):
  """noise f32[1, G, C] and t f32[1, G] of the batch's gen tokens; shift: array that holds the timestep shift."""
  row = _pack(False)
  _, place = golden_packs.places(row)
  order = np.argsort(place[row.gen.tokens.segment > 0])
  noise = np.zeros((len(row.gen.patch), value('e_train/noise').shape[1]), np.float32)
  raw = np.full(len(noise), -np.inf, np.float32)
  noise[order], raw[order] = value('e_train/noise'), value('e_train/pk_packed_timesteps')
  t = losses.logit_normal(jnp.asarray(raw), shift=float(value(shift)))
  return jnp.asarray(noise)[None], t[None]


def _whole(und, gen):
  """Streams of the batch's one row as the reference's sequence."""
  return golden_packs.in_reference_order(_pack(False), *(np.asarray(x[0].astype(jnp.float32)) for x in (und, gen)))


def _latent_rows(gen, *, noised):
  """Rows of gen tokens in the reference's order: of all that are no padding, or of the noised ones."""
  row = _pack(False)
  wanted = row.gen.weight > 0 if noised else row.gen.tokens.segment > 0
  return np.asarray(gen[0].astype(jnp.float32))[wanted][np.argsort(golden_packs.places(row)[1][wanted])]


def _supervised(und):
  """Rows of und tokens that are scored, in the reference's order."""
  row = _pack(False)
  wanted = row.und.weight > 0
  return np.asarray(und[0].astype(jnp.float32))[wanted][np.argsort(golden_packs.places(row)[0][wanted])]


def _forward(model, batch, noise, t):
  """{array: streams or rows} of the whole forward pass."""
  clean = model.clean_latents(batch).astype(jnp.float32)
  z = t[..., None] * noise + (1 - t[..., None]) * clean
  cfg, trunk = model.cfg, model.trunk
  x = mot.PerExpert(model.embed_und(batch.und, batch.pictures, batch.vit), model.embed_latents(z, t, batch.gen.patch))
  out = {'llm_input': x}
  # The trunk by hand, to see between its layers.
  und, gen = batch.und.tokens, batch.gen.tokens
  rope = mot.PerExpert(*(layers.rope_angles(s.position, cfg.head_dim, cfg.rope_theta) for s in (und, gen)))
  tokens = packed.TokenMeta(*(jnp.concatenate(pair, axis=1) for pair in zip(und, gen, strict=True)))
  mask = attention.prepare(cfg.attention, tokens, tokens)
  graphdef, weights = nnx.split(trunk.layers)
  for i in range(cfg.depth):
    layer = nnx.merge(graphdef, jax.tree.map(operator.itemgetter(i), weights))
    if i == 0:
      out['attn0'] = _attention_output(layer, x, rope, mask)
    x, _, _ = layer(x, rope, mask)
    out[f'hidden_layer{i}'] = x
  hidden = trunk.forward(out['llm_input'], und, gen)
  logits, prediction = model.logits(hidden.und), model.prediction(hidden.gen)
  out |= {'last_hidden_state': hidden, 'v_pred': prediction, 'ce_logits': logits}
  ce, _ = losses.cross_entropy(logits, batch.und.label)
  return {**out, 'ce': ce, 'mse': (prediction - (noise - clean)) ** 2}


def _attention_output(layer, x, rope, mask):
  """What the layer's attention adds to both streams."""
  q, k, v = (
    jnp.concatenate(parts, axis=1)
    for parts in zip(layer.und.qkv(x.und, *rope.und), layer.gen.qkv(x.gen, *rope.gen), strict=True)
  )
  attended = attention.attend(mask, q, k, v)
  attended = attended.reshape(*attended.shape[:2], -1)
  u = x.und.shape[1]
  return mot.PerExpert(layer.und.o(attended[:, :u]), layer.gen.o(attended[:, u:]))


def _results(dtype, shift='e_train/timestep_shift', **model):
  """{array of e_train: result}."""
  out = golden_folder.compiled(_forward, _experiment(dtype, **model).model)(_batch(), *_latent_inputs(shift))
  results = {name: _whole(*x) for name, x in out.items() if isinstance(x, mot.PerExpert)}
  results |= {name: _supervised(out[name]) for name in ('ce', 'ce_logits')}
  results |= {name: _latent_rows(out[name], noised=True) for name in ('v_pred', 'mse')}
  return results


_LAYERS = tuple(
  f'e_train/{name}' for name in ('llm_input', 'attn0', 'hidden_layer*', 'last_hidden_state', 'v_pred', 'ce_logits')
)


@golden_folder.checks('e_train/padded_latent', inputs=('e_train/pk_padded_images', 'e_train/in*_image*'))
def test_latents_of_padded_pictures():
  images = jnp.asarray(value('e_train/pk_padded_images')).transpose(0, 2, 3, 1)
  encode = golden_folder.compiled(lambda model, x: model.codec.vae.encode(x))
  close(encode(images).transpose(0, 3, 1, 2), 'e_train/padded_latent')
  # A gen token's latent is found by its picture and its position id.
  clean = golden_folder.compiled(lambda model, batch: model.clean_latents(batch))(_batch())
  patch = golden_folder.model_config().codec.patch // golden_folder.model_config().codec.vae.downsample
  want = []
  for latent, (rows, columns) in zip(value('e_train/padded_latent'), _pack(False).grids, strict=False):
    grid = latent[:, : rows * patch, : columns * patch].reshape(-1, rows, patch, columns, patch)
    want.append(grid.transpose(1, 3, 2, 4, 0).reshape(rows * columns, -1))
  want = np.concatenate(want)
  np.testing.assert_allclose(
    _latent_rows(clean, noised=False), want, rtol=0, atol=golden_folder.tolerance('e_train/padded_latent')
  )


@golden_folder.checks('e_train/timesteps_after_shift', inputs=('e_train/timestep_shift', 'e_train/pk_packed_timesteps'))
def test_timesteps():
  raw, shift = (value(f'e_train/{name}') for name in ('pk_packed_timesteps', 'timestep_shift'))
  close(losses.logit_normal(jnp.asarray(raw), shift=float(shift)), 'e_train/timesteps_after_shift')


@pytest.mark.parametrize('implementation', ['reference', 'blockwise'])
@golden_folder.checks(*_LAYERS, 'e_train/ce', 'e_train/mse', inputs=_INPUTS)
def test_every_layer(implementation):
  for name, got in _results('float32', attention=implementation).items():
    close(got, f'e_train/{name}')


@golden_folder.checks('e_train/alt_ce', 'e_train/alt_mse', inputs=('e_train/alt_timestep_shift', 'e_train/noise'))
def test_another_timestep_shift():
  results = _results('float32', shift='e_train/alt_timestep_shift')
  close(results['ce'], 'e_train/alt_ce')
  close(results['mse'], 'e_train/alt_mse')


@golden_folder.checks(*_LAYERS, 'e_train/ce', 'e_train/mse')
def test_every_layer_in_bfloat16():
  for name, got in _results('bfloat16').items():
    near(got, f'e_train/{name}')


def _loss_and_gradients(experiment, batch):
  """(loss and metrics, {released name: gradient}) of what learns."""
  graphdef = interleaved.graphdef(experiment.model)
  params = golden_folder.params()
  trainable, frozen = ({k: v for k, v in params.items() if params_lib.is_codec(k) == f} for f in (False, True))
  noise, t = _latent_inputs('e_train/timestep_shift')

  def loss(trainable, frozen, batch, noise, t):
    model = nnx.merge(graphdef, params_lib.merge(trainable, frozen))
    clean = model.clean_latents(batch).astype(jnp.float32)
    return losses.noised_loss(model, batch, clean=clean, noise=noise, t=t, config=experiment)

  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (_, metrics), gradients = run(trainable, frozen, batch, noise, t)
  by_path = dict(trees.flatten_with_paths(gradients))
  named = {}
  for entry in bagel.entries({path: x.shape for path, x in by_path.items()}).values():
    array = by_path[entry.path]
    array = array if entry.layer is None else array[entry.layer]
    named[entry.name] = np.asarray(bagel.to_released(array, entry.layout), np.float64)
  return metrics, named


@golden_folder.checks(
  'e_train/loss',
  'e_train/official_*',
  'e_train/grad:*',
  'e_train/grad_global_norm',
  f'{golden_folder.GRADIENT_NORMS}/*',
)
def test_losses_and_every_gradient():
  metrics, gradients = _loss_and_gradients(_experiment(), _batch())
  for metric, name in (('loss', 'loss'), ('ce', 'official_ce'), ('mse', 'official_mse')):
    close(metrics[metric], f'e_train/{name}')
  reweighted = losses.text_loss(_logits(), _batch(length_weighting=True).und, cfg=golden_packs.SEQUENCE)[0]
  close(reweighted, 'e_train/official_ce_reweighted')
  for name in golden_folder.matching('e_train/grad:*'):
    close(gradients[re.sub('.*grad:', '', name)], name)
  norms = {name: np.linalg.norm(gradient) for name, gradient in gradients.items()}
  assert norms.keys() == {n.split('/', 1)[1] for n in golden_folder.matching(f'{golden_folder.GRADIENT_NORMS}/*')}
  for name, norm in norms.items():
    close(norm, f'{golden_folder.GRADIENT_NORMS}/{name}')
  close(np.linalg.norm(list(norms.values())), 'e_train/grad_global_norm')


def _logits():
  def logits(model, batch, noise, t):
    clean = model.clean_latents(batch).astype(jnp.float32)
    return model.logits(model.hidden(batch, t[..., None] * noise + (1 - t[..., None]) * clean, t).und)

  run = golden_folder.compiled(logits, _experiment().model)
  return run(_batch(), *_latent_inputs('e_train/timestep_shift'))


@golden_folder.checks('e_train/loss', 'e_train/official_ce', 'e_train/official_mse', 'e_train/grad_global_norm')
def test_losses_and_gradients_in_bfloat16():
  metrics, gradients = _loss_and_gradients(_experiment('bfloat16'), _batch())
  for metric, name in (('loss', 'loss'), ('ce', 'official_ce'), ('mse', 'official_mse')):
    near(metrics[metric], f'e_train/{name}')
  near(np.linalg.norm([np.linalg.norm(g) for g in gradients.values()]), 'e_train/grad_global_norm')
