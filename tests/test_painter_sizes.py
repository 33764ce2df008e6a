"""Partial trajectories whose pictures have other sizes than the model's own are continued like any others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import toy

from pdgen import sample
from pdgen.core import config, trajectory
from pdgen.data import images
from pdgen.inference import requests, streaming
from pdgen.sampling import canvas, kv_cache, spans

SAMPLING = config.SamplingConfig(max_pictures=3, max_text_tokens=12, max_tokens=140, flow_steps=2)
# Position tables of five and of seven patches.
CONFIGS = {
  'latents_and_vit': dataclasses.replace(toy.WITH_VIT, max_latent_size=5),
  'vae_and_vit': dataclasses.replace(toy.WITH_VAE, max_latent_size=7),
}
PLAN, INSPECTION = '<ins>a</ins><des>b</des>', 'no. <refine>c</refine>'


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
  return requests.Request(start=start, seed=3, pictures=1, sampling=SAMPLING)


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
  shape = requests.batch_shape([_request(start)], config=painter.config, tokenizer=toy.WORDS)
  assert not shape.any_size
  budget = shape.row_budget._replace(vit_tokens=32, pictures=0)
  np.testing.assert_allclose(logits(start, requests.BatchShape(budget, SAMPLING, any_size=True)), own, atol=1e-5)


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
  # Both kinds in one call share a batch.
  assert sample([own, _seen(_picture(painter, 4, 1))]) == 1


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


def test_pictures_are_painted_at_any_size_each_as_if_alone():
  """These are too unlike for one batch; an edit has the size of the picture that is given (QUIRKS 32)."""
  painter = toy.refining_painter(CONFIGS['latents_and_vit'], SAMPLING)
  data = dataclasses.replace(painter.config.data, sources=(config.SourceConfig(kind='records', name='x'),))
  painter = dataclasses.replace(painter, config=dataclasses.replace(painter.config, data=data))
  given = _picture(painter, 3, 2)
  asked = [('direct', 'ab', (8, 24)), ('edit', [given, 'ab'], None), ('direct', 'cd', (24, 16))]
  modes, prompts, sizes = zip(*asked, strict=True)
  got = painter.sample(list(prompts), mode=modes, size=sizes, seed=3, batch_size=1).trajectories
  assert [t.final.shape for t in got] == [(8, 24, 3), (24, 16, 3), (24, 16, 3)]
  [alone] = painter.sample('cd', mode='direct', size=(24, 16), seed=5, batch_size=1).trajectories
  np.testing.assert_array_equal(alone.final, got[2].final)
  # A painted picture is looked at as a given one is: the sampler's copies of it are those of a prefix.
  model = painter.config.model
  prefix = painter.sample_batch([_request(dataclasses.replace(got[0], stop=None))]).prefix
  active, zero = jnp.ones(1, bool), jnp.zeros(1, jnp.int32)
  layout = canvas.layout(model, (8, 24))
  und, gen = spans.context_copies(toy.WORDS.specials, active, zero, zero, layout.latent, layout.vit)
  assert gen.patch[0].tolist() == prefix.gen.patch[0, : gen.patch.shape[1]].tolist() == [0, 1, 2]
  seen = np.asarray(prefix.und.picture[0]) >= 0
  assert seen.sum() == (np.asarray(und.picture[0]) >= 0).sum() == model.picture_tokens_of((8, 24)) - 3 - 4


@pytest.mark.parametrize(
  ('size', 'words'),
  [((9, 16), 'multiples of 8'), ((8, 48), 'at most 40'), (((8, 8), (16, 16)), '2 sizes for 1 prompts')],
)
def test_a_size_that_cannot_be_painted_is_refused(size, words):
  with pytest.raises(ValueError, match=words):
    requests.sized(requests.make('a', sampling=SAMPLING), size, CONFIGS['latents_and_vit'])


def test_sizes_and_aspects_of_the_command_line():
  parse = sample._parser().parse_args
  assert parse(['--size=768x1024']).size == (1024, 768) and parse([]).size is None
  model = dataclasses.replace(CONFIGS['latents_and_vit'], max_latent_size=4)
  assert images.size_of_aspect(parse(['--aspect=4:1']).size, model) == (8, 32)
  assert images.size_of_aspect(parse(['--aspect=1:1']).size, model) == (16, 16)
  for wrong in ('--size=768', '--size=axb', '--aspect=16', '--aspect=0:9'):
    with pytest.raises(SystemExit):
      parse([wrong])
