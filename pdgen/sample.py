"""Paints prompts with a checkpoint.

    python -m pdgen.sample --checkpoint=shapes --prompt='a photo of a red ring and a blue square' --out=out/sample

prints what was planned, seen and refined, and writes a page to look at, the pictures and the texts. In Python
`pdgen.load('shapes').sample(prompts)` does the same without files.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pdgen import flags as flags_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import geneval
from pdgen.inference import painter as painter_lib
from pdgen.viewing import gallery, transcript

_SIGNS = {True: '✓', False: '✗', None: '·'}


def main(arguments: Sequence[str] | None = None):
  """The command line."""
  parser = _parser()
  flags = parser.parse_args(arguments)
  if not flags.prompt and not flags.heldout:
    parser.error('nothing to paint: give --prompt=... (as often as you like) or --heldout=1')
  painter, world = flags_lib.load(parser, flags, needs_world=bool(flags.heldout))
  detect = world.detect if world else None
  wanted = [_row(prompt, world) for prompt in flags.prompt]
  wanted += world.prompts('heldout', per_task=flags.heldout) if world and flags.heldout else []
  asked = [_asked(row) for row in wanted]
  result = painter.sample(asked, mode=flags.mode, seed=flags.seed, batch_size=flags.batch_size)
  verdicts = [_verdict(t, detect) for t in result.trajectories]
  _report(result, verdicts, detect)
  if flags.out:
    title = f'Painted by {pathlib.Path(flags.checkpoint).name}'
    page = _write(pathlib.Path(flags.out), result.trajectories, verdicts, title=title)
    print(f'\nTo look at: {page}')


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog='python -m pdgen.sample', description=__doc__, allow_abbrev=False)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument('--prompt', action='append', default=[], help='what to paint; as often as you like')
  parser.add_argument(
    '--heldout', type=int, default=0, metavar='N', help="N prompts a task that the model's world kept from training"
  )
  parser.add_argument(
    '--mode', choices=trajectory_lib.MODES, default='process', help='process: with words; direct: without'
  )
  parser.add_argument('--seed', type=int, default=0, help='of the first prompt; the next prompts take the next numbers')
  parser.add_argument('--batch_size', type=int, help='trajectories painted together')
  parser.add_argument('--out', help='folder for index.html, trajectories.json and pictures/')
  flags_lib.add_arguments(parser)
  return parser


def _row(prompt: str, world: types.ModuleType | None) -> dict[str, Any]:
  """GenEval's row of a typed prompt, if it is one of the world's own; else the prompt alone, which cannot be judged."""
  spec = world.parse(prompt) if world else None
  return {'prompt': prompt} if spec is None else spec.to_row(prompt)


def _asked(row: dict[str, Any]) -> trajectory_lib.Trajectory:
  spec = trajectory_lib.PromptSpec.from_row(row) if 'tag' in row else None
  return trajectory_lib.Trajectory(prompt=row['prompt'], steps=(), spec=spec, stop=None)


def _verdict(trajectory: trajectory_lib.Trajectory, detect: Callable | None) -> gallery.Verdict | None:
  """Whether the last picture shows what the prompt asks for; None where that is not known."""
  if trajectory.spec is None or detect is None:
    return None
  if not trajectory.pictures:
    return False, 'no picture'
  right, reason = geneval.evaluate(trajectory.spec.to_row(trajectory.prompt), detect(trajectory.final))
  return right, 'shows what is asked for' if right else reason.replace('\n', '; ')


def _report(result: painter_lib.Result, verdicts: Sequence[gallery.Verdict | None], detect: Callable | None):
  trajectories, timings = result.trajectories, result.timings
  describe = functools.partial(_seen, detect=detect) if detect else None
  print(transcript.text(_telling(trajectories, verdicts), describe=describe), end='\n\n')
  for trajectory, verdict in zip(trajectories, verdicts, strict=True):
    right, why = verdict or (None, '')
    reason = {True: '', False: f': {why}', None: ' [not judged]'}[right]
    print(f'{_SIGNS[right]} {trajectory.prompt} ({transcript.stop(trajectory)}){reason}')
  judged = [v[0] for v in verdicts if v is not None]
  if judged:
    print(f'\n{sum(judged)} of {len(judged)} prompts painted right, by the exact detector.')
  compiling = ', compiling included' if timings['compile_calls'] else ''
  print(
    f'{len(trajectories)} trajectories, {timings["pictures"]} pictures and {timings["tokens"]} tokens '
    f'in {timings["seconds"]:.1f} s{compiling}.'
  )


def _telling(
  trajectories: Sequence[trajectory_lib.Trajectory], verdicts: Sequence[gallery.Verdict | None]
) -> trajectory_lib.Trajectory:
  """The one that shows most of what there is to see: painted right, most refined pictures, then most pictures."""

  def rank(pair):
    trajectory, verdict = pair
    right = verdict is not None and verdict[0]
    return right, sum(s.rejected for s in trajectory.steps), len(trajectory.pictures)

  return max(zip(trajectories, verdicts, strict=True), key=rank)[0]


def _seen(picture: np.ndarray, detect: Callable) -> str:
  """What the detector sees, in reading order, by the centres in pixels."""
  found = sorted(detect(picture), key=lambda d: (d.box[1] + d.box[3], d.box[0]))
  words = [f'{d.color} {d.name or "something"} at {_center(d.box)}' for d in found]
  return ', '.join(words) or 'nothing'


def _center(box: Sequence[int]) -> str:
  return f'({(box[0] + box[2]) // 2}, {(box[1] + box[3]) // 2})'


def _write(
  out: pathlib.Path,
  trajectories: Sequence[trajectory_lib.Trajectory],
  verdicts: Sequence[gallery.Verdict | None],
  *,
  title: str,
) -> pathlib.Path:
  """index.html, trajectories.json (texts, and files of pictures), pictures/*.png. Returns the page's path."""
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
  notes = (
    'The model plans a step, sketches it, looks at its sketch, and paints it again where it finds something wrong.'
    '\n\nA red frame: a sketch that the model itself rejected. Verdicts on whole pictures come from an exact detector.'
  )
  page = out / 'index.html'
  page.write_text(gallery.page(trajectories, title=title, notes=notes, verdicts=verdicts), encoding='utf-8')
  return page


if __name__ == '__main__':
  main()
