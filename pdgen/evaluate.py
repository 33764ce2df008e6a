"""Scores a checkpoint on prompts and errors that were kept from training.

    python -m pdgen.evaluate geneval --checkpoint=shapes --per_task=100
    python -m pdgen.evaluate inspection --checkpoint=shapes

`geneval`: do the pictures hold what the prompts ask for, by the official rules; --out gets the official folder layout.
`inspection`: does the model notice errors, injected ones and those of its own drafts, does it mend them, and what does
it reject that is right. All intervals are Wilson's, of 95 %.
"""

import argparse
import json
import pathlib
import types
from collections.abc import Sequence

from pdgen import flags as flags_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import geneval, inspection
from pdgen.inference import painter as painter_lib


def main(arguments: Sequence[str] | None = None):
  """The command line."""
  parser = _parser()
  flags = parser.parse_args(arguments)
  if flags.out and pathlib.Path(flags.out).exists() and any(pathlib.Path(flags.out).iterdir()):
    parser.error(f'{flags.out} is not empty: what is left there of another run would be scored, too. Name another.')
  painter, world = flags_lib.load(parser, flags)
  flags.evaluate(painter, world, flags)


def evaluate_geneval(painter: painter_lib.Painter, world: types.ModuleType, flags: argparse.Namespace):
  """Samples and scores `flags.per_task` held-out prompts a task; prints the report, writes the official folder."""
  prompts = world.prompts('heldout', per_task=flags.per_task, seed=flags.seed)
  texts = [p['prompt'] for p in prompts]
  result = painter.sample(texts, mode=flags.mode, seed=flags.seed, batch_size=flags.batch_size)
  side = painter.config.model.image_size
  pictures = geneval.last_pictures(result.trajectories, size=side)
  if flags.out:
    geneval.write_folder(flags.out, prompts, pictures)
    report = geneval.score_folder(flags.out, world.detect)
  else:
    report = geneval.score(prompts, pictures, world.detect)
  print(report)
  print(_summary(result))


def evaluate_inspection(painter: painter_lib.Painter, world: types.ModuleType, flags: argparse.Namespace):
  """Injected errors of every kind, then the model's own drafts; prints both reports, writes them as JSON."""

  def sample(trajectories: Sequence[trajectory_lib.Trajectory], seed: int) -> list[trajectory_lib.Trajectory]:
    return painter.sample(trajectories, seed=seed, batch_size=flags.batch_size, pictures=1).trajectories

  def drafts(kind: str | None, seed: int, index: int) -> trajectory_lib.Trajectory:
    return world.injected(kind, seed=seed, index=index)

  injected = inspection.injected(
    sample, drafts, world.shows, kinds=world.ERROR_KINDS, per_kind=flags.per_kind, seed=flags.seed
  )
  print(f'Errors injected into drafts of held-out prompts\n{injected.table()}\n')
  own = inspection.own(sample, drafts, world.shows, count=flags.drafts, seed=flags.seed)
  print(f"The model's own drafts of held-out prompts\n{own.table()}")
  if flags.out:
    out = pathlib.Path(flags.out)
    out.mkdir(parents=True, exist_ok=True)
    reports = {'injected': injected.to_json(), 'own': own.to_json()}
    (out / 'inspection.json').write_text(json.dumps(reports, indent=2) + '\n')
    print(f'Counts: {out / "inspection.json"}')


def _summary(result: painter_lib.Result) -> str:
  stops = [t.stop for t in result.trajectories]
  refined = sum(s.refined is not None for t in result.trajectories for s in t.steps)
  finished = stops.count(trajectory_lib.FINISHED)
  return (
    f'{len(stops)} trajectories in {result.timings["seconds"]:.0f} s, {finished} of them ended by themselves; '
    f'{result.timings["pictures"] / len(stops):.2f} pictures each, {refined / len(stops):.2f} of them refined'
  )


def _parser() -> argparse.ArgumentParser:
  raw = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(
    prog='python -m pdgen.evaluate', description=__doc__, formatter_class=raw, allow_abbrev=False
  )
  commands = parser.add_subparsers(required=True, metavar='geneval | inspection')

  one = commands.add_parser('geneval', help='do the pictures hold what the prompts ask for', allow_abbrev=False)
  one.set_defaults(evaluate=evaluate_geneval)
  one.add_argument('--per_task', type=int, default=100, help='held-out prompts a task')
  one.add_argument('--mode', choices=trajectory_lib.MODES, default='process', help='direct: one picture, no words')

  two = commands.add_parser('inspection', help='are errors noticed and mended', allow_abbrev=False)
  two.set_defaults(evaluate=evaluate_inspection)
  two.add_argument('--per_kind', type=int, default=100, help='drafts of each kind of error, and right ones')
  two.add_argument('--drafts', type=int, default=500, help='drafts that the model paints itself')

  for command in (one, two):
    command.add_argument('--seed', type=int, default=0, help='of prompts and noise')
    command.add_argument('--batch_size', type=int, default=64, help='trajectories painted together')
    command.add_argument('--out', help='folder to write into')
    flags_lib.add_arguments(command)
  return parser


if __name__ == '__main__':
  main()
