"""Qwen2's byte-level BPE, as BAGEL uses it: `tokenizer.json`, or `vocab.json` with `merges.txt`.

Added tokens are taken out of the file before the `tokenizers` package sees it, which would else find them in any text:
`<|vision_start|>` that a user types is ordinary pieces here, and its id is composed by code alone.

Where the ids come from. The five of structure are Qwen2's own added tokens; one that a file lacks is appended, as
BAGEL's `add_special_tokens` does. The six tags of the paper (`<ins>` ..) are in no Qwen2 vocabulary. They get one id
each, the first after the last id in use, among the rows by which the embedding is padded (Qwen2.5: ids 151,665 to
151,670 of 152,064 rows), so that no weight changes its shape (ours; why not plain text: docs/experiments.md#tag-ids).

A model may have added tokens of its own (`<mesh>`). No text becomes one of them, unless the import was told to parse it
(`pdgen.convert import --parse='<mesh>'`, kept in pdgen_tokenizer.json); a prompt that a user types never does.
"""

import json
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from pdgen.core import config, json_file, tags
from pdgen.data.tokenizers import base

JSON, VOCAB, MERGES, SETTINGS = 'tokenizer.json', 'vocab.json', 'merges.txt', 'tokenizer_config.json'
FILES = (JSON, VOCAB, MERGES, SETTINGS)
OWN_SETTINGS = 'pdgen_tokenizer.json'  # {"parse": [..]}: added tokens that texts of models and of data may spell.
# What says that a folder has, or had, a tokenizer.
_SIGNS = (*FILES, 'added_tokens.json', 'special_tokens_map.json', 'tokenizer.model', 'spiece.model', 'vocab.txt')
_LARGE = 100_000  # Rows of an embedding whose tokens are surely not bytes (Qwen2: 151,936 or 152,064).
# (Qwen2, Qwen2.5) Added tokens of the release that are neither structure nor tags.
_OF_RELEASE = {
  *('<|object_ref_start|>', '<|object_ref_end|>', '<|box_start|>', '<|box_end|>', '<|quad_start|>', '<|quad_end|>'),
  *('<|vision_pad|>', '<|image_pad|>', '<|video_pad|>', '<tool_call>', '</tool_call>', '<|fim_prefix|>'),
  *('<|fim_middle|>', '<|fim_suffix|>', '<|fim_pad|>', '<|repo_name|>', '<|file_sep|>'),
}
# Read and written back by every tokenizer that is taken.
_PROBE = "It's  a ring,\n\tE\u0301 \xdf 12 <|x|> \u74b0 \U0001f3a8 "

# Qwen2's order of the added tokens, then BAGEL's of those that it adds.
_ORDER = ('endoftext', 'im_start', 'im_end', 'vision_start', 'vision_end')
# (Qwen2) How text is cut before the merges: contractions, words, single digits, punctuation, white space.
_CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class ByteLevel(base.Tokenizer):
  """A byte-level BPE. Ids need not be dense: an id that nothing has decodes to U+FFFD.

  Text is normalised as the vocabulary wants it (Qwen2: NFC), so that what comes back is the NFC form of what was typed.
  """

  def __init__(self, description: Mapping[str, Any], *, added: Mapping[str, int], parse: Sequence[str] = ()):
    """Builds the tokenizer.

    Args:
      description: the content of a tokenizer.json.
      added: text and id of the added tokens, tags or not.
      parse: those of them that `encode_with_tags` reads as their ids.

    Raises: ValueError for a model that is no byte-level BPE, that changes texts, or that reaches an added token from
      typed text, and for a token to parse that is none, or one of structure.
    """
    kind = description['model'].get('type', 'BPE')
    if kind != 'BPE':
      raise ValueError(f'The tokenizer is a {kind}; BAGEL needs the byte-level BPE of Qwen2.')
    _check_ids(description['model']['vocab'], added)
    # Truncation and dropout would lose words, or change ids from call to call.
    plain = {**description, 'added_tokens': [], 'post_processor': None, 'truncation': None, 'padding': None}
    plain['model'] = {**description['model'], 'dropout': None}
    self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(plain))
    byte_of = {sign: byte for byte, sign in byte_signs().items()}
    vocabulary = {piece: i for piece, i in description['model']['vocab'].items() if piece not in added}
    missing = sorted(byte for sign, byte in byte_of.items() if sign not in vocabulary)
    if missing:
      raise ValueError(f'The tokenizer lacks pieces for {len(missing)} bytes (the first is {missing[0]}); it is no '
                       'byte-level BPE.')  # fmt: skip
    self._pieces = {i: bytes(byte_of[sign] for sign in piece) for piece, i in vocabulary.items()}
    self._pieces |= {i: text.encode() for text, i in added.items()}
    ids = _specials(added, end=max(self._pieces) + 1)
    clash = sorted(name for name, i in ids.items() if self._pieces.get(i, b'') not in (b'', _TEXTS[name].encode()))
    if clash:
      raise ValueError(f'The ids of {clash} are those of other tokens. The vocabulary is damaged.')
    wrong = sorted(text for text in parse if text not in added or text in _TEXTS.values())
    if wrong:
      raise ValueError(f'{wrong} cannot be parsed from text: no added tokens of the model, or tokens of structure.')
    self.own_tokens = sorted(added.keys() - _TEXTS.values() - _OF_RELEASE)  # Added by whoever tuned the model.
    super().__init__(
      specials=config.Specials(**ids),
      vocab_size=max([*self._pieces, *ids.values()]) + 1,
      parsed={text: added[text] for text in parse},
    )
    reachable = [text for text in {**added, **dict.fromkeys(_TEXTS.values())} if self._reaches(text, added)]
    if reachable:
      raise ValueError(f'The vocabulary itself holds {reachable}: typed text would become an id of structure.')
    back = self.decode(self._encode_exact(_PROBE))
    if back not in (_PROBE, unicodedata.normalize('NFC', _PROBE)):
      raise ValueError(f'It changes texts: {_PROBE!r} comes back as {back[:60]!r}.')

  def _reaches(self, text: str, added: Mapping[str, int]) -> bool:
    return bool({*vars(self.specials).values(), *added.values()} & set(self._encode_exact(text)))

  def _encode_exact(self, text: str) -> tuple[int, ...]:
    return tuple(self._tokenizer.encode(self._valid(text), add_special_tokens=False).ids)

  def _token_bytes(self, token_id: int) -> bytes:
    return self._pieces.get(token_id, '\ufffd'.encode())


