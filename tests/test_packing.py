"""Packed rows hold every sample once, unchanged; both budgets are used; packing resumes exactly."""

import doctest

import grain
import jax
import numpy as np
import pytest

from pdgen.core import config, masks, packed
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import packing, sequence, tokenizers

MODEL = config.ModelConfig(image_size=16, codec=config.CodecConfig(patch=8), vit=config.VitConfig(patch=16))
CFG = config.SequenceConfig(opening='', noised_copies=2, drop_text=0.3)
BUDGETS = packed.RowBudget(und_tokens=150, gen_tokens=110, pictures=12)


def _sample(seed, *, words=12):
  """A trajectory of up to three steps of random letters."""
  rng = np.random.default_rng(seed)
  text = lambda: ''.join(rng.choice(list('abcdefg'), rng.integers(1, words)))
  picture = lambda: rng.integers(0, 256, [16, 16, 3], dtype=np.uint8)
  steps = [trajectory_lib.Step(plan=text(), draft=picture(), inspection=text()) for _ in range(rng.integers(0, 3))]
  steps.append(trajectory_lib.Step(plan=text(), draft=picture()))
  trajectory = trajectory_lib.Trajectory(prompt=text(), steps=tuple(steps))
  row = sequence.build(trajectory, tokenizer=tokenizers.load('shapes'), model=MODEL, sequence=CFG, rng=rng)
  return packing.Sample(name=f'Sample {seed}', row=row)


def _dataset(count, *, bins=4, budgets=BUDGETS, make=_sample):
  return packing.PackIterDataset(grain.MapDataset.range(count).map(make), budget=budgets, bins=bins)


def _unpack(row):
  """The samples of a row, renumbered to stand alone."""
  samples = []
  for segment in range(1, row.und.tokens.segment.max() + 1):
    und, gen = _take(row.und, segment), _take(row.gen, segment)
    first, last = gen.picture.min(), gen.picture.max()
    first_copy = gen.copy[gen.copy > 0].min() - 1
    und, gen = (s._replace(tokens=s.tokens._replace(segment=np.ones_like(s.tokens.segment))) for s in (und, gen))
    und = und._replace(picture=np.where(und.picture >= 0, und.picture - first, -1))
    gen = gen._replace(picture=gen.picture - first, copy=np.where(gen.copy > 0, gen.copy - first_copy, 0))
    samples.append(packed.PackedBatch(und=und, gen=gen, pictures=row.pictures[first : last + 1]))
  return samples


def _take(stream, segment):
  return jax.tree.map(lambda field: field[stream.tokens.segment == segment], stream)


def _assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def _key(row):
  return row.und.token_id.tobytes() + row.pictures.tobytes() + row.gen.tokens.reach.tobytes()


def test_every_sample_once_and_unchanged():
  rows = list(_dataset(60))
  got = {_key(sample): sample for row in rows for sample in _unpack(row)}
  want = {_key(_sample(seed).row): _sample(seed).row for seed in range(60)}
  assert len(want) == 60 and sum(row.und.tokens.segment.max() for row in rows) == 60
  assert got.keys() == want.keys()
  for key, sample in want.items():
    _assert_same(got[key], sample)
    assert all(x.dtype == y.dtype for x, y in zip(jax.tree.leaves(got[key]), jax.tree.leaves(sample), strict=True))


def test_rows_have_the_budgets_shape_and_inert_padding():
  rows = list(_dataset(20))
  assert all((getattr(row, name).tokens.segment == 0).any() for row in rows[-1:] for name in ('und', 'gen'))
  for row in rows:
    assert packing.sizes(row) == BUDGETS
    for stream, picture in ((row.und, -1), (row.gen, 0)):
      padding = stream.tokens.segment == 0
      assert (np.diff(padding.astype(int)) >= 0).all(), 'padding comes last'
      assert not stream.weight[padding].any() and (stream.picture[padding] == picture).all()
    assert not row.gen.copy[row.gen.tokens.segment == 0].any()


def test_noised_copies_and_pictures_are_numbered_through_the_row():
  for row in _dataset(20):
    copies = row.gen.copy[row.gen.copy > 0]
    np.testing.assert_array_equal(copies, np.repeat(np.arange(1, copies.max() + 1), MODEL.latent_tokens))
    real = row.gen.picture[row.gen.tokens.segment > 0]
    assert set(np.diff(real)) <= {0, 1} and real[0] == 0


