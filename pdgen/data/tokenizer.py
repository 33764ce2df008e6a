"""Text to ids and back: exact round trip, and ids of structure that no typed text can reach.

    python -m pdgen.data.tokenizer --world=shapes --out=pdgen/data/assets/shapes.model

trains the shipped sentencepiece model on the text of a world. Special ids (`core.config.Specials`) are known neither to
sentencepiece nor to Qwen2's byte-level BPE as `byte_level` sets it up: they are composed by code, so that
`<|im_end|>` or `<refine>` in a user's prompt stays plain text.
"""

import abc
import argparse
import functools
import io
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

import sentencepiece

from pdgen.core import config, worlds

ASSETS = pathlib.Path(__file__).parent / 'assets'

STRUCTURE = {
  'im_start': '<|im_start|>',
  'im_end': '<|im_end|>',
  'vision_start': '<|vision_start|>',
  'vision_end': '<|vision_end|>',
  'endoftext': '<|endoftext|>',
}
TAGS = {
  'ins': '<ins>',
  'ins_end': '</ins>',
  'des': '<des>',
  'des_end': '</des>',
  'refine': '<refine>',
  'refine_end': '</refine>',
}
# The paper prints the closing tag of a refinement as <\refine>; it is read, and written as </refine>.
_TAG_NAMES = {**{text: name for name, text in TAGS.items()}, '<\\refine>': 'refine_end'}
_TAG = re.compile('(' + '|'.join(re.escape(text) for text in _TAG_NAMES) + ')')

_SPACE = '\u2581'  # Sentencepiece's sign for a space.
_CACHED_TEXTS = 65_536


