"""Small trajectories over letters and pictures of four patches, for tests of the sequence."""

import dataclasses

import numpy as np

from pdgen.core import config
from pdgen.data import sequence
from support import toy

Step, Trajectory, WORDS = toy.Step, toy.Trajectory, toy.WORDS
MODEL = config.ModelConfig(image_size=16, codec=config.CodecConfig(patch=8), max_latent_size=2)
WITH_VIT = dataclasses.replace(MODEL, vit=config.VitConfig(patch=16))
PLAIN = config.SequenceConfig(opening='', drop_text=0.0)
WEIGHTED = dataclasses.replace(
  PLAIN,
  plan_weight=2.0,
  corrected_plan_weight=2.0,
  inspection_weight=3.0,
  verdict_weight=8.0,
  decisive=('no', 'ok', '<refine>'),
  boundary_weight=0.5,
)


def picture(value):
  return np.full([16, 16, 3], value, np.uint8)


def build(trajectory, cfg=PLAIN, *, model=MODEL, seed=0):
  rng = None if seed is None else np.random.default_rng(seed)
  return sequence.build(trajectory, tokenizer=WORDS, model=model, sequence=cfg, rng=rng)


MULTI_TURN = Trajectory(
  prompt='p',
  steps=(
    Step(plan='<ins>a</ins>', draft=picture(1), inspection='b ok'),
    Step(plan='c', draft=picture(2)),
  ),
)
CONFLICT = Trajectory(
  prompt='p',
  steps=(Step(plan='x', draft=picture(1), inspection='n! <refine>r</refine>', corrected_plan='y', refined=picture(2)),),
)
MISALIGNMENT = Trajectory(
  prompt='p',
  steps=(
    Step(plan='x', draft=picture(1), inspection='<refine>r<\\refine>', refined=picture(2)),
    Step(plan='z', draft=picture(3)),
  ),
)
DIRECT = Trajectory(prompt='p', steps=(Step(draft=picture(1)),), mode='direct')


def table(row):
  """`token reach position span learns` of every token, in order; runs of latents are one line."""
  lines = []
  for line in sequence.describe(row, WORDS).splitlines()[1:]:
    n, reach, position, span, rest = line.split(maxsplit=4)
    lines.append(f'{n} {reach} {position} {span} {" ".join(rest.split())}')
  return [line for line in lines if not any(f' patch {i}' in line for i in (1, 2, 3))]
