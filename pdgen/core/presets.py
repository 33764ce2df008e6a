"""Sizes of public models, and the configuration that the json files of a released folder describe."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pdgen.core import config

JSON = (
  'llm_config.json',
  'vit_config.json',
)  # a released folder has both; config.json and ae_config.json may be absent
_LATENT_PATCH, _MAX_LATENT_SIZE, _MAX_VIT_PATCHES = 2, 64, 70  # BagelConfig's values for the released weights


def bagel_7b() -> config.ModelConfig:
  """BAGEL-7B-MoT: 14.7B parameters, 7B of which a token meets. Tests shrink it by `dataclasses.replace`."""
  return config.ModelConfig(
    vocab_size=152_064,
    width=3584,
    depth=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    mlp_dim=18_944,
    rope_theta=1e6,
    max_latent_size=_MAX_LATENT_SIZE,
    image_size=1024,
    codec=config.CodecConfig(kind='flux', patch=16, vae=config.VaeConfig()),
    vit=config.VitConfig(
      width=1152, depth=26, num_heads=16, mlp_dim=4304, patch=14, max_patches=_MAX_VIT_PATCHES, image_size=980
    ),
    attention='blockwise',
    remat='full',
    dtype='bfloat16',
  )


def bagel_sampling(model: config.ModelConfig, *, pictures: int = 10) -> config.SamplingConfig:
  """BAGEL's text-to-image settings (50 grid points are 49 steps), with room for that many pictures and their words."""
  sampling = config.SamplingConfig(
    max_pictures=pictures,
    max_text_tokens=128,
    flow_steps=49,
    renorm='global',
    text_guidance=4.0,
    guidance_interval=(0.4, 1.0),
    timestep_shift=3.0,
    closed_positions=True,
  )
  copies = model.latent_tokens + 2 + (model.vit_tokens + 2 if model.vit else 0)
  return dataclasses.replace(sampling, max_tokens=pictures * (copies + 2 * (sampling.max_text_tokens + 2)))


def at_image_size(model: config.ModelConfig, size: int) -> config.ModelConfig:
  """The same weights, painting squares of another size; the ViT sees them resized to whole patches (BAGEL).

  >>> at_image_size(bagel_7b(), 512).vit.image_size
  518

  Raises: ValueError when the size is not whole tokens or exceeds the position tables.
  """
  vit = model.vit
  # (BAGEL) ImageTransform: to the nearest multiple of the patch, at most the whole table.
  patches = min(vit.max_patches, max(1, round(size / vit.patch)))
  vit = dataclasses.replace(vit, image_size=patches * vit.patch)
  return dataclasses.replace(model, image_size=size, vit=vit)


def from_released(
  llm: Mapping[str, Any], vit: Mapping[str, Any], bagel: Mapping[str, Any], vae: Mapping[str, Any], *, dtype: str
) -> config.ModelConfig:
  """The model of llm_config.json, vit_config.json, config.json and ae_config.json; the last two may be empty.

  Upstream forces untied embeddings, QK-norm and `Qwen2MoTDecoderLayer` whatever the files say (QUIRKS 2). It paints
  squares as large as the tables allow, at most 1024.

  Raises: ValueError for what pdgen does not compute as the reference does, and KeyError for a field that is missing.
  """
  for name, field, known in (
    ('llm_config.json', llm.get('hidden_act', 'silu'), 'silu'),
    ('llm_config.json', llm.get('use_sliding_window', False), False),
    ('llm_config.json', llm.get('rope_scaling'), None),
    ('config.json', bagel.get('connector_act', 'gelu_pytorch_tanh'), 'gelu_pytorch_tanh'),
    ('config.json', bagel.get('vit_rope', False), False),
    ('config.json', bagel.get('llm_qk_norm', True), True),
  ):
    if field != known:
      raise ValueError(f'{name} asks for {field!r} where pdgen computes {known!r}.')
  latent_patch = bagel.get('latent_patch_size', _LATENT_PATCH)
  autoencoder = config.VaeConfig()
  if vae:
    autoencoder = dataclasses.replace(
      autoencoder,
      width=vae['ch'],
      multipliers=tuple(vae['ch_mult']),
      blocks=vae['num_res_blocks'],
      channels=vae['z_channels'],
      scale=vae['scale_factor'],
      shift=vae['shift_factor'],
    )
  side = bagel.get('max_latent_size', _MAX_LATENT_SIZE)
  patch = latent_patch * autoencoder.downsample
  size = min(side * patch, 1024 // patch * patch)
  encoder = config.VitConfig(
    width=vit['hidden_size'],
    # (BAGEL) vit_select_layer -2: the last layer of the file's count is neither built nor stored.
    depth=vit['num_hidden_layers'] + 1 + bagel.get('vit_select_layer', -2),
    num_heads=vit['num_attention_heads'],
    mlp_dim=vit['intermediate_size'],
    patch=vit['patch_size'],
    max_patches=bagel.get('vit_max_num_patch_per_side', _MAX_VIT_PATCHES),
    image_size=vit['patch_size'],
  )
  model = config.ModelConfig(
    vocab_size=llm['vocab_size'],
    width=llm['hidden_size'],
    depth=llm['num_hidden_layers'],
    num_heads=llm['num_attention_heads'],
    num_kv_heads=llm['num_key_value_heads'],
    head_dim=llm['hidden_size'] // llm['num_attention_heads'],
    mlp_dim=llm['intermediate_size'],
    rope_theta=float(llm['rope_theta']),
    norm_eps=llm['rms_norm_eps'],
    max_latent_size=side,
    image_size=size,
    interpolate_positions=bagel.get('interpolate_pos', False),
    codec=config.CodecConfig(kind='flux', patch=patch, vae=autoencoder),
    vit=encoder,
    attention='blockwise',
    remat='full',
    dtype=dtype,
  )
  return at_image_size(model, size)
