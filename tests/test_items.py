"""Samples that spell out their own sequence: what the recorded packs do not hold (test_parity_packing)."""

import dataclasses

import numpy as np
import pytest
from support import toy

from pdgen.core import config, packed
from pdgen.data import items as items_lib
from pdgen.data import packing

MODEL = dataclasses.replace(
  toy.WITH_VIT, codec=config.CodecConfig(patch=8), max_latent_size=4, vit=dataclasses.replace(toy.WITH_VIT.vit, patch=4)
)


def _picture(height, width, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _build(items, *, seed=0, canvas=(16, 24), model=MODEL, **sequence):
  cfg = config.SequenceConfig(**{'drop_text': 0.0, **sequence})
  kept = items_lib.drop(items, sequence=cfg, rng=np.random.default_rng(seed))
  return items_lib.build(kept, specials=toy.WORDS.specials, model=model, sequence=cfg, canvas=canvas)


def test_pictures_of_two_sizes_share_a_canvas():
  wide, small = _picture(8, 24), _picture(16, 8)
  row = _build(
    [items_lib.Latents(pixels=wide), items_lib.Patches(pixels=small), items_lib.Latents(pixels=small, learned=True)]
  )
  assert row.pictures.shape == (2, 16, 24, 3)
  np.testing.assert_array_equal(row.pictures[0, :8, :24], wide)
  np.testing.assert_array_equal(row.pictures[1, :16, :8], small)
  np.testing.assert_array_equal(row.grids, [[1, 3], [2, 1]])
  np.testing.assert_array_equal(row.gen.patch, [0, 1, 2, 0, 4])
  np.testing.assert_array_equal(row.gen.picture, [0, 0, 0, 1, 1])
  np.testing.assert_array_equal(row.gen.copy, [0, 0, 0, 1, 1])
  np.testing.assert_array_equal(row.vit.position, [0, 1, 5, 6, 10, 11, 15, 16])
  np.testing.assert_array_equal(row.vit.pixels[3], small[4:8, 4:8].ravel())


def test_spread_positions_find_the_same_latents():
  """(BAGEL, interpolate_pos) Position ids then tell no token's place in its picture."""
  small = _picture(16, 8, seed=2)
  items = [
    items_lib.Latents(pixels=_picture(8, 24)),
    items_lib.Latents(pixels=small),
    items_lib.Latents(pixels=small, learned=True),
    items_lib.Latents(pixels=_picture(16, 24, seed=3), learned=True),
  ]
  rows, found = [], []
  for spread in (False, True):
    model = dataclasses.replace(MODEL, interpolate_positions=spread)
    samples = [_build(part, model=model) for part in (items, items[1:])]
    rows.append(packing.pack_row(samples, packed.RowBudget(40, 30, 8, 0)))
    found.append(np.asarray(toy.model(model).clean_latents(toy.batch(rows[-1]))[0]))
  real = rows[0].gen.tokens.segment > 0
  assert 20 < real.sum() < 30 and (rows[0].gen.patch != rows[1].gen.patch).any()
  np.testing.assert_array_equal(found[0][real], found[1][real])


def test_supervision():
  specials = toy.WORDS.specials
  row = _build(
    [
      items_lib.Text(ids=(1, 2, 3), weights=1.0, end_label=specials.vision_start),
      items_lib.Latents(pixels=_picture(8, 8), end_label=specials.im_start),
    ],
    length_weighting=True,
    boundary_weight=3.0,
  )
  np.testing.assert_allclose(row.und.weight, [0.5] * 4 + [3, 0, 3])
  np.testing.assert_array_equal(row.und.label[:5], [1, 2, 3, specials.im_end, specials.vision_start])
  assert row.und.label[-1] == specials.im_start


def test_only_what_may_be_dropped_is_dropped_as_often_as_asked():
  items = [items_lib.Text(ids=(7,), droppable=True), items_lib.Text(ids=(8,))]
  counts = [int((_build(items, seed=seed, drop_text=0.3).und.token_id == 7).sum()) for seed in range(400)]
  assert 0.62 < np.mean(counts) < 0.78
  assert all((_build(items, seed=seed, drop_text=1.0).und.token_id == 8).sum() == 1 for seed in range(5))


def test_samples_join_into_a_row():
  first = _build([items_lib.Patches(pixels=_picture(8, 8)), items_lib.Latents(pixels=_picture(8, 16), learned=True)])
  second = _build([items_lib.Patches(pixels=_picture(4, 8, 1)), items_lib.Patches(pixels=_picture(8, 4, 2))])
  third = _build([items_lib.Latents(pixels=_picture(16, 8, 3), learned=True)])
  row = packing.pack_row([first, second, third], packed.RowBudget(40, 8, 4, 12))
  np.testing.assert_array_equal(row.vit.image, [1] * 4 + [2] * 2 + [3] * 2 + [0] * 4)
  seen = row.und.picture >= 0
  np.testing.assert_array_equal(row.und.patch[seen], np.arange(8))
  np.testing.assert_array_equal(row.vit.pixels[:8], np.concatenate([first.vit.pixels, second.vit.pixels]))
  np.testing.assert_array_equal(row.grids, [[1, 2], [2, 1], [0, 0], [0, 0]])
  np.testing.assert_array_equal(row.gen.copy, [1, 1, 2, 2, 0, 0, 0, 0])
  np.testing.assert_array_equal(row.gen.picture[:4], [0, 0, 1, 1])
  with pytest.raises(ValueError, match='do not fit'):
    packing.pack_row([first, second, third], packed.RowBudget(40, 8, 4, 7))
  with pytest.raises(ValueError, match='Some samples of a row have grids'):
    packing.pack_row([first, toy.row(toy.full_trajectory(), toy.MODEL)], packed.RowBudget(400, 80, 8, 12))


@pytest.mark.parametrize(
  ('item', 'message'),
  [
    (items_lib.Latents(pixels=_picture(12, 8)), 'no whole patches of 8'),
    (items_lib.Patches(pixels=_picture(8, 6)), 'no whole patches of 4'),
    (items_lib.Latents(pixels=_picture(24, 8)), 'does not fit canvas'),
    (items_lib.Patches(pixels=_picture(4, 24)), 'does not fit 5 position ids'),
  ],
)
def test_pictures_that_do_not_fit_are_refused(item, message):
  with pytest.raises(ValueError, match=message):
    _build([item])
