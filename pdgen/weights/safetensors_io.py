"""Streaming safetensors: read slices from a memory map, write front to back, bounded memory.

The safetensors package reads whole tensors into memory. Here a process that holds a 256th of a weight reads a 256th of
it, and a file that is converted is never in memory as a whole.
"""

import collections
import hashlib
import json
import math
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from pdgen.core import in_order as in_order_lib
from pdgen.core import json_file

BLOCK = 32 * 2**20  # Bytes that are mapped, or written, together, by all threads.
THREADS = min(4, os.cpu_count() or 1)  # That read at a time, a share of a block each.

DTYPES = {'F32': np.dtype(np.float32), 'F16': np.dtype(np.float16), 'BF16': np.dtype(jnp.bfloat16)}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_INFINITE = {'F32': 0x7F800000, 'F16': 0x7C00, 'BF16': 0x7F80}  # Bits of the first number that is not finite.
_MAX_HEADER = 100_000_000  # Bytes; the safetensors package's limit.
_CHECKED = 2**20  # Numbers that are looked at together: they stay in the processor's cache.

Index = tuple[int | slice, ...]
_Result = TypeVar('_Result')
_thread = threading.local()


class TensorInfo(NamedTuple):
  """Dtype and shape of a tensor."""

  dtype: np.dtype
  shape: tuple[int, ...]

  @property
  def bytes(self) -> int:
    """Size of the tensor."""
    return math.prod(self.shape) * self.dtype.itemsize


