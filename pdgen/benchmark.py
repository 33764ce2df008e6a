"""How fast a checkpoint paints: trajectories a second at several batch sizes, split into text and denoising.

    python -m pdgen.benchmark --checkpoint=shapes --batch_sizes=1,8,64
    python -m pdgen.benchmark --suite=all --size=bagel_7b --out=out/benchmark

What is measured, and how: `pdgen.inference.timing`. A second call of a batch size must not compile anything. With
`--suite` it is the device that is measured, at the sizes of a public model with random weights (`pdgen.benchmarks`):
products, attention, a train step, painting, writing; and of its host how fast records are read. The suite
`quantization` compares the weights of --checkpoint, in int8 and int4, with themselves, layer by layer; `reference` with
--size=bagel_59m is what the public PyTorch code was timed on. Several suites run in processes of their own; the folder
gets a JSON file for each and README.md, their tables; `--compare=EARLIER` sets them beside those of an earlier run.
"""

from pdgen import startup as startup  # First: Ctrl-C while the rest is imported.

# isort: split
import argparse
import functools
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax

from pdgen import benchmarks
from pdgen import flags as flags_lib
from pdgen.benchmarks import report, runner
from pdgen.core import modes
from pdgen.inference import timing


def main(arguments: Sequence[str] | None = None):
  """The command line."""
  parser = flags_lib.Parser(prog='python -m pdgen.benchmark', description=__doc__)
  parser.add_argument(
    '--batch_sizes', type=_sizes, default=[1, 8, 64], help='trajectories painted together, a row each'
  )
  parser.add_argument('--mode', choices=modes.IN_ONE_CALL, default='process', help='direct: one picture, no words')
  parser.add_argument(
    '--repeats', type=flags_lib.whole(1, 1000), default=3, help='timed calls, of which the fastest counts'
  )
  parser.add_argument('--out', type=flags_lib.path, help='file for the figures, JSON; of suites: a folder')
  parser.add_argument('--suite', type=_suites, help=f'all, or some of {",".join(benchmarks.SUITES)}')
  parser.add_argument(
    '--size', choices=('auto', *benchmarks.SIZES), default='auto', help='of the suites; auto: tiny on a CPU'
  )
  parser.add_argument('--compare', type=_earlier, help='folder, or file of a suite, of an earlier run to set beside')
  parser.add_argument('--records', type=flags_lib.path, help='record set that the suite pipeline reads, not a made one')
  parser.add_argument(
    '--limit', type=flags_lib.whole(1, 100_000), default=600, help='seconds after which one of several suites is ended'
  )
  parser.add_argument(
    '--total', type=flags_lib.whole(1, 1_000_000), default=3600, help='seconds after which no further suite is run'
  )
  flags_lib.add_arguments(parser)
  flags = parser.parse_args(arguments)
  with flags_lib.one_line_errors(parser.prog, debug=flags.debug) as kept:
    if arguments is None:
      flags_lib.enable_compilation_cache()
    if flags.suite:
      _run_suites(parser, flags, kept)
    else:
      _measure(parser, flags, kept)


def _run_suites(parser: flags_lib.Parser, flags: argparse.Namespace, kept: flags_lib.Kept):
  """Suites in processes of their own, or one here, into a JSON file. Ends with 1 where one has failed."""
  if not flags.out:
    parser.error('--suite wants --out: a folder, or for a single suite a file that ends in .json')
  if len(flags.suite) == 1 and flags.out.endswith('.json'):
    file = flags_lib.writable_file(flags.out)
    given = {'checkpoint': flags.checkpoint} | ({'records': flags.records} if flags.records else {})
    runner.run_here(flags.suite[0], _size(flags.size), file, functools.partial(print, flush=True), **given)
    if flags.compare:
      print(report.page(file, f'--suite={flags.suite[0]}', before=flags.compare))
    return
  out = flags_lib.writable_folder(flags.out)
  kept.words = f'What was measured is in {out}.'
  say = functools.partial(print, flush=True)
  failed = runner.run_all(
    flags.suite,
    flags.size,
    out,
    command=[
      *(sys.executable, '-m', f'{flags_lib.__package__}.benchmark'),
      f'--checkpoint={flags.checkpoint}',
      *([f'--records={flags.records}'] if flags.records else []),
    ],
    limit=flags.limit,
    total=flags.total,
    say=say,
  )
  command = f'python -m pdgen.benchmark --suite={",".join(flags.suite)} --size={flags.size}'
  (out / 'README.md').write_text(report.page(out, command, before=flags.compare))
  print(f'{len(flags.suite) - len(failed)} of {len(flags.suite)} suites are whole: {out / "README.md"}')
  sys.exit(bool(failed))


