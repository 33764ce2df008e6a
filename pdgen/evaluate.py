"""Scores a checkpoint on prompts and errors that were kept from training, and on public benchmarks.

    python -m pdgen.evaluate geneval --checkpoint=shapes --per_task=100
    python -m pdgen.evaluate geneval --checkpoint=CHECKPOINT --prompts=evaluation_metadata.jsonl --samples=4 \\
        --detector=mask2former --out=out/geneval
    python -m pdgen.evaluate inspection --checkpoint=shapes
    python -m pdgen.evaluate process --checkpoint=shapes --per_task=50
    python -m pdgen.evaluate wise --checkpoint=CHECKPOINT --prompts=wise.json --judge_url=http://localhost:8000/v1 \\
        --judge_model=Qwen3.5-35B-A3B --out=out/wise
    python -m pdgen.evaluate compbench --checkpoint=CHECKPOINT --prompts=numeracy_val.txt --detector=.. --out=..
    python -m pdgen.evaluate geneval2 --checkpoint=CHECKPOINT --prompts=geneval2_data.jsonl --judge_url=.. --out=..

`--generate_only` paints and does not score; `--score_only` scores the pictures in --out, of any system. A command that
is stopped goes on when it is given again with the same --out. What every figure means, what it costs and what it can be
compared with: `docs/evaluation.md`.
"""

from pdgen import startup as startup  # First: Ctrl-C while the rest is imported.

# isort: split
from collections.abc import Sequence
from typing import Any

from pdgen import flags as flags_lib
from pdgen.core import modes
from pdgen.evals import base, by_name, process, report_files


def main(arguments: Sequence[str] | None = None):
  """The command line."""
  parser = _parser()
  flags = parser.parse_args(arguments)
  with flags_lib.one_line_errors(parser.prog, debug=flags.debug) as kept:
    results = getattr(flags, 'results', None)
    half = 'generate' if flags.generate_only else 'score' if flags.score_only or results else 'both'
    if half != 'both' and not flags.out and not results:
      raise ValueError(f'--{half}_only needs --out, the folder of the pictures.')
    out = flags_lib.writable_folder(flags.out) if flags.out else None
    if arguments is None:
      flags_lib.enable_compilation_cache()
    painter, world = None, None
    if half != 'score':
      painter, world = flags_lib.load(parser, flags, needs_world=by_name.needs_world(flags))
    evaluator = by_name.EVALUATORS[flags.name](world, flags)
    if out is not None:
      kept.words = f'What is done is in {out}: the same command goes on from there.'
    scores = _run(evaluator, half, painter, out)
    if scores is None:
      return
    print(scores.table())
    if out is not None:
      report_files.write(out, scores)
      print(f'Figures, the rows that they come from, and a page: {out / report_files.JSON}, {out / report_files.PAGE}')


def _run(evaluator: Any, half: str, painter: Any, out: Any) -> base.Scores | None:
  """Both halves of an evaluation, or one. Returns the scores; None where nothing was scored."""
  if half == 'both':
    return evaluator.run(painter, out)
  if half == 'score':
    return evaluator.score(out)
  print(f'{evaluator.paint(painter, out)}. Pictures: {out}')
  return None


def _parser() -> flags_lib.Parser:
  parser = flags_lib.Parser(prog='python -m pdgen.evaluate', description=__doc__)
  count = flags_lib.whole(1, flags_lib.MANY)
  commands = parser.add_subparsers(required=True, metavar=' | '.join(by_name.EVALUATORS))
  subparsers = {
    name: commands.add_parser(name, help=text)
    for name, text in (
      ('geneval', 'do the pictures hold what the prompts ask for'),
      ('inspection', 'are errors noticed and fixed'),
      ('process', 'what the steps are worth: repair, damage, edit budgets, an oracle, cost'),
      ('wise', 'do the pictures show what one must know to understand the prompt'),
      ('compbench', 'T2I-CompBench++: counts, places'),
      ('geneval2', 'GenEval 2: Soft-TIFA by a judge'),
    )
  }
  for name, command in subparsers.items():
    command.set_defaults(name=name, generate_only=False, score_only=False)
    if name not in ('inspection', 'process'):
      half = command.add_mutually_exclusive_group()
      half.add_argument('--generate_only', action='store_true', help='paint, and score later or elsewhere')
      half.add_argument('--score_only', action='store_true', help='score the pictures in --out, of any system')
      command.add_argument('--mode', choices=modes.PAINTING, default='process', help='direct: one picture, no words')
      command.add_argument(
        '--prompts', type=flags_lib.path, required=name != 'geneval', help="the benchmark's file of prompts"
      )
    if name in ('geneval', 'compbench'):
      command.add_argument('--samples', type=count, default=1, help='pictures a prompt (official: 4; compbench 10)')
      command.add_argument('--detector', default='exact', help='exact (of the world), mask2former, opencv')
      command.add_argument('--detector_option', action='append', default=[], metavar='NAME=VALUE', help='of its `get`')
      command.add_argument('--world', help='of the exact detector, if not that of the checkpoint')
    if name in ('wise', 'geneval2'):
      by_name.add_judge(command)
    command.add_argument('--seed', type=flags_lib.whole(0, 2**32 - 1), default=0, help='of prompts and noise')
    command.add_argument('--batch_size', type=count, default=64, help='trajectories painted together')
    command.add_argument('--out', type=flags_lib.path, help='folder to write into, and to go on from')
    flags_lib.add_arguments(command)
  subparsers['geneval'].add_argument(
    '--per_task', type=count, default=100, help="without --prompts: held-out prompts of the checkpoint's world, a task"
  )
  subparsers['inspection'].add_argument(
    '--per_kind', type=count, default=100, help='drafts of each kind of error, and right ones'
  )
  subparsers['inspection'].add_argument('--drafts', type=count, default=500, help='drafts that the model paints itself')
  steps = subparsers['process']
  steps.add_argument('--per_task', type=count, default=50, help='held-out prompts a task')
  steps.add_argument('--settings', default=','.join(process.SETTINGS), help='of the sampler; edits_K: at most K edits')
  steps.add_argument('--prompts_seed', type=flags_lib.whole(0, 2**32 - 1), help='of the prompts, if not --seed')
  wise = subparsers['wise']
  wise.add_argument(
    '--version', choices=('legacy', 'verified'), default='legacy', help='0.7/0.2/0.1, or right and wrong'
  )
  wise.add_argument('--results', type=flags_lib.path, action='append', help="score someone's files of answers alone")
  wise.add_argument(
    '--wording', type=flags_lib.path, help='file of what the judge is asked, with {PROMPT}, {EXPLANATION}'
  )
  compbench = subparsers['compbench']
  compbench.add_argument('--category', choices=('numeracy', 'spatial'), help='if not as the name of --prompts says')
  compbench.add_argument('--objects', type=flags_lib.path, help="its new_objects.txt: 'cat - cats' a line")
  return parser


if __name__ == '__main__':
  main()