class Reader:
  """A file that is open for slices. Only its header is read at once.

  Attributes:
    infos: of every tensor, in the order of the header.
    header: the file up to its first tensor, byte for byte.
  """

  def __init__(self, path: str | os.PathLike):
    """Raises: ValueError naming the file when it is no safetensors file, or damaged, cut short, or of another dtype."""
    self.path = pathlib.Path(path)
    size = self.path.stat().st_size
    with self.path.open('rb') as file:
      length = int.from_bytes(file.read(8), 'little')
      if length + 8 > size or length > _MAX_HEADER:
        raise ValueError(f'{path} is no safetensors file, or is cut short. Fetch it again.')
      file.seek(0)
      self.header = file.read(8 + length)
    self.infos, self._starts = _parse(self.header, path)
    end = max((start + self.infos[name].bytes for name, start in self._starts.items()), default=len(self.header))
    if end != size:
      raise ValueError(f'{path} has {size} bytes, but its header says {end}. Fetch it again.')

  def read(self, name: str, index: Index = ()) -> np.ndarray:
    """`tensor[index]` as a new array, read by THREADS. No more than that and `BLOCK` bytes are ever in memory.

    index: integers first, then slices without step; missing ones are whole.

    Raises: ValueError for another order; for a number that is not finite, naming file and tensor.
    """
    info, start = self.infos[name], self._starts[name]
    shape = info.shape
    while index and not isinstance(index[0], slice):
      start += index[0] * math.prod(shape[1:]) * info.dtype.itemsize
      index, shape = index[1:], shape[1:]
    slices = [i for i in index if isinstance(i, slice)]
    if len(slices) < len(index):
      raise ValueError(f'{index}: integers come first, then slices.')
    slices += [slice(None)] * (len(shape) - len(slices))
    bounds = [slice(*i.indices(n)) for i, n in zip(slices, shape, strict=True)]
    out = np.empty([b.stop - b.start for b in bounds], info.dtype)
    if out.size:
      # A scalar is a row of one.
      parts = self._parts(out.reshape(out.shape or (1,)), start, shape or (1,), bounds or [slice(0, 1)])
      collections.deque(in_order(lambda part=part: self._fill(name, *part) for part in parts), maxlen=0)
    return out

  def _parts(
    self, out: np.ndarray, start: int, shape: tuple[int, ...], bounds: list[slice]
  ) -> Iterator[tuple[np.ndarray, int, tuple[int, ...], list[slice]]]:
    """Parts of `out` of a thread's share of a block: (part, place in the file, shape there, slices of that)."""
    row, share = math.prod(shape[1:]) * out.dtype.itemsize, BLOCK // THREADS
    first, stop = bounds[0].start, bounds[0].stop
    if row > share and len(shape) > 1:
      for i in range(first, stop):
        yield from self._parts(out[i - first], start + i * row, shape[1:], bounds[1:])
      return
    rows = max(1, share // row)
    for i in range(first, stop, rows):
      count = min(rows, stop - i)
      yield out[i - first : i - first + count], start + i * row, (count, *shape[1:]), bounds[1:]

  def _fill(self, name: str, part: np.ndarray, start: int, shape: tuple[int, ...], bounds: list[slice]):
    # A map of its own for every part: pages of a file that stay mapped count as memory of the process.
    block = np.memmap(self.path, part.dtype, 'r', offset=start, shape=shape)
    part[...] = block[(slice(None), *bounds)]
    if not is_finite(part):
      raise ValueError(f'{self.path}: {name} holds a number that is not finite (NaN or infinity). No model has such.')


def in_order(tasks: Iterable[Callable[[], _Result]]) -> Iterator[_Result]:
  """Results of tasks in their order, THREADS of which run at a time; tasks of tasks run one by one.

  numpy copies, and hashlib hashes, without Python's lock. What a task raises comes in its place.
  """
  if THREADS == 1 or getattr(_thread, 'of_pool', False):
    yield from (task() for task in tasks)
    return
  begin = lambda: setattr(_thread, 'of_pool', True)
  with futures.ThreadPoolExecutor(THREADS, initializer=begin) as pool:
    yield from in_order_lib.results(pool, tasks, ahead=THREADS)


def is_finite(array: np.ndarray) -> bool:
  """Whether all numbers of a contiguous array are finite. ml_dtypes takes ten times as long for bfloat16."""
  infinite = _INFINITE[_NAMES[array.dtype]]
  bits = array.reshape(-1).view(f'uint{8 * array.dtype.itemsize}')
  mask = bits.dtype.type(2 ** (8 * array.dtype.itemsize - 1) - 1)
  return all(int((bits[i : i + _CHECKED] & mask).max(initial=0)) < infinite for i in range(0, len(bits), _CHECKED))


def write(path: str | os.PathLike, header: bytes, blocks: Iterable[np.ndarray]) -> str:
  """Writes header and blocks, one after the other.

  Args:
    path: of the file.
    header: as `header` makes it.
    blocks: parts of the tensors in the header's order.

  Returns: the file's SHA-256.

  Raises: ValueError when the blocks are not as many bytes as the header says.
  """
  digest = hashlib.sha256(header)
  with open(path, 'wb') as file:
    file.write(header)
    for block in blocks:
      data = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
      digest.update(data)
      file.write(data)
    infos, starts = _parse(header, path)
    end = max((starts[name] + info.bytes for name, info in infos.items()), default=len(header))
    if file.tell() != end:
      raise ValueError(f'{path}: {file.tell()} bytes were written, but its header says {end}.')
  return digest.hexdigest()


def header(infos: Mapping[str, TensorInfo], *, metadata: Mapping[str, str] | None = None) -> bytes:
  """The header of a file that holds the tensors one after the other, as the safetensors package aligns it."""
  entries: dict[str, Any] = {'__metadata__': dict(metadata)} if metadata else {}
  end = 0
  for name, info in infos.items():
    offsets = [end, end + info.bytes]
    entries[name] = {'dtype': _NAMES[info.dtype], 'shape': list(info.shape), 'data_offsets': offsets}
    end += info.bytes
  text = json.dumps(entries, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  return len(text).to_bytes(8, 'little') + text


def tensor_infos(header_bytes: bytes, *, of: str | os.PathLike = 'the file') -> dict[str, TensorInfo]:
  """Dtypes and shapes of the tensors of a header, in its order. of: its file, for errors. Raises: as `Reader`."""
  return _parse(header_bytes, of)[0]


def metadata(header_bytes: bytes) -> dict[str, str]:
  """What a header says besides its tensors."""
  return json.loads(header_bytes[8:]).get('__metadata__', {})


def names_in_order(header_bytes: bytes) -> list[str]:
  """Names of the tensors in the order in which they lie in the file, which need not be the header's."""
  infos, starts = _parse(header_bytes, 'the file')
  return sorted(starts, key=lambda name: (starts[name], infos[name].bytes))


def sha256(path: str | os.PathLike) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def block_slices(length: int, row_bytes: int) -> Iterator[slice]:
  """Slices of an axis that take at most a thread's share of `BLOCK` bytes each.

  >>> list(block_slices(5, BLOCK // THREADS // 2))
  [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
  """
  step = max(1, BLOCK // THREADS // max(1, row_bytes))
  return (slice(i, min(i + step, length)) for i in range(0, length, step))


def _parse(header_bytes: bytes, path: str | os.PathLike) -> tuple[dict[str, TensorInfo], dict[str, int]]:
  """Dtypes and shapes of the tensors, and where in the file each begins."""
  infos, places, others = {}, {}, {}
  try:
    entries = json_file.parse(header_bytes[8:], of=f'The header of {path}')
  except ValueError as error:
    raise ValueError(f'{error} Fetch it again.') from None
  try:
    for name, entry in entries.items():
      if name == '__metadata__':
        if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
          raise ValueError('its metadata are no texts')
        continue
      kind, shape, offsets = entry['dtype'], entry['shape'], entry['data_offsets']
      if not isinstance(kind, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f'{name} has no dtype, shape or place')
      if kind not in DTYPES:
        others.setdefault(kind, name)
        continue
      infos[name], places[name] = TensorInfo(DTYPES[kind], tuple(shape)), offsets
      if offsets[1] - offsets[0] != infos[name].bytes:
        raise ValueError(f'{name} does not fit its place')
    end, before = 0, 'the header'
    for name, (first, last) in sorted(places.items(), key=lambda item: item[1]) if not others else ():
      if first != end:
        raise ValueError(f'{name} {"overlaps" if first < end else "leaves a hole after"} {before}')
      end, before = last, name
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'The header of {path} is damaged ({error}). Fetch it again.') from error
  if others:
    raise ValueError(
      f'{path} holds {sorted(others)} ({next(iter(others.values()))} is one); weights may be {sorted(DTYPES)}. '
      'Take a release in bfloat16, or multiply quantised weights by their scales and save them in one of these.'
    )
  return infos, {name: len(header_bytes) + first for name, (first, _) in places.items()}


def _are_sizes(values: Any) -> bool:
  return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)
