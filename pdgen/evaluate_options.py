"""Options of `pdgen.evaluate`, a subcommand an evaluator (`evals.by_name`)."""

from collections.abc import Mapping

from pdgen import flags as flags_lib
from pdgen.core import modes
from pdgen.evals import by_name, process

ABLATIONS = 'ablations'  # No evaluator of a checkpoint: it trains its own (`ablations`).
_HELP = {
  'geneval': 'do the pictures hold what the prompts ask for',
  'inspection': 'are errors noticed and fixed',
  'process': 'what the steps are worth: repair, damage, edit budgets, an oracle, cost',
  'knowledge': 'do the pictures show what a fact in the prompt resolves to',
  'wise': 'do the pictures show what one must know to understand the prompt',
  'compbench': 'T2I-CompBench++: counts, places',
  'geneval2': 'GenEval 2: Soft-TIFA by a judge',
}
_COUNT, _SEED = flags_lib.whole(1, flags_lib.MANY), flags_lib.whole(0, 2**32 - 1)


def parser(prog: str, description: str | None) -> flags_lib.Parser:
  """The parser of the command.

  Args:
    prog: name of the command.
    description: its help.
  """
  made = flags_lib.Parser(prog=prog, description=description)
  commands = made.add_subparsers(required=True, metavar=' | '.join([*by_name.EVALUATORS, ABLATIONS]))
  subparsers = {name: commands.add_parser(name, help=_HELP[name]) for name in by_name.EVALUATORS}
  for name, command in subparsers.items():
    _add_shared(name, command)
  _add_own(subparsers)
  tables = commands.add_parser(ABLATIONS, help="the paper's tables in the small: trains and scores what they need")
  tables.set_defaults(name=ABLATIONS)
  tables.add_argument(
    '--config', type=flags_lib.path, required=True, help='file with get_config(), as FILE or FILE:quick'
  )
  tables.add_argument('--out', type=flags_lib.path, required=True, help='folder of everything, and to go on from')
  tables.add_argument('--jobs', type=flags_lib.whole(1, 256), default=1, help='processes side by side, on a core each')
  tables.add_argument('--dry_run', action='store_true', help='print the tasks, their commands and their time')
  tables.add_argument('--debug', action='store_true', help='show tracebacks')
  return made


def _add_shared(name: str, command: flags_lib.Parser):
  """Options that several evaluators have."""
  command.set_defaults(name=name, generate_only=False, score_only=False)
  if name not in ('inspection', 'process', 'knowledge'):
    half = command.add_mutually_exclusive_group()
    half.add_argument('--generate_only', action='store_true', help='paint, and score later or elsewhere')
    half.add_argument('--score_only', action='store_true', help='score the pictures in --out, of any system')
    command.add_argument(
      '--prompts', type=flags_lib.path, required=name != 'geneval', help="the benchmark's file of prompts"
    )
  if name not in ('inspection', 'process'):
    command.add_argument('--mode', choices=modes.PAINTING, default='process', help='direct: one picture, no words')
  if name in ('geneval', 'compbench'):
    command.add_argument('--samples', type=_COUNT, default=1, help='pictures a prompt (official: 4; compbench 10)')
    command.add_argument('--detector', default='exact', help='exact (of the world), mask2former, opencv')
    command.add_argument('--detector_option', action='append', default=[], metavar='NAME=VALUE', help='of its `get`')
  if name in ('geneval', 'compbench', 'process', 'knowledge'):
    command.add_argument('--world', help='of prompts and exact detector, if not that of the checkpoint')
  if name in ('wise', 'geneval2'):
    by_name.add_judge(command)
  command.add_argument('--seed', type=_SEED, default=0, help='of prompts and noise')
  command.add_argument('--batch_size', type=_COUNT, default=64, help='trajectories painted together')
  command.add_argument('--out', type=flags_lib.path, help='folder to write into, and to go on from')
  flags_lib.add_arguments(command)


def _add_own(subparsers: Mapping[str, flags_lib.Parser]):
  """Options of single evaluators."""
  subparsers['geneval'].add_argument(
    '--per_task', type=_COUNT, default=100, help="without --prompts: held-out prompts of the checkpoint's world, a task"
  )
  subparsers['inspection'].add_argument(
    '--per_kind', type=_COUNT, default=100, help='drafts of each kind of error, and right ones'
  )
  subparsers['inspection'].add_argument(
    '--drafts', type=_COUNT, default=500, help='drafts that the model paints itself'
  )
  steps = subparsers['process']
  steps.add_argument('--per_task', type=_COUNT, default=50, help='held-out prompts a task')
  steps.add_argument('--settings', default=','.join(process.SETTINGS), help='of the sampler; edits_K: at most K edits')
  steps.add_argument('--prompts_seed', type=_SEED, help='of the prompts, if not --seed')
  subparsers['knowledge'].add_argument(
    '--per_kind', type=_COUNT, default=50, help='prompts of each kind of fact and split (and as many plain ones)'
  )
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
