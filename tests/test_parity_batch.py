"""Text-to-image for a batch, and the whole path from a picture file to a picture or a text, against the reference's."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from support import golden_folder, inference

from pdgen.data import items as items_lib
from pdgen.sampling import flow, spans

close, equal, integers, near = golden_folder.close, golden_folder.equal, golden_folder.integers, golden_folder.near
value = golden_folder.value
BATCH, FILE = 'f4_t2i_batch', 'f5_interleave'
_PROMPTS = tuple(golden_folder.matching(f'{BATCH}/prompt*'))
_KINDS = [name.split('/')[1].removesuffix('_latent') for name in golden_folder.matching(f'{BATCH}/*_latent')]
_INPUTS = (*_PROMPTS, f'{BATCH}/image_size', f'{BATCH}/init_noise')


@golden_folder.shared
def _state(dtype='float32'):
  cfg = golden_folder.model_config(dtype)
  return inference.start(inference.prefixes(*([inference.text(name)] for name in _PROMPTS), cfg=cfg), cfg=cfg)


@golden_folder.checks(f'{BATCH}/p_*', f'{BATCH}/k_layer0', inputs=_PROMPTS)
def test_the_prompts_in_the_cache():
  state = _state()
  cfg = golden_folder.model_config()
  und = inference.prefixes(*([inference.text(name)] for name in _PROMPTS), cfg=cfg).und
  rows = range(len(_PROMPTS))
  ids, positions = (
    np.concatenate([inference.in_order(und.tokens, field, row=row) for row in rows])
    for field in (und.token_id, und.tokens.position)
  )
  equal(ids, f'{BATCH}/p_packed_text_ids')
  equal(positions, f'{BATCH}/p_packed_text_position_ids')
  equal(np.arange(len(ids)), f'{BATCH}/p_packed_text_indexes')
  equal(np.sum(und.tokens.segment > 0, axis=1), f'{BATCH}/p_text_token_lens')
  # The text-dropped branch, and the cache before the prompts: nothing.
  equal(np.zeros(0, int), f'{BATCH}/p_packed_key_value_indexes')
  equal(state.picture_position, f'{BATCH}/p_key_values_lens')
  close(np.concatenate([inference.cached(state, 0, row=row)[0] for row in rows]), f'{BATCH}/k_layer0')


def _grid():
  patch = golden_folder.model_config().codec.patch
  height, width = integers(f'{BATCH}/image_size')
  return height // patch, width // patch


def _run(kind):
  """The program and the knobs of a run; what no array holds is in the README, or follows from its times."""
  t, on = value(f'{BATCH}/{kind}_t').astype(np.float64), value(f'{BATCH}/{kind}_cfg_on').astype(bool)
  steps = len(t)
  middle = np.argmin(np.abs(t - 0.5))  # whose rounding changes the shift least
  raw = 1 - middle / steps
  shift = t[middle] * (1 - raw) / (raw * (1 - t[middle]))
  scale = float(golden_folder.readme(r'f4_t2i_batch(?:.|\n)*?final latent tokens: global, cfg_text ([\d.]+)', 4.0))
  numbers = inference.knobs(
    text_guidance=scale,
    guidance_interval=_interval(t, on),
    timestep_shift=float(shift),
    flow_steps=steps,
  )
  return inference.program(renorm='channel' if kind == 'channel' else 'none', image_branch=False), numbers


def _interval(t, on):
  """One that guides at just these times. Its ends lie between two: rounding decides at the times themselves."""
  first, last = t[on].max(), t[on].min()
  after, before = t[t < last].max(initial=0.0), t[t > first].min(initial=1.0)
  return float(last + after) / 2, float(first + before) / 2


def _noise():
  noise = value(f'{BATCH}/init_noise')
  return noise.reshape(len(_PROMPTS), -1, noise.shape[-1])


def _of_the_whole_batch(v, v_text, numbers):
  """The reference's `global`: one norm over all pictures of a batch (QUIRKS 28). Ours never looks at neighbours."""
  guided = v_text + numbers.text_guidance * (v - v_text)
  norm = lambda x: jnp.sqrt(jnp.sum(x * x))
  return guided * jnp.clip(norm(v) / (norm(guided) + 1e-8), numbers.renorm_min, 1.0)


def _steps(kind, dtype):
  """Velocities [N, B, Q, C], times and latents [B, Q, C] of a run."""
  shape, numbers = _run(kind)
  cfg, state = golden_folder.model_config(dtype), _state(dtype)
  step = functools.partial(inference.velocity, golden_folder.params(), state, cfg=cfg, shape=shape, grid=_grid())
  z, found = jnp.asarray(_noise()), []
  times = [flow.time_at(i, numbers) for i in range(numbers.flow_steps + 1)]
  for t, after in zip(times, times[1:], strict=False):
    if kind == 'global' and flow.is_guided(t, numbers):
      v, v_text = (step(z, t, numbers.replace(text_guidance=jnp.float32(scale))) for scale in (1.0, 0.0))
      found.append(_of_the_whole_batch(v, v_text, numbers))
    else:
      found.append(step(z, t, numbers))
    z = z + (after - t) * found[-1]
  return jnp.stack(found), times[:-1], z, numbers


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@golden_folder.checks(*(f'{BATCH}/{kind}_{what}' for kind in _KINDS for what in ('v', 'latent')), inputs=_INPUTS)
def test_a_batch_of_pictures(dtype):
  compare = close if dtype == 'float32' else near
  flat = lambda x: x.reshape(*x.shape[:-3], -1, x.shape[-1])  # pictures one after the other
  for kind in _KINDS:
    found, _, z, _ = _steps(kind, dtype)
    compare(flat(found), f'{BATCH}/{kind}_v')
    compare(flat(z), f'{BATCH}/{kind}_latent')


