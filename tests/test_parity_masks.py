"""Who sees whom, against the reference's masks from lengths and modes of splits."""

import numpy as np
from support import golden_folder

from pdgen.core import masks, packed

CAUSAL, FULL, NOISE = range(3)
SETS = sorted({name.split('/')[1].split('_')[0] for name in golden_folder.matching('a_masks/*')})


def tokens_of_splits(samples):
  """Metadata of (length, mode) splits of each sample: a full or a noise split is a span, a noise split a noised one."""
  fields = []
  for segment, splits in enumerate(samples, start=1):
    order = 0
    for span, (length, mode) in enumerate(splits, start=1):
      for _ in range(length):
        fields.append((segment, order, order, 0 if mode == CAUSAL else span, int(mode == NOISE), 0))
        order += 1
  return packed.TokenMeta(*np.array(fields, np.int32).T)


@golden_folder.checks(
  'a_masks/*_sparse',
  'a_masks/*_nested*',
  'a_masks/*_sample_lens',
  inputs=('a_masks/*_split_lens', 'a_masks/*_attn_modes', 'a_masks/*_num_splits'),
)
def test_masks_of_packings():
  assert SETS
  for name in SETS:
    lengths, modes, counts = (
      golden_folder.integers(f'a_masks/{name}_{field}') for field in ('split_lens', 'attn_modes', 'num_splits')
    )
    splits = zip(lengths, modes, strict=True)
    samples = [[next(splits) for _ in range(count)] for count in counts]
    assert next(splits, None) is None
    golden_folder.equal([sum(length for length, _ in sample) for sample in samples], f'a_masks/{name}_sample_lens')
    tokens = tokens_of_splits(samples)
    golden_folder.equal(masks.visible(tokens, tokens), f'a_masks/{name}_sparse')
    for i, sample in enumerate(samples):
      tokens = tokens_of_splits([sample])
      golden_folder.equal(masks.visible(tokens, tokens), f'a_masks/{name}_nested{i}')
