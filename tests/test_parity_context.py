"""Context in the cache and greedy text against the reference's: text, a clean VAE copy, a ViT copy, decoding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import golden_folder, inference

from pdgen.data import items as items_lib
from pdgen.sampling import spans

close, equal, integers, near = golden_folder.close, golden_folder.equal, golden_folder.integers, golden_folder.near
FILE = 'f1_context'
_INPUTS = tuple(f'{FILE}/{name}' for name in ('text_a', 'image_vae', 'image_vit'))
_HIDDEN = tuple(f'{FILE}/{name}' for name in ('s?_llm_input', 's?_llm_output', 's0_logits', 'k_layer*', 'v_layer*'))


def _prefix(cfg):
  items = [
    inference.text(f'{FILE}/text_a'),
    items_lib.Latents(pixels=inference.pixels(f'{FILE}/image_vae')),
    items_lib.Patches(pixels=inference.pixels(f'{FILE}/image_vit')),
  ]
  return inference.prefixes(items, cfg=cfg)


def _stages(prefix):
  """First and last order, plus one, of text, VAE copy and ViT copy."""
  span, order = (
    np.concatenate([np.asarray(getattr(s.tokens, f)[0]) for s in (prefix.und, prefix.gen)]) for f in ('span', 'order')
  )
  return [(order[span == i].min(), order[span == i].max() + 1) for i in range(3)]


@golden_folder.checks(
  *(f'{FILE}/s{stage}_{name}' for stage, names in enumerate((
    ('text_token_lens', 'packed_text_*', 'packed_key_value_indexes', 'key_values_lens'),
    ('patchified_vae_latent_shapes', 'packed_vae_*', 'packed_t*', 'packed_position_ids', 'packed_seqlens'),
    ('packed_text_*', 'packed_vit_*', 'vit_token_seqlens', 'packed_position_ids', 'packed_seqlens'),
  )) for name in names),
  f'{FILE}/s?_packed_indexes',
  f'{FILE}/s?_packed_key_value_indexes',
  f'{FILE}/s?_key_values_lens',
  inputs=_INPUTS,
)  # fmt: skip
def test_what_stands_where():
  prefix = _prefix(golden_folder.model_config())
  und, gen = prefix.und, prefix.gen
  row = lambda field: np.asarray(field[0])
  both = spans.concatenate(und.tokens, gen.tokens)
  is_word = row(und.picture) < 0
  for i, (first, stop) in enumerate(_stages(prefix)):
    name = lambda array, i=i: f'{FILE}/s{i}_{array}'
    inside = lambda tokens, first=first, stop=stop: (row(tokens.order) >= first) & (row(tokens.order) < stop)
    words, patches, latents = inside(und.tokens) & is_word, inside(und.tokens) & ~is_word, inside(gen.tokens)
    equal(row(und.token_id)[words], name('packed_text_ids'))
    equal(row(und.tokens.order)[words] - first, name('packed_text_indexes'))
    equal(np.arange(first), name('packed_key_value_indexes'))
    equal([first], name('key_values_lens'))
    position = inference.in_order(both, both.position)[first:stop]
    if i == 0:
      equal([stop - first], name('text_token_lens'))
      equal(position, name('packed_text_position_ids'))
      continue
    equal(position, name('packed_position_ids'))
    equal([stop - first], name('packed_seqlens'))
    equal(np.arange(first, stop), name('packed_indexes'))
    if i == 1:
      equal(row(prefix.grids), name('patchified_vae_latent_shapes'))
      equal(row(gen.patch)[latents], name('packed_vae_position_ids'))
      equal(row(gen.tokens.order)[latents] - first, name('packed_vae_token_indexes'))
      equal(np.unique(row(gen.copy)), name('packed_timesteps'))  # copy 0: time 0
    else:
      close(row(prefix.vit.pixels), name('packed_vit_tokens'))
      equal(row(prefix.vit.position), name('packed_vit_position_ids'))
      equal(row(und.tokens.order)[patches] - first, name('packed_vit_token_indexes'))
      equal(np.bincount(row(prefix.vit.image))[1:], name('vit_token_seqlens'))


def _compare(compare, cfg):
  """Inputs, outputs, logits and caches of the three stages, read at once and seen by the metadata alone."""
  prefix = _prefix(cfg)
  both = spans.concatenate(prefix.und.tokens, prefix.gen.tokens)
  inputs, hidden, logits = inference.forward(golden_folder.params(), prefix, cfg=cfg)
  for name, pair in (('input', inputs), ('output', hidden)):
    rows = inference.in_order(both, jnp.concatenate(pair, axis=1).astype(jnp.float32))
    for i, (first, stop) in enumerate(_stages(prefix)):
      compare(rows[first:stop], f'{FILE}/s{i}_llm_{name}')
  compare(logits[0, : _stages(prefix)[0][1]], f'{FILE}/s0_logits')
  state = inference.start(prefix, cfg=cfg)
  for name in golden_folder.matching(f'{FILE}/k_layer*'):
    layer = int(name.rsplit('layer', 1)[1])
    for which, array in zip('kv', inference.cached(state, layer), strict=True):
      compare(array, f'{FILE}/{which}_layer{layer}')


@pytest.mark.parametrize('implementation', ['reference', 'blockwise'])
@golden_folder.checks(*_HIDDEN, inputs=_INPUTS)
def test_hidden_states_and_cache(implementation):
  _compare(close, dataclasses.replace(golden_folder.model_config(), attention=implementation))


@golden_folder.checks(*_HIDDEN, inputs=_INPUTS)
def test_hidden_states_and_cache_in_bfloat16():
  _compare(near, golden_folder.model_config('bfloat16'))


@golden_folder.checks(
  f'{FILE}/kv_lens',
  f'{FILE}/ropes',
  f'{FILE}/gen_*',
  f'{FILE}/stop_tokens',
  inputs=(*_INPUTS, f'{FILE}/stop_end_token_id'),
)
def test_greedy_text():
  cfg = golden_folder.model_config()
  state = inference.start(_prefix(cfg), cfg=cfg)
  length = len(inference.cached(state, 0)[0])
  for name in ('kv_lens', 'gen_key_values_lens'):
    equal([length], f'{FILE}/{name}')
  for name in ('ropes', 'gen_packed_query_position_ids'):
    equal(state.position, f'{FILE}/{name}')
  equal(np.arange(length), f'{FILE}/gen_packed_key_value_indexes')
  equal([golden_folder.specials().im_start], f'{FILE}/gen_packed_start_tokens')
  count = len(integers(f'{FILE}/gen_tokens'))
  fed, logits, last = inference.write(state, count, cfg=cfg)
  equal(fed[:, 0], f'{FILE}/gen_tokens')
  close(logits[:, 0], f'{FILE}/gen_logits')
  # (BAGEL, QUIRKS 30) An end token is not returned, and neither is the token that was predicted last.
  predicted = [*fed[1:, 0].tolist(), int(last[0])]
  stop = predicted.index(integers(f'{FILE}/stop_end_token_id'))
  equal(fed[: stop + 1, 0], f'{FILE}/stop_tokens')


@golden_folder.checks(f'{FILE}/gen_logits', inputs=(*_INPUTS, f'{FILE}/gen_tokens'))
def test_logits_of_the_same_text_in_bfloat16():
  cfg = golden_folder.model_config('bfloat16')
  state = inference.start(_prefix(cfg), cfg=cfg)
  found = []
  for token in integers(f'{FILE}/gen_tokens'):
    state = state.replace(status=jnp.zeros_like(state.status), next_input=jnp.full_like(state.next_input, token))
    state, logits, _ = inference._read(golden_folder.params(), state, cfg=cfg, shape=inference.program())
    found.append(np.asarray(jax.device_get(logits))[0])
  near(np.stack(found), f'{FILE}/gen_logits')
