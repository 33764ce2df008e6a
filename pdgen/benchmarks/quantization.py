"""Error of quantised weights against whole ones, layer by layer: residual streams, ViT, logits, velocities.

Relative errors, |got - want| / |want| in the 2-norm over all real tokens of a row, in float32 throughout: what is
compared is the weights alone. `own` quantises that layer only, whose input is then exact; `all` quantises everything.
The rows of bfloat16, weights and arithmetic, say how large an error is that BAGEL is released with.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pdgen import worlds
from pdgen.benchmarks import sizes as sizes_lib
from pdgen.benchmarks import synthetic
from pdgen.core import config as config_lib
from pdgen.core import packed, trees
from pdgen.data import sequence
from pdgen.inference import memory
from pdgen.inference import painter as painter_lib
from pdgen.models import interleaved, mot, quantize
from pdgen.models import params as params_lib

BFLOAT16 = 'bfloat16'
_TRUNK = 'trunk/layers/'


def run(sizes: sizes_lib.Sizes) -> Iterator[dict[str, object]]:
  """Rows of `sizes.checkpoint` for each kind of weights: an error a layer, then those of the outputs, and the bytes."""
  painter = painter_lib.load(sizes.checkpoint)
  model = dataclasses.replace(painter.config.model, dtype='float32')
  params = jax.tree.map(lambda x: x.astype(jnp.float32), painter.params)
  half = trees.map_with_path(lambda name, x: x.astype(jnp.bfloat16) if params_lib.is_matrix(name) else x, params)
  row = _row(painter, model)
  want = _states(model, params, row)
  for kind in (BFLOAT16, *quantize.KINDS):
    small = half if kind == BFLOAT16 else quantize.params(params, kind)
    got = _states(dataclasses.replace(model, dtype=kind) if kind == BFLOAT16 else model, small, row)
    for layer in range(model.depth):
      errors = {f'{name}_all': _error(got, want, name, layer) for name in ('und', 'gen')}
      if kind != BFLOAT16:
        one = _states(model, _of_layer(params, quantize.whole(small, jnp.float32), layer), row)
        errors |= {f'{name}_own': _error(one, want, name, layer) for name in ('und', 'gen')}
      yield {'weights': kind, 'layer': layer + 1, **errors}
    outputs = {name: _error(got, want, name) for name in ('vit', 'logits', 'velocities') if name in want}
    same = np.mean(np.argmax(got['logits'], axis=-1) == np.argmax(want['logits'], axis=-1))
    held = half if kind == BFLOAT16 else quantize.params(half, kind)
    yield {'weights': kind, **outputs, 'same_choice': float(same), 'bytes': memory.of_weights(held)}


def _row(painter: painter_lib.Painter, model: config_lib.ModelConfig) -> packed.PackedBatch:
  """A trajectory of the checkpoint's world, or one of pictures of noise, with noised copies, as a batch of one row."""
  name, rng = painter.config.data.world, np.random.default_rng(0)
  world = worlds.get(name) if name else None
  if world is not None:
    told = world.trajectory(world.KINDS[0], seed=0, index=0)
  else:
    told = synthetic.trajectory(rng, 2, model.image_size)
  config = dataclasses.replace(painter.config.data.sequence, drop_text=0.0, drop_clean=0.0, drop_vit=0.0)
  sample = sequence.build(told, tokenizer=painter.tokenizer, model=model, sequence=config, rng=rng)
  return packed.map_fields(lambda _, x: jnp.asarray(x)[None], sample)


def _states(cfg: config_lib.ModelConfig, params: Any, row: packed.PackedBatch) -> dict[str, np.ndarray]:
  return {name: np.asarray(x, np.float64) for name, x in _forward(cfg, params, row).items()}


@functools.partial(jax.jit, static_argnames='cfg')
def _forward(cfg: config_lib.ModelConfig, params: Any, row: packed.PackedBatch) -> dict[str, jax.Array]:
  """Streams after every layer, `und` and `gen`: [L, T, D]; the ViT's features; logits [T, V]; velocities [T, C]."""
  model = nnx.merge(interleaved.graphdef(cfg), params)
  clean = model.clean_latents(row)
  t = jnp.where(row.gen.copy > 0, 0.5, 0.0)
  z = clean + (jax.random.normal(jax.random.key(0), clean.shape) - clean) * t[..., None]
  und = model.embed_und(row.und, row.pictures, row.vit)
  x = mot.PerExpert(und, model.embed_latents(z, t, row.gen.patch))
  states = model.trunk.states(x, row.und.tokens, row.gen.tokens)
  hidden = mot.PerExpert(model.trunk.und_norm(states.und[-1]), model.trunk.gen_norm(states.gen[-1]))
  noised = row.gen.copy[0] > 0
  out = {
    'und': states.und[:, 0],
    'gen': states.gen[:, 0],
    'logits': model.logits(hidden.und)[0],
    'velocities': jnp.where(noised[:, None], model.velocity(hidden.gen, z, t)[0], 0.0),
  }
  if model.vit is not None:
    out['vit'] = jnp.where((row.und.picture[0] >= 0)[:, None], und[0], 0.0)
  return out


def _of_layer(params: Any, small: Any, layer: int) -> Any:
  """The parameters with those of one layer of the trunk taken from `small`."""
  named = dict(trees.flatten_with_paths(small))
  take = lambda name, leaf: leaf.at[layer].set(named[name][layer]) if name.startswith(_TRUNK) else leaf
  return trees.map_with_path(take, params)


def _error(got: dict[str, np.ndarray], want: dict[str, np.ndarray], name: str, layer: int | None = None) -> float:
  a, b = (x[name] if layer is None else x[name][layer] for x in (got, want))
  return float(np.linalg.norm(a - b) / np.linalg.norm(b))
