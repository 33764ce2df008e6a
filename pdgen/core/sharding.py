"""Where every array lives: one mesh, one table from parameter paths to partitions.

Rows of a batch are split over `data` and `fsdp`; weights over `fsdp` (gathered where they are used) and `tensor`
(heads and MLP columns); `sequence` splits the tokens of a row, each stream into equal parts.

Inputs and outputs of a compiled program carry their shardings. What it computes in between asks `active` for the mesh,
which the step sets while it is traced (`jax.sharding.use_abstract_mesh`); without one, nothing is split.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pdgen.core import config as config_lib

AXES = ('data', 'fsdp', 'tensor', 'sequence')
ROWS = ('data', 'fsdp')  # The axes that the rows of a batch are split over.

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
  (r'trunk/layers/(und|gen)/(q|k|v|gate|up)/lora_a', P(None, 'fsdp', None)),
  (r'trunk/layers/(und|gen)/(q|k|v|gate|up)/lora_b', P(None, None, 'tensor')),
  (r'trunk/layers/(und|gen)/(o|down)/lora_a', P(None, 'tensor', None)),
  (r'trunk/layers/(und|gen)/(o|down)/lora_b', P(None, None, 'fsdp')),
  (r'trunk/layers/(und|gen)/\w+_norm/scale', P()),
  (r'trunk/(und|gen)_norm/scale', P()),
  (r'vit/layers/(q|k|v|fc1)/kernel', P(None, 'fsdp', 'tensor')),
  (r'vit/layers/(q|k|v|fc1)/bias', P(None, 'tensor')),
  (r'vit/layers/(o|fc2)/kernel', P(None, 'tensor', 'fsdp')),
  (r'vit/layers/(o|fc2)/bias', P()),
  (r'vit/layers/norm[12]/(scale|bias)', P()),
  (r'vit/patch_embedding/kernel', P(None, 'fsdp')),  # A patch of 14 x 14 pixels has 588 values.
  (r'vit/connector[12]/kernel', P('fsdp', None)),
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
  # A TPU slice of 16 x 16 has no side of 64, but two parts of sides that are one together.
  arranged = mesh_utils.create_device_mesh(sizes, devices[: math.prod(sizes)], allow_split_physical_axes=True)
  return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
  """(path, leaf) of every leaf, keys joined by `/`.

  >>> named_leaves({'trunk': {'k': 1, 'b': 2}, 'mu': [3]})
  [('mu/0', 3), ('trunk/b', 2), ('trunk/k', 1)]
  """
  return [(_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def nested(named: dict[str, Any]) -> dict[str, Any]:
  """The nested dicts that `named_leaves` gives these paths of.

  >>> nested({'trunk/b': 2, 'trunk/k': 1})
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
  """Of every array of a batch: rows over data and fsdp; the second axis (tokens, pictures, patches) over sequence."""
  return NamedSharding(mesh, P(ROWS, 'sequence'))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def data_share(mesh: Mesh) -> tuple[int, int]:
  """(index, count): which of the equal shares of a batch's rows this process makes.

  Processes whose devices hold the same rows (where `tensor` or `sequence` reach across them) make the same share.

  Raises: ValueError when the rows of the processes overlap in part.
  """
  held = {}
  for process in sorted({device.process_index for device in mesh.devices.flat}):
    held[process] = _row_blocks(mesh, process)
  if jax.process_index() not in held:
    raise ValueError(
      f'No device of process {jax.process_index()} is in the mesh {dict(mesh.shape)}: use all, or fewer hosts.'
    )
  shares = sorted(set(held.values()))
  if sum(len(share) for share in shares) != len(set().union(*shares)):
    raise ValueError(
      f'The devices of a process hold rows in part: {held}. Choose config.mesh so that tensor x sequence divides the '
      f'devices of a process, or is a multiple of them.'
    )
  return shares.index(held[jax.process_index()]), len(shares)


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """This process's share of the rows of a batch (numpy) to global arrays, split over the mesh.

  Raises: ValueError when the rows, or what a row holds, do not divide among the devices.
  """
  sharding, ways, parts = rows(mesh), math.prod(mesh.shape[axis] for axis in ROWS), mesh.shape['sequence']
  count = data_share(mesh)[1]
  total = len(jax.tree.leaves(batch)[0]) * count
  if total % ways:
    raise ValueError(
      f'A batch of {total} rows does not divide among data x fsdp = {ways} devices. '
      f'Set config.data.batch_size to a multiple of {ways}, or config.mesh to fewer devices.'
    )
  blocks = _row_blocks(mesh, jax.process_index())

  def put(path: tuple[Any, ...], x: Any) -> jax.Array:
    x = np.asarray(x)
    if x.shape[1] % parts:
      raise ValueError(
        f'{_name(path)} {list(x.shape)}: {x.shape[1]} does not divide among sequence = {parts} devices. Set '
        f'und_tokens, gen_tokens, pictures and the like of config.data to multiples of {parts}.'
      )

    def piece(index: tuple[slice, ...]) -> np.ndarray:
      start, stop, _ = index[0].indices(total)
      local = blocks.index(start * ways // total) * (total // ways)
      return x[(slice(local, local + stop - start), *index[1:])]

    return jax.make_array_from_callback((total, *x.shape[1:]), sharding, piece)

  return jax.tree_util.tree_map_with_path(put, batch)


def active() -> AbstractMesh | None:
  """The mesh of the program that is being traced; None where it runs on one device or was told of no mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty or mesh.size == 1 else mesh


def parts(axis: str) -> int:
  """Devices along an axis of the active mesh; 1 without one."""
  mesh = active()
  return 1 if mesh is None else mesh.shape[axis]


def constrain(x: jax.Array, *partition: Any) -> jax.Array:
  """x, split so over the active mesh. An axis that does not divide its dimension is left out."""
  return x if active() is None else jax.lax.with_sharding_constraint(x, fitting(x.shape, *partition))


def fitting(shape: tuple[int, ...], *partition: Any) -> P:
  """The partition without the axes of the active mesh that do not divide their dimension of the shape."""
  mesh = active()
  fits = lambda size, axes: size % math.prod(mesh.shape[axis] for axis in _axes(axes)) == 0
  return P(*(axes if fits(size, axes) else None for size, axes in zip(shape, partition, strict=False)))


def gathered(params: Any, *, dtype: jnp.dtype, layer_of: str = '') -> Any:
  """Weights as matmuls take them, matrices in the compute dtype: whole along `fsdp`. Their gradients go back to shards.

  params: one layer of the scanned ones at that path (`trunk/layers`), its leading axis gone; with layer_of '', the
  parameters of the whole model, of which the scanned layers and the codec stay as they are. Unchanged without a mesh.
  """
  if active() is None:
    return params

  def place(name: str, leaf: jax.Array) -> jax.Array:
    if not layer_of and ('/layers/' in name or name.startswith('codec/')):
      return leaf
    split = spec(f'{layer_of}/{name}')[1:] if layer_of else spec(name)
    whole = [tuple(axis for axis in _axes(axes) if axis != 'fsdp') or None for axes in split]
    matrix = name.endswith(('kernel', 'table', 'lora_a', 'lora_b'))
    return _gather(leaf, P(*whole), P(*split), jnp.dtype(dtype if matrix else leaf.dtype), leaf.dtype)

  return map_named(place, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gather(x: jax.Array, whole: P, split: P, dtype: jnp.dtype, stored: jnp.dtype) -> jax.Array:
  return constrain(x.astype(dtype), *whole)


# The transpose of a constraint is the same constraint: gradients would be summed whole on every device.
_gather.defvjp(
  lambda x, whole, split, dtype, stored: (_gather(x, whole, split, dtype, stored), None),
  lambda whole, split, dtype, stored, _, d: (constrain(d, *split).astype(stored),),
)


@jax.custom_vjp
def looked_up(x: jax.Array) -> jax.Array:
  """Rows of a table [B, T, D], as they are. Their gradients turn from rows to columns, as the table's are split.

  Left to itself, XLA would give each device the gradients of all rows.
  """
  return x


looked_up.defvjp(lambda x: (x, None), lambda _, d: (constrain(d, 'data', 'sequence', ('fsdp', 'tensor')),))


def _row_blocks(mesh: Mesh, process: int) -> tuple[int, ...]:
  """The blocks of rows (places along data x fsdp) that devices of a process hold, in order."""
  blocks = mesh.devices.reshape(mesh.shape['data'] * mesh.shape['fsdp'], -1)
  return tuple(i for i, block in enumerate(blocks) if any(device.process_index == process for device in block))


def _axes(axes: Any) -> tuple[str, ...]:
  """Mesh axes of one dimension, as a partition names them."""
  return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def _name(path: tuple[Any, ...]) -> str:
  return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)


def _checked(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
  if not shape:
    return P()
  partition = spec(name)
  for size, axes in zip(shape, partition, strict=False):
    axes = _axes(axes)
    ways = math.prod(mesh.shape[axis] for axis in axes)
    if size % ways:
      raise ValueError(
        f'{name} {list(shape)}: {size} does not divide by {" x ".join(axes)} = {ways}. '
        'Choose other sizes in config.mesh or in config.model.'
      )
  return partition