def is_tokenizer(folder: pathlib.Path) -> bool:
  """Whether the folder holds the files of a byte-level BPE."""
  return (folder / JSON).is_file() or (folder / VOCAB).is_file() and (folder / MERGES).is_file()


def incomplete(folder: pathlib.Path) -> str:
  """What a folder lacks that has files of a tokenizer, as a sentence; empty for one that has none."""
  there = [name for name in _SIGNS if (folder / name).is_file()]
  if not there or is_tokenizer(folder):
    return ''
  lacks = f'it lacks {VOCAB if MERGES in there else MERGES}, or {JSON}' if {VOCAB, MERGES} & {*there} else f'no {JSON}'
  return f' {folder} has {", ".join(there)}, but {lacks}: add it, from where the weights came.'


def read(folder: pathlib.Path) -> ByteLevel:
  """The tokenizer of a folder: of tokenizer.json if it is there, else of vocab.json, merges.txt, tokenizer_config.json.

  Raises: ValueError naming the folder and what is wrong with its files.
  """
  try:
    if (folder / JSON).is_file():
      description = json_file.read(folder / JSON)
      added = {token['content']: token['id'] for token in description.get('added_tokens') or ()}
    else:
      description = describe(folder / VOCAB, folder / MERGES)
      added = {}
    added |= _added_by_settings(folder)
    own = folder / OWN_SETTINGS
    parse = json_file.read(own).get('parse', []) if own.is_file() else []
    return ByteLevel(description, added=added, parse=parse)
  except Exception as error:  # The tokenizers package raises Exception itself.
    what = f'it lacks {error}' if isinstance(error, KeyError) else ' '.join(str(error).split())[:500]
    raise ValueError(f'The tokenizer in {folder} cannot be used: {what}') from error


def describe(vocab: pathlib.Path, merges: pathlib.Path) -> dict[str, Any]:
  """The content of a tokenizer.json for a vocab.json and a merges.txt, cut and normalised as Qwen2's are."""
  made = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocab), str(merges)))
  return json.loads(_as_qwen2(made).to_str())


def bytes_only(specials: Mapping[str, int], *, rows: int) -> dict[str, Any]:
  """The content of a tokenizer.json whose pieces are the 256 bytes, for weights that come without a vocabulary.

  specials: the ids that are known, by name. The bytes, then the other names, get the first free ids. rows: of the
  embedding.

  Raises: ValueError when they do not fit into the rows.
  """
  free = [i for i in range(rows) if i not in specials.values()]
  others = [name for name in _TEXTS if name not in specials]
  if max(specials.values(), default=0) >= rows or len(free) < 256 + len(others):
    raise ValueError(
      f'{rows} rows of the embedding do not hold 256 bytes and the {len(_TEXTS)} tokens of structure '
      f'({dict(specials)} given). Put the vocabulary of the model beside its weights.'
    )
  ids = {**specials, **dict(zip(others, free[256:], strict=False))}
  vocabulary = {sign: i for (_, sign), i in zip(sorted(byte_signs().items()), free, strict=False)}
  made = _as_qwen2(tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[])))
  added = [{'id': i, 'content': _TEXTS[name], **_ADDED} for name, i in sorted(ids.items(), key=lambda pair: pair[1])]
  return {**json.loads(made.to_str()), 'added_tokens': added}


