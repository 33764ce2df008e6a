"""Inputs without data: random weights, and rows packed of synthetic trajectories."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdgen import testing
from pdgen.benchmarks import sizes as sizes_lib
from pdgen.core import config as config_lib
from pdgen.core import masks, packed, trees
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import packing, sequence
from pdgen.models import interleaved
from pdgen.models import params as params_lib

_WORDS = 'a small round red thing stands beside the old wooden table, '


def random_params(cfg: config_lib.ModelConfig) -> Any:
  """Random weights on the device, matrices in the compute dtype: as a painter holds them."""
  numbers = iter(range(1_000_000))
  key = jax.random.key(0, impl='rbg')

  def made(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    number = next(numbers)
    if not params_lib.is_matrix(name):
      return jnp.ones(leaf.shape, leaf.dtype)
    return _random_matrix(jax.random.fold_in(key, number), leaf.shape, cfg.dtype)

  return trees.map_with_path(made, interleaved.abstract_params(cfg))


@functools.partial(jax.jit, static_argnums=(1, 2))  # Compiled once for all matrices of a shape.
def _random_matrix(key: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
  return jax.random.normal(key, shape, jnp.dtype(dtype)) * jnp.asarray(shape[-2] ** -0.5, dtype)


def config(sizes: sizes_lib.Sizes, *, tokens: int, depth: int | None = None) -> config_lib.Config:
  """A training config of one row of so many tokens on one device, in all else that of configs/bagel_7b.py."""
  cfg = sizes.model if depth is None else dataclasses.replace(sizes.model, depth=depth)
  und = int(tokens * sizes.und_share)
  gen = tokens - und
  data = config_lib.DataConfig(
    batch_size=1, und_tokens=und, gen_tokens=gen, pictures=max(1, gen // (2 * cfg.latent_tokens))
  )
  train = config_lib.TrainConfig(learning_rate=2e-5, loss_chunk=1024)
  return config_lib.Config(name='benchmark', model=cfg, data=data, train=train, mesh=config_lib.MeshConfig(fsdp=1))


def row(config: config_lib.Config, *, seed: int = 0) -> packed.PackedBatch:
  """A batch of one row, filled with trajectories of one to three pictures until the next one does not fit."""
  rng, budget = np.random.default_rng(seed), config.row_budget
  samples, used = [], np.zeros(len(budget), np.int64)
  for pictures in (*(3 - i % 3 for i in range(1000)), 1):
    sample = sequence.build(
      trajectory(rng, pictures, config.model.image_size),
      tokenizer=testing.Letters(),
      model=config.model,
      sequence=dataclasses.replace(config.data.sequence, drop_text=0.0, drop_clean=0.0, drop_vit=0.0),
      rng=rng,
    )
    after = used + packing.sizes(sample)
    if (after > budget).any():
      if pictures == 1:
        break
      continue
    samples, used = [*samples, sample], after
  if not samples:
    raise ValueError(f'Rows of {budget} have no room for a trajectory of one picture.')
  return packed.map_fields(lambda _, x: x[None], packing.pack_row(samples, budget))


def trajectory(rng: np.random.Generator, pictures: int, side: int) -> trajectory_lib.Trajectory:
  """A finished one of so many steps, with plans and inspections of some 60 tokens and pictures of noise."""
  steps = tuple(
    trajectory_lib.Step(
      plan=f'<ins>{_WORDS}</ins><des>{_WORDS}</des>',
      draft=rng.integers(0, 256, (side, side, 3), dtype=np.uint8),
      inspection=_WORDS[:30],
    )
    for _ in range(pictures)
  )
  return trajectory_lib.Trajectory(prompt=_WORDS, steps=steps)


def tokens_of(batch: packed.PackedBatch) -> packed.TokenMeta:
  """Metadata of both streams, und first: int32[B, U + G] a field."""
  pairs = zip(batch.und.tokens, batch.gen.tokens, strict=True)
  return packed.TokenMeta(*(np.concatenate(pair, axis=1) for pair in pairs))


def visible_pairs(tokens: packed.TokenMeta) -> int:
  """Pairs of query and key of which one sees the other, of all rows; counted a thousand queries at a time."""
  total = 0
  for first in range(0, tokens.order.shape[1], 1000):
    some = packed.TokenMeta(*(field[:, first : first + 1000] for field in tokens))
    total += int(np.sum(np.asarray(masks.visible(some, tokens))))
  return total
