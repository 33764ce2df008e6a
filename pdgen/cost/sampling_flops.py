"""Analytic FLOPs of sampling and the memory traffic of its forward passes, from the configuration alone.

Of the longest trajectories that the caps allow: every text and every picture. Two operations a multiply-add; attention
looks at half of the cache on average.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pdgen.core import config as config_lib
from pdgen.sampling import flow


class Phase(NamedTuple):
  """Forward passes of one kind in the sampling of a batch."""

  calls: int  # Forward passes.
  flops: float  # Of one call, whole batch.
  layers: float  # Parameters of the layers that a call reads: a number, not bytes.
  head: float  # And of the language head.
  cache: float  # Keys and values that a call reads, whole batch: a number, not bytes.


def sample_flops(config: config_lib.Config, *, batch_size: int, prefix: int) -> dict[str, Phase]:
  """The phases by name: `text` (decode steps), `denoise` (velocities), `look` (the picture enters the cache).

  Args:
    config: of the model and the sampler.
    batch_size: trajectories.
    prefix: und tokens of a prompt.
  """
  cfg, sampling = config.model, config.sampling
  inner, kv = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
  expert = cfg.depth * (cfg.width * 2 * (inner + kv) + 3 * cfg.width * cfg.mlp_dim)
  head = cfg.width * cfg.vocab_size
  pictures = min(sampling.max_pictures, sampling.max_tokens // cfg.picture_tokens)
  in_pictures = pictures * cfg.picture_tokens
  texts = min(sampling.max_tokens - in_pictures, 2 * pictures * (sampling.max_text_tokens + 2))
  context = (prefix + texts + in_pictures) / 2
  branches = 1 + (sampling.text_guidance != 1.0) + (sampling.image_guidance != 1.0)
  copies = 1 + (branches - 1) * _guided(sampling) / sampling.guidance_every
  # Of the longest trajectories every other picture is a refined one.
  evaluations = sum(sampling.evaluations(refined=refined) for refined in (False, True)) / 2

  def phase(calls: int, und: float, gen: float, logits: int) -> Phase:
    attention = cfg.depth * 4 * inner * (und + gen) * context
    return Phase(
      calls,
      batch_size * (2 * (und + gen) * expert + 2 * logits * head + attention),
      expert * ((und > 0) + (gen > 0)),
      head if logits else 0,
      batch_size * 2 * cfg.depth * kv * context,
    )

  und_in_picture = cfg.picture_tokens - cfg.latent_tokens
  return {
    'text': phase(texts, 1, 0, 1),
    'denoise': phase(round(pictures * evaluations), 2 * copies, cfg.latent_tokens * copies, 0),
    'look': phase(pictures, und_in_picture, cfg.latent_tokens, 1),
  }


def _guided(sampling: config_lib.SamplingConfig) -> float:
  """The share of Euler steps at whose (shifted) time guidance is on.

  >>> _guided(config_lib.SamplingConfig(flow_steps=8, timestep_shift=4.0, guidance_interval=(0.6, 1.0)))
  0.75
  """
  params = flow.SamplerParams.of(sampling)
  times = flow.time_at(jnp.arange(sampling.flow_steps), params)
  return float(np.mean(np.asarray(flow.is_guided(times, params))))
