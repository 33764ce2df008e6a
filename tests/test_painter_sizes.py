"""Partial trajectories whose pictures have other sizes than the model's own are continued like any others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import toy

from pdgen.core import config, trajectory
from pdgen.inference import requests, streaming
from pdgen.sampling import kv_cache

SAMPLING = config.SamplingConfig(max_pictures=3, max_text_tokens=12, max_tokens=140, flow_steps=2)
# Position tables of five and of seven patches.
CONFIGS = {
  'latents_and_vit': dataclasses.replace(toy.WITH_VIT, max_latent_size=5),
  'vae_and_vit': dataclasses.replace(toy.WITH_VAE, max_latent_size=7),
}
PLAN, INSPECTION = '<ins>a</ins><des>b</des>', 'no. <refine>c</refine>'


@pytest.fixture(scope='module', autouse=True)
def quick_to_compile():
  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', before)


@pytest.fixture(scope='module', params=CONFIGS)
def painter(request):
  return toy.refining_painter(CONFIGS[request.param], SAMPLING)


def _picture(painter, rows, columns, *, seed=0):
  """Noise of so many latent patches."""
  patch = painter.config.model.codec.patch
  return np.random.default_rng(seed).integers(0, 256, (rows * patch, columns * patch, 3), dtype=np.uint8)


def _seen(picture, **parts):
  """A trajectory that goes on after an inspection of the picture."""
  step = trajectory.Step(plan=PLAN, draft=picture, inspection=INSPECTION, **parts)
  return trajectory.Trajectory(prompt='ab', steps=(step,), stop=None)


def _request(start):
  return requests.Request(start=start, seed=3, pictures=1)


@pytest.fixture(scope='module')
def logits(painter):
  """start -> logits of every token of the texts, in order."""

  @jax.jit
  def read(params, prefix, clean):
    model = nnx.merge(painter.graphdef, params)
    z = model.clean_latents(prefix) if clean is None else clean
    nothing = kv_cache.empty(model.cfg, batch=1, slots=0)
    hidden, _ = model.extend(prefix, z, jnp.zeros(z.shape[:2]), nothing)
    return model.logits(hidden.und)

  def of(start, shape=None):
    batch = painter.sample_batch([_request(start)], shape=shape)
    prefix = batch.prefix
    is_text = (prefix.und.tokens.segment > 0) & (prefix.und.tokens.span == 0)
    return np.asarray(read(painter.params, prefix, batch.clean))[np.asarray(is_text)]

  return of


def test_every_pixel_of_the_picture_is_seen(painter, logits):
  picture = _picture(painter, 3, 2)
  before = logits(_seen(picture))
  inspection = len(toy.WORDS.encode_with_tags(INSPECTION)) + 2
  for at in ((0, 0, 0), (-1, -1, 2), (0, -1, 1), (-1, 0, 0)):
    changed = picture.copy()
    changed[at] ^= 128
    after = logits(_seen(changed))
    # What was written before the picture does not see it; every token after it does.
    np.testing.assert_array_equal(after[:-inspection], before[:-inspection])
    assert (np.abs(after - before)[-inspection:].max(axis=1) > 1e-4).all()


def test_a_picture_of_the_models_own_size_is_read_alike_beside_others(painter, logits):
  start = _seen(_picture(painter, *2 * [painter.config.model.latent_grid]))
  own = logits(start)
  shape = requests.prefix_shape([_request(start)], config=painter.config, tokenizer=toy.WORDS)
  assert not shape.any_size
  budget = shape.row_budget._replace(vit_tokens=32, pictures=0)
  np.testing.assert_allclose(logits(start, requests.PrefixShape(budget, any_size=True)), own, atol=1e-5)


def test_rows_of_mixed_sizes_are_sampled_as_alone(painter):
  own = _seen(_picture(painter, *2 * [painter.config.model.latent_grid]))
  both = _seen(_picture(painter, 1, 3, seed=1), refined=_picture(painter, 4, 1, seed=2))
  prompts = [_seen(_picture(painter, 3, 2)), own, both, _seen(_picture(painter, 4, 1))]
  mixed = painter.sample(prompts, seed=3, batch_size=2).trajectories
  alone = [painter.sample(p, seed=3 + i, batch_size=2).trajectories[0] for i, p in enumerate(prompts)]
  for got, want, given in zip(mixed, alone, prompts, strict=True):
    assert got.stop == want.stop
    for a, b in zip(got.items(), want.items(), strict=True):
      assert (a.kind, a.number) == (b.kind, b.number)
      if a.is_picture:
        # Within 1e-5 of 2: the same level, or neighbours where they round.
        assert np.abs(a.picture.astype(int) - b.picture).max() <= 1
      else:
        assert a.text == b.text
    before = given.pictures
    assert len(got.pictures) > len(before)
    for old, kept in zip(before, got.pictures, strict=False):
      np.testing.assert_array_equal(kept, old)
    assert {p.shape for p in got.pictures[len(before) :]} == {(16, 16, 3)}


def test_sizes_share_few_programs_and_the_own_size_has_its_own():
  painter = toy.refining_painter(CONFIGS['latents_and_vit'], dataclasses.replace(SAMPLING, max_tokens=141))
  sample = lambda start: painter.sample(start, pictures=1).timings['compile_calls']
  own = _seen(_picture(painter, *2 * [painter.config.model.latent_grid]))
  assert sample(own) == 1
  assert [sample(_seen(_picture(painter, *size))) for size in ((3, 2), (4, 1), (3, 1))] == [1, 0, 0]
  assert sample(own) == 0
  # Both kinds in one call, each by its program.
  assert sample([own, _seen(_picture(painter, 4, 1))]) == 0


def test_a_stream_takes_any_sizes():
  painter = toy.refining_painter(CONFIGS['latents_and_vit'], SAMPLING)
  odd = [_seen(_picture(painter, 3, 2)), _seen(_picture(painter, 1, 3))]
  ends = [event for event in painter.stream(odd, seed=5) if isinstance(event, streaming.End)]
  wants = painter.sample(odd, seed=5).trajectories
  for end in ends:
    want = wants[end.row]
    assert [item.kind for item in end.trajectory.items()] == [item.kind for item in want.items()]
    for got, expected in zip(end.trajectory.pictures, want.pictures, strict=True):
      assert np.abs(got.astype(int) - expected).max() <= 1
