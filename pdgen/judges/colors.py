"""Colours of detected objects: GenEval's crops, and words for them by pixels (cheap) where no CLIP looks at them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from pdgen.judges import base

BACKGROUND = (0x99, 0x99, 0x99)  # what GenEval's crops have outside of a mask (official, `bgcolor`)
# Ours: a colour in sRGB that each word is nearest to.
_PROTOTYPES = {
  'red': (200, 30, 30),
  'orange': (240, 130, 20),
  'yellow': (240, 220, 40),
  'green': (40, 150, 50),
  'blue': (40, 80, 200),
  'purple': (120, 40, 150),
  'pink': (240, 140, 180),
  'brown': (110, 65, 30),
  'black': (20, 20, 20),
  'white': (240, 240, 240),
}
_STEPS = 4096  # pixels of an object that are looked at, at most


def crops(picture: np.ndarray, objects: Sequence[base.Found]) -> list[np.ndarray]:
  """What GenEval shows to CLIP: the box of each object, grey outside of its mask where it has one.

  Args:
    picture: uint8[H, W, 3].
    objects: with boxes in its pixels; edges are rounded as PIL does, and an empty box keeps a pixel.

  Raises: ValueError for a mask of another size than the picture.
  """
  return [_crop(picture, item) for item in objects]


def by_pixels(picture: np.ndarray, objects: Sequence[base.Found]) -> list[str | None]:
  """The colour word that most pixels of each object are nearest to, in CIELAB (ours; GenEval asks CLIP).

  Args:
    picture: uint8[H, W, 3].
    objects: pixels inside of their masks count, all of the box without one.
  """
  return [_word(picture, item) for item in objects]


def _crop(picture: np.ndarray, item: base.Found) -> np.ndarray:
  image = Image.fromarray(picture)
  if item.mask is not None:
    _check(picture, item.mask)
    blank = Image.new('RGB', image.size, BACKGROUND)
    image = Image.composite(image, blank, Image.fromarray(item.mask))
  return np.asarray(image.crop(_edges(item.box)))


def _word(picture: np.ndarray, item: base.Found) -> str | None:
  x0, y0, x1, y1 = _edges(item.box)
  window = (slice(max(y0, 0), max(y1, 0)), slice(max(x0, 0), max(x1, 0)))
  pixels = picture[window].reshape(-1, 3)
  if item.mask is not None:
    _check(picture, item.mask)
    pixels = picture[window][item.mask[window]]
  if not len(pixels):
    return None
  seen = _lab(pixels[:: max(1, len(pixels) // _STEPS)])
  words = list(_PROTOTYPES)
  nearest = np.square(seen[:, None] - _lab(np.array(list(_PROTOTYPES.values())))).sum(-1).argmin(1)
  return words[int(np.bincount(nearest, minlength=len(words)).argmax())]


def _edges(box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
  x0, y0, x1, y1 = (round(float(edge)) for edge in box)
  return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def _check(picture: np.ndarray, mask: np.ndarray):
  if mask.shape != picture.shape[:2] or mask.dtype != np.bool_:
    raise ValueError(f'A mask is {mask.dtype}{list(mask.shape)}, not bool{list(picture.shape[:2])} as its picture.')


def _lab(rgb: np.ndarray) -> np.ndarray:
  """sRGB in 0..255 [N, 3] as CIELAB (D65)."""
  srgb = np.asarray(rgb, np.float64) / 255
  linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
  to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
  xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
  x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (xyz * 24389 / 27 + 16) / 116).T
  return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
