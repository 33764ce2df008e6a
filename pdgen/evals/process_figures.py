"""Figures of `evals.process` from its rows: rates, means and paired differences, each with a 95 % interval; a table."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from pdgen.core import config as config_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import intervals

Row = Mapping[str, Any]
Values = dict[str, intervals.Estimate]


def figures(
  rows: Mapping[str, Sequence[Row]], *, sampling: config_lib.SamplingConfig, references: Sequence[str]
) -> Values:
  """Figures by name, `<setting>/<figure>`.

    accuracy                        right paintings, mean over tasks; Wilson, square-and-add
    gain, repair, damage            against the first reference, prompt by prompt: right more often; right of those
                                    wrong there; wrong of those right there. Against another one: gain/NAME, ..
    finished, well_formed           ended by themselves; of whole form, too
    edits, pictures, tokens         of a painting
    evaluations                     velocities of a painting (the paper's 131 = 2.62 x 50)
    seconds                         of a picture, all counted; batches that compiled are left out
    drafts_right, refined_right     steps
    recall, recall/KIND, precision  of `<refine>`: wrong drafts that are rejected; rejected drafts that are wrong
    false_alarms                    right drafts that are rejected
    fixed, spoiled                  wrong drafts with a right refined picture; right ones with a wrong refined picture
    own_repair, own_damage          paintings with a wrong draft that end right; without one that end wrong

  A last draft that a cap left without an inspection is no step. Rates of steps: `intervals.cautious_rate`; means and
  gains: bootstrap over prompts.

  Args:
    rows: of `evals.process.Process`, by setting; the same prompts in each.
    sampling: what a picture takes.
    references: settings that the others are compared with; those that are absent are left out.
  """
  values: Values = {}
  for setting, of in rows.items():
    values |= {f'{setting}/{name}': e for name, e in _paintings(of, sampling).items()}
    for reference in references:
      if setting != reference and reference in rows:
        end = '' if reference == references[0] else f'/{reference}'
        values |= {f'{setting}/{name}{end}': e for name, e in _paired(of, rows[reference]).items()}
    values |= {f'{setting}/{name}': e for name, e in _steps(of).items()}
  return values


def _paintings(rows: Sequence[Row], sampling: config_lib.SamplingConfig) -> Values:
  tasks = collections.defaultdict(list)
  for row in rows:
    tasks[row['tag']].append(row['correct'])
  draft, refined = (sampling.evaluations(refined=refined) for refined in (False, True))
  evaluations = [(row['pictures'] - row['edits']) * draft + row['edits'] * refined for row in rows]
  timed = [row for row in rows if row['seconds'] is not None]
  return {
    'accuracy': intervals.mean_of_rates([intervals.rate(answers) for answers in tasks.values()]),
    'finished': intervals.rate(row['stop'] == trajectory_lib.FINISHED for row in rows).estimate,
    'well_formed': intervals.rate(row['well_formed'] for row in rows).estimate,
    **{name: intervals.ratio([row[name] for row in rows]) for name in ('edits', 'pictures', 'tokens')},
    'evaluations': intervals.ratio(evaluations),
    'seconds': intervals.ratio([row['seconds'] for row in timed], [row['pictures'] for row in timed]),
  }


def _paired(rows: Sequence[Row], reference: Sequence[Row]) -> Values:
  pairs = [(row['correct'], other['correct']) for row, other in zip(rows, reference, strict=True)]
  return {
    'gain': intervals.ratio([int(now) - int(then) for now, then in pairs]),
    'repair': intervals.rate(now for now, then in pairs if not then).estimate,
    'damage': intervals.rate(not now for now, then in pairs if then).estimate,
  }


def _steps(rows: Sequence[Row]) -> Values:
  """Figures of steps; none where the steps were not judged."""
  prompts = [[step for step in row['steps'] if _counts(step, row)] for row in rows]
  if any(step['errors'] is None for steps in prompts for step in steps):
    return {}
  is_wrong = lambda step: bool(step['errors'])

  def of(hit, among) -> intervals.Estimate:
    chosen = [[step for step in steps if among(step)] for steps in prompts]
    return intervals.cautious_rate([sum(map(hit, steps)) for steps in chosen], [len(steps) for steps in chosen])

  rejected = lambda step: step['rejected']
  fixed = lambda step: step['refined'] == []
  spoiled = lambda step: bool(step['refined'])
  kinds = sorted({kind for steps in prompts for step in steps for kind in step['errors']})
  firsts = [(any(map(is_wrong, steps)), row['correct']) for steps, row in zip(prompts, rows, strict=True)]
  return {
    'own_repair': intervals.rate(correct for wrong, correct in firsts if wrong).estimate,
    'own_damage': intervals.rate(not correct for wrong, correct in firsts if not wrong).estimate,
    'drafts_right': of(lambda step: not is_wrong(step), lambda step: True),
    'refined_right': of(fixed, lambda step: step['refined'] is not None),
    'recall': of(rejected, is_wrong),
    **{f'recall/{kind}': of(rejected, lambda step, kind=kind: kind in step['errors']) for kind in kinds},
    'precision': of(is_wrong, rejected),
    'false_alarms': of(rejected, lambda step: not is_wrong(step)),
    'fixed': of(fixed, is_wrong),
    'spoiled': of(spoiled, lambda step: not is_wrong(step)),
  }


def _counts(step: Mapping[str, Any], row: Row) -> bool:
  is_cut = row['stop'] != trajectory_lib.FINISHED and step is row['steps'][-1] and not step['inspected']
  return not is_cut


# --- for people ---

_PAINTINGS = ('accuracy', 'gain', 'repair', 'damage', 'finished', 'well_formed')
_APPROVED = ('gain/approved', 'repair/approved', 'damage/approved', 'own_repair', 'own_damage')
_COST = ('edits', 'pictures', 'evaluations', 'tokens', 'seconds')
_STEPS = ('drafts_right', 'refined_right', 'recall', 'precision', 'false_alarms', 'fixed', 'spoiled')


def table(values: Mapping[str, intervals.Estimate], settings: Sequence[str]) -> str:
  """Tables with a line a setting, or a kind of error, and a column a figure."""
  parts = [
    ('Paintings; gain, repair and damage against edits_0', _grid(values, settings, _PAINTINGS)),
    ('Paintings; against approved, and against their own drafts', _grid(values, settings, _APPROVED)),
    ('Cost of a painting; seconds of a picture', _grid(values, settings, _COST)),
    ('Steps', _grid(values, settings, _STEPS)),
    ('Wrong drafts that are rejected, by kind of error', _kinds(values, settings)),
  ]
  return '\n\n'.join('\n'.join([title, *lines]) for title, lines in parts if lines)


def _grid(values: Mapping[str, intervals.Estimate], lines: Sequence[str], columns: Sequence[str]) -> list[str]:
  if not any(f'{line}/{column}' in values for line in lines for column in columns):
    return []
  cells = [['', *columns]]
  cells += [[line, *(_cell(values.get(f'{line}/{column}')) for column in columns)] for line in lines]
  widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
  return ['  '.join(f'{cell:<{w}}' for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def _kinds(values: Mapping[str, intervals.Estimate], settings: Sequence[str]) -> list[str]:
  found = sorted({name.split('/recall/')[1] for name in values if '/recall/' in name})
  turned = {f'{kind}/{setting}': values.get(f'{setting}/recall/{kind}') for kind in found for setting in settings}
  return _grid({name: e for name, e in turned.items() if e is not None}, found, settings)


def _cell(e: intervals.Estimate | None) -> str:
  if e is None or not e.count:
    return '-'
  digits = 3 if abs(e.value) < 10 else 1
  return f'{e.value:.{digits}f} ({e.low:.{digits}f} to {e.high:.{digits}f}) of {e.count}'
