"""Visibility from metadata: where tokens lie, padding, blind copies, rows. Its rule is that of the reference's masks
(test_parity_masks)."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.core import masks, packed

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden' / 'a_masks.npz')
SETS = sorted({name.split('_')[0] for name in GOLDEN.files})
CAUSAL, FULL, NOISE = range(3)


def _samples(name):
  """(length, mode) of the splits of each sample of a packing."""
  splits = zip(GOLDEN[f'{name}_split_lens'].tolist(), GOLDEN[f'{name}_attn_modes'].tolist(), strict=True)
  return [[next(splits) for _ in range(count)] for count in GOLDEN[f'{name}_num_splits']]


def _tokens(samples, *, positions=0):
  """The packing as metadata: a full or a noise split is a span, a noise split a noised one."""
  fields = []
  for segment, splits in enumerate(samples, start=1):
    order = 0
    for span, (length, mode) in enumerate(splits, start=1):
      for _ in range(length):
        fields.append((segment, order, order, 0 if mode == CAUSAL else span, int(mode == NOISE), positions))
        order += 1
  return packed.TokenMeta(*np.array(fields, np.int32).T)


def test_there_are_golden_sets_of_every_mode():
  assert len(SETS) == 4
  assert {mode for name in SETS for mode in GOLDEN[f'{name}_attn_modes'].tolist()} == {CAUSAL, FULL, NOISE}


@pytest.mark.parametrize('name', SETS)
def test_does_not_depend_on_where_tokens_lie_nor_on_positions(name):
  want = GOLDEN[f'{name}_sparse']
  rng = np.random.default_rng(0)
  tokens = _tokens(_samples(name), positions=7)
  query, key = (rng.permutation(len(want)) for _ in range(2))
  shuffled = [packed.TokenMeta(*(field[index] for field in tokens)) for index in (query, key)]
  np.testing.assert_array_equal(masks.visible(*shuffled), want[query][:, key])


def test_padding_sees_nobody_and_is_seen_by_nobody():
  tokens = _tokens(_samples('s1'))
  padding = np.zeros(len(tokens.order), bool)
  padding[::3] = True
  padded = tokens._replace(segment=np.where(padding, 0, tokens.segment))
  want = GOLDEN['s1_sparse'] & ~padding[:, None] & ~padding[None]
  assert want.sum() < GOLDEN['s1_sparse'].sum()
  np.testing.assert_array_equal(masks.visible(padded, padded), want)


def test_a_blind_copy_sees_up_to_its_reach_and_all_of_itself():
  # Text 0-2, picture 3-4, text 5-6, noised copy 7-8 that is blind to the text 5-6, text 9.
  tokens = _tokens([[(3, CAUSAL), (2, FULL), (2, CAUSAL), (2, NOISE), (1, CAUSAL)]])
  reach = tokens.reach.copy()
  reach[7:9] = 4
  seen = np.asarray(masks.visible(tokens._replace(reach=reach), tokens))
  assert [np.flatnonzero(row).tolist() for row in seen[7:]] == [
    [0, 1, 2, 3, 4, 7, 8],
    [0, 1, 2, 3, 4, 7, 8],
    [0, 1, 2, 3, 4, 5, 6, 9],
  ]


def test_rows_of_a_batch_are_apart():
  first, second = (packed.TokenMeta(*(field[:10] for field in _tokens(_samples(name)))) for name in ('s1', 's2'))
  both = packed.TokenMeta(*(jnp.stack(pair) for pair in zip(first, second, strict=True)))
  for row, tokens in zip(masks.visible(both, both), (first, second), strict=True):
    np.testing.assert_array_equal(row, masks.visible(tokens, tokens))
