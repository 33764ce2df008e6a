"""Editing, answering and text-to-image through the public path, from a picture and words to what they become.

No array of the folder holds a thinking context. Where it differs, in what its branches of guidance see, is compared
with the reference's inferencer by hand (QUIRKS 27).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import golden_folder, inference, toy

from pdgen.core import config, modes, packed
from pdgen.data.tokenizers import base
from pdgen.inference import encoding, requests
from pdgen.models import interleaved
from pdgen.sampling import cycle, spans

close, equal, integers, value = golden_folder.close, golden_folder.equal, golden_folder.integers, golden_folder.value
FILE, BATCH, CONTEXT, FLOW = 'f5_interleave', 'f4_t2i_batch', 'f1_context', 'f2_flow'
_PICTURE = tuple(f'{FILE}/{name}' for name in ('pil_in', 'vae_transform', 'vit_transform'))
SAMPLING = dataclasses.replace(inference.SAMPLING, text_guidance=4.0, image_guidance=2.0)
_FIRST = 0x4E00


class _Ids(base.Tokenizer):
  """A character an id, whatever the id; ASCII, for system prompts, is taken to the last ids that are not special."""

  def __init__(self):
    super().__init__(specials=golden_folder.specials(), vocab_size=golden_folder.model_config().vocab_size)

  def _encode_exact(self, text):
    return tuple(ord(x) - _FIRST if ord(x) >= _FIRST else ord(x) % 64 for x in text)

  def _token_bytes(self, token_id):
    return chr(_FIRST + token_id).encode()


def _text(name):
  return ''.join(chr(_FIRST + i) for i in integers(name))


def _config():
  """The folder's model, with the rules for given pictures that its arrays were made with."""
  cfg = golden_folder.model_config()
  (vae_max, vae_min, stride), (vit_max, vit_min, vit_stride) = (
    integers(f'{FILE}/{which}_transform') for which in ('vae', 'vit')
  )
  assert (stride, vit_stride) == (cfg.codec.patch, cfg.vit.patch)
  codec = dataclasses.replace(cfg.codec, given_max=vae_max, given_min=vae_min)
  vit = dataclasses.replace(cfg.vit, given_max=vit_max, given_min=vit_min)
  return config.Config(model=dataclasses.replace(cfg, codec=codec, vit=vit))


# Of every context here, so that one program reads them all.
_SHAPE = requests.BatchShape(packed.RowBudget(64, 24, 0, 16), SAMPLING, any_size=True)


@pytest.fixture(scope='module', autouse=True)
def short_system_prompts():
  before = dict(modes.TABLE)
  modes.TABLE.update({name: dataclasses.replace(mode, system=mode.system[:9]) for name, mode in before.items()})
  yield
  modes.TABLE.update(before)


def _state(prompt, mode):
  """What `Painter.sample` would continue from, and what it makes of it."""
  conf, graphdef = _config(), interleaved.graphdef(golden_folder.model_config())
  batch = requests.sample_batch(
    requests.make(prompt, sampling=SAMPLING, mode=mode),
    config=conf,
    tokenizer=_Ids(),
    encode=lambda picture: np.asarray(encoding.encode(graphdef, golden_folder.params(), picture)),
    shape=_SHAPE,
  )
  cfg = golden_folder.model_config()
  return batch, inference.begin(golden_folder.params(), batch, inference.knobs(), cfg=cfg, shape=inference.program())


def _knobs():
  """Settings of the editing run, of the folder's README."""
  row = r'`latent` .*final latent tokens \('
  told = lambda pattern, otherwise: float(golden_folder.readme(row + pattern, otherwise))
  return inference.knobs(
    text_guidance=told(r'cfg_text ([\d.]+)', 4.0),
    image_guidance=told(r'.*cfg_img ([\d.]+)', 2.0),
    guidance_interval=(told(r'.*interval \[([\d.]+)', 0.6), told(r'.*interval \[[\d.]+, ([\d.]+)', 1.0)),
    timestep_shift=told(r'.*shift ([\d.]+)', 3.0),
    flow_steps=int(told(r'.* (\d+) timesteps', 5)) - 1,
  )


@golden_folder.checks(f'{FILE}/latent', f'{FILE}/image_out', inputs=(*_PICTURE, f'{FILE}/prompt', f'{FILE}/init_noise'))
def test_editing():
  _, state = _state([value(f'{FILE}/pil_in'), _text(f'{FILE}/prompt')], 'edit')
  assert state.status.tolist() == [cycle.WAITING]
  latents, _, picture = inference.paint(
    golden_folder.params(),
    state,
    value(f'{FILE}/init_noise')[None],
    _knobs(),
    cfg=golden_folder.model_config(),
    shape=inference.program(renorm='text_channel'),
    grid=(3, 4),
  )
  close(latents[0], f'{FILE}/latent')
  golden_folder.same_picture(picture[0], f'{FILE}/image_out')


