"""Texts end with the token in which a stop text is complete, however the tokens cut it, each trajectory by its own."""

import dataclasses
import doctest

import numpy as np
import pytest
from support import toy

from pdgen import flags, sample
from pdgen.core import config
from pdgen.data import tokenizers
from pdgen.inference import requests, results
from pdgen.sampling import stop_texts

SAMPLING = config.SamplingConfig(max_pictures=1, max_text_tokens=24, max_tokens=70, flow_steps=1, text_guidance=1.0)
S = toy.WORDS.specials


def test_docs():
  assert doctest.testmod(stop_texts).failed == 0


def _ends(after, state, tokens):
  """How many tokens it takes until a stop text is complete; None: it never is."""
  for number, token in enumerate(tokens):
    state = after[state, token]
    if state == stop_texts.COMPLETE:
      return number + 1
  return None


def test_the_automaton_finds_what_a_search_finds():
  rng = np.random.default_rng(0)
  letters = 'aaabbé'.encode()
  pieces = tuple(bytes(rng.choice(list(letters), size=rng.integers(1, 4)).tolist()) for _ in range(40)) + (b'', b'\x00')
  sets = (('aba', 'bbb'), (), ('bé', 'aabaa'), ('ababa', 'bbab', 'a\x00'))
  after, begin = stop_texts.table(sets, pieces)
  assert after.dtype == np.int16 and len(after) % 16 == 0
  found = 0
  for texts, state in zip(sets, begin, strict=True):
    for _ in range(100):
      tokens, whole = rng.integers(0, len(pieces), 12), [text.encode() for text in texts]
      written = [b''.join(pieces[t] for t in tokens[: n + 1]) for n in range(len(tokens))]
      want = next((n + 1 for n, text in enumerate(written) if stop_texts.find(text, whole) >= 0), None)
      assert _ends(after, state, tokens) == want
      found += want is not None and want > 1
  assert found > 100


def test_another_cut_of_the_text_changes_nothing():
  words = tokenizers.load('shapes')
  text, stop = 'a red ring. Then an 環, at last', 'ring. Then an 環'
  after, [begin] = stop_texts.table(((stop,),), words.pieces)
  whole = words.encode(text)
  alone = [i for sign in text for i in words.encode(sign)]
  assert len(alone) > len(whole) + 5
  for tokens in (whole, alone):
    count = _ends(after, begin, tokens)
    assert stop in words.decode(tokens[:count]) and stop not in words.decode(tokens[: count - 1])


def test_too_many_of_a_batch_are_refused():
  sets = tuple((chr(97 + n % 26) * (250 - n // 26),) for n in range(140))
  with pytest.raises(ValueError, match='of at most 32,000'):
    stop_texts.table(sets, (b'a',))


@pytest.fixture(scope='module')
def painter():
  out = toy.painter(toy.MODEL, SAMPLING)
  data = dataclasses.replace(out.config.data, sources=(config.SourceConfig(kind='records', name='x'),))
  return dataclasses.replace(out, config=dataclasses.replace(out.config, data=data))


ASKED = dict(mode=['free', 'think_answer', 'process', 'free'], seed=[1, 2, 3, 1])


def _sample(painter, stops, **changes):
  own = [dataclasses.replace(SAMPLING, temperature=0.7, stop_texts=texts, **changes) for texts in stops]
  return painter.sample(['ab', 'a', 'ab', 'ab'], **ASKED, sampling=own)


@pytest.fixture(scope='module')
def freely(painter):
  """Four trajectories of the program with stop texts, that never come."""
  return _sample(painter, [('never written',)] * 4)


def _texts(trajectory):
  return [item.text for item in trajectory.items() if not item.is_picture]


def test_each_trajectory_has_its_own(painter, freely):
  words = [_texts(t)[0] for t in freely.trajectories]
  stop = words[0][4:7], words[1][2:4]
  plan = words[2].removeprefix('<ins>')[3:5]
  got = _sample(painter, [('never', stop[0]), (stop[1],), (plan,), ()])
  assert got.timings['compile_calls'] == 0
  free, answer, process, untouched = got.trajectories
  assert _texts(free)[0] == words[0][: words[0].find(stop[0])]
  assert _texts(answer) == [words[1][: words[1].find(stop[1])]]
  assert _texts(untouched) == _texts(freely.trajectories[3])
  # What the grammar holds open is closed.
  inside = words[2].removeprefix('<ins>')
  assert _texts(process)[0] == f'<ins>{inside[: inside.find(plan)]}</ins><des></des>'
  # The model has read it, and chosen nothing after it.
  chosen = got.chosen[1]
  assert toy.WORDS.decode(chosen.ids[1:-1]).endswith(stop[1])
  assert -1e-6 < chosen.logprobs[-1] <= 0
  assert chosen.ids[-1] == S.im_end
  np.testing.assert_array_equal(chosen.ids[:-1], freely.chosen[1].ids[: len(chosen) - 1])


def test_pieces_of_a_stream_hold_back_what_may_be_a_stop_text():
  own = dataclasses.replace(SAMPLING, stop_texts=('###', '#!'))
  [request] = requests.make('a', sampling=own, mode='answer')
  reader, told = results.OutputReader(request, toy.WORDS), []
  for token in [S.im_start, *toy.WORDS.encode('a#b##'), *toy.WORDS.encode('#')]:
    reader.token(token)
    told.append(reader.open_text)
  assert told == ['', 'a', 'a', 'a#b', 'a#b', 'a#b', 'a#b']
  reader.token(S.im_end)
  assert reader.trajectory.texts == ['a#b']
  # A beginning that comes to nothing belongs to the text.
  for token in [S.im_start, *toy.WORDS.encode('a##'), S.im_end]:
    item = reader.token(token)
  assert item.text == 'a##'


@pytest.mark.parametrize(
  ('texts', 'words'),
  [
    (('a', ''), 'at least one character'),
    ('abc', 'at least one character'),
    (('a' * 200, 'é' * 29), '258 bytes'),
    (('\ud800',), 'lone surrogate'),
  ],
)
def test_what_cannot_be_a_stop_text_is_refused(texts, words):
  with pytest.raises(ValueError, match=f'stop_texts.*{words}'):
    dataclasses.replace(SAMPLING, stop_texts=texts)
  with pytest.raises(ValueError, match='stop_texts has no say'):
    dataclasses.replace(SAMPLING, stop_texts=('a',), inspection='dictated')


def test_the_option_may_be_given_often_and_hold_any_sign():
  parse = sample._parser().parse_args
  given = flags.sampling_given(parse(['--sampling.stop_texts=a, b', '--sampling.stop_texts=(c)']))
  assert given == {'stop_texts': ('a, b', '(c)')} and flags.sampling_given(parse([])) == {}
