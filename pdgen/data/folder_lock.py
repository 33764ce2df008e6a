"""File lock of an output folder: one writer at a time, released however the process ends."""

import contextlib
import os
import pathlib
import warnings
from collections.abc import Iterator

try:
  import fcntl
except ImportError:  # Windows.
  fcntl = None


@contextlib.contextmanager
def exclusive(folder: pathlib.Path) -> Iterator[None]:
  """Keeps other writers out of the folder. Removes a folder that it made and nothing was written to."""
  is_new = not folder.exists()
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / 'lock'
  with path.open('w') as file:
    try:
      if fcntl is None:
        raise OSError('this system has no file locks')
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # The system drops it however the process ends.
      is_held = os.path.samestat(os.fstat(file.fileno()), path.stat())  # False: its last owner has just removed it.
    except (BlockingIOError, FileNotFoundError):
      is_held = False
    except OSError as error:
      warnings.warn(f'{folder} cannot be locked ({error}). Make sure that nothing else writes there.', stacklevel=2)
      is_held = True
    if not is_held:
      raise BlockingIOError(f'Another writer is at work in {folder}. Wait for its end, or give another folder.')
    try:
      yield
    finally:
      path.unlink(missing_ok=True)
      if is_new:
        with contextlib.suppress(OSError):  # Not empty.
          folder.rmdir()
