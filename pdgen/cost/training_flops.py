"""Analytic FLOPs of a training step, from the configuration alone.

Two operations a multiply-add. Padding is included: shapes are static, and every slot of a row and the whole canvas of
every picture are computed. Micro-batches (`train.accumulate`) do the work of their batch. Backward is
twice the forward of each matmul, but once where the input needs no gradient (the first layer on latents, time and
patches). Elementwise work is counted only where it is of the order of a matmul: the softmax of attention (reference
implementation, which computes every pair of tokens whether visible or not) and of the vocabulary. Of the optimizer,
Muon's orthogonalisation is counted; the rest is elementwise.
"""

from pdgen.core import config as config_lib

# Elementwise operations of one attention score: forward scale, mask, max, subtract, exp, sum, divide; backward the
# product and sum of softmax, mask and scale.
_PER_SCORE = 12
_PER_SOFTMAX = 5  # Its forward half without a mask.
# Of one logit: max, subtract, exp, sum; backward normalise, scale, subtract the label.
_PER_LOGIT = 8


def train_flops(config: config_lib.Config) -> dict[str, float]:
  """FLOPs of one step over the global batch, by part, and their `total`."""
  cfg, data = config.model, config.data
  und, gen = data.batch_size * data.und_tokens, data.batch_size * data.gen_tokens
  length = data.und_tokens + data.gen_tokens
  width, channels = cfg.width, cfg.codec.channels
  inner, kv = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
  pairs = data.batch_size * cfg.num_heads * length**2
  parts = {
    'projections': cfg.depth * 6 * (und + gen) * width * 2 * (inner + kv),
    'mlp': cfg.depth * 6 * (und + gen) * width * 3 * cfg.mlp_dim,
    'attention': cfg.depth * 3 * pairs * 4 * cfg.head_dim,
    'softmax': cfg.depth * pairs * _PER_SCORE,
    'vocabulary': und * (6 * width * cfg.vocab_size + _PER_LOGIT * cfg.vocab_size),
    'latents': gen * (4 + 6) * channels * width,
    'time': gen * (4 * 256 + 6 * width) * width,
    'vit': _vit(config),
    'vae': _vae(config),
    'optimizer': _newton_schulz(config) if config.train.optimizer == 'muon' else 0,
  }
  parts = {name: float(flops) for name, flops in parts.items()}
  return {**parts, 'total': sum(parts.values())}


def summary(config: config_lib.Config) -> str:
  """One line: GFLOP of a step, and the share of each part."""
  work = train_flops(config)
  shares = ', '.join(f'{name} {part / work["total"]:.0%}' for name, part in work.items() if part and name != 'total')
  return f'{work["total"] / 1e9:.1f} GFLOP a step ({shares})'


def _newton_schulz(config: config_lib.Config) -> int:
  """Five iterations a matrix: X X^T, its square, and its product with X. Once a step, however many rows it has."""
  cfg, vit = config.model, config.model.vit
  inner, kv = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
  expert = 2 * [(cfg.width, inner)] + 2 * [(cfg.width, kv)] + 3 * [(cfg.width, cfg.mlp_dim)]
  matrices = 2 * cfg.depth * expert
  if vit is not None:
    matrices += vit.depth * (4 * [(vit.width, vit.width)] + 2 * [(vit.width, vit.mlp_dim)])
  return sum(5 * (4 * min(m) ** 2 * max(m) + 2 * min(m) ** 3) for m in matrices)


def _vit(config: config_lib.Config) -> int:
  vit = config.model.vit
  if vit is None:
    return 0
  # Rows of patches: a picture each, or all pictures of a batch row where they are packed (`data.vit_tokens`).
  packed = config.data.vit_tokens
  rows = config.data.batch_size * (1 if packed else config.data.pictures)
  length = packed or config.model.vit_tokens
  patches = rows * length
  layer = 6 * patches * vit.width * (4 * vit.width + 2 * vit.mlp_dim)
  pairs = rows * vit.num_heads * length**2
  attention = pairs * (12 * vit.width // vit.num_heads + _PER_SCORE)
  width = config.model.width
  outside = 4 * patches * 3 * vit.patch**2 * vit.width + 6 * patches * (vit.width + width) * width
  return vit.depth * (layer + attention) + outside


def _vae(config: config_lib.Config) -> int:
  """Encoding of every picture once, forward only: convolutions and the mid attention, over the whole canvas."""
  vae, side = config.model.codec.vae, config.model.image_size
  if vae is None:
    return 0
  height, width = config.canvas or (side, side)
  pixels = height * width
  dims = [vae.width * m for m in vae.multipliers]
  total = 9 * pixels * 3 * vae.width
  for level, (before, dim) in enumerate(zip([vae.width, *dims], dims, strict=False)):
    places = pixels // 4**level
    total += 9 * places * (before * dim + (2 * vae.blocks - 1) * dim**2)
    total += places * before * dim * (before != dim)
    if level + 1 < len(dims):
      total += 9 * places // 4 * dim**2
  places, dim = pixels // vae.downsample**2, dims[-1]
  total += places * (9 * 4 * dim**2 + 4 * dim**2 + 9 * dim * 2 * vae.channels) + 2 * places**2 * dim
  pictures = config.data.batch_size * config.data.pictures
  return pictures * (2 * total + places**2 * _PER_SOFTMAX)
