"""Train or held out: the split of a prompt, by a hash of its normalised text, equal on all machines.

The prompt alone decides, so that no prompt is in both splits, in whatever data sets and however often it occurs.
"""

import hashlib
import re
import unicodedata

TRAIN, HELDOUT = SPLITS = ('train', 'heldout')
HELDOUT_SHARE = 0.01


def normalised(prompt: str) -> str:
  """The prompt as its split sees it: compatible characters made one, lower case, words joined by single spaces.

  >>> normalised('  A photo of a RED\\n ring. ')
  'a photo of a red ring'
  >>> normalised('♥')  # A prompt without words is taken as it is.
  '♥'
  """
  text = unicodedata.normalize('NFKC', prompt).casefold()
  return ' '.join(re.findall(r'\w+', text)) or ' '.join(text.split())


def prompt_hash(prompt: str) -> str:
  """SHA-256 of the normalised prompt, as hexadecimal digits."""
  return hashlib.sha256(normalised(prompt).encode('utf-8', 'surrogatepass')).hexdigest()


def split_of(prompt: str, heldout: float = HELDOUT_SHARE) -> str:
  """`train` or `heldout`. What a share holds out, a larger one holds out too.

  Args:
    prompt: of the trajectory.
    heldout: share of the prompts that is held out, in [0, 1].

  >>> split_of('a red ring'), split_of('A red ring!', heldout=1.0)
  ('train', 'heldout')

  Raises: ValueError for a share that is none.
  """
  if not 0 <= heldout <= 1:
    raise ValueError(f'{heldout=} must be a share of the prompts, from 0 to 1.')
  return HELDOUT if int(prompt_hash(prompt)[:16], 16) < heldout * 2**64 else TRAIN
