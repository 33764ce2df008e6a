"""Figures of the tables from the rows of paintings: means over prompts and seeds, paired differences, their intervals.

A setting of a line says which paintings of a model count, and what they cost:

    free        in process mode, as the model likes
    no_edits    with `<refine>` forbidden
    best_own    without edits, again and again until the model's own inspections reject nothing, n times at most
    best_exact  without edits (or in one go), again and again until the picture is right, n times at most
    direct      in one go; more_steps: with more Euler steps
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pdgen.ablations import arms, tasks
from pdgen.evals import base, intervals

REPRODUCED, CONTRADICTED, UNDECIDED = 'as in the paper', 'against the paper', 'undecided'
COSTS = ('evaluations', 'tokens')


class Painted(NamedTuple):
  """What became of a prompt in a setting."""

  tag: str
  correct: float  # 0 or 1
  evaluations: float  # Euler steps of all pictures that were painted for it
  tokens: float  # written for it


@dataclasses.dataclass(frozen=True)
class Difference:
  """Two lines of a table, compared prompt by prompt and seed by seed."""

  line: str
  against: str
  column: str
  ours: intervals.Estimate
  fixed: intervals.Estimate  # over prompts alone: of these trained models, not of the recipes
  paper: float | None = None  # the paper's difference

  @property
  def verdict(self) -> str:
    """Whether the paper's direction is ours; empty where the paper has no figure."""
    if self.paper is None or not self.paper:
      return ''
    if self.ours.low <= 0 <= self.ours.high:
      return UNDECIDED
    return REPRODUCED if (self.ours.value > 0) == (self.paper > 0) else CONTRADICTED


@dataclasses.dataclass(frozen=True)
class Result:
  """A table with its figures."""

  table: arms.Table
  values: Mapping[tuple[str, str], intervals.Estimate]  # (label of the line, column)
  seeds: int  # that have all lines
  differences: Sequence[Difference]


def results(plan: tasks.Plan) -> list[Result]:
  """The tables of a plan, over the seeds that are done for all of their arms; without any, a table is left out."""
  config, found = plan.config, []
  read: Callable[[str, int], Mapping[str, list[Painted]]] = lambda arm, seed: settings_of(plan, arm, seed)
  for name in config.tables:
    table = arms.TABLES[name]
    seeds = [s for s in config.seeds if all(_is_done(plan, arm, s) for arm in table.arms)]
    if seeds:
      rows = {(arm, seed): read(arm, seed) for arm in table.arms for seed in seeds}
      found.append(result(table, {k: [rows[k.arm, s][k.setting] for s in seeds] for k in table.lines}))
  return found


def result(table: arms.Table, rows: Mapping[arms.Line, Sequence[Sequence[Painted]]]) -> Result:
  """The figures of a table.

  Args:
    table: its lines.
    rows: of each line the paintings of each seed, prompts in the same order everywhere.
  """
  values = {
    (line.label, column): _value(column, _column(rows[line], column))
    for line in table.lines
    for column in table.columns
  }
  differences = []
  for a, b in table.pairs:
    one, other = table.lines[a], table.lines[b]
    for column in (c for c in table.columns if c not in COSTS):
      gap = _column(rows[one], column) - _column(rows[other], column)
      paper = one.paper[column] - other.paper[column] if column in one.paper and column in other.paper else None
      ours, fixed = (intervals.over_seeds(g, extremes=(-1, 1)) for g in (gap, gap.mean(axis=0, keepdims=True)))
      differences.append(Difference(one.label, other.label, column, ours, fixed, paper))
  return Result(table, values, len(next(iter(rows.values()))), differences)


