"""Folders of weights: which kind a folder is and which command takes it, copies without links, atomic writes."""

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

from pdgen.core import json_file, paths

CONFIG = 'config.json'  # Of an exported model, of a run's workdir, and of a released folder.
CHECKPOINTS = 'checkpoints'  # Folder of a run's workdir.
_IMPORT = 'python -m pdgen.convert import --from={0} --to=checkpoints/{0}'
_HUB_ID = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')


def copy_files(folder: pathlib.Path, to: pathlib.Path):
  """Copies a folder. Raises ValueError for a link that leads out of it, before anything is copied."""
  files = [path for path in paths.check_links(folder) if path.is_file()]
  to.mkdir(parents=True)
  for path in files:
    target = to / path.relative_to(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def check_empty(to: pathlib.Path):
  """Raises ValueError for a place where something would be overwritten. A fresh disk holds `lost+found`."""
  kept = {'lost+found'} if os.path.ismount(to) else set()
  if os.path.lexists(to) and (not to.is_dir() or {path.name for path in to.iterdir()} - kept):
    raise ValueError(f'{to} is not empty, and nothing there is to be lost: name another folder, or remove it.')


@contextlib.contextmanager
def atomic_directory(directory: str | os.PathLike) -> Iterator[pathlib.Path]:
  """An empty folder that takes the directory's place when the block ends without an error.

  A mount point has no other place and cannot be replaced: there the files are made inside, and moved up at the end.

  Raises: OSError when the folder cannot take that place; what was written is then kept, and the error says where.
  """
  directory = pathlib.Path(directory)
  if directory.is_symlink():
    directory = directory.resolve()
  mounted = os.path.ismount(directory)
  name = f'{directory.name}.{os.getpid()}.partial'
  partial = directory / name if mounted else directory.with_name(name)
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    yield partial
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  try:
    _take_place(partial, directory, in_place=mounted)
  except OSError as error:
    raise OSError(f'{directory} cannot be written ({error}). Everything is in {partial}: move it yourself.') from error


def _take_place(partial: pathlib.Path, directory: pathlib.Path, *, in_place: bool):
  old = directory.with_name(f'{directory.name}.{os.getpid()}.old')
  try:
    if not in_place and directory.is_dir():
      os.replace(directory, old)
    if not in_place:
      os.replace(partial, directory)
  except OSError:
    if old.is_dir():
      os.replace(old, directory)
    in_place = True
  if in_place:
    directory.mkdir(exist_ok=True)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == CONFIG):  # It makes the folder a model: last.
      target = directory / path.name
      if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
      shutil.move(path, target)
    partial.rmdir()
  shutil.rmtree(old, ignore_errors=True)


def is_released(folder: pathlib.Path) -> bool:
  """Whether it looks like a folder of BAGEL's release."""
  names = ('llm_config.json', 'ema.safetensors', 'ema.safetensors.index.json')
  return any((folder / name).is_file() for name in names)


def explain(path: pathlib.Path) -> str:
  """What a path is that is no exported model, and which command takes it; empty where it is nothing known."""
  if path.is_file():
    return f'{path} is a file. Name the folder that it lies in.'
  if not path.is_dir():
    return f'There is no folder {path}.{hub_hint(str(path))}'
  if is_released(path):
    return (
      f'{path} is a released BAGEL folder, not yet a checkpoint. Make one of it: '
      f'python -m pdgen.convert import --from={path} --to=checkpoints/{path.resolve().name}'
    )
  if (path / CHECKPOINTS).is_dir():
    final = path / 'final'
    what = f'Its exported model is {final}' if final.is_dir() else 'It has no exported model (final) before it ends'
    return f'{path} is the workdir of a training run. {what}; `--checkpoint` takes the workdir, too.'
  if path.name == CHECKPOINTS or path.parent.name == CHECKPOINTS and path.name.isdigit():
    workdir = path.parent if path.name == CHECKPOINTS else path.parents[1]
    return f'{path} holds checkpoints of a training run. Name its workdir: {workdir}'
  kind = described(path)
  return f'{path} is a {kind} ({CONFIG}), not a model of pdgen nor BAGEL-7B-MoT.' if kind else ''


def hub_hint(name: str, *, then: str = _IMPORT) -> str:
  """How to get what looks like a name on the Hugging Face hub; empty for other names. then: with {} for the folder."""
  if not _HUB_ID.fullmatch(name) or pathlib.Path(name).parent.is_dir():
    return ''
  short = name.split('/')[-1]
  return (
    f' pdgen downloads nothing; if that is a name on the Hugging Face hub: hf download {name} --local-dir {short}, '
    f'then {then.format(short)}'
  )


def described(folder: pathlib.Path) -> str:
  """The kind of model that a config.json of the transformers library states."""
  try:
    values = json_file.read(folder / CONFIG)
  except (OSError, ValueError):
    return ''
  kinds = values.get('architectures') or [values.get('model_type', '')]
  return ' '.join(str(kind) for kind in kinds if kind)[:100] if isinstance(kinds, list) else ''