def prepare(
  folder: pathlib.Path,
  specials: Mapping[str, int],
  rows: int,
  *,
  allow_bytes: bool = False,
  parse: Sequence[str] = (),
):
  """Checks the tokenizer in the folder of an imported model, or writes one of bytes where there is none.

  Args:
    folder: with the tokenizer's files, if the model has any.
    specials: ids that the model's config states, by name.
    rows: of its embedding.
    allow_bytes: bytes may stand for a vocabulary of a real model's size.
    parse: added tokens that texts of models and of data may spell.

  Raises: ValueError where the tokenizer has other ids, or more ids than the embedding has rows; where some files of a
    tokenizer are there but not all, or none is and the embedding is too large for bytes.
  """
  if lacks := incomplete(folder):
    raise ValueError(lacks.strip())
  if not is_tokenizer(folder):
    if rows >= _LARGE and not allow_bytes:
      raise ValueError(
        f'{folder} has no tokenizer, and its embedding of {rows} rows is no vocabulary of bytes: add {JSON}, or '
        f'{VOCAB} with {MERGES}, from where the weights came; or say --bytes, and texts are read and written as bytes.'
      )
    print('There is no tokenizer: texts are read and written as bytes.')
    (folder / JSON).write_text(json.dumps(bytes_only(specials, rows=rows)), encoding='utf-8')
  if parse:
    (folder / OWN_SETTINGS).write_text(json.dumps({'parse': sorted(set(parse))}), encoding='utf-8')
  words = read(folder)
  if words.vocab_size > rows or any(getattr(words.specials, name) != i for name, i in specials.items()):
    raise ValueError(
      f'The tokenizer in {folder} has {words.vocab_size} ids, {words.specials}. It does not fit: the weights have '
      f'{rows} rows, and config.json says {dict(specials)}.'
    )
  if unread := [text for text in words.own_tokens if text not in words.parsed]:
    print(
      f'The model has {len(unread)} added tokens of its own ({", ".join(unread[:8])}): no text becomes one of them. '
      f'Those that texts of training data may spell are named when importing: --parse={unread[0]!r}'
    )


def byte_signs() -> dict[int, str]:
  """The printable sign that stands for each byte in a byte-level vocabulary (GPT-2).

  >>> signs = byte_signs()
  >>> signs[ord('a')], signs[ord(' ')], len(set(signs.values()))
  ('a', 'Ġ', 256)
  """
  printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in printable]
  return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}


_TEXTS = base.SPECIAL_TEXTS
_ADDED = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False, 'special': True}


def _as_qwen2(made: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_CUT), behavior='isolated')
  to_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  made.normalizer = tokenizers.normalizers.NFC()
  made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, to_bytes])
  made.decoder = tokenizers.decoders.ByteLevel()
  return made


def _specials(added: Mapping[str, int], *, end: int) -> dict[str, int]:
  """Ids of structure and tags: those of added tokens; the others follow, from `end`."""
  ids = {}
  for name in (*_ORDER, *tags.TAGS):
    known = added.get(_TEXTS[name])
    ids[name] = end if known is None else known
    end += known is None
  return ids


def _added_by_settings(folder: pathlib.Path) -> dict[str, int]:
  """Added tokens that tokenizer_config.json lists."""
  path = folder / SETTINGS
  listed = json_file.read(path).get('added_tokens_decoder') or {} if path.is_file() else {}
  return {token['content']: int(i) for i, token in listed.items()}


def _check_ids(vocabulary: Mapping[str, int], added: Mapping[str, int]):
  """Raises ValueError for ids that are no ids, or that two tokens share."""
  wrong = [text for text, i in {**vocabulary, **added}.items() if type(i) is not int or not 0 <= i < 2**31 or not text]
  if wrong:
    raise ValueError(f'The ids of {len(wrong)} tokens are no numbers from 0, or have no text ({wrong[0]!r} is one).')
  ids = list({**vocabulary, **added}.values())
  if len(set(ids)) < len(ids):
    shared = next(i for i in ids if ids.count(i) > 1)
    raise ValueError(f'Two tokens have the id {shared}.')
