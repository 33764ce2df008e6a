"""Pictures of several sizes on one masked canvas: each row as if alone at its own size, all by one program."""

import dataclasses
import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import toy

from pdgen.core import config
from pdgen.inference import requests, sizes
from pdgen.models import codecs, interleaved
from pdgen.sampling import canvas, cycle

# The ViT sees at most five patches of four pixels a side: what is larger is made smaller for it.
MODEL = dataclasses.replace(toy.WITH_VIT, max_latent_size=4)
SAMPLING = config.SamplingConfig(max_pictures=2, max_text_tokens=8, max_tokens=90, flow_steps=2, renorm='global')
GUIDANCE = [dict(text_guidance=2.0), dict(text_guidance=4.0, renorm_min=0.5, guidance_interval=(0.9, 1.0))]
# Mode, prompt, size and settings of guidance.
ASKED = [
  ('process', 'ab', (16, 24), 0),
  ('direct', 'cd', (24, 16), 1),
  ('edit', [toy.picture(1), 'ef'], (24, 24), 0),
  ('direct', 'gh', (16, 32), 0),
  ('edit', [toy.picture(2), 'ij'], (24, 32), 1),
]


@pytest.fixture(scope='module')
def painter():
  out = toy.refining_painter(MODEL, SAMPLING)
  data = dataclasses.replace(out.config.data, sources=(config.SourceConfig(kind='records', name='x'),))
  return dataclasses.replace(out, config=dataclasses.replace(out.config, data=data))


def _arguments(numbers):
  modes, prompts, wanted, settings = zip(*(ASKED[i] for i in numbers), strict=True)
  own = [dataclasses.replace(SAMPLING, **GUIDANCE[setting]) for setting in settings]
  return dict(prompts=list(prompts), mode=modes, size=wanted, sampling=own, seed=list(numbers))


def _requests(painter, numbers):
  arguments = _arguments(numbers)
  wanted, prompts = arguments.pop('size'), arguments.pop('prompts')
  return requests.sized(requests.make(prompts, **arguments), wanted, painter.config.model)


@pytest.fixture(scope='module')
def pixels():
  """Decoded pixels of every picture phase, before they are rounded: a list of f32[B, H, W, 3]."""
  rounded, seen = codecs.PixelCodec.to_uint8, []

  def to_uint8(self, pixels):
    jax.debug.callback(lambda x: seen.append(np.array(x)), pixels)
    return rounded(self, pixels)

  codecs.PixelCodec.to_uint8 = to_uint8
  yield seen
  codecs.PixelCodec.to_uint8 = rounded


def _run(painter, numbers, seen):
  """The end of a batch, and the pixels of its rounds."""
  seen.clear()
  state = jax.device_get(painter.run(_requests(painter, numbers)).replace(cache=None, key=None))
  jax.effects_barrier()
  return state, list(seen)


@pytest.fixture(scope='module')
def together(painter, pixels):
  programs = cycle.run._cache_size()
  found = _run(painter, range(len(ASKED)), pixels)
  assert cycle.run._cache_size() == programs + 1
  return found


def _assert_alike(together, row, pictures):
  """pictures: f32[1, H, W, 3] of each round."""
  height, width = ASKED[row][2]
  for number, want in enumerate(pictures):
    assert want.shape == (1, height, width, 3)
    np.testing.assert_allclose(together[1][number][row, :height, :width], want[0], atol=1e-5)


def test_sizes_modes_and_guidance_share_a_program(painter, together):
  state, _ = together
  result = painter.sample(**_arguments(range(len(ASKED))))
  assert result.timings['compile_calls'] == 1 and state.rounds == 2
  assert [{p.shape[:2] for p in t.pictures} for t in result.trajectories] == [{size} for _, _, size, _ in ASKED]
  # Lanes give what rows give.
  for row, (got, chosen) in enumerate(zip(result.trajectories, result.chosen, strict=True)):
    assert chosen.ids.tolist() == state.output_tokens[row, : state.output_count[row]].tolist()
    for number, picture in enumerate(got.pictures):
      height, width = picture.shape[:2]
      assert np.abs(picture.astype(int) - state.pictures[row, number, :height, :width]).max() <= 1
  # Other sizes of the bucket need no other program.
  other = {**_arguments(range(len(ASKED))), 'size': [(24, 24), (16, 32), (24, 16), (24, 32), (16, 24)]}
  assert painter.sample(**other).timings['compile_calls'] == 0


def test_a_process_goes_on_as_it_does_alone(painter, together, pixels):
  """Text, picture, what is said of it, another picture: tokens, caps and places in the cache are its own."""
  got, (alone, rounds) = together[0], _run(painter, [0], pixels)
  count = alone.output_count[0]
  assert alone.picture_count[0] == len(rounds) == 2 and count > 12
  assert got.output_tokens[0, :count].tolist() == alone.output_tokens[0, :count].tolist()
  for name in ('output_count', 'picture_count', 'stop', 'order', 'position', 'text_position', 'picture_order'):
    assert getattr(got, name)[0] == getattr(alone, name)[0], name
  budget = painter._calls.shape(_requests(painter, range(len(ASKED)))).row_budget
  for state, prefix in ((got, budget.und_tokens + budget.gen_tokens), (alone, 32)):
    assert state.slot[0] - prefix == state.order[0] - len('ab') - 2
  _assert_alike(together, 0, rounds)


