"""The tokenizer interface: exact round trip, and ids of structure that no typed text can reach.

Special ids (`core.config.Specials`) are known to no vocabulary: they are composed by code, so that `<|im_end|>` or
`<refine>` in a user's prompt stays plain text.
"""

import abc
import functools
import re
from collections.abc import Mapping, Sequence

from pdgen.core import config, tags

STRUCTURE = {
  'im_start': '<|im_start|>',
  'im_end': '<|im_end|>',
  'vision_start': '<|vision_start|>',
  'vision_end': '<|vision_end|>',
  'endoftext': '<|endoftext|>',
}
SPECIAL_TEXTS = {**STRUCTURE, **tags.TAGS}  # Text of every special token, by its name in `Specials`.

_CACHED_TEXTS = 65_536


class Tokenizer(abc.ABC):
  """What every tokenizer offers; a subclass brings a vocabulary (sentencepiece here, Qwen2's for BAGEL).

  Attributes:
    specials: ids of the structure tokens and tags.
    vocab_size: ids in use, specials included; rows of the embedding beyond it are never produced by `encode`.
    parsed: added tokens of the model's own, by text, that `encode_with_tags` reads as their ids.
  """

  def __init__(self, *, specials: config.Specials, vocab_size: int, parsed: Mapping[str, int] | None = None):
    self.specials = specials
    self.vocab_size = vocab_size
    self.parsed = dict(parsed or {})
    longest_first = sorted(self.parsed, key=len, reverse=True)
    self._parsed_texts = re.compile('(' + '|'.join(map(re.escape, longest_first)) + ')') if self.parsed else None
    self._special_text = {getattr(specials, name): text.encode() for name, text in SPECIAL_TEXTS.items()}
    self._encode_cached = functools.lru_cache(_CACHED_TEXTS)(self._encode_exact)
    self._encode_with_tags_cached = functools.lru_cache(_CACHED_TEXTS)(self._encode_tagged)

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

  def encode_with_tags(self, text: str) -> list[int]:
    r"""Ids of text that a model wrote: the tags of `core.tags`, every spelling, and the tokens in `parsed` become their
    ids; all else is text.
    """
    return list(self._encode_with_tags_cached(text))

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids, exactly what was encoded. Tags and structure tokens come back as their text.

    Bytes that are no UTF-8 and ids outside the vocabulary, which an untrained model may write, come back as U+FFFD.
    """
    return b''.join(self.bytes_of(int(i)) for i in ids).decode('utf-8', errors='replace')

  @functools.cached_property
  def pieces(self) -> tuple[bytes, ...]:
    """UTF-8 bytes, maybe parts of characters, of all ids: what `decode` joins."""
    return tuple(map(self.bytes_of, range(self.vocab_size)))

  def _valid(self, text: str) -> str:
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise ValueError(f'{text!r} holds a lone surrogate: it is no Unicode text. Decode its bytes properly.') from error
    return text

  def bytes_of(self, token_id: int) -> bytes:
    """UTF-8 bytes, maybe a part of a character, of any id."""
    if token_id in self._special_text:
      return self._special_text[token_id]
    if not 0 <= token_id < self.vocab_size:
      return '\ufffd'.encode()
    return self._token_bytes(token_id)

  def _encode_tagged(self, text: str) -> tuple[int, ...]:
    ids: list[int] = []
    for part in tags.split(text):
      if part in tags.NAMES:
        ids.append(getattr(self.specials, tags.NAMES[part]))
        continue
      for piece in self._parsed_texts.split(part) if self._parsed_texts else (part,):
        if piece in self.parsed:
          ids.append(self.parsed[piece])
        elif piece:
          ids.extend(self._encode_cached(piece))
    return tuple(ids)
