"""Buckets of picture sizes: which sizes a batch paints together, and the canvas that holds them.

A canvas is as high as the highest and as wide as the widest picture of its batch, in latent cells, and has at most
twice the cells of each of them (before it is rounded up): a smaller picture would pay for more padding than picture.
So 1024 x 576 and 576 x 1024 share a batch, 1024 x 1024 and 512 x 512 do not. Its sides, and the cells of a row, are
rounded up to few numbers, by an eighth at most: other sizes of the same bucket need no other program. A bucket of one
size has no canvas: its program has no masks.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from pdgen.core import config as config_lib
from pdgen.sampling import canvas as canvas_lib

Size = tuple[int, int]  # (H, W)
_WASTE = 2  # Cells of a canvas for each of a picture's, at most.


class Canvas(NamedTuple):
  """What of the sizes that a batch paints shapes its program, as of `sampler_spec.SamplerSpec`."""

  size: Size | None = None
  most: canvas_lib.Most | None = None


def check(size: Size, model: config_lib.ModelConfig):
  """Raises ValueError for a size that is not whole patches or does not fit the position table."""
  patch, most = model.codec.patch, model.codec.patch * model.max_latent_size
  if any(side % patch or not 0 < side <= most for side in size):
    raise ValueError(
      f'Pictures of {size[0]} x {size[1]} pixels (height x width) cannot be painted: sides are multiples of {patch} '
      f'pixels, at most {most}.'
    )


def buckets(sizes: Sequence[Size | None], model: config_lib.ModelConfig) -> list[list[int]]:
  """Numbers of the requests that share a program, the one with the largest picture first.

  >>> model = config_lib.ModelConfig(max_latent_size=8)
  >>> buckets([(32, 64), (16, 16), None, (64, 32)], model)
  [[0, 2, 3], [1]]

  Args:
    sizes: of what each request paints; None: it paints nothing, and goes with any.
    model: of the pictures.
  """
  found: list[set[Size]] = []
  wanted = {size for size in sizes if size is not None}
  for size in sorted(wanted, key=lambda size: (-math.prod(size), size)):
    joint = next((bucket for bucket in found if _fits({*bucket, size}, model)), None)
    if joint is None:
      found.append(joint := set())
    joint.add(size)
  number = {size: i for i, bucket in enumerate(found) for size in bucket}
  out: list[list[int]] = [[] for _ in found or [()]]
  for i, size in enumerate(sizes):
    out[0 if size is None else number[size]].append(i)
  return out


def canvas(sizes: Sequence[Size | None], model: config_lib.ModelConfig) -> Canvas:
  """The canvas of a batch. Arguments as of `buckets`."""
  wanted = {size for size in sizes if size is not None}
  if len(wanted) < 2:
    [size] = wanted or {model.own_size}
    return Canvas(None if size == model.own_size else size)
  rows, columns = (min(_few(n), model.max_latent_size) for n in _bounds(wanted, model))
  size = rows * model.codec.patch, columns * model.codec.patch
  latent, vit = (
    min(_few(max(math.prod(grid(size)) for size in wanted)), math.prod(grid(size)))
    for grid in (model.latent_grid_of, model.vit_grid_of)
  )
  return Canvas(size, canvas_lib.Most(latent, vit))


def _bounds(sizes: set[Size], model: config_lib.ModelConfig) -> tuple[int, int]:
  """Rows and columns of latent cells that hold each of the pictures."""
  rows, columns = zip(*map(model.latent_grid_of, sizes), strict=True)
  return max(rows), max(columns)


def _fits(sizes: set[Size], model: config_lib.ModelConfig) -> bool:
  return math.prod(_bounds(sizes, model)) <= _WASTE * min(math.prod(model.latent_grid_of(size)) for size in sizes)


def _few(n: int) -> int:
  """Rounded up to a number of four binary digits.

  >>> [_few(n) for n in (7, 13, 17, 36, 45, 2305)]
  [7, 13, 18, 36, 48, 2560]
  """
  step = 1 << max(0, n.bit_length() - 4)
  return -(-n // step) * step
