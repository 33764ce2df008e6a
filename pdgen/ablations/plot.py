"""Plot of the tables: right paintings of each line, and the differences that the table is about (extra `plot`)."""

import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any

from pdgen.ablations import figures

REMEDY = "the plot needs matplotlib: pip install 'pdgen[plot]'"
_OURS, _PAPER = '#1f5fa8', '#b0531f'


def is_there() -> bool:
  """Whether matplotlib is installed."""
  return importlib.util.find_spec('matplotlib') is not None


def draw(results: Sequence[figures.Result], path: pathlib.Path):
  """Writes the picture: a row a table, values at the left, differences at the right; the paper's as open marks.

  Args:
    results: the tables.
    path: of the PNG.
  """
  from matplotlib import figure  # Without pyplot: no window system is asked for.

  heights = [max(len(one.table.lines), len(one.table.pairs)) + 1.5 for one in results]
  whole = figure.Figure(figsize=(13, 0.42 * sum(heights) + 0.6), layout='constrained')
  axes = whole.subplots(len(results), 2, squeeze=False, height_ratios=heights)
  for one, (left, right) in zip(results, axes, strict=True):
    labels = [line.label for line in one.table.lines]
    _marks(left, [one.values[label, 'overall'] for label in labels], labels, _OURS)
    left.set_title(f'{one.table.title} ({one.seeds} seeds)', fontsize=9, loc='left')
    shown = [d for d in one.differences if d.column == 'overall']
    _marks(right, [d.ours for d in shown], [f'{d.line}\n− {d.against}' for d in shown], _OURS)
    for number, d in enumerate(shown):
      gaps = [e.paper for e in one.differences if (e.line, e.against) == (d.line, d.against) and e.paper is not None]
      if gaps:
        right.plot([sum(gaps) / len(gaps)], [number], 'D', color=_PAPER, fillstyle='none', label='paper')
    right.axvline(0, color='black', linewidth=0.8)
  axes[-1][0].set_xlabel('right paintings, mean over tasks', fontsize=8)
  axes[-1][1].set_xlabel("paired difference (diamond: the paper's, mean of its columns)", fontsize=8)
  whole.savefig(path, dpi=110, metadata={'Software': None})


def _marks(axis: Any, estimates: Sequence[Any], labels: Sequence[str], color: str):
  """A mark with its interval a line, the first at the top."""
  for number, e in enumerate(estimates):
    axis.errorbar(
      [e.value], [number], xerr=[[e.value - e.low], [e.high - e.value]], fmt='o', color=color, capsize=3, markersize=4
    )
  axis.set_yticks(range(len(labels)), labels, fontsize=7)
  axis.invert_yaxis()
  axis.grid(axis='x', alpha=0.3)
