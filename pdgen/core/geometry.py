"""Spatial relations between bounding boxes (GenEval's `relative_position`)."""

import functools
import math

RELATIONS = ('left of', 'right of', 'above', 'below')
# Cells of a picture in three rows and three columns, row-major.
PLACES = ('top left', 'top', 'top right', 'left', 'center', 'right', 'bottom left', 'bottom', 'bottom right')


def spatial_relations(a: tuple[float, ...], b: tuple[float, ...], *, threshold: float = 0.1) -> set[str]:
  """Where box `a` is relative to box `b`: a subset of RELATIONS. The scorer and the shapes world share this rule.

  Boxes are (x0, y0, x1, y1). The offset of the centres is shortened by a tenth (`threshold`) of the summed sizes and
  divided by its length; more than a half along an axis is a relation (GenEval, `relative_position`).

  >>> spatial_relations((0, 0, 9, 9), (11, 0, 20, 9))
  {'left of'}
  >>> sorted(spatial_relations((0, 0, 9, 9), (11, 11, 20, 20)))
  ['above', 'left of']
  """
  dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
  x = _shorten(dx, threshold * (abs(a[2] - a[0]) + abs(b[2] - b[0])))
  y = _shorten(dy, threshold * (abs(a[3] - a[1]) + abs(b[3] - b[1])))
  if max(abs(x), abs(y)) < 1e-3:
    return set()
  length = math.hypot(dx, dy)
  x, y = x / length, y / length
  found = {'left of': x < -0.5, 'right of': x > 0.5, 'above': y < -0.5, 'below': y > 0.5}
  return {name for name, holds in found.items() if holds}


@functools.cache
def place_relations(a: str, b: str) -> frozenset[str]:
  """Where the place `a` is relative to the place `b`, both of PLACES: by `spatial_relations` of their cells.

  >>> sorted(place_relations('top left', 'right'))
  ['left of']
  """
  (ax, ay), (bx, by) = ((n % 3, n // 3) for n in map(PLACES.index, (a, b)))
  return frozenset(spatial_relations((ax, ay, ax + 1, ay + 1), (bx, by, bx + 1, by + 1)))


def _shorten(offset: float, by: float) -> float:
  return math.copysign(max(abs(offset) - by, 0.0), offset)
