"""Reference attention: materialised mask, float32 softmax, grouped queries. Every other implementation equals it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pdgen.core import masks, packed
from pdgen.models.attention import base, online_softmax


class DenseMask(NamedTuple):
  """The whole mask."""

  visible: jax.Array  # bool[B, T, S], which keys each query may attend to.

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, cache: base.KVCacheLayer | None) -> jax.Array:
    """Query head n uses kv head n // (N / K). Shapes as of `base.BlockMask`."""
    k, v = base.concat_cache(k, v, cache)
    b, t, n, h = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(b, t, kv_heads, n // kv_heads, h) * jnp.asarray(h**-0.5, q.dtype)
    scores = jnp.einsum('BTKGH,BSKH->BKGTS', q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(self.visible[:, None, None], scores, jnp.float32(online_softmax.MASK_VALUE))
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out = jnp.einsum('BKGTS,BSKH->BTKGH', weights, v).reshape(b, t, n, -1)
    return checkpoint_name(out, base.OUTPUT_NAME)


def prepare(query: packed.TokenMeta, key: packed.TokenMeta) -> DenseMask:
  """query: int32[B, T] a field; key: int32[B, S] a field, the cache's tokens first."""
  return DenseMask(masks.visible(query, key))
