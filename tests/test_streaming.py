"""Streaming gives the texts and pictures of the one compiled call, event by event, and compiles once for a shape."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from support import compilations, toy

import pdgen
from pdgen.core import config, tags, trajectory
from pdgen.inference import phases, requests, streaming
from pdgen.worlds import shapes

SAMPLING = config.SamplingConfig(max_pictures=3, max_text_tokens=12, max_tokens=140, flow_steps=2, temperature=0.6)
PAINTER = toy.refining_painter(toy.WITH_VIT, SAMPLING)
PARTIAL = dataclasses.replace(toy.full_trajectory(), steps=toy.full_trajectory().steps[:1], stop=None)
SEEDS = [3, 14, 5]


def _equal(got, want):
  """Bit for bit: on one device the phases alone round as they do in the whole program."""
  assert [t.stop for t in got] == [t.stop for t in want]
  for one, other in zip(got, want, strict=True):
    pairs = list(zip(one.items(), other.items(), strict=True))
    assert [(a.kind, a.number) for a, _ in pairs] == [(b.kind, b.number) for _, b in pairs]
    for a, b in pairs:
      np.testing.assert_array_equal(getattr(a.step, a.kind), getattr(b.step, b.kind))


@pytest.fixture(scope='module')
def prompts():
  return ['ab', 'a longer prompt', PARTIAL]


@pytest.fixture(scope='module')
def whole(prompts):
  return PAINTER.sample(prompts, seed=SEEDS).trajectories


@pytest.fixture(scope='module')
def told(prompts):
  """All events of a batch, and what they compiled."""
  with compilations.counted() as compiled:
    events = list(PAINTER.stream(prompts, seed=SEEDS))
  return events, compiled


def test_the_stream_ends_as_the_one_call_does(told, whole):
  ends = {e.row: e.trajectory for e in told[0] if isinstance(e, streaming.End)}
  assert len(ends) == 3
  _equal([ends[row] for row in range(3)], whole)


def test_events_tell_all_that_is_made_in_order(told, whole):
  for row, made in enumerate(whole):
    events = [e for e in told[0] if e.row == row]
    assert isinstance(events[-1], streaming.End)
    items = [e for e in events if isinstance(e, (streaming.Text, streaming.Picture))]
    given = len(list(PARTIAL.items())) if row == 2 else 0
    for event, item in zip(items, list(made.items())[given:], strict=True):
      assert (event.step, event.kind) == (item.number, item.kind)
      content = event.picture if isinstance(event, streaming.Picture) else event.text
      np.testing.assert_array_equal(content, getattr(item.step, item.kind))
    # The pieces of a text are the text, and come before it.
    pieces = ''
    for event in events:
      if isinstance(event, streaming.Token):
        assert event.text
        pieces += event.text
      elif isinstance(event, streaming.Text):
        assert event.text == pieces
        pieces = ''
    # After an inspection its verdict.
    for event, after in zip(events, events[1:], strict=False):
      is_inspection = isinstance(event, streaming.Text) and event.kind == trajectory.INSPECTION
      assert is_inspection == isinstance(after, streaming.Verdict)
      if is_inspection:
        instruction = tags.refine_instruction(event.text)
        assert (after.rejected, after.instruction) == (instruction is not None, instruction)
  verdicts = {e.rejected for e in told[0] if isinstance(e, streaming.Verdict)}
  assert verdicts == {True, False}, 'Choose seeds that show both.'


def test_a_shape_compiles_once(told, prompts):
  """Other prompts, seeds and numbers of the sampler take the same programs."""
  assert told[1] == dict(prefill=1, decode_step=1, picture_phase=1)
  other = dataclasses.replace(SAMPLING, temperature=0.1, text_guidance=3.0, flow_steps=1)
  with compilations.counted() as compiled:
    list(PAINTER.stream(['c', *prompts[1:]], seed=8, sampling=other))
  assert not compiled


def test_a_stream_may_be_closed_at_any_time(prompts, told):
  for count in (0, 1, 40):
    stream = PAINTER.stream(prompts, seed=SEEDS)
    first = list(itertools.islice(stream, count))
    stream.close()
    with pytest.raises(StopIteration):
      next(stream)
    assert [type(e) for e in first] == [type(e) for e in told[0][:count]]


def test_pictures_that_are_not_finite_are_told(prompts, whole):
  """With weights that are NaN: at the end of each trajectory, and in the result; the same programs, no others."""
  nan = jax.tree.map(lambda x: x * np.nan, PAINTER.params['latent_out'])
  damaged = dataclasses.replace(PAINTER, params={**PAINTER.params, 'latent_out': nan})
  with pytest.warns(UserWarning, match='^[1-3] trajectories have pictures with values that are NaN'):
    result = damaged.sample(prompts, seed=SEEDS)
  given = (0, 0, len(PARTIAL.pictures))
  adding = [row for row, t in enumerate(result.trajectories) if len(t.pictures) > given[row]]
  assert adding[:2] == [0, 1] and result.not_finite == tuple(adding)
  assert not PAINTER.sample(prompts, seed=SEEDS).not_finite
  with pytest.warns(UserWarning, match='^1 trajectories have pictures with values that are NaN'):
    events = list(damaged.stream(prompts, seed=SEEDS))
  assert {e.row: e.finite for e in events if isinstance(e, streaming.End)} == {
    row: row not in adding for row in range(3)
  }
  assert all(e.finite for e in PAINTER.stream(prompts, seed=SEEDS) if isinstance(e, streaming.End))


def test_streams_in_turn_do_not_disturb_each_other(prompts, whole):
  other = PAINTER.stream(['zz', *prompts[1:]], seed=8)
  events = [event for event, _ in itertools.zip_longest(PAINTER.stream(prompts, seed=SEEDS), other)]
  ends = {e.row: e.trajectory for e in events if isinstance(e, streaming.End)}
  _equal([ends[row] for row in range(3)], whole)


@pytest.mark.parametrize(
  ('arguments', 'options', 'message'),
  [
    (['p'], dict(mode='sketch'), "Unknown mode 'sketch'"),
    (['p'], dict(sampling=dataclasses.replace(SAMPLING, max_tokens=33)), 'max_tokens=33 leaves no room'),
    ([['p', 'q']], dict(batch_size=1), '2 trajectories do not fit a batch of 1'),
  ],
)
def test_what_cannot_be_streamed_is_refused_at_the_call(arguments, options, message):
  with pytest.raises(ValueError, match=message):
    PAINTER.stream(*arguments, **options)


class Halves(toy.testing.Letters):
  """A tokenizer of bytes: a character may come in several tokens."""

  def _token_bytes(self, token_id):
    return bytes([token_id]) if token_id < 128 else b'\xc3' if token_id == 300 else b'\xa4'

  def __init__(self):
    super().__init__()
    self.vocab_size = 302


def test_a_piece_never_holds_a_part_of_a_character():
  words = Halves()
  row = streaming._Row(0, requests.make('p', sampling=SAMPLING)[0], words)
  s = words.specials
  tokens = [s.im_start, ord('a'), 300, 301, 300, ord('b'), 300, s.im_end]
  events = [[*row.token(t)] for t in tokens]
  assert [[e.text for e in of_one if isinstance(e, streaming.Token)] for of_one in events] == [
    [], ['a'], [], ['ä'], [], ['\ufffdb'], [], ['\ufffd'],
  ]  # fmt: skip
  [text] = [e for e in events[-1] if isinstance(e, streaming.Text)]
  assert text.text == 'aä\ufffdb\ufffd' and row.count == len(tokens)


def test_the_shipped_model_streams_what_it_samples():
  painter = pdgen.load('shapes')
  asked = [m['prompt'] for m in shapes.prompts('heldout', per_task=1)][:2]
  want = painter.sample(asked, seed=1).trajectories
  ends = {e.row: e.trajectory for e in painter.stream(asked, seed=1) if isinstance(e, streaming.End)}
  _equal([ends[0], ends[1]], want)


def test_what_was_told_of_a_state_outlives_it(prompts):
  """Arrays given to the host are no part of the state that the next phase takes over."""
  runner = PAINTER.phases(SAMPLING)
  batch = PAINTER.sample_batch(requests.make(prompts, sampling=SAMPLING, seed=SEEDS))
  state = runner.prefill(batch)
  seen = phases.progress(state)
  before = jax.tree.map(np.array, seen)
  runner.text_phase(state)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(seen), before)
  runner.prefill(batch)  # The batch is still there, too.
