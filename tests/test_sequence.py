"""Spans, positions, reach, labels and weights of every kind of trajectory, against tables written by hand."""

import dataclasses
import doctest

import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.core import config, masks, packed
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import sequence
from pdgen.data import tokenizer as tokenizer_lib
from pdgen.sampling import streams

Step, Trajectory = trajectory_lib.Step, trajectory_lib.Trajectory


class Letters(tokenizer_lib.Tokenizer):
  """One ASCII character, one id; specials from 128."""

  def __init__(self):
    names = [*tokenizer_lib.STRUCTURE, *tokenizer_lib.TAGS]
    super().__init__(specials=config.Specials(**{n: 128 + i for i, n in enumerate(names)}), vocab_size=139)

  def _encode_exact(self, text):
    return tuple(text.encode('ascii'))

  def _token_bytes(self, token_id):
    return bytes([token_id])


WORDS = Letters()
MODEL = config.ModelConfig(image_size=16, codec=config.CodecConfig(patch=8), max_latent_size=2)
WITH_VIT = dataclasses.replace(MODEL, vit=config.VitConfig(patch=16))
PLAIN = config.SequenceConfig(opening='', drop_text=0.0)
WEIGHTED = dataclasses.replace(
  PLAIN,
  plan_weight=2.0,
  inspection_weight=3.0,
  verdict_weight=8.0,
  verdict_words=('no', 'ok'),
  boundary_weight=0.5,
)


def _picture(value):
  return np.full([16, 16, 3], value, np.uint8)


def _build(trajectory, cfg=PLAIN, *, model=MODEL, seed=0):
  rng = None if seed is None else np.random.default_rng(seed)
  return sequence.build(trajectory, tokenizer=WORDS, model=model, sequence=cfg, rng=rng)


MULTI_TURN = Trajectory(
  prompt='p',
  steps=(
    Step(plan='<ins>a</ins>', draft=_picture(1), inspection='b ok'),
    Step(plan='c', draft=_picture(2)),
  ),
)
CONFLICT = Trajectory(
  prompt='p',
  steps=(
    Step(plan='x', draft=_picture(1), inspection='n! <refine>r</refine>', corrected_plan='y', refined=_picture(2)),
  ),
)
MISALIGNMENT = Trajectory(
  prompt='p',
  steps=(
    Step(plan='x', draft=_picture(1), inspection='<refine>r<\\refine>', refined=_picture(2)),
    Step(plan='z', draft=_picture(3)),
  ),
)
DIRECT = Trajectory(prompt='p', steps=(Step(draft=_picture(1)),))


def _table(row):
  """`token reach position span learns` of every token, in order; runs of latents are one line."""
  lines = []
  for line in sequence.describe(row, WORDS).splitlines()[1:]:
    n, reach, position, span, rest = line.split(maxsplit=4)
    lines.append(f'{n} {reach} {position} {span} {" ".join(rest.split())}')
  return [line for line in lines if not any(f' patch {i}' in line for i in (1, 2, 3))]


def test_multi_turn():
  assert _table(_build(MULTI_TURN, WEIGHTED)) == [
    '0 0 0 0 <|im_start|>',
    '1 1 1 0 p',
    '2 2 2 0 <|im_end|>',
    '3 3 3 0 <|im_start|> <ins> 2',
    '4 4 4 0 <ins> a 2',
    '5 5 5 0 a </ins> 2',
    '6 6 6 0 </ins> <|im_end|> 2',
    '7 7 7 0 <|im_end|> <|vision_start|> 0.5',
    '8 8 8 1 <|vision_start|>^',
    '9 9 8 1 patch 0^ flow 1',
    '13 13 8 1 <|vision_end|>^',
    '14 14 8 2 <|vision_start|>',
    '15 15 8 2 patch 0',
    '19 19 8 2 <|vision_end|> <|im_start|> 8',
    '20 20 9 0 <|im_start|> b 3',
    '21 21 10 0 b 8',
    '22 22 11 0 o 8',
    '23 23 12 0 o k 8',
    '24 24 13 0 k <|im_end|> 3',
    '25 25 14 0 <|im_end|> <|im_start|> 0.5',
    '26 26 15 0 <|im_start|> c 2',
    '27 27 16 0 c <|im_end|> 2',
    '28 28 17 0 <|im_end|> <|vision_start|> 0.5',
    '29 29 18 3 <|vision_start|>^',
    '30 30 18 3 patch 0^ flow 1',
    '34 34 18 3 <|vision_end|>^',
    '35 35 18 4 <|vision_start|>',
    '36 36 18 4 patch 0',
    '40 40 18 4 <|vision_end|> <|endoftext|> 8',
  ]


