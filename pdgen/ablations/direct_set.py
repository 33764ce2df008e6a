"""A record set of paintings in one go from one of paintings by steps: the same prompts, each with its last picture."""

import dataclasses
import os
import pathlib

from pdgen.core import trajectory as trajectory_lib
from pdgen.data import records, splits


def write(source: str | os.PathLike, out: str | os.PathLike):
  """Writes `out/train` and `out/heldout`. A set that is finished stays; one that was stopped is made again.

  Args:
    source: folder of both splits of the record set.
    out: folder of the new one.
  """
  for split in splits.SPLITS:
    given, target = pathlib.Path(source, split), pathlib.Path(out, split)
    if not (given / records.INDEX).is_file() or (target / records.INDEX).is_file():
      continue
    reader = records.Reader(given)
    with records.Writer(target, resume=False) as writer:
      for number in range(len(reader)):
        writer.write(direct(reader[number]))


def direct(made: trajectory_lib.Trajectory) -> trajectory_lib.Trajectory:
  """The painting in one go: the prompt, and the last picture.

  Raises: ValueError for a trajectory without a picture.
  """
  step = trajectory_lib.Step(draft=made.final)
  return dataclasses.replace(made, steps=(step,), mode=trajectory_lib.DIRECT)
