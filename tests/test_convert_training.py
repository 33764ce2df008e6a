"""Imports through a run and back: what did not learn keeps its bits, what learned its type, adapters are merged."""

import dataclasses
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import trees
from pdgen.data import tokenizers
from pdgen.data.tokenizers import byte_level
from pdgen.models import params as params_lib
from pdgen.training import checkpoints
from pdgen.training import state as state_lib
from pdgen.weights import bagel, bagel_convert, exported, safetensors_io

ROOT = pathlib.Path(__file__).parents[1]
BAGEL = pathlib.Path(os.environ.get('PDGEN_GOLDEN') or ROOT / 'tests' / 'golden') / 'ckpt'
HEAD = 'language_model.lm_head.weight'
ALL_BUT_THE_HEAD = ('embed', 'trunk', 'time', 'latent_in', 'latent_out', 'vit')
STEP = 2.0**-9  # A change that bfloat16 and float16 round away from most weights.


def tensors_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
  return {n: x for file in (bagel.EMA, bagel.AE) for n, x in safetensors.numpy.load_file(folder / file).items()}


def released(folder: pathlib.Path, ema_type) -> pathlib.Path:
  """The tiny released folder with `ema_type(name)` for the tensors of ema.safetensors; the VAE stays float32."""
  shutil.copytree(BAGEL, folder)
  tensors = safetensors.numpy.load_file(folder / bagel.EMA)
  cast = {name: np.asarray(x, ema_type(name)) for name, x in tensors.items()}
  safetensors.numpy.save_file(cast, folder / bagel.EMA, metadata={'format': 'pt'})
  return folder


SOURCES = {
  'bfloat16': lambda name: jnp.bfloat16,
  'float32': lambda name: np.float32,
  'float16': lambda name: np.float16,
  'mixed': lambda name: np.float32 if 'norm' in name or 'vit_model' in name else jnp.bfloat16,
}


def run_of(imported: pathlib.Path, final: pathlib.Path, *, lora=None, freeze=ALL_BUT_THE_HEAD):
  """`final` of a run that began with an import, was saved and resumed, and learned STEP. Returns config and state."""
  stored = exported.load_export(imported)
  config = dataclasses.replace(
    stored.config,
    model=dataclasses.replace(stored.config.model, lora=lora),
    train=config_lib.TrainConfig(freeze=freeze, init_from=str(imported)),
  )
  mesh = mesh_lib.make_mesh(config_lib.MeshConfig(), devices=jax.devices()[:1])
  state = state_lib.init_state(config, mesh, stored.params)
  state = state.replace(ema=jax.tree.map(lambda x: x + jnp.float32(STEP), state.ema))
  with checkpoints.Checkpointer(final.with_name('saved'), keep=1) as checkpointer:
    checkpointer.save(state, data=None, config=config)
  with checkpoints.Checkpointer(final.with_name('saved'), keep=1) as checkpointer:
    state = checkpointer.restore(state_lib.abstract_on_mesh(config, mesh), config=config).state
  exported.export_ema(final, state.averaged(), config=config, tokenizer=stored.tokenizer)
  return config, state


@pytest.mark.parametrize('name', SOURCES)
def test_frozen_weights_keep_their_bits_and_their_type(name, tmp_path):
  """Before: 62 frozen values of a bfloat16 model changed, 3 became 0, and all 240 tensors of its VAE were rounded."""
  source = released(tmp_path / 'BAGEL', SOURCES[name])
  bagel_convert.import_bagel(source, tmp_path / 'imported', prepare_tokenizer=byte_level.prepare)
  bagel_convert.export_bagel(tmp_path / 'imported', tmp_path / 'again')
  for path in source.iterdir():
    assert path.read_bytes() == (tmp_path / 'again' / path.name).read_bytes(), path.name
  run_of(tmp_path / 'imported', tmp_path / 'final')
  bagel_convert.export_bagel(tmp_path / 'final', tmp_path / 'out')
  bagel_convert.export_bagel(tmp_path / 'final', tmp_path / 'full', dtype='float32')
  before, after, full = (tensors_of(tmp_path / folder) for folder in ('BAGEL', 'out', 'full'))
  assert before.keys() == after.keys() == full.keys()
  learned = before.pop(HEAD)
  for tensor, x in before.items():
    assert after[tensor].dtype == x.dtype and after[tensor].tobytes() == x.tobytes(), tensor
    np.testing.assert_array_equal(full[tensor].astype(x.dtype), x)
    assert name == 'float16' or full[tensor].dtype == x.dtype, tensor
  want = learned.astype(np.float32) + np.float32(STEP)
  assert after[HEAD].dtype == learned.dtype and full[HEAD].dtype == np.float32
  np.testing.assert_array_equal(full[HEAD], want)
  np.testing.assert_array_equal(after[HEAD], want.astype(learned.dtype))