@golden_folder.checks(f'{FILE}/und_tokens', inputs=(*_PICTURE, f'{FILE}/prompt'))
def test_answering():
  _, state = _state([value(f'{FILE}/pil_in'), _text(f'{FILE}/prompt')], 'answer')
  assert state.status.tolist() == [cycle.WRITING] and not state.cache.tokens.span.max() > 1  # The ViT copy alone.
  fed, _, _ = inference.write(state, len(integers(f'{FILE}/und_tokens')), cfg=golden_folder.model_config())
  equal(fed[:, 0], f'{FILE}/und_tokens')


@golden_folder.checks(
  f'{BATCH}/k_layer0', f'{BATCH}/p_packed_text_ids', f'{BATCH}/p_key_values_lens', inputs=(f'{BATCH}/prompt*',)
)
def test_texts_alone():
  names = golden_folder.matching(f'{BATCH}/prompt*')
  found = [_state(_text(name), 'direct') for name in names]
  streams = [batch.prefix.und for batch, _ in found]
  ids = [inference.in_order(und.tokens, und.token_id) for und in streams]
  equal(np.concatenate(ids), f'{BATCH}/p_packed_text_ids')
  equal(np.concatenate([state.picture_position for _, state in found]), f'{BATCH}/p_key_values_lens')
  close(np.concatenate([inference.cached(state, 0)[0] for _, state in found]), f'{BATCH}/k_layer0')


_LENGTHS = tuple(
  f'{FLOW}/{branch}_{what}' for branch in ('full', 'cfg_text', 'cfg_img') for what in ('kv_lens', 'ropes')
)


@golden_folder.checks(*_LENGTHS, inputs=(*_PICTURE, f'{FLOW}/text_a', f'{FLOW}/text_b'))
def test_what_the_branches_of_editing_see():
  """Text, picture, text: the picture that was resized has the size of the one in the array."""
  prompt = [_text(f'{FLOW}/text_a'), value(f'{FILE}/pil_in'), _text(f'{FLOW}/text_b')]
  for branch, (length, position) in _branches(*_state(prompt, 'edit')).items():
    equal([length], f'{FLOW}/{branch}_kv_lens')
    equal([position], f'{FLOW}/{branch}_ropes')


def _branches(_, state):
  """What each branch sees of the cache, in tokens, and the position of its noised copy."""
  tokens = jax.tree.map(lambda x: np.asarray(x[0]), state.cache.tokens)
  full, reach = tokens.segment == spans.FULL, int(state.picture_order[0])
  return {
    'full': (full.sum(), state.position[0]),
    'cfg_text': ((full & (tokens.order <= reach)).sum(), state.picture_position[0]),
    'cfg_img': ((tokens.segment == spans.TEXT_ONLY).sum(), state.text_position[0]),
  }


def test_what_the_branches_of_thinking_see():
  """The system prompt is in all of them, the prompt is not in that without texts, the thought is in the whole one."""
  system, prompt, thought = len(modes.TABLE['think'].system) + 2, 5 + 2, 4 + 2
  words = ''.join(chr(_FIRST + i) for i in range(5))
  batch, state = _state(words, 'think')
  before = {'full': system + prompt, 'cfg_text': system, 'cfg_img': system + prompt}
  assert _branches(batch, state) == {branch: (n, n) for branch, n in before.items()}
  ids = golden_folder.specials()
  state = inference.read(state, [[ids.im_start], [1], [2], [3], [4], [ids.im_end]], cfg=golden_folder.model_config())
  after = before | {'full': system + prompt + thought}
  assert _branches(batch, state) == {branch: (n, n) for branch, n in after.items()}
  # A thought that was given back, to be painted: the same.
  start = toy.Trajectory(prompt=words, steps=(toy.Step(text=words[:4]),), stop=None, mode='think')
  batch, again = _state(start, 'think')
  assert _branches(batch, again) == {branch: (n, n) for branch, n in after.items()}
  with_picture = [value(f'{FILE}/pil_in'), words]
  picture = (12 + 2) + (15 + 2)
  got = _branches(*_state(with_picture, 'think'))
  assert {branch: int(n) for branch, (n, _) in got.items()} == {
    'full': system + picture + prompt, 'cfg_text': system + picture, 'cfg_img': system + prompt,
  }  # fmt: skip


@pytest.mark.parametrize('mode', ['edit', 'think'])
def test_only_the_last_given_text_is_dropped(mode):
  words = [chr(_FIRST + i) * 3 for i in range(2)]
  start = requests.start(words, 'think')
  assert start.parts == tuple(words)
  prompt = [*words, value(f'{FILE}/pil_in')] if mode == 'edit' else start
  batch, state = _state(prompt, mode)
  system = len(modes.TABLE['think'].system) + 2
  # The picture after the last text keeps everything; without one the first text is kept.
  want = 5 + 5 + 14 + 17 if mode == 'edit' else system + 5
  assert int(_branches(batch, state)['cfg_text'][0]) == want
  assert jnp.all(state.picture_order < state.order)
