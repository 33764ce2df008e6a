"""Velocities, guidance and whole pictures against the reference's, in the contexts of interleaved editing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import golden_folder, inference

from pdgen.data import items as items_lib
from pdgen.models import attention, interleaved, presets
from pdgen.sampling import canvas, cycle, flow, spans

close, equal, integers, near = golden_folder.close, golden_folder.equal, golden_folder.integers, golden_folder.near
value = golden_folder.value
FLOW, IMAGE = 'f2_flow', 'f3_generate'
_CONTEXT = tuple(f'{FLOW}/{name}' for name in ('text_a', 'text_b', 'image_vae', 'image_vit'))
_GUIDED = [name.split('/')[1] for name in golden_folder.matching(f'{FLOW}/v_*_t*_i*_min*')]
_RUNS = [name.split('/')[1].removesuffix('_latent') for name in golden_folder.matching(f'{IMAGE}/*_latent')]
# The keys may have been read at once, or the last text token by token; pictures are painted from either.
_BRANCHES = dict(full=(spans.FULL, None), cfg_text=(spans.FULL, 'picture'), cfg_img=(spans.TEXT_ONLY, None))


def _items():
  return [
    inference.text(f'{FLOW}/text_a'),
    items_lib.Latents(pixels=inference.pixels(f'{FLOW}/image_vae')),
    items_lib.Patches(pixels=inference.pixels(f'{FLOW}/image_vit')),
    inference.text(f'{FLOW}/text_b'),
  ]


@golden_folder.shared
def _state(dtype='float32'):
  cfg = golden_folder.model_config(dtype)
  return inference.start(inference.prefixes(_items(), cfg=cfg), cfg=cfg)


def _read_last():
  """The same state, the last text read token by token into the cache."""
  cfg, specials = golden_folder.model_config(), golden_folder.specials()
  *before, last = _items()
  state = inference.start(inference.prefixes(before, cfg=cfg), cfg=cfg)
  return inference.read(state, [[i] for i in (specials.im_start, *last.ids, specials.im_end)], cfg=cfg)


def _grid(file):
  height, width = integers(f'{file}/image_size')
  patch = golden_folder.model_config().codec.patch
  return height // patch, width // patch


@pytest.mark.parametrize('how', ['at once', 'token by token'])
@golden_folder.checks(f'{FLOW}/*_kv_lens', f'{FLOW}/*_ropes', f'{FLOW}/*_k_last', inputs=_CONTEXT)
def test_the_three_contexts_are_one_cache(how):
  state = _state() if how == 'at once' else _read_last()
  positions = dict(full=state.position, cfg_text=state.picture_position, cfg_img=state.text_position)
  for branch, (segment, reach) in _BRANCHES.items():
    cache: attention.KVCache = state.cache
    keys, order = inference.in_order(cache.tokens, cache.k[-1].swapaxes(1, 2), cache.tokens.order, segment=segment)
    keys = keys[order <= (int(state.picture_order[0]) if reach else order.max())]
    equal([len(keys)], f'{FLOW}/{branch}_kv_lens')
    equal(positions[branch], f'{FLOW}/{branch}_ropes')
    close(keys, f'{FLOW}/{branch}_k_last')


@golden_folder.checks(f'{FLOW}/in_*', inputs=(*_CONTEXT, f'{FLOW}/image_size'))
def test_where_a_noised_copy_stands():
  state, cfg = _state(), golden_folder.model_config()
  start = int(state.order[0])
  branches = [
    spans.Branch(spans.FULL, state.order - 1, state.position),
    spans.Branch(spans.FULL, state.picture_order, state.picture_position),
    spans.Branch(spans.TEXT_ONLY, state.order - 1, state.text_position),
  ]
  cells = canvas.layout(cfg, tuple(integers(f'{FLOW}/image_size'))).latent
  und, gen = spans.noised_copies(golden_folder.specials(), jnp.array([True]), branches, state.order, cells)
  q = gen.patch.shape[1] // 3
  name = lambda array: f'{FLOW}/in_{array}'
  equal(und.token_id[0, :2], name('packed_text_ids'))
  equal(und.tokens.order[0, :2] - start, name('packed_text_indexes'))
  equal(gen.patch[0, :q], name('packed_vae_position_ids'))
  equal(gen.tokens.order[0, :q] - start, name('packed_vae_token_indexes'))
  equal([q + 2], name('packed_seqlens'))
  order = np.sort(np.concatenate([und.tokens.order[0, :2], gen.tokens.order[0, :q]]))
  equal(order, name('packed_indexes'))
  for i, (prefix, segment) in enumerate((('', 1), ('cfg_text_', 1), ('cfg_img_', 2))):
    copy = [
      np.asarray(f)[0] for f in (und.tokens.position[:, 2 * i : 2 * i + 2], gen.tokens.position[:, i * q : i * q + q])
    ]
    equal(np.concatenate(copy), name(f'{prefix}packed_position_ids'))
    orders = inference.in_order(state.cache.tokens, state.cache.tokens.order, segment=segment)
    seen = int(np.sum(orders <= int(gen.tokens.reach[0, i * q])))
    equal([seen], name(f'{prefix}key_values_lens'))
    equal(np.arange(seen), name(f'{prefix}packed_key_value_indexes'))
    if prefix:
      equal(seen + np.arange(q + 2), name(f'{prefix}packed_query_indexes'))


def _settings(name):
  """Scales, renormalisation and its minimum, as `v_text_channel_t4_i2_min0.6` names them."""
  renorm, text, image, least = name.removeprefix('v_').rsplit('_', 3)
  return renorm, float(text[1:]), float(image[1:]), float(least[3:])


def _velocity(state, dtype, *, renorm='none', text=1.0, image=1.0, least=0.0, branches=False):
  """branches: those of scale 1, too, so that fewer programs are compiled."""
  shape = inference.program(renorm=renorm, text_branch=branches or text != 1.0, image_branch=branches or image != 1.0)
  numbers = inference.knobs(text_guidance=text, image_guidance=image, renorm_min=least, guidance_interval=(0.0, 1.0))
  z, t = value(f'{FLOW}/x_t')[None], value(f'{FLOW}/timestep')
  cfg = golden_folder.model_config(dtype)
  return inference.velocity(golden_folder.params(), state, z, t, numbers, cfg=cfg, shape=shape, grid=_grid(FLOW))[0]


_VELOCITIES = (f'{FLOW}/v_*',)
_NUMBERS = tuple(f'{FLOW}/{name}' for name in ('x_t', 'timestep', 'image_size'))


def _compare_velocities(compare, state, dtype, **options):
  compare(_velocity(state, dtype, **options), f'{FLOW}/v_cond')
  compare(_velocity(state, dtype, text=0.0, **options), f'{FLOW}/v_text')
  compare(_velocity(state, dtype, image=0.0, **options), f'{FLOW}/v_img')
  for name in _GUIDED:
    renorm, text, image, least = _settings(name)
    compare(_velocity(state, dtype, renorm=renorm, text=text, image=image, least=least), f'{FLOW}/{name}')


@golden_folder.checks(*_VELOCITIES, inputs=(*_CONTEXT, *_NUMBERS))
def test_velocities_and_guidance():
  _compare_velocities(close, _state(), 'float32')


@golden_folder.checks(*_VELOCITIES, inputs=(*_CONTEXT, *_NUMBERS))
def test_velocities_and_guidance_in_bfloat16():
  _compare_velocities(near, _state('bfloat16'), 'bfloat16', branches=True)


@golden_folder.checks(f'{FLOW}/v_cond', f'{FLOW}/v_text', f'{FLOW}/v_img', inputs=(*_CONTEXT, *_NUMBERS))
def test_velocities_after_a_text_that_was_read_token_by_token():
  state = _read_last()
  close(_velocity(state, 'float32'), f'{FLOW}/v_cond')
  close(_velocity(state, 'float32', text=0.0), f'{FLOW}/v_text')
  close(_velocity(state, 'float32', image=0.0), f'{FLOW}/v_img')


_SETTINGS = tuple(
  f'{IMAGE}/{name}'
  for name in (
    'init_noise',
    'image_size',
    'num_timesteps',
    'timestep_shift',
    'cfg_text_scale',
    'cfg_img_scale',
    'cfg_interval',
    'narrow_interval',
  )
)


def _run(name):
  """The program and the knobs of a run, as the folder's README describes it: (shape, knobs)."""
  text, image = (float(value(f'{IMAGE}/cfg_{which}_scale')) for which in ('text', 'img'))
  cfg, narrow = (golden_folder.interval(f'{IMAGE}/{which}_interval') for which in ('cfg', 'narrow'))
  if name == 'nocfg':
    text = image = 1.0
  numbers = inference.knobs(
    text_guidance=text,
    image_guidance=image,
    guidance_interval=narrow if name == 'narrow' else cfg,
    renorm_min=1.0 if name == 'min1' else 0.0,
    timestep_shift=float(value(f'{IMAGE}/timestep_shift')),
    flow_steps=integers(f'{IMAGE}/num_timesteps') - 1,  # (BAGEL, QUIRKS 25)
  )
  renorm = name if name in ('channel', 'text_channel') else 'global'
  return inference.program(renorm=renorm, text_branch=text != 1.0, image_branch=image != 1.0), numbers


