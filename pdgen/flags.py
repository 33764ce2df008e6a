"""What the commands that sample a checkpoint share: which checkpoint, and `--sampling.text_guidance=3` and the like.

Only what the command line gives is laid over the checkpoint's own sampling config.
"""

import argparse
import dataclasses
import os
import tempfile
import types
import typing
import warnings
from typing import Any

import jax

from pdgen import worlds
from pdgen.core import config as config_lib
from pdgen.inference import painter as painter_lib

_PREFIX = 'sampling.'


def add_arguments(parser: argparse.ArgumentParser):
  """Adds `--checkpoint` and one option a field of SamplingConfig."""
  parser.add_argument('--checkpoint', default='shapes', help='a shipped model, an exported folder or a workdir')
  group = parser.add_argument_group("sampling, if not as the checkpoint's config says (SamplingConfig)")
  hints = typing.get_type_hints(config_lib.SamplingConfig)
  for field in dataclasses.fields(config_lib.SamplingConfig):
    name = f'--{_PREFIX}{field.name}'
    group.add_argument(name, default=argparse.SUPPRESS, metavar='...', type=_reader(hints[field.name]))


def sampling_given(flags: argparse.Namespace) -> dict[str, Any]:
  """The fields of SamplingConfig that the command line sets.

  >>> parser = argparse.ArgumentParser()
  >>> add_arguments(parser)
  >>> line = '--sampling.text_guidance=3 --sampling.grammar=false --sampling.guidance_interval=0.5,1'
  >>> sampling_given(parser.parse_args(line.split()))
  {'text_guidance': 3.0, 'grammar': False, 'guidance_interval': (0.5, 1.0)}
  """
  return {name.removeprefix(_PREFIX): value for name, value in vars(flags).items() if name.startswith(_PREFIX)}


def load(
  parser: argparse.ArgumentParser, flags: argparse.Namespace, *, needs_world: bool = True
) -> tuple[painter_lib.Painter, types.ModuleType | None]:
  """The painter, its sampling config as the command line has it, and the module of its world (None: it has none).

  Exits with the parser's usage and the reason when there is no such checkpoint or the options do not fit.
  """
  try:
    painter = painter_lib.load(flags.checkpoint)
    sampling = dataclasses.replace(painter.config.sampling, **sampling_given(flags))
    painter.check(sampling)
    name = painter.config.data.world
    world = worlds.get(name) if name else None
  except (FileNotFoundError, ValueError) as error:
    parser.error(str(error))
  painter = dataclasses.replace(painter, config=dataclasses.replace(painter.config, sampling=sampling))
  if needs_world and world is None:
    parser.error(f'{flags.checkpoint} was trained in no world of pdgen: it can be sampled, but nothing here judges it.')
  return painter, world


def _reader(hint: Any):
  """From an option's text to a value of a field's type."""
  if hint is bool:
    return _read_bool
  if typing.get_origin(hint) is tuple:
    kind = typing.get_args(hint)[0]
    return lambda text: tuple(kind(part) for part in text.strip('()').split(',') if part.strip())
  return hint


def _read_bool(text: str) -> bool:
  values = {'true': True, '1': True, 'false': False, '0': False}
  if text.lower() not in values:
    raise argparse.ArgumentTypeError(f'{text!r} is neither true nor false')
  return values[text.lower()]


def enable_compilation_cache() -> str | None:
  """Keeps compiled programs between commands, so that the second one starts at once.

  In $JAX_COMPILATION_CACHE_DIR (empty: nowhere), else in pdgen/xla of $XDG_CACHE_HOME or ~/.cache. Only programs that
  took a second to compile are kept, unless $JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS says otherwise. A folder that
  cannot be written is a warning; of entries that it cannot read JAX warns itself, and compiles.

  Returns: the folder; None where there is no cache.
  """
  folder = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  if folder is None:
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    folder = os.path.join(cache, 'pdgen', 'xla')
  if folder and '://' not in folder:  # Buckets are opened by JAX.
    try:
      os.makedirs(folder, exist_ok=True)
      with tempfile.TemporaryFile(dir=folder):
        pass
    except OSError as error:
      warnings.warn(f'Compiled programs are not kept ({error}): set JAX_COMPILATION_CACHE_DIR.', stacklevel=2)
      folder = ''
  jax.config.update('jax_compilation_cache_dir', folder or None)
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
  return folder or None
