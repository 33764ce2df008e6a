"""The time grid, guidance and renormalisation, against numbers worked out by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.core import config
from pdgen.sampling import flow

RENORMS = ('none', 'global', 'channel', 'text_channel')


def _knobs(**changes):
  values = dict(
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    repetition_penalty=1.0,
    text_guidance=1.0,
    image_guidance=1.0,
    guidance_interval=(0.0, 1.0),
    renorm_min=0.0,
    timestep_shift=1.0,
    flow_steps=1,
    draft_steps=0,
    guidance_every=1,
    max_edits=9,
  )
  return flow.SamplerParams(**{**values, **changes})


@pytest.mark.parametrize('field', sorted(set(flow.DYNAMIC_FIELDS) - {'guidance_interval', 'flow_steps'}))
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_whatever_they_come_from(field, value):
  """A config refuses them itself; here a caller's own object of the same fields."""
  values = {name: getattr(config.SamplingConfig(), name) for name in flow.DYNAMIC_FIELDS}
  assert flow.SamplerParams.of(types.SimpleNamespace(**values)).flow_steps == 8
  with pytest.raises(ValueError, match=f'sampling.{field}={value} is not finite'):
    flow.SamplerParams.of(types.SimpleNamespace(**{**values, field: value}))


def test_times_fall_evenly_from_noise_to_picture_without_shift():
  times = [float(flow.time_at(i, _knobs(flow_steps=4))) for i in range(5)]
  assert times == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_shift_keeps_the_ends_and_spends_steps_near_noise():
  # 3 u / (1 + 2 u) at u = 1, .8, .6, .4, .2, 0; the reference's grid for shift 3 and 6 time steps ends with .4286, too.
  times = [float(flow.time_at(jnp.int32(i), _knobs(timestep_shift=3.0, flow_steps=5))) for i in range(6)]
  np.testing.assert_allclose(times, [1, 12 / 13, 9 / 11, 2 / 3, 3 / 7, 0], rtol=1e-6)


@pytest.mark.parametrize('shift', [0.2, 0.4, 1.0, 3.0, 4.0])
def test_the_first_time_is_exactly_one(shift):
  # Guidance is on up to t = 1: rounding above it would switch it off.
  knobs = _knobs(timestep_shift=jnp.float32(shift), flow_steps=jnp.int32(5))
  assert float(flow.time_at(jnp.int32(0), knobs)) == 1.0 and float(flow.time_at(jnp.int32(5), knobs)) == 0.0


def _of_rates(at, memory):
  """dz/dt = rate z, a rate a trajectory, whose solution is known; counts its calls."""
  return RATES[:, None, None] * at.z, memory + 1


RATES = np.array([0.5, -1.5], np.float32)
NOISE = np.ones((2, 1, 1), np.float32)


def _error(solver, steps):
  """Largest distance to the solution z exp(-rate), with a time grid that is not even."""
  knobs = _knobs(timestep_shift=3.0, flow_steps=jnp.int32(steps))
  got = flow.integrate(jnp.asarray(NOISE), _of_rates, knobs, solver=solver, memory=0)
  return np.abs(got[:, 0, 0] - np.exp(-RATES)).max()


@pytest.mark.parametrize(('solver', 'order'), [('euler', 1), ('ab2', 2), ('heun', 2)])
def test_solvers_have_their_order(solver, order):
  # The last step is Euler's, whose error is of second order, too.
  assert 0.8 * 2**order < _error(solver, 64) / _error(solver, 128) < 1.25 * 2**order
  assert solver == 'euler' or _error(solver, 8) < 0.7 * _error('euler', 8)


@pytest.mark.parametrize('solver', config.SOLVERS)
def test_a_trajectory_takes_its_own_steps_beside_others(solver):
  knobs = _knobs(timestep_shift=3.0, flow_steps=jnp.int32(9))
  together = flow.integrate(
    jnp.asarray(NOISE), _of_rates, knobs, solver=solver, memory=0, steps=jnp.array([2, 5], jnp.int32)
  )
  for row, steps in enumerate((2, 5)):
    alone = flow.integrate(
      jnp.asarray(NOISE), _of_rates, knobs.replace(flow_steps=jnp.int32(steps)), solver=solver, memory=0
    )
    np.testing.assert_allclose(together[row], alone[row], rtol=1e-6)


@pytest.mark.parametrize('solver', config.SOLVERS)
def test_evaluations_are_counted_as_they_are_made(solver):
  calls = []

  def velocity(at, memory):
    jax.debug.callback(lambda t: calls.append(float(t)), at.t)
    return at.z, memory

  sampling = config.SamplingConfig(solver=solver, flow_steps=5, draft_steps=2)
  knobs = flow.SamplerParams.of(sampling)
  jax.block_until_ready(flow.integrate(jnp.asarray(NOISE), velocity, knobs, solver=solver))
  jax.effects_barrier()
  assert len(calls) == sampling.evaluations(refined=True) == (9 if solver == 'heun' else 5)
  assert sampling.evaluations(refined=False) == (3 if solver == 'heun' else 2)


