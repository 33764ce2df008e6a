"""How many floating point operations sampling takes, counted by hand from the configuration, and what must be read.

Of the longest trajectories that the caps allow: every text and every picture. Two operations a multiply-add; attention
looks at half of the cache on average.
"""

from typing import NamedTuple

import numpy as np

from pdgen.core import config as config_lib
from pdgen.sampling import flow


class Phase(NamedTuple):
  """calls: of a forward pass in one batch. flops: of one call, whole batch. weights: parameters that it must read.
  cache: keys and values that it must read (numbers, not bytes), whole batch."""

  calls: int
  flops: float
  weights: float
  cache: float


def sample_flops(config: config_lib.Config, *, batch_size: int, prefix: int) -> dict[str, Phase]:
  """The phases `text`, `denoise` and `look`. prefix: und tokens of a prompt."""
  cfg, sampling = config.model, config.sampling
  inner, kv = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
  expert = cfg.depth * (cfg.width * 2 * (inner + kv) + 3 * cfg.width * cfg.mlp_dim)
  head = cfg.width * cfg.vocab_size
  seen = cfg.latent_tokens + 2 + (cfg.vit_tokens + 2 if cfg.vit else 0)
  pictures = min(sampling.max_pictures, sampling.max_tokens // seen)
  texts = min(sampling.max_tokens - pictures * seen, 2 * pictures * (sampling.max_text_tokens + 2))
  context = (prefix + texts + pictures * seen) / 2
  branches = 1 + (sampling.text_guidance != 1.0) + (sampling.image_guidance != 1.0)
  copies = 1 + (branches - 1) * _guided(sampling)

  def phase(calls: int, und: float, gen: float, logits: int) -> Phase:
    attention = cfg.depth * 4 * inner * (und + gen) * context
    return Phase(
      calls,
      batch_size * (2 * (und + gen) * expert + 2 * logits * head + attention),
      expert * ((und > 0) + (gen > 0)) + (head if logits else 0),
      batch_size * 2 * cfg.depth * kv * context,
    )

  vit = cfg.vit_tokens + 2 if cfg.vit else 0
  return {
    'text': phase(texts, 1, 0, 1),
    'denoise': phase(pictures * sampling.flow_steps, 2 * copies, cfg.latent_tokens * copies, 0),
    'look': phase(pictures, vit + 2, cfg.latent_tokens, 1),
  }


def _guided(sampling: config_lib.SamplingConfig) -> float:
  """The share of Euler steps at whose (shifted) time guidance is on.

  >>> _guided(config_lib.SamplingConfig(flow_steps=8, timestep_shift=4.0, guidance_interval=(0.6, 1.0)))
  0.75
  """
  knobs = flow.SamplerParams.of(sampling)
  times = flow.time_at(np.arange(sampling.flow_steps), knobs)
  return float(np.mean(flow.is_guided(times, knobs)))
