"""Spans of text and copies of pictures, appended in turn, to the arrays of one sample (design, "The sequence")."""

from collections.abc import Sequence

import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import packed


class Layout:
  """Appends spans as runs of tokens that share their metadata, then expands the runs to arrays at once.

  Attributes:
    order: of the next token.
    position: the counter of RoPE positions. Texts advance it; who appends copies of pictures advances it himself,
      because a noised copy, or one that is left out, has rules of its own.
  """

  def __init__(self, specials: config_lib.Specials):
    self.order = 0
    self.position = 0
    self._specials = specials
    self._spans = 0
    # A run: length, is_gen, span, noised, position, step of position, reach (None: own order), picture, copy.
    self._runs: list[tuple] = []
    self._token_id: list[int] = []
    self._label: list[int] = []
    self._weight: list[float] = []
    self._gen_patch: list[np.ndarray] = [np.zeros(0, np.int32)]
    self._vit_patch: list[np.ndarray] = [np.zeros(0, np.int32)]

  def text(self, ids: Sequence[int], *, weights: Sequence[float], end_label: int | None):
    """`<|im_start|> ids <|im_end|>`, causal, one position a token.

    weights: of the labels of all len(ids) + 2 tokens; each token's label is the next one, the last one's is end_label.
    """
    end = self._specials.im_end
    self._und([self._specials.im_start, *ids, end], [*ids, end, end_label or 0], weights)
    self._run(len(ids) + 2, position=self.position, position_step=1)
    self.position += len(ids) + 2

  def copy(
    self,
    patches: np.ndarray,
    *,
    is_gen: bool,
    picture: int,
    position: int,
    reach: int | None = None,
    noised: bool = False,
    copy: int = 0,
    same_span: bool = False,
    end_label: int | None = None,
    end_weight: float = 0.0,
  ):
    """`<|vision_start|> patches <|vision_end|>`, one span at one position.

    patches: `patch` of the stream's tokens. is_gen: latents, not ViT tokens. reach: last order it may see outside its
    span; None: all before. noised: nobody else may see it. copy: number of its timestep, 0 for a clean copy. same_span:
    it goes on with the span of the copy before it. end_label, end_weight: of `<|vision_end|>`.
    """
    self._spans += not same_span
    shared = dict(span=self._spans, noised=int(noised), position=position, reach=reach)
    self._und([self._specials.vision_start], [0], [0.0])
    self._run(1, **shared)
    self._run(len(patches), is_gen=is_gen, picture=picture, copy=copy, **shared)
    if is_gen:
      self._gen_patch.append(patches)
    else:
      self._vit_patch.append(patches)
      self._und([0] * len(patches), [0] * len(patches), [0.0] * len(patches))
    self._und([self._specials.vision_end], [end_label or 0], [0.0 if end_label is None else end_weight])
    self._run(1, **shared)

  def row(
    self, pictures: np.ndarray, *, grids: np.ndarray | None = None, vit: packed.VitStream | None = None
  ) -> packed.PackedBatch:
    """The arrays of both streams; segment 1, no batch axis. Arguments as of `core.packed.PackedBatch`."""
    runs = np.array(self._runs, np.int32).reshape(-1, 10)
    length = runs[:, 0]
    order = np.arange(self.order, dtype=np.int32)
    within = order - np.repeat(np.cumsum(length, dtype=np.int32) - length, length)
    _, gen, span, noised, position, step, follows, reach, picture, copy = np.repeat(runs, length, axis=0).T
    tokens = packed.TokenMeta(
      segment=np.ones(self.order, np.int32),
      order=order,
      reach=np.where(follows, order, reach),
      span=span,
      noised=noised,
      position=position + step * within,
    )
    of_gen, of_und = np.flatnonzero(gen), np.flatnonzero(gen == 0)
    patch = np.zeros(len(of_und), np.int32)
    patch[picture[of_und] >= 0] = np.concatenate(self._vit_patch)
    return packed.PackedBatch(
      und=packed.UndStream(
        tokens=packed.TokenMeta(*(field[of_und] for field in tokens)),
        token_id=np.array(self._token_id, np.int32),
        label=np.array(self._label, np.int32),
        weight=np.array(self._weight, np.float32),
        picture=picture[of_und],
        patch=patch,
      ),
      gen=packed.GenStream(
        tokens=packed.TokenMeta(*(field[of_gen] for field in tokens)),
        picture=picture[of_gen],
        patch=np.concatenate(self._gen_patch),
        copy=copy[of_gen],
        weight=(copy[of_gen] > 0).astype(np.float32),
      ),
      pictures=pictures,
      grids=grids,
      vit=vit,
    )

  def _run(self, length, *, position, position_step=0, is_gen=False, span=0, noised=0, reach=None, picture=-1, copy=0):
    follows = reach is None
    self._runs.append(
      (length, is_gen, span, noised, position, position_step, follows, -1 if follows else reach, picture, copy)
    )
    self.order += length

  def _und(self, token_id: Sequence[int], label: Sequence[int], weight: Sequence[float]):
    self._token_id += token_id
    self._label += label
    self._weight += weight


def length_weight(supervised: int) -> float:
  """Weight of each token of a text of that many supervised tokens: 1 / sqrt, 0 for none (BAGEL's `len2weight`).

  >>> [length_weight(n) for n in (0, 1, 4)]
  [0.0, 1.0, 0.5]
  """
  return supervised**-0.5 if supervised else 0.0
