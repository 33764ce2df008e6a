"""Options of the commands that sample a checkpoint: `--checkpoint`, `--sampling.text_guidance=3`, `--mesh.tensor=4`.

Only what the command line gives is laid over the checkpoint's own sampling config. With an option of the mesh the model
is sampled on all devices that the mesh takes, without one on a single device.
"""

import argparse
import dataclasses
import os
import tempfile
import typing
import warnings
from typing import Any

import jax
from jax.sharding import Mesh

from pdgen import worlds
from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.inference import painter as painter_lib
from pdgen.worlds import base

_SAMPLING, _MESH = 'sampling.', 'mesh.'


def add_arguments(parser: argparse.ArgumentParser):
  """Adds `--checkpoint` and one option a field of SamplingConfig and of MeshConfig."""
  parser.add_argument('--checkpoint', default='shapes', help='a shipped model, an exported folder or a workdir')
  group = parser.add_argument_group("sampling, if not as the checkpoint's config says (SamplingConfig)")
  _add_fields(group, config_lib.SamplingConfig, _SAMPLING)
  group = parser.add_argument_group('devices to sample on, if not a single one (MeshConfig)')
  _add_fields(group, config_lib.MeshConfig, _MESH)


def sampling_given(flags: argparse.Namespace) -> dict[str, Any]:
  """The fields of SamplingConfig that the command line sets.

  >>> parser = argparse.ArgumentParser()
  >>> add_arguments(parser)
  >>> line = '--sampling.text_guidance=3 --sampling.grammar=false --sampling.guidance_interval=0.5,1 --mesh.tensor=4'
  >>> sampling_given(parser.parse_args(line.split()))
  {'text_guidance': 3.0, 'grammar': False, 'guidance_interval': (0.5, 1.0)}
  """
  return _given(flags, _SAMPLING)


def make_mesh(flags: argparse.Namespace) -> Mesh | None:
  """The mesh that the command line describes; None where it has no option of the mesh.

  Raises: ValueError for a mesh that does not fit the devices, or CPU devices that JAX can no longer be split into.
  """
  given = _given(flags, _MESH)
  if not given:
    return None
  cfg = config_lib.MeshConfig(**given)
  if 'cpu_devices' in given:
    try:
      jax.config.update('jax_num_cpu_devices', cfg.cpu_devices)
    except RuntimeError as error:
      raise ValueError(f'--mesh.cpu_devices={cfg.cpu_devices} comes too late: JAX has started.') from error
  return mesh_lib.make_mesh(cfg)


def load(
  parser: argparse.ArgumentParser, flags: argparse.Namespace, *, needs_world: bool = True
) -> tuple[painter_lib.Painter, Any]:
  """Loads what the command line asks for; exits with the parser's usage and the reason where that cannot be.

  Args:
    parser: of the command line.
    flags: with the options of `add_arguments`.
    needs_world: exit, too, for a checkpoint without a world that judges.

  Returns: the painter, with its sampling config and mesh as the command line has them, and the world of its data, a
    `worlds.base.JudgedWorld` where one is needed (None: it has none).
  """
  try:
    painter = painter_lib.load(flags.checkpoint, mesh=make_mesh(flags))
    sampling = dataclasses.replace(painter.config.sampling, **sampling_given(flags))
    painter.check(sampling)
    name = painter.config.data.world
    world = worlds.get(name) if name else None
    if needs_world and world is not None:
      worlds.require(world, base.JudgedWorld)
  except (FileNotFoundError, ValueError) as error:
    parser.error(str(error))
  painter = dataclasses.replace(painter, config=dataclasses.replace(painter.config, sampling=sampling))
  if needs_world and world is None:
    parser.error(f'{flags.checkpoint} was trained in no world of pdgen: it can be sampled, but nothing here judges it.')
  return painter, world


def _add_fields(group: argparse._ArgumentGroup, section: type, prefix: str):
  """One option a field of a section of the config; what is not given is absent from the flags."""
  hints = typing.get_type_hints(section)
  for field in dataclasses.fields(section):
    group.add_argument(
      f'--{prefix}{field.name}', default=argparse.SUPPRESS, metavar='...', type=_reader(hints[field.name])
    )


def _given(flags: argparse.Namespace, prefix: str) -> dict[str, Any]:
  return {name.removeprefix(prefix): value for name, value in vars(flags).items() if name.startswith(prefix)}


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
