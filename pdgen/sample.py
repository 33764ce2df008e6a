"""Paints prompts with a checkpoint, edits pictures and answers questions about them.

    python -m pdgen.sample --checkpoint=shapes --prompt='a photo of a red ring and a blue square' --out=out/sample
    python -m pdgen.sample --checkpoint=bagel --picture=in.jpg --prompt='make it night' --mode=edit --out=out/edit

prints what was planned, seen and refined, and writes a page to look at, the pictures and the texts, batch by batch. In
Python `pdgen.load('shapes').sample(prompts)` does the same without files.
"""

from pdgen import startup as startup  # First: Ctrl-C while the rest is imported.

# isort: split
import pathlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pdgen import flags as flags_lib
from pdgen import prompt_flags
from pdgen.core import modes
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import images
from pdgen.evals import geneval
from pdgen.viewing import gallery, report

if TYPE_CHECKING:
  from pdgen.inference import results


def main(arguments: Sequence[str] | None = None):
  """The command line."""
  parser = _parser()
  flags = parser.parse_args(arguments)
  if not flags.asked and not flags.heldout:
    parser.error('nothing to paint: give --prompt=... (as often as you like) or --heldout=1')
  with flags_lib.one_line_errors(parser.prog, debug=flags.debug) as kept:
    out = flags_lib.writable_folder(flags.out) if flags.out else None
    if arguments is None:
      flags_lib.enable_compilation_cache()
    painter, world = flags_lib.load(parser, flags, needs_world=bool(flags.heldout))
    detect = world.detect if world else None
    wanted = [_asked(_row(p, world)) if isinstance(p, str) else p for p in prompt_flags.read(flags.asked)]
    wanted += map(_asked, world.prompts('heldout', per_task=flags.heldout) if world and flags.heldout else [])
    folder = report.Folder(out, title=f'Painted by {pathlib.Path(flags.checkpoint).name}') if out else None

    def write(batches: 'Iterator[tuple[list[int], results.Result]]') -> 'Iterator[tuple[list[int], results.Result]]':
      done = 0
      for numbers, batch in batches:
        done += len(numbers)
        if folder:
          page = folder.add(batch.trajectories, [_verdict(t, detect) for t in batch.trajectories])
          kept.words = f'{done} of {len(wanted)} trajectories are in {page}'
        yield numbers, batch

    from pdgen.inference import results

    size = images.size_of_aspect(flags.size, painter.config.model) if isinstance(flags.size, float) else flags.size
    settings = dict(mode=flags.mode, seed=flags.seed, batch_size=flags.batch_size, size=size)
    batches = painter.sample_batches(wanted, **settings)
    result = results.join(write(batches))
    verdicts = [_verdict(t, detect) for t in result.trajectories]
    print(report.summary(result.trajectories, verdicts, timings=result.timings, detect=detect))
    if folder:
      print(f'\nTo look at: {folder.page}')
    if result.not_finite:
      parser.exit(1)  # A warning has said why.


def _parser() -> flags_lib.Parser:
  parser = flags_lib.Parser(prog='python -m pdgen.sample', description=__doc__)
  prompt_flags.add(parser)
  parser.add_argument(
    '--heldout',
    type=flags_lib.whole(0, flags_lib.MANY),
    default=0,
    metavar='N',
    help="N prompts a task that the model's world kept from training",
  )
  words = 'process: with words; direct: without; edit: of a picture; answer; think: before it paints; free; the others '
  words += 'are the protocols of models of those names'
  parser.add_argument('--mode', choices=trajectory_lib.MODES, default='process', help=words)
  parser.add_argument(
    '--seed',
    type=flags_lib.whole(0, 2**32 - 1),
    default=0,
    help='of the first prompt; the next prompts take the next numbers',
  )
  add = parser.add_mutually_exclusive_group().add_argument
  add('--size', type=images.read_size, metavar='WIDTHxHEIGHT', help='of the pictures to paint, in pixels')
  add('--aspect', type=images.read_aspect, dest='size', metavar='W:H', help='of them, at about the usual area')
  parser.add_argument('--batch_size', type=flags_lib.whole(1, flags_lib.MANY), help='trajectories painted together')
  parser.add_argument('--out', type=flags_lib.path, help='folder for index.html, trajectories.json and pictures/')
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
  if trajectory.spec is None or detect is None or not modes.of(trajectory.mode).paints:
    return None
  if not trajectory.pictures:
    return False, 'no picture'
  right, reason = geneval.evaluate(trajectory.spec.to_row(trajectory.prompt), detect(trajectory.final))
  return right, 'shows what is asked for' if right else reason.replace('\n', '; ')


if __name__ == '__main__':
  main()
