"""Saving and resuming a run: state, data position and configuration in one step directory, each leaf with a digest.

Orbax's v1 interface is used here and in `weights.run_checkpoints` alone. It does not notice a flipped byte: every leaf
is checked against the digest that was taken of the arrays in memory when they were saved.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from pdgen.core import config as config_lib
from pdgen.core import trees
from pdgen.training import state as state_lib
from pdgen.weights import exported, run_checkpoints

# Fields that may differ between the run that saved and the run that resumes: they change what is written or how
# things are computed, not what is learned from which data. Three change the batches from there on, and the run says so:
# `data.shards`, `data.workers` (`data.feed`) and `train.lost_drafts` (`construction.self_sampled`).
MAY_DIFFER_ON_RESUME = (
  'name',
  'data.prefetch',
  'data.shards',
  'data.workers',
  'mesh',
  'model.attention',
  'model.remat',
  'model.scan_layers',
  'train.accumulate',
  'train.loss_chunk',
  'train.log_every',
  'train.eval_every',
  'train.eval_prompts',
  'train.checkpoint_every',
  'train.keep_checkpoints',
  'train.lost_drafts',
  'train.max_bad_steps',
)


@dataclasses.dataclass(frozen=True)
class Restored:
  """A checkpoint that was read."""

  state: state_lib.TrainState  # On the devices.
  data: Any  # What the data iterator's `set_state` takes.
  step: int  # Steps taken.
  changed: tuple[str, ...] = ()  # Fields of the config that are other ones than when it was saved, with both values.


class Checkpointer:
  """The checkpoints of one run. Saves in the background; `close` (or leaving the `with`) waits for the last one."""

  def __init__(self, directory: str | os.PathLike, *, keep: int):
    """directory: made if it is missing. keep: newest checkpoints that are kept."""
    self.directory = pathlib.Path(directory).absolute()
    self._orbax = ocp.training.Checkpointer(
      str(self.directory),
      # Any: the policies of orbax 0.12 and its Checkpointer are annotated with two types of checkpoint metadata.
      save_decision_policy=cast(Any, ocp.training.save_decision_policies.FixedIntervalPolicy(1)),
      preservation_policy=cast(Any, ocp.training.preservation_policies.LatestN(keep)),
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
    """Saves under the state's own step; does nothing if that is saved.

    Returns when the arrays are copied: the caller may then donate them.

    Args:
      state: of the run, on the devices.
      data: state of the data iterator, as JSON takes it.
      config: of the run.

    Raises: FloatingPointError naming a parameter that is not finite.
    """
    step = int(state.step)
    if self.latest == step:
      return
    check_finite(state, f'Step {step} is not saved')
    named = dict(trees.flatten_with_paths(state))
    meta = {
      'format': run_checkpoints.FORMATS[-1],
      'step': step,
      'config': exported.as_json(config),
      'data': data,
      'leaves': _describe(named),
    }
    checkpointables = {'state': trees.unflatten(named), 'meta': {'json': _sealed(meta)}}
    self._orbax.save_checkpointables_async(step, checkpointables, force=True)

  def restore(self, abstract: state_lib.TrainState, *, config: config_lib.Config, step: int | None = None) -> Restored:
    """Reads one of these checkpoints: `restore`."""
    return restore(self.directory, abstract, config=config, step=step)

  def close(self):
    """Waits for the save in progress. Raises what it raised."""
    self._orbax.close()


def restore(
  directory: str | os.PathLike,
  abstract: state_lib.TrainState,
  *,
  config: config_lib.Config,
  step: int | None = None,
  branch: bool = False,
) -> Restored:
  """Reads a checkpoint of a run.

  Args:
    directory: of the checkpoints.
    abstract: the state that it must fit, as ShapeDtypeStructs with the shardings to read onto.
    config: of the run that resumes.
    step: which checkpoint; None: the newest.
    branch: the checkpoint is another run's, which this one branches off: any field may differ that leaves the state's
      shapes as they are.

  Raises: FileNotFoundError when there is none; CheckpointError when it belongs to another configuration or model, or
  is damaged, naming the fields, the leaves or the directory.
  """
  path = run_checkpoints.step_directory(pathlib.Path(directory).absolute(), step)
  meta = run_checkpoints.read_meta(path)
  changed = _changed(_with_new_fields(meta['config']), exported.as_json(config))
  if not branch:
    _refuse(path, [line for name, line in changed.items() if not _may_differ(name)])
  named = _named(abstract, meta)
  _check_shapes(path, meta['leaves'], named)
  loaded = run_checkpoints.load_leaves(path, meta, named)
  state = jax.tree.unflatten(jax.tree.structure(abstract), [loaded[name] for name in named])
  return Restored(state, meta['data'], meta['step'], tuple(changed.values()))


def restore_averaged(
  directory: str | os.PathLike, abstract: state_lib.TrainState, *, config: config_lib.Config, step: int
) -> state_lib.TrainState:
  """The state of a step without what only training needs, to sample from: `trainable` and `opt_state` are None.

  Args and Raises: as of `restore`.
  """
  path = run_checkpoints.step_directory(pathlib.Path(directory).absolute(), step)
  meta = run_checkpoints.read_meta(path)
  changed = _changed(_with_new_fields(meta['config']), exported.as_json(config))
  _refuse(path, [line for name, line in changed.items() if not _may_differ(name)])
  _check_shapes(path, meta['leaves'], _named(abstract, meta))
  part = abstract.replace(trainable=None, opt_state=None)
  named = _named(part, meta)
  loaded = run_checkpoints.load_leaves(path, meta, named)
  return jax.tree.unflatten(jax.tree.structure(part), [loaded[name] for name in named])


def check_finite(state: state_lib.TrainState, what: str):
  """Raises FloatingPointError, which begins with `what`, naming the parameters that are not finite."""
  parameters = {'trainable': state.trainable, 'ema': state.ema, 'frozen': state.frozen}
  bad = [name for name, leaf in trees.flatten_with_paths(parameters) if not _is_finite(leaf)]
  if bad:
    more = f' and {len(bad) - 5} more' if len(bad) > 5 else ''
    raise FloatingPointError(f'{what}: {", ".join(bad[:5])}{more} hold values that are not finite.')


def _is_finite(x: jax.Array) -> bool:
  if x.is_fully_addressable and all(device.platform == 'cpu' for device in x.devices()):
    return bool(np.isfinite(np.asarray(x)).all())  # Compiling a program for each shape takes longer.
  return bool(jax.device_get(_is_finite_on_device(x)))


@jax.jit
def _is_finite_on_device(x: jax.Array) -> jax.Array:
  return jnp.all(jnp.isfinite(x))


def _describe(named: dict[str, jax.Array]) -> dict[str, dict[str, Any]]:
  found = run_checkpoints.digests(named)
  return {n: dict(shape=list(a.shape), dtype=str(a.dtype), digest=found[n]) for n, a in named.items()}


def _sealed(meta: dict[str, Any]) -> str:
  """JSON of the metadata behind its own digest."""
  text = json.dumps(meta, sort_keys=True)
  return f'{hashlib.sha256(text.encode()).hexdigest()} {text}'


def _with_new_fields(saved: dict[str, Any]) -> dict[str, Any]:
  """A saved config with the defaults of the fields that have been added since."""
  try:
    return exported.as_json(config_lib.from_config_dict(saved))
  except (KeyError, ValueError):  # Of a later version: what differs is told.
    return saved


def _changed(saved: dict[str, Any], given: dict[str, Any]) -> dict[str, str]:
  """Field to a line with both values, of the fields that differ."""
  saved, given = (dict(_flat(c)) for c in (saved, given))
  return {
    name: f'config.{name}: {saved.get(name, "absent")!r} saved, {given.get(name, "absent")!r} given'
    for name in sorted(saved.keys() | given.keys())
    if saved.get(name) != given.get(name)
  }


def _may_differ(name: str) -> bool:
  return any(name == harmless or name.startswith(f'{harmless}.') for harmless in MAY_DIFFER_ON_RESUME)


def _refuse(path: pathlib.Path, differ: list[str]):
  if differ:
    raise run_checkpoints.CheckpointError(
      f'{path} belongs to another configuration:\n  '
      + '\n  '.join(differ)
      + '\nSet them back, or go on with them in a '
      f'workdir of their own, from this checkpoint: --workdir=NEW --branch_from={path.parents[1]}'
    )


def _flat(values: dict[str, Any], prefix: str = '') -> list[tuple[str, Any]]:
  out = []
  for key, value in values.items():
    out += _flat(value, f'{prefix}{key}.') if isinstance(value, dict) else [(f'{prefix}{key}', value)]
  return out


def _named(abstract: state_lib.TrainState, meta: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
  """The leaves to read, by name. What is frozen has its saved type, which the configuration does not tell."""
  return {name: _in_saved_type(name, leaf, meta['leaves']) for name, leaf in trees.flatten_with_paths(abstract)}


def _in_saved_type(name: str, leaf: jax.ShapeDtypeStruct, saved: dict[str, dict[str, Any]]) -> jax.ShapeDtypeStruct:
  if not name.startswith('frozen/') or saved.get(name, {}).get('dtype') not in ('bfloat16', 'float32'):
    return leaf
  return jax.ShapeDtypeStruct(leaf.shape, saved[name]['dtype'], sharding=leaf.sharding)


def _check_shapes(path: pathlib.Path, saved: dict[str, dict[str, Any]], wanted: dict[str, Any]):
  leaves = {name: jax.ShapeDtypeStruct(leaf['shape'], leaf['dtype']) for name, leaf in saved.items()}
  if differ := trees.diff_shapes(leaves, wanted, dtypes=True):
    raise run_checkpoints.CheckpointError(
      f'{path} does not fit the model and its optimizer:\n  '
      + '\n  '.join(differ)
      + '\nA run of another optimizer begins with its weights: --workdir=NEW '
      f'--config.train.init_from={path.parents[1]}'
    )
