"""SentencePiece tokenizers: a vocabulary with byte fallback, and its training on texts of a world.

python -m pdgen.train_tokenizer --world=shapes --out=pdgen/data/tokenizers/assets/shapes.model
"""

import io
import re
from collections.abc import Iterable

import sentencepiece

from pdgen.core import config, tags
from pdgen.data.tokenizers import base

_SPACE = '\u2581'  # Sentencepiece's sign for a space.


class SentencePiece(base.Tokenizer):
  """A sentencepiece vocabulary; the specials follow it, in the order of `core.config.Specials`.

  >>> from pdgen.data import tokenizers
  >>> tokenizer = tokenizers.load('shapes')
  >>> tokenizer.decode(tokenizer.encode('a  red ring, <refine>, 環'))
  'a  red ring, <refine>, 環'
  >>> tokenizer.specials.refine in tokenizer.encode('<refine>')
  False
  >>> tokenizer.encode_with_tags('<refine>') == [tokenizer.specials.refine]
  True
  """

  def __init__(self, model: bytes):
    """model: a serialised sentencepiece model with all 256 byte pieces and identity normalisation."""
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = self._processor.get_piece_size()
    names = list(base.SPECIAL_TEXTS)
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


def train(texts: Iterable[str], *, pieces: int) -> bytes:
  """A serialised sentencepiece model of at most `pieces` pieces, 256 of them bytes. Deterministic.

  No piece crosses white space, and tags never reach the trainer: written text is split at them first.

  Raises: ValueError for fewer pieces than bytes and characters.
  """
  # A list: the trainer would turn an exception, or Ctrl-C, of an iterator into one of its own.
  parts = [part for text in texts for part in tags.split(text) if part not in tags.NAMES]
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(parts),
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
  except RuntimeError as error:
    raise ValueError(f'{pieces=} cannot be trained ({str(error).rpartition("] ")[2]}): give another number.') from error
  return model.getvalue()
