"""What sampling leaves to look at: a summary for the terminal, and a folder with a page, pictures and texts."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pdgen.core import trajectory as trajectory_lib
from pdgen.viewing import gallery, transcript

# Objects that a detector finds in a picture: each has `name`, `color` and `box` (left, top, right, bottom) in pixels.
Detect = Callable[[np.ndarray], Sequence[Any]]

_SIGNS = {True: '✓', False: '✗', None: '·'}
_NOTES = (
  'The model plans a step, sketches it, looks at its sketch, and paints it again where it finds something wrong.'
  '\n\nA red frame: a sketch that the model itself rejected. Verdicts on whole pictures come from an exact detector.'
)


def summary(
  trajectories: Sequence[trajectory_lib.Trajectory],
  verdicts: Sequence[gallery.Verdict | None],
  *,
  timings: Mapping[str, float],
  detect: Detect | None = None,
) -> str:
  """The transcript of the most telling trajectory, a line for each of them, and the counts.

  Args:
    trajectories: at least one.
    verdicts: one for each trajectory, None where it is not judged.
    timings: `pictures`, `tokens`, `seconds` and `compile_calls` of the call that made them.
    detect: finds the objects of a picture, which the transcript then names.
  """
  describe = functools.partial(_seen, detect=detect) if detect else None
  lines = [transcript.text(_telling(trajectories, verdicts), describe=describe), '']
  for trajectory, verdict in zip(trajectories, verdicts, strict=True):
    right, why = verdict or (None, '')
    reason = {True: '', False: f': {why}', None: ' [not judged]'}[right]
    lines.append(f'{_SIGNS[right]} {trajectory.prompt} ({transcript.stop(trajectory)}){reason}')
  judged = [verdict[0] for verdict in verdicts if verdict is not None]
  if judged:
    lines.append(f'\n{sum(judged)} of {len(judged)} prompts painted right, by the exact detector.')
  compiling = ', compiling included' if timings['compile_calls'] else ''
  lines.append(
    f'{len(trajectories)} trajectories, {timings["pictures"]} pictures and {timings["tokens"]} tokens '
    f'in {timings["seconds"]:.1f} s{compiling}.'
  )
  return '\n'.join(lines)


def write_folder(
  out: pathlib.Path,
  trajectories: Sequence[trajectory_lib.Trajectory],
  verdicts: Sequence[gallery.Verdict | None],
  *,
  title: str,
) -> pathlib.Path:
  """Writes index.html, trajectories.json (texts, and files of pictures) and pictures/*.png.

  Args:
    out: the folder, made if it is not there.
    trajectories: in the order of the page.
    verdicts: one for each trajectory, None where it is not judged.
    title: of the page.

  Returns: the page's path.
  """
  (out / 'pictures').mkdir(parents=True, exist_ok=True)
  records = []
  for number, (trajectory, verdict) in enumerate(zip(trajectories, verdicts, strict=True)):
    record = dataclasses.asdict(trajectory)
    for item in trajectory.items():
      if item.is_picture:
        file = f'pictures/{number:05d}_{item.number + 1}_{item.kind}.png'
        (out / file).write_bytes(gallery.png(item.picture))
        record['steps'][item.number][item.kind] = file
    records.append({**record, 'verdict': verdict})
  (out / 'trajectories.json').write_text(json.dumps(records, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
  page = out / 'index.html'
  page.write_text(gallery.page(trajectories, title=title, notes=_NOTES, verdicts=verdicts), encoding='utf-8')
  return page


def _telling(
  trajectories: Sequence[trajectory_lib.Trajectory], verdicts: Sequence[gallery.Verdict | None]
) -> trajectory_lib.Trajectory:
  """The one that shows most of what there is to see: painted right, most refined pictures, then most pictures."""

  def rank(pair: tuple[trajectory_lib.Trajectory, gallery.Verdict | None]) -> tuple[bool, int, int]:
    trajectory, verdict = pair
    right = verdict is not None and verdict[0]
    return right, sum(s.rejected for s in trajectory.steps), len(trajectory.pictures)

  return max(zip(trajectories, verdicts, strict=True), key=rank)[0]


def _seen(picture: np.ndarray, detect: Detect) -> str:
  """What the detector sees, in reading order, by the centres in pixels."""
  found = sorted(detect(picture), key=lambda d: (d.box[1] + d.box[3], d.box[0]))
  words = [f'{d.color} {d.name or "something"} at {_center(d.box)}' for d in found]
  return ', '.join(words) or 'nothing'


def _center(box: Sequence[int]) -> str:
  return f'({(box[0] + box[2]) // 2}, {(box[1] + box[3]) // 2})'
