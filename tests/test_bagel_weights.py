"""The table of released names: every name of BAGEL-7B-MoT, every parameter of ours, each exactly once."""

import dataclasses
import json
import math
import os
import pathlib

import numpy as np
import pytest

from pdgen.core import trees
from pdgen.models import interleaved, presets
from pdgen.weights import bagel, bagel_checks

GOLDEN = pathlib.Path(os.environ.get('PDGEN_GOLDEN', pathlib.Path(__file__).parent / 'golden'))


@pytest.fixture(scope='module')
def released() -> dict:
  """Names and shapes of the released files, and the configurations that describe them."""
  return json.loads((GOLDEN / 'bagel_7b_params.json').read_text())


@pytest.fixture(scope='module')
def ours() -> dict[str, tuple[int, ...]]:
  """Shapes of `bagel_7b`, and of the two tables that it computes."""
  cfg = presets.bagel_7b()
  shapes = {path: leaf.shape for path, leaf in trees.flatten_with_paths(interleaved.abstract_params(cfg))}
  return {
    **shapes,
    'fixed/latent_position': (cfg.max_latent_size**2, cfg.width),
    'fixed/vit_position': (cfg.vit.max_patches**2, cfg.width),
  }


@pytest.fixture(scope='module')
def found(released) -> dict[tuple[str, str], tuple[int, ...]]:
  files = (bagel.EMA, bagel.AE)
  return {(file, name): tuple(shape) for file in files for name, shape in released[file].items()}


def test_bagel_7b_has_the_released_names_and_shapes(released, ours, found):
  wanted = bagel.entries(ours)
  assert {key: entry.shape for key, entry in wanted.items()} == found
  assert bagel_checks.disagreements(wanted, found) == []
  summary = released['summary']
  assert len(found) == summary['ema_tensors'] + summary['ae_tensors']
  fixed = sum(math.prod(shape) for path, shape in ours.items() if path.startswith('fixed/'))
  total = sum(math.prod(shape) for shape in ours.values()) - fixed
  assert total == summary['ema_total_without_fixed_pos_embed'] + summary['ae_total']
  assert total == 14_658_838_147


def test_both_directions_agree(ours, found):
  wanted = bagel.entries(ours)
  for (file, name), entry in wanted.items():
    assert bagel.place(file, name) == (entry.path, entry.layer, entry.layout)
  for path, shape in ours.items():
    parts = [entry for entry in wanted.values() if entry.path == path]
    stacked = parts[0].layer is not None
    assert sorted(entry.layer or 0 for entry in parts) == list(range(shape[0] if stacked else 1))
    one = np.broadcast_to(np.int8(0), parts[0].shape)
    assert bagel.to_ours(one, parts[0].layout).shape == shape[stacked:]
    assert bagel.to_released(bagel.to_ours(one, parts[0].layout), parts[0].layout).shape == one.shape


def test_layouts_move_what_they_say():
  linear = np.arange(6).reshape(2, 3)  # [out, in]
  assert bagel.to_ours(linear, bagel.LINEAR)[2, 1] == linear[1, 2]
  conv = np.arange(120).reshape(2, 3, 4, 5)  # [out, in, rows, columns]
  assert bagel.to_ours(conv, bagel.CONV)[3, 4, 2, 1] == conv[1, 2, 3, 4]
  for array, layout in ((linear, bagel.LINEAR), (conv, bagel.CONV), (conv, bagel.SAME)):
    back = bagel.to_released(bagel.to_ours(array, layout), layout)
    np.testing.assert_array_equal(back, array)


def test_a_name_or_path_without_a_rule_is_an_error():
  with pytest.raises(ValueError, match="0 rules .* match 'language_model.model.rotary.weight'"):
    bagel.place(bagel.EMA, 'language_model.model.rotary.weight')
  with pytest.raises(ValueError, match='0 rules'):  # a name of the other file
    bagel.place(bagel.AE, 'vae2llm.weight')
  with pytest.raises(ValueError, match="0 rules .* match 'trunk/extra'"):
    bagel.entries({'trunk/extra': (1,)})


def test_no_two_rules_say_the_same():
  assert len({(rule.file, rule.released) for rule in bagel.RULES}) == len(bagel.RULES)
  assert len({rule.ours for rule in bagel.RULES}) == len(bagel.RULES)


def test_every_disagreement_is_listed(ours, found):
  wanted = bagel.entries(ours)
  changed = dict(found)
  del changed['ema.safetensors', 'vae2llm.bias']
  changed['ae.safetensors', 'decoder.extra.weight'] = (3,)
  changed['ema.safetensors', 'llm2vae.bias'] = (65,)
  assert bagel_checks.disagreements(wanted, changed) == [
    'missing: vae2llm.bias [3584] (ema.safetensors)',
    'unexpected: decoder.extra.weight [3] (ae.safetensors)',
    'mis-shaped: llm2vae.bias [65], [64] wanted (ema.safetensors)',
  ]


def test_the_released_json_files_describe_the_preset(released):
  configs = {name.split()[0]: values for name, values in released['configs'].items()}
  described = bagel.from_released(
    configs['llm_config'], configs['vit_config'], configs['bagel_config'], configs['ae_params'], dtype='bfloat16'
  )
  assert described == presets.bagel_7b()
  # config.json and ae_config.json may be absent: then they are as upstream hard-codes them.
  assert bagel.from_released(configs['llm_config'], configs['vit_config'], {}, {}, dtype='bfloat16') == described
  spread = {**configs['bagel_config'], 'interpolate_pos': True}
  other = bagel.from_released(configs['llm_config'], configs['vit_config'], spread, {}, dtype='bfloat16')
  assert other == dataclasses.replace(described, interpolate_positions=True)
  with pytest.raises(ValueError, match="'gelu' where pdgen computes 'gelu_pytorch_tanh'"):
    bagel.from_released(configs['llm_config'], configs['vit_config'], {'connector_act': 'gelu'}, {}, dtype='bfloat16')


def test_the_preset_at_other_sizes_has_the_same_weights(ours):
  small = presets.at_image_size(presets.bagel_7b(), 512)
  assert (small.latent_tokens, small.vit_tokens) == (1024, 37**2)
  shapes = {path: leaf.shape for path, leaf in trees.flatten_with_paths(interleaved.abstract_params(small))}
  assert shapes.items() <= ours.items()
  with pytest.raises(ValueError, match='max_latent_size'):
    presets.at_image_size(presets.bagel_7b(), 1040)
