"""Files of an evaluation: scores.json (all of it), scores.md (tables), index.html (pictures, boxes, verdicts)."""

import json
import math
import pathlib
from collections.abc import Sequence

from pdgen.evals import base, published
from pdgen.viewing import score_page, transcript

JSON, MARKDOWN, PAGE = 'scores.json', 'scores.md', 'index.html'
FOREIGN = 'Published by others, not measured here'
_HEAD = ('figure', 'value', '95 % interval', 'rests on')


def write(out: pathlib.Path, scores: base.Scores):
  """Writes the three files; each is whole or as it was."""
  base.write_atomically(out / JSON, json.dumps(scores.to_json(), indent=2) + '\n')
  base.write_atomically(out / MARKDOWN, markdown(scores))
  base.write_atomically(out / PAGE, page(scores))


def markdown(scores: base.Scores) -> str:
  """Tables of the figures, what was left out, and figures of others under a heading of their own."""
  lines = [f'# {scores.name}', '', 'Measured by this run:', '', *_table(_HEAD, _figures(scores)), '', _rests_on(scores)]
  if scores.problems:
    lines += ['', f'## Left out or doubtful ({len(scores.problems)})', '', *(f'- {p}' for p in scores.problems)]
  if scores.others:
    head, rows = _others(scores.others)
    lines += ['', f'## {FOREIGN}', '', *_table(head, rows)]
  return transcript.printable('\n'.join(lines), keep='\n') + '\n'


def page(scores: base.Scores) -> str:
  """The page, for the folder that its pictures are in."""
  tables = [score_page.Table('Measured by this run', _HEAD, _figures(scores))]
  if scores.problems:
    tables.append(score_page.Table('Left out or doubtful', ('what',), [[p] for p in scores.problems]))
  if scores.others:
    head, rows = _others(scores.others)
    tables.append(score_page.Table(FOREIGN, head, rows, foreign=True))
  return score_page.page(scores.cards, title=f'pdgen: {scores.name}', tables=tables, notes=[_rests_on(scores)])


def _rests_on(scores: base.Scores) -> str:
  return f'These figures rest on {scores.answered} of {scores.asked}.'


def _figures(scores: base.Scores) -> list[list[str]]:
  return [
    [name, '-', '-', '0']
    if math.isnan(e.value)
    else [name, f'{e.value:.4f}', f'{e.low:.3f} to {e.high:.3f}', str(e.count)]
    for name, e in scores.values.items()
  ]


def _others(lines: Sequence[published.Published]) -> tuple[tuple[str, ...], list[list[str]]]:
  names = list(dict.fromkeys(name for line in lines for name in line.values))
  cells = [[f'{line.values[n]:g}' if n in line.values else '-' for n in names] for line in lines]
  rows = [
    [line.system, *cell, line.source + (f' ({line.note})' if line.note else '')]
    for line, cell in zip(lines, cells, strict=True)
  ]
  return ('system', *names, 'source'), rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  lines = [head, ['---'] * len(head), *rows]
  return ['| ' + ' | '.join(str(cell).replace('|', '\\|') for cell in line) + ' |' for line in lines]
