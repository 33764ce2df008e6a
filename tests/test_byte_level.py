"""Qwen2's byte-level BPE: exact bytes, ids of structure out of reach of typed text, both forms of the files."""

import json
import unicodedata

import pytest
import tokenizers
from test_tokenizer import AWKWARD, _random_texts

from pdgen.core import tags
from pdgen.data import tokenizers as pdgen_tokenizers
from pdgen.data.tokenizers import base, byte_level

CORPUS = [
  "a photo of a red ring and a blue square; it's done, isn't it?",
  'plan: 12 rings, 345 squares!\n\n  next',
] * 20
# As Qwen2's files have them: in this order after the vocabulary; the tags are in no such file.
ADDED = ('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|object_ref_start|>', '<|vision_start|>', '<|vision_end|>')


@pytest.fixture(scope='module')
def made() -> tokenizers.Tokenizer:
  """A small BPE with added tokens, made and trained by the package itself."""
  bpe = byte_level._as_qwen2(tokenizers.Tokenizer(tokenizers.models.BPE()))
  signs = sorted(byte_level.byte_signs().values())
  trainer = tokenizers.trainers.BpeTrainer(vocab_size=340, initial_alphabet=signs, show_progress=False)
  bpe.train_from_iterator(CORPUS, trainer)
  bpe.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in ADDED])
  return bpe


@pytest.fixture(scope='module')
def folders(made, tmp_path_factory):
  """The same vocabulary as tokenizer.json, and as vocab.json with merges.txt and tokenizer_config.json."""
  one, other = (tmp_path_factory.mktemp(name) for name in ('json', 'vocab'))
  made.save(str(one / 'tokenizer.json'))
  made.model.save(str(other))
  listed = {str(made.token_to_id(text)): {'content': text, 'special': True} for text in ADDED}
  (other / 'tokenizer_config.json').write_text(json.dumps({'added_tokens_decoder': listed}))
  return {'json': one, 'vocab': other}


@pytest.fixture(scope='module', params=['json', 'vocab'])
def words(folders, request) -> base.Tokenizer:
  return pdgen_tokenizers.load(str(folders[request.param]))


def test_any_text_comes_back_as_its_normal_form(words):
  specials = set(vars(words.specials).values())
  for text in (*AWKWARD, *_random_texts(3_000)):
    ids = words.encode(text)
    assert words.decode(ids) == unicodedata.normalize('NFC', text)
    assert not specials & set(ids), 'a typed text reached an id of structure'


def test_ids_are_those_of_the_package(words, made):
  for text in CORPUS[:2]:
    assert len(words.encode(text)) < len(text) / 2, 'the merges are not used'
    assert words.encode(text) == made.encode(text, add_special_tokens=False).ids
  # The package itself would parse what a user types:
  assert made.encode('<|vision_start|>', add_special_tokens=False).ids == [words.specials.vision_start]
  typed = words.encode('<|vision_start|>')
  assert len(typed) > 1 and words.decode(typed) == '<|vision_start|>'


def test_text_is_cut_as_qwen2_cuts_it(words):
  cuts = [words.decode([i]) for i in words.encode('12 rings')]
  assert cuts[:2] == ['1', '2'], 'digits stand alone'


def test_structure_has_the_ids_of_the_file_and_tags_the_next_ones(words, made):
  s = words.specials
  for name, text in base.STRUCTURE.items():
    assert getattr(s, name) == made.token_to_id(text)
  last = made.get_vocab_size(with_added_tokens=True) - 1
  assert [getattr(s, name) for name in tags.TAGS] == list(range(last + 1, last + 7))
  assert words.vocab_size == last + 7
  assert words.encode_with_tags('<refine>a<\\refine>') == [s.refine, *words.encode('a'), s.refine_end]
  ids = [s.im_start, s.ins, made.token_to_id('<|object_ref_start|>'), s.im_end]
  assert words.decode(ids) == '<|im_start|><ins><|object_ref_start|><|im_end|>'


def test_a_file_without_added_tokens_gets_them_in_qwen2s_order(made, tmp_path):
  made.model.save(str(tmp_path))
  words = pdgen_tokenizers.load(str(tmp_path))
  s, size = words.specials, made.get_vocab_size(with_added_tokens=False)
  assert [s.endoftext, s.im_start, s.im_end, s.vision_start, s.vision_end] == list(range(size, size + 5))


def test_bytes_alone_serve_weights_without_a_vocabulary(tmp_path):
  given = {'im_start': 291, 'im_end': 293, 'vision_start': 296, 'vision_end': 298}
  description = byte_level.bytes_only(given, rows=300)
  (tmp_path / 'tokenizer.json').write_text(json.dumps(description))
  words = pdgen_tokenizers.load(str(tmp_path))
  assert words.vocab_size == 299
  assert {name: getattr(words.specials, name) for name in given} == given
  assert words.encode('ring\xe9') == list('ring\xe9'.encode())
  assert words.decode([*b'ring', words.specials.refine, 290]) == 'ring<refine>\ufffd'
  assert len(set(vars(words.specials).values())) == 11
  with pytest.raises(ValueError, match='260 rows'):
    byte_level.bytes_only({}, rows=260)
  with pytest.raises(ValueError, match="'im_end': 300"):
    byte_level.bytes_only({'im_end': 300}, rows=300)
  low = byte_level.bytes_only({'im_end': 97}, rows=267)
  (tmp_path / 'tokenizer.json').write_text(json.dumps(low))
  words = byte_level.read(tmp_path)
  assert words.specials.im_end == 97 and words.encode('`ab') == [96, 98, 99]


def test_what_is_no_byte_level_bpe_is_refused(made, folders, tmp_path):
  good = json.loads((folders['json'] / 'tokenizer.json').read_text())

  def refusal(**changes):
    (tmp_path / 'tokenizer.json').write_text(json.dumps({**good, 'model': {**good['model'], **changes}}))
    with pytest.raises(ValueError) as error:
      byte_level.read(tmp_path)
    assert str(tmp_path) in str(error.value)
    return str(error.value)

  assert 'Unigram' in refusal(type='Unigram')
  without = {piece: i for piece, i in good['model']['vocab'].items() if piece != '!'}
  assert 'lacks pieces for 1 bytes (the first is 33)' in refusal(vocab=without, merges=[])
  # A vocabulary that takes whole words would find a token of structure that is written in one.
  inside = {**good['model']['vocab'], '<ins>': 1000}
  merges = [['<', 'i'], ['n', 's'], ['<i', 'ns'], ['<ins', '>']]
  pieces = {'<i': 1001, 'ns': 1002, '<ins': 1003}
  good['pre_tokenizer'] = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}
  good['added_tokens'] += [{**good['added_tokens'][0], 'id': 1000, 'content': '<ins>'}]
  assert "['<ins>']" in refusal(vocab={**inside, **pieces}, merges=merges)
  (tmp_path / 'tokenizer.json').write_text('{')
  with pytest.raises(ValueError, match='cannot be used'):
    byte_level.read(tmp_path)
