"""Continuous batching: lanes that refill from a queue give what one batch of all trajectories gives, in less work."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import toy, xla_flags

from pdgen.core import config, trajectory
from pdgen.inference import painter as painter_lib
from pdgen.inference import requests
from pdgen.sampling import cycle, lanes

# Texts end at different times, trajectories after one to four pictures; the second half paints with guidance.
SAMPLING = config.SamplingConfig(
  max_pictures=4, max_text_tokens=12, max_tokens=100, temperature=1.0, flow_steps=3, text_guidance=2.0
)
PAINTER = toy.refining_painter(toy.WITH_VIT, SAMPLING)
BEGUN = trajectory.Trajectory(
  prompt='ab', steps=(trajectory.Step(plan='<ins>a</ins><des>b</des>', draft=toy.picture(0)),), stop=None
)
PROMPTS = ['ab', 'c', BEGUN, 'b', 'cc', 'ddd a', 'q', 'w', BEGUN, 'r', 't', 'y', 'u']
LANES = 4
OWN = [
  dataclasses.replace(SAMPLING, text_guidance=1.0 + i % 3, image_guidance=1.5 + i % 2, temperature=0.5 + 0.1 * i)
  for i in range(len(PROMPTS))
]


@pytest.fixture(scope='module')
def refilled():
  return PAINTER.sample(PROMPTS, seed=3, sampling=OWN, batch_size=LANES, pictures=2)


@pytest.fixture(scope='module')
def together():
  """Every trajectory in a row of its own, until the last one has ended."""
  asked = requests.make(PROMPTS, sampling=OWN, seed=3, pictures=2)
  batch = next(PAINTER._calls.split(asked, len(asked), refill=False))
  assert batch.plan is None and len(batch.numbers) == len(PROMPTS)
  return asked, PAINTER.run(asked, shape=batch.shape)


def test_what_becomes_of_a_trajectory_is_what_becomes_of_it_in_a_batch_of_all(refilled, together):
  asked, state = together
  counts = np.asarray(state.output_count)
  assert len(set(counts.tolist())) > 4 and set(np.asarray(state.picture_count).tolist()) == {0, 1, 2}
  for i, (request, got, chosen) in enumerate(zip(asked, refilled.trajectories, refilled.chosen, strict=True)):
    assert got.prompt == request.start.prompt
    np.testing.assert_array_equal(chosen.ids, state.output_tokens[i, : counts[i]])
    np.testing.assert_allclose(chosen.logprobs, state.output_logprobs[i, : counts[i]], atol=1e-4)
    assert len(got.pictures) == len(request.start.pictures) + int(state.picture_count[i])
    for mine, theirs in zip(got.pictures[len(request.start.pictures) :], np.asarray(state.pictures[i]), strict=False):
      assert np.abs(mine.astype(int) - theirs).max() <= 1


def test_fewer_rows_are_computed_that_do_not_take_part(refilled, together):
  _, state = together
  timings, rows, plan = refilled.timings, len(PROMPTS), lanes.Plan.of(LANES)
  assert timings['pictures'] == int(state.picture_count.sum())
  assert timings['text_rows'] == LANES * timings['text_steps'] < 0.8 * rows * int(state.text_steps)
  assert timings['picture_rows'] == plan.paint_rows * timings['rounds'] < 0.8 * rows * int(state.rounds)
  assert (
    timings['picture_rows'] <= timings['pictures'] + lanes.Plan.of(LANES).paint_rows
  )  # All but the last phase are full.


def test_queues_of_other_lengths_share_a_program(refilled):
  before = painter_lib._compiled_programs()
  again = PAINTER.sample(PROMPTS[:6], seed=3, sampling=OWN[:6], batch_size=LANES, pictures=2)
  assert painter_lib._compiled_programs() == before
  for mine, theirs in zip(again.chosen, refilled.chosen, strict=False):
    np.testing.assert_array_equal(mine.ids, theirs.ids)
  assert len(again.trajectories) == 6


def test_it_is_one_equation_that_calls_nobody_outside():
  asked = requests.make(PROMPTS, sampling=OWN)
  batch, phases = PAINTER.sample_batch(asked, batch_size=16), PAINTER._phases(asked, 16, PAINTER._calls.shape(asked))
  queue = lanes.Queue(batch, jnp.int32(13), phases.sampler)
  lowered = lanes.run.lower(PAINTER.graphdef, PAINTER.params, queue, phases.spec, lanes.Plan.of(LANES))
  for outside in ('infeed', 'outfeed', 'stablehlo.send', 'stablehlo.recv', 'custom_call', 'callback'):
    assert outside not in lowered.as_text()
  state = jax.eval_shape(lambda: cycle.run(PAINTER.graphdef, PAINTER.params, batch, phases.sampler, phases.spec))
  for name in lanes.OUTPUTS:
    assert getattr(lowered.out_info, name).shape == getattr(state, name).shape
    assert getattr(lowered.out_info, name).dtype == getattr(state, name).dtype

  # A conditional that changes them, or a phase that writes whole rows back, would copy the caches of all lanes.
  cache = f'f32[{",".join(map(str, (state.cache.k.shape[0], LANES, *state.cache.k.shape[2:])))}]'
  loops, _ = lowered.compile(compiler_options=xla_flags.undone()).as_text().split('\nENTRY ')
  made = re.findall(rf'= {re.escape(cache)}\S* (\S+)\(', loops)
  assert 'scatter' in made and 'copy' not in made


@pytest.mark.parametrize('count', [1, 2, 3, 4, 5, 32])
def test_a_plan_has_work_for_at_least_one_lane(count):
  plan = lanes.Plan.of(count)
  assert plan.lanes == count and 1 <= plan.read_rows <= plan.paint_rows <= count
