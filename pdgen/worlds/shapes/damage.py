"""Malformed objects: what a diffusion model's own bad drafts look like.

Half of an object is not there, a blob stands in its place, two colours or two shapes run into one another, it is washed
out. Whatever is made here is malformed by the detector too.
"""

import numpy as np
from scipy import ndimage

from pdgen.worlds.shapes import detector, renderer, scenes


def paint(scene: scenes.Scene, victim: scenes.Object, *, rng: np.random.Generator) -> np.ndarray:
  """The picture of a scene in which one object is malformed: uint8[H, W, 3]."""
  rest = renderer.render(tuple(o for o in scene if o != victim))
  while True:
    picture = rest.copy()
    _WAYS[int(rng.integers(len(_WAYS)))](picture, victim, rng)
    here = [d for d in detector.detect(picture) if d.cell == victim.cell]
    if here and all(d.shape is None for d in here):
      return picture


def _half_erased(picture, victim, rng):
  renderer.paint(picture, scenes.SHAPES[victim.shape] & _half(rng, offset=rng.uniform(-1.5, 1)), *_at(victim))


def _blob(picture, victim, rng):
  field = ndimage.gaussian_filter(rng.normal(size=(scenes.EXTENT, scenes.EXTENT)), rng.uniform(0.7, 1.4))
  renderer.paint(picture, field > np.quantile(field, rng.uniform(0.4, 0.65)), *_at(victim))


def _two_colors(picture, victim, rng):
  mask = scenes.SHAPES[victim.shape]
  if rng.random() < 0.5:
    part = _half(rng, offset=0)
  else:
    part = ndimage.gaussian_filter(rng.normal(size=mask.shape), 0.8) > 0
  renderer.paint(picture, mask, *_at(victim))
  renderer.paint(picture, mask & part, victim.origin, _any(rng, scenes.COLORS, victim.color))


def _two_shapes(picture, victim, rng):
  mask = scenes.SHAPES[victim.shape]
  other = scenes.SHAPES[_any(rng, scenes.SHAPES, victim.shape)]
  part = ndimage.gaussian_filter(rng.normal(size=mask.shape), 1.5) > 0
  renderer.paint(picture, np.where(part, mask, other), *_at(victim))


def _washed_out(picture, victim, rng):
  """Blurred and noisy: what is left of an object after too few denoising steps."""
  drawn = picture.copy()
  renderer.paint(drawn, scenes.SHAPES[victim.shape], *_at(victim))
  x, y = victim.origin
  area = np.s_[y : y + scenes.EXTENT, x : x + scenes.EXTENT]
  blurred = ndimage.gaussian_filter(drawn[area].astype(np.float64), (rng.uniform(1.2, 2), rng.uniform(1.2, 2), 0))
  noise = ndimage.gaussian_filter(rng.normal(size=blurred.shape), (0.7, 0.7, 0)) * rng.uniform(40, 90)
  picture[area] = np.clip(blurred + noise, 0, 255).astype(np.uint8)


_WAYS = (_half_erased, _blob, _two_colors, _two_shapes, _washed_out)


def _half(rng: np.random.Generator, *, offset: float) -> np.ndarray:
  """One side of a line through the middle, at any angle: bool[EXTENT, EXTENT]."""
  angle = rng.uniform(0, 2 * np.pi)
  y, x = np.mgrid[: scenes.EXTENT, : scenes.EXTENT] - scenes.EXTENT // 2
  return np.cos(angle) * x + np.sin(angle) * y > offset


def _any(rng: np.random.Generator, names, but: str) -> str:
  options = [n for n in names if n != but]
  return options[int(rng.integers(len(options)))]


def _at(victim: scenes.Object) -> tuple[tuple[int, int], str]:
  return victim.origin, victim.color
