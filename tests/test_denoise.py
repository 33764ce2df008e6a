"""Denoising from the cache gives the velocities of the training layout: same tokens, times, positions, visibility."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import toy

from pdgen.core import config, packed
from pdgen.data import packing
from pdgen.inference import requests as requests_lib
from pdgen.models import interleaved
from pdgen.sampling import cycle, flow

# float32 sums of another length or order, on values of size 1 to 4.
TOLERANCE = 2e-5
CONFIGS = {'latents': toy.MODEL, 'latents_and_vit': toy.WITH_VIT}
# Both branches of guidance, each of which a scale of 0 shows alone and a scale of 1 switches off.
SAMPLING = config.SamplingConfig(
  max_text_tokens=12,
  max_tokens=60,
  guidance_interval=(0.0, 1.0),
  timestep_shift=1.0,
)
BRANCHES = {
  'full': (toy.PLAIN, dict(text_guidance=1.0, image_guidance=1.0)),
  'without_texts': (dataclasses.replace(toy.PLAIN, drop_text=1.0), dict(text_guidance=0.0, image_guidance=1.0)),
  'without_pictures': (
    dataclasses.replace(toy.PLAIN, drop_clean=1.0, drop_vit=1.0),
    dict(text_guidance=1.0, image_guidance=0.0),
  ),
}


def _painted_last():
  """Trajectories that end with a picture after a plan: the first picture, a refined one, a third step's."""
  whole = toy.full_trajectory()
  first = dataclasses.replace(whole.steps[0], inspection=None, corrected_plan=None, refined=None)
  third = dataclasses.replace(whole.steps[2], inspection=None)
  steps = [(first,), whole.steps[:1], (*whole.steps[:2], third)]
  return [dataclasses.replace(whole, steps=s, prompt='abc'[: i + 1]) for i, s in enumerate(steps)]


def _without_last_picture(trajectory):
  last = trajectory.steps[-1]
  last = dataclasses.replace(last, **{'draft' if last.refined is None else 'refined': None})
  return dataclasses.replace(trajectory, steps=(*trajectory.steps[:-1], last), stop=None)


@pytest.fixture(scope='module', params=CONFIGS)
def cfg(request):
  return CONFIGS[request.param]


@pytest.fixture(scope='module')
def sampler(cfg):
  """knobs -> the latents of the next pictures, f32[3, Q, C], next to a row that has ended. One compiled function."""
  painter = toy.painter(cfg, SAMPLING)
  starts = [_without_last_picture(t) for t in _painted_last()]
  requests = [
    requests_lib.Request(start=start, seed=seed, pictures=1, sampling=SAMPLING)
    for start, seed in zip(starts, (5, 6, 5), strict=True)
  ]
  request = painter.sample_batch(requests, batch_size=4)
  # Scales of 1 must not take the branches out of the program.
  program = painter.spec(dataclasses.replace(SAMPLING, text_guidance=2.0, image_guidance=2.0))

  @functools.partial(jax.jit, static_argnames='program')
  def run(params, request, knobs, count, *, program):
    model = nnx.merge(painter.graphdef, params)
    state = cycle.prefill(model, request, knobs, program)
    state = state.replace(picture_count=state.picture_count + count)
    return cycle.denoise(model, state, knobs, program), state.status

  def sample(*, count=0, flow_steps=1, intervals=None, **changes):
    values = dataclasses.replace(SAMPLING, **changes)
    knobs = flow.SamplerParams.of(values).replace(flow_steps=jnp.int32(flow_steps))
    if intervals is not None:  # Of each row.
      knobs = knobs.replace(guidance_interval=jnp.asarray([*intervals, (0.0, 1.0)]))
    own = program._replace(drafts=values.draft_steps > 0, reuses=values.guidance_every > 1)
    z, status = run(painter.params, request, knobs, jnp.int32(count), program=own)
    assert status.tolist() == [cycle.WAITING] * 3 + [cycle.ENDED]
    return np.asarray(z)[:3]

  return sample


