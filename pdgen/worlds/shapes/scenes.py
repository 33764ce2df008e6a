"""Scene representation of the shapes world: coloured objects on a 3 x 3 grid.

A scene is a tuple of `Object`s in painting order. All randomness of a picture is in its objects: equal scenes are equal
pictures. A picture may show `Malformed` ones too: what the detector sees in it is a `SeenScene`. As a scene graph
(`core.scene_graph`), an object is a node with a colour and a place; `node` and `of_graph` convert.
"""

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np

from pdgen.core import geometry, scene_graph

SIZE = 32  # pixels a side of a picture
CELLS = 9  # cells of the grid, row-major
PITCH = 11  # pixels from a cell's corner to the next cell's
EXTENT = 9  # pixels a side of the square that holds every silhouette
JITTER = 1  # largest shift of a scene to the right and down, in pixels; with more than PITCH - EXTENT objects touch

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

PLACES = geometry.PLACES


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


# What graphs of this world are drawn from, in the form of `pdgen.construction.taxonomy`.
TAXONOMY = {
  'attributes': {
    scene_graph.COLOR: {'kind': 'appearance', 'values': list(COLORS), 'required': True},
    scene_graph.PLACE: {'kind': 'state', 'values': list(PLACES), 'required': True, 'distinct': True},
  },
  'objects': [
    {'name': name, 'category': 'shape', 'attributes': {scene_graph.COLOR: [], scene_graph.PLACE: []}} for name in SHAPES
  ],
  'relations': [{'predicate': r, 'subjects': ['shape'], 'objects': ['shape']} for r in geometry.RELATIONS],
}


@dataclasses.dataclass(frozen=True)
class Object:
  """One object."""

  shape: str  # key of SHAPES
  color: str  # key of COLORS
  cell: int  # grid cell, row-major from 0
  dx: int = 0  # column of its silhouette's square in the cell, in pixels
  dy: int = 0  # row of that square

  @property
  def origin(self) -> tuple[int, int]:
    """(x, y) of the top left pixel of the silhouette's square."""
    return PITCH * (self.cell % 3) + self.dx, PITCH * (self.cell // 3) + self.dy

  @property
  def box(self) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of the silhouette in pixels, x1 and y1 exclusive."""
    x, y = self.origin
    x0, y0, x1, y1 = BOXES[self.shape]
    return x + x0, y + y0, x + x1, y + y1

  @property
  def place(self) -> str:
    return PLACES[self.cell]


@dataclasses.dataclass(frozen=True)
class Malformed:
  """An object of a picture, as the detector sees it, that has no shape or several colours."""

  likeness: str | None  # key of SHAPES: the silhouette that fits, of several colours; None: none fits
  cell: int  # grid cell, row-major from 0

  @property
  def place(self) -> str:
    return PLACES[self.cell]


Seen = Object | Malformed
Scene = tuple[Object, ...]
SeenScene = tuple[Seen, ...]


def node(id: str, *, shape: str, color: str, cell: int) -> scene_graph.Node:
  """An object as the node of a scene graph.

  Args:
    id: of the node.
    shape: key of SHAPES.
    color: key of COLORS.
    cell: grid cell.
  """
  appearance = (scene_graph.Attribute(scene_graph.COLOR, color),)
  return scene_graph.Node(
    id=id, name=shape, appearance=appearance, state=(scene_graph.Attribute(scene_graph.PLACE, PLACES[cell]),)
  )


@functools.lru_cache(maxsize=256)  # A graph is asked whether it may be shown, then what it shows, then for its picture.
def of_graph(graph: scene_graph.SceneGraph, *, dx: int = 0, dy: int = 0) -> Scene:
  """The scene that a graph describes, in the order of its nodes.

  Args:
    graph: each object a shape of the world with a colour and a place of its own; no background.
    dx: shift of all objects to the right, in pixels.
    dy: shift down.

  Raises: ValueError naming the object that the world cannot show, and why.

  >>> of_graph(scene_graph.SceneGraph(nodes=(node('ring.1', shape='ring', color='red', cell=3),)))
  (Object(shape='ring', color='red', cell=3, dx=0, dy=0),)
  """
  if graph.background:
    raise ValueError(f'The world of shapes has one background, not {graph.background!r}.')
  scene, taken = [], {}
  for item in graph.nodes:
    color, place = item.value(scene_graph.COLOR), item.place
    if item.name not in SHAPES or color not in COLORS or place is None or len(item.attributes) > 2:
      raise ValueError(f'Object {item.id!r} is no shape of the world with a colour and a place: {item}.')
    if place in taken:
      raise ValueError(f'Objects {taken[place]!r} and {item.id!r} are both at the {place}.')
    taken[place] = item.id
    scene.append(Object(item.name, color, PLACES.index(place), dx, dy))
  return tuple(scene)


def whole(seen: Iterable[Seen]) -> Scene:
  """The objects that are not malformed."""
  return tuple(o for o in seen if isinstance(o, Object))


def alike(a: Seen, b: Seen) -> bool:
  """Whether two objects have the same shape and colour; a malformed one has neither."""
  return isinstance(a, Object) and isinstance(b, Object) and (a.shape, a.color) == (b.shape, b.color)


def matched(wanted: Scene, seen: SeenScene) -> tuple[dict[Object, Seen], SeenScene]:
  """Matches seen objects to wanted ones by grid cell, preferring one of equal shape and colour.

  Returns: (wanted object to seen object, for those that have one; the other seen objects, ordered by cell).
  """
  left, found = sorted(seen, key=lambda o: o.cell), {}
  for item in wanted:
    there = [o for o in left if o.cell == item.cell]
    if there:
      found[item] = next((o for o in there if alike(o, item)), there[0])
      left.remove(found[item])
  return found, tuple(left)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
  ys, xs = np.nonzero(mask)
  return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


BOXES = {name: _box(mask) for name, mask in SHAPES.items()}
