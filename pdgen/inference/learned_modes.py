"""Warns of modes that the data of a model cannot have taught it."""

import warnings
from collections.abc import Set

from pdgen.core import config as config_lib
from pdgen.core import trajectory as trajectory_lib


def warn(data: config_lib.DataConfig, asked: Set[str]):
  """Warns, once a process, of words asked of a model that has learned none, of a picture without words of one that has
  learned no such, and of any other mode that none of its data can have taught.

  Args:
    data: what the model has learned from; without sources it is a released one, of which little is known.
    asked: names of modes.
  """
  knows = bool(data.sources) and data.mode == trajectory_lib.PROCESS
  if not knows and trajectory_lib.PROCESS in asked:
    _warn(
      'The model was not trained to paint in steps (config.data.sources of its checkpoint has no trajectories with '
      "words): plans and inspections will mean little. Use mode='direct' (--mode=direct), or fine-tune it first."
    )
  if data.lacks_direct and trajectory_lib.DIRECT in asked:
    _warn(
      'The model was not trained to paint in one go (config.data.sources of its checkpoint has no direct '
      "trajectories): its picture will mean little. Use mode='process' (--mode=process), or fine-tune it first."
    )
  for mode in sorted(asked - {trajectory_lib.PROCESS, trajectory_lib.DIRECT}):
    # No world makes trajectories of other modes, and BAGEL has not learned what comes next, as `free` needs it.
    if data.of_worlds_alone or mode == trajectory_lib.FREE and not data.sources:
      _warn(
        f'The model was not trained in mode {mode!r} (config.data.sources of its checkpoint has no such trajectories): '
        f"what it gives will mean little. Use mode='{data.mode}' (--mode={data.mode}), or fine-tune it first."
      )


def _warn(words: str):
  warnings.warn(words, stacklevel=5)  # Of the call of `Painter.sample`.
