"""A train step at the layer shapes of a model: tokens/s, TFLOP/s and MFU, with as many layers as fit the device.

At two depths: their difference is what a layer takes, without vocabulary, ViT and autoencoder, which weigh more in a
model of a few layers than in the whole one. FLOPs are the model's (`cost.training_flops`, nothing recomputed) with
attention's visible pairs alone. MFU is of the vendor's dense bfloat16 peak.
"""

import dataclasses
import gc
from collections.abc import Iterator

import jax
import numpy as np

from pdgen.benchmarks import clock, synthetic
from pdgen.benchmarks import sizes as sizes_lib
from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import packed, trees
from pdgen.cost import accelerators, training_flops
from pdgen.models import interleaved
from pdgen.training import state as state_lib
from pdgen.training import step as step_lib

# Bytes of a learned parameter: itself, its average, two moments and its gradient.
_BYTES = 20
_ACTIVATIONS = 8 * 2**30  # Of a row of 33,000 tokens of BAGEL-7B's shapes, as `pdgen.compile` reckons for h100:1.


def run(sizes: sizes_lib.Sizes) -> Iterator[dict[str, object]]:
  """Rows of the largest depth that fits, of a third of it, and of a layer."""
  tokens = sizes.row_tokens[-1]
  batch = synthetic.row(synthetic.config(sizes, tokens=tokens))
  pairs = synthetic.visible_pairs(synthetic.tokens_of(batch))
  depth = _depth(sizes)
  while True:
    try:
      deep = _measure(sizes, batch, pairs, depth)
      break
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error) or depth < 2:
        raise
      depth -= 1
      gc.collect()
  yield deep
  less = max(1, depth // 3)
  if less == depth:
    return
  gc.collect()
  shallow = _measure(sizes, batch, pairs, less)
  yield shallow
  seconds, flops = (deep[name] - shallow[name] for name in ('seconds', 'flops'))
  if seconds > 0:
    yield {
      'depth': 'a layer',
      'seconds': seconds / (depth - less),
      'flops': flops / (depth - less),
      **_rates(flops, seconds),
      'tokens': tokens,
    }


def _measure(sizes: sizes_lib.Sizes, batch: packed.PackedBatch, pairs: int, depth: int) -> dict:
  config = synthetic.config(sizes, tokens=sizes.row_tokens[-1], depth=depth)
  mesh = mesh_lib.make_mesh(config.mesh, devices=jax.devices()[:1])
  state, step = state_lib.init_state(config, mesh), step_lib.make_train_step(config, mesh)
  placed = mesh_lib.put_batch(batch, mesh)

  def once():
    nonlocal state
    state, metrics = step(state, placed)
    return metrics

  timing = clock.timed(once, repeats=3)
  loss = float(once()['loss'])
  if not np.isfinite(loss):
    raise ValueError(f'The loss is {loss}.')
  tokens = int(np.sum(synthetic.tokens_of(batch).segment > 0))
  flops = model_flops(config, pairs)
  stats = jax.devices()[0].memory_stats() or {}
  return {
    'depth': depth,
    'tokens': sizes.row_tokens[-1],
    'filled': tokens / sizes.row_tokens[-1],
    **timing.row(),
    'tokens_a_second': tokens / timing.median,
    'flops': flops,
    **_rates(flops, timing.median),
    'loss': loss,
    'peak_bytes': stats.get('peak_bytes_in_use', 0),
  }


def model_flops(config: config_lib.Config, pairs: int) -> float:
  """Of a step, attention by visible pairs: `training_flops` counts every pair of a row."""
  parts = training_flops.train_flops(config)
  share = pairs / (config.data.batch_size * (config.data.und_tokens + config.data.gen_tokens) ** 2)
  return parts['total'] - (1 - share) * (parts['attention'] + parts['softmax'])


def _rates(flops: float, seconds: float) -> dict[str, float | None]:
  """MFU is None on a device whose peak is not known."""
  machine = accelerators.of_device(jax.devices()[0].device_kind)
  return {'tflops': flops / seconds / 1e12, 'mfu': machine and flops / seconds / machine.flops}


def _depth(sizes: sizes_lib.Sizes) -> int:
  """The most layers that should fit."""
  most = sizes.max_depth or sizes.model.depth
  limit = (jax.devices()[0].memory_stats() or {}).get('bytes_limit')
  if limit is None:
    return most

  def parameters(depth: int) -> int:
    shapes = interleaved.abstract_params(dataclasses.replace(sizes.model, depth=depth))
    return sum(int(np.prod(leaf.shape)) for _, leaf in trees.flatten_with_paths(shapes))

  layer = parameters(2) - parameters(1)
  rest = parameters(1) - layer
  return int(np.clip((limit - _ACTIVATIONS - _BYTES * rest) // (_BYTES * layer), 1, most))