@golden_folder.checks(*(f'{BATCH}/{kind}_{what}' for kind in _KINDS for what in ('t', 'cfg_on')))
def test_times_and_interval():
  for kind in _KINDS:
    _, numbers = _run(kind)
    times = [flow.time_at(i, numbers) for i in range(numbers.flow_steps)]
    close(times, f'{BATCH}/{kind}_t')
    equal([bool(flow.is_guided(t, numbers)) for t in times], f'{BATCH}/{kind}_cfg_on')


@pytest.mark.parametrize('renorm', ['global', 'channel', 'text_channel'])
def test_each_picture_is_as_if_alone(renorm):
  cfg = golden_folder.model_config()
  shape, numbers = inference.program(renorm=renorm, image_branch=False), _run(_KINDS[0])[1]
  paint = functools.partial(inference.paint, golden_folder.params(), cfg=cfg, shape=shape, grid=_grid())
  together, _, _ = paint(_state(), _noise(), numbers)
  for row, name in enumerate(_PROMPTS):
    state = inference.start(inference.prefixes([inference.text(name)], cfg=cfg), cfg=cfg)
    alone, _, _ = paint(state, _noise()[row : row + 1], numbers)
    np.testing.assert_allclose(alone[0], together[row], atol=1e-5)


@golden_folder.checks(f'{BATCH}/batch_gen_tokens', inputs=_PROMPTS)
def test_greedy_texts_of_a_batch():
  count = len(integers(f'{BATCH}/batch_gen_tokens'))
  fed, _, _ = inference.write(_state(), count, cfg=golden_folder.model_config())
  equal(fed, f'{BATCH}/batch_gen_tokens')


_PICTURE = tuple(f'{FILE}/{name}' for name in ('pil_in', 'vae_transform', 'vit_transform', 'prompt'))


def _resized():
  return inference.transform(f'{FILE}/vae_transform').resize(value(f'{FILE}/pil_in'))


@golden_folder.checks(f'{FILE}/resized', f'{FILE}/vae_tensor', f'{FILE}/vit_tensor', inputs=_PICTURE[:3])
def test_a_picture_as_vae_and_vit_get_it():
  equal(_resized(), f'{FILE}/resized')
  for which in ('vae', 'vit'):
    got = inference.transform(f'{FILE}/{which}_transform')(_resized())
    close(got.transpose(2, 0, 1), f'{FILE}/{which}_tensor')


def _items(*, latents):
  """The context of editing, or of understanding, which has no VAE copy (QUIRKS 32)."""
  vae, vit = (inference.transform(f'{FILE}/{which}_transform')(_resized()) for which in ('vae', 'vit'))
  return [
    *([items_lib.Latents(pixels=vae)] if latents else []),
    items_lib.Patches(pixels=vit),
    inference.text(f'{FILE}/prompt'),
  ]


def _edited(dtype):
  """Latents and picture of an editing run with the settings of the folder's README."""
  told = functools.partial(golden_folder.readme, otherwise='')
  row = r'`latent` .*final latent tokens \('
  text = told(row + r'cfg_text ([\d.]+)') or 4.0
  image = told(row + r'.*cfg_img ([\d.]+)') or 2.0
  low, high = told(row + r'.*interval \[([\d.]+)') or 0.6, told(row + r'.*interval \[[\d.]+, ([\d.]+)') or 1.0
  shift, points = told(row + r'.*shift ([\d.]+)') or 3.0, told(row + r'.* (\d+) timesteps') or 5
  renorm = told(row + r'.*timesteps, (\w+)\)') or 'text_channel'
  numbers = inference.knobs(
    text_guidance=float(text),
    image_guidance=float(image),
    guidance_interval=(float(low), float(high)),
    timestep_shift=float(shift),
    flow_steps=int(points) - 1,
  )
  cfg = golden_folder.model_config(dtype)
  state = inference.start(inference.prefixes(_items(latents=True), cfg=cfg), cfg=cfg)
  grid = tuple(side // cfg.codec.patch for side in _resized().shape[:2])
  z, shape = value(f'{FILE}/init_noise')[None], inference.program(renorm=renorm)
  latents, _, picture = inference.paint(golden_folder.params(), state, z, numbers, cfg=cfg, shape=shape, grid=grid)
  return latents[0], picture[0]


@golden_folder.checks(f'{FILE}/latent', f'{FILE}/image_out', inputs=(*_PICTURE, f'{FILE}/init_noise'))
def test_editing_a_picture():
  latents, picture = _edited('float32')
  close(latents, f'{FILE}/latent')
  golden_folder.same_picture(picture, f'{FILE}/image_out')


@golden_folder.checks(f'{FILE}/latent', inputs=(*_PICTURE, f'{FILE}/init_noise'))
def test_editing_a_picture_in_bfloat16():
  near(_edited('bfloat16')[0], f'{FILE}/latent')


@golden_folder.checks(f'{FILE}/und_tokens', inputs=_PICTURE)
def test_answering_about_a_picture():
  cfg = golden_folder.model_config()
  state = inference.start(inference.prefixes(_items(latents=False), cfg=cfg), cfg=cfg)
  fed, _, _ = inference.write(state, len(integers(f'{FILE}/und_tokens')), cfg=cfg)
  equal(fed[:, 0], f'{FILE}/und_tokens')


def test_a_branch_of_nothing_is_a_branch():
  """Before the first picture the text-dropped branch sees no key at all, and stands at position 0 (QUIRKS 27)."""
  state = _state()
  assert state.picture_order.tolist() == [-1] * len(_PROMPTS)
  assert state.picture_position.tolist() == [0] * len(_PROMPTS)
  assert set(np.unique(state.cache.tokens.segment)) == {0, spans.FULL, spans.TEXT_ONLY}
