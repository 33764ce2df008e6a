"""Saving and resuming a run: state, data position and configuration in one step directory, each leaf with a digest.

Orbax's v1 interface is used here and nowhere else. It does not notice a flipped byte, so that every leaf is checked
against the digest that was taken of the arrays in memory when they were saved.
"""

import dataclasses
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
from pdgen.core import sharding
from pdgen.training import export
from pdgen.training import state as state_lib

CHECKPOINTS = 'checkpoints'  # Folder of a run's workdir.
SHIPPED = pathlib.Path(export.__file__).parents[1] / 'checkpoints'  # Exported models that come with the package.

# Fields that may differ between the run that saved and the run that resumes: they change what is written or how
# things are computed, never what is learned from which data.
HARMLESS = (
  'name',
  'data.prefetch',
  'mesh',
  'model.attention',
  'model.remat',
  'model.scan_layers',
  'train.loss_chunk',
  'train.log_every',
  'train.eval_every',
  'train.eval_prompts',
  'train.checkpoint_every',
  'train.keep_checkpoints',
  'train.max_bad_steps',
)
_FORMAT = 1


class CheckpointError(ValueError):
  """A checkpoint that cannot be used, and why."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """state: TrainState on the devices. data: what the data iterator's `set_state` takes. step: steps taken."""

  state: state_lib.TrainState
  data: Any
  step: int


class Checkpointer:
  """The checkpoints of one run. Saves in the background; `close` (or leaving the `with`) waits for the last one."""

  def __init__(self, directory: str | os.PathLike, *, keep: int):
    """directory: made if it is missing. keep: newest checkpoints that are kept."""
    self.directory = pathlib.Path(directory).absolute()
    self._orbax = ocp.training.Checkpointer(
      self.directory,
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=ocp.training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, *_):
    self.close()

  @property
  def latest(self) -> int | None:
    """The newest complete checkpoint's step."""
    return self._orbax.latest.step if self._orbax.latest else None

  def save(self, state: state_lib.TrainState, *, data: Any, config: config_lib.Config):
    """Saves under the state's own step; does nothing if that is saved. data: the data iterator's state, JSON.

    Returns when the arrays are copied: the caller may then donate them.
    """
    step = int(state.step)
    if self.latest == step:
      return
    named = dict(sharding.named_leaves(state))
    meta = dict(format=_FORMAT, step=step, config=export.as_json(config), data=data, leaves=_describe(named))
    checkpointables = dict(state=sharding.nested(named), meta={'json': _sealed(meta)})
    self._orbax.save_checkpointables_async(step, checkpointables, force=True)

  def restore(self, abstract: state_lib.TrainState, *, config: config_lib.Config, step: int | None = None) -> Restored:
    """The newest checkpoint, or that of `step`, onto the shardings of the abstract state.

    Raises: FileNotFoundError when there is none; CheckpointError when it belongs to another configuration or model, or
    is damaged, naming the fields, the leaves or the directory.
    """
    path = _step_directory(self.directory, step)
    meta = _meta(path)
    _check_config(path, meta['config'], export.as_json(config))
    named = dict(sharding.named_leaves(abstract))
    _check_shapes(path, meta['leaves'], named)
    loaded = _load(path, meta, named)
    state = jax.tree.unflatten(jax.tree.structure(abstract), [loaded[name] for name in named])
    return Restored(state, meta['data'], meta['step'])

  def close(self):
    """Waits for the save in progress. Raises what it raised."""
    self._orbax.close()


def load_averaged(
  directory: str | os.PathLike, *, mesh: Mesh, step: int | None = None
) -> tuple[config_lib.Config, dict[str, Any]]:
  """Configuration and averaged parameters of a run, to sample from; neither optimizer nor data are read.

  directory: that given to Checkpointer. Returns nested dicts of arrays, sharded over the mesh. Raises as `restore`.
  """
  path = _step_directory(pathlib.Path(directory).absolute(), step)
  meta = _meta(path)
  config = config_lib.from_config_dict(meta['config'])
  shapes = sharding.nested(
    {
      name: jax.ShapeDtypeStruct(leaf['shape'], leaf['dtype'])
      for name, leaf in meta['leaves'].items()
      if name.startswith(('ema/', 'frozen/'))
    }
  )
  placed = jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes, sharding.shardings(shapes, mesh)
  )
  loaded = sharding.nested(_load(path, meta, dict(sharding.named_leaves(placed))))
  return config, state_lib.merge(loaded['ema'], loaded.get('frozen', {}))


