"""What commands share: options of sampling (`--checkpoint`, `--sampling.flow_steps=3`), bounds, errors of one line.

What a user gets wrong ends a command with status 2 and one line; PDGEN_DEBUG=1 or `--debug` shows the traceback.
JAX, grain and orbax are imported by the functions that need them: `--help` and wrong arguments are answered at once.

Only what the command line gives is laid over the checkpoint's own sampling config. With an option of the mesh the model
is sampled on all devices that the mesh takes, without one on a single device.
"""

import argparse
import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import re
import sys
import tempfile
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import absl.flags
from absl import app
from ml_collections import config_dict, config_flags

from pdgen import startup, worlds
from pdgen.core import config as config_lib
from pdgen.viewing import transcript
from pdgen.worlds import base

if TYPE_CHECKING:
  from jax.sharding import Mesh

  from pdgen.inference import painter as painter_lib

MANY = 100_000  # Prompts, drafts and trajectories of a batch: more is a slip of the finger.
_SAMPLING, _MESH = 'sampling.', 'mesh.'


class Parser(argparse.ArgumentParser):
  """A parser whose errors are one line, with status 2; its help is its description as it is written."""

  def __init__(self, **settings: Any):
    raw = argparse.RawDescriptionHelpFormatter
    super().__init__(**{'formatter_class': raw, 'allow_abbrev': False, **settings})

  def error(self, message: str) -> NoReturn:
    _exit(self.prog, f'{message} (--help lists the options)')


@dataclasses.dataclass
class Kept:
  """What a command has written so far, in words, for one that is stopped."""

  words: str = 'Nothing is kept.'


@contextlib.contextmanager
def one_line_errors(prog: str, *, debug: bool = False) -> Iterator[Kept]:
  """Ends the command with a line where the user has got something wrong (status 2) or presses Ctrl-C (130).

  Args:
    prog: name of the command.
    debug: the traceback is shown; so it is with PDGEN_DEBUG=1.

  Returns: what the line says after Ctrl-C, to be set as files are written.
  """
  startup.began()
  kept, as_before = Kept(), warnings.formatwarning
  warnings.formatwarning = lambda message, category, *_, **__: f'{category.__name__}: {_one_line(message)}\n'
  try:
    yield kept
  except KeyboardInterrupt:
    if _debug(debug):
      raise
    print(f'{prog}: stopped. {kept.words}', file=sys.stderr)
    sys.exit(130)
  except Exception as error:
    if _debug(debug) or not (words := _users(error)):
      raise
    _exit(prog, words)
  finally:
    warnings.formatwarning = as_before


def run_absl(prog: str, main: Callable[[Kept], Any]):
  """`absl.app.run` with errors of one line. Help, and what the flags are, are absl's.

  Args:
    prog: name of the command.
    main: what it does once the flags are parsed.
  """

  def parse(argv: Sequence[str]) -> list[str]:
    logging.disable(logging.WARNING)  # ml_collections warns of what it then raises.
    try:
      rest = absl.flags.FLAGS(argv)
    except SystemExit as ended:  # absl ends with 1 after --help.
      asked = any(re.fullmatch(r'--?(help\w*|\?)(=.*)?', argument) for argument in argv[1:])
      sys.exit(0 if asked and ended.code == 1 else ended.code)
    except Exception as error:  # A config file may raise anything.
      if _debug(False):
        raise
      kind = '' if isinstance(error, (absl.flags.Error, OSError)) else f'{type(error).__name__}: '
      before, traceback, after = str(error).partition('Traceback (most recent call last):')  # ml_collections quotes it.
      _exit(prog, f'{kind}{before}{after.strip().splitlines()[-1] if traceback else ""}')
    finally:
      logging.disable(logging.NOTSET)
    if rest[1:]:
      _exit(prog, f'unexpected argument {rest[1]!r} (--help lists the options)')
    return rest

  def run(_: Sequence[str]):
    with one_line_errors(prog) as kept:
      main(kept)

  app.run(run, flags_parser=parse)