def test_conflict_learns_neither_the_rejected_plan_nor_its_draft():
  assert _table(_build(CONFLICT, WEIGHTED)) == [
    '0 0 0 0 <|im_start|>',
    '1 1 1 0 p',
    '2 2 2 0 <|im_end|>',
    '3 3 3 0 <|im_start|>',
    '4 4 4 0 x',
    '5 5 5 0 <|im_end|>',
    '6 6 6 1 <|vision_start|>',
    '7 7 6 1 patch 0',
    '11 11 6 1 <|vision_end|> <|im_start|> 8',
    '12 12 7 0 <|im_start|> n 3',  # `n` is not a verdict word.
    '13 13 8 0 n ! 3',
    '14 14 9 0 ! 3',
    '15 15 10 0 <refine> 8',
    '16 16 11 0 <refine> r 3',
    '17 17 12 0 r </refine> 3',
    '18 18 13 0 </refine> <|im_end|> 3',
    '19 19 14 0 <|im_end|> <|im_start|> 0.5',
    '20 20 15 0 <|im_start|> y 2',
    '21 21 16 0 y <|im_end|> 2',
    '22 22 17 0 <|im_end|> <|vision_start|> 0.5',
    '23 23 18 2 <|vision_start|>^',
    '24 24 18 2 patch 0^ flow 1',
    '28 28 18 2 <|vision_end|>^',
    '29 29 18 3 <|vision_start|>',
    '30 30 18 3 patch 0',
    '34 34 18 3 <|vision_end|> <|endoftext|> 0.5',
  ]


def test_positions_spread_over_the_whole_table_where_the_model_says_so():
  """(BAGEL, interpolate_pos) In the sequence that is learned from and in the copies that the sampler looks at."""
  for spread, want in ((False, [0, 1, 5, 6]), (True, [0, 2, 10, 12])):
    model = dataclasses.replace(MODEL, max_latent_size=5, interpolate_positions=spread)
    assert _build(DIRECT, model=model).gen.patch.tolist() == want * 2
    _, gen = streams.seen_copies(model, WORDS.specials, *(jnp.zeros(1, jnp.int32),) * 3)
    assert gen.patch.tolist() == [want]


def test_an_inspection_that_approves_may_end_it():
  step = Step(plan='x', draft=_picture(1), inspection='b ok no')
  ended = _table(_build(Trajectory(prompt='p', steps=(step,)), WEIGHTED))
  assert ended[-9:] == [
    '18 18 7 0 <|im_start|> b 3',
    '19 19 8 0 b 8',
    '20 20 9 0 o 8',
    '21 21 10 0 o k 8',
    '22 22 11 0 k 8',  # Each verdict word is a verdict.
    '23 23 12 0 n 8',
    '24 24 13 0 n o 8',
    '25 25 14 0 o <|im_end|> 3',
    '26 26 15 0 <|im_end|> <|endoftext|> 0.5',
  ]
  for open_ended in (dict(stop=None), dict(steps=(dataclasses.replace(step, inspection='no <refine>r</refine>'),))):
    row = _build(dataclasses.replace(Trajectory(prompt='p', steps=(step,)), **open_ended), WEIGHTED)
    assert not np.isin(row.und.label[row.und.weight > 0], WORDS.specials.endoftext).any()


def test_conflict_when_the_config_says_so():
  cfg = dataclasses.replace(PLAIN, learn_rejected_plans=True, learn_rejected_drafts=True)
  assert _table(_build(CONFLICT, cfg))[3:9] == [
    '3 3 3 0 <|im_start|> x 1',
    '4 4 4 0 x <|im_end|> 1',
    '5 5 5 0 <|im_end|> <|vision_start|> 1',
    '6 6 6 1 <|vision_start|>^',
    '7 7 6 1 patch 0^ flow 1',
    '11 11 6 1 <|vision_end|>^',
  ]