def load_for_sampling(
  name_or_path: str | os.PathLike, *, mesh: Mesh | None = None
) -> tuple[config_lib.Config, dict[str, Any], str]:
  """A shipped model by name, an exported folder, or the workdir of a run (its newest average).

  Returns: configuration, parameters (nested dicts, on the mesh, or on the first device), and the name or path that
  `data.tokenizer.load` takes. Raises: FileNotFoundError naming what is shipped; ValueError for damaged files.
  """
  mesh = mesh or sharding.make_mesh(config_lib.MeshConfig(), devices=jax.devices()[:1])
  shipped = SHIPPED / str(name_or_path)
  path = shipped if export.is_export(shipped) else pathlib.Path(name_or_path)
  if (path / CHECKPOINTS).is_dir():
    config, params = load_averaged(path / CHECKPOINTS, mesh=mesh)
    return config, params, config.data.tokenizer
  if not path.is_dir():
    names = sorted(p.name for p in SHIPPED.glob('*') if export.is_export(p))
    raise FileNotFoundError(f'No model {str(name_or_path)!r}: neither shipped ({names}) nor a folder.')
  stored = export.load_export(path, mesh=mesh)
  return stored.config, stored.params, str(stored.tokenizer)


def digests(named: dict[str, jax.Array]) -> dict[str, str]:
  """A digest of the bits of every array, equal for every sharding of it. Two sums of the words of the array, each word
  times an odd factor of its place, modulo 2^32: an odd factor keeps every change of a single word in the sum.
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


def _describe(named: dict[str, jax.Array]) -> dict[str, dict[str, Any]]:
  found = digests(named)
  return {n: dict(shape=list(a.shape), dtype=str(a.dtype), digest=found[n]) for n, a in named.items()}


def _sealed(meta: dict[str, Any]) -> str:
  """JSON of the metadata behind its own digest."""
  text = json.dumps(meta, sort_keys=True)
  return f'{hashlib.sha256(text.encode()).hexdigest()} {text}'


def _step_directory(directory: pathlib.Path, step: int | None) -> pathlib.Path:
  steps = sorted(int(p.name) for p in directory.glob('*') if p.name.isdigit()) if directory.is_dir() else []
  if not steps:
    raise FileNotFoundError(f'No checkpoint in {directory}. Train one, or give the checkpoints folder of a run.')
  if step is not None and step not in steps:
    raise FileNotFoundError(f'No checkpoint of step {step} in {directory}. There are: {steps}')
  return directory / str(steps[-1] if step is None else step)


def _meta(path: pathlib.Path) -> dict[str, Any]:
  try:
    text = ocp.load_checkpointables(path, {'meta': None})['meta']['json']
  except Exception as error:
    raise _damaged(path, f'its metadata cannot be read ({_brief(error)})') from error
  digest, _, body = text.partition(' ')
  if hashlib.sha256(body.encode()).hexdigest() != digest:
    raise _damaged(path, 'its metadata do not match their digest')
  meta = json.loads(body)
  if meta['format'] != _FORMAT:
    raise CheckpointError(f'{path} has format {meta["format"]}; this version of pdgen reads {_FORMAT}.')
  return meta


def _load(path: pathlib.Path, meta: dict[str, Any], wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
  """The wanted leaves, checked against their digests."""
  tree = sharding.nested({name: wanted.get(name, ocp.PLACEHOLDER) for name in meta['leaves']})
  try:
    loaded = dict(sharding.named_leaves(ocp.load_checkpointables(path, {'state': tree})['state']))
  except Exception as error:
    raise _damaged(path, f'its arrays cannot be read ({_brief(error)})') from error
  found = digests({name: loaded[name] for name in wanted})
  broken = [name for name in wanted if found[name] != meta['leaves'][name]['digest']]
  if broken:
    raise _damaged(path, f'{_some(broken)} do not match the digests taken when they were saved')
  return loaded


def _check_config(path: pathlib.Path, saved: dict[str, Any], given: dict[str, Any]):
  saved, given = (dict(_flat(c)) for c in (saved, given))
  differ = [
    f'config.{name}: {saved.get(name, "absent")!r} saved, {given.get(name, "absent")!r} given'
    for name in sorted(saved.keys() | given.keys())
    if saved.get(name) != given.get(name) and not any(name == h or name.startswith(f'{h}.') for h in HARMLESS)
  ]
  if differ:
    raise CheckpointError(
      f'{path} belongs to another configuration:\n  ' + '\n  '.join(differ) + '\nSet them back, or use another workdir.'
    )


def _flat(values: dict[str, Any], prefix: str = '') -> list[tuple[str, Any]]:
  out = []
  for key, value in values.items():
    out += _flat(value, f'{prefix}{key}.') if isinstance(value, dict) else [(f'{prefix}{key}', value)]
  return out


def _check_shapes(path: pathlib.Path, saved: dict[str, dict[str, Any]], wanted: dict[str, Any]):
  leaves = {name: jax.ShapeDtypeStruct(leaf['shape'], leaf['dtype']) for name, leaf in saved.items()}
  if differ := sharding.differences(leaves, wanted, dtypes=True):
    raise CheckpointError(f'{path} does not fit the model:\n  ' + '\n  '.join(differ))


def _damaged(path: pathlib.Path, what: str) -> CheckpointError:
  return CheckpointError(f'{path} is damaged: {what}. Delete that directory to resume from the step before.')


def _brief(error: Exception) -> str:
  return f'{type(error).__name__}: {str(error).strip()[:300]}'


def _some(names: list[str], most: int = 5) -> str:
  return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')
