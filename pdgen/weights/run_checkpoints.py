"""Checkpoint directories of a training run, read: metadata, leaves checked against their digests, averaged weights.

Orbax's v1 interface is used here and in `training.checkpoints` and nowhere else. It does not notice a flipped byte, so
every leaf is checked against the digest that was taken of the arrays in memory when they were saved.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from pdgen.core import config as config_lib
from pdgen.core import trees
from pdgen.models import params as params_lib
from pdgen.models import partition
from pdgen.weights import folders

CHECKPOINTS = folders.CHECKPOINTS  # Folder of a run's workdir.
FORMATS = (1, 2, 3)  # Read; the last one is written.


class CheckpointError(ValueError):
  """A checkpoint that cannot be used, and why."""


def load_averaged(
  directory: str | os.PathLike, *, mesh: Mesh, step: int | None = None
) -> tuple[config_lib.Config, dict[str, Any]]:
  """Configuration and averaged parameters of a run, to sample from; neither optimizer nor data are read.

  Args:
    directory: of the run's checkpoints.
    mesh: that the parameters are sharded over.
    step: which checkpoint; None: the newest.

  Returns: the config, and nested dicts of arrays.

  Raises: FileNotFoundError when there is none; CheckpointError when it is damaged, of a later pdgen, or not finite.
  """
  directory = pathlib.Path(directory).absolute()
  while True:
    path = step_directory(directory, step)
    try:
      return _load_averaged(path, mesh=mesh)
    except CheckpointError:
      # A run that is at work deletes old checkpoints, maybe this one while it was read.
      if step_directory(directory, step) == path:
        raise


def _load_averaged(path: pathlib.Path, *, mesh: Mesh) -> tuple[config_lib.Config, dict[str, Any]]:
  meta = read_meta(path)
  try:
    config = config_lib.from_config_dict(meta['config'])
  except (KeyError, ValueError) as error:
    what = error.args[0] if error.args else error
    raise CheckpointError(f'{path} has a configuration that this pdgen does not read: {what}. Update pdgen.') from error
  shapes = trees.unflatten(
    {
      name: jax.ShapeDtypeStruct(leaf['shape'], leaf['dtype'])
      for name, leaf in meta['leaves'].items()
      if name.startswith(('ema/', 'frozen/'))
    }
  )
  placed = jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes, partition.shardings(shapes, mesh)
  )
  wanted = dict(trees.flatten_with_paths(placed))
  leaves = load_leaves(path, meta, wanted)
  if broken := [name for name in wanted if not _is_finite(leaves[name])]:
    raise CheckpointError(f'{path} holds numbers that are not finite, in {_some(broken)}: the run has diverged.')
  loaded = trees.unflatten(leaves)
  return config, params_lib.merge(loaded['ema'], loaded.get('frozen', {}))


def digests(named: dict[str, jax.Array]) -> dict[str, str]:
  """A digest of the bits of every array, equal for every sharding of it.

  Two sums of the words of the array, each word times an odd factor of its place, modulo 2^32: an odd factor keeps every
  change of a single word in the sum.
  """
  found = {}
  for name, array in named.items():  # Not all at once: XLA's CPU collectives deadlock with several programs in flight.
    on_cpu = all(device.platform == 'cpu' for device in array.devices()) and array.is_fully_addressable
    # numpy where the memory is the host's: compiling a program for each shape takes longer than the sums.
    first, second = digest(np.asarray(array), np) if on_cpu else jax.device_get(_digest_on_device(array))
    found[name] = f'{int(first):08x}{int(second):08x}'
  return found


def digest(x: Any, numpy: Any) -> tuple[Any, Any]:
  """The two sums, uint32[] each, in numpy or jax.numpy. Integer sums do not depend on their order or sharding."""
  words = x.view(f'uint{8 * x.dtype.itemsize}').astype(numpy.uint32)
  place, stride = numpy.zeros((1,) * x.ndim, numpy.uint32), 1
  for axis in reversed(range(x.ndim)):
    along = numpy.arange(x.shape[axis], dtype=numpy.uint32) * numpy.uint32(stride % 2**32)
    place = place + along.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    stride *= x.shape[axis]
  first = place * numpy.uint32(0x9E3779B1)
  second = (first ^ (first >> numpy.uint32(15))) * numpy.uint32(0x85EBCA77)
  one = numpy.uint32(1)
  return tuple(numpy.sum(words * (factor | one), dtype=numpy.uint32) for factor in (first, second))


@jax.jit
def _digest_on_device(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  return digest(x, jnp)


def step_directory(directory: pathlib.Path, step: int | None) -> pathlib.Path:
  """The folder of a checkpoint; step None: of the newest. Raises FileNotFoundError when there is none."""
  steps = sorted(int(p.name) for p in directory.glob('*') if p.name.isdigit()) if directory.is_dir() else []
  if not steps:
    raise FileNotFoundError(f'No checkpoint in {directory}. Train one, or give the checkpoints folder of a run.')
  if step is not None and step not in steps:
    raise FileNotFoundError(f'No checkpoint of step {step} in {directory}. There are: {steps}')
  return directory / str(steps[-1] if step is None else step)


def read_meta(path: pathlib.Path) -> dict[str, Any]:
  """The metadata of a checkpoint, its config in today's format. Raises CheckpointError when they are damaged."""
  try:
    text = ocp.load_checkpointables(str(path), {'meta': None})['meta']['json']
  except Exception as error:
    raise damaged(path, f'its metadata cannot be read ({_brief(error)})') from error
  digest, _, body = text.partition(' ')
  if hashlib.sha256(body.encode()).hexdigest() != digest:
    raise damaged(path, 'its metadata do not match their digest')
  meta = json.loads(body)
  if meta['format'] not in FORMATS:
    raise CheckpointError(f'{path} has format {meta["format"]}; this version of pdgen reads {list(FORMATS)}.')
  return {**meta, 'config': config_lib.upgrade(meta['config'], meta['format'])}


def load_leaves(
  path: pathlib.Path, meta: dict[str, Any], wanted: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
  """Reads leaves of a checkpoint and checks them against their digests.

  Args:
    path: folder of the checkpoint.
    meta: its metadata.
    wanted: by name, with shardings to read onto.

  Raises: CheckpointError when they are damaged.
  """
  tree = trees.unflatten({name: wanted.get(name, ocp.PLACEHOLDER) for name in meta['leaves']})
  try:
    loaded = dict(trees.flatten_with_paths(ocp.load_checkpointables(str(path), {'state': tree})['state']))
  except Exception as error:
    raise damaged(path, f'its arrays cannot be read ({_brief(error)})') from error
  found = digests({name: loaded[name] for name in wanted})
  broken = [name for name in wanted if found[name] != meta['leaves'][name]['digest']]
  if broken:
    raise damaged(path, f'{_some(broken)} do not match the digests taken when they were saved')
  return loaded


def damaged(path: pathlib.Path, what: str) -> CheckpointError:
  return CheckpointError(f'{path} is damaged: {what}. Delete that directory to resume from the step before.')


def _is_finite(leaf: jax.Array) -> bool:
  if leaf.is_fully_addressable and all(device.platform == 'cpu' for device in leaf.devices()):
    return bool(np.isfinite(np.asarray(leaf)).all())  # Without a compiled program for each shape.
  return bool(jnp.isfinite(leaf).all())


def _brief(error: Exception) -> str:
  return f'{type(error).__name__}: {str(error).strip()[:300]}'


def _some(names: list[str], most: int = 5) -> str:
  return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')
