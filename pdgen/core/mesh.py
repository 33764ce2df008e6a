"""The device mesh, and how arrays of a batch are split over it.

Rows of a batch are split over `data` and `fsdp`; weights over `fsdp` (gathered where they are used) and `tensor`
(heads and MLP columns; see `models.partition`); `sequence` splits the tokens of a row, each stream into equal parts.

Inputs and outputs of a compiled program carry their shardings. What it computes in between asks `current_mesh` for the
mesh, which is set while it is traced (`jax.sharding.use_abstract_mesh`, `jax.set_mesh`); without one, nothing is split.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from pdgen.core import config as config_lib
from pdgen.core import trees

AXES = ('data', 'fsdp', 'tensor', 'sequence')
ROWS = ('data', 'fsdp')  # The axes that the rows of a batch are split over.


def make_mesh(
  cfg: config_lib.MeshConfig,
  *,
  devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]: an unannotated alias of jax
) -> Mesh:
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


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Of every array of a batch: rows over data and fsdp; the second axis (tokens, pictures, patches) over sequence."""
  return NamedSharding(mesh, P(ROWS, 'sequence'))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def data_shard(mesh: Mesh) -> tuple[int, int]:
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
  sharding, ways, parts = batch_sharding(mesh), math.prod(mesh.shape[axis] for axis in ROWS), mesh.shape['sequence']
  count = data_shard(mesh)[1]
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
        f'{trees.path_name(path)} {list(x.shape)}: {x.shape[1]} does not divide among sequence = {parts} devices. Set '
        f'und_tokens, gen_tokens, pictures and the like of config.data to multiples of {parts}.'
      )

    def piece(index: tuple[slice, ...]) -> np.ndarray:
      start, stop, _ = index[0].indices(total)
      local = blocks.index(start * ways // total) * (total // ways)
      return x[(slice(local, local + stop - start), *index[1:])]

    return array_from_callback((total, *x.shape[1:]), sharding, piece)

  return jax.tree_util.tree_map_with_path(put, batch)


def array_from_callback(
  shape: tuple[int, ...], sharding: Sharding, read: Callable[[tuple[slice, ...]], np.ndarray]
) -> jax.Array:
  """A sharded array of which `read` gives the slices that this process holds."""
  # Any: the stub says that the callback may be given None, which it never is.
  return jax.make_array_from_callback(shape, sharding, cast(Any, read))


def current_mesh() -> AbstractMesh | None:
  """The mesh of the program that is being traced; None where it runs on one device or was told of no mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty or mesh.size == 1 else mesh


def device_kind() -> str:
  """What JAX calls the devices that the program being traced is for: `cpu`, `NVIDIA H100 80GB HBM3`, `TPU v5p`.

  Of the mesh it is traced for, which may be of devices that are not there; else of the default device.
  """
  device = getattr(jax.sharding.get_abstract_mesh(), 'abstract_device', None)
  return (jax.devices()[0] if device is None else device).device_kind


def axis_size(axis: str) -> int:
  """Devices along an axis of the current mesh; 1 without one."""
  mesh = current_mesh()
  return 1 if mesh is None else mesh.shape[axis]


def constrain(x: jax.Array, *partition: Any) -> jax.Array:
  """x, split so over the current mesh. An axis that does not divide its dimension is left out."""
  return x if current_mesh() is None else jax.lax.with_sharding_constraint(x, drop_indivisible(x.shape, *partition))


def drop_indivisible(shape: tuple[int, ...], *partition: Any) -> P:
  """The partition without the axes of the current mesh that do not divide their dimension of the shape."""
  fits = lambda size, axes: size % math.prod(axis_size(axis) for axis in axis_names(axes)) == 0
  return P(*(axes if fits(size, axes) else None for size, axes in zip(shape, partition, strict=False)))


@jax.custom_vjp
def shard_embedding_grad(x: jax.Array) -> jax.Array:
  """Rows of a table [B, T, D], as they are. Their gradients turn from rows to columns, as the table's are split.

  Left to itself, XLA would give each device the gradients of all rows.
  """
  return x


shard_embedding_grad.defvjp(lambda x: (x, None), lambda _, d: (constrain(d, 'data', 'sequence', ('fsdp', 'tensor')),))


def _row_blocks(mesh: Mesh, process: int) -> tuple[int, ...]:
  """The blocks of rows (places along data x fsdp) that devices of a process hold, in order."""
  blocks = mesh.devices.reshape(mesh.shape['data'] * mesh.shape['fsdp'], -1)
  return tuple(i for i, block in enumerate(blocks) if any(device.process_index == process for device in block))


def axis_names(axes: Any) -> tuple[str, ...]:
  """Mesh axes of one dimension, as a partition names them."""
  return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