def _earlier(text: str) -> pathlib.Path:
  path = pathlib.Path(text)
  try:
    report.read(path)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from error
  return path


def _size(name: str) -> str:
  return name if name != 'auto' else 'tiny' if jax.default_backend() == 'cpu' else 'bagel_7b'


def _suites(text: str) -> list[str]:
  names = list(benchmarks.SUITES) if text == 'all' else text.split(',')
  if unknown := [name for name in names if name not in benchmarks.SUITES]:
    raise argparse.ArgumentTypeError(f'unknown suite {unknown[0]!r}: all, or some of {",".join(benchmarks.SUITES)}')
  return names


def _measure(parser: flags_lib.Parser, flags: argparse.Namespace, kept: flags_lib.Kept):
  """Times every batch size. The file is made and tried first, and holds every row as soon as it is measured."""
  out = flags_lib.writable_file(flags.out) if flags.out else None
  painter, world = flags_lib.load(parser, flags)
  prompts = [m['prompt'] for m in world.prompts('heldout', per_task=-(-max(flags.batch_sizes) // len(world.TASKS)))]
  used = 1 if painter.mesh is None else painter.mesh.size
  print(f'{jax.devices()[0].device_kind} x {used}, {os.cpu_count()} host cores, {flags.mode} mode')
  print(f'{"batch":>5} {"trajectories/s":>15} {"pictures/s":>11} {"seconds":>8}  {_heads()}  compile')
  rows = []
  for size in flags.batch_sizes:
    # Tasks in turn, so that a small batch holds as many kinds of prompts as it can.
    mixed = list(itertools.islice(_in_turn(prompts, len(world.TASKS)), size))
    row = timing.measure(painter, mixed, mode=flags.mode, repeats=flags.repeats)
    rows.append({'batch_size': size, **row})
    print(_line(rows[-1]), flush=True)
    if out:
      out.write_text(json.dumps(rows, indent=2) + '\n')
      kept.words = f'{len(rows)} of {len(flags.batch_sizes)} rows are in {out}.'


def _sizes(text: str) -> list[int]:
  return [flags_lib.whole(1, flags_lib.MANY)(n) for n in text.split(',')]


def _in_turn(prompts: Sequence[str], tasks: int) -> Iterator[str]:
  """Prompts come task after task; here the first of each, then the second of each, and so on."""
  per_task = len(prompts) // tasks
  return (prompts[task * per_task + i] for i in range(per_task) for task in range(tasks))


def _heads() -> str:
  return '  '.join((*timing.PHASES, 'other'))


def _line(row: dict[str, float]) -> str:
  seconds = row['seconds']
  shares = '  '.join(f'{row[part] / seconds:>{len(part)}.0%}' for part in (*timing.PHASES, 'other'))
  again = f'  COMPILED AGAIN: {row["compiled_again"]}' if row['compiled_again'] else ''
  return (
    f'{row["batch_size"]:>5} {row["trajectories"] / seconds:>15.2f} {row["pictures"] / seconds:>11.2f} {seconds:>8.2f}'
    f'  {shares}  {row["compile"]:>6.1f}s{again}'
  )


if __name__ == '__main__':
  main()
