"""For tests of pdgen and of what is built on it: a tiny experiment, a letter tokenizer, random weights.

config = testing.tiny_config()
painter = inference.painter.Painter(config=config, params=testing.random_params(config.model), tokenizer=..)
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pdgen.core import config as config_lib
from pdgen.data.tokenizers import base
from pdgen.models import interleaved


def tiny_config() -> config_lib.Config:
  """The shapes world with a model of a few thousand parameters, whose training step takes milliseconds."""
  model = config_lib.ModelConfig(
    vocab_size=640,
    width=16,
    depth=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=32,
    prediction='x',
    codec=config_lib.CodecConfig(patch=16),
    max_latent_size=2,
  )
  sequence = config_lib.SequenceConfig(
    noised_copies=2, verdict_weight=4.0, decisive=(r'\b(?:correct|wrong)\b', '<refine>')
  )
  data = config_lib.DataConfig(
    sequence=sequence, batch_size=8, und_tokens=640, gen_tokens=128, pictures=16, packing_bins=2, prefetch=1
  )
  train = config_lib.TrainConfig(
    steps=8,
    learning_rate=1e-2,
    warmup_steps=2,
    log_every=2,
    checkpoint_every=3,
    self_sample_steps=(4,),
    self_samples=12,
    max_bad_steps=3,
  )
  mesh = config_lib.MeshConfig(fsdp=1)
  return config_lib.Config(name='tiny', model=model, data=data, train=train, mesh=mesh)


class Letters(base.Tokenizer):
  """One ASCII character, one id; specials from 128. So every text is its tokens, whoever wrote it."""

  def __init__(self):
    specials = {name: 128 + i for i, name in enumerate(base.SPECIAL_TEXTS)}
    super().__init__(specials=config_lib.Specials(**specials), vocab_size=139)

  def _encode_exact(self, text: str) -> tuple[int, ...]:
    return tuple(text.encode('ascii'))

  def _token_bytes(self, token_id: int) -> bytes:
    return bytes([token_id])


def random_params(cfg: config_lib.ModelConfig, *, seed: int = 0, loud: Sequence[int] = ()) -> dict[str, Any]:
  """Random parameters, none of them zero or one as at initialisation.

  Args:
    cfg: of the model.
    seed: of the parameters.
    loud: ids whose logits are four times larger.
  """
  rng = np.random.default_rng(seed)

  def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    name = path[-1].key
    x = rng.normal(size=leaf.shape).astype(np.float32)
    if name == 'kernel':
      return x * np.float32(leaf.shape[-2] ** -0.5)
    return (1 + np.float32(0.2) * x) if name == 'scale' else np.float32(0.5) * x

  out = jax.tree_util.tree_map_with_path(draw, interleaved.abstract_params(cfg))
  out['head']['kernel'][:, list(loud)] *= 4
  return jax.tree.map(jax.numpy.asarray, out)
