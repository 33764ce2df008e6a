"""Tokenizers by name or path: `load`. SentencePiece models (shipped: `shapes`) and Qwen2's byte-level BPE (BAGEL)."""

import functools
import pathlib

from pdgen.data.tokenizers import base, byte_level, sentencepiece

ASSETS = pathlib.Path(__file__).parent / 'assets'


@functools.cache
def load(name_or_path: str) -> base.Tokenizer:
  """The shipped tokenizer of that name, the sentencepiece model at that path, or the folder of a byte-level BPE.

  Raises: FileNotFoundError naming what is shipped; ValueError for a vocabulary that cannot be used.
  """
  path = files(name_or_path)
  if byte_level.is_tokenizer(path):
    return byte_level.read(path)
  if not path.is_file():
    shipped = sorted(p.stem for p in ASSETS.glob('*.model'))
    raise FileNotFoundError(
      f'No tokenizer {name_or_path!r}: neither shipped ({shipped}), nor a file, nor a folder with tokenizer.json or '
      'with vocab.json and merges.txt.'
    )
  return sentencepiece.SentencePiece(path.read_bytes())


def files(name_or_path: str) -> pathlib.Path:
  """Where the tokenizer that `load` takes lies on disk: a file, or a folder."""
  shipped = ASSETS / f'{name_or_path}.model'
  return shipped if shipped.is_file() else pathlib.Path(name_or_path)
