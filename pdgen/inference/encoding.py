"""Clean latents of the pictures of prefixes, each encoded alone at its own size, as BAGEL does at inference.

A convolution at the edge of a picture sees what lies beside it: on a canvas that pictures share, a latent would depend
on the canvas (QUIRKS 22). So this is a program of its own, compiled for each size; the sampler's gets the latents.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.models import codecs

Encode = Callable[[np.ndarray], np.ndarray]  # uint8[H, W, 3] to f32[Q, C], row-major.


@functools.partial(jax.jit, static_argnames='graphdef')
def encode(graphdef: nnx.GraphDef, params: Any, picture: jax.Array) -> jax.Array:
  """uint8[H, W, 3] to its clean latents f32[Q, C]."""
  model = nnx.merge(graphdef, params)
  return model.codec.encode(codecs.to_pixels(picture)[None, None])[0, 0]


def without_pictures(row: packed.PackedBatch) -> packed.PackedBatch:
  """One sample whose pictures are encoded apart."""
  return row._replace(pictures=row.pictures[:0, :1, :1], grids=None if row.grids is None else row.grids[:0])


def clean_latents(
  rows: Sequence[packed.PackedBatch], encode: Encode, *, tokens: int, codec: config_lib.CodecConfig
) -> np.ndarray:
  """The clean latent of every gen token of samples without noised copies: f32[B, tokens, C], zero in the padding.

  Args:
    rows: samples without batch axis, with their pictures and grids.
    encode: of one picture.
    tokens: gen tokens of a row.
    codec: of the model.
  """
  out = np.zeros((len(rows), tokens, codec.channels), np.float32)
  for row, place in zip(rows, out, strict=True):
    assert row.grids is not None
    # Where each picture ends on the canvas that it shares with the others of its trajectory.
    sides = (row.grids * codec.patch).tolist()
    latents = [encode(picture[:h, :w]) for picture, (h, w) in zip(row.pictures, sides, strict=True)]
    spans = row.gen.tokens.span
    copies = [latents[row.gen.picture[np.flatnonzero(spans == span)[0]]] for span in dict.fromkeys(spans.tolist())]
    if copies:
      place[: len(spans)] = np.concatenate(copies)
  return out