@pytest.fixture(scope='module')
def trained(cfg):
  """(branch, z [3, Q, C], t) -> velocities f32[3, Q, C] of the last noised copy of each training row."""
  graphdef, params = interleaved.graphdef(cfg), toy.params(cfg)
  rows = {
    name: [toy.row(t, cfg, sequence_config=sequence, seed=0) for t in _painted_last()]
    for name, (sequence, _) in BRANCHES.items()
  }
  sizes = [packing.sizes(row) for group in rows.values() for row in group]
  budgets = packed.RowBudget(*(max(size) for size in zip(*sizes, strict=True)))
  batches = {name: toy.batch(*(packing.pack_row([row], budgets) for row in group)) for name, group in rows.items()}

  @jax.jit
  def velocities(params, batch, z, t):
    model = nnx.merge(graphdef, params)
    # Other noised copies hold what nobody may see.
    at = (jnp.cumsum(batch.gen.copy == batch.gen.copy.max(axis=1, keepdims=True), axis=1) - 1).clip(0, z.shape[1] - 1)
    last = batch.gen.copy == batch.gen.copy.max(axis=1, keepdims=True)
    noised = jnp.where((batch.gen.copy > 0)[..., None], 9.0, model.clean_latents(batch))
    z = jnp.where(last[..., None], jnp.take_along_axis(z, at[..., None], axis=1), noised)
    t = jnp.where(last, t, jnp.where(batch.gen.copy > 0, 0.77, 0.0))
    velocity = model.velocity(model.hidden(batch, z, t).gen, z, t)
    index = jnp.argmax(last, axis=1)[:, None] + jnp.arange(cfg.latent_tokens)[None]
    return jnp.take_along_axis(velocity, index[..., None], axis=1)

  return lambda name, z, t: np.asarray(velocities(params, batches[name], z, jnp.float32(t)))


@pytest.mark.parametrize('name', BRANCHES)
def test_a_step_is_the_velocity_of_the_training_layout(sampler, trained, name):
  noise = sampler(flow_steps=0)
  got = noise - sampler(**BRANCHES[name][1])  # One Euler step from t = 1 to 0: z = noise - v.
  np.testing.assert_allclose(got, trained(name, noise, 1.0), atol=TOLERANCE)


def test_later_steps_are_too(sampler, trained):
  noise = sampler(flow_steps=0)
  half = noise - 0.5 * trained('full', noise, 1.0)
  want = half - 0.5 * trained('full', half, 0.5)
  got = sampler(flow_steps=2, **BRANCHES['full'][1])
  np.testing.assert_allclose(got, want, atol=TOLERANCE)


def test_branches_differ(trained):
  z = np.random.default_rng(0).normal(size=(3, 4, 192)).astype(np.float32)
  full, without_texts, without_pictures = (trained(name, z, 1.0) for name in BRANCHES)
  assert np.abs(full - without_texts).max(axis=(1, 2)).min() > 0.1
  moved = np.abs(full - without_pictures).max(axis=(1, 2))
  assert moved[0] < TOLERANCE and moved[1:].min() > 0.1  # Before the first picture there is none to leave out.


def test_guidance_combines_the_branches(sampler, trained):
  noise = sampler(flow_steps=0)
  v, v_text, v_image = (trained(name, noise, 1.0) for name in BRANCHES)
  want = v_text + 3.0 * (v - v_text)
  want = v_image + 1.5 * (want - v_image)
  got = noise - sampler(text_guidance=3.0, image_guidance=1.5)
  np.testing.assert_allclose(got, want, atol=4 * TOLERANCE)


