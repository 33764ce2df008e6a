"""The folder of a run: one run at a time, and what all of its processes must have been started with."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator

import jax

from pdgen.core import config as config_lib
from pdgen.core import trees
from pdgen.training import distributed
from pdgen.weights import exported


@contextlib.contextmanager
def exclusive_workdir(workdir: pathlib.Path) -> Iterator[None]:
  """Makes the folder and keeps other runs out of it: they would delete each other's half-written checkpoints.

  Raises: BlockingIOError when another run holds it.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  if not distributed.is_main_process():
    yield
    return
  with (workdir / 'lock').open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # The system lets go of it however the process ends.
    except BlockingIOError as error:
      message = f'Another run is at work in {workdir}. Wait for its end, or give another --workdir.'
      raise BlockingIOError(message) from error
    except OSError as error:
      print(f'{workdir} cannot be locked ({error}): see to it that no other run writes there.', flush=True)
    yield


def run_fingerprint(config: config_lib.Config) -> dict[str, str]:
  """Facts that all processes of a run must agree on, by name: every config field, the code, the version of JAX."""
  facts = {f'config/{name}': repr(value) for name, value in trees.flatten_with_paths(exported.as_json(config))}
  return {**facts, 'code': distributed.code_version(), 'jax': jax.__version__}
