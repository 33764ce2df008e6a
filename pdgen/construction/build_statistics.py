"""Statistics of built subsets beside the paper's Table 1: samples, pictures, prompts, kinds, rejections, cost."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pdgen.construction import build_config, tools, traces
from pdgen.construction.importers import run
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import records, splits

PAPER: dict[str, dict[str, str]] = {
  build_config.MULTI_TURN: {
    'samples': '32,012',
    'pictures, mean': '3.51',
    'pictures, most': '5',
    'prompt, characters': '152.8 (unit not said)',
  },
  build_config.CONFLICT: {'samples': '15,201', '+': '6,905', '-': '8,296'},
  build_config.ALIGNMENT: {'samples': '15,000', '+': '5,000', '-': '10,000'},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
  """Figures of the record sets of one folder."""

  subset: str  # Kind of most of its trajectories.
  samples: int
  negative: int  # With an error: `Provenance.errors`.
  splits: dict[str, int]
  pictures: float  # Mean.
  most_pictures: int
  characters: float  # Of a prompt, mean.
  words: float  # Of a prompt, mean.
  sources: dict[str, int]  # `Provenance.source`: constructed, injected, self_sampled, ..
  prompts: dict[str, int]  # Whence the prompts.
  errors: dict[str, int]  # Kinds.
  detours: dict[str, int]
  rejected: dict[str, int]  # Attempts, by category.
  traces: dict[str, int]  # Of a model's own: right, conflict, unused; {} without.
  calls: int
  tokens: int
  money: float


def of(folder: pathlib.Path) -> Statistics:
  """The figures of a build or an import.

  Raises: FileNotFoundError for a folder without record sets; ValueError for damaged ones.
  """
  folder = pathlib.Path(folder)
  sets = {split: records.Reader(folder / split) for split in splits.SPLITS if records.exists(folder / split)}
  if not sets:
    sets = {'all': records.Reader(folder)}
  made = [_Row.of(reader[i]) for reader in sets.values() for i in range(len(reader))]
  reasons = []
  if (folder / run.REJECTED).exists():
    lines = (folder / run.REJECTED).read_text(encoding='utf-8').splitlines()
    reasons = [json.loads(line)['reason'] for line in lines]
  verdicts = traces.verdicts(folder / traces.FOLDER) if records.exists(folder / traces.FOLDER) else []
  kinds = _counted(row.kind for row in made)
  return Statistics(
    subset=next(iter(kinds), ''),
    samples=len(made),
    negative=sum(bool(row.errors) for row in made),
    splits={name: len(reader) for name, reader in sets.items()},
    pictures=_mean(made, lambda row: row.pictures),
    most_pictures=max((row.pictures for row in made), default=0),
    characters=_mean(made, lambda row: row.characters),
    words=_mean(made, lambda row: row.words),
    sources=_counted(row.source for row in made),
    prompts=_counted(row.prompt for row in made if row.prompt),
    errors=_counted(error for row in made for error in row.errors),
    detours=_counted(row.detour for row in made if row.detour),
    rejected=tools.categories(reasons),
    traces=_counted(verdict['verdict'] for verdict in verdicts),
    calls=sum(row.cost.calls for row in made),
    tokens=sum(row.cost.tokens for row in made),
    money=round(sum(row.cost.money for row in made), 4),
  )


def table(statistics: Sequence[Statistics]) -> str:
  """The figures, a column a folder, and the paper's beside those of its subsets."""
  columns = []
  for one in statistics:
    columns.append((one.subset, _figures(one)))
    if one.subset in PAPER:
      columns.append(('paper', PAPER[one.subset]))
  names = list(dict.fromkeys(name for _, figures in columns for name in figures))
  rows = [['', *(head for head, _ in columns)]]
  rows += [[name, *(figures.get(name, '') for _, figures in columns)] for name in names]
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return '\n'.join(
    '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
  )


def _figures(one: Statistics) -> dict[str, str]:
  listed = lambda counts: ', '.join(f'{name} {count:,}' for name, count in counts.items()) or '-'
  figures = {
    'samples': f'{one.samples:,}',
    '+': f'{one.samples - one.negative:,}',
    '-': f'{one.negative:,}',
    'pictures, mean': f'{one.pictures:.2f}',
    'pictures, most': f'{one.most_pictures}',
    'prompt, characters': f'{one.characters:.1f}',
    'prompt, words': f'{one.words:.1f}',
    'splits': listed(one.splits),
    'made': listed(one.sources),
    'prompts': listed(one.prompts),
    'errors': listed(one.errors),
    'detours': listed(one.detours),
    'rejected': listed(one.rejected),
    'traces': listed(one.traces),
  }
  if one.calls:
    figures['cost'] = f'{one.calls:,} calls, {one.tokens:,} tokens, {one.money:,.2f}'
  return {name: figure for name, figure in figures.items() if figure != '-'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Row:
  """What is counted of a trajectory."""

  kind: str
  source: str
  prompt: str
  errors: tuple[str, ...]
  detour: str | None
  pictures: int
  characters: int
  words: int
  cost: trajectory_lib.Cost

  @classmethod
  def of(cls, trajectory: trajectory_lib.Trajectory) -> '_Row':
    made = trajectory.provenance or trajectory_lib.Provenance(source='', kind='')
    origins = [reason.removeprefix('prompt: ') for reason in made.reasons if reason.startswith('prompt: ')]
    return cls(
      kind=made.kind,
      source=made.source,
      prompt=origins[0] if origins else '',
      errors=tuple(made.errors),
      detour=made.detour,
      pictures=len(trajectory.pictures),
      characters=len(trajectory.prompt),
      words=len(trajectory.prompt.split()),
      cost=made.cost or trajectory_lib.Cost(),
    )


def _mean(rows: Sequence[_Row], value: Callable[[_Row], Any]) -> float:
  return sum(map(value, rows)) / len(rows) if rows else 0.0


def _counted(values: Iterable[str]) -> dict[str, int]:
  return dict(collections.Counter(values).most_common())
