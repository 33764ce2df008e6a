"""Builds the token arrays of one sample from text spans and picture copies: the one builder of training and sampling.

An item list spells a sequence out, as BAGEL's datasets do (`sequence_plan`): text and pictures of any size, pictures
that only the ViT or only the VAE sees, frames of a video. `data.sequence` makes one of a trajectory.

>>> from pdgen.core import config
>>> specials = config.Specials(**{name: 9 for name in config.Specials.__dataclass_fields__})
>>> model = config.ModelConfig(codec=config.CodecConfig(patch=8), max_latent_size=4)
>>> grey = np.zeros([8, 16, 3], np.float32)
>>> row = build(
...   [Text(ids=(1, 2)), Latents(pixels=grey, learned=True)], specials=specials, model=model,
...   sequence=config.SequenceConfig(), canvas=(16, 16),
... )
>>> [field.tolist() for field in (row.und.tokens.position, row.gen.tokens.position, row.gen.patch, row.grids)]
[[0, 1, 2, 3, 4, 4], [4, 4], [0, 1], [[1, 2]]]
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.data import images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
  """A text, causal, one position a token."""

  ids: tuple[int, ...]  # Its tokens, without the boundary tokens.
  # Cross-entropy weight of the tokens and of `<|im_end|>`: one for all, or one each (len(ids) + 1); divided by
  # sqrt(len(ids) + 1) with SequenceConfig.length_weighting (BAGEL).
  weights: float | Sequence[float] = 0.0
  end_label: int | None = None  # What `<|im_end|>` must predict; None: nothing.
  end_weight: float | None = None  # Of that label; None: SequenceConfig.boundary_weight.
  droppable: bool = False  # May be left out, with probability `SequenceConfig.drop_text`.
  kept: bool = False  # Blind copies see it, and all before it: guidance by texts drops what comes after.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patches:
  """A picture as the ViT sees it. It advances the position by 1."""

  # uint8, or float32 in [-1, 1]; [H, W, 3], sides multiples of `VitConfig.patch`. Without a canvas: the picture itself.
  pixels: np.ndarray
  end_label: int | None = None  # What `<|vision_end|>` must predict; None: nothing.
  end_weight: float | None = None  # Of that label; None: SequenceConfig.boundary_weight.
  droppable: bool = False  # May be left out, with probability `SequenceConfig.drop_vit`.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latents:
  """A picture, or a frame of a video, as the VAE sees it. Items that hold the same array share one encoding."""

  pixels: np.ndarray  # uint8, or float32 in [-1, 1]; [H, W, 3], sides multiples of `CodecConfig.patch`.
  learned: bool = False  # It is noised and carries the flow loss; otherwise it is clean.
  weight: float = 1.0  # In the flow loss, where it is learned.
  blind: bool = False  # A noised copy that sees nothing after the last picture or kept text, and is placed there.
  end_label: int | None = None  # What `<|vision_end|>` must predict; None: nothing.
  end_weight: float | None = None  # Of that label; None: SequenceConfig.boundary_weight.
  droppable: bool = False  # May be left out, with probability `SequenceConfig.drop_clean`.
  goes_on: bool = False  # Of the same video as the item before: they see each other, and share one timestep.
  frame_delta: int | None = None  # Positions to the next frame; None: 1 after a clean picture, 0 after a noised one.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gap:
  """A picture copy that is left out: it advances the position all the same (QUIRKS 8)."""

  positions: int = 1


Item = Text | Patches | Latents | Gap


def drop(items: Sequence[Item], *, sequence: config_lib.SequenceConfig, rng: np.random.Generator) -> list[Item]:
  """Condition dropout: leaves out droppable items. A text leaves no gap in the positions, a picture does (QUIRKS 8)."""
  probabilities = {Text: sequence.drop_text, Patches: sequence.drop_vit, Latents: sequence.drop_clean}
  kept: list[Item] = []
  for item in items:
    if not isinstance(item, Gap) and item.droppable and rng.random() < probabilities[type(item)]:
      kept += [] if isinstance(item, Text) else [Gap()]
    else:
      kept.append(item)
  return kept


def build(
  items: Sequence[Item],
  *,
  specials: config_lib.Specials,
  model: config_lib.ModelConfig,
  sequence: config_lib.SequenceConfig,
  canvas: tuple[int, int] | None = None,
) -> packed.PackedBatch:
  """One sample, unpadded, without the batch axis; segment 1. For `data.packing.pack_row`.

  A noised picture is hidden from all others, but the frames of a video that begins with a `frame_delta` are not:
  whatever follows sees them, as in the reference (QUIRKS B5).

  Args:
    items: in the order of the sequence.
    specials: the boundary tokens; its other ids are not read.
    model: its sizes of patches and position tables.
    sequence: its length_weighting and boundary_weight.
    canvas: (H, W) of the array that holds the pictures of any size, the same for all samples of a run; the ViT then
      gets patches of its own (`PackedBatch.vit`). None: every picture is of the model's own size, for both.

  Raises: ValueError for a picture that has no whole patches or does not fit.
  """
  builder = _Builder(specials=specials, model=model, sequence=sequence, canvas=canvas)
  for item in items:
    builder.append(item)
  return builder.row()


def length_weight(supervised: int) -> float:
  """Weight of each token of a text of that many supervised tokens: 1 / sqrt, 0 for none (BAGEL's `len2weight`).

  >>> [length_weight(n) for n in (0, 1, 4)]
  [0.0, 1.0, 0.5]
  """
  return supervised**-0.5 if supervised else 0.0


class _Run(NamedTuple):
  """Tokens in sequence that share their metadata; fields as of `core.packed`."""

  length: int
  is_gen: bool
  span: int
  noised: bool
  position: int
  position_step: int
  reach: int  # _OWN_ORDER: each token's own order.
  picture: int
  copy: int
  weight: float  # In the flow loss.


_OWN_ORDER = -2
_TYPES = {'is_gen': bool, 'noised': bool, 'weight': np.float32}
_RUN = np.dtype([(name, _TYPES.get(name, np.int32)) for name in _Run._fields])


class _Builder:
  """Appends items as runs of tokens, then expands the runs to arrays at once."""

  def __init__(
    self,
    *,
    specials: config_lib.Specials,
    model: config_lib.ModelConfig,
    sequence: config_lib.SequenceConfig,
    canvas: tuple[int, int] | None,
  ):
    self._specials, self._model, self._sequence, self._canvas = specials, model, sequence, canvas
    self._order = 0  # Of the next token.
    self._position = 0  # The counter of RoPE positions.
    self._spans, self._copies, self._hidden = 0, 0, False
    # Last order and counter right after the last picture, or kept text: what a blind copy knows.
    self._after_picture = (-1, 0)
    self._runs: list[_Run] = []
    self._token_id: list[int] = []
    self._label: list[int] = []
    self._weight: list[float] = []
    self._gen_patch: list[np.ndarray] = [np.zeros(0, np.int32)]
    self._vit_patch: list[np.ndarray] = [np.zeros(0, np.int32)]
    self._pictures: list[np.ndarray] = []
    self._vit_pictures: list[np.ndarray] = []

  def append(self, item: Item):
    if isinstance(item, Text):
      self._text(item)
      return
    if isinstance(item, Gap):
      self._position += item.positions
    elif isinstance(item, Patches):
      self._patches(item)
    else:
      self._latents(item)
    if not (isinstance(item, Latents) and item.learned):
      self._after_picture = (self._order - 1, self._position)

  def _text(self, item: Text):
    count = len(item.ids) + 1
    weights = [item.weights] * count if isinstance(item.weights, (int, float)) else list(item.weights)
    if len(weights) != count:
      raise ValueError(f'A text of {len(item.ids)} tokens has {len(weights)} weights; it needs {count}.')
    scale = length_weight(count) if self._sequence.length_weighting else 1.0
    end = self._specials.im_end
    # Each token's label is the next one; the last one's is end_label.
    self._token_id += [self._specials.im_start, *item.ids, end]
    self._label += [*item.ids, end, item.end_label or 0]
    self._weight += [*(scale * weight for weight in weights), self._end_weight(item)]
    self._run(count + 1, position=self._position, position_step=1)
    self._position += count + 1
    if item.kept:
      self._after_picture = (self._order - 1, self._position)

  def _patches(self, item: Patches):
    vit = self._model.vit
    if vit is None:
      raise ValueError('The sequence shows a picture to the ViT, but the model has none (config.model.vit).')
    if self._canvas is None:
      places, picture = np.arange(self._model.vit_tokens, dtype=np.int32), self._picture(item.pixels)
    else:
      first = sum(_count(pixels, vit.patch) for pixels in self._vit_pictures)
      places = first + np.arange(_count(item.pixels, vit.patch), dtype=np.int32)
      picture = len(self._vit_pictures)
      self._vit_pictures.append(item.pixels)
    self._spans += 1
    self._boundary(self._specials.vision_start)
    self._token_id += [0] * len(places)
    self._label += [0] * len(places)
    self._weight += [0.0] * len(places)
    self._run(len(places), span=self._spans, position=self._position, picture=picture)
    self._vit_patch.append(places)
    self._boundary(self._specials.vision_end, item)
    self._position += 1

  def _latents(self, item: Latents):
    rows, columns = _grid(item.pixels, self._model.codec.patch)
    if not item.goes_on:
      self._spans += 1
      self._copies += item.learned
      self._hidden = item.learned and item.frame_delta is None
    reach, position = self._after_picture if item.blind else (_OWN_ORDER, self._position)
    patches = packed.position_ids(
      rows, columns, self._model.max_latent_size, interpolate=self._model.interpolate_positions
    )
    self._boundary(self._specials.vision_start, noised=self._hidden, reach=reach, position=position)
    self._run(
      len(patches),
      is_gen=True,
      span=self._spans,
      picture=self._picture(item.pixels),
      copy=self._copies if item.learned else 0,
      weight=item.weight if item.learned else 0.0,
      noised=self._hidden,
      reach=reach,
      position=position,
    )
    self._gen_patch.append(patches)
    self._boundary(self._specials.vision_end, item, noised=self._hidden, reach=reach, position=position)
    self._position += item.frame_delta if item.frame_delta is not None else int(not item.learned)

  def _boundary(
    self,
    token: int,
    item: Patches | Latents | None = None,
    *,
    noised: bool = False,
    reach: int = _OWN_ORDER,
    position: int | None = None,
  ):
    """A boundary token of the current span; at its end, that of the item, whose label it predicts."""
    self._token_id.append(token)
    self._label.append(item.end_label or 0 if item else 0)
    self._weight.append(self._end_weight(item) if item else 0.0)
    self._run(
      1, span=self._spans, noised=noised, reach=reach, position=self._position if position is None else position
    )

  def _end_weight(self, item: Text | Patches | Latents) -> float:
    if item.end_label is None:
      return 0.0
    return self._sequence.boundary_weight if item.end_weight is None else item.end_weight

  def _run(
    self,
    length: int,
    *,
    position: int,
    position_step: int = 0,
    is_gen: bool = False,
    span: int = 0,
    noised: bool = False,
    reach: int = _OWN_ORDER,
    picture: int = -1,
    copy: int = 0,
    weight: float = 0.0,
  ):
    self._runs.append(_Run(length, is_gen, span, noised, position, position_step, reach, picture, copy, weight))
    self._order += length

  def _picture(self, pixels: np.ndarray) -> int:
    """The number of a picture in the row; one that is there already has one."""
    for number, known in enumerate(self._pictures):
      if known is pixels:
        return number
    side = self._model.image_size
    if self._canvas is None and (pixels.shape != (side, side, 3) or pixels.dtype != np.uint8):
      raise ValueError(
        f'A picture is {pixels.dtype}{list(pixels.shape)}; the model paints uint8{[side, side, 3]}. Resize it, set '
        'config.model.image_size, or let the data have pictures of other sizes: config.data.picture_sizes.'
      )
    self._pictures.append(pixels)
    return len(self._pictures) - 1

  def row(self) -> packed.PackedBatch:
    """The arrays of both streams."""
    runs = np.array(self._runs, _RUN)
    order = np.arange(self._order, dtype=np.int32)
    first = np.cumsum(runs['length'], dtype=np.int32) - runs['length']
    within = order - np.repeat(first, runs['length'])
    each = np.repeat(runs, runs['length'])
    tokens = packed.TokenMeta(
      segment=np.ones(self._order, np.int32),
      order=order,
      reach=np.where(each['reach'] == _OWN_ORDER, order, each['reach']),
      span=each['span'],
      noised=each['noised'].astype(np.int32),
      position=each['position'] + each['position_step'] * within,
    )
    of_gen, of_und = np.flatnonzero(each['is_gen']), np.flatnonzero(~each['is_gen'])
    gen, und = each[of_gen], each[of_und]
    patch = np.zeros(len(of_und), np.int32)
    patch[und['picture'] >= 0] = np.concatenate(self._vit_patch)
    return packed.PackedBatch(
      und=packed.UndStream(
        tokens=packed.TokenMeta(*(field[of_und] for field in tokens)),
        token_id=np.array(self._token_id, np.int32),
        label=np.array(self._label, np.int32),
        weight=np.array(self._weight, np.float32),
        picture=np.ascontiguousarray(und['picture']),
        patch=patch,
      ),
      gen=packed.GenStream(
        tokens=packed.TokenMeta(*(field[of_gen] for field in tokens)),
        picture=np.ascontiguousarray(gen['picture']),
        patch=np.concatenate(self._gen_patch),
        copy=np.ascontiguousarray(gen['copy']),
        weight=np.ascontiguousarray(gen['weight']),
      ),
      pictures=self._stacked(),
      grids=None if self._canvas is None else self._grids(),
      vit=None if self._canvas is None or self._model.vit is None else self._vit_stream(self._model.vit),
    )

  def _stacked(self) -> np.ndarray:
    height, width = self._canvas or (self._model.image_size, self._model.image_size)
    if not self._pictures:
      return np.zeros([0, height, width, 3], np.uint8)
    return np.stack([_on_canvas(pixels, (height, width)) for pixels in self._pictures])

  def _grids(self) -> np.ndarray:
    grids = [_grid(pixels, self._model.codec.patch) for pixels in self._pictures]
    return np.array(grids, np.int32).reshape(-1, 2)

  def _vit_stream(self, vit: config_lib.VitConfig) -> packed.VitStream:
    dtype = self._vit_pictures[0].dtype if self._vit_pictures else np.uint8
    tokens = [images.patches(pixels, vit.patch) for pixels in self._vit_pictures]
    positions = [
      packed.position_ids(*_grid(pixels, vit.patch), vit.max_patches, interpolate=self._model.interpolate_positions)
      for pixels in self._vit_pictures
    ]
    return packed.VitStream(
      pixels=np.concatenate([np.zeros([0, 3 * vit.patch**2], dtype), *tokens]),
      position=np.concatenate([np.zeros(0, np.int32), *positions]),
      image=np.repeat(np.arange(1, len(tokens) + 1, dtype=np.int32), [len(t) for t in tokens]),
    )


def _count(pixels: np.ndarray, patch: int) -> int:
  rows, columns = _grid(pixels, patch)
  return rows * columns


def _grid(pixels: np.ndarray, patch: int) -> tuple[int, int]:
  """Rows and columns of patches."""
  height, width = pixels.shape[:2]
  if height % patch or width % patch or not height or not width:
    raise ValueError(f'A picture of {height} x {width} pixels has no whole patches of {patch}. See `data.images`.')
  return height // patch, width // patch


def _on_canvas(pixels: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
  """The picture in the top left corner of an array of that size."""
  height, width = pixels.shape[:2]
  if (height, width) == canvas:
    return pixels
  if height > canvas[0] or width > canvas[1]:
    raise ValueError(f'A picture of {height} x {width} pixels does not fit {canvas=}.')
  return np.pad(pixels, ((0, canvas[0] - height), (0, canvas[1] - width), (0, 0)))
