"""Packed batches from the reference's sequence plans: every field of its packs, with dropped conditions and videos."""

import functools

import jax
import numpy as np
import test_parity_masks
from support import golden_folder, golden_packs

from pdgen.core import masks, packed

close, equal, value = golden_folder.close, golden_folder.equal, golden_folder.value
VARIANTS = {'dt': 'drop_text', 'dv': 'drop_vit', 'da': 'drop_clean'}  # condition that a pack drops everywhere
_SEEDS = 100_000


def _fields(row):
  """What `PackedDataset.to_tensor` would hold: {field: array}; masks and splits of a sample carry its number."""
  und_place, gen_place = golden_packs.places(row)
  text = (row.und.tokens.segment > 0) & (row.und.picture < 0)
  seen, latent = row.und.picture >= 0, row.gen.tokens.segment > 0
  scored, noised = row.und.weight > 0, row.gen.weight > 0
  sort = lambda place, values: values[np.argsort(place)]
  whole = functools.partial(golden_packs.in_reference_order, row)
  segment, order, span, hidden, token_id = (
    whole(a, b)
    for a, b in (
      (row.und.tokens.segment, row.gen.tokens.segment),
      (row.und.tokens.order, row.gen.tokens.order),
      (row.und.tokens.span, row.gen.tokens.span),
      (row.und.tokens.noised, row.gen.tokens.noised),
      (row.und.token_id, np.zeros_like(row.gen.patch)),
    )
  )
  lengths = np.bincount(segment)[1:]
  pictures = len(np.unique(row.gen.picture[latent]))
  fields = {
    'sequence_length': len(segment),
    'sample_lens': lengths,
    'packed_text_ids': sort(und_place[text], row.und.token_id[text]),
    'packed_text_indexes': np.sort(und_place[text]),
    'packed_position_ids': whole(row.und.tokens.position, row.gen.tokens.position),
    'patchified_vae_latent_shapes': row.grids[:pictures],
    'packed_latent_position_ids': sort(gen_place[latent], row.gen.patch[latent]),
    'packed_vae_token_indexes': np.sort(gen_place[latent]),
    'packed_vit_tokens': row.vit.pixels[row.und.patch[seen]],
    'packed_vit_position_ids': row.vit.position[row.und.patch[seen]],
    'packed_vit_token_indexes': und_place[seen],
    'vit_token_seqlens': np.bincount(row.vit.image[row.und.patch[seen]])[1:],
    'mse_loss_indexes': np.sort(gen_place[noised]),
    'ce_loss_indexes': np.sort(und_place[scored]),
    'packed_label_ids': sort(und_place[scored], row.und.label[scored]),
    'ce_loss_weights': sort(und_place[scored], row.und.weight[scored]),
    'packed_timesteps': _draws(sort(gen_place[latent], row.gen.copy[latent])),
  }
  tokens = packed.TokenMeta(*(whole(a, b) for a, b in zip(row.und.tokens, row.gen.tokens, strict=True)))
  for i, start in enumerate(np.cumsum(lengths) - lengths):
    own = packed.TokenMeta(*(field[start : start + lengths[i]] for field in tokens))
    fields[f'mask{i}'] = np.asarray(masks.visible(own, own))
  # A split begins with a sample, with another span, and with a text after a text.
  begins = (order == 0) | (np.diff(span, prepend=-1) != 0)
  begins |= (span == 0) & (token_id == golden_folder.specials().im_start) & (np.roll(token_id, 1) == _text_end())
  begin = np.flatnonzero(begins)
  split_lens, modes = np.diff([*begin, len(segment)]), np.where(span[begin] == 0, 0, 1 + hidden[begin])
  for i in range(len(lengths)):
    own = segment[begin] == i + 1
    fields |= {f'split_lens{i}': split_lens[own], f'attn_modes{i}': modes[own]}
  return fields | {'split_lens': split_lens, 'attn_modes': modes}


def _text_end():
  return golden_folder.specials().im_end


def _draws(copy):
  """Function of the first raw timestep: what numpy's generator draws for these copies (BAGEL, QUIRKS 18)."""

  def draw(first):
    seed = _seed(float(first))
    if seed is None:
      return None
    values = np.random.RandomState(seed).randn(copy.max(initial=0)).astype(np.float32)
    return np.where(copy > 0, np.concatenate([[-np.inf], values])[copy], -np.inf)

  return draw


@functools.cache
def _seed(first):
  """Of numpy's generator whose first normal number it is, or None."""
  for seed in range(_SEEDS):
    if np.float32(np.random.RandomState(seed).randn()) == np.float32(first):
      return seed
  return None


