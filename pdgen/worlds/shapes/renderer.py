"""Renders a scene to its picture. Deterministic: equal scenes give equal pixels."""

import functools

import numpy as np

from pdgen.core import scene_graph
from pdgen.worlds.shapes import scenes

# Brightness of the lowest pixel of every silhouette column (ours): objects get a darker lower edge.
_SHADE = 0.9


def render(scene: scenes.Scene) -> np.ndarray:
  """The picture of a scene: uint8[32, 32, 3]. Later objects cover earlier ones; parts outside the page are clipped."""
  picture = blank()
  for item in scene:
    paint(picture, scenes.SHAPES[item.shape], item.origin, item.color)
  return picture


def render_graph(graph: scene_graph.SceneGraph) -> np.ndarray:
  """The picture of a scene graph: uint8[32, 32, 3]. Raises: ValueError naming an object that the world cannot show."""
  return render(scenes.of_graph(graph))


def blank() -> np.ndarray:
  """A picture of the background alone: uint8[32, 32, 3]."""
  return _BLANK.copy()


def paint(picture: np.ndarray, mask: np.ndarray, origin: tuple[int, int], color: str) -> None:
  """Paints a silhouette onto a picture, in place.

  Args:
    picture: uint8[32, 32, 3].
    mask: bool[h, w], the silhouette.
    origin: (x, y) of its top left pixel in the picture.
    color: key of `scenes.COLORS`.
  """
  x, y = origin
  top, left = max(-y, 0), max(-x, 0)
  bottom, right = min(mask.shape[0], scenes.SIZE - y), min(mask.shape[1], scenes.SIZE - x)
  if top >= bottom or left >= right:
    return
  mask = mask[top:bottom, left:right]
  area = picture[y + top : y + bottom, x + left : x + right]
  np.copyto(area, _colored(mask.tobytes(), mask.shape, color), where=mask[:, :, None])


@functools.lru_cache(maxsize=1024)  # All silhouettes in all colours, and some of the random ones of damage.
def _colored(mask_bytes: bytes, size: tuple[int, int], color: str) -> np.ndarray:
  """The box of a silhouette, bool[h, w], in its colour with its lower edge shaded: uint8[h, w, 3]."""
  mask = np.frombuffer(mask_bytes, bool).reshape(size)
  lower = mask.copy()
  lower[:-1] &= ~mask[1:]
  return np.where(lower[:, :, None], _SHADES[color], _FILLS[color])


_BLANK = np.full((scenes.SIZE, scenes.SIZE, 3), scenes.BACKGROUND, np.uint8)
_FILLS = {name: np.array(rgb, np.uint8) for name, rgb in scenes.COLORS.items()}
_SHADES = {name: np.round(np.array(rgb) * _SHADE).astype(np.uint8) for name, rgb in scenes.COLORS.items()}
