"""Parses optimized HLO text: collectives, bytes sent, executions per call."""

import math
import re
from typing import NamedTuple

import numpy as np

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_BITS = {'pred': 8, 'bf16': 16, 'f16': 16, 'f32': 32, 'f64': 64, 'c64': 64, 'c128': 128}
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$')
_CALLED = re.compile(r'(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\s*\{\s*"n":\s*"?(\d+)')
_SHAPE = re.compile(r'\b(pred|bf16|c64|c128|[suf]\d+[a-z0-9]*)\[([\d,]*)\]')


class Collective(NamedTuple):
  """One collective instruction."""

  kind: str  # One of KINDS.
  bytes: float  # That each device sends each time, in a ring.
  times: int  # Executions in one call of the program; a loop without a known trip count counts once.
  groups: np.ndarray  # int[groups, devices], logical devices that exchange.


def collectives(text: str, *, devices: int) -> list[Collective]:
  """The collectives of a compiled program (`compiled.as_text()`) over so many devices."""
  computations, entry = _computations(text)
  found: list[Collective] = []

  def visit(name: str, times: int):
    for line in computations.get(name, ()):
      shape, operation = _operation(line)
      kind = operation.removesuffix('-start')
      if kind in KINDS:
        groups = _groups(line, devices)
        found.append(Collective(kind, _sent(kind, operation, shape, groups.shape[1]), times, groups))
        continue
      inner = times * (_trips(line, computations) if operation == 'while' else 1)
      called = _CALLED.findall(line)
      for branches in _BRANCHES.findall(line):
        called += [branch.strip().lstrip('%') for branch in branches.split(',')]
      for computation in called:
        visit(computation, inner)

  visit(entry, 1)
  return [c for c in found if c.bytes]


def instructions(text: str) -> int:
  """How many instructions the program has in all of its computations."""
  return sum(len(lines) for lines in _computations(text)[0].values())


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Instructions of each computation by its name, and the name of the one that is the program."""
  computations: dict[str, list[str]] = {}
  entry, lines = '', []
  for line in text.splitlines():
    if header := _HEADER.match(line):
      lines = computations.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif found := _INSTRUCTION.match(line):
      lines.append(found[2])
  return computations, entry


def _trips(line: str, computations: dict[str, list[str]]) -> int:
  """How often a `while` runs; 1 where that is not known. TPU programs do not say: their conditions are read."""
  if found := _TRIPS.search(line):
    return int(found[1])
  named = re.search(r'condition=%?([\w.\-]+)', line)
  condition = computations.get(named[1], ['']) if named else ['']
  ends = [found[1] for line in condition if (found := re.match(r's32\[\]\S* constant\((\d+)\)', line))]
  counted = re.match(r'pred\[\]\S* compare\(%?[\w.\-]+, %?constant[\w.\-]*\), direction=LT', condition[-1])
  return int(ends[0]) if counted and len(ends) == 1 else 1


def _operation(line: str) -> tuple[str, str]:
  """The shape and the name of the operation of `shape operation(operands), attributes`."""
  depth = 0
  for place, character in enumerate(line):
    depth += (character in '([{') - (character in ')]}')
    if character == ' ' and depth == 0:
      return line[:place], line[place + 1 :].partition('(')[0]
  return line, ''


def _sent(kind: str, operation: str, shape: str, group: int) -> float:
  """Bytes that a device sends. shape: of the result; of the operands and the result where the operation only starts."""
  sizes = [_bytes(kind_, dims) for kind_, dims in _SHAPE.findall(shape)]
  if operation in ('all-gather-start', 'reduce-scatter-start'):
    sizes = sizes[len(sizes) // 2 :]
  elif operation == 'collective-permute-start':
    sizes = sizes[1:2]
  total, share = sum(sizes), (group - 1) / group
  if kind == 'collective-permute':
    return total
  return total * {'all-gather': share, 'all-to-all': share, 'all-reduce': 2 * share, 'reduce-scatter': group - 1}[kind]


def _bytes(kind: str, dims: str) -> float:
  bits = _BITS.get(kind) or int(re.findall(r'\d+', kind)[0])  # s32, u8, f8e4m3fn
  return math.prod(int(n) for n in dims.split(',') if n) * bits / 8


def _groups(line: str, devices: int) -> np.ndarray:
  """Who exchanges with whom: `{{0,1},{2,3}}`, `[2,2]<=[4]` with a transposition, axes of a mesh, pairs, or everybody.

  >>> _groups('all-reduce(x), replica_groups=[2,2]<=[2,2]T(1,0)', 4)
  array([[0, 2],
         [1, 3]])
  >>> _groups("all-reduce(x), replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", 4)
  array([[0, 1],
         [2, 3]])

  Raises: ValueError for a form that is not known: bytes and times would be wrong in silence.
  """
  if found := re.search(r'replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)', line):
    return _iota(found[2]).reshape(_numbers(found[1]))
  if found := re.search(r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\)?)\))? \{([^}]*)\}', line):
    return _along(found[1], found[2], found[3], devices)
  if found := re.search(r'(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}', line):
    return np.array([_numbers(group) for group in re.findall(r'\{([\d, ]+)\}', found[1])])
  if found := re.search(r'replica_groups=(?!\{\}).{0,80}', line):
    raise ValueError(f'Unknown form of a collective: {found[0]!r}. Teach pdgen.cost.hlo to read it.')
  return np.arange(devices)[None]


def _numbers(text: str) -> list[int]:
  return [int(n) for n in text.split(',')]


def _iota(text: str) -> np.ndarray:
  """`[2,4]T(1,0)`: the numbers from 0 in that shape, transposed."""
  shape, _, order = text.partition('T')
  shape = _numbers(shape.strip('[]'))
  ids = np.arange(math.prod(shape)).reshape(shape)
  return ids.transpose(_numbers(order.strip('()'))) if order else ids


def _along(axes: str, ids: str | None, over: str, devices: int) -> np.ndarray:
  """Groups along axes of a mesh: int[groups, devices].

  Args:
    axes: of the mesh and their sizes, `'a'=2,'b'=4`.
    ids: of its devices in order, a list or as `_iota` reads them; None: 0, 1, ..
    over: axes along which devices exchange, whole ones or parts: `'b':(2)2` is the minor 2 of 4.
    devices: of the program.
  """
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
  found = np.arange(devices) if not ids else _iota(ids) if ids.startswith('[') else np.array(_numbers(ids))
  parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", over)
  inner = {name: (int(before or 1), int(size or sizes[name])) for name, before, size in parts}
  shape = []  # Three dimensions an axis: before the part along which they exchange, that part, behind it.
  for name, size in sizes.items():
    before, part = inner.get(name, (size, 1))
    shape += [before, part, size // (before * part)]
  exchanging = [3 * list(sizes).index(name) + 1 for name in inner]
  found = np.moveaxis(found.reshape(shape), exchanging, range(-len(exchanging), 0))
  return found.reshape(-1, math.prod(part for _, part in inner.values()))