def test_misalignment_learns_the_plan_and_refines_at_once():
  assert _table(_build(MISALIGNMENT, WEIGHTED))[3:] == [
    '3 3 3 0 <|im_start|> x 2',
    '4 4 4 0 x <|im_end|> 2',
    '5 5 5 0 <|im_end|> <|vision_start|> 0.5',
    '6 6 6 1 <|vision_start|>',
    '7 7 6 1 patch 0',
    '11 11 6 1 <|vision_end|> <|im_start|> 8',
    '12 12 7 0 <|im_start|> <refine> 8',  # No verdict but the tag.
    '13 13 8 0 <refine> r 3',
    '14 14 9 0 r </refine> 3',
    '15 15 10 0 </refine> <|im_end|> 3',
    '16 16 11 0 <|im_end|> <|vision_start|> 0.5',
    '17 17 12 2 <|vision_start|>^',
    '18 18 12 2 patch 0^ flow 1',
    '22 22 12 2 <|vision_end|>^',
    '23 23 12 3 <|vision_start|>',
    '24 24 12 3 patch 0',
    '28 28 12 3 <|vision_end|> <|im_start|> 0.5',
    '29 29 13 0 <|im_start|> z 2',
    '30 30 14 0 z <|im_end|> 2',
    '31 31 15 0 <|im_end|> <|vision_start|> 0.5',
    '32 32 16 4 <|vision_start|>^',
    '33 33 16 4 patch 0^ flow 1',
    '37 37 16 4 <|vision_end|>^',
    '38 38 16 5 <|vision_start|>',
    '39 39 16 5 patch 0',
    '43 43 16 5 <|vision_end|> <|endoftext|> 8',
  ]


def test_direct_with_vit_and_two_blind_copies():
  cfg = dataclasses.replace(PLAIN, direct_opening='o', noised_copies=2, drop_text=1.0)
  row = _build(DIRECT, cfg, model=WITH_VIT)
  assert _table(row) == [
    '0 0 0 0 <|im_start|>',
    '1 1 1 0 o',
    '2 2 2 0 p',
    '3 3 3 0 <|im_end|>',
    '4 -1 0 1 <|vision_start|>^',
    '5 -1 0 1 patch 0^ flow 1',
    '9 -1 0 1 <|vision_end|>^',
    '10 -1 0 2 <|vision_start|>^',
    '11 -1 0 2 patch 0^ flow 1',
    '15 -1 0 2 <|vision_end|>^',
    '16 16 4 3 <|vision_start|>',
    '17 17 4 3 patch 0',
    '21 21 4 3 <|vision_end|>',
    '22 22 5 4 <|vision_start|>',
    '23 23 5 4 ViT 0',
    '24 24 5 4 <|vision_end|> <|endoftext|> 1',
  ]
  np.testing.assert_array_equal(row.gen.copy, [1] * 4 + [2] * 4 + [0] * 4)
  np.testing.assert_array_equal(row.gen.patch, [0, 1, 2, 3] * 3)
  np.testing.assert_array_equal(row.gen.picture, [0] * 12)
  np.testing.assert_array_equal(row.und.picture, [-1] * 11 + [0] + [-1])


def test_blind_copy_stands_where_it_would_without_the_texts_since():
  row = _build(MULTI_TURN, dataclasses.replace(PLAIN, drop_text=1.0))
  second = row.gen.copy == 2
  # The first picture's clean copy ends at order 19, position 8; the counter then stood at 9.
  assert set(row.gen.tokens.reach[second]) == {19}
  assert set(row.gen.tokens.position[second]) == {9}
  clean = _table(row)[-3:]
  assert clean[0] == '35 35 18 4 <|vision_start|>', 'the blind copy must not move what follows it'


def test_pictures_copies_and_dtypes():
  row = _build(MISALIGNMENT, dataclasses.replace(PLAIN, noised_copies=3), model=WITH_VIT)
  np.testing.assert_array_equal(row.pictures[:, 0, 0, 0], [1, 2, 3])
  np.testing.assert_array_equal(row.gen.picture, np.repeat([0, 1, 2], [4, 16, 16]))
  np.testing.assert_array_equal(row.gen.copy, np.repeat([0, 1, 2, 3, 0, 4, 5, 6, 0], 4))
  np.testing.assert_array_equal(row.gen.weight, (row.gen.copy > 0).astype(np.float32))
  np.testing.assert_array_equal(row.und.picture[row.und.picture >= 0], [0, 1, 2])
  order = np.concatenate([row.und.tokens.order, row.gen.tokens.order])
  np.testing.assert_array_equal(np.sort(order), np.arange(len(order)))
  for stream in (row.und, row.gen):
    for name, field in {**stream._asdict(), **stream.tokens._asdict()}.items():
      if name != 'tokens':
        assert field.dtype == (np.float32 if name == 'weight' else np.int32), name
    assert set(stream.tokens.segment) == {1}
  packed.check(packed.PackedBatch(*(_with_batch_axis(part) for part in row if part is not None)))