@pytest.mark.parametrize('solver', config.SOLVERS)
def test_the_last_step_ends_at_the_predicted_picture(solver):
  """A model of clean latents, whose velocity is (z - picture) / t, ends at the picture exactly."""
  velocity = lambda at, memory: ((at.z - 0.25) / at.t, memory)
  got = flow.integrate(jnp.asarray(NOISE), velocity, _knobs(flow_steps=jnp.int32(3)), solver=solver)
  np.testing.assert_allclose(got, np.full_like(NOISE, 0.25), atol=1e-6)


# One trajectory of two tokens with two channels.
V = np.array([[[3.0, 4.0], [0.0, 1.0]]])
V_TEXT = np.array([[[1.0, 2.0], [0.0, -1.0]]])
V_IMAGE = np.array([[[0.0, 4.0], [1.0, 1.0]]])


def _guide(v_text, v_image, renorm, **knobs):
  arrays = [None if x is None else jnp.asarray(x) for x in (V, v_text, v_image)]
  return flow.guide(*arrays, _knobs(**knobs), renorm=renorm)


def test_guidance_by_text_goes_on_beyond_the_full_velocity():
  got = _guide(V_TEXT, None, 'none', text_guidance=3.0)
  np.testing.assert_allclose(got, [[[7, 8], [0, 5]]], rtol=1e-6)


def test_guidance_by_pictures_works_without_guidance_by_text():
  got = _guide(None, V_IMAGE, 'none', image_guidance=2.0)
  np.testing.assert_allclose(got, [[[6, 4], [-1, 1]]], rtol=1e-6)


def test_pictures_guide_what_texts_have_guided():
  got = _guide(V_TEXT, V_IMAGE, 'none', text_guidance=3.0, image_guidance=2.0)
  # Text step [[7, 8], [0, 5]]; then v_image + 2 (that - v_image).
  np.testing.assert_allclose(got, [[[14, 12], [-1, 9]]], rtol=1e-6)


def test_global_renorm_scales_a_trajectory_to_the_norm_of_the_full_velocity():
  got = _guide(V_TEXT, None, 'global', text_guidance=3.0)
  scale = np.sqrt((9 + 16 + 1) / (49 + 64 + 25))
  np.testing.assert_allclose(got, scale * np.array([[[7, 8], [0, 5]]]), rtol=1e-6)


def test_channel_renorm_scales_each_token():
  got = _guide(V_TEXT, V_IMAGE, 'channel', text_guidance=3.0, image_guidance=2.0)
  scale = np.array([[[5 / np.sqrt(14**2 + 12**2)], [1 / np.sqrt(1 + 81)]]])
  np.testing.assert_allclose(got, scale * np.array([[[14, 12], [-1, 9]]]), rtol=1e-6)


def test_text_channel_renorm_comes_before_the_guidance_by_pictures():
  got = _guide(V_TEXT, V_IMAGE, 'text_channel', text_guidance=3.0, image_guidance=2.0)
  text = np.array([[[7, 8], [0, 5]]]) * np.array([[[5 / np.sqrt(49 + 64)], [1 / 5]]])
  np.testing.assert_allclose(got, V_IMAGE + 2 * (text - V_IMAGE), rtol=1e-6)


def test_renorm_never_enlarges():
  # Scale 0 gives v_text, whose tokens are smaller than or as large as those of v.
  np.testing.assert_allclose(_guide(V_TEXT, None, 'channel', text_guidance=0.0), V_TEXT, rtol=1e-6)
  np.testing.assert_allclose(_guide(V_TEXT, None, 'global', text_guidance=0.0), V_TEXT, rtol=1e-6)


def test_renorm_min_bounds_the_scale_from_below():
  got = _guide(V_TEXT, None, 'global', text_guidance=3.0, renorm_min=0.9)
  np.testing.assert_allclose(got, 0.9 * np.array([[[7, 8], [0, 5]]]), rtol=1e-6)
  got = _guide(V_TEXT, None, 'global', text_guidance=3.0, renorm_min=1.0)
  np.testing.assert_allclose(got, [[[7, 8], [0, 5]]], rtol=1e-6)


@pytest.mark.parametrize('renorm', RENORMS)
def test_scale_one_is_no_guidance(renorm):
  np.testing.assert_allclose(_guide(V_TEXT, V_IMAGE, renorm), V, rtol=1e-6)
  np.testing.assert_array_equal(_guide(None, None, renorm), V)


@pytest.mark.parametrize('renorm', RENORMS)
def test_a_trajectory_is_guided_as_if_it_were_alone(renorm):
  rng = np.random.default_rng(0)
  branches = rng.normal(size=(3, 4, 5, 6)).astype(np.float32) * np.array([1, 10, 0.1, 3])[None, :, None, None]
  branches = branches.astype(np.float32)
  knobs = _knobs(text_guidance=4.0, image_guidance=2.0)
  together = flow.guide(*map(jnp.asarray, branches), knobs, renorm=renorm)
  for i in range(4):
    alone = flow.guide(*map(jnp.asarray, branches[:, i : i + 1]), knobs, renorm=renorm)
    np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-5)
