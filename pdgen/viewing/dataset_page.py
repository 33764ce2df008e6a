"""HTML page of a data set: sampled trajectories with provenance and token tables, filters, counts, rejected rows.

The page needs nothing from outside: style, script and pictures are in it, and its content security policy lets nothing
else run or load. It is made of plain values; `pdgen.dataset_page` reads them from record sets and from configs.
"""

import base64
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pdgen.core import trajectory as trajectory_lib
from pdgen.viewing import gallery, transcript

MOST_PIXELS = 256  # A side of a picture on the page: a larger one is shrunk to it.
CATEGORIES = {
  'ce': 'cross-entropy',
  'flow': 'flow loss',
  'text': 'text, no loss',
  'noised': 'boundary of a noised copy',
  'clean': 'clean copy',
  'vit': 'ViT copy',
}
# Table 1 of the paper: subset, samples, +, -, mean and most pictures, length of the prompt (unit not given).
_PAPER = (
  ('multi-turn generation', '32,012', '', '', '3.51', '5', '152.8'),
  ('instruction-intermediate conflict', '15,201', '6,905', '8,296', '', '', ''),
  ('image-instruction alignment', '15,000', '5,000', '10,000', '', '', ''),
)
_FILTERS = (('set', 'set'), ('split', 'split'), ('source', 'source'), ('kind', 'subset'), ('sign', '+ / −'))
_LONGEST = 20_000  # Characters of a text, or of JSON, that are shown.
_HERE = pathlib.Path(__file__).parent
_STYLE, _SCRIPT = (_HERE / 'dataset_page.css').read_text(), (_HERE / 'dataset_page.js').read_text()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRun:
  """A line of the token table: one token, or a run of patches."""

  cells: tuple[str, ...]  # A text for each column of the header.
  category: str  # One of CATEGORIES.
  count: int = 1  # Tokens of the run.
  each: Mapping[int, str] = dataclasses.field(default_factory=dict)  # Column whose number differs: ranges, `0-2, 7`.


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenTable:
  """What a trajectory trains, token by token."""

  header: tuple[str, ...]
  runs: tuple[TokenRun, ...]
  summary: str  # Tokens and weights of both losses, in words.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """A trajectory on the page, or what could not be read."""

  name: str  # Where it is: set and number.
  set: str = ''
  split: str = ''
  source: str = ''
  kind: str = ''
  sign: str = ''  # `+`, `−` or ''.
  refined: bool = False
  trajectory: trajectory_lib.Trajectory | None = None
  error: str = ''  # Why the trajectory cannot be read.
  tokens: TokenTable | None = None
  tokens_error: str = ''  # Why there is no token table.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """A table of texts; columns of numbers are aligned to the right."""

  header: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  numbers: frozenset[int] = frozenset()  # Columns.


def page(
  entries: Sequence[Entry],
  *,
  title: str,
  notes: Sequence[str] = (),
  counts: Table | None = None,
  sets: Table | None = None,
  rejected: Sequence[tuple[str, Table]] = (),
) -> str:
  """The document.

  Args:
    entries: in their order.
    title: of the page.
    notes: paragraphs under the title.
    counts: by kind, columns as of `COUNTS`; the paper's Table 1 is laid beside it.
    sets: record sets, and what is wrong with them.
    rejected: tables of rejected rows with their headings.
  """
  policy = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
  allowed = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{policy}'"
  top = ''.join(f'<p>{gallery.text(note)}</p>' for note in notes)
  top += '' if counts is None else _counts(counts)
  top += '' if sets is None else f'<h3>Record sets</h3>{_table(sets)}'
  bottom = ''.join(f'<h3>{gallery.text(heading)}</h3>{_table(table)}' for heading, table in rejected)
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{allowed}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{gallery.text(title)}</title>\n<style>body{{margin:0}}\n{gallery.STYLE}{_STYLE}</style>\n</head>\n'
    f'<body class="pdgen">\n<header class="top"><h1>{gallery.text(title)}</h1>{top}</header>\n'
    f'<main>\n{_filters(entries)}\n{"".join(map(_entry, entries))}\n'
    f'{bottom and f"<section>{bottom}</section>"}\n</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n'
  )


COUNTS = (
  *('subset', 'samples', '+', '−', 'pictures, mean', 'most', 'prompt, characters', 'words', 'steps, mean', 'refined'),
  *('service calls', 'US$'),
)