def _with_batch_axis(part):
  return part[None] if isinstance(part, np.ndarray) else type(part)(*(_with_batch_axis(p) for p in part))


def test_length_weighting_leaves_boundaries_alone():
  row = _build(MULTI_TURN, dataclasses.replace(PLAIN, length_weighting=True, plan_weight=2.0))
  weight = dict(zip(row.und.tokens.order.tolist(), row.und.weight.tolist(), strict=True))
  np.testing.assert_allclose([weight[n] for n in (3, 4, 5, 6)], 2 / np.sqrt(4), rtol=1e-6)
  np.testing.assert_allclose([weight[n] for n in (20, 21, 22, 23, 24)], 1 / np.sqrt(5), rtol=1e-6)
  assert [weight[n] for n in (7, 19, 25, 40)] == [1.0] * 4


def test_self_painted_draft_is_context_only():
  step = dataclasses.replace(MULTI_TURN.steps[0], draft_is_target=False)
  row = _build(dataclasses.replace(MULTI_TURN, steps=(step, MULTI_TURN.steps[1])))
  np.testing.assert_array_equal(row.gen.picture[row.gen.copy > 0], [1] * 4)
  everything = dataclasses.replace(PLAIN, learn_rejected_drafts=True)
  rejected = dataclasses.replace(CONFLICT.steps[0], draft_is_target=False)
  row = _build(dataclasses.replace(CONFLICT, steps=(rejected,)), everything)
  np.testing.assert_array_equal(row.gen.picture[row.gen.copy > 0], [1] * 4)


@pytest.mark.parametrize('cut', ['prompt', 'direct', 'plan', 'draft', 'capped', 'refine'])
def test_partial_trajectories_learn_nothing_about_the_unknown(cut):
  steps = {
    'prompt': (),
    'direct': (Step(),),
    'plan': (Step(plan='x'),),
    'draft': (Step(plan='x', draft=_picture(1)),),
    'capped': (Step(plan='x', draft=_picture(1)),),
    'refine': (Step(plan='x', draft=_picture(1), inspection='<refine>r</refine>'),),
  }[cut]
  stop = 'picture_cap' if cut == 'capped' else None
  row = _build(Trajectory(prompt='p', steps=steps, stop=stop), seed=None)
  assert row.und.weight[-1] == 0
  assert row.und.token_id[-1] == (WORDS.specials.vision_end if cut in ('draft', 'capped') else WORDS.specials.im_end)
  assert (row.gen.copy == 0).all()
  assert row.pictures.shape == (int(cut in ('draft', 'capped', 'refine')), 16, 16, 3)
  assert len(row.gen.patch) == 4 * len(row.pictures)
  if cut == 'prompt':
    assert not row.und.weight.any()


def test_inference_prefix_ignores_dropout():
  never = _build(MISALIGNMENT, dataclasses.replace(PLAIN, noised_copies=3), model=WITH_VIT, seed=None)
  always = dataclasses.replace(PLAIN, drop_text=1.0, drop_clean=1.0, drop_vit=1.0)
  _assert_same(_build(MISALIGNMENT, always, model=WITH_VIT, seed=None), never)
  assert never.und.tokens.noised.max() == never.gen.tokens.noised.max() == 0


def _assert_same(a, b):
  if a is None or isinstance(a, np.ndarray):
    np.testing.assert_array_equal(a, b)
  else:
    for x, y in zip(a, b, strict=True):
      _assert_same(x, y)


