"""Cached decoding gives what one forward over the whole row gives, wherever in the cache its tokens lie."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import toy

from pdgen.core import masks, packed
from pdgen.core import mesh as mesh_lib
from pdgen.models import attention, interleaved
from pdgen.models.attention import blockwise, decode
from pdgen.sampling import kv_cache, spans

# float32 sums of another length or order, on values of size 1 to 4.
TOLERANCE = 1e-5
# (config, slots of the cache beyond those that are used; with many, the keys are several blocks). A ViT copy has enough
# tokens to be attended to in blocks.
CASES = {
  'latents': (toy.MODEL, 5),
  'latents_and_vit': (toy.WITH_VIT, 5),
  'blockwise': (dataclasses.replace(toy.WITH_VIT, attention='blockwise'), 300),
}
NOISED = dataclasses.replace(toy.PLAIN, noised_copies=2, drop_text=0.5)


@jax.jit(static_argnums=0)
def _hidden(graphdef, params, batch, z, t):
  return nnx.merge(graphdef, params).hidden(batch, z, t)


@jax.jit(static_argnums=0)
def _extend(graphdef, params, batch, z, t, cache, slots):
  """Reads a chunk, then writes it in the cache, noised copies excepted."""
  hidden, kv = nnx.merge(graphdef, params).extend(batch, z, t, cache)
  tokens = spans.concatenate(batch.und.tokens, batch.gen.tokens)
  kept = tokens._replace(segment=jnp.where(tokens.noised > 0, 0, tokens.segment))
  return hidden, kv_cache.write(cache, kv, kept, slots, after=hidden.und)


def _chunks(row):
  """(und indices, gen indices) of each chunk in order: a text token, or a whole picture copy."""
  und, gen = row.und.tokens, row.gen.tokens
  starts = {}
  for i, (span, order) in enumerate(zip(und.span.tolist(), und.order.tolist(), strict=True)):
    starts.setdefault(('span', span) if span else ('text', order), []).append(i)
  for (kind, name), members in sorted(starts.items(), key=lambda item: und.order[item[1][0]]):
    yield np.array(members), np.flatnonzero(gen.span == name) if kind == 'span' else np.zeros(0, int)


@pytest.mark.parametrize(('cfg', 'spare'), CASES.values(), ids=CASES)
def test_in_chunks_equals_at_once(cfg, spare):
  row = toy.row(toy.full_trajectory(), cfg, sequence_config=NOISED, seed=3)
  noised = row.gen.copy > 0
  rng = np.random.default_rng(0)
  z = rng.normal(size=(1, len(noised), 192)).astype(np.float32)
  t = np.where(noised, rng.random(len(noised)), 0).astype(np.float32)[None]
  graphdef, params = interleaved.graphdef(cfg), toy.params(cfg)
  batch = jax.tree.map(lambda x: x[None], row)
  want = jax.device_get(_hidden(graphdef, params, batch, z, t))

  length = len(row.und.label) + len(noised)
  free = rng.permutation(length + spare)  # Any slot will do: metadata says who sees whom.
  cache = kv_cache.empty(cfg, batch=1, slots=length + spare)
  sizes = set()
  for u, g in _chunks(row):
    pictures = batch.pictures if (row.und.picture[u] >= 0).any() else batch.pictures[:, :0]
    und, gen = (jax.tree.map(lambda x, i=i: x[:, i], s) for s, i in ((batch.und, u), (batch.gen, g)))
    slots, free = free[None, : len(u) + len(g)], free[len(u) + len(g) :]
    chunk = packed.PackedBatch(und, gen, pictures)
    got, cache = _extend(graphdef, params, chunk, z[:, g], t[:, g], cache, slots)
    np.testing.assert_allclose(got.und, want.und[:, u], atol=TOLERANCE)
    np.testing.assert_allclose(got.gen, want.gen[:, g], atol=TOLERANCE)
    sizes.add((len(u), len(g)))
  assert len(free) == spare
  assert sizes == {(1, 0), (2, 4)} | ({(18, 0)} if cfg.vit else set())
  # Four pictures, one of them a rejected draft: six noised copies of four patches and two boundary tokens.
  assert int((cache.tokens.segment > 0).sum()) == length - 6 * 6


def test_an_empty_slot_and_a_row_that_does_not_take_part_stay_as_they_are():
  cache = kv_cache.empty(toy.MODEL, batch=2, slots=5)
  assert cache.k.shape == cache.v.shape == (2, 2, 2, 5, 8) and cache.slots == 5
  rng = np.random.default_rng(0)
  kv = tuple(jnp.asarray(rng.normal(size=(2, 2, 2, 2, 8)), jnp.float32) for _ in range(2))
  fields = dict(order=[[7, 8], [3, 4]], reach=[[7, 8], [9, 9]], span=[[0, 0], [4, 4]], noised=[[0, 0], [0, 0]])
  tokens = packed.TokenMeta(segment=[[1, 1], [1, 0]], position=[[6, 5], [4, 4]], **fields)
  tokens = packed.TokenMeta(*map(jnp.asarray, tokens))
  after = jax.jit(kv_cache.write)(cache, kv, tokens, jnp.array([[3, 0], [2, 2]]), after=np.ones((2, 2, 16)))
  cache, after = jax.device_get((cache, after))
  np.testing.assert_array_equal(after.tokens.segment, [[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]])
  np.testing.assert_array_equal(after.tokens.position, [[5, 0, 0, 6, 0], [0, 0, 4, 0, 0]])
  np.testing.assert_array_equal(after.tokens.order, [[8, 0, 0, 7, 0], [0, 0, 3, 0, 0]])
  np.testing.assert_array_equal(after.tokens.span, [[0, 0, 0, 0, 0], [0, 0, 4, 0, 0]])
  for old, new, written in zip(cache[:2], after[:2], kv, strict=True):
    new, old = (np.swapaxes(x, 2, 3) for x in (new, old))  # Slots before heads.
    np.testing.assert_array_equal(new[:, 0, [3, 0]], written[:, 0])
    np.testing.assert_array_equal(new[:, 1, 2], written[:, 1, 0])
    np.testing.assert_array_equal(new[:, 0, [1, 2, 4]], old[:, 0, [1, 2, 4]])
    np.testing.assert_array_equal(new[:, 1, [0, 1, 3, 4]], old[:, 1, [0, 1, 3, 4]])
  assert (after.k != after.v).any()


def test_writing_does_not_touch_what_is_there():
  write = functools.partial(jax.jit(kv_cache.write), after=np.ones((1, 1, 16), np.float32))
  ones = np.ones((2, 1, 1, 2, 8), np.float32)
  token = packed.TokenMeta(*(np.ones((1, 1), np.int32),) * 6)
  cache = kv_cache.empty(toy.MODEL, batch=1, slots=4)
  cache = write(cache, (ones, 2 * ones), token, np.array([[1]]))
  cache = write(cache, (3 * ones, 4 * ones), token._replace(order=np.array([[9]], np.int32)), np.array([[2]]))
  cache = jax.device_get(cache)
  np.testing.assert_array_equal(cache.k[0, 0, 0, :, 0], [0, 1, 3, 0])
  np.testing.assert_array_equal(cache.v[0, 0, 0, :, 0], [0, 2, 4, 0])
  np.testing.assert_array_equal(cache.tokens.order, [[0, 1, 9, 0]])


@pytest.mark.parametrize('few', [1, 0])
def test_chunks_that_nobody_sees_are_not_read(few):
  """Those that are come first. What stands in the others does not matter: here it would make everything NaN."""
  chunk, heads = decode.CHUNK, (2, 4)
  segment = np.zeros((2, 5 * chunk - 7), np.int32)
  segment[0, chunk + 3], segment[1, -1], segment[1, 2 * chunk] = 1, 1, 3
  zeros = np.zeros_like(segment)
  cache = packed.TokenMeta(segment, zeros, zeros, zeros, zeros, zeros)
  ones = np.ones((2, 1), np.int32)
  query = packed.TokenMeta(ones, ones, ones, 0 * ones, 0 * ones, ones)
  chunks = decode.prepare(query, cache, few=few)
  order, count = (np.ravel(x) for x in (chunks.order, chunks.num_visible))
  assert order[: int(count[0])].tolist() == [1, 4]

  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.normal(size=(2, 1, *heads)), jnp.float32) for _ in range(3))
  stored = rng.normal(size=(2, 2, 2, heads[0], segment.shape[1], heads[1])).astype(np.float32)
  stored[:, 0] = np.nan  # another layer
  stored[:, 1, :, :, :chunk] = stored[:, 1, :, :, 2 * chunk : 4 * chunk - 7] = np.nan
  got = chunks.attend(q, k, v, attention.KVCacheLayer(*map(jnp.asarray, stored), jnp.int32(1)))
  layer = attention.KVCacheLayer(*np.nan_to_num(stored), 1)
  want = attention.attend(attention.prepare('reference', query, query, cache), q, k, v, layer)
  np.testing.assert_allclose(got, want, atol=TOLERANCE)


@pytest.mark.parametrize(
  ('new', 'few', 'long'), [(70, 256, False), (70, 0, False), (300, 256, False), (300, 256, True)]
)
def test_new_tokens_read_cache_and_one_another_as_the_reference_does(new, few, long, monkeypatch):
  """Two packed rows, cut anywhere: what is in the cache lies in any order, with empty slots between."""
  if long:  # Larger blocks, as on an accelerator.
    monkeypatch.setattr(blockwise, 'LONG', 256)
    monkeypatch.setattr(blockwise, 'LONG_BLOCK', 256)
    monkeypatch.setattr(mesh_lib, 'device_kind', lambda: 'TPU v5p')
  rng = np.random.default_rng(new + few)
  length, slots = 620, 700
  segment = np.sort(rng.integers(1, 4, (2, length)), axis=1)
  order = np.stack([np.concatenate([np.arange(np.sum(row == s)) for s in (1, 2, 3)]) for row in segment])
  noised = (rng.random((2, length)) < 0.3) & (order % 50 < 25)
  span = np.where(order % 50 < 25, order // 50 * 4 + noised + 1, 0)
  reach = np.where(span > 0, order // 50 * 50 - 1 + 25 * (noised == 0), order)
  tokens = packed.TokenMeta(*(x.astype(np.int32) for x in (segment, order, reach, span, noised, order)))
  places = np.stack([rng.permutation(length) for _ in range(2)])
  mixed = packed.TokenMeta(*(np.take_along_axis(field, places, axis=1) for field in tokens))
  query, old = (packed.TokenMeta(*(f[:, part] for f in mixed)) for part in (np.s_[:new], np.s_[new:]))
  old = old._replace(segment=np.where(old.noised > 0, 0, old.segment))  # Noised copies are never kept.
  cache = packed.TokenMeta(*(np.pad(f, ((0, 0), (0, slots - length + new))) for f in old))
  q, k, v = (jnp.asarray(rng.normal(size=(2, new, heads, 8)), jnp.float32) for heads in (4, 2, 2))
  stored = (jnp.asarray(rng.normal(size=(3, 2, 2, slots, 8)), jnp.float32) for _ in range(2))
  layer = attention.KVCacheLayer(*stored, jnp.int32(2))
  prepared = decode.prepare(query, cache, few=few)
  assert getattr(prepared, 'block', None) == (None if new <= few else 256 if long else 128)
  got = prepared.attend(q, k, v, layer)
  want = attention.attend(attention.prepare('reference', query, query, cache), q, k, v, layer)
  sees = np.asarray(masks.visible(query, packed.TokenMeta(*map(np.hstack, zip(cache, query, strict=True))))).any(-1)
  assert sees.mean() > 0.9
  np.testing.assert_allclose(got[sees], want[sees], atol=TOLERANCE)


def test_the_cache_is_kept_in_the_compute_dtype():
  cfg = dataclasses.replace(toy.MODEL, dtype='bfloat16')
  assert kv_cache.empty(cfg, batch=1, slots=1).k.dtype == jnp.bfloat16
