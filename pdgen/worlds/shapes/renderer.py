"""From a scene to its picture, exactly: the same scene is always the same pixels."""

import numpy as np

from pdgen.worlds.shapes import scenes

# The last row of every silhouette column is a shade darker, so that objects stand on the page (ours).
_SHADE = 0.9


def render(scene: scenes.Scene) -> np.ndarray:
  """The picture of a scene: uint8[32, 32, 3]. Later objects cover earlier ones; parts outside the picture are cut."""
  picture = blank()
  for item in scene:
    paint(picture, scenes.SHAPES[item.shape], item.origin, item.color)
  return picture


def blank() -> np.ndarray:
  """A picture of the background alone: uint8[32, 32, 3]."""
  return _BLANK.copy()


def paint(picture: np.ndarray, mask: np.ndarray, origin: tuple[int, int], color: str) -> None:
  """Paints bool[h, w] `mask` in a colour onto `picture`, its top left pixel at `origin` (x, y). In place."""
  x, y = origin
  top, left = max(-y, 0), max(-x, 0)
  bottom, right = min(mask.shape[0], scenes.SIZE - y), min(mask.shape[1], scenes.SIZE - x)
  if top >= bottom or left >= right:
    return
  mask = mask[top:bottom, left:right]
  area = picture[y + top : y + bottom, x + left : x + right]
  area[mask] = _FILLS[color]
  lower = mask.copy()
  lower[:-1] &= ~mask[1:]
  area[lower] = _SHADES[color]


_BLANK = np.full((scenes.SIZE, scenes.SIZE, 3), scenes.BACKGROUND, np.uint8)
_FILLS = {name: np.array(rgb, np.uint8) for name, rgb in scenes.COLORS.items()}
_SHADES = {name: np.round(np.array(rgb) * _SHADE).astype(np.uint8) for name, rgb in scenes.COLORS.items()}