def whole(low: int, high: int) -> Callable[[str], int]:
  """The type of an option that is a whole number from `low` to `high`, for argparse."""

  def read(text: str) -> int:
    try:
      value = int(text)
    except ValueError:
      raise argparse.ArgumentTypeError(f'{text[:40]!r} is no whole number') from None
    if not low <= value <= high:
      raise argparse.ArgumentTypeError(f'{text[:40]} is out of range: from {low} to {high}')
    return value

  return read


def path(text: str) -> str:
  """The type of an option that names a file or a folder, for argparse."""
  if not text.strip():
    raise argparse.ArgumentTypeError('the name is empty')
  return text


def writable_folder(name: str | os.PathLike) -> pathlib.Path:
  """Makes the folder and tries to write into it, before anything is painted.

  Raises: ValueError where that cannot be.
  """
  folder = pathlib.Path(name)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
      file.write(b'tried')
      file.flush()
  except OSError as error:
    raise ValueError(f'{folder} cannot be written ({error.strerror or error}). Name another.') from error
  return folder


def writable_file(name: str | os.PathLike) -> pathlib.Path:
  """Makes and tries the folder of a file to be written. Raises: ValueError where that cannot be."""
  file = pathlib.Path(name)
  if file.is_dir() or (file.exists() and not os.access(file, os.W_OK)):
    raise ValueError(f'{file} {"is a folder" if file.is_dir() else "cannot be written"}. Name another file.')
  if not file.exists():
    writable_folder(file.parent)
  return file


def config_file(file: str, overrides: Sequence[str] = ()) -> config_dict.ConfigDict:
  """What `get_config()` of a file gives, with options laid over it.

  Args:
    file: path.
    overrides: `--config.x.y=value`, as on the command line.

  Raises: ValueError for a file that gives no config, and for options that it has not.
  """
  values = absl.flags.FlagValues()
  line = ['config_file', f'--config={file}', *overrides]
  flag = config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=line)
  try:
    values(line)
    return flag.value
  except (absl.flags.Error, AttributeError, TypeError, ImportError, SyntaxError) as error:
    raise ValueError(f'{file}: {error}') from error


def add_arguments(parser: argparse.ArgumentParser):
  """Adds `--checkpoint`, `--quantize` and one option a field of SamplingConfig and of MeshConfig."""
  parser.add_argument(
    '--checkpoint', type=path, default='shapes', help='a shipped model, an exported folder or a workdir'
  )
  kinds = ('int8', 'int4')
  parser.add_argument('--quantize', choices=kinds, help='hold large matrices in a half or a quarter of the memory')
  parser.add_argument('--debug', action='store_true', help='show tracebacks')
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


def make_mesh(flags: argparse.Namespace) -> 'Mesh | None':
  """The mesh that the command line describes; None where it has no option of the mesh.

  Raises: ValueError for a mesh that does not fit the devices, or CPU devices that JAX can no longer be split into.
  """
  given = _given(flags, _MESH)
  if not given:
    return None
  import jax

  from pdgen.core import mesh as mesh_lib

  cfg = config_lib.MeshConfig(**given)
  if 'cpu_devices' in given:
    try:
      jax.config.update('jax_num_cpu_devices', cfg.cpu_devices)
    except RuntimeError as error:
      raise ValueError(f'--mesh.cpu_devices={cfg.cpu_devices} comes too late: JAX has started.') from error
  return mesh_lib.make_mesh(cfg)


