"""Builds the three training subsets as record sets, imports other people's, shows and counts what they hold.

    python -m pdgen.construct build --config=configs/construct_shapes.py --subset=multi_turn --out=out/multi_turn
    python -m pdgen.construct build --config=.. --subset=conflict --out=.. --limit=20 --dry_run
    python -m pdgen.construct import --format=jsonl --source=FOLDER --out=out/mine
    python -m pdgen.construct inspect out/multi_turn --out=out/page --config=configs/shapes_constructed.py
    python -m pdgen.construct stats out/multi_turn out/conflict out/alignment

What is stopped goes on when the same command is given again; rejected samples are listed in OUT/rejected.jsonl.
Options of the config: --config.scenes.max_pictures=4. A budget that is spent ends a build with status 3.
"""

from pdgen import startup as startup  # First: Ctrl-C while the rest is imported.

# isort: split
import argparse
import pathlib
import sys
from collections.abc import Sequence

from pdgen import dataset_page
from pdgen import flags as flags_lib
from pdgen.construction import build, build_config, build_statistics, estimate, importers, progress
from pdgen.core import config as config_lib
from pdgen.services import errors


def main(arguments: Sequence[str] | None = None):
  """The command line."""
  parser = _parser()
  flags, rest = parser.parse_known_args(arguments)
  unknown = [word for word in rest if flags.run is not build_subset or not word.startswith('--config.')]
  if unknown:
    parser.error(f'unrecognized argument {unknown[0]!r}')
  with flags_lib.one_line_errors(parser.prog, debug=flags.debug) as kept:
    flags.run(flags, rest, kept)


def build_subset(flags: argparse.Namespace, overrides: Sequence[str], kept: flags_lib.Kept):
  """`build`."""
  config = build_config.from_config_dict(flags_lib.config_file(flags.config, overrides))
  config = build_config.of_prompts(config, flags.prompts) if flags.prompts else config
  if flags.dry_run:
    print(estimate.dry_run(config, flags.subset, limit=flags.limit).words())
    return
  out = flags_lib.writable_folder(flags.out)
  kept.words = f'What is done is in {out}: the same command goes on from there.'
  tell: dict = dict(progress=progress.Counted(flags.every), traced=progress.tell_traces)
  try:
    build.build(config, flags.subset, out, limit=flags.limit, make_painter=flags_lib.painter_of, **tell)
  except errors.BudgetExhausted as error:
    print(f'{error}. Raise config.budget and give the same command: it goes on from there.', file=sys.stderr)
    sys.exit(3)
  print(build_statistics.table([build_statistics.of(out)]))


def import_set(flags: argparse.Namespace, overrides: Sequence[str], kept: flags_lib.Kept):
  """`import`."""
  out = flags_lib.writable_folder(flags.out)
  kept.words = f'What is done is in {out}: the same command goes on from there.'
  options = dict(limit=flags.limit, share=flags.share)
  importers.import_records(flags.format, flags.source, out, progress=progress.Counted(flags.every), **options)
  print(build_statistics.table([build_statistics.of(out)]))


def print_statistics(flags: argparse.Namespace, overrides: Sequence[str], kept: flags_lib.Kept):
  """`stats`."""
  print(build_statistics.table([build_statistics.of(pathlib.Path(folder)) for folder in flags.folders]))


def inspect(flags: argparse.Namespace, overrides: Sequence[str], kept: flags_lib.Kept):
  """`inspect`."""
  config = config_lib.from_config_dict(flags_lib.config_file(flags.config)) if flags.config else None
  out = flags_lib.writable_folder(flags.out)
  print(dataset_page.write(flags.folder, out, count=flags.count, seed=flags.seed, config=config))


def _parser() -> flags_lib.Parser:
  parser = flags_lib.Parser(prog='python -m pdgen.construct', description=__doc__)
  commands = parser.add_subparsers(required=True, metavar='build | import | inspect | stats')
  count = flags_lib.whole(1, 10**9)

  one = commands.add_parser('build', help='build a subset of a config')
  one.set_defaults(run=build_subset)
  one.add_argument('--config', type=flags_lib.path, required=True, help='file with get_config()')
  one.add_argument('--subset', choices=build_config.SUBSETS, required=True)
  one.add_argument('--prompts', type=flags_lib.path, help='file with a prompt a line, in place of what the config says')
  one.add_argument('--dry_run', action='store_true', help='estimate calls, tokens and money, and build nothing')

  two = commands.add_parser('import', help="import someone's data set")
  two.set_defaults(run=import_set)
  two.add_argument('--format', choices=sorted(importers.FORMATS), required=True)
  two.add_argument('--source', type=flags_lib.path, required=True, help='folder or file')
  two.add_argument('--share', type=float, default=1.0, help='of the rows that are taken')

  three = commands.add_parser('stats', help='count what record sets hold')
  three.set_defaults(run=print_statistics)
  three.add_argument('folders', nargs='+', type=flags_lib.path, metavar='FOLDER')

  four = commands.add_parser('inspect', help='write a page to look at what record sets hold')
  four.set_defaults(run=inspect)
  four.add_argument('folder', type=flags_lib.path, metavar='FOLDER')
  four.add_argument('--out', type=flags_lib.path, required=True, help='folder of the page')
  four.add_argument('--config', type=flags_lib.path, help='of a training: shows what each token would be trained on')
  four.add_argument('--count', type=flags_lib.whole(1, 10_000), default=24, help='trajectories on the page')
  four.add_argument('--seed', type=flags_lib.whole(0, 2**31), default=0, help='of the choice')

  for command in (one, two):
    command.add_argument('--out', type=flags_lib.path, required=True, help='folder to write into, and to go on from')
    command.add_argument('--limit', type=count, help='samples at most')
    command.add_argument('--every', type=float, default=5.0, help='seconds between lines of progress')
  for command in (one, two, three, four):
    command.add_argument('--debug', action='store_true', help='show tracebacks')
  return parser


if __name__ == '__main__':
  main()