def settings_of(plan: tasks.Plan, arm: str, seed: int) -> dict[str, list[Painted]]:
  """The paintings of a model by setting."""
  scores = [task.folder / 'scores' for task in plan.paintings(arm, seed)]
  if arm == arms.DIRECT:
    flow_steps, more = plan.config.direct.sampling.flow_steps, plan.config.painting.more_flow_steps
    first, second = (_pictures(folder) for folder in scores)
    return {
      'direct': [_direct(samples[:1], flow_steps) for samples in first],
      'more_steps': [_direct(samples[:1], more) for samples in second],
      'best_exact': [_direct(samples, flow_steps) for samples in first],
    }
  flow_steps = plan.config.process.sampling.flow_steps
  free, forbidden = ([_rows(folder, name) for folder in scores] for name in ('free', 'edits_0'))
  prompts = range(len(free[0]))
  return {
    'free': [_painted([row], flow_steps) for row in free[0]],
    'no_edits': [_painted([row], flow_steps) for row in forbidden[0]],
    'best_own': [best_own([f[i] for f in free], [n[i] for n in forbidden], flow_steps) for i in prompts],
    'best_exact': [_until([n[i] for n in forbidden], lambda row: row['correct'], flow_steps) for i in prompts],
  }


def best_own(free: Sequence[Mapping], forbidden: Sequence[Mapping], flow_steps: int) -> Painted:
  """The first painting that the model does not reject, else the last one, as it is without edits.

  What is rejected costs its pictures up to the rejected one, with its words.

  Args:
    free: rows of `evals.process` of one prompt, one a seed of the noise, as the model likes.
    forbidden: the same with edits forbidden.
    flow_steps: Euler steps a picture.
  """
  evaluations = tokens = 0.0
  for number, (row, without) in enumerate(zip(free, forbidden, strict=True)):
    rejected = next((i for i, step in enumerate(row['steps']) if step['rejected']), None)
    if rejected is None or number == len(free) - 1:
      return Painted(
        row['tag'],
        float(without['correct']),
        evaluations + without['pictures'] * flow_steps,
        tokens + without['tokens'],
      )
    evaluations += (rejected + 1) * flow_steps
    tokens += row['tokens'] * (rejected + 1) / max(1, row['pictures'])
  raise ValueError('There is no painting to choose from.')


def _until(rows: Sequence[Mapping], stops: Callable[[Mapping], bool], flow_steps: int) -> Painted:
  """The first row that stops the search, else the last; with what all up to it have cost."""
  number = next((i for i, row in enumerate(rows) if stops(row)), len(rows) - 1)
  return _painted(rows[: number + 1], flow_steps)


def _painted(rows: Sequence[Mapping], flow_steps: int) -> Painted:
  pictures, tokens = (sum(row[name] for row in rows) for name in ('pictures', 'tokens'))
  return Painted(rows[-1]['tag'], float(rows[-1]['correct']), pictures * flow_steps, tokens)


def _direct(samples: Sequence[Mapping], flow_steps: int) -> Painted:
  rows = [{**row, 'pictures': 1, 'tokens': 0} for row in samples]
  return _until(rows, lambda row: row['correct'], flow_steps)


def _rows(folder: pathlib.Path, setting: str) -> list[dict[str, Any]]:
  rows = base.read_rows(folder / f'{setting}.jsonl', 'number', 'tag', 'correct', 'pictures', 'tokens', 'steps')
  return sorted(rows, key=lambda row: row['number'])


def _pictures(folder: pathlib.Path) -> list[list[dict[str, Any]]]:
  """Rows of a GenEval folder: of each prompt its samples, in order."""
  rows = json.loads((folder / 'scores.json').read_text())['rows']
  of = collections.defaultdict(list)
  for row in sorted(rows, key=lambda row: row['filename']):
    of[row['filename'].split('/')[0]].append(row)
  return list(of.values())


def _column(rows: Sequence[Sequence[Painted]], column: str) -> np.ndarray:
  """f64[seeds, prompts]: the values of a column; of a task, those of its prompts."""
  if column in COSTS:
    return np.array([[getattr(p, column) for p in of] for of in rows], np.float64)
  return np.array([[p.correct for p in of if column in ('overall', p.tag)] for of in rows], np.float64)


def _value(column: str, of: np.ndarray) -> intervals.Estimate:
  if column in COSTS:
    return intervals.over_seeds(of)
  e = intervals.over_seeds(of, extremes=(0, 1))
  return dataclasses.replace(e, low=max(0.0, e.low), high=min(1.0, e.high))


def _is_done(plan: tasks.Plan, arm: str, seed: int) -> bool:
  return all(task.is_done for task in plan.paintings(arm, seed))