def load(
  parser: argparse.ArgumentParser, flags: argparse.Namespace, *, needs_world: bool = True
) -> 'tuple[painter_lib.Painter, Any]':
  """Loads what the command line asks for; exits with the parser's usage and the reason where that cannot be.

  Args:
    parser: of the command line.
    flags: with the options of `add_arguments`.
    needs_world: exit, too, for a checkpoint without a world that judges.

  Returns: the painter, with its sampling config and mesh as the command line has them, and the world of its data, a
    `worlds.base.JudgedWorld` where one is needed (None: it has none).
  """
  with startup.importing():
    from pdgen.inference import painter as painter_lib

  try:
    painter = painter_lib.load(flags.checkpoint, mesh=make_mesh(flags), quantize=flags.quantize)
    sampling = dataclasses.replace(painter.config.sampling, **sampling_given(flags))
    painter.check(sampling)
    name = painter.config.data.world
    world = worlds.get(name) if name else None
    if needs_world and world is not None:
      worlds.require(world, base.JudgedWorld)
  except (FileNotFoundError, ValueError) as error:
    if _debug(flags.debug):
      raise
    parser.error(str(error))
  painter = dataclasses.replace(painter, config=dataclasses.replace(painter.config, sampling=sampling))
  if needs_world and world is None:
    error = f'{flags.checkpoint} was trained in no world of pdgen: it can be sampled, but nothing here judges it.'
    named = ' Name the world whose prompts it is asked: --world=shapes.' if hasattr(flags, 'world') else ''
    parser.error(error + named)
  return painter, world


def painter_of(checkpoint: str) -> 'painter_lib.Painter':
  """The painter of a checkpoint as it is, where not every call of the command needs one."""
  with startup.importing():
    from pdgen.inference import painter as painter_lib

  enable_compilation_cache()
  return painter_lib.load(checkpoint)


def _add_fields(group: argparse._ArgumentGroup, section: type, prefix: str):
  """One option a field of a section of the config; what is not given is absent from the flags."""
  hints = typing.get_type_hints(section)
  for field in dataclasses.fields(section):
    more: dict[str, Any] = {'type': _reader(hints[field.name])}
    if hints[field.name] == tuple[str, ...]:
      more = {'action': 'append', 'help': 'as often as you like'}  # A text may hold any sign.
    group.add_argument(f'--{prefix}{field.name}', default=argparse.SUPPRESS, metavar='...', **more)


def _given(flags: argparse.Namespace, prefix: str) -> dict[str, Any]:
  given = {name.removeprefix(prefix): value for name, value in vars(flags).items() if name.startswith(prefix)}
  return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _reader(hint: Any):
  """From an option's text to a value of a field's type."""
  if hint is bool:
    return _read_bool
  if typing.get_origin(hint) is tuple:
    kind = typing.get_args(hint)[0]
    return functools.partial(_read_numbers, kind=kind)
  return hint


def _read_numbers(text: str, *, kind: type) -> tuple[Any, ...]:
  try:
    return tuple(kind(part) for part in text.strip('()').split(',') if part.strip())
  except ValueError:
    raise argparse.ArgumentTypeError(f'{text[:40]!r} are no numbers, as in 0.5,1') from None


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
  with startup.importing():
    import jax

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


def _debug(wanted: bool) -> bool:
  return wanted or os.environ.get('PDGEN_DEBUG', '') not in ('', '0')


def _users(error: BaseException) -> str:
  """What an error that a user can cause says to them; empty for others, whose traceback is for us."""
  jax = sys.modules.get('jax')
  if jax is not None and isinstance(error, jax.errors.JaxRuntimeError):  # Of XLA.
    out_of_memory = 'RESOURCE_EXHAUSTED' in str(error)
    return 'The device is out of memory: lower the batch size or sampling.max_tokens.' if out_of_memory else ''
  if isinstance(error, MemoryError):
    return f'The memory does not suffice: {error}'
  if isinstance(error, KeyError):  # A sentence is for users (an unknown key of a config), a bare key a slip of ours.
    return str(error.args[0]) if error.args and ' ' in str(error.args[0]) else ''
  if not isinstance(error, (ValueError, OSError, ImportError, FloatingPointError)):
    return ''
  return str(error) or type(error).__name__


def _exit(prog: str, words: Any) -> NoReturn:
  print(f'{prog}: {_one_line(words)}', file=sys.stderr)
  sys.exit(2)


def _one_line(words: Any) -> str:
  return transcript.printable(' '.join(str(words).split()))