def test_packed_samples_see_what_they_see_alone():
  samples = [_sample(seed).row for seed in range(3)]
  row = packing.pack_row(samples, packed.RowBudget(300, 200, 12))
  for q_name in ('und', 'gen'):
    for k_name in ('und', 'gen'):
      q, k = getattr(row, q_name).tokens, getattr(row, k_name).tokens
      want = np.zeros([len(q.order), len(k.order)], bool)
      for number, sample in enumerate(samples, 1):
        alone = masks.visible(getattr(sample, q_name).tokens, getattr(sample, k_name).tokens)
        want[np.ix_(q.segment == number, k.segment == number)] = np.asarray(alone)
      np.testing.assert_array_equal(np.asarray(masks.visible(q, k)), want)


def test_join_refuses_what_does_not_fit():
  with pytest.raises(ValueError, match='do not fit a row'):
    packing.pack_row([_sample(seed).row for seed in range(9)], BUDGETS)


@pytest.mark.parametrize('field, budgets', [
  ('und_tokens', BUDGETS._replace(und_tokens=20)),
  ('gen_tokens', BUDGETS._replace(gen_tokens=5)),
  ('pictures', BUDGETS._replace(pictures=0 + 1)),
])  # fmt: skip
def test_a_sample_that_is_too_long_is_named(field, budgets):
  with pytest.raises(ValueError, match=rf'Sample \d+ needs .* und tokens.*config\.data\.{field} to at least'):
    list(_dataset(30, budgets=budgets))


@pytest.mark.parametrize('tokens', [1_200, 8_192, 33_000, 65_536])
def test_rows_of_every_length_are_full(tokens):
  """Sizes as of the small world: some four samples fill the shortest row, 170 the longest one."""
  rng = np.random.default_rng(0)
  budget = packed.RowBudget(und_tokens=tokens * 2 // 3, gen_tokens=tokens - tokens * 2 // 3, pictures=10**6)
  pool = np.stack([rng.integers(60, 450, 6000), rng.integers(16, 240, 6000), rng.integers(1, 8, 6000)], axis=1)
  for _ in range(5):
    waiting = pool[: 20 * tokens // 380]  # Twenty rows' worth.
    chosen = packing.select(waiting, budget)
    used = waiting[chosen].sum(axis=0)
    assert chosen[0] == 0 and sorted(set(chosen)) == chosen
    assert (used <= budget[:3]).all() and (used[:2] >= 0.95 * np.array(budget[:2])).all(), used / budget[:3]
    pool = np.delete(pool, chosen, axis=0)


def test_choose_finds_the_perfect_set():
  rng = np.random.default_rng(0)
  for _ in range(20):
    # Three that fill the row exactly, hidden among samples of the same size.
    cuts = rng.dirichlet([9, 9, 9], size=2)
    hidden = np.round(cuts * 100).astype(int)
    hidden[:, 2] = 100 - hidden[:, :2].sum(1)
    sizes = np.concatenate([hidden.T, rng.integers(15, 60, [20, 2])])
    sizes = np.concatenate([sizes, np.ones([23, 1], int)], axis=1)
    budgets = packed.RowBudget(100, 100, 9)
    chosen = packing.select(sizes, budgets)
    assert chosen[0] == 0 and chosen == sorted(set(chosen))
    used = sizes[chosen].sum(0)
    assert (used <= budgets[:3]).all() and (used[:2] >= 99).all()


def test_choose_keeps_every_budget():
  sizes = np.array([[10, 10, 4], [10, 10, 4], [10, 10, 4]])
  assert packing.select(sizes, packed.RowBudget(100, 100, 9)) == [0, 1]
  assert packing.select(sizes, packed.RowBudget(100, 25, 99)) == [0, 1]
  assert packing.select(sizes, packed.RowBudget(19, 100, 99)) == [0]


def test_no_sample_waits_for_ever():
  # One sample that never fits well among many that fit each other perfectly.
  def make(index):
    return _sample(1000, words=2) if index == 7 else _sample(3)

  odd = _sample(1000, words=2).row.und.token_id
  for number, row in enumerate(_dataset(100, make=make)):
    if any(np.array_equal(sample.und.token_id, odd) for sample in _unpack(row)):
      assert number <= 8
      return
  raise AssertionError('the odd sample never came')


def test_resuming_is_exact():
  rows = list(_dataset(50))
  assert len(rows) > 12
  for cut in (0, 1, 5, len(rows) - 1):
    iterator = iter(_dataset(50))
    for _ in range(cut):
      next(iterator)
    state = iterator.get_state()
    assert len(state['waiting']) > 0 or cut == 0, 'the state must hold samples that wait'
    for _ in range(min(2, len(rows) - cut)):
      next(iterator)
    fresh = iter(_dataset(50))
    fresh.set_state(state)
    assert fresh.get_state() == state
    for want in rows[cut:]:
      _assert_same(next(fresh), want)
    with pytest.raises(StopIteration):
      next(fresh)
    iterator.set_state(state)
    _assert_same(next(iterator), rows[cut])


def test_docs():
  assert doctest.testmod(packing).failed == 0
