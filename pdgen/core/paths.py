"""Names and links of folders that others made: no name in a file's content and no link leads out of its folder."""

import os
import pathlib
from typing import Any


def plain_name(name: Any, *, of: str | os.PathLike) -> str:
  """The name, if it is one of a file that lies directly in a folder. of: the file that says the name.

  Raises: ValueError for a path, or for what is no name.
  """
  if not isinstance(name, str) or name in ('', '.', '..') or not name.isprintable() or any(s in name for s in '/\\:'):
    raise ValueError(f'{os.fspath(of)} names {name!r}, which is no plain name of a file. Use nothing of that folder.')
  return name


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The path of a file in a folder, links followed only as long as they stay there.

  A snapshot in the cache of the Hugging Face hub may link to the blobs of the same download.

  Args:
    folder: the folder.
    name: plain names, joined by `/`.

  Raises: ValueError for a link that leads out of the folder, or for a name that does.
  """
  for part in name.split('/'):
    plain_name(part, of=folder)
  itself = f'{folder / name} cannot be read: it is a link to itself.'
  try:
    root, real = folder.resolve(), (folder / name).resolve()
  except (OSError, RuntimeError) as error:
    raise ValueError(itself) from error
  if any(path.is_symlink() for path in (real, *real.parents)):  # Python 3.13 gives a loop back as it is.
    raise ValueError(itself)
  allowed = [root, root.parents[1] / 'blobs'] if root.parent.name == 'snapshots' else [root]
  if not any(real.is_relative_to(one) for one in allowed):
    raise ValueError(f'{folder / name} is a link out of its folder, to {real}: put the file itself there.')
  return folder / name


def check_links(folder: pathlib.Path) -> list[pathlib.Path]:
  """All files at any depth, and links to folders. Raises: ValueError for a link that leads out of the folder."""
  found = [path for path in sorted(folder.rglob('*')) if path.is_symlink() or not path.is_dir()]
  return [inside(folder, path.relative_to(folder).as_posix()) for path in found]