def test_scale_one_is_no_guidance_and_neither_is_a_time_outside_the_interval(sampler):
  plain = sampler(flow_steps=2, text_guidance=5.0, image_guidance=3.0, guidance_interval=(2.0, 3.0))
  np.testing.assert_allclose(sampler(flow_steps=2, text_guidance=1.0), plain, atol=TOLERANCE)
  guided = dict(flow_steps=2, text_guidance=5.0, image_guidance=3.0)
  on = sampler(**guided)
  assert np.abs(on - plain).max(axis=(1, 2)).min() > 0.1
  # On for low < t <= high, of the times 1 and 0.5.
  np.testing.assert_array_equal(sampler(**guided, guidance_interval=(0.4, 1.0)), on)
  first, second = (sampler(**guided, guidance_interval=i) for i in ((0.5, 1.0), (0.4, 0.5)))
  for one, other in ((first, on), (second, on), (first, plain), (second, plain), (first, second)):
    assert np.abs(one - other).max(axis=(1, 2)).min() > 0.01
  assert np.abs(on - sampler(**guided, timestep_shift=3.0)).max() > 0.01


def test_noise_is_drawn_for_each_seed_and_each_picture(sampler):
  first, second = sampler(flow_steps=0, count=0), sampler(flow_steps=0, count=1)
  np.testing.assert_array_equal(first[0], first[2])  # Both have seed 5.
  assert (
    np.abs(np.corrcoef(np.stack([first[0], first[1], second[0], second[1]]).reshape(4, -1)) - np.eye(4)).max() < 0.2
  )
  assert abs(first[:2].mean()) < 0.1 and abs(first[:2].std() - 1) < 0.1


SCALES = dict(text_guidance=3.0, image_guidance=1.5)


def test_guidance_that_is_not_computed_at_every_step_is_not_dropped(sampler, trained):
  guide = lambda v, v_text, v_image: v_image + 1.5 * (v_text + 3.0 * (v - v_text) - v_image)
  noise = sampler(flow_steps=0)
  v, *others = (trained(name, noise, 1.0) for name in BRANCHES)
  half = noise - 0.5 * guide(v, *others)
  later = trained('full', half, 0.5)
  want = half - 0.5 * guide(later, *(later - (v - other) for other in others))
  whole = [(0.0, 1.0)] * 3
  got = sampler(flow_steps=2, guidance_every=2, intervals=whole, **SCALES)
  np.testing.assert_allclose(got, want, atol=8 * TOLERANCE)
  assert np.abs(got - sampler(flow_steps=2, **SCALES)).max(axis=(1, 2)).min() > 1e-3
  # Counted from the first step that is guided, which is always computed: here the second one.
  late = sampler(flow_steps=2, guidance_every=2, intervals=[(0.0, 0.6)] * 3, **SCALES)
  want = sampler(flow_steps=2, guidance_interval=(0.0, 0.6), **SCALES)
  np.testing.assert_allclose(late, want, atol=TOLERANCE)


def test_guidance_is_computed_anew_for_each_trajectory_as_if_it_were_alone(sampler):
  """The times of 5 steps are 1, .8, .6, .4, .2: the rows begin to be guided at the first, the second and the third."""
  intervals = [(0.0, 1.0), (0.1, 0.9), (0.3, 0.7)]
  options = dict(flow_steps=5, guidance_every=2, **SCALES)
  together = sampler(intervals=intervals, **options)
  for row, interval in enumerate(intervals):
    alone = sampler(intervals=[interval] * 3, **options)
    np.testing.assert_allclose(together[row], alone[row], atol=TOLERANCE)


def test_drafts_take_steps_of_their_own(sampler):
  few, many = (sampler(flow_steps=n, **SCALES) for n in (2, 5))
  got = sampler(flow_steps=5, draft_steps=2, **SCALES)
  for row, want in enumerate((few, many, few)):  # A draft, a refined picture, a draft.
    np.testing.assert_allclose(got[row], want[row], atol=TOLERANCE)
  assert np.abs(few - many).max(axis=(1, 2)).min() > 0.01
