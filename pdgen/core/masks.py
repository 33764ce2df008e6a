"""Attention visibility ("who sees whom") as one pure function of token metadata.

Training, prefill, decoding and denoising all use it.
"""

import jax

from pdgen.core import packed


def visible(query: packed.TokenMeta, key: packed.TokenMeta) -> jax.Array:
  """Which keys each query may attend to. Fields of query: [..., T], of key: [..., S]. Returns bool[..., T, S].

  A query sees the keys of its own sample that come no later than its reach, and all of its own picture copy; nobody
  outside a noised copy sees it. Matches the reference's sparse mask (causal, full and noise splits; parity in
  tests/test_masks.py). Padding (segment 0) sees nothing and is seen by nobody.

  >>> import numpy as np
  >>> def tokens(**fields):
  ...   zeros = np.zeros(len(fields['order']), np.int32)
  ...   return packed.TokenMeta(**{n: np.asarray(fields.get(n, zeros)) for n in packed.TokenMeta._fields})

  Two text tokens, a noised copy of two tokens, a clean copy of two tokens, a text token:

  >>> row = tokens(segment=[1] * 7, order=np.arange(7), reach=np.arange(7),
  ...              span=[0, 0, 1, 1, 2, 2, 0], noised=[0, 0, 1, 1, 0, 0, 0])
  >>> np.asarray(visible(row, row)).astype(int)
  array([[1, 0, 0, 0, 0, 0, 0],
         [1, 1, 0, 0, 0, 0, 0],
         [1, 1, 1, 1, 0, 0, 0],
         [1, 1, 1, 1, 0, 0, 0],
         [1, 1, 0, 0, 1, 1, 0],
         [1, 1, 0, 0, 1, 1, 0],
         [1, 1, 0, 0, 1, 1, 1]])

  The same noised copy blind to the texts before it (reach -1: the branch without text of guidance):

  >>> blind = row._replace(reach=np.array([0, 1, -1, -1, 4, 5, 6]))
  >>> np.asarray(visible(blind, row)).astype(int)[2:4]
  array([[0, 0, 1, 1, 0, 0, 0],
         [0, 0, 1, 1, 0, 0, 0]])
  """
  q = packed.TokenMeta(*(field[..., :, None] for field in query))
  k = packed.TokenMeta(*(field[..., None, :] for field in key))
  same_sample = (q.segment == k.segment) & (q.segment > 0)
  same_span = (q.span == k.span) & (k.span > 0)
  return same_sample & (same_span | ((k.order <= q.reach) & (k.noised == 0)))
