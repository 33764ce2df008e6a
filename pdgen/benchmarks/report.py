"""The figures of all suites as one page of markdown tables."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

# Columns of a row that stay in the JSON.
_LEFT_OUT = {'least', 'most', 'loss', 'flops', 'rounds', 'compile', 'first_call'}


def page(folder: pathlib.Path, command: str) -> str:
  """All JSON files of a folder that the runner, or the parity tests, have written. command: that made them."""
  found = [json.loads(file.read_text()) for file in sorted(folder.glob('*.json'))]
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
