"""Prompts on a command line: texts, and pictures that belong to the next one."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any


def add(parser: argparse.ArgumentParser):
  """Adds `--prompt` and `--picture`, as often as one likes; `read` makes prompts of them."""
  words, picture = 'what to paint, edit or answer', 'of the next --prompt, before its words'
  more: dict[str, Any] = dict(action=_Asked, dest='asked', default=[])
  parser.add_argument('--prompt', **more, help=f'{words}; as often as you like')
  parser.add_argument('--picture', type=pathlib.Path, metavar='FILE', **more, help=f'{picture}; as often as you like')


def read(asked: Sequence[str | pathlib.Path]) -> list[str | list[str | pathlib.Path]]:
  """A prompt for each text, with the pictures before it; pictures after the last text are one without words.

  >>> read(['a ring', pathlib.Path('in.jpg'), 'make it night'])
  ['a ring', [PosixPath('in.jpg'), 'make it night']]
  """
  out, pictures = list[str | list[str | pathlib.Path]](), list[str | pathlib.Path]()
  for part in asked:
    if isinstance(part, pathlib.Path):
      pictures.append(part)
    else:
      out.append([*pictures, part] if pictures else part)
      pictures = []
  return [*out, pictures] if pictures else out


class _Asked(argparse.Action):
  """Keeps texts and files of pictures in the order of the command line."""

  def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None):
    namespace.asked = [*namespace.asked, values]
