"""Where every array lives: one mesh, one table from parameter paths to partitions.

Rows of a batch are split over `data` and `fsdp`; weights over `fsdp` (gathered where they are used) and `tensor`
(heads and MLP columns); `sequence` splits the tokens of a row.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pdgen.core import config as config_lib

AXES = ('data', 'fsdp', 'tensor', 'sequence')

# Path of a parameter (the end of the path in an optimizer state) to its partition. Exactly one rule matches a path.
# Stacked layers have a leading axis that is never split. Vectors are replicated, but for those of split columns.
RULES: tuple[tuple[str, P], ...] = (
  (r'embed/table', P(None, ('fsdp', 'tensor'))),
  (r'head/kernel', P('fsdp', 'tensor')),
  (r'(latent_in|latent_out|time/fc[12])/kernel', P('fsdp', None)),
  (r'(latent_in|latent_out|time/fc[12])/bias', P()),
  (r'trunk/layers/(und|gen)/(q|k|v|gate|up)/kernel', P(None, 'fsdp', 'tensor')),
  (r'trunk/layers/(und|gen)/(q|k|v)/bias', P(None, 'tensor')),
  (r'trunk/layers/(und|gen)/(o|down)/kernel', P(None, 'tensor', 'fsdp')),
  (r'trunk/layers/(und|gen)/\w+_norm/scale', P()),
  (r'trunk/(und|gen)_norm/scale', P()),
  (r'vit/layers/(q|k|v|fc1)/kernel', P(None, 'fsdp', 'tensor')),
  (r'vit/layers/(q|k|v|fc1)/bias', P(None, 'tensor')),
  (r'vit/layers/(o|fc2)/kernel', P(None, 'tensor', 'fsdp')),
  (r'vit/layers/(o|fc2)/bias', P()),
  (r'vit/layers/norm[12]/(scale|bias)', P()),
  (r'vit/(patch_embedding|connector[12])/kernel', P('fsdp', None)),
  (r'vit/(patch_embedding|connector[12])/bias', P()),
  (r'vit/position/table', P()),
  (r'vit/post_norm/(scale|bias)', P()),
  # 84M frozen parameters without optimizer state, in every part of every picture: each device holds them all.
  (r'codec/vae/(encoder|decoder)/.*(kernel|bias|scale)', P()),
  (r'ns_coeffs', P()),  # Constants in the state of Muon.
)


def make_mesh(cfg: config_lib.MeshConfig, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh over all devices, or over the first ones when the config gives every axis and their product is smaller.

  Raises: ValueError when the axes do not fit the devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = [getattr(cfg, axis) for axis in AXES]
  if any(s < 1 and s != -1 for s in sizes) or sizes.count(-1) > 1:
    raise ValueError(f'{cfg}: sizes are at least 1, and -1 (all devices that remain) stands once.')
  given = math.prod(s for s in sizes if s != -1)
  if -1 in sizes and len(devices) % given == 0:
    sizes[sizes.index(-1)] = len(devices) // given
  if -1 in sizes or math.prod(sizes) > len(devices):
    raise ValueError(f'{cfg} needs a multiple of {given} devices; there are {len(devices)}.')
  return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[: math.prod(sizes)])


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
  """(path, leaf) of every leaf, keys joined by `/`.

  >>> named_leaves({'trunk': {'k': 1, 'b': 2}, 'mu': [3]})
  [('mu/0', 3), ('trunk/b', 2), ('trunk/k', 1)]
  """
  return [(_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def differences(have: Mapping[str, Any], want: Mapping[str, Any], *, dtypes: bool = False) -> list[str]:
  """What keeps leaves from being those that are wanted: a line for each name that is absent, in excess or mis-shaped.

  have, want: by name, anything with a shape and a dtype. dtypes: they have to be equal, too.

  >>> differences({'k': np.zeros(2), 'b': np.zeros(1)}, {'k': np.zeros((2, 1)), 'b': np.zeros(1)})
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


def map_named(f: Callable[[str, Any], Any], tree: Any) -> Any:
  """The tree with `f(path, leaf)` in place of every leaf; paths as in `named_leaves`."""
  return jax.tree_util.tree_map_with_path(lambda path, leaf: f(_name(path), leaf), tree)


def shardings(tree: Any, mesh: Mesh) -> Any:
  """The NamedSharding of every leaf of a tree of parameters or of anything that holds such trees (optimizer, EMA).

  Leaves need only a shape. Scalars are replicated. A dimension that its mesh axes do not divide is an error, never
  silently replicated: on a large model that would cost the memory that the mesh was made for.
  """
  return map_named(lambda name, leaf: NamedSharding(mesh, _checked(name, leaf.shape, mesh)), tree)


def spec(name: str) -> P:
  """The rule for a path. Raises ValueError when no rule, or more than one, matches."""
  found = [partition for pattern, partition in RULES if re.fullmatch(rf'(.*/)?{pattern}', name)]
  if len(found) != 1:
    raise ValueError(f'{len(found)} rules of core.sharding.RULES match {name!r}; exactly one must. Add or mend a rule.')
  return found[0]


def rows(mesh: Mesh) -> NamedSharding:
  """Of every array of a batch: rows over data and fsdp."""
  return NamedSharding(mesh, P(('data', 'fsdp')))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """This process's rows of a batch (numpy) to global arrays, split over the mesh.

  Raises: ValueError when the rows do not divide among the devices.
  """
  sharding = rows(mesh)
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  total = len(jax.tree.leaves(batch)[0]) * jax.process_count()
  if total % ways:
    raise ValueError(
      f'A batch of {total} rows does not divide among data x fsdp = {ways} devices. '
      f'Set config.data.batch_size to a multiple of {ways}, or config.mesh to fewer devices.'
    )
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def _name(path: tuple[Any, ...]) -> str:
  return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)


def _checked(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
  if not shape:
    return P()
  partition = spec(name)
  for size, axes in zip(shape, partition, strict=False):
    axes = () if axes is None else (axes,) if isinstance(axes, str) else axes
    ways = math.prod(mesh.shape[axis] for axis in axes)
    if size % ways:
      raise ValueError(
        f'{name} {list(shape)}: {size} does not divide by {" x ".join(axes)} = {ways}. '
        'Choose other sizes in config.mesh or in config.model.'
      )
  return partition
