"""Scores a checkpoint on prompts and errors that were kept from training, and on public benchmarks.

    python -m pdgen.evaluate geneval --checkpoint=shapes --per_task=100
    python -m pdgen.evaluate geneval --checkpoint=CHECKPOINT --prompts=evaluation_metadata.jsonl --samples=4 \\
        --detector=mask2former --out=out/geneval
    python -m pdgen.evaluate inspection --checkpoint=shapes
    python -m pdgen.evaluate process --checkpoint=shapes --per_task=50
    python -m pdgen.evaluate knowledge --checkpoint=out/shapes_knowledge --per_kind=50
    python -m pdgen.evaluate wise --checkpoint=CHECKPOINT --prompts=wise.json --judge_url=http://localhost:8000/v1 \\
        --judge_model=Qwen3.5-35B-A3B --out=out/wise
    python -m pdgen.evaluate compbench --checkpoint=CHECKPOINT --prompts=numeracy_val.txt --detector=.. --out=..
    python -m pdgen.evaluate geneval2 --checkpoint=CHECKPOINT --prompts=geneval2_data.jsonl --judge_url=.. --out=..
    python -m pdgen.evaluate ablations --config=configs/ablations.py --out=out/ablations --jobs=2

`--generate_only` paints and does not score; `--score_only` scores the pictures in --out, of any system. A command that
is stopped goes on when it is given again with the same --out. What every figure means, what it costs and what it can be
compared with: `docs/evaluation.md`.
"""

from pdgen import startup as startup  # First: Ctrl-C while the rest is imported.

# isort: split
import pathlib
from collections.abc import Sequence
from typing import Any

from pdgen import evaluate_options
from pdgen import flags as flags_lib
from pdgen.evals import base, by_name, report_files


def main(arguments: Sequence[str] | None = None):
  """The command line."""
  parser = evaluate_options.parser('python -m pdgen.evaluate', __doc__)
  flags, rest = parser.parse_known_args(arguments)
  if unknown := [w for w in rest if flags.name != evaluate_options.ABLATIONS or not w.startswith('--config.')]:
    parser.error(f'unrecognized arguments: {" ".join(unknown)}')
  with flags_lib.one_line_errors(parser.prog, debug=flags.debug) as kept:
    if flags.name == evaluate_options.ABLATIONS:
      _ablations(flags, rest, kept)
      return
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


def _ablations(flags: Any, overrides: Sequence[str], kept: flags_lib.Kept):
  """The paper's tables in the small: everything that they need, as far as it is not done."""
  with startup.importing():
    from pdgen.ablations import report, runner, settings, tasks

  config = settings.from_config_dict(flags_lib.config_file(flags.config, overrides))
  out = pathlib.Path(flags.out)
  plan = tasks.plan(config, out)
  if flags.dry_run:
    print(runner.described(plan, runner.rates(plan, out), jobs=flags.jobs))
    return
  flags_lib.writable_folder(out)
  kept.words = f'What is done is in {out}: the same command goes on from there.'
  try:
    runner.run(plan, out, jobs=flags.jobs, say=lambda words: print(words, flush=True))
  finally:  # Stopped, too: the tables of the seeds that are whole.
    told = report.write(plan, out)
  print(told)


def _run(evaluator: Any, half: str, painter: Any, out: Any) -> base.Scores | None:
  """Both halves of an evaluation, or one. Returns the scores; None where nothing was scored."""
  if half == 'both':
    return evaluator.run(painter, out)
  if half == 'score':
    return evaluator.score(out)
  print(f'{evaluator.paint(painter, out)}. Pictures: {out}')
  return None


if __name__ == '__main__':
  main()
