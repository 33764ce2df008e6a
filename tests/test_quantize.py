"""Quantised weights: the numbers they stand for, a model that computes with them, on meshes and from checkpoints."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from support import toy

import pdgen
from pdgen import flags as flags_lib
from pdgen import sample
from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import trees
from pdgen.cost import aot
from pdgen.data import tokenizers
from pdgen.inference import memory
from pdgen.inference import painter as painter_lib
from pdgen.models import interleaved, partition, quantize
from pdgen.weights import exported, loading

# Rows of 32, 64 and 96: one block, two, three; 144 ids divide by 8 devices. The ViT has blocks of 16 rows, and of 8.
CFG = dataclasses.replace(toy.WITH_VIT, vocab_size=144, mlp_dim=96, num_heads=8)
SAMPLING = config_lib.SamplingConfig(max_pictures=1, max_text_tokens=8, max_tokens=60, flow_steps=1, text_guidance=1.0)
EXACT = {'rtol': 1e-5, 'atol': 1e-5}  # Sums in another order, of values of 1.


def _weights(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_int8_values_are_the_nearest_of_255_levels_of_their_channel():
  w = _weights(48, 6)
  w[:, 2] *= 100
  w[:, 3] = 0
  made = quantize.matrix(jnp.asarray(w), 'int8')
  assert made.values.dtype == jnp.int8 and made.scale.dtype == jnp.float32 and made.scale.shape == (1, 6)
  step = np.abs(w).max(axis=0) / 127
  back = np.asarray(quantize.dequantize(made, jnp.float32))
  assert np.all(np.abs(back - w) <= step * 0.5001)
  np.testing.assert_allclose(np.abs(back).max(axis=0), np.abs(w).max(axis=0), rtol=1e-6)
  assert not back[:, 3].any() and np.abs(np.asarray(made.values)).max() == 127


def test_int4_values_are_the_nearest_of_16_levels_of_their_block():
  """Against the same in numpy, number by number; rows 2 i and 2 i + 1 share a byte."""
  w = _weights(96, 5)
  w[32:64, 1] *= 1e-3
  w[64:, 2] = 0
  w[:32, 3] = np.abs(w[:32, 3])
  made = quantize.matrix(jnp.asarray(w), 'int4')
  assert made.values.shape == (48, 5) and made.values.dtype == jnp.uint8
  assert made.scale.shape == (3, 5) and made.scale.dtype == jnp.bfloat16
  back = np.asarray(quantize.dequantize(made, jnp.float32))
  for block in range(3):
    for column in range(5):
      part = w[32 * block : 32 * block + 32, column]
      extreme = part[np.abs(part).argmax()]
      scale = float(np.asarray(extreme / -8, ml_dtypes.bfloat16)) if extreme else 1.0
      want = np.clip(np.round(part / scale), -8, 7) * scale
      np.testing.assert_array_equal(back[32 * block : 32 * block + 32, column], want)
  q = np.clip(np.round(w[:2, 0] / float(made.scale[0, 0])), -8, 7).astype(int) + 8
  assert int(made.values[0, 0]) == q[0] + 16 * q[1]
  assert np.linalg.norm(back - w) / np.linalg.norm(w) < 0.1


@pytest.mark.parametrize('kind', quantize.KINDS)
def test_stacked_matrices_are_quantised_one_by_one(kind):
  w = jnp.asarray(_weights(3, 32, 8))
  stacked = quantize.matrix(w, kind)
  for i in range(3):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x: x[i], stacked), quantize.matrix(w[i], kind))  # noqa: B023


@pytest.mark.parametrize('dtype, bound', [('float32', 1e-6), ('bfloat16', 1e-2)])
@pytest.mark.parametrize('kind', quantize.KINDS)
def test_products_are_those_of_the_dequantised_matrix(kind, dtype, bound):
  made = quantize.matrix(jnp.asarray(_weights(64, 24)), kind)
  x = jnp.asarray(_weights(7, 64, seed=1)).astype(dtype)
  got = quantize.matmul(x, made)
  want = np.asarray(x, np.float64) @ np.asarray(quantize.dequantize(made, jnp.float32), np.float64)
  assert got.dtype == dtype
  assert np.abs(np.asarray(got, np.float64) - want).max() < bound * np.abs(want).max()


def test_what_is_quantised_and_what_stays():
  found = quantize.params(toy.params(CFG), 'int4')
  leaves = trees.flatten_with_paths(found)
  small = {name.removesuffix('/values') for name, _ in leaves if name.endswith('/values')}
  experts = {f'trunk/layers/{e}/{m}/kernel' for e in ('und', 'gen') for m in ('q', 'k', 'v', 'o', 'gate', 'up', 'down')}
  vit = {f'vit/layers/{m}/kernel' for m in ('q', 'k', 'v', 'o', 'fc1', 'fc2')}
  assert small == {*experts, *vit}
  assert {leaf.dtype.name for name, leaf in leaves if '/kernel/' not in name} == {'float32'}
  again = quantize.params(found, 'int4')
  assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(found), strict=True))
  with pytest.raises(ValueError, match='int4 already; int8 is made of whole ones'):
    quantize.params(found, 'int8')
  with pytest.raises(ValueError, match="Unknown quantisation 'int2'"):
    quantize.params({}, 'int2')
  assert not quantize.is_quantizable('trunk/layers/und/q/kernel', (2, 12, 8)), 'blocks of four rows'
  assert not quantize.is_quantizable('trunk/layers/und/q/lora_a', (2, 32, 8))
  assert not quantize.is_quantizable('codec/vae/encoder/in/kernel', (3, 3, 32, 32))


@pytest.fixture(scope='module')
def hidden():
  """Parameters, on a mesh or not -> final hidden states, logits, velocities of a row of every kind of item."""
  row = toy.batch(*[toy.row(toy.full_trajectory(), CFG, seed=1)] * 8)
  graphdef = interleaved.graphdef(CFG)

  @jax.jit
  def run(params, row):
    model = nnx.merge(graphdef, params)
    z = model.clean_latents(row)
    hidden = model.hidden(row, z, jnp.full(z.shape[:2], 0.5))
    return hidden.und, hidden.gen, model.logits(hidden.und), model.prediction(hidden.gen)

  def of(params, mesh=None):
    with jax.set_mesh(mesh) if mesh is not None else jax.default_device(jax.devices()[0]):
      return jax.device_get(run(params, row if mesh is None else mesh_lib.put_batch(row, mesh)))

  return of


@pytest.mark.parametrize('kind, error', [('int8', 0.03), ('int4', 0.3)])
def test_a_model_computes_with_the_numbers_that_the_weights_stand_for(hidden, kind, error):
  params = toy.params(CFG)
  small = quantize.params(params, kind)
  for got, want, whole in zip(hidden(small), hidden(quantize.whole(small, jnp.float32)), hidden(params), strict=True):
    np.testing.assert_allclose(got, want, **EXACT)
    assert 1e-4 < np.linalg.norm(got - whole) / np.linalg.norm(whole) < error


@pytest.mark.parametrize(
  'kind, mesh', [('int4', dict(fsdp=4, tensor=2)), ('int8', dict(fsdp=1, tensor=4, data=2))], ids=str
)
def test_on_a_mesh_weights_are_split_and_the_results_the_same(hidden, kind, mesh):
  params = toy.params(CFG)
  alone = quantize.params(params, kind)
  config = config_lib.Config(model=CFG, sampling=SAMPLING)
  devices = mesh_lib.make_mesh(config_lib.MeshConfig(**mesh))
  painter = painter_lib.Painter(config=config, params=params, tokenizer=toy.WORDS, mesh=devices, quantize=kind)
  jax.tree.map(np.testing.assert_array_equal, painter.params, alone)
  up = painter.params['trunk']['layers']['und']['up']['kernel']
  whole = partition.shardings({'trunk/layers/und/up/kernel': params['trunk']['layers']['und']['up']['kernel']}, devices)
  assert up.values.sharding.is_equivalent_to(next(iter(whole.values())), 3)
  rows, columns = mesh['fsdp'], mesh['tensor']
  assert up.values.sharding.shard_shape((2, 32, 96)) == (2, 32 // rows, 96 // columns)
  # One scale for all 32 rows: split by columns alone.
  assert up.scale.sharding.shard_shape(up.scale.shape) == (2, 1, 96 // columns)
  assert memory.of_weights(painter.params) < memory.of_weights(alone)
  for got, want in zip(hidden(painter.params, devices), hidden(alone), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_checkpoint_is_quantised_while_it_is_read(tmp_path, dtype, monkeypatch):
  model = dataclasses.replace(toy.MODEL, vocab_size=640, dtype=dtype)
  config = config_lib.Config(model=model, sampling=SAMPLING)
  # Frozen parts keep their type: an import of BAGEL is bfloat16.
  config = dataclasses.replace(config, train=dataclasses.replace(config.train, freeze=('.*',)))
  params = jax.tree.map(lambda x: x.astype(dtype), toy.params(model))
  exported.export_ema(tmp_path / 'model', params, config=config, tokenizer=tokenizers.ASSETS / 'shapes.model')
  whole = loading.load_for_sampling(tmp_path / 'model')[1]
  assert whole['head']['kernel'].dtype == dtype
  events = []
  monkeypatch.setattr(
    exported.safetensors_io.Reader, 'read', _told(exported.safetensors_io.Reader.read, events, 'read', 1)
  )
  monkeypatch.setattr(quantize, 'matrix', _told(quantize.matrix, events, 'quantised', 0))
  painter = pdgen.load(tmp_path / 'model', quantize='int8')
  assert events.count('quantised') == 14
  assert all(a != 'quantised' or b != 'quantised' for a, b in zip(events, events[1:], strict=False)), 'not all at once'
  want = quantize.params(whole, 'int8')
  jax.tree.map(np.testing.assert_array_equal, painter.params, want)
  held = [memory.of_weights(tree['trunk']['layers']) for tree in (painter.params, whole)]
  assert held[0] < (0.4 if dtype == 'float32' else 0.7) * held[1]


def _told(function, events, word, argument):
  def run(*arguments, **options):
    events.append(word)
    return function(*arguments, **options)

  return run


def test_every_command_that_samples_takes_the_option(capsys):
  parser = sample._parser()
  painter, _ = flags_lib.load(parser, parser.parse_args(['--quantize=int4', '--checkpoint=shapes']), needs_world=False)
  assert painter.quantize == 'int4'
  assert painter.params['trunk']['layers']['und']['q']['kernel'].kind == 'int4'
  whole = pdgen.load('shapes')
  assert 0.15 < memory.of_weights(painter.params) / memory.of_weights(whole.params) < 0.25
  again = dataclasses.replace(painter, config=painter.config)
  assert all(a is b for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(painter.params), strict=True))
  with pytest.raises(SystemExit):
    parser.parse_args(['--quantize=int2'])
  assert "invalid choice: 'int2'" in capsys.readouterr().err


def test_the_sampler_is_compiled_ahead_with_the_weights_that_a_painter_holds():
  config = config_lib.Config(model=dataclasses.replace(CFG, dtype='bfloat16'), sampling=SAMPLING)
  mesh = mesh_lib.make_mesh(config_lib.MeshConfig(fsdp=4, tensor=2))
  program = aot.sample_program(config, mesh, 4, 'int4')
  painter = painter_lib.Painter(
    config=config, params=toy.params(config.model), tokenizer=toy.WORDS, mesh=mesh, quantize='int4'
  )
  like = lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding.shard_shape(leaf.shape))
  assert jax.tree.map(like, program.arguments['parameters']) == jax.tree.map(like, painter.params)
  assert 'tensor<2x16x96xui8>' in program.lower().as_text()
