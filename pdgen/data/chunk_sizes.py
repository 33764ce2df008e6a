"""Riegeli chunk headers of an ArrayRecord file: what its records inflate to, known before one is decompressed.

A file is a chain of chunks, each behind a header of 40 bytes: hash, size on disk, hash, type and number of records,
size once decompressed. Every 64 KiB begin with a block header of 24 bytes, in the middle of whatever stands there.
"""

import mmap
import os
import struct

_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 65_536, 24, struct.Struct('<5Q')


def check(path: str | os.PathLike, *, most: int):
  """Walks the headers of a file's chunks; a page of the file is read for each.

  What decompresses a chunk holds it to its header. (A header that only the file's index of records points at, in the
  middle of a chunk, is not seen.)

  Args:
    path: of the file.
    most: bytes that a chunk may inflate to.

  Raises: ValueError for a chunk that says more, or for a broken chain.
  """
  with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
    place = 0
    while place < len(data):
      header = _header(data, place)
      if len(header) < _CHUNK_HEADER.size:
        raise ValueError(f'{os.fspath(path)} is damaged: it ends in the middle of a chunk.')
      _, size, _, kind_and_count, inflated = _CHUNK_HEADER.unpack(header)
      count = kind_and_count >> 8
      if inflated + 8 * count > most:  # The decoder keeps a place of each record.
        raise ValueError(
          f'{os.fspath(path)} has {size} bytes at {place} that inflate to {inflated} ({count} records); {most} are '
          'allowed. Use nothing of that file.'
        )
      place = _end(place, size=_CHUNK_HEADER.size + size, count=count)


def _header(data: mmap.mmap, place: int) -> bytes:
  """The chunk header at a place, without the block header that it may begin with or have in its middle."""
  if place % _BLOCK == 0:
    place += _BLOCK_HEADER
  header = data[place : min(place + _CHUNK_HEADER.size, place - place % _BLOCK + _BLOCK)]
  if missing := _CHUNK_HEADER.size - len(header):
    rest = place + len(header) + _BLOCK_HEADER
    header += data[rest : rest + missing]
  return header


def _end(begin: int, *, size: int, count: int) -> int:
  """Where the next chunk begins, block headers counted in.

  >>> _end(64, size=73, count=1), _end(64, size=65_536, count=1)
  (137, 65624)
  """
  usable = _BLOCK - _BLOCK_HEADER
  blocks = (size + (begin + usable - 1) % _BLOCK) // usable
  return max(_possible(begin + size + blocks * _BLOCK_HEADER), _possible(begin + count))


def _possible(place: int) -> int:
  """No chunk begins in or right behind a block header."""
  inside = place % _BLOCK
  return place + _BLOCK_HEADER + 1 - inside if 0 < inside <= _BLOCK_HEADER else place
