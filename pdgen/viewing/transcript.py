"""Plain-text transcript of a trajectory, for terminals and logs."""

import itertools
import re
import textwrap
from collections.abc import Callable

import numpy as np

from pdgen.core import modes, rounds, tags
from pdgen.core import trajectory as trajectory_lib

_WIDTH = 110
# C0, DEL and C1; line and paragraph separators; what changes the direction of text; halves of surrogate pairs.
_CONTROLS = re.compile('[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')
_NAMES = {
  trajectory_lib.TEXT: 'text',
  trajectory_lib.PLAN: 'plan',
  trajectory_lib.DRAFT: 'sketch',
  trajectory_lib.INSPECTION: 'inspect',
  trajectory_lib.CORRECTED_PLAN: 'replan',
  trajectory_lib.REFINED: 'refine',
}
STOPS = {
  trajectory_lib.FINISHED: 'finished by itself',
  trajectory_lib.PICTURE_CAP: 'stopped: as many pictures as allowed',
  trajectory_lib.TOKEN_CAP: 'stopped: no room for another round',
  trajectory_lib.UNREADABLE: 'stopped: what it wrote last cannot be read',
  None: 'to be continued',
}


def text(trajectory: trajectory_lib.Trajectory, *, describe: Callable[[np.ndarray], str] | None = None) -> str:
  """The transcript: all texts in order, each picture as its number and the text that `describe` gives for it.

  >>> step = trajectory_lib.Step(plan='<ins>Add a ring.</ins><des>A ring.</des>', draft=np.zeros((2, 2, 3), np.uint8))
  >>> print(text(trajectory_lib.Trajectory(prompt='a ring', steps=(step,)), describe=lambda picture: 'all black'))
  prompt   a ring
  plan     Add a ring.
           A ring.
  sketch   [picture 1: all black]
  (finished by itself after 1 picture)
  """
  lines, given, count, said = [], 0, 0, iter(rounds.of(trajectory))
  for part in trajectory.given:
    if not isinstance(part, str):
      given += 1
      part = f'[given picture {given}: {part.shape[1]} x {part.shape[0]}]'
    lines.append(_paragraph('' if lines else 'prompt', part))
  for item in trajectory.items():
    name = _NAMES[item.kind]
    if item.is_picture:
      count += 1
      lines.append(_paragraph(name, f'[picture {count}{": " + describe(item.picture) if describe else ""}]'))
    elif item.kind in (trajectory_lib.INSPECTION, trajectory_lib.TEXT):
      lines.append(_paragraph(name, item.text))
      lines += [_paragraph('', f'({one})') for one in itertools.islice(said, 1)]
    else:
      lines.extend(_plan(name, item.text))
  lines.append(f'({stop(trajectory)})')
  return '\n'.join(lines)


def printable(words: str, *, keep: str = '') -> str:
  r"""The words with control characters escaped, so that a terminal shows them and does not obey them.

  Of Unicode's controls, and what turns the direction of text or breaks lines.

  >>> print(printable('a \x1b[31mred\x1b[0m ring\n'))
  a \x1b[31mred\x1b[0m ring\x0a

  Args:
    words: of a prompt, a model, a file.
    keep: characters that stay as they are.
  """
  return _CONTROLS.sub(lambda match: match[0] if match[0] in keep else _escape(ord(match[0])), words)


def stop(trajectory: trajectory_lib.Trajectory) -> str:
  """Describes how the trajectory ended."""
  count = len(trajectory.pictures)
  what = f'{count} picture{"s" * (count != 1)}' if modes.of(trajectory.mode).paints else 'its answer'
  return f'{STOPS[trajectory.stop]} after {what}'


def _plan(name: str, plan: str) -> list[str]:
  try:
    instruction, description = tags.plan_parts(plan)
  except ValueError:  # written without the grammar
    return [_paragraph(name, plan)]
  return [_paragraph(name, instruction), _paragraph('', description)]


def _escape(code: int) -> str:
  return f'\\x{code:02x}' if code < 0x100 else f'\\u{code:04x}'


def _paragraph(name: str, words: str) -> str:
  words = printable(words, keep='\n\t')  # These are spaces to what follows.
  return textwrap.fill(words, _WIDTH, initial_indent=f'{name:9}', subsequent_indent=' ' * 9)