def _check(file, prefix, row, *, skip=()):
  """Compares every field of the pack that the folder has."""
  for field, got in _fields(row).items():
    name = f'{file}/{prefix}_{field}'
    if field.startswith(('split', 'attn')) and prefix == 'pk':
      name = f'{file}/{field}'
    if not golden_folder.matching(name) or field in skip:
      continue
    if field == 'packed_timesteps':
      _check_timesteps(name, got)
    elif field == 'ce_loss_weights':
      close(got, name)
    else:
      equal(got, name)


def _check_timesteps(name, draws):
  raw = value(name)
  want = draws(raw[np.isfinite(raw)][0])
  if want is None:
    # Then the folder drew its timesteps in another way, all of them.
    everywhere = [value(n) for n in golden_folder.matching('e_*/*_packed_timesteps')]
    assert all(_seed(float(x[np.isfinite(x)][0])) is None for x in everywhere), f'{name} is not what its seed draws.'
    want = raw
  close(want, name)


@golden_folder.shared
def _samples():
  return golden_packs.samples('e_train', '', images='e_train/')


def _pack(samples, **options):
  return golden_packs.pack(samples, canvas=golden_packs.canvas(_samples()), **options)


@golden_folder.checks(
  'e_train/pk_*',
  'e_train/split_lens*',
  'e_train/attn_modes*',
  inputs=('e_train/in*_plan', 'e_train/in*_text*', 'e_train/in*_image*'),
)
def test_pack_of_three_samples():
  row = _pack(_samples())
  _check('e_train', 'pk', row)
  equal(row.pictures.transpose(0, 3, 1, 2), 'e_train/pk_padded_images')
  # Places that nobody fills change nothing.
  _check('e_train', 'pk', _pack(_samples(), spare=3))


@golden_folder.checks('e_pack_variants/flex_*')
def test_pack_with_padding_as_a_sample():
  # (BAGEL, QUIRKS B9) With use_flex the padding counts as one more sample, one causal split.
  row = _pack(_samples())
  _check('e_pack_variants', 'flex', row, skip=('sample_lens', 'split_lens', 'attn_modes'))
  fields = _fields(row)
  rest = golden_folder.integers('e_pack_variants/flex_sample_lens')[-1]
  for field, last in (('sample_lens', rest), ('split_lens', rest), ('attn_modes', test_parity_masks.CAUSAL)):
    equal([*fields[field], last], f'e_pack_variants/flex_{field}')


@golden_folder.checks(
  *(f'e_pack_variants/{variant}_*' for variant in VARIANTS),
  inputs=('e_pack_variants/drop_in*_plan', 'e_pack_variants/drop_in*_text*', 'e_train/in*_image*'),
)
def test_packs_with_dropped_conditions():
  samples = golden_packs.samples('e_pack_variants', 'drop_', images='e_train/')
  for variant, condition in VARIANTS.items():
    row = _pack(samples, drop=(condition,))
    _check('e_pack_variants', variant, row)


@golden_folder.checks(
  'e_pack_variants/vid_[!if]*',
  inputs=('e_pack_variants/vid_in*', 'e_pack_variants/vid_frame_tokens'),
)
def test_pack_of_videos():
  # (BAGEL, QUIRKS B5) Frames share a split and a timestep, and are not hidden from what follows.
  samples = golden_packs.samples('e_pack_variants', 'vid_')
  row = golden_packs.pack(samples, canvas=golden_packs.canvas(samples))
  _check('e_pack_variants', 'vid', row)


@golden_folder.checks('e_train/pk_mask*', inputs=('e_train/split_lens*', 'e_train/attn_modes*'))
def test_masks_are_those_of_the_recorded_splits():
  for i in range(len(_samples())):
    splits = zip(
      *(golden_folder.integers(f'e_train/{field}{i}') for field in ('split_lens', 'attn_modes')), strict=True
    )
    tokens = test_parity_masks.tokens_of_splits([list(splits)])
    equal(masks.visible(tokens, tokens), f'e_train/pk_mask{i}')


def test_a_pack_has_the_dtypes_of_a_batch():
  row = jax.tree.map(lambda x: x[None], _pack(_samples()))
  packed.check(row)
  for name, x in (
    ('patch', row.gen.patch),
    ('grids', row.grids),
    ('position', row.vit.position),
    ('image', row.vit.image),
  ):
    assert x.dtype == np.int32, name
