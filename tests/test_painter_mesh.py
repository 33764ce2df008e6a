"""Sampling on a mesh gives the texts and pictures of one device, on a tiny model with every part."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import compilations, toy

import pdgen
from pdgen import flags as flags_lib
from pdgen import sample
from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import trees
from pdgen.data import tokenizers
from pdgen.inference import requests, streaming
from pdgen.models import partition
from pdgen.weights import exported

# 144 ids divide by 8 devices; the tokenizer has 139.
CFG = dataclasses.replace(toy.WITH_VAE, vocab_size=144)
SAMPLING = config_lib.SamplingConfig(max_pictures=2, max_text_tokens=8, max_tokens=100, flow_steps=2, temperature=0.5)
PAINTER = toy.refining_painter(CFG, SAMPLING)
PARTIAL = dataclasses.replace(toy.full_trajectory(), steps=toy.full_trajectory().steps[2:], stop=None)
PROMPTS = ['ab', 'c', PARTIAL, 'a longer prompt', 'e']
# Rows alone; rows, and weights that are gathered, with heads; kv heads (two) that four devices do not divide.
MESHES = {
  'data=8': dict(data=8, fsdp=1),
  'fsdp=4, tensor=2': dict(fsdp=4, tensor=2),
}


def _on(mesh, painter=PAINTER):
  return dataclasses.replace(painter, mesh=mesh_lib.make_mesh(config_lib.MeshConfig(**mesh)))


def _assert_same(got, want):
  """Equal texts; pictures within one level, in fewer than one pixel of a hundred.

  Matrices that are split over `tensor` or `fsdp` are summed in another order, 1e-6 of the values apart: a value that
  close to the middle between two levels of a pixel rounds to the other one.
  """
  assert [t.stop for t in got] == [t.stop for t in want]
  for one, other in zip(got, want, strict=True):
    for a, b in zip(one.items(), other.items(), strict=True):
      assert (a.kind, a.number) == (b.kind, b.number)
      if a.is_picture:
        difference = np.abs(a.picture.astype(int) - b.picture)
        assert difference.max() <= 1 and np.mean(difference > 0) < 0.01
      else:
        assert a.text == b.text


@pytest.fixture(scope='module')
def alone():
  return PAINTER.sample(PROMPTS, seed=7).trajectories


@pytest.mark.parametrize('mesh', MESHES.values(), ids=MESHES)
def test_a_mesh_samples_what_one_device_does(mesh, alone):
  painter = _on(mesh)
  result = painter.sample(PROMPTS, seed=7)
  _assert_same(result.trajectories, alone)
  assert sum(len(t.pictures) for t in alone) >= 8 and len({t.stop for t in alone}) > 1
  assert result.timings['compile_calls'] == 1
  # Another batch of the shape does not compile again.
  assert painter.sample(PROMPTS, seed=9).timings['compile_calls'] == 0


def test_rows_and_weights_are_split():
  painter = _on(MESHES['fsdp=4, tensor=2'])
  assert painter.mesh is not None
  placed = dict(trees.flatten_with_paths(partition.shardings(PAINTER.params, painter.mesh)))
  for name, leaf in trees.flatten_with_paths(painter.params):
    assert leaf.sharding == placed[name], name
  batch = painter.sample_batch(requests.make(['p'] * 5, sampling=SAMPLING))
  assert batch.picture_limit.tolist() == [2] * 5 + [0] * 3  # Rounded up to a multiple of four.
  for leaf in jax.tree.leaves(batch):
    assert leaf.sharding.shard_shape(leaf.shape)[0] == 2
  state = painter.phases(SAMPLING).prefill(batch)
  assert state.cache.k.sharding.shard_shape(state.cache.k.shape) == (2, 2, 1, state.cache.slots, 8)


def test_streams_on_a_mesh_compile_once(alone):
  painter = _on(MESHES['fsdp=4, tensor=2'])
  with compilations.counted() as compiled:
    ends = {e.row: e.trajectory for e in painter.stream(PROMPTS, seed=7) if isinstance(e, streaming.End)}
  assert compiled == dict(prefill=1, decode_step=1, picture_phase=1)
  _assert_same([ends[row] for row in range(len(PROMPTS))], alone)


def test_matrices_are_in_bfloat16_where_the_model_computes_in_it():
  half = dataclasses.replace(CFG, dtype='bfloat16', lora=config_lib.LoraConfig(rank=8, alpha=8.0))
  painter = _on(dict(fsdp=4, tensor=2), toy.painter(half, SAMPLING))
  dtypes = {name: leaf.dtype for name, leaf in trees.flatten_with_paths(painter.params)}
  for name, dtype in dtypes.items():
    assert dtype == ('bfloat16' if name.endswith(('kernel', 'table', 'lora_a', 'lora_b')) else 'float32'), name
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(_on(dict(data=8, fsdp=1)).params))


def test_what_a_mesh_cannot_do_is_refused():
  with pytest.raises(ValueError, match='mesh.sequence=2: a row with a KV cache is not split'):
    _on(dict(fsdp=4, sequence=2))
  with pytest.raises(ValueError, match='139 does not divide by tensor = 2'):
    _on(dict(tensor=2), toy.painter(toy.WITH_VAE, SAMPLING))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  model = config_lib.ModelConfig(width=32, depth=1, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=32)
  sampling = config_lib.SamplingConfig(
    max_pictures=2, max_text_tokens=24, max_tokens=200, flow_steps=2, text_guidance=1.0
  )
  folder = tmp_path_factory.mktemp('model') / 'tiny'
  experiment = config_lib.Config(model=model, sampling=sampling)
  tokenizer = tokenizers.ASSETS / 'shapes.model'
  return str(exported.export_ema(folder, toy.params(model), config=experiment, tokenizer=tokenizer))


def _load(*arguments):
  parser = sample._parser()
  return flags_lib.load(parser, parser.parse_args(arguments), needs_world=False)[0]


def test_options_of_the_mesh(checkpoint):
  assert _load(f'--checkpoint={checkpoint}').mesh is None
  painter = _load(f'--checkpoint={checkpoint}', '--mesh.tensor=4')
  assert painter.mesh is not None and dict(painter.mesh.shape) == dict(data=1, fsdp=2, tensor=4, sequence=1)
  want = pdgen.load(checkpoint).sample('a photo of a red ring', seed=1).trajectories
  _assert_same(painter.sample('a photo of a red ring', seed=1).trajectories, want)


def test_every_field_of_the_mesh_config_is_an_option():
  arguments = [f'--mesh.{f.name}={f.default}' for f in dataclasses.fields(config_lib.MeshConfig)]
  assert vars(sample._parser().parse_args(arguments)).keys() >= {a.split('=')[0][2:] for a in arguments}


@pytest.mark.parametrize(
  ('argument', 'words'),
  [
    ('--mesh.sequence=2', 'a row with a KV cache is not split'),
    ('--mesh.tensor=3', 'needs a multiple of 3 devices; there are 8'),
    ('--mesh.cpu_devices=5', '--mesh.cpu_devices=5 comes too late'),
    ('--mesh.tensor=many', 'invalid int value'),
  ],
)
def test_a_mesh_that_cannot_be_is_told_with_the_usage(checkpoint, argument, words, capsys):
  with pytest.raises(SystemExit) as error:
    _load(f'--checkpoint={checkpoint}', argument)
  assert error.value.code == 2 and words in capsys.readouterr().err