@pytest.fixture(scope='module')
def painted(painter):
  """The first picture of a request alone, before it is rounded, by the phases of its own size."""
  budget = painter._calls.shape(_requests(painter, range(len(ASKED)))).row_budget

  def of(number):
    asked = _requests(painter, [number])
    shape = painter._calls.shape(asked)._replace(row_budget=budget)
    assert shape.canvas == sizes.Canvas(ASKED[number][2])
    phases = painter._phases(asked, 1, shape)
    # What is read does not depend on what is painted: one program for all.
    reading = dataclasses.replace(phases, spec=phases.spec._replace(size=None))
    z = phases.denoise(reading.prefill(painter.sample_batch(asked, shape=shape)))
    return codecs.unpatchify(z, MODEL.codec.patch, shape.canvas.size[0] // MODEL.codec.patch)

  return of


@pytest.mark.parametrize('row', range(1, len(ASKED)))
def test_a_picture_is_what_it_is_alone(painted, together, row):
  _assert_alike(together, row, [np.asarray(painted(row))])


def test_sizes_that_are_too_unlike_are_apart():
  assert doctest.testmod(sizes).failed == 0
  model = dataclasses.replace(MODEL, max_latent_size=64)
  px = lambda *grids: [None if grid is None else (8 * grid[0], 8 * grid[1]) for grid in grids]
  assert sizes.buckets(px((36, 64), (64, 36), (64, 64), (32, 32)), model) == [[0, 1, 2], [3]]
  assert sizes.buckets(px((1, 4), (4, 1), (2, 2), None), model) == [[0, 2, 3], [1]]
  assert sizes.buckets([None, None], model) == [[0, 1]]
  assert sizes.canvas(px(None), model) == sizes.canvas(px((2, 2)), model) == sizes.Canvas()
  assert sizes.canvas(px((3, 2), (3, 2), None), model) == sizes.Canvas((24, 16))
  made = sizes.canvas(px((17, 30), (25, 20)), model)
  assert made == sizes.Canvas((26 * 8, 30 * 8), canvas.Most(latent=512, vit=25))


@pytest.mark.parametrize('spread', [False, True], ids=['plain', 'spread'])
def test_position_ids_of_each_row_are_those_of_its_picture(spread):
  model = dataclasses.replace(MODEL, interpolate_positions=spread)
  wanted = [(16, 24), (32, 8)]
  grids = canvas.Grids.of(model, wanted)
  mixed = canvas.layout(model, (32, 24), canvas.Most(7, 20), grids)
  for row, size in enumerate(wanted):
    alone = canvas.layout(model, size)
    for got, want in ((mixed.latent, alone.latent), (mixed.vit, alone.vit)):
      ids = np.asarray(got.ids)[row]
      assert ids.tolist() == [*want.ids[0].tolist(), *[0] * (got.total - want.total)]
      assert int(got.own[row, 0]) == want.total == int(np.sum(got.here[row]))
    assert int(mixed.picture_tokens[row]) == alone.picture_tokens == model.picture_tokens_of(size)


def test_the_autoencoder_sees_each_picture_alone():
  """On a canvas full of something else; groups of channels, convolutions and attention are its own."""
  cfg = dataclasses.replace(toy.WITH_VAE, max_latent_size=6)
  graphdef, params, wanted = interleaved.graphdef(cfg), toy.params(cfg), [(8, 20), (16, 12)]
  grids = canvas.Grids.of(cfg, wanted)
  mixed = canvas.layout(cfg, (16, 20), canvas.Most(12, 25), grids)

  @jax.jit
  def both(params, z, pictures):
    codec = nnx.merge(graphdef, params).codec
    return mixed.decode(codec, z), mixed.encode(codec, pictures)

  rng = np.random.default_rng(0)
  z = rng.normal(size=(2, 12, cfg.codec.channels)).astype(np.float32)
  pictures = rng.integers(0, 256, (2, 16, 20, 3), dtype=np.uint8)
  pixels, latents = map(np.asarray, both(params, z, pictures))
  for row, (height, width) in enumerate(wanted):
    layout = canvas.layout(cfg, (height, width))
    q = layout.latent.total

    @jax.jit
    def alone(params, z, picture, layout=layout):
      codec = nnx.merge(graphdef, params).codec
      return layout.decode(codec, z), layout.encode(codec, picture)

    want = alone(params, z[row : row + 1, :q], pictures[row : row + 1, :height, :width])
    np.testing.assert_allclose(pixels[row, :height, :width], want[0][0], atol=1e-5)
    np.testing.assert_allclose(latents[row, :q], want[1][0], atol=1e-5)
    assert not pixels[row, height:].any() and not pixels[row, :, width:].any() and not latents[row, q:].any()


def test_each_picture_is_resized_as_alone():
  rng = np.random.default_rng(0)
  pictures = rng.integers(0, 256, (3, 12, 15, 3), dtype=np.uint8)
  have, want = np.array([(12, 15), (7, 11), (9, 4)]), np.array([(5, 9), (10, 11), (9, 10)])
  got = np.asarray(codecs.resize_each(jnp.asarray(pictures), jnp.asarray(have), jnp.asarray(want), (10, 12)))
  for picture, (h, w), (height, width), mine in zip(pictures, have, want, got, strict=True):
    alone = np.asarray(codecs.resize(jnp.asarray(picture[:h, :w]), (int(height), int(width))))
    # Sums of another order: neighbouring levels where they round.
    difference = np.abs(mine[:height, :width].astype(int) - alone)
    assert difference.max() <= 1 and difference.mean() < 0.01


def test_noise_of_a_cell_does_not_depend_on_how_many_there_are():
  draw = lambda cells: np.asarray(jax.random.normal(jax.random.key(3), (cells, 192)))
  np.testing.assert_array_equal(draw(9)[:4], draw(4))