def write(path: pathlib.Path, document: str) -> pathlib.Path:
  """Writes the page whole, or not at all. Returns its path."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + '.partial')
  partial.write_bytes(document.encode())
  os.replace(partial, path)
  return path


def _counts(counts: Table) -> str:
  paper = tuple((name, *values, *[''] * (len(counts.header) - 1 - len(values))) for name, *values in _PAPER)
  rows = [_row(row, counts.numbers, kind='all' if row[0] == 'all' else '') for row in counts.rows]
  rows += [_row((f'paper: {name}', *rest), counts.numbers, kind='paper') for name, *rest in paper]
  return f'<h3>Counts</h3><div class="wide"><table>{_head(counts)}<tbody>{"".join(rows)}</tbody></table></div>'


def _table(table: Table) -> str:
  rows = ''.join(_row(row, table.numbers) for row in table.rows)
  return f'<div class="wide"><table>{_head(table)}<tbody>{rows}</tbody></table></div>'


def _head(table: Table) -> str:
  cells = (f'<th{_align(i, table.numbers)}>{gallery.text(name)}</th>' for i, name in enumerate(table.header))
  return f'<thead><tr>{"".join(cells)}</tr></thead>'


def _row(row: Sequence[str], numbers: frozenset[int], kind: str = '') -> str:
  cells = (f'<td{_align(i, numbers)}>{_words(cell)}</td>' for i, cell in enumerate(row))
  return f'<tr{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{"".join(cells)}</tr>'


def _align(column: int, numbers: frozenset[int]) -> str:
  return ' class="n"' if column in numbers else ''


def _filters(entries: Sequence[Entry]) -> str:
  """One choice a field, of the values that are there, and a search; no choice where nothing has a value."""
  fields = [(name, label, sorted({getattr(e, name) for e in entries})) for name, label in _FILTERS]
  fields.append(('refined', 'refined', sorted({_yes(e.refined) for e in entries})))
  choices = ''.join(
    f'<label>{gallery.text(label)}<select data-by="{name}"><option value="">any</option>'
    + ''.join(f'<option value=":{gallery.text(v)}">{gallery.text(v or "none")}</option>' for v in values)
    + '</select></label>'
    for name, label, values in fields
    if values != ['']
  )
  colours = ''.join(f'<li><i class="{name}"></i>{words}</li>' for name, words in CATEGORIES.items())
  legend = f'\n<ul class="legend">{colours}</ul>' if any(entry.tokens for entry in entries) else ''
  return (
    f'<div class="filters">{choices}<label>text<input id="search" type="search" placeholder="words"></label>'
    f'<span id="shown">{len(entries)} shown</span></div>{legend}'
  )


def _entry(entry: Entry) -> str:
  values = {name: getattr(entry, name) for name, _ in _FILTERS} | {'refined': _yes(entry.refined)}
  data = ''.join(f' data-{name}="{gallery.text(value)}"' for name, value in values.items())
  if entry.trajectory is None:
    body = f'<div class="said"><h2>{gallery.text(entry.name)}</h2><p class="broken">{_words(entry.error)}</p></div>'
  else:
    body = _trajectory(entry, _shrunk(entry.trajectory))
  return f'<article class="entry"{data}>{body}</article>\n'


def _trajectory(entry: Entry, trajectory: trajectory_lib.Trajectory) -> str:
  final = gallery.image(trajectory.final, f'Final picture of: {trajectory.prompt}') if trajectory.pictures else ''
  chips = [f'<li>{gallery.text(chip)}</li>' for chip in _chips(entry) if chip]
  if entry.sign:
    kind, meaning = ('yes', 'kept as painted') if entry.sign == '+' else ('no', 'a sketch is rejected')
    chips.insert(0, f'<li class="{kind}">{gallery.text(entry.sign)} {meaning}</li>')
  return (
    f'<div class="said"><div class="head">{final}<div><h2>{_words(trajectory.prompt)}</h2>'
    f'<ul class="tags">{"".join(chips)}</ul></div></div>\n{gallery.steps(trajectory)}\n'
    f'<details><summary>How it was made</summary>{_made(trajectory)}</details></div>\n{_tokens(entry)}'
  )


def _chips(entry: Entry) -> Iterable[str]:
  """What is to be seen of a trajectory at a glance, in words."""
  trajectory = entry.trajectory
  assert trajectory is not None
  made = trajectory.provenance
  yield entry.name
  yield entry.split
  yield from dict.fromkeys(filter(None, (entry.source, entry.kind, trajectory.spec and trajectory.spec.tag)))
  if made is not None:
    yield made.detour and f'detour: {made.detour}' or ''
    yield f'error: {", ".join(made.errors)}' if made.errors else ''
  sizes = dict.fromkeys(f'{picture.shape[1]} × {picture.shape[0]}' for picture in trajectory.pictures)
  yield f'pictures {", ".join(sizes)}' if sizes else 'no picture'
  given = [n for n, step in enumerate(trajectory.steps, 1) if step.draft is not None and not step.draft_is_target]
  yield f'sketch {", ".join(map(str, given))}: context only' if given else ''
  yield transcript.stop(trajectory)


def _made(trajectory: trajectory_lib.Trajectory) -> str:
  """Provenance, what is expected, and the user's metadata, as a list of names and values."""
  made = trajectory.provenance
  values: dict[str, Any] = {} if made is None else {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
  verdicts = values.pop('verdicts', ())
  if values.get('cost') is not None:
    cost = values['cost']
    values['cost'] = f'{cost.calls} calls, {cost.tokens} tokens, US$ {cost.money:.4f}'
  values['reasons'] = '\n'.join(values.get('reasons', ()))
  shown = {name: value for name, value in values.items() if value not in (None, '', (), {})}
  for number, verdict in enumerate(verdicts, 1):
    shown[f'verdict {number}'] = _verdict(verdict)
  shown['mode'] = trajectory.mode
  for name, value in (('expected', trajectory.expected), ('metadata', trajectory.metadata)):
    if value:
      shown[name] = value
  if trajectory.spec is not None:
    shown['spec'] = trajectory.spec.to_row(trajectory.prompt)
  return (
    f'<dl>{"".join(f"<dt>{gallery.text(name)}</dt><dd>{_words(_plain(v))}</dd>" for name, v in shown.items())}</dl>'
  )


def _verdict(verdict: Any) -> str:
  if not isinstance(verdict, Mapping) or not isinstance(verdict.get('ok'), bool):
    return _plain(verdict)
  rest = {name: value for name, value in verdict.items() if name not in ('ok', 'reason')}
  return f'{"✓" if verdict["ok"] else "✗"} {_plain(verdict.get("reason", ""))}{rest and " " + _plain(rest) or ""}'


def _plain(value: Any) -> str:
  if isinstance(value, str):
    return value
  if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
    return ', '.join(value)
  return json.dumps(value, ensure_ascii=False, default=str) if value is not None else ''


def _tokens(entry: Entry) -> str:
  if entry.tokens is None:
    return f'<p class="broken">No token table: {_words(entry.tokens_error)}</p>' if entry.tokens_error else ''
  table = entry.tokens
  head = ''.join(f'<th>{gallery.text(name)}</th>' for name in table.header)
  rows = ''.join(map(_token_row, table.runs))
  return (
    f'{_strip(table.runs)}<details class="tokens"><summary>Token table: {gallery.text(table.summary)}</summary>'
    f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>'
  )


def _strip(runs: Sequence[TokenRun]) -> str:
  """The sequence as a bar, a colour a category."""
  parts = []
  for category, group in itertools.groupby(runs, lambda run: run.category):
    count = sum(run.count for run in group)
    parts.append(f'<i class="{category}" style="flex-grow:{count}" title="{count} × {CATEGORIES[category]}"></i>')
  return f'<div class="strip">{"".join(parts)}</div>'


def _token_row(run: TokenRun) -> str:
  if run.count == 1:
    cells = ''.join(f'<td>{gallery.text(cell)}</td>' for cell in run.cells)
    return f'<tr class="{run.category}">{cells}</tr>'
  cells = ''
  for column, cell in enumerate(run.cells):
    shown, each = gallery.text(cell), f' data-each="{gallery.text(run.each[column])}"' if column in run.each else ''
    if not column:
      shown = f'<button class="unfold" aria-expanded="false">{shown}</button>'
    cells += f'<td{each}>{shown}</td>'
  return f'<tr class="run {run.category}" data-count="{run.count}">{cells}</tr>'


def _shrunk(trajectory: trajectory_lib.Trajectory) -> trajectory_lib.Trajectory:
  """The trajectory with pictures of at most MOST_PIXELS a side."""
  steps = []
  for step in trajectory.steps:
    parts = {name: getattr(step, name) for name in trajectory_lib.PICTURES if getattr(step, name) is not None}
    steps.append(dataclasses.replace(step, **{name: _small(picture) for name, picture in parts.items()}))
  given = tuple(part if isinstance(part, str) else _small(part) for part in trajectory.parts)
  return dataclasses.replace(trajectory, steps=tuple(steps), parts=given)


def _small(picture: np.ndarray) -> np.ndarray:
  if max(picture.shape[:2]) <= MOST_PIXELS:
    return picture
  image = Image.fromarray(picture)
  image.thumbnail((MOST_PIXELS, MOST_PIXELS))
  return np.asarray(image)


def _words(words: str) -> str:
  """Words in HTML, cut where they are very long."""
  cut = words[:_LONGEST]
  return gallery.text(cut) + (f' … ({len(words)} characters)' if len(words) > len(cut) else '')


def _yes(claim: bool) -> str:
  return 'yes' if claim else 'no'
