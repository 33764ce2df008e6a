"""Memory of a sampling batch: bytes on a device, reckoned from the config before anything starts, and what it has."""

import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.inference import sizes
from pdgen.sampling import lanes

GIB = 2**30
# Memory limits of a container, of version 2 and 1 of Linux's control groups.
_LIMITS = (pathlib.Path('/sys/fs/cgroup/memory.max'), pathlib.Path('/sys/fs/cgroup/memory/memory.limit_in_bytes'))


def required(
  model: config_lib.ModelConfig,
  sampling: config_lib.SamplingConfig,
  *,
  prefix: packed.RowBudget,
  rows: int,
  heads_split: int = 1,
  canvas: sizes.Canvas = sizes.Canvas(),
  plan: lanes.Plan | None = None,
) -> dict[str, int]:
  """Bytes of the large arrays of a batch on a device, by what they are: a lower bound of what the program takes.

  >>> small = config_lib.ModelConfig(depth=2, num_kv_heads=1, num_heads=2, head_dim=8)
  >>> required(small, config_lib.SamplingConfig(max_tokens=100), prefix=packed.RowBudget(28, 0, 0), rows=1)['KV cache']
  19456

  Args:
    model: of the weights.
    sampling: caps, and the branches of guidance.
    prefix: tokens of a prompt and the steps so far.
    rows: trajectories on a device.
    heads_split: devices that share the heads (the mesh axis `tensor`).
    canvas: of the pictures that are painted.
    plan: lanes that work off the rows, as a queue; None: each row has its own.
  """
  split = heads_split if model.num_kv_heads % heads_split == 0 else 1
  heads = model.num_heads // split
  branches = 1 + (sampling.text_guidance != 1.0) + (sampling.image_guidance != 1.0)
  tokens = prefix.und_tokens + prefix.gen_tokens
  slots = (1 + (sampling.image_guidance != 1.0)) * (tokens + sampling.max_tokens)
  of_token = 2 * model.depth * (model.num_kv_heads // split) * model.head_dim * jnp.dtype(model.dtype).itemsize
  metadata = 4 * len(packed.TokenMeta._fields)
  size = canvas.size or model.own_size
  latents, scores = canvas.most.latent if canvas.most else math.prod(model.latent_grid_of(size)), 0
  if model.attention == 'reference':  # Holds the scores of every query and key.
    scores = 4 * max(tokens**2, branches * latents * (slots + branches * latents))
  side_by_side, kept, copied = (rows, rows, 0) if plan is None else (plan.lanes, rows + plan.lanes, plan.copied_rows)
  return {
    'KV cache': (side_by_side + copied) * slots * (of_token + metadata),
    'attention scores': side_by_side * heads * scores,
    'pictures': kept * sampling.max_pictures * 3 * math.prod(size),
    'output tokens': kept * sampling.max_tokens * 8,  # And their log-probabilities.
  }


def check(needed: dict[str, int], *, weights: int, rows: int, prefix: packed.RowBudget, max_tokens: int, limit: int):
  """Refuses what does not fit.

  Args:
    needed: of `required`.
    weights: bytes of the parameters on a device.
    rows: trajectories on a device.
    prefix: tokens of a prompt and the steps so far.
    max_tokens: tokens that a trajectory may add.
    limit: bytes of a device.

  Raises: ValueError that says what is needed, what is there and what to lower.
  """
  total = sum(needed.values()) + weights
  if total <= limit and prefix.und_tokens + prefix.gen_tokens + max_tokens <= config_lib.MOST:
    return
  tokens = prefix.und_tokens + prefix.gen_tokens
  parts = ', '.join(
    f'{name} {_gib(size)}' for name, size in {**needed, 'weights': weights}.items() if size >= GIB / 100
  )
  raise ValueError(
    f'{rows} trajectories at once, of a prompt of {tokens:,} tokens and {max_tokens:,} more, need {_gib(total)} '
    f'GiB ({parts}); the device has {_gib(limit)} for it. Lower the batch size or sampling.max_tokens, or '
    'shorten the prompt.'
  )


def of_weights(params: Any) -> int:
  """Bytes of the parameters on the first device that holds them."""
  total = 0
  for leaf in jax.tree.leaves(params):
    share = leaf.sharding.shard_shape(leaf.shape) if isinstance(leaf, jax.Array) else leaf.shape
    size = leaf.dtype.itemsize
    for side in share:
      size *= side
    total += size
  return total


def limit(params: Any) -> int | None:
  """Bytes that the device of the parameters has for a batch; None where that is not known.

  A CPU has two thirds of the machine's memory, or of its container's: there XLA holds half of the cache twice
  (`memory_analysis` of `cycle.run`: 1.5 times the cache, with and without guidance by pictures).
  """
  leaves = [leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
  device = min(leaves[0].devices(), key=lambda d: d.id) if leaves else jax.devices()[0]
  if device.platform != 'cpu':
    stats = device.memory_stats() if device.process_index == jax.process_index() else None
    return (stats or {}).get('bytes_limit')
  found = [int(text) for file in _LIMITS if file.is_file() and (text := file.read_text().strip()).isdigit()]
  try:
    found.append(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))
  except (AttributeError, ValueError, OSError):  # Windows has no sysconf.
    pass
  return min(found) * 2 // 3 if found else None


def _gib(size: int) -> str:
  return f'{size / GIB:,.2f}'
