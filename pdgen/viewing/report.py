"""What sampling leaves to look at: a summary for the terminal, and a folder with a page, pictures and texts."""

import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pdgen.core import rounds
from pdgen.core import trajectory as trajectory_lib
from pdgen.viewing import gallery, transcript

# Objects that a detector finds in a picture: each has `name`, `color` and `box` (left, top, right, bottom) in pixels.
Detect = Callable[[np.ndarray], Sequence[Any]]

_PICTURE = re.compile(r'\d{5,}_\d+_(draft|refined|given)\.png(\.partial)?')  # Names that `Folder` gives.
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
    lines.append(transcript.printable(f'{_SIGNS[right]} {trajectory.prompt} ({transcript.stop(trajectory)}){reason}'))
  judged = [verdict[0] for verdict in verdicts if verdict is not None]
  if judged:
    lines.append(f'\n{sum(judged)} of {len(judged)} prompts painted right, by the exact detector.')
  if unread := sum(t.stop == trajectory_lib.UNREADABLE for t in trajectories):
    lines.append(f'{unread} of {len(trajectories)} trajectories ended at a text that cannot be read.')
  compiling = ', compiling included' if timings['compile_calls'] else ''
  lines.append(
    f'{len(trajectories)} trajectories, {timings["pictures"]} pictures and {timings["tokens"]} tokens '
    f'in {timings["seconds"]:.1f} s{compiling}.'
  )
  return '\n'.join(lines)


class Folder:
  """A folder that grows batch by batch: index.html, trajectories.json (texts, files of pictures), pictures/*.png.

  Page and texts are whole after every batch. What an earlier page has left in the folder goes with the first batch, so
  that nothing stands beside the new page that is not on it; files of other names stay.
  """

  def __init__(self, out: pathlib.Path, *, title: str):
    """Args: out: made if it is not there. title: of the page."""
    self._out, self._title = out, title
    self._shown: list[tuple[trajectory_lib.Trajectory, gallery.Verdict | None]] = []
    self._records: list[dict[str, Any]] = []

  @property
  def page(self) -> pathlib.Path:
    return self._out / 'index.html'

  def add(
    self, trajectories: Sequence[trajectory_lib.Trajectory], verdicts: Sequence[gallery.Verdict | None]
  ) -> pathlib.Path:
    """Writes more trajectories, in the order of the page, with their verdicts. Returns the page's path."""
    pictures = self._out / 'pictures'
    pictures.mkdir(parents=True, exist_ok=True)
    if not self._shown:
      for stale in [self.page, self._out / 'trajectories.json', *pictures.iterdir()]:
        if stale.parent != pictures or _PICTURE.fullmatch(stale.name):
          stale.unlink(missing_ok=True)
    for trajectory, verdict in zip(trajectories, verdicts, strict=True):
      record = dataclasses.asdict(dataclasses.replace(trajectory, parts=()))
      record['parts'] = self._given(trajectory)
      if said := rounds.of(trajectory):
        record['rounds'] = [{'said': str(one), **dataclasses.asdict(one)} for one in said]
      for item in trajectory.items():
        if item.is_picture:
          file = f'pictures/{len(self._records):05d}_{item.number + 1}_{item.kind}.png'
          _write(self._out / file, gallery.png(item.picture))
          record['steps'][item.number][item.kind] = file
      self._records.append({**record, 'verdict': verdict})
      self._shown.append((trajectory, verdict))
    told = json.dumps(self._records, indent=2, ensure_ascii=False) + '\n'
    _write(self._out / 'trajectories.json', told.encode())
    shown, judged = zip(*self._shown, strict=True)
    _write(self.page, gallery.page(shown, title=self._title, notes=_NOTES, verdicts=judged).encode())
    return self.page

  def _given(self, trajectory: trajectory_lib.Trajectory) -> list[dict[str, str]]:
    """Writes the pictures of a prompt. Returns its parts, each a text or the file of a picture."""
    parts = []
    for number, part in enumerate(trajectory.parts, 1):
      if isinstance(part, str):
        parts.append({'text': part})
        continue
      file = f'pictures/{len(self._records):05d}_{number}_given.png'
      _write(self._out / file, gallery.png(part))
      parts.append({'picture': file})
    return parts


def _write(path: pathlib.Path, content: bytes):
  """A file that is whole, or as it was, after a kill."""
  partial = path.with_name(path.name + '.partial')
  partial.write_bytes(content)
  os.replace(partial, path)


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
