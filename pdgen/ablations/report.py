"""What the tables say: ablations.json (all of it), ablations.md (tables), ablations.png (where matplotlib is there)."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from pdgen.ablations import figures, plot, settings, tasks
from pdgen.core import dataclass_io
from pdgen.evals import base, intervals

JSON, MARKDOWN, PLOT = 'ablations.json', 'ablations.md', 'ablations.png'
_PAPER = 'arXiv 2604.04746, BAGEL-7B on GenEval: not measured here'


def write(plan: tasks.Plan, out: pathlib.Path) -> str:
  """Writes the files from what is done so far. Returns what to tell: where they are, and what they rest on."""
  results, config = figures.results(plan), plan.config
  hours = core_hours(plan)
  base.write_atomically(out / JSON, json.dumps(to_json(results, config, hours), indent=1) + '\n')
  base.write_atomically(out / MARKDOWN, markdown(results, config, hours))
  told = f'Tables: {out / MARKDOWN}, {out / JSON}'
  if results and plot.is_there():
    plot.draw(results, out / PLOT)
    return f'{told}, {out / PLOT}'
  return f'{told} ({"no table is whole yet" if not results else "no plot"}: {plot.REMEDY if results else "go on"})'


def core_hours(plan: tasks.Plan) -> dict[str, float]:
  """Hours that the tasks that are done took, by kind; each ran on its share of the cores."""
  hours: dict[str, float] = dict.fromkeys(tasks.KINDS, 0.0)
  for task in plan.tasks:
    if task.is_done:
      hours[task.kind] += json.loads((task.folder / tasks.DONE).read_text())['seconds'] / 3600
  return {kind: round(spent, 3) for kind, spent in hours.items()}


def to_json(results: Sequence[figures.Result], config: settings.AblationsConfig, hours: dict[str, float]) -> dict:
  """All figures, the config they come from, and the hours."""
  tables = {}
  for one in results:
    tables[one.table.name] = {
      'title': one.table.title,
      'seeds': one.seeds,
      'lines': {
        line.label: {
          'arm': line.arm,
          'setting': line.setting,
          'values': {c: dataclasses.asdict(one.values[line.label, c]) for c in one.table.columns},
          'paper': dict(line.paper),
        }
        for line in one.table.lines
      },
      'differences': [{**dataclasses.asdict(d), 'verdict': d.verdict} for d in one.differences],
    }
  return {'config': dataclass_io.to_dict(config), 'core_hours': hours, 'paper': _PAPER, 'tables': tables}


def markdown(results: Sequence[figures.Result], config: settings.AblationsConfig, hours: dict[str, float]) -> str:
  """The tables, each with its differences and the paper's figures apart."""
  prompts = 6 * config.painting.per_task
  spent = ', '.join(f'{kind} {of:.1f}' for kind, of in hours.items())
  lines = [
    f'# {config.name}',
    '',
    f'{prompts} held-out prompts of the world {config.world}, the same for every model. {sum(hours.values()):.1f} '
    f'hours of processes on their share of the cores ({spent}).',
    '',
    '95 % intervals. Of values and of differences they hold for other prompts and other trainings (`over_seeds`); the '
    'second interval of a difference holds for these trained models alone.',
  ]
  for one in results:
    columns = one.table.columns
    rows = [[line.label, *(_cell(one.values[line.label, c]) for c in columns)] for line in one.table.lines]
    lines += ['', f'## {one.table.title}', '', f'Seeds: {one.seeds}.', '', *_table(('', *columns), rows)]
    rows = [
      [f'{d.line} − {d.against}', d.column, _signed(d.ours), _range(d.fixed), *_paper_cells(d)] for d in one.differences
    ]
    head = ('difference', 'figure', 'ours (prompts and trainings)', 'these models', "the paper's", 'direction')
    lines += ['', *_table(head, rows)]
    if any(line.paper for line in one.table.lines):
      shown = [c for c in columns if any(c in line.paper for line in one.table.lines)]
      rows = [
        [line.label, *(f'{line.paper[c]:g}' if c in line.paper else '-' for c in shown)] for line in one.table.lines
      ]
      lines += ['', f"The paper's figures ({_PAPER}):", '', *_table(('', *shown), rows)]
  return '\n'.join(lines) + '\n'


def _paper_cells(d: figures.Difference) -> tuple[str, str]:
  return ('-', '-') if d.paper is None else (f'{d.paper:+.2f}', d.verdict or 'no difference')


def _cell(e: intervals.Estimate) -> str:
  digits = 3 if abs(e.value) < 10 else 1
  return f'{e.value:.{digits}f} ({e.low:.{digits}f} to {e.high:.{digits}f})'


def _signed(e: intervals.Estimate) -> str:
  return f'{e.value:+.3f} ({e.low:+.3f} to {e.high:+.3f})'


def _range(e: intervals.Estimate) -> str:
  return f'{e.low:+.3f} to {e.high:+.3f}'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  return ['| ' + ' | '.join(line) + ' |' for line in [head, ['---'] * len(head), *rows]]
