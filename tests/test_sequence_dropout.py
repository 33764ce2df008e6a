"""What the copies of pictures see, and what is learned where condition dropout leaves some of them out."""

import dataclasses

import numpy as np
import pytest
from support import letters

from pdgen.core import masks, packed


def test_blind_copy_stands_where_it_would_without_the_texts_since():
  row = letters.build(letters.MULTI_TURN, dataclasses.replace(letters.PLAIN, drop_text=1.0))
  second = row.gen.copy == 2
  # The first picture's clean copy ends at order 19, position 8; the counter then stood at 9.
  assert set(row.gen.tokens.reach[second]) == {19}
  assert set(row.gen.tokens.position[second]) == {9}
  clean = letters.table(row)[-3:]
  assert clean[0] == '35 35 18 4 <|vision_start|>', 'the blind copy must not move what follows it'


def _assert_same(a, b):
  if a is None or isinstance(a, np.ndarray):
    np.testing.assert_array_equal(a, b)
  else:
    for x, y in zip(a, b, strict=True):
      _assert_same(x, y)


def test_inference_prefix_ignores_dropout():
  never = letters.build(
    letters.MISALIGNMENT, dataclasses.replace(letters.PLAIN, noised_copies=3), model=letters.WITH_VIT, seed=None
  )
  always = dataclasses.replace(letters.PLAIN, drop_text=1.0, drop_clean=1.0, drop_vit=1.0)
  _assert_same(letters.build(letters.MISALIGNMENT, always, model=letters.WITH_VIT, seed=None), never)
  assert never.und.tokens.noised.max() == never.gen.tokens.noised.max() == 0


def test_dropped_copies_keep_the_positions():
  full = letters.build(letters.MISALIGNMENT, model=letters.WITH_VIT)
  no_clean = letters.build(
    letters.MISALIGNMENT, dataclasses.replace(letters.PLAIN, drop_clean=1.0), model=letters.WITH_VIT
  )
  no_vit = letters.build(letters.MISALIGNMENT, dataclasses.replace(letters.PLAIN, drop_vit=1.0), model=letters.WITH_VIT)
  for row, supervised in ((no_clean, True), (no_vit, True)):
    for text in ('im_start', 'im_end'):
      special = getattr(letters.WORDS.specials, text)
      positions = [r.und.tokens.position[r.und.token_id == special] for r in (full, row)]
      np.testing.assert_array_equal(*positions)
    assert (row.und.weight > 0).sum() == (full.und.weight > 0).sum(), supervised
  assert not (no_clean.gen.copy == 0).any() and (no_clean.und.picture >= 0).sum() == 3
  assert (no_vit.und.picture < 0).all() and (no_vit.gen.copy == 0).sum() == 12


def test_texts_after_a_picture_without_copies_are_not_learned():
  row = letters.build(
    letters.MISALIGNMENT, dataclasses.replace(letters.PLAIN, drop_clean=1.0, drop_vit=1.0), model=letters.WITH_VIT
  )
  first_plan = row.und.weight > 0
  np.testing.assert_array_equal(row.und.tokens.order[first_plan], [3, 4, 5])
  assert (row.gen.copy > 0).all() and len(row.gen.copy) == 8
  # Positions still count both copies of the first picture: 6, 7; the inspection starts at 8.
  starts = row.und.tokens.position[row.und.token_id == letters.WORDS.specials.im_start]
  np.testing.assert_array_equal(starts, [0, 3, 8, 15])


def test_dropout_rates_and_repeatability():
  cfg = dataclasses.replace(letters.PLAIN, noised_copies=2, drop_text=0.3, drop_clean=0.2)
  rows = [letters.build(letters.MULTI_TURN, cfg, seed=seed) for seed in range(400)]
  blind = np.mean([np.mean(r.gen.tokens.reach[r.gen.copy > 0] != r.gen.tokens.order[r.gen.copy > 0]) for r in rows])
  dropped = np.mean([not (r.gen.copy == 0).any() for r in rows])
  assert abs(blind - 0.3) < 0.05 and abs(dropped - 0.2) < 0.06
  for seed in range(3):
    _assert_same(letters.build(letters.MULTI_TURN, cfg, seed=seed), rows[seed])


@pytest.mark.parametrize('trajectory', [letters.MULTI_TURN, letters.CONFLICT, letters.MISALIGNMENT, letters.DIRECT])
@pytest.mark.parametrize('seed', range(4))
def test_visibility_is_what_the_rules_say(trajectory, seed):
  cfg = dataclasses.replace(letters.PLAIN, noised_copies=2, drop_text=0.5, rejected_draft_weight=1.0)
  row = letters.build(trajectory, cfg, model=letters.WITH_VIT, seed=seed)
  both = packed.TokenMeta(*(np.concatenate(f) for f in zip(row.und.tokens, row.gen.tokens, strict=True)))
  by_order = packed.TokenMeta(*(f[np.argsort(both.order)] for f in both))
  got = np.asarray(masks.visible(by_order, by_order))
  blind_copies = {int(s) for s in np.unique(row.gen.tokens.span[row.gen.tokens.reach != row.gen.tokens.order])}
  np.testing.assert_array_equal(got, _visible_by_reading(trajectory, blind_copies))


def _visible_by_reading(trajectory, blind_spans):
  """The rules of the design, token by token: kind is text, noised, clean or vit; block counts texts and pictures."""
  tokens, span = [], 0
  for block, part in enumerate(_parts(trajectory)):
    if isinstance(part, str):
      tokens += [('text', block, None)] * (len(letters.WORDS.encode_with_tags(part)) + 2)
    else:
      for kind, length in (('noised', 6), ('noised', 6), ('clean', 6), ('vit', 3)):
        span += 1
        tokens += [(kind, block, span)] * length
  picture_blocks = [b for b, part in enumerate(_parts(trajectory)) if not isinstance(part, str)]
  seen = np.zeros([len(tokens), len(tokens)], bool)
  for q, (_, q_block, q_span) in enumerate(tokens):
    for k, (k_kind, k_block, k_span) in enumerate(tokens):
      if q_span is not None and q_span == k_span:
        seen[q, k] = True
      elif k_kind == 'noised':
        seen[q, k] = False
      elif q_span in blind_spans:
        seen[q, k] = k_block <= max([b for b in picture_blocks if b < q_block], default=-1)
      else:
        seen[q, k] = k <= q
  return seen


def _parts(trajectory):
  yield trajectory.prompt
  for step in trajectory.steps:
    for part in (step.plan, step.draft, step.inspection, step.corrected_plan, step.refined):
      if part is not None:
        yield part
