"""Interleaved samples that spell out their own sequence, as BAGEL's datasets do (`sequence_plan`).

A trajectory says what happened and `data.sequence` decides what is learned; here the sample says it item by item: for
text and pictures of any size, pictures only the ViT or only the VAE sees, and frames of a video.

>>> from pdgen.core import config
>>> specials = config.Specials(**{name: 9 for name in config.Specials.__dataclass_fields__})
>>> model = config.ModelConfig(codec=config.CodecConfig(patch=8), max_latent_size=4)
>>> grey = np.zeros([8, 16, 3], np.float32)
>>> row = build(
...   [Text(ids=(1, 2)), Latents(pixels=grey, learned=True)], specials=specials, model=model,
...   sequence=config.SequenceConfig(), rng=np.random.default_rng(0), canvas=(16, 16),
... )
>>> [field.tolist() for field in (row.und.tokens.position, row.gen.tokens.position, row.gen.patch, row.grids)]
[[0, 1, 2, 3, 4, 4], [4, 4], [0, 1], [[1, 2]]]
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.data import images
from pdgen.data import layout as layout_lib

_FROZEN = dict(frozen=True, kw_only=True)


@dataclasses.dataclass(**_FROZEN)
class Text:
  """A text.

  Attributes:
    ids: its tokens, without the boundary tokens.
    learned: cross-entropy on its tokens and on `<|im_end|>`.
    end_label: what `<|im_end|>` must predict; None: nothing.
    droppable: may be left out, with probability `SequenceConfig.drop_text`.
  """

  ids: tuple[int, ...]
  learned: bool = False
  end_label: int | None = None
  droppable: bool = False


@dataclasses.dataclass(**_FROZEN)
class Patches:
  """A picture as the ViT sees it.

  Attributes:
    pixels: uint8, or float32 in [-1, 1]; [H, W, 3], sides multiples of `VitConfig.patch`.
    end_label: what `<|vision_end|>` must predict; None: nothing.
    droppable: may be left out, with probability `SequenceConfig.drop_vit`.
  """

  pixels: np.ndarray
  end_label: int | None = None
  droppable: bool = False


@dataclasses.dataclass(**_FROZEN)
class Latents:
  """A picture, or a frame of a video, as the VAE sees it.

  Attributes:
    pixels: uint8, or float32 in [-1, 1]; [H, W, 3], sides multiples of `CodecConfig.patch`.
    learned: it is noised and carries the flow loss; otherwise it is clean.
    end_label: what `<|vision_end|>` must predict; None: nothing.
    droppable: may be left out, with probability `SequenceConfig.drop_clean`.
    goes_on: it belongs to the same video as the item before: they see each other, and share one timestep.
    frame_delta: positions from this frame to the next; None: 1 after a clean picture, 0 after a noised one.
  """

  pixels: np.ndarray
  learned: bool = False
  end_label: int | None = None
  droppable: bool = False
  goes_on: bool = False
  frame_delta: int | None = None


Item = Text | Patches | Latents


def build(
  items: Sequence[Item],
  *,
  specials: config_lib.Specials,
  model: config_lib.ModelConfig,
  sequence: config_lib.SequenceConfig,
  rng: np.random.Generator,
  canvas: tuple[int, int],
) -> packed.PackedBatch:
  """One sample, unpadded, without the batch axis; segment 1. For `data.packing.join`.

  specials: the boundary tokens; its other ids are not read. sequence: its drop probabilities, length_weighting and
  boundary_weight. canvas: (H, W) of the array that holds the VAE's pictures, the same for all samples of a run.

  A dropped text leaves the position counter as it is, a dropped picture advances it by 1 (QUIRKS 8). A noised picture
  is hidden from all others, but the frames of a video that begins with a `frame_delta` are not: whatever follows
  sees them, as in the reference (QUIRKS B5).

  Raises: ValueError for a picture that has no whole patches or does not fit.
  """
  layout = layout_lib.Layout(specials)
  drops = {Text: sequence.drop_text, Patches: sequence.drop_vit, Latents: sequence.drop_clean}
  seen: list[np.ndarray] = []
  painted: list[np.ndarray] = []
  grids: list[tuple[int, int]] = []
  copies, hidden = 0, False
  for item in items:
    if item.droppable and rng.random() < drops[type(item)]:
      layout.position += not isinstance(item, Text)
      continue
    if isinstance(item, Text):
      scale = layout_lib.length_weight(len(item.ids) + 1) if sequence.length_weighting else 1.0
      weights = [scale * item.learned] * (len(item.ids) + 1)
      weights.append(sequence.boundary_weight if item.end_label is not None else 0.0)
      layout.text(item.ids, weights=weights, end_label=item.end_label)
      continue
    end = dict(end_label=item.end_label, end_weight=sequence.boundary_weight)
    if isinstance(item, Patches):
      places = sum(map(_count(model.vit.patch), seen)) + np.arange(_count(model.vit.patch)(item.pixels), dtype=np.int32)
      layout.copy(places, is_gen=False, picture=len(seen), position=layout.position, **end)
      seen.append(item.pixels)
      layout.position += 1
      continue
    rows, columns = _grid(item.pixels, model.codec.patch)
    if not item.goes_on:
      copies += item.learned
      hidden = item.learned and item.frame_delta is None
    layout.copy(
      packed.position_ids(rows, columns, model.max_latent_size, interpolate=model.interpolate_positions),
      is_gen=True,
      picture=len(painted),
      position=layout.position,
      noised=hidden,
      copy=copies if item.learned else 0,
      same_span=item.goes_on,
      **end,
    )
    painted.append(_on_canvas(item.pixels, canvas))
    grids.append((rows, columns))
    layout.position += item.frame_delta if item.frame_delta is not None else int(not item.learned)
  return layout.row(
    np.stack(painted) if painted else np.zeros([0, *canvas, 3], np.uint8),
    grids=np.array(grids, np.int32).reshape(-1, 2),
    vit=_vit_stream(seen, model) if model.vit is not None else None,
  )


def _count(patch: int):
  return lambda pixels: int(np.prod(_grid(pixels, patch)))


def _grid(pixels: np.ndarray, patch: int) -> tuple[int, int]:
  """Rows and columns of patches."""
  height, width = pixels.shape[:2]
  if height % patch or width % patch or not height or not width:
    raise ValueError(f'A picture of {height} x {width} pixels has no whole patches of {patch}. See `data.images`.')
  return height // patch, width // patch


def _on_canvas(pixels: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
  """The picture in the top left corner of an array of that size."""
  height, width = pixels.shape[:2]
  if height > canvas[0] or width > canvas[1]:
    raise ValueError(f'A picture of {height} x {width} pixels does not fit {canvas=}.')
  return np.pad(pixels, ((0, canvas[0] - height), (0, canvas[1] - width), (0, 0)))


def _vit_stream(pictures: list[np.ndarray], model: config_lib.ModelConfig) -> packed.VitStream:
  vit = model.vit

  def positions(pixels: np.ndarray) -> np.ndarray:
    return packed.position_ids(*_grid(pixels, vit.patch), vit.max_patches, interpolate=model.interpolate_positions)

  dtype = pictures[0].dtype if pictures else np.uint8
  empty = np.zeros([0, 3 * vit.patch**2], dtype), np.zeros(0, np.int32)
  tokens = [images.patches(pixels, vit.patch) for pixels in pictures]
  return packed.VitStream(
    pixels=np.concatenate([empty[0], *tokens]),
    position=np.concatenate([empty[1], *map(positions, pictures)]),
    image=np.repeat(np.arange(1, len(pictures) + 1, dtype=np.int32), [len(t) for t in tokens]),
  )
