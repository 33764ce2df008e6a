"""The folder of a run: one run at a time, and what all of its processes must have been started with."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import jax

from pdgen.core import config as config_lib
from pdgen.core import trees
from pdgen.training import distributed
from pdgen.weights import exported, run_checkpoints

try:
  import fcntl
except ImportError:  # Windows.
  fcntl = None

_FOLDERS = ('checkpoints', 'final', 'profile', 'self_sampled', 'strips', 'tensorboard')


@contextlib.contextmanager
def exclusive_workdir(workdir: pathlib.Path) -> Iterator[None]:
  """Makes the folder and keeps other runs out of it: they would delete each other's half-written checkpoints.

  Raises: BlockingIOError when another run holds it; NotADirectoryError when something else is where the run is going to
  make a folder.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  for path in (workdir / name for name in _FOLDERS):
    if path.exists() and not path.is_dir() or path.is_symlink() and not path.exists():
      raise NotADirectoryError(
        f'{path} is no folder, and the run makes one there. Remove it, or give another --workdir.'
      )
  if not distributed.is_main_process():
    yield
    return
  with (workdir / 'lock').open('w') as file:
    try:
      if fcntl is None:
        raise OSError('this system has no file locks')
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # The system lets go of it however the process ends.
    except BlockingIOError as error:
      message = f'Another run is at work in {workdir}. Wait for its end, or give another --workdir.'
      raise BlockingIOError(message) from error
    except OSError as error:
      print(f'{workdir} cannot be locked ({error}): see to it that no other run writes there.', flush=True)
    yield


def branch_point(workdir: pathlib.Path, branch_from: str | os.PathLike | None) -> pathlib.Path | None:
  """The run that this one has yet to branch off; None where it has begun already, or branches off none.

  Raises: FileNotFoundError where that run has no checkpoint; ValueError where it is this one.
  """
  if not branch_from or has_checkpoint(workdir):
    return None
  branch_from = pathlib.Path(branch_from)
  if branch_from.absolute() == workdir.absolute():
    raise ValueError(f'--branch_from={branch_from} is the workdir itself. Give the new run a --workdir of its own.')
  run_checkpoints.step_directory(branch_from / run_checkpoints.CHECKPOINTS, None)
  return branch_from


def has_checkpoint(workdir: pathlib.Path) -> bool:
  try:
    run_checkpoints.step_directory(workdir / run_checkpoints.CHECKPOINTS, None)
  except FileNotFoundError:
    return False
  return True


def export_folder(workdir: pathlib.Path) -> pathlib.Path:
  """Where the model is exported. A link that is there is removed; what it leads to stays as it is."""
  final = workdir / 'final'
  if final.is_symlink():
    print(f'{final} is a link to {final.resolve()}: the exported model takes its place.', flush=True)
    final.unlink()
  return final


def run_fingerprint(config: config_lib.Config) -> dict[str, str]:
  """Facts that all processes of a run must agree on, by name: every config field, the code, the version of JAX."""
  facts = {f'config/{name}': repr(value) for name, value in trees.flatten_with_paths(exported.as_json(config))}
  return {**facts, 'code': distributed.code_version(), 'jax': jax.__version__}
