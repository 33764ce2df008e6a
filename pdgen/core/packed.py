"""The packed batch: two streams of tokens, with the metadata that decides who sees whom.

A row holds several samples (trajectories) one after the other, once as und tokens (text, boundary tokens, ViT
tokens) and once as gen tokens (latents, noised and clean). Named tuples, so that numpy builds them and
jax takes them as pytrees without this module importing jax.
"""

from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy on the host, jax.Array on a device


class Tokens(NamedTuple):
  """Who a token is to attention and RoPE. Every field is int32[B, T]. See `core.masks.visible`.

  segment: sample of the row, from 1; 0 is padding.
  order: place in the interleaved sequence of the sample, from 0, counting both streams.
  reach: last order that the token may see outside its own span. Its own order for text; for a text-blind noised
    copy (guidance) the last order of the picture before, so that it does not see the texts since.
  span: number of the picture copy the token belongs to, from 1 in each sample (attention is full inside a span);
    0 for text, which is causal.
  noised: 1 in a noised copy, whose tokens nobody outside the copy may see.
  position: RoPE position.
  """

  segment: Array
  order: Array
  reach: Array
  span: Array
  noised: Array
  position: Array


class UndStream(NamedTuple):
  """Tokens of the understanding expert: text, boundary and ViT tokens.

  tokens: metadata, int32[B, U] each.
  token_id: int32[B, U] vocabulary id; 0 where the token is a ViT patch or padding.
  label: int32[B, U] id that the token must predict; read only where weight > 0.
  weight: f32[B, U] weight in the cross-entropy; 0 = not supervised.
  picture: int32[B, U] picture of the row that a ViT token looks at, -1 for tokens with a vocabulary id.
  patch: int32[B, U] ViT patch of that picture, row-major; 0 elsewhere.
  """

  tokens: Tokens
  token_id: Array
  label: Array
  weight: Array
  picture: Array
  patch: Array


class GenStream(NamedTuple):
  """Tokens of the generation expert: VAE latents, noised and clean.

  tokens: metadata, int32[B, G] each.
  picture: int32[B, G] picture of the row that the token is a patch of.
  patch: int32[B, G] latent patch of that picture, row-major over the picture's own grid.
  copy: int32[B, G] number of the noised copy in the row, from 1: one timestep a copy; 0 = clean, t = 0.
  weight: f32[B, G] weight in the flow loss; 0 on clean copies and padding.
  """

  tokens: Tokens
  picture: Array
  patch: Array
  copy: Array
  weight: Array


class PackedBatch(NamedTuple):
  """One batch of packed rows.

  und, gen: the two streams.
  pictures: uint8[B, P, H, W, 3] every picture of the row once, however many copies of it the streams hold.
  """

  und: UndStream
  gen: GenStream
  pictures: Array


def check(batch: PackedBatch) -> PackedBatch:
  """Returns the batch, or raises ValueError naming the first field whose shape does not fit."""
  rows = batch.pictures.shape[0]
  for stream_name, stream in (('und', batch.und), ('gen', batch.gen)):
    want = (rows, stream.tokens.segment.shape[-1])
    fields = {**stream.tokens._asdict(), **{k: v for k, v in stream._asdict().items() if k != 'tokens'}}
    for name, value in fields.items():
      if tuple(value.shape) != want:
        raise ValueError(f'batch.{stream_name}.{name} has shape {tuple(value.shape)}; the batch needs {want}.')
  if batch.pictures.ndim != 5 or batch.pictures.shape[-1] != 3:
    raise ValueError(f'batch.pictures has shape {tuple(batch.pictures.shape)}; it must be [B, P, H, W, 3].')
  return batch


def fill(batch: PackedBatch) -> dict[str, float]:
  """Share of each budget that holds tokens of samples, not padding."""
  return {
    'und': float(np.mean(np.asarray(batch.und.tokens.segment) > 0)),
    'gen': float(np.mean(np.asarray(batch.gen.tokens.segment) > 0)),
  }
