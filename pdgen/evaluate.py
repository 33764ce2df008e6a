"""Scores a checkpoint on prompts and errors that were kept from training.

    python -m pdgen.evaluate geneval --checkpoint=shapes --per_task=100
    python -m pdgen.evaluate inspection --checkpoint=shapes
    python -m pdgen.evaluate process --checkpoint=shapes --per_task=50

`geneval`: do the pictures hold what the prompts ask for, by the official rules; --out gets the official folder layout.
`inspection`: does the model notice errors, injected ones and those of its own drafts, does it fix them, and what does
it reject that is right.
`process`: what are the steps worth: repaired and damaged paintings, accuracy by edit budget, an oracle's upper bound,
and the cost. All intervals are of 95 %.

A command that is stopped goes on when it is given again with the same --out.
"""

from pdgen import startup as startup  # First: Ctrl-C while the rest is imported.

# isort: split
import argparse
import json
from collections.abc import Sequence
from typing import Any

from pdgen import flags as flags_lib
from pdgen import judges, worlds
from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import base, geneval, inspection, process
from pdgen.worlds import base as world_base


def main(arguments: Sequence[str] | None = None):
  """The command line."""
  parser = _parser()
  flags = parser.parse_args(arguments)
  with flags_lib.one_line_errors(parser.prog, debug=flags.debug) as kept:
    out = flags_lib.writable_folder(flags.out) if flags.out else None
    if arguments is None:
      flags_lib.enable_compilation_cache()
    painter, world = flags_lib.load(parser, flags)
    evaluator: base.Evaluator = flags.evaluator(world, flags)
    if out is not None:
      kept.words = f'What is done is in {out}: the same command goes on from there.'
    scores = evaluator.run(painter, out)
    print(scores.table())
    if out is not None:
      base.write_atomically(out / 'scores.json', json.dumps(scores.to_json(), indent=2) + '\n')
      print(f'Figures, and the rows that they come from: {out / "scores.json"}')


def geneval_of(world: Any, flags: argparse.Namespace) -> base.Evaluator:
  """GenEval on `flags.per_task` held-out prompts a task, judged by the world's exact detector."""
  rows = worlds.require(world, world_base.JudgedWorld).prompts('heldout', per_task=flags.per_task, seed=flags.seed)
  return geneval.GenEval(
    prompts=base.PromptSet(f'{world.__name__}:heldout', tuple(rows)),
    detector=judges.detector('exact', world),
    mode=flags.mode,
    seed=flags.seed,
    batch_size=flags.batch_size,
    checkpoint=flags.checkpoint,
  )


def inspection_of(world: Any, flags: argparse.Namespace) -> base.Evaluator:
  """Injected errors of every kind of the world, then the model's own drafts."""
  worlds.require(world, world_base.InspectedWorld)
  return inspection.Inspection(
    drafts=lambda kind, seed, index: world.injected(kind, seed=seed, index=index),
    judge=judges.judge('exact', world),
    kinds=tuple(world.ERROR_KINDS),
    per_kind=flags.per_kind,
    own_drafts=flags.drafts,
    seed=flags.seed,
    batch_size=flags.batch_size,
    checkpoint=flags.checkpoint,
    questions=world.__name__,
  )


def process_of(world: Any, flags: argparse.Namespace) -> base.Evaluator:
  """The same held-out prompts and seeds under `flags.settings`; steps are judged where the world can inspect them."""
  seed = flags.seed if flags.prompts_seed is None else flags.prompts_seed
  rows = worlds.require(world, world_base.JudgedWorld).prompts('heldout', per_task=flags.per_task, seed=seed)
  return process.Process(
    prompts=base.PromptSet(f'{world.__name__}:heldout', tuple(rows)),
    detector=judges.detector('exact', world),
    inspect=getattr(world, 'inspect', None),
    settings=tuple(name.strip() for name in flags.settings.split(',')),
    seed=flags.seed,
    batch_size=flags.batch_size,
    checkpoint=flags.checkpoint,
  )


def _parser() -> flags_lib.Parser:
  parser = flags_lib.Parser(prog='python -m pdgen.evaluate', description=__doc__)
  count = flags_lib.whole(1, flags_lib.MANY)
  commands = parser.add_subparsers(required=True, metavar='geneval | inspection | process')

  one = commands.add_parser('geneval', help='do the pictures hold what the prompts ask for')
  one.set_defaults(evaluator=geneval_of)
  one.add_argument('--per_task', type=count, default=100, help='held-out prompts a task')
  one.add_argument('--mode', choices=trajectory_lib.MODES, default='process', help='direct: one picture, no words')

  two = commands.add_parser('inspection', help='are errors noticed and fixed')
  two.set_defaults(evaluator=inspection_of)
  two.add_argument('--per_kind', type=count, default=100, help='drafts of each kind of error, and right ones')
  two.add_argument('--drafts', type=count, default=500, help='drafts that the model paints itself')

  three = commands.add_parser('process', help='what the steps are worth: repair, damage, edit budgets, an oracle, cost')
  three.set_defaults(evaluator=process_of)
  three.add_argument('--per_task', type=count, default=50, help='held-out prompts a task')
  three.add_argument('--settings', default=','.join(process.SETTINGS), help='of the sampler; edits_K: at most K edits')
  three.add_argument('--prompts_seed', type=flags_lib.whole(0, 2**32 - 1), help='of the prompts, if not --seed')

  for command in (one, two, three):
    command.add_argument('--seed', type=flags_lib.whole(0, 2**32 - 1), default=0, help='of prompts and noise')
    command.add_argument('--batch_size', type=count, default=64, help='trajectories painted together')
    command.add_argument('--out', type=flags_lib.path, help='folder to write into, and to go on from')
    flags_lib.add_arguments(command)
  return parser


if __name__ == '__main__':
  main()
