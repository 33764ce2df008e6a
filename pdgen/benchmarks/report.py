"""The figures of all suites as one page of markdown tables."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

# Columns of a row that stay in the JSON.
_LEFT_OUT = {'least', 'most', 'loss', 'flops', 'rounds', 'compile', 'first_call'}


# What a row takes; the smaller, the better.
_SECONDS = ('seconds', 'step_seconds', 'picture_seconds', 'cpu_seconds_a_row')


def page(folder: pathlib.Path, command: str, *, before: pathlib.Path | None = None) -> str:
  """All JSON files of a folder that the runner, or the parity tests, have written.

  Args:
    folder: of the files; or one of them.
    command: that made them.
    before: folder, or file of one suite, of an earlier run, which the figures are set beside.
  """
  files = sorted(folder.glob('*.json')) if folder.is_dir() else [folder]
  found = [json.loads(file.read_text()) for file in files]
  if before is not None:
    earlier = {one['suite']: one['rows'] for one in read(before)}
    for one in found:
      if one.get('suite') in earlier:
        one['rows'] = beside(one['rows'], earlier[one['suite']])
  suites = [one for one in found if 'suite' in one]
  known = next((one['machine'] for one in suites if one.get('machine')), {})
  lines = ['# Performance', '', f'`{command}`', '', *_machine(known)]
  for one in suites:
    lines += ['', f'## {one["suite"]} ({one["size"]})', '']
    if 'error' in one:
      lines += [f'**Not whole: it {one["error"]}**', '']
    lines += _table(one['rows'])
  parity = [one for one in found if 'parity' in one]
  for one in parity:
    lines += ['', *_parity(one)]
  return '\n'.join(lines) + '\n'


def read(before: pathlib.Path) -> list[dict[str, Any]]:
  """The suites of a folder, or of one file. Raises: ValueError where there are none."""
  files = sorted(before.glob('*.json')) if before.is_dir() else [before]
  try:
    found = [one for file in files if 'suite' in (one := json.loads(file.read_text()))]
  except (OSError, ValueError, TypeError) as error:
    raise ValueError(f'{before} holds no figures of an earlier run: {error}') from error
  if not found:
    raise ValueError(f'{before} holds no figures of an earlier run: give its folder, or the JSON file of a suite.')
  return found


def beside(rows: Sequence[dict[str, Any]], earlier: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Rows with the seconds of the same row of an earlier run, and how many times as fast they are now.

  >>> beside([{'depth': 2, 'seconds': 1.5}, {'depth': 4, 'seconds': 1.0}], [{'depth': 2, 'seconds': 3.0}])
  [{'depth': 2, 'seconds': 1.5, 'before': 3.0, 'times_as_fast': 2.0}, {'depth': 4, 'seconds': 1.0}]

  What a row is of are its texts and its `batch_size`, `depth`, `tokens` and `picture`.
  """
  names = ('batch_size', 'depth', 'tokens', 'picture')
  of = lambda row: tuple((k, v) for k, v in row.items() if isinstance(v, str) or k in names)
  took = lambda row: next((row[name] for name in _SECONDS if row.get(name)), None)
  known = {of(row): took(row) for row in earlier}
  out = []
  for row in rows:
    now, then = took(row), known.get(of(row))
    out.append({**row, 'before': then, 'times_as_fast': then / now} if now and then else row)
  return out


def _machine(known: dict[str, Any]) -> list[str]:
  if not known:
    return ['No suite has told its machine.']
  versions = ', '.join(f'{name} {version}' for name, version in known['versions'].items())
  memory = f', {known["memory"] / 2**30:.1f} GiB for JAX' if known.get('memory') else ''
  return [
    f'{known["devices"]} x {known["device"]}{memory}; {known["host_cores"]} host cores; {known["date"]}.',
    f'Python {known["python"]}, {versions}.',
    *([f'XLA_FLAGS: `{known["xla_flags"]}`'] if known['xla_flags'] else []),
  ]


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
  """Rows of the same columns share a table."""
  lines: list[str] = []
  heads: list[str] = []
  for row in rows:
    columns = [name for name in row if name not in _LEFT_OUT]
    if columns != heads:
      heads = columns
      lines += [''] * bool(lines)
      lines += ['| ' + ' | '.join(name.replace('_', ' ') for name in heads) + ' |', '|---' * len(heads) + '|']
    lines.append('| ' + ' | '.join(_cell(row[name]) for name in heads) + ' |')
  return lines or ['Nothing was measured.']


def _cell(value: Any) -> str:
  if isinstance(value, float):
    return f'{value:.3g}' if abs(value) < 1000 else f'{value:,.0f}'
  return f'{value:,}' if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _parity(found: dict[str, Any]) -> list[str]:
  """Largest errors of the parity tests on this device, a line for each file of golden values."""
  lines = ['## Parity with the reference', '', f'{found["passed"]} tests passed, {found["failed"]} failed.', '']
  lines += ['| golden values | float32 arrays | error over tolerance, at most | bfloat16 arrays | error, at most |']
  lines += ['|---|---|---|---|---|']
  by_file: dict[str, dict[str, list[tuple[float, float]]]] = {}
  for name, errors in found['parity'].items():
    kinds = by_file.setdefault(name.split('/')[0], {'float32': [], 'bfloat16': []})
    for kind, pair in errors.items():
      kinds[kind].append(tuple(pair))
  for file, kinds in sorted(by_file.items()):
    single = max((error / bound if bound else 0.0 for error, bound in kinds['float32']), default=None)
    half = max((error for error, _ in kinds['bfloat16']), default=None)
    cells = [
      '-' if x is None else f'{x:.2g}' if isinstance(x, float) else str(x)
      for x in (len(kinds['float32']), single, len(kinds['bfloat16']), half)
    ]
    lines.append(f'| {file} | ' + ' | '.join(cells) + ' |')
  return lines
