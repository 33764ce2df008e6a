"""splits.split_of: a function of the normalised prompt alone, the same on every machine and in every version."""

import numpy as np
import pytest

from pdgen.data import splits


def test_the_split_of_a_prompt_never_changes():
  """Held-out prompts of earlier versions stay held out: these hashes are written down."""
  assert (
    splits.prompt_hash('A photo of a red ring.') == 'f768e2367724ce62581ba5b51b69938af13769297f456672b0fdf5e49d2b1fc7'
  )
  assert splits.prompt_hash('ein Würfel, 環') == '116d3949cfb988754f8bd0115c62a2248d40b6958a219f04f58bc63dba551411'
  held = [n for n in range(1000) if splits.split_of(f'prompt {n}') == splits.HELDOUT]
  assert held == [207, 258, 289, 296, 456, 548, 663, 706, 842, 955]


def test_spelling_does_not_move_a_prompt_to_the_other_split():
  for n in range(200):
    prompt = f'a red ring and {n} bars'
    wanted = splits.split_of(prompt, heldout=0.5)
    for same in (
      prompt.upper(),
      f'  {prompt}.\n',
      prompt.replace(' ', '  '),
      prompt.replace('and', 'ａｎｄ'),
      f'"{prompt}"!',
    ):
      assert splits.split_of(same, heldout=0.5) == wanted
  assert splits.prompt_hash('a b') != splits.prompt_hash('ab')
  assert len({splits.prompt_hash(text) for text in ('', '♥', '♥♥', 'a', '\ud800')}) == 5


def test_shares_hold_and_are_nested():
  prompts = [f'{n} rings' for n in range(20000)]
  held = {
    share: {p for p in prompts if splits.split_of(p, heldout=share) == splits.HELDOUT} for share in (0, 0.01, 0.2, 1)
  }
  assert not held[0] and len(held[1]) == len(prompts)
  assert held[0.01] < held[0.2]
  for share in (0.01, 0.2):
    # Five standard deviations of a binomial.
    assert abs(len(held[share]) / len(prompts) - share) < 5 * np.sqrt(share * (1 - share) / len(prompts))


@pytest.mark.parametrize('share', [-0.1, 1.1, float('nan')])
def test_what_is_no_share(share):
  with pytest.raises(ValueError, match='share of the prompts'):
    splits.split_of('a', heldout=share)
