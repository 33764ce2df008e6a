"""Spans, positions, reach, labels and weights of every kind of trajectory, against tables written by hand."""

import dataclasses
import doctest

import jax.numpy as jnp
import numpy as np
import pytest
from support import letters

from pdgen.core import config, packed
from pdgen.data import sequence
from pdgen.sampling import canvas, spans

Step, Trajectory = letters.Step, letters.Trajectory


def test_multi_turn():
  assert letters.table(letters.build(letters.MULTI_TURN, letters.WEIGHTED)) == [
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
    '21 21 10 0 b 3',
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
  assert letters.table(letters.build(letters.CONFLICT, letters.WEIGHTED)) == [
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
    model = dataclasses.replace(letters.MODEL, max_latent_size=5, interpolate_positions=spread)
    assert letters.build(letters.DIRECT, model=model).gen.patch.tolist() == want * 2
    layout, none = canvas.layout(model, None), jnp.zeros(1, jnp.int32)
    _, gen = spans.context_copies(letters.WORDS.specials, none > 0, none, none, layout.latent, layout.vit)
    assert gen.patch.tolist() == [want]


def test_an_inspection_that_approves_may_end_it():
  step = Step(plan='x', draft=letters.picture(1), inspection='b ok no')
  ended = letters.table(letters.build(Trajectory(prompt='p', steps=(step,)), letters.WEIGHTED))
  assert ended[-9:] == [
    '18 18 7 0 <|im_start|> b 3',
    '19 19 8 0 b 3',
    '20 20 9 0 o 8',
    '21 21 10 0 o k 8',
    '22 22 11 0 k 3',
    '23 23 12 0 n 8',
    '24 24 13 0 n o 8',
    '25 25 14 0 o <|im_end|> 3',
    '26 26 15 0 <|im_end|> <|endoftext|> 0.5',
  ]
  for open_ended in (dict(stop=None), dict(steps=(dataclasses.replace(step, inspection='no <refine>r</refine>'),))):
    row = letters.build(dataclasses.replace(Trajectory(prompt='p', steps=(step,)), **open_ended), letters.WEIGHTED)
    assert not np.isin(row.und.label[row.und.weight > 0], letters.WORDS.specials.endoftext).any()


def test_words_that_tell_of_a_fault_weigh_more():
  step = Step(plan='no', draft=letters.picture(1), inspection='ok no b')
  trajectory = Trajectory(prompt='no', steps=(step,))
  cfg = dataclasses.replace(letters.WEIGHTED, faults=('no', 'b'), fault_weight=1.5)
  have, plain = (letters.build(trajectory, c).und for c in (cfg, dataclasses.replace(cfg, fault_weight=1.0)))
  changed = np.flatnonzero(have.weight != plain.weight)
  assert [letters.WORDS.decode([int(i)]) for i in have.label[changed]] == ['n', 'o', 'b']  # Of the inspection alone.
  np.testing.assert_array_equal(have.weight[changed], [12, 12, 4.5])
  np.testing.assert_array_equal(plain.weight[changed], [8, 8, 3])


@pytest.mark.parametrize('name', ['decisive', 'faults'])
def test_what_is_no_regular_expression_is_named(name):
  with pytest.raises(ValueError, match=rf"'\(' in config.data.sequence.{name} is no regular expression: missing"):
    config.SequenceConfig(**{name: ('ok', '(')})


def test_conflict_when_the_config_says_so():
  cfg = dataclasses.replace(letters.PLAIN, rejected_plan_weight=1.0, rejected_draft_weight=1.0)
  assert letters.table(letters.build(letters.CONFLICT, cfg))[3:9] == [
    '3 3 3 0 <|im_start|> x 1',
    '4 4 4 0 x <|im_end|> 1',
    '5 5 5 0 <|im_end|> <|vision_start|> 1',
    '6 6 6 1 <|vision_start|>^',
    '7 7 6 1 patch 0^ flow 1',
    '11 11 6 1 <|vision_end|>^',
  ]


def test_misalignment_learns_the_plan_and_refines_at_once():
  assert letters.table(letters.build(letters.MISALIGNMENT, letters.WEIGHTED))[3:] == [
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
  cfg = dataclasses.replace(letters.PLAIN, direct_opening='o', noised_copies=2, drop_text=1.0)
  row = letters.build(letters.DIRECT, cfg, model=letters.WITH_VIT)
  assert letters.table(row) == [
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


def test_pictures_copies_and_dtypes():
  row = letters.build(letters.MISALIGNMENT, dataclasses.replace(letters.PLAIN, noised_copies=3), model=letters.WITH_VIT)
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
  row = letters.build(letters.MULTI_TURN, dataclasses.replace(letters.PLAIN, length_weighting=True, plan_weight=2.0))
  weight = dict(zip(row.und.tokens.order.tolist(), row.und.weight.tolist(), strict=True))
  np.testing.assert_allclose([weight[n] for n in (3, 4, 5, 6)], 2 / np.sqrt(4), rtol=1e-6)
  np.testing.assert_allclose([weight[n] for n in (20, 21, 22, 23, 24)], 1 / np.sqrt(5), rtol=1e-6)
  assert [weight[n] for n in (7, 19, 25, 40)] == [1.0] * 4


def test_self_painted_draft_is_context_only():
  step = dataclasses.replace(letters.MULTI_TURN.steps[0], draft_is_target=False)
  row = letters.build(dataclasses.replace(letters.MULTI_TURN, steps=(step, letters.MULTI_TURN.steps[1])))
  np.testing.assert_array_equal(row.gen.picture[row.gen.copy > 0], [1] * 4)
  everything = dataclasses.replace(letters.PLAIN, rejected_draft_weight=1.0)
  rejected = dataclasses.replace(letters.CONFLICT.steps[0], draft_is_target=False)
  row = letters.build(dataclasses.replace(letters.CONFLICT, steps=(rejected,)), everything)
  np.testing.assert_array_equal(row.gen.picture[row.gen.copy > 0], [1] * 4)


@pytest.mark.parametrize('cut', ['prompt', 'direct', 'plan', 'draft', 'capped', 'refine'])
def test_partial_trajectories_learn_nothing_about_the_unknown(cut):
  steps = {
    'prompt': (),
    'direct': (),
    'plan': (Step(plan='x'),),
    'draft': (Step(plan='x', draft=letters.picture(1)),),
    'capped': (Step(plan='x', draft=letters.picture(1)),),
    'refine': (Step(plan='x', draft=letters.picture(1), inspection='<refine>r</refine>'),),
  }[cut]
  stop = 'picture_cap' if cut == 'capped' else None
  mode = 'direct' if cut == 'direct' else 'process'
  row = letters.build(Trajectory(prompt='p', steps=steps, stop=stop, mode=mode), seed=None)
  assert row.und.weight[-1] == 0
  last = 'vision_end' if cut in ('draft', 'capped') else 'im_end'
  assert row.und.token_id[-1] == getattr(letters.WORDS.specials, last)
  assert (row.gen.copy == 0).all()
  assert row.pictures.shape == (int(cut in ('draft', 'capped', 'refine')), 16, 16, 3)
  assert len(row.gen.patch) == 4 * len(row.pictures)
  if cut == 'prompt':
    assert not row.und.weight.any()


def test_prompt_tags_stay_text():
  row = letters.build(Trajectory(prompt='<refine>', steps=(), stop=None), seed=None)
  assert letters.WORDS.specials.refine not in row.und.token_id and len(row.und.token_id) == 10


@pytest.mark.parametrize(
  'steps, message',
  [
    ((Step(plan='x'), Step(plan='y')), 'Step 0 .* no draft'),
    ((Step(plan='x', inspection='y'),), 'no draft that it could be about'),
    ((Step(plan='x', draft=letters.picture(1), refined=letters.picture(2)),), 'no inspection'),
    ((Step(plan='x', draft=np.zeros([8, 8, 3], np.uint8)),), r'image_size'),
    ((Step(plan='x', draft=np.zeros([16, 16, 3])),), r'float64'),
  ],
)
def test_errors_name_the_trajectory(steps, message):
  with pytest.raises(ValueError, match=message) as error:
    letters.build(Trajectory(prompt='a pole', steps=steps, stop=None))
  assert 'a pole' in str(error.value)


def test_docs():
  assert doctest.testmod(sequence).failed == 0
