"""Tokenizers by name or path: `load`. SentencePiece models (shipped: `shapes`) and Qwen2's byte-level BPE (BAGEL)."""

import functools
import pathlib

from pdgen.core import paths
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
      f'with vocab.json and merges.txt.{byte_level.incomplete(path)}'
    )
  try:
    return sentencepiece.SentencePiece(path.read_bytes())
  except (RuntimeError, ValueError) as error:
    raise ValueError(f'{path} is no sentencepiece model that can be used: {" ".join(str(error).split())}') from error


def files(name_or_path: str) -> pathlib.Path:
  """Where the tokenizer that `load` takes lies on disk: a file, or a folder.

  A text without a separator is the shipped tokenizer of that name, if there is one; `./shapes` and `shapes/` are paths.

  Raises: ValueError for a folder whose files are links out of it: a run copies them into what it exports.
  """
  shipped = ASSETS / f'{name_or_path}.model'
  if not any(sign in name_or_path for sign in '/\\') and name_or_path and shipped.is_file():
    return shipped
  path = pathlib.Path(name_or_path)
  if byte_level.is_tokenizer(path):
    paths.check_links(path)
  return path
