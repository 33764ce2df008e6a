"""Sizes of public models: BAGEL-7B-MoT, and the same weights at other picture sizes."""

import dataclasses

from pdgen.core import config

LATENT_PATCH, MAX_LATENT_SIZE, MAX_VIT_PATCHES = 2, 64, 70  # BagelConfig's values for the released weights
GIVEN_MIN, GIVEN_MIN_VIT = 512, 224  # Of the shorter side of a given picture, in the released inference code (BAGEL).


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
    max_latent_size=MAX_LATENT_SIZE,
    image_size=1024,
    codec=config.CodecConfig(kind='flux', patch=16, vae=config.VaeConfig(), given_min=GIVEN_MIN),
    vit=config.VitConfig(
      width=1152,
      depth=26,
      num_heads=16,
      mlp_dim=4304,
      patch=14,
      max_patches=MAX_VIT_PATCHES,
      image_size=980,
      given_min=GIVEN_MIN_VIT,
    ),
    attention='auto',
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
    contiguous_positions=True,
  )
  cycle = model.picture_tokens + 2 * (sampling.max_text_tokens + 2)
  return dataclasses.replace(sampling, max_tokens=pictures * cycle)


def at_image_size(model: config.ModelConfig, size: int) -> config.ModelConfig:
  """The same weights, painting squares of another size; the ViT sees them resized to whole patches (BAGEL).

  >>> at_image_size(bagel_7b(), 512).vit.image_size
  518

  Raises: ValueError when the size is not whole tokens or exceeds the position tables.
  """
  vit = model.vit
  if vit is not None:
    # (BAGEL) ImageTransform: to the nearest multiple of the patch, at most the whole table.
    patches = min(vit.max_patches, max(1, round(size / vit.patch)))
    vit = dataclasses.replace(vit, image_size=patches * vit.patch)
  return dataclasses.replace(model, image_size=size, vit=vit)