class Tokenizer(abc.ABC):
  """What every tokenizer offers; a subclass brings a vocabulary (sentencepiece here, Qwen2's for BAGEL).

  Attributes:
    specials: ids of the structure tokens and tags.
    vocab_size: ids in use, specials included; rows of the embedding beyond it are never produced by `encode`.
  """

  def __init__(self, *, specials: config.Specials, vocab_size: int):
    self.specials = specials
    self.vocab_size = vocab_size
    self._special_text = {getattr(specials, name): text.encode() for name, text in {**STRUCTURE, **TAGS}.items()}
    self._encode_cached = functools.lru_cache(_CACHED_TEXTS)(self._encode_exact)
    self._encode_written_cached = functools.lru_cache(_CACHED_TEXTS)(self._encode_tagged)

  @abc.abstractmethod
  def _encode_exact(self, text: str) -> tuple[int, ...]:
    """Ids of plain text, none of them special; their bytes joined are the text's UTF-8."""

  @abc.abstractmethod
  def _token_bytes(self, token_id: int) -> bytes:
    """UTF-8 bytes, maybe a part of a character, of one id that is not special."""

  def encode(self, text: str) -> list[int]:
    """Ids of text as a user types it; a special token or tag written in it stays text.

    Raises: ValueError for a lone surrogate, which is no Unicode text.
    """
    return list(self._encode_cached(text))

  def encode_written(self, text: str) -> list[int]:
    r"""Ids of text that a model wrote: the tags of `TAGS`, and `<\refine>`, become tag ids; all else is plain text."""
    return list(self._encode_written_cached(text))

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids, exactly what was encoded. Tags and structure tokens come back as their text.

    Bytes that are no UTF-8 and ids outside the vocabulary, which an untrained model may write, come back as U+FFFD.
    """
    return b''.join(self._bytes(int(i)) for i in ids).decode('utf-8', errors='replace')

  def _valid(self, text: str) -> str:
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise ValueError(f'{text!r} holds a lone surrogate: it is no Unicode text. Decode its bytes properly.') from error
    return text

  def _bytes(self, token_id: int) -> bytes:
    if token_id in self._special_text:
      return self._special_text[token_id]
    if not 0 <= token_id < self.vocab_size:
      return '\ufffd'.encode()
    return self._token_bytes(token_id)

  def _encode_tagged(self, text: str) -> tuple[int, ...]:
    ids: list[int] = []
    for part in _TAG.split(text):
      if part in _TAG_NAMES:
        ids.append(getattr(self.specials, _TAG_NAMES[part]))
      elif part:
        ids.extend(self._encode_cached(part))
    return tuple(ids)


class SentencePiece(Tokenizer):
  """A sentencepiece vocabulary; the specials follow it, in the order of `core.config.Specials`.

  >>> tokenizer = load('shapes')
  >>> tokenizer.decode(tokenizer.encode('a  red ring, <refine>, 環'))
  'a  red ring, <refine>, 環'
  >>> tokenizer.specials.refine in tokenizer.encode('<refine>')
  False
  >>> tokenizer.encode_written('<refine>') == [tokenizer.specials.refine]
  True
  """

  def __init__(self, model: bytes):
    """model: a serialised sentencepiece model with all 256 byte pieces and identity normalisation."""
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = self._processor.get_piece_size()
    names = [*STRUCTURE, *TAGS]
    self._pieces = [self._piece_bytes(i) for i in range(size)]
    self._byte_ids = [self._processor.piece_to_id(f'<0x{byte:02X}>') for byte in range(256)]
    if not all(self._processor.is_byte(i) for i in self._byte_ids):
      raise ValueError('The sentencepiece model lacks byte pieces: train it with byte_fallback=True.')
    super().__init__(
      specials=config.Specials(**{name: size + i for i, name in enumerate(names)}), vocab_size=size + len(names)
    )

  def _piece_bytes(self, token_id: int) -> bytes:
    piece = self._processor.id_to_piece(token_id)
    if self._processor.is_byte(token_id):
      return bytes([int(piece[3:5], 16)])
    if self._processor.is_unknown(token_id):
      return '\ufffd'.encode()
    return piece.replace(_SPACE, ' ').encode()

  def _token_bytes(self, token_id: int) -> bytes:
    return self._pieces[token_id]

  def _encode_exact(self, text: str) -> tuple[int, ...]:
    # Sentencepiece would read a typed U+2581 as a space, so that it and NUL (end of a C string) go as bytes.
    ids: list[int] = []
    for part in re.split(f'([{_SPACE}\0]+)', self._valid(text)):
      if part and part[0] in (_SPACE, '\0'):
        ids.extend(self._byte_ids[byte] for byte in part.encode())
      elif part:
        ids.extend(self._processor.encode(part))
    return tuple(ids)


@functools.cache
def load(name_or_path: str) -> Tokenizer:
  """The shipped tokenizer of that name, the sentencepiece model at that path, or the folder of a byte-level BPE.

  Raises: FileNotFoundError naming what is shipped; ValueError for a vocabulary that cannot be used.
  """
  from pdgen.data import byte_level  # that module builds on this one

  path = ASSETS / f'{name_or_path}.model'
  if not path.is_file():
    path = pathlib.Path(name_or_path)
  if byte_level.is_tokenizer(path):
    return byte_level.read(path)
  if not path.is_file():
    shipped = sorted(p.stem for p in ASSETS.glob('*.model'))
    raise FileNotFoundError(
      f'No tokenizer {name_or_path!r}: neither shipped ({shipped}), nor a file, nor a folder with tokenizer.json or '
      'with vocab.json and merges.txt.'
    )
  return SentencePiece(path.read_bytes())


def train(texts: Iterable[str], *, pieces: int) -> bytes:
  """A serialised sentencepiece model of at most `pieces` pieces, 256 of them bytes. Deterministic.

  No piece crosses white space, and tags never reach the trainer: written text is split at them first.
  """
  parts = (part for text in texts for part in _TAG.split(text) if part and part not in _TAG_NAMES)
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=parts,
    model_writer=model,
    vocab_size=pieces,
    hard_vocab_limit=False,
    model_type='bpe',
    byte_fallback=True,
    normalization_rule_name='identity',
    remove_extra_whitespaces=False,
    add_dummy_prefix=False,
    split_by_whitespace=True,
    character_coverage=1.0,
    bos_id=-1,
    eos_id=-1,
    pad_id=-1,
    unk_id=0,
    num_threads=1,
    minloglevel=2,
  )
  return model.getvalue()


def main(arguments: Sequence[str] | None = None):
  """Trains on a world's text and writes the model."""
  parser = argparse.ArgumentParser(description='Train a tokenizer on the text of a world.')
  parser.add_argument('--world', default='shapes', help='a module of pdgen.worlds with corpus(seed, count)')
  parser.add_argument('--out', required=True, help='file to write')
  parser.add_argument('--pieces', type=int, default=629, help='sentencepiece vocabulary; specials are added to it')
  parser.add_argument('--texts', type=int, default=20_000, help='texts to train on')
  parser.add_argument('--seed', type=int, default=0)
  flags = parser.parse_args(arguments)
  world = worlds.load(flags.world)
  model = train(world.corpus(seed=flags.seed, count=flags.texts), pieces=flags.pieces)
  partial = f'{flags.out}.partial'
  pathlib.Path(partial).write_bytes(model)
  os.replace(partial, flags.out)
  tokenizer = SentencePiece(model)
  texts = list(world.corpus(seed=flags.seed + 1, count=1_000))
  tokens = sum(len(tokenizer.encode_written(text)) for text in texts)
  words = sum(len(text.split()) for text in texts)
  print(f'{flags.out}: {tokenizer.vocab_size} ids, {tokens / words:.2f} tokens a word of fresh text')


if __name__ == '__main__':
  main()