def test_dropped_copies_keep_the_positions():
  full = _build(MISALIGNMENT, model=WITH_VIT)
  no_clean = _build(MISALIGNMENT, dataclasses.replace(PLAIN, drop_clean=1.0), model=WITH_VIT)
  no_vit = _build(MISALIGNMENT, dataclasses.replace(PLAIN, drop_vit=1.0), model=WITH_VIT)
  for row, supervised in ((no_clean, True), (no_vit, True)):
    for text in ('im_start', 'im_end'):
      special = getattr(WORDS.specials, text)
      positions = [r.und.tokens.position[r.und.token_id == special] for r in (full, row)]
      np.testing.assert_array_equal(*positions)
    assert (row.und.weight > 0).sum() == (full.und.weight > 0).sum(), supervised
  assert not (no_clean.gen.copy == 0).any() and (no_clean.und.picture >= 0).sum() == 3
  assert (no_vit.und.picture < 0).all() and (no_vit.gen.copy == 0).sum() == 12


def test_texts_after_a_picture_without_copies_are_not_learned():
  row = _build(MISALIGNMENT, dataclasses.replace(PLAIN, drop_clean=1.0, drop_vit=1.0), model=WITH_VIT)
  first_plan = row.und.weight > 0
  np.testing.assert_array_equal(row.und.tokens.order[first_plan], [3, 4, 5])
  assert (row.gen.copy > 0).all() and len(row.gen.copy) == 8
  # Positions still count both copies of the first picture: 6, 7; the inspection starts at 8.
  starts = row.und.tokens.position[row.und.token_id == WORDS.specials.im_start]
  np.testing.assert_array_equal(starts, [0, 3, 8, 15])


def test_dropout_rates_and_repeatability():
  cfg = dataclasses.replace(PLAIN, noised_copies=2, drop_text=0.3, drop_clean=0.2)
  rows = [_build(MULTI_TURN, cfg, seed=seed) for seed in range(400)]
  blind = np.mean([np.mean(r.gen.tokens.reach[r.gen.copy > 0] != r.gen.tokens.order[r.gen.copy > 0]) for r in rows])
  dropped = np.mean([not (r.gen.copy == 0).any() for r in rows])
  assert abs(blind - 0.3) < 0.05 and abs(dropped - 0.2) < 0.06
  for seed in range(3):
    _assert_same(_build(MULTI_TURN, cfg, seed=seed), rows[seed])


@pytest.mark.parametrize('trajectory', [MULTI_TURN, CONFLICT, MISALIGNMENT, DIRECT])
@pytest.mark.parametrize('seed', range(4))
def test_visibility_is_what_the_rules_say(trajectory, seed):
  cfg = dataclasses.replace(PLAIN, noised_copies=2, drop_text=0.5, learn_rejected_drafts=True)
  row = _build(trajectory, cfg, model=WITH_VIT, seed=seed)
  both = packed.Tokens(*(np.concatenate(f) for f in zip(row.und.tokens, row.gen.tokens, strict=True)))
  by_order = packed.Tokens(*(f[np.argsort(both.order)] for f in both))
  got = np.asarray(masks.visible(by_order, by_order))
  blind_copies = {int(s) for s in np.unique(row.gen.tokens.span[row.gen.tokens.reach != row.gen.tokens.order])}
  np.testing.assert_array_equal(got, _visible_by_reading(trajectory, blind_copies))


def _visible_by_reading(trajectory, blind_spans):
  """The rules of the design, token by token: kind is text, noised, clean or vit; block counts texts and pictures."""
  tokens, span = [], 0
  for block, part in enumerate(_parts(trajectory)):
    if isinstance(part, str):
      tokens += [('text', block, None)] * (len(WORDS.encode_written(part)) + 2)
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


def test_prompt_tags_stay_text():
  row = _build(Trajectory(prompt='<refine>', steps=(), stop=None), seed=None)
  assert WORDS.specials.refine not in row.und.token_id and len(row.und.token_id) == 10


@pytest.mark.parametrize(
  'steps, message',
  [
    ((Step(plan='x'), Step(plan='y')), 'Step 0 .* no draft'),
    ((Step(plan='x', inspection='y'),), 'no draft that it could be about'),
    ((Step(plan='x', draft=_picture(1), refined=_picture(2)),), 'no inspection'),
    ((Step(plan='x', draft=np.zeros([8, 8, 3], np.uint8)),), r'image_size'),
    ((Step(plan='x', draft=np.zeros([16, 16, 3])),), r'float64'),
  ],
)
def test_errors_name_the_trajectory(steps, message):
  with pytest.raises(ValueError, match=message) as error:
    _build(Trajectory(prompt='a pole', steps=steps, stop=None))
  assert 'a pole' in str(error.value)


def test_docs():
  assert doctest.testmod(sequence).failed == 0
