"""Protocols: the forms of texts of released models, to the letter, and what they decide."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import toy

from pdgen.core import modes, protocols, trajectory
from pdgen.sampling import grammar

UMM = protocols.TABLE['umm_reflection']
TEXT = (
  '<think>\n[CURRENT_ROUND] Round#1\n[SCORE] 4/10\n[ACTION] edit\n[THINKING] The ring is blue.\nIt should be red.\n'
  '[SOURCE_IMAGE] Image #1\n</think>\n[EDIT] Make the ring red.'
)
DONE = TEXT.replace('ACTION] edit', 'ACTION] done').replace('Make the ring red.', 'None')


def test_system_prompts_are_those_of_the_releases():
  """Models were trained with them: a character more is another prompt."""
  digest = lambda words: hashlib.sha256(words.encode()).hexdigest()[:16]
  assert len(protocols.UMM_REFLECTION_SYSTEM) == 2058  # The released file without its last line break.
  assert [digest(modes.of(name).system) for name in protocols.TABLE] == [
    '5e0fe5907077b966',
    '85c1385d54725046',
    '5c29df8aed4f5bd8',
  ]


def test_the_controller_text_is_the_released_one_to_the_letter():
  assert UMM.begin(1) + UMM.choices[4] == TEXT[: TEXT.index('\n[ACTION]')]
  move, values = UMM.read(TEXT)
  assert move == protocols.PAINT and values['edit'] == 'Make the ring red.' and values['score'] == '4'
  assert UMM.kept_text(TEXT, values, number=1, source='Image #1') == TEXT
  untidy = TEXT.replace('edit\n[', 'edit, I think\n\n[').replace('[SOURCE_IMAGE] Image #1', '[SOURCE_IMAGE] Image #7')
  move, values = UMM.read(untidy)
  assert move == protocols.PAINT and UMM.kept_text(untidy, values, number=1, source='Image #1') == TEXT


@pytest.mark.parametrize(
  ('old', 'new'),
  [
    ('', ''),
    ('The ring is blue', '{round} of {nothing} 10/10 [SCORE]'),
    ('[SOURCE_IMAGE] Image #1\n', ''),
    ('ACTION] edit', 'ACTION] EDIT'),
    ('4/10', '10/10'),
    ('Make the ring red.', 'Add "nothing".\nAnd more.'),
  ],
)
def test_texts_that_ask_for_a_picture(old, new):
  assert UMM.read(TEXT.replace(old, new, 1)).move == protocols.PAINT


@pytest.mark.parametrize(
  'nothing', ['', 'None', ' none', 'N/A', 'null ', 'Executable payload', 'concrete edit instruction']
)
def test_an_edit_of_nothing_is_done(nothing):
  assert UMM.read(TEXT.replace('Make the ring red.', nothing)).move == protocols.END
  assert UMM.read(DONE).move == protocols.END


@pytest.mark.parametrize(
  ('old', 'new', 'problem'),
  [
    (TEXT, 'A ring.', 'think is there 0 times'),
    (TEXT, '', 'think is there 0 times'),
    ('<think>', 'Well. <think>', "'Well. ' comes before think"),
    ('It should', '<think> It should', 'think is there 2 times'),
    ('</think>', '', 'end of think is there 0 times'),
    ('</think>\n', '</think>\n\n', 'end of think is'),
    ('[SCORE] 4/10\n', '', 'score is there 0 times'),
    ('4/10', '4/5', "score is ' 4/5"),
    ('4/10', '11/10', 'score is'),
    ('4/10', '4', 'score is'),
    ('4/10', '4/100', 'score is'),
    ('ACTION] edit', 'ACTION] paint', 'action is'),
    ('ACTION] edit', 'ACTION] edited', 'action is'),
    ('The ring', '[ACTION] done. The ring', 'action is there 2 times'),
    ('The ring is blue.\nIt should be red.', ' ', 'thinking is'),
    ('The ring is blue.\nIt should be red.', 'Ground the decision in the visible image.', 'thinking is'),
    ('It should', '[NOTE] It should', 'thinking is'),
    ('[EDIT] Make the ring red.', '', 'edit is there 0 times'),
    ('Make the ring red.', 'Make it red.\n', 'edit is'),
    ('Make the ring red.', 'Make it red. [SCORE] 9/10', 'edit is'),
    ('Make the ring red.', 'Make it red.<|im_end|>', 'edit is'),
    ('[EDIT] Make', '[EDIT]Make', 'edit is'),
    ('ACTION] edit', 'ACTION] done', 'edit is not None where the action is done'),
  ],
)  # fmt: skip
def test_texts_that_cannot_be_read(old, new, problem):
  with pytest.raises(protocols.UnreadableError) as told:
    UMM.read(TEXT.replace(old, new, 1))
  assert problem in str(told.value)


@pytest.mark.parametrize(
  ('name', 'text', 'move'),
  [
    ('thinkmorph', '<think>I draw.</think><image_start>', protocols.PAINT),
    ('thinkmorph', '<image_end><think>So.</think><answer>B</answer>', protocols.END),
    ('thinkmorph', '', protocols.END),
    ('zebra_cot', 'THOUGHT 1: I draw.', protocols.PAINT),
    ('zebra_cot', 'So. Final Answer: 3', protocols.END),
    ('zebra_cot', '<answer>3', protocols.END),
  ],
)
def test_other_protocols_read_every_text(name, text, move):
  assert protocols.TABLE[name].read(text) == (move, {})


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(sees='some'), 'sees one of'),
    (dict(sees='source', instruction='edit'), "instruction is the field 'edit'"),
    (dict(source='named'), "named source is the field 'source'"),
  ],
)
def test_a_row_that_cannot_be_driven_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    protocols.Protocol(rules=(), **fields)


def test_texts_begin_as_the_host_says():
  rows = [[(65, 66), (65, 67, 68)], [], [(70,)]]
  starts = [trajectory.Trajectory(prompt='', steps=(), mode='answer')] * 3
  rules = grammar.Grammar(toy.WORDS.specials, toy.WORDS.vocab_size, 20, True)
  s = toy.WORDS.specials
  state = grammar.from_trajectories(starts, rows)
  advance, allowed = (jax.jit(f, static_argnames='rules') for f in (grammar.after_token, grammar.allowed_tokens))
  read = lambda state, *ids: advance(state, jnp.asarray(ids, jnp.int32), rules=rules)
  may = lambda state: [set(np.flatnonzero(row).tolist()) for row in np.asarray(allowed(state, rules=rules))]
  assert may(state) == [{s.im_start}] * 3
  state = read(state, s.im_start, s.im_start, s.im_start)
  free = may(state)[1]
  assert may(state) == [{65}, free, {70}] and len(free) > 100
  state = read(state, 65, 65, 70)
  assert may(state) == [{66, 67}, free, free]
  other = read(state, 66, 1, 1)
  assert may(other) == [free, free, free]
  state = read(state, 67, 1, 1)
  assert may(state) == [{68}, free, free] and may(read(state, 68, 1, 1))[0] == free
  assert grammar.from_trajectories(starts, [[]] * 3).begins is None
