"""Rule-based object detector for the shapes world. Nothing is learned: a score depends on the picture alone.

Foreground is every pixel that, after a 3 x 3 median, is nearer to one of the ten colours than to the background. A
connected component of it is an object. Its colour is the palette colour nearest to its median, its shape the silhouette
of the highest IoU. A component that fits no silhouette, or has several colours, gets shape None and a low score.
"""

import dataclasses
import functools

import numpy as np
from scipy import ndimage

from pdgen.worlds.shapes import scenes

MIN_PIXELS = 6  # of a component; smaller ones are ignored
MIN_IOU = 0.62  # with the best silhouette; two silhouettes have at most 0.55
MIN_PURITY = 0.72  # share of a component's pixels with a colour between the background and its own


@dataclasses.dataclass(frozen=True)
class Detection:
  """One detected object."""

  shape: str | None  # name of the shape; None for a malformed object
  color: str  # name of the nearest palette colour
  box: tuple[int, int, int, int]  # (x0, y0, x1, y1) in pixels, x1 and y1 exclusive
  score: float  # confidence in [0, 1]; above 0.9, GenEval's threshold for counting, exactly when shape is not None
  likeness: str | None  # shape of the silhouette that fits, whatever the colours; None if none fits

  @property
  def name(self) -> str | None:
    """The class name under which GenEval scorers read the shape (`evals.geneval.Found`)."""
    return self.shape

  @property
  def cell(self) -> int:
    """Grid cell of the box's centre, 0 to 8."""
    x0, y0, x1, y1 = self.box
    third = scenes.SIZE / 3
    column, row = (min(max(int((lo + hi) / 2 / third), 0), 2) for lo, hi in ((x0, x1), (y0, y1)))
    return 3 * row + column

  @property
  def object(self) -> scenes.Seen:
    """The detection as an object of a scene."""
    if self.shape is None:
      return scenes.Malformed(self.likeness, self.cell)
    x, y = self.box[0] - scenes.BOXES[self.shape][0], self.box[1] - scenes.BOXES[self.shape][1]
    dx, dy = x - scenes.PITCH * (self.cell % 3), y - scenes.PITCH * (self.cell // 3)
    return scenes.Object(self.shape, self.color, self.cell, dx, dy)


def detect(picture: np.ndarray) -> list[Detection]:
  """Detects the objects of uint8[H, W, 3]; sorted by score (descending), then top to bottom, left to right.

  Raises: ValueError for anything else than a colour picture of 8 bits.
  """
  picture = np.asarray(picture)
  if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
    raise ValueError(f'detect wants uint8[H, W, 3], not {picture.dtype}{list(picture.shape)}.')
  return list(_detected(picture.tobytes(), picture.shape))


@functools.lru_cache(maxsize=64)  # Who rejects a picture asks once more what is to be seen.
def _detected(content: bytes, shape: tuple[int, int, int]) -> tuple[Detection, ...]:
  picture = np.frombuffer(content, np.uint8).reshape(shape)
  smooth = _median(picture, scenes.BACKGROUND)
  values = smooth.astype(np.float32)
  best, fewest = [], None
  for linear, offset in _FOREGROUNDS:
    found = _pieces(picture, smooth, (values @ linear + offset).argmax(-1) > 0)
    broken = sum(d.shape is None for d in found)
    if fewest is None or broken < fewest:
      best, fewest = found, broken
    if not broken:
      break
  return tuple(sorted(best, key=lambda d: (-round(d.score, 3), d.box[1], d.box[0])))


def _pieces(picture: np.ndarray, smooth: np.ndarray, foreground: np.ndarray) -> list[Detection]:
  labels = np.empty(foreground.shape, np.int32)
  ndimage.label(foreground, structure=_DIAGONAL, output=labels)
  found = []
  for label, area in enumerate(ndimage.find_objects(labels), 1):
    mask = labels[area] == label
    if np.count_nonzero(mask) >= MIN_PIXELS:
      one = _classify(picture[area].tobytes(), smooth[area].tobytes(), mask.tobytes(), mask.shape)
      x, y, (x0, y0, x1, y1) = area[1].start, area[0].start, one.box
      found.append(Detection(one.shape, one.color, (x + x0, y + y0, x + x1, y + y1), one.score, one.likeness))
  return found


@functools.lru_cache(maxsize=2048)  # The renderer paints few components, each of them often.
def _classify(picture_bytes: bytes, smooth_bytes: bytes, mask_bytes: bytes, size: tuple[int, int]) -> Detection:
  """Classifies one connected component by its mask and colours.

  Args:
    picture_bytes: uint8[h, w, 3], the component's box of the picture.
    smooth_bytes: uint8[h, w, 3], the same box after the median.
    mask_bytes: bool[h, w], the component's pixels.
    size: (h, w).

  Returns: the detection, its box relative to the component's.
  """
  picture, smooth = (np.frombuffer(content, np.uint8).reshape(*size, 3) for content in (picture_bytes, smooth_bytes))
  mask = np.frombuffer(mask_bytes, bool).reshape(size)
  median = np.median(picture[mask], axis=0)
  color = int(np.argmin(np.sum((_COLORS - median) ** 2, axis=-1)))
  iou, shape, (dx, dy) = _fit(mask)
  # Distance from the line between the background and the colour: blurred edges are on that line.
  line = _COLORS[color] - _BACKGROUND
  line = line / np.linalg.norm(line)
  away = smooth[mask] - _BACKGROUND
  off = away - (away @ line)[:, None] * line
  purity = float(np.mean(np.sum(off * off, axis=-1) < (0.2 * 255) ** 2))
  name = tuple(scenes.COLORS)[color]
  if iou < MIN_IOU or purity < MIN_PURITY:
    h, w = mask.shape
    return Detection(None, name, (0, 0, w, h), 0.85 * min(iou, purity), shape if iou >= MIN_IOU else None)
  x0, y0, x1, y1 = scenes.BOXES[shape]
  box = (dx + x0, dy + y0, dx + x1, dy + y1)
  return Detection(shape, name, box, 0.9 + 0.1 * (iou - MIN_IOU + 0.01) / (1.01 - MIN_IOU), shape)


# --- silhouettes: every shape at every offset that could centre it on a component, as rows of one matrix ---

_DIAGONAL = np.ones((3, 3), bool)  # 8-connectivity: pixels that touch at a corner are connected
_REACH = 2  # largest offset of a silhouette's centre from the component's, in pixels
_WINDOW = scenes.EXTENT + 2 * _REACH


def _median(picture: np.ndarray, border: tuple[int, ...]) -> np.ndarray:
  """3 x 3 median of every channel; `border` is the colour outside the picture.

  With the background as border, an object at the edge of the picture fits its silhouette as well as one in the middle.
  """
  h, w, channels = picture.shape
  padded = np.empty((h + 2, w + 2, channels), picture.dtype)
  padded[:] = border
  padded[1:-1, 1:-1] = picture
  # The columns of every window sorted, once for the three windows that share them; then the median of the highest of
  # the lows, the middle of the middles and the lowest of the highs, which is that of all nine.
  low, middle, high = padded[:-2], padded[1:-1], padded[2:]
  low, middle = np.minimum(low, middle), np.maximum(low, middle)
  middle, high = np.minimum(middle, high), np.maximum(middle, high)
  low, middle = np.minimum(low, middle), np.maximum(low, middle)
  of_three = lambda x: (x[:, :-2], x[:, 1:-1], x[:, 2:])
  return _middle(
    functools.reduce(np.maximum, of_three(low)),
    _middle(*of_three(middle)),
    functools.reduce(np.minimum, of_three(high)),
  )


def _middle(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
  """The median of three, element by element."""
  return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def _fit(mask: np.ndarray) -> tuple[float, str, tuple[int, int]]:
  """The silhouette of the highest IoU with a component: (IoU, name, (x, y) of its corner in the component's box)."""
  h, w = mask.shape
  top, left = (_WINDOW - h) // 2, (_WINDOW - w) // 2
  window = np.zeros((_WINDOW, _WINDOW), np.float32)
  cut = mask[max(-top, 0) : max(-top, 0) + _WINDOW, max(-left, 0) : max(-left, 0) + _WINDOW]
  window[max(top, 0) : max(top, 0) + cut.shape[0], max(left, 0) : max(left, 0) + cut.shape[1]] = cut
  inter = _TEMPLATES @ window.ravel()
  iou = inter / (_TEMPLATE_PIXELS + mask.sum() - inter)
  best = int(iou.argmax())
  shape, shift_y, shift_x = _TEMPLATE_KEYS[best]
  return float(iou[best]), shape, (shift_x - left, shift_y - top)


def _templates() -> tuple[np.ndarray, list[tuple[str, int, int]]]:
  rows, keys = [], []
  for name, mask in scenes.SHAPES.items():
    # Components come from a median-filtered picture, so the silhouettes are filtered too.
    padded = np.pad(mask, _REACH).astype(np.uint8)
    smooth = _median(padded[..., None], (0,))[..., 0]
    for dy in range(-_REACH, _REACH + 1):
      for dx in range(-_REACH, _REACH + 1):
        rows.append(np.roll(smooth, (dy, dx), axis=(0, 1)).ravel())
        keys.append((name, dy + _REACH, dx + _REACH))
  return np.array(rows, np.float32), keys


_TEMPLATES, _TEMPLATE_KEYS = _templates()
_TEMPLATE_PIXELS = _TEMPLATES.sum(-1)
_COLORS = np.array(list(scenes.COLORS.values()), np.float64)
_BACKGROUND = np.array(scenes.BACKGROUND, np.float64)


def _foreground(share: float) -> tuple[np.ndarray, np.ndarray]:
  """Linear scores of the background and the colours: foreground begins `share` of the way from background to colour.

  Nearest of background and colours is argmin |p - c|^2 = argmax p.c - |c|^2 / 2.
  """
  palette = np.concatenate([_BACKGROUND[None], _BACKGROUND + 2 * share * (_COLORS - _BACKGROUND)]).astype(np.float32)
  return palette.T, -0.5 * np.sum(palette**2, axis=-1)


# Half way first. If a component is malformed: a stricter threshold (it may separate two objects that touch), then a
# laxer one (it may close a gap in a thin wall).
_FOREGROUNDS = tuple(_foreground(share) for share in (0.5, 0.6, 0.42))
