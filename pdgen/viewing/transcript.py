"""Plain-text transcript of a trajectory, for terminals and logs."""

import textwrap
from collections.abc import Callable

import numpy as np

from pdgen.core import tags
from pdgen.core import trajectory as trajectory_lib

_WIDTH = 110
_NAMES = {
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
  lines = [_paragraph('prompt', trajectory.prompt)]
  count = 0
  for item in trajectory.items():
    name = _NAMES[item.kind]
    if item.is_picture:
      count += 1
      lines.append(_paragraph(name, f'[picture {count}{": " + describe(item.picture) if describe else ""}]'))
    elif item.kind == trajectory_lib.INSPECTION:
      lines.append(_paragraph(name, item.text))
    else:
      lines.extend(_plan(name, item.text))
  lines.append(f'({stop(trajectory)})')
  return '\n'.join(lines)


def stop(trajectory: trajectory_lib.Trajectory) -> str:
  """Describes how the trajectory ended."""
  count = len(trajectory.pictures)
  return f'{STOPS[trajectory.stop]} after {count} picture{"s" * (count != 1)}'


def _plan(name: str, plan: str) -> list[str]:
  try:
    instruction, description = tags.plan_parts(plan)
  except ValueError:  # written without the grammar
    return [_paragraph(name, plan)]
  return [_paragraph(name, instruction), _paragraph('', description)]


def _paragraph(name: str, words: str) -> str:
  return textwrap.fill(words, _WIDTH, initial_indent=f'{name:9}', subsequent_indent=' ' * 9)
