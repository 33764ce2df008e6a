"""Values of a config that cannot be are named when it is made, not in the middle of a run."""

import re

import pytest

from pdgen import worlds
from pdgen.core import config


@pytest.mark.parametrize(
  ('kind', 'field', 'value', 'words'),
  [
    (config.SamplingConfig, 'max_pictures', 0, 'config.sampling.max_pictures=0 is too small: it is at least 1'),
    (config.SamplingConfig, 'flow_steps', 0, 'config.sampling.flow_steps=0 is too small'),
    (config.SamplingConfig, 'temperature', -0.1, 'config.sampling.temperature=-0.1 is too small'),
    (config.SamplingConfig, 'timestep_shift', 0.0, 'config.sampling.timestep_shift=0.0: it must be more than 0'),
    (config.SamplingConfig, 'guidance_interval', (0.5,), 'config.sampling.guidance_interval=(0.5,): give two times'),
    (config.SamplingConfig, 'guidance_interval', (0.8, 0.5), 'the lower one first'),
    (config.SamplingConfig, 'renorm', 'loud', "Unknown renorm 'loud'"),
    (config.TrainConfig, 'steps', 0, 'config.train.steps=0 is too small'),
    (config.TrainConfig, 'eval_prompts', 0, 'config.train.eval_prompts=0 is too small'),
    (config.TrainConfig, 'learning_rate', float('nan'), 'config.train.learning_rate=nan is too small'),
    (config.TrainConfig, 'ema_decay', 1.0, 'config.train.ema_decay=1.0 is not in [0, 1)'),
    (config.DataConfig, 'batch_size', 0, 'config.data.batch_size=0 is too small'),
    (config.DataConfig, 'self_share', 1.5, 'config.data.self_share=1.5 is not in [0, 1]'),
  ],
)
def test_what_cannot_be_is_named(kind, field, value, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    kind(**{field: value})


@pytest.mark.parametrize(
  ('values', 'error', 'words'),
  [
    ({'train': {'stpes': 1}}, KeyError, "Unknown key config.train.stpes. Known: ['b1'"),
    ({'model': {'codec': {'kidn': 'flux'}}}, KeyError, 'Unknown key config.model.codec.kidn'),
    ({'train': {'steps': 'ten'}}, ValueError, "config.train.steps must be int, not 'ten'"),
    ({'sampling': 3}, ValueError, "config.sampling must be a mapping of ['max_pictures'"),
  ],
)
def test_keys_and_types_that_are_not_the_configs_are_named(values, error, words):
  with pytest.raises(error, match=re.escape(words)):
    config.from_config_dict(values)


@pytest.mark.parametrize('name', ['', 'shape', 'shapes.scenes', 'os'])
def test_a_world_that_is_not_there_is_named_with_those_that_are(name):
  with pytest.raises(
    ValueError, match=re.escape(f"There is no world {name!r} (config.data.sources). Known: ['shapes']")
  ):
    worlds.get(name)
