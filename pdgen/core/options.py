"""Fields of a frozen config as options of a command line: `--sampling.text_guidance=3`, the prefix being `sampling`.

Only what is given on the command line is returned, so that it can be laid over values that come from elsewhere (a
checkpoint's own config).
"""

import argparse
import dataclasses
import typing
from typing import Any


def add(parser: argparse.ArgumentParser, config_class: type, *, prefix: str):
  """Adds one option a field of the dataclass. Defaults stay those of whatever `given` is laid over."""
  group = parser.add_argument_group(f'{config_class.__name__}, as in pdgen/core/config.py')
  hints = typing.get_type_hints(config_class)
  for field in dataclasses.fields(config_class):
    group.add_argument(
      f'--{prefix}.{field.name}',
      default=argparse.SUPPRESS,
      metavar=_metavar(field.default),
      type=_reader(hints[field.name]),
    )


def given(arguments: argparse.Namespace, *, prefix: str) -> dict[str, Any]:
  """The fields that the command line sets.

  >>> from pdgen.core import config
  >>> parser = argparse.ArgumentParser()
  >>> add(parser, config.SamplingConfig, prefix='sampling')
  >>> line = '--sampling.text_guidance=3 --sampling.grammar=false --sampling.guidance_interval=0.5,1'
  >>> given(parser.parse_args(line.split()), prefix='sampling')
  {'text_guidance': 3.0, 'grammar': False, 'guidance_interval': (0.5, 1.0)}
  """
  start = f'{prefix}.'
  return {name.removeprefix(start): value for name, value in vars(arguments).items() if name.startswith(start)}


def _reader(hint: Any):
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


def _metavar(default: Any) -> str:
  return ','.join(map(str, default)) if isinstance(default, tuple) else str(default)
