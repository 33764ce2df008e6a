"""What a picture of the shapes world is made of: coloured objects on a three by three grid.

A scene is a tuple of `Object`s in the order of painting. Everything random about a picture is in its objects, so two
equal scenes are equal pictures.
"""

import dataclasses

import numpy as np

SIZE = 32  # pixels a side of a picture
CELLS = 9  # cells of the grid, row-major
PITCH = 11  # pixels from a cell's corner to the next cell's
EXTENT = 9  # pixels a side of the square that holds every silhouette
JITTER = 1  # pixels that a scene may be moved to the right and down, at most; more than PITCH - EXTENT would touch

# GenEval's ten colours, in its order. The background is at least 0.48 (of [0, 1] RGB) from each of them.
COLORS = {
  'red': (208, 30, 45),
  'orange': (250, 128, 15),
  'yellow': (255, 228, 62),
  'green': (34, 148, 62),
  'blue': (30, 80, 220),
  'purple': (125, 40, 165),
  'pink': (248, 132, 188),
  'brown': (110, 62, 25),
  'black': (15, 15, 20),
  'white': (252, 252, 250),
}
BACKGROUND = (126, 176, 186)

PLACES = ('top left', 'top', 'top right', 'left', 'center', 'right', 'bottom left', 'bottom', 'bottom right')


def _silhouette(*rows: str) -> np.ndarray:
  return np.array([[c == '#' for c in row] for row in rows])


# Silhouettes, bool[EXTENT, EXTENT]; each pair overlaps with an IoU of at most 0.55 (ours: shapes are learned last, and
# silhouettes this far apart are learned far faster than star, diamond and circle).
SHAPES = {
  'ring': _silhouette(
    '...###...',
    '.#######.',
    '.##...##.',
    '##.....##',
    '##.....##',
    '##.....##',
    '.##...##.',
    '.#######.',
    '...###...',
  ),
  'square': np.ones((EXTENT, EXTENT), bool),
  'triangle': _silhouette(
    '....#....',
    '....#....',
    '...###...',
    '...###...',
    '..#####..',
    '..#####..',
    '.#######.',
    '#########',
    '#########',
  ),
  'bar': _silhouette(*['.........'] * 3, *['#########'] * 4, *['.........'] * 2),
  'cross': _silhouette(
    '.#.....#.',
    '###...###',
    '.###.###.',
    '..#####..',
    '...###...',
    '..#####..',
    '.###.###.',
    '###...###',
    '.#.....#.',
  ),
  'pole': _silhouette(*['...####..'] * 9),
}


@dataclasses.dataclass(frozen=True)
class Object:
  """One object: its shape and colour by name, its cell from 0, and its square's corner in the cell (pixels).

  As a detector saw it, it may be malformed: shape None where no silhouette fits it, color None where one does that is
  not of one colour.
  """

  shape: str | None
  color: str | None
  cell: int
  dx: int = 0
  dy: int = 0

  @property
  def origin(self) -> tuple[int, int]:
    """(x, y) of the top left pixel of the square that holds the silhouette."""
    return PITCH * (self.cell % 3) + self.dx, PITCH * (self.cell // 3) + self.dy

  @property
  def box(self) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of the silhouette in pixels, x1 and y1 exclusive."""
    x, y = self.origin
    x0, y0, x1, y1 = BOXES[self.shape]
    return x + x0, y + y0, x + x1, y + y1

  @property
  def whole(self) -> bool:
    """Whether it is an object that can be painted, and not malformed."""
    return self.shape is not None and self.color is not None

  @property
  def place(self) -> str:
    return PLACES[self.cell]


Scene = tuple[Object, ...]


def matched(wanted: Scene, seen: Scene) -> tuple[dict[Object, Object], Scene]:
  """What is seen in the cell of each wanted object, one that looks the same first of all; and what else is seen."""
  left, found = sorted(seen, key=lambda o: o.cell), {}
  for item in wanted:
    there = [o for o in left if o.cell == item.cell]
    if there:
      found[item] = next((o for o in there if (o.shape, o.color) == (item.shape, item.color)), there[0])
      left.remove(found[item])
  return found, tuple(left)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
  ys, xs = np.nonzero(mask)
  return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


BOXES = {name: _box(mask) for name, mask in SHAPES.items()}
