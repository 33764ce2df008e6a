"""Pytrees by path: flatten to named leaves, build nested dicts back, map with paths, compare shapes."""

from collections.abc import Callable, Mapping
from typing import Any

import jax


def flatten_with_paths(tree: Any) -> list[tuple[str, Any]]:
  """(path, leaf) of every leaf, keys joined by `/`.

  >>> flatten_with_paths({'trunk': {'k': 1, 'b': 2}, 'mu': [3]})
  [('mu/0', 3), ('trunk/b', 2), ('trunk/k', 1)]
  """
  return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def unflatten(named: dict[str, Any]) -> dict[str, Any]:
  """The nested dicts that `flatten_with_paths` gives these paths of.

  >>> unflatten({'trunk/b': 2, 'trunk/k': 1})
  {'trunk': {'b': 2, 'k': 1}}
  """
  out: dict[str, Any] = {}
  for name, leaf in named.items():
    *folders, last = name.split('/')
    place = out
    for folder in folders:
      place = place.setdefault(folder, {})
    place[last] = leaf
  return out


def diff_shapes(have: Mapping[str, Any], want: Mapping[str, Any], *, dtypes: bool = False) -> list[str]:
  """Differences between two sets of named arrays: a line for each name that is absent, in excess or of another shape.

  Args:
    have: by name, anything with a shape and a dtype.
    want: what it should be.
    dtypes: whether dtypes have to be equal, too.

  >>> import numpy as np
  >>> diff_shapes({'k': np.zeros(2), 'b': np.zeros(1)}, {'k': np.zeros((2, 1)), 'b': np.zeros(1)})
  ['k: [2] there, [2, 1] wanted']
  """

  def kind(leaves: Mapping[str, Any], name: str) -> str:
    if name not in leaves:
      return 'absent'
    leaf = leaves[name]
    return f'{leaf.dtype if dtypes else ""}{list(leaf.shape)}'

  names = sorted(have.keys() | want.keys())
  pairs = [(name, kind(have, name), kind(want, name)) for name in names]
  return [f'{name}: {there} there, {wanted} wanted' for name, there, wanted in pairs if there != wanted]


def map_with_path(f: Callable[[str, Any], Any], tree: Any) -> Any:
  """The tree with `f(path, leaf)` in place of every leaf; paths as in `flatten_with_paths`."""
  return jax.tree_util.tree_map_with_path(lambda path, leaf: f(path_name(path), leaf), tree)


def path_name(path: tuple[Any, ...]) -> str:
  """The keys of a path of `jax.tree_util`, joined by `/`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')