def _picture(name, dtype, state):
  shape, numbers = _run(name)
  z, cfg = value(f'{IMAGE}/init_noise')[None], golden_folder.model_config(dtype)
  return inference.paint(golden_folder.params(), state, z, numbers, cfg=cfg, shape=shape, grid=_grid(IMAGE))


def _steps(name):
  @golden_folder.checks(*(f'{IMAGE}/{name}_{what}' for what in ('v', 't', 'cfg_on')), inputs=(*_CONTEXT, *_SETTINGS))
  def check():
    shape, numbers = _run(name)
    step = functools.partial(inference.velocity, cfg=golden_folder.model_config(), shape=shape, grid=_grid(IMAGE))
    z, times = value(f'{IMAGE}/init_noise')[None], [flow.time_at(i, numbers) for i in range(numbers.flow_steps + 1)]
    found = []
    for t, after in zip(times, times[1:], strict=False):
      found.append(step(golden_folder.params(), _state(), z, t, numbers))
      z = z + (after - t) * found[-1]
    close(times[:-1], f'{IMAGE}/{name}_t')
    close(jnp.concatenate(found), f'{IMAGE}/{name}_v')
    on = [bool(flow.is_guided(t, numbers)) and shape.text_branch for t in times[:-1]]
    equal(on, f'{IMAGE}/{name}_cfg_on')

  return check


