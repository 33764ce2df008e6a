"""Values of a config that cannot be are named when it is made, not in the middle of a run."""

import json
import pathlib
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
    *(
      (config.SamplingConfig, name, value, f'config.sampling.{name}={value}: it must be finite')
      for name in (
        'temperature',
        'top_p',
        'repetition_penalty',
        'text_guidance',
        'image_guidance',
        'renorm_min',
        'timestep_shift',
      )
      for value in (float('nan'), float('inf'), -float('inf'), 1e39)  # 1e39 is infinite in float32.
    ),
    (
      config.SamplingConfig,
      'guidance_interval',
      (float('nan'), 1.0),
      'guidance_interval=(nan, 1.0): it must be finite',
    ),
    (
      config.SamplingConfig,
      'guidance_interval',
      (0.0, float('inf')),
      'guidance_interval=(0.0, inf): it must be finite',
    ),
    (config.SamplingConfig, 'temperature', 1e7, 'config.sampling.temperature=10000000.0 is too large'),
    (config.SamplingConfig, 'top_k', -1, 'config.sampling.top_k=-1 is too small: it is at least 0'),
    (config.SamplingConfig, 'top_p', 0.0, 'config.sampling.top_p=0.0: it must be more than 0'),
    (config.SamplingConfig, 'top_p', 1.5, 'config.sampling.top_p=1.5 is too large: it is at most 1'),
    (config.SamplingConfig, 'repetition_penalty', 0.0, 'repetition_penalty=0.0: it must be more than 0'),
    (config.SamplingConfig, 'timestep_shift', 1e-46, 'config.sampling.timestep_shift=1e-46 is too small'),
    (config.SamplingConfig, 'renorm_min', 1.5, 'config.sampling.renorm_min=1.5 is too large: it is at most 1'),
    (config.SamplingConfig, 'flow_steps', 10**9, 'is too large: it is at most 10000'),
    (config.SamplingConfig, 'max_tokens', 2**31, 'is too large: it is at most 2147483647'),
    (config.SamplingConfig, 'renorm', 'loud', "Unknown renorm 'loud'"),
    (config.SamplingConfig, 'inspection', 'none', "Unknown inspection 'none' (config.sampling). Known: ['free',"),
    (config.SamplingConfig, 'max_edits', -1, 'config.sampling.max_edits=-1 is too small: it is at least 0'),
    (config.SamplingConfig, 'max_edits', 2**31, 'is too large: it is at most 2147483647'),
    (config.TrainConfig, 'steps', 0, 'config.train.steps=0 is too small'),
    (config.TrainConfig, 'eval_prompts', 0, 'config.train.eval_prompts=0 is too small'),
    (config.TrainConfig, 'learning_rate', float('nan'), 'config.train.learning_rate=nan is too small'),
    (config.TrainConfig, 'ema_decay', 1.0, 'config.train.ema_decay=1.0 is not in [0, 1)'),
    (config.DataConfig, 'batch_size', 0, 'config.data.batch_size=0 is too small'),
    (config.DataConfig, 'too_long', 'cut', "config.data.too_long='cut'. Known: ['raise', 'skip']"),
  ],
)
def test_what_cannot_be_is_named(kind, field, value, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    kind(**{field: value})


@pytest.mark.parametrize(
  ('values', 'words'),
  [
    (dict(inspection='off', grammar=False), "inspection='off' needs the grammar"),
    (dict(inspection='dictated', max_edits=1), 'max_edits has no say in what is dictated'),
  ],
)
def test_switches_that_do_not_go_together_are_named(values, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    config.SamplingConfig(**values)


@pytest.mark.parametrize(
  ('values', 'error', 'words'),
  [
    ({'train': {'stpes': 1}}, KeyError, "Unknown key config.train.stpes. Known: ['accumulate'"),
    ({'model': {'codec': {'kidn': 'flux'}}}, KeyError, 'Unknown key config.model.codec.kidn'),
    ({'train': {'steps': 'ten'}}, ValueError, "config.train.steps must be int, not 'ten'"),
    ({'sampling': 3}, ValueError, "config.sampling must be a mapping of ['max_pictures'"),
    (3, ValueError, "config must be a mapping of ['name', 'seed'"),
  ],
)
def test_keys_and_types_that_are_not_the_configs_are_named(values, error, words):
  with pytest.raises(error, match=re.escape(words)):
    config.from_config_dict(values)


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    (
      'wrold:shapes',
      "Unknown kind of source 'wrold' in config.data.sources. Known: ['world', 'records', 'self_sampled']",
    ),
    ('records', 'a world or a record set needs a name, self_sampled has none'),
    ('self_sampled:x', 'a world or a record set needs a name, self_sampled has none'),
    ('world:shapes*0', 'the weight must be above 0'),
  ],
)
def test_sources_that_cannot_be_are_named(text, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    config.SourceConfig.parse(text)


@pytest.mark.parametrize(
  ('sizes', 'vit', 'words'),
  [
    (((24, 30),), None, 'sides are multiples of 8 pixels'),
    (((24, 64),), None, 'at most 32 (model.max_latent_size patches)'),
    (((24, 32),), config.VitConfig(), 'need a budget for the ViT: data.vit_tokens'),
  ],
)
def test_picture_sizes_that_do_not_fit_the_model_are_named(sizes, vit, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    config.Config(model=config.ModelConfig(vit=vit), data=config.DataConfig(picture_sizes=sizes))


def test_the_canvas_is_the_largest_of_each_side():
  assert config.Config().canvas is None
  sizes = ((16, 40), (24, 8))
  model = config.ModelConfig(image_size=16, max_latent_size=5)
  assert config.Config(model=model, data=config.DataConfig(picture_sizes=sizes)).canvas == (24, 40)


def test_configs_of_the_first_format_are_read():
  """The file is the config.json of a model that version dbb0ef8 exported."""
  manifest = json.loads((pathlib.Path(__file__).parent / 'data' / 'config_format1.json').read_text())
  assert manifest['format'] == 1
  read = config.from_config_dict(config.upgrade(manifest['config'], 1))
  assert (read.sampling.inspection, read.sampling.max_edits) == ('free', config.MOST)
  assert read.sampling.contiguous_positions and read.data.sequence.verdict_weight == 4.0
  assert read.data.sequence.decisive[1] == '<refine>' and len(read.data.sequence.faults) == 2
  own, made = read.data.sources[1], read.data.sources[0]
  assert (own.kind, own.weight) == ('self_sampled', 0.25)
  assert (made.kind, made.name, made.weight, made.mixture[0]) == ('world', 'shapes', 0.75, ('multi_turn', 0.33))
  assert config.from_config_dict(config.upgrade(config.to_config_dict(read).to_dict(), config.FORMAT)) == read
  with pytest.raises(ValueError, match='this version of pdgen reads 1 to'):
    config.upgrade(manifest['config'], config.FORMAT + 1)


@pytest.mark.parametrize('name', ['', 'shape', 'shapes.scenes', 'os'])
def test_a_world_that_is_not_there_is_named_with_those_that_are(name):
  with pytest.raises(
    ValueError, match=re.escape(f"There is no world {name!r} (config.data.sources). Known: ['shapes']")
  ):
    worlds.get(name)