def test_adapters_are_exported_merged_or_apart(tmp_path):
  bagel_convert.import_bagel(BAGEL, tmp_path / 'imported', prepare_tokenizer=byte_level.prepare)
  lora = config_lib.LoraConfig(rank=2, alpha=6.0, kernels='gen/(q|down)|und/o')
  _, state = run_of(tmp_path / 'imported', tmp_path / 'final', lora=lora, freeze=('.*',))
  bagel_convert.export_bagel(tmp_path / 'final', tmp_path / 'out')
  bagel_convert.export_bagel(tmp_path / 'final', tmp_path / 'apart', adapters='apart')
  before, after = tensors_of(BAGEL), tensors_of(tmp_path / 'out')
  apart = safetensors.numpy.load_file(tmp_path / 'apart' / 'adapter' / 'adapter_model.safetensors')
  described = json.loads((tmp_path / 'apart' / 'adapter' / 'adapter_config.json').read_text())
  assert before.keys() == after.keys()
  adapted = set()
  adapters = (
    ('gen', 'q', 'self_attn.q_proj_moe_gen'),
    ('gen', 'down', 'mlp_moe_gen.down_proj'),
    ('und', 'o', 'self_attn.o_proj'),
  )
  for expert, ours, theirs in adapters:
    factors = state.ema['trunk']['layers'][expert][ours]
    for layer in range(3):
      module = f'language_model.model.layers.{layer}.{theirs}'
      added = 3.0 * np.asarray(factors['lora_a'][layer]) @ np.asarray(factors['lora_b'][layer])
      assert np.abs(added).max() > 1e-3
      name = f'{module}.weight'
      np.testing.assert_allclose(after[name], before[name] + added.T, rtol=1e-5, atol=1e-6)
      adapted.add(name)
      # As PEFT computes it: W + lora_alpha / r * B A.
      low, high = (apart.pop(f'base_model.model.{module}.lora_{letter}.weight') for letter in 'AB')
      rows, columns = before[name].shape
      assert low.shape == (2, columns) and high.shape == (rows, 2)
      scale = described['lora_alpha'] / described['r']
      np.testing.assert_allclose(before[name] + scale * high @ low, after[name], rtol=1e-5, atol=1e-6)
  assert not apart and described['target_modules'] == sorted(theirs for _, _, theirs in adapters)
  assert all(after[n].tobytes() == x.tobytes() for n, x in before.items() if n not in adapted)
  for path in BAGEL.iterdir():
    assert path.read_bytes() == (tmp_path / 'apart' / path.name).read_bytes(), path.name
  # The folder imports again, as a model without adapters.
  config = bagel_convert.import_bagel(tmp_path / 'out', tmp_path / 'merged', prepare_tokenizer=byte_level.prepare)
  assert config.model.lora is None


def test_what_a_random_model_froze_keeps_its_bits_and_stays_small(tiny, tmp_path):
  """Of a model without released weights: what learned in float16, what did not as it is in the run."""
  config = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, freeze=('embed', 'trunk')))
  mesh = mesh_lib.make_mesh(config_lib.MeshConfig(), devices=jax.devices()[:1])
  first = state_lib.init_state(config, mesh)
  exported.export_ema(tmp_path / 'final', first.averaged(), config=config, tokenizer=tokenizers.ASSETS / 'shapes.model')
  kinds = {n: i.dtype.name for n, i in safetensors_io.Reader(tmp_path / 'final' / exported.PARAMS).infos.items()}
  assert {name: kind for name, kind in kinds.items() if name in ('embed/table', 'head/kernel')} == {
    'embed/table': 'bfloat16',
    'head/kernel': 'float16',
  }
  # A second run, which begins with that model and freezes what learned before.
  config = dataclasses.replace(config, train=dataclasses.replace(config.train, freeze=('embed', 'head')))
  began = exported.load_export(tmp_path / 'final').params
  second = state_lib.init_state(config, mesh, began).averaged()
  exported.export_ema(tmp_path / 'second', second, config=config, tokenizer=tokenizers.ASSETS / 'shapes.model')
  ended = exported.load_export(tmp_path / 'second').params
  for name, leaf in trees.flatten_with_paths(began):
    if name in params_lib.frozen([name], config.train.freeze):
      np.testing.assert_array_equal(dict(trees.flatten_with_paths(ended))[name], leaf)
  assert safetensors_io.Reader(tmp_path / 'second' / exported.PARAMS).infos['head/kernel'].dtype == np.float16


def test_a_number_that_the_released_type_does_not_hold_is_named(tmp_path):
  source = released(tmp_path / 'BAGEL', SOURCES['float16'])
  bagel_convert.import_bagel(source, tmp_path / 'imported', prepare_tokenizer=byte_level.prepare)
  stored = exported.load_export(tmp_path / 'imported')
  params = jax.tree.map(np.array, stored.params)
  params['head']['kernel'][0, 0] = 1e5
  exported.export_ema(tmp_path / 'final', params, config=stored.config, tokenizer=stored.tokenizer)
  with pytest.raises(ValueError, match=f'{HEAD} has learned a number that float16 does not hold.*--dtype=float32'):
    bagel_convert.export_bagel(tmp_path / 'final', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  bagel_convert.export_bagel(tmp_path / 'final', tmp_path / 'out', dtype='float32')
  assert tensors_of(tmp_path / 'out')[HEAD][0, 0] == np.float32(1e5)
  assert json.loads((tmp_path / 'out' / 'config.json').read_text())