def _whole(name):
  decoded = bool(golden_folder.matching(f'{IMAGE}/{name}_uint8'))
  arrays = ('latent', 'image_float', 'uint8') if decoded else ('latent',)

  @golden_folder.checks(*(f'{IMAGE}/{name}_{what}' for what in arrays), inputs=(*_CONTEXT, *_SETTINGS))
  def check():
    z, pixels, picture = _picture(name, 'float32', _state())
    close(z[0], f'{IMAGE}/{name}_latent')
    if decoded:
      close(jnp.moveaxis(pixels, -1, 1), f'{IMAGE}/{name}_image_float')
      golden_folder.same_picture(picture[0], f'{IMAGE}/{name}_uint8')

  return check


# Made here, so that what they check is declared when this module is imported.
_STEPS, _WHOLE = ({name: make(name) for name in _RUNS} for make in (_steps, _whole))


@pytest.mark.parametrize('name', _RUNS)
def test_steps_of_a_picture(name):
  _STEPS[name]()


@pytest.mark.parametrize('name', _RUNS)
def test_a_whole_picture(name):
  _WHOLE[name]()


@golden_folder.checks(
  *(f'{IMAGE}/{name}_latent' for name in _RUNS), f'{IMAGE}/*_image_float', inputs=(*_CONTEXT, *_SETTINGS)
)
def test_whole_pictures_in_bfloat16():
  for name in _RUNS:
    z, pixels, _ = _picture(name, 'bfloat16', _state('bfloat16'))
    near(z[0], f'{IMAGE}/{name}_latent')
    if golden_folder.matching(f'{IMAGE}/{name}_image_float'):
      near(jnp.moveaxis(jax.device_get(pixels), -1, 1), f'{IMAGE}/{name}_image_float')


def test_the_sampler_paints_what_was_compared():
  """`cycle.denoise` is `flow.integrate` over `cycle.velocities`, on the model's own grid and noise."""
  cfg, (shape, numbers) = golden_folder.model_config(), _run('global')
  cfg = presets.at_image_size(cfg, 3 * cfg.codec.patch)
  state, params = _state(), golden_folder.params()

  @functools.partial(jax.jit, static_argnames=('shape',))
  def denoise(params, state, numbers, *, shape):
    return cycle.denoise(nnx.merge(interleaved.graphdef(cfg), params), state, numbers, shape)

  noise = denoise(params, state, numbers.replace(flow_steps=jnp.int32(0)), shape=shape)
  got = denoise(params, state, numbers, shape=shape)
  side = cfg.latent_grid
  want, _, _ = inference.paint(params, state, noise, numbers, cfg=cfg, shape=shape, grid=(side, side))
  np.testing.assert_allclose(got, want, atol=1e-4)
