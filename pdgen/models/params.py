"""Model parameters by path: which role a parameter has, and nested dicts of disjoint parts merged into one.

Paths are those of `core.trees.flatten_with_paths` on the pure dict of parameters (`trunk/layers/und/q/kernel`); the end
of such a path in an optimizer state has the same roles.
"""

import re
from collections.abc import Iterable
from typing import Any


def is_matrix(name: str) -> bool:
  """A factor of a matmul or a table of embeddings: computed with in the compute dtype."""
  return _last(name) in ('kernel', 'table', *_ADAPTERS)


def is_kernel(name: str) -> bool:
  """The matrix of a linear layer or a convolution: the parameters that weight decay shrinks."""
  return _last(name) == 'kernel'


def is_hidden_matrix(name: str) -> bool:
  """A matrix of a stacked layer, which maps hidden to hidden: what Muon updates where it is chosen.

  Not embeddings, heads and latent projections: their inputs or outputs have axes of their own (Jordan, 2024).
  """
  return is_stacked(name) and is_kernel(name)


def is_adapter(name: str) -> bool:
  """A factor of a low-rank adapter (`ModelConfig.lora`)."""
  return _last(name) in _ADAPTERS


def is_stacked(name: str) -> bool:
  """Of a scanned layer: its leading axis is the layer."""
  return '/layers/' in f'/{name}'


def is_codec(name: str) -> bool:
  """Of the picture codec, which never learns (BAGEL)."""
  return name.split('/')[0] == 'codec'


def frozen(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
  """Those that do not learn: of the codec, or matched by a pattern of `TrainConfig.freeze`. Adapters always learn.

  >>> sorted(frozen(['embed/table', 'head/kernel', 'codec/vae/x', 'head/lora_a'], ['head']))
  ['codec/vae/x', 'head/kernel']
  """
  patterns = tuple(patterns)
  return {
    name
    for name in names
    if is_codec(name) or not is_adapter(name) and any(re.fullmatch(rf'({pattern})(/.*)?', name) for pattern in patterns)
  }


def merge(*parts: Any) -> dict[str, Any]:
  """One nested dict of disjoint nested dicts. Raises ValueError when two hold the same path.

  >>> merge({'a': {'x': 1}}, {'a': {'y': 2}, 'b': 3})
  {'a': {'x': 1, 'y': 2}, 'b': 3}
  """
  out: dict[str, Any] = {}
  for part in parts:
    for key, value in part.items():
      if key not in out:
        out[key] = value
      elif isinstance(value, dict) and isinstance(out[key], dict):
        out[key] = merge(out[key], value)
      else:
        raise ValueError(f'Two parts hold {key!r}; parts must be disjoint.')
  return out


_ADAPTERS = ('lora_a', 'lora_b')


def _last(name: str) -> str:
  return name.split('/')[-1]
