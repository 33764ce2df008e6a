"""What the tests of the model and of the sampler share: tiny models with random weights, letters as tokens."""

import dataclasses

import jax
import numpy as np
from flax import nnx

from pdgen import testing
from pdgen.core import config
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import sequence
from pdgen.inference import painter as painter_lib
from pdgen.models import interleaved

Step, Trajectory = trajectory_lib.Step, trajectory_lib.Trajectory


WORDS = testing.Letters()
params = testing.random_params
MODEL = config.ModelConfig(
  vocab_size=139,
  width=32,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  depth=2,
  mlp_dim=48,
  image_size=16,
  max_latent_size=3,
)
# 16 ViT tokens and 4 latent tokens a picture: taking one for the other shows.
WITH_VIT = dataclasses.replace(
  MODEL, vit=config.VitConfig(width=16, depth=1, num_heads=2, mlp_dim=24, patch=4, max_patches=5)
)
# Every part that BAGEL has.
VAE = config.VaeConfig(width=8, multipliers=(1, 2), blocks=1, channels=4, groups=4)
WITH_VAE = dataclasses.replace(
  WITH_VIT, codec=config.CodecConfig(kind='flux', patch=4, vae=VAE), max_latent_size=6, image_size=16
)
PLAIN = config.SequenceConfig(opening='', drop_text=0.0)


def model(cfg, **kwargs):
  return nnx.merge(interleaved.graphdef(cfg), params(cfg, **kwargs))


def painter(cfg, sampling, *, loud=()):
  every_kind = config.SourceConfig(kind='world', name='shapes')  # It may be asked for both modes.
  data = config.DataConfig(sources=(every_kind,), sequence=PLAIN)
  experiment = config.Config(model=cfg, data=data, sampling=sampling)
  return painter_lib.Painter(config=experiment, params=params(cfg, loud=loud), tokenizer=WORDS)


def refining_painter(cfg, sampling):
  """Random weights that close texts, refine and go on often enough for every path to be taken."""
  s = WORDS.specials
  out = painter(cfg, sampling, loud=(s.refine, s.refine_end, s.im_end, s.ins_end, s.des_end))
  kernel = out.params['head']['kernel']
  # Between items all choices are close calls, and greedily it goes on.
  for token in (s.endoftext, s.vision_start):
    kernel = kernel.at[:, token].set(kernel[:, s.im_start] - 0.3 * kernel[:, token])
  return dataclasses.replace(out, params={**out.params, 'head': {'kernel': kernel}})


def picture(seed, size=16):
  return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def full_trajectory():
  """Every kind of item: plan, draft, inspection, corrected plan, refined picture, a step without inspection."""
  return Trajectory(
    prompt='a ring',
    steps=(
      Step(
        plan='<ins>a</ins><des>b</des>',
        draft=picture(1),
        inspection='no. <refine>c</refine>',
        corrected_plan='<ins>d</ins><des>e</des>',
        refined=picture(2),
      ),
      Step(plan='<ins>f</ins><des>g</des>', draft=picture(3), inspection='ok. go'),
      Step(plan='<ins>h</ins><des>i</des>', draft=picture(4)),
    ),
  )


def row(trajectory, cfg, *, sequence_config=PLAIN, seed=None):
  """One sample as a row without batch axis; seed None: an inference prefix without noised copies."""
  rng = None if seed is None else np.random.default_rng(seed)
  return sequence.build(trajectory, tokenizer=WORDS, model=cfg, sequence=sequence_config, rng=rng)


def batch(*rows):
  """Rows of equal sizes as a batch on the device."""
  return jax.tree.map(lambda *x: jax.numpy.asarray(np.stack(x)), *rows)
