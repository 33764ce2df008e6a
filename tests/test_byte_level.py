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


@pytest.mark.parametrize(
  'names',
  [('vocab.json',), ('merges.txt',), ('tokenizer_config.json',), ('vocab.json', 'tokenizer_config.json'),
   ('special_tokens_map.json',), ('tokenizer.model',)],
)  # fmt: skip
def test_a_part_of_a_tokenizer_is_never_replaced_by_bytes(folders, tmp_path, names):
  for name in names:
    there = folders['vocab'] / name
    (tmp_path / name).write_bytes(there.read_bytes() if there.exists() else b'{}')
  with pytest.raises(ValueError, match=f'{names[0]}.* lacks|no tokenizer.json'):
    byte_level.prepare(tmp_path, {}, 1000)
  assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
  with pytest.raises(FileNotFoundError, match=names[0]):
    pdgen_tokenizers.load(str(tmp_path))


def test_bytes_stand_for_a_large_vocabulary_only_on_request(tmp_path, capsys):
  with pytest.raises(ValueError, match='152064 rows is no vocabulary of bytes.*--bytes'):
    byte_level.prepare(tmp_path, {}, 152_064)
  assert not list(tmp_path.iterdir())
  byte_level.prepare(tmp_path, {}, 152_064, allow_bytes=True)
  assert byte_level.read(tmp_path).encode('ring') == list(b'ring')
  assert 'as bytes' in capsys.readouterr().out


@pytest.fixture
def own(folders, tmp_path):
  """A tokenizer with added tokens of its own, one of which begins like another."""
  description = json.loads((folders['json'] / 'tokenizer.json').read_text())
  last = max(token['id'] for token in description['added_tokens'])
  for number, text in enumerate(('<mesh>', '<mesh>+', '<box>')):
    description['added_tokens'].append({**description['added_tokens'][0], 'id': last + 1 + number, 'content': text})
  (tmp_path / 'tokenizer.json').write_text(json.dumps(description))
  return tmp_path, last + 1


def test_added_tokens_of_ones_own_are_told_and_parsed_where_asked(own, capsys):
  folder, mesh = own
  byte_level.prepare(folder, {}, 1000)
  told = capsys.readouterr().out
  assert '3 added tokens of its own (<box>, <mesh>, <mesh>+)' in told and '--parse=' in told
  assert '<|object_ref_start|>' not in told, "that is the release's"
  words = byte_level.read(folder)
  assert not {mesh, mesh + 1, mesh + 2} & set(words.encode_with_tags('a <mesh> and <box>'))
  byte_level.prepare(folder, {}, 1000, parse=['<mesh>', '<mesh>+'])
  assert '1 added tokens of its own (<box>)' in capsys.readouterr().out
  words = byte_level.read(folder)
  text = 'a <mesh><refine><mesh>+</refine>\xe9 <box>'
  ids = words.encode_with_tags(text)
  assert [i for i in ids if i in (mesh, mesh + 1, mesh + 2)] == [mesh, mesh + 1]
  assert words.decode(ids) == text
  assert words.encode_with_tags('<mesh>') == [mesh]
  assert words.encode_with_tags('x<mesh>+') == [*words.encode('x'), mesh + 1]
  # What a user types stays text.
  assert not {mesh, mesh + 1, mesh + 2} & set(words.encode(text)) and words.decode(words.encode(text)) == text


@pytest.mark.parametrize('token', ['<|im_end|>', '<refine>', '<voxel>', 'ring'])
def test_structure_and_unknown_tokens_are_never_parsed(own, token):
  with pytest.raises(ValueError, match='cannot be parsed from text'):
    byte_level.prepare(own[0], {}, 1000, parse=[token])


def test_what_shortens_or_shuffles_a_text_is_switched_off(folders, tmp_path):
  """Settings that training tools leave in tokenizer.json."""
  description = json.loads((folders['json'] / 'tokenizer.json').read_text())
  description['truncation'] = {'direction': 'Right', 'max_length': 3, 'strategy': 'LongestFirst', 'stride': 0}
  description['padding'] = {'strategy': {'Fixed': 9}, 'direction': 'Right', 'pad_to_multiple_of': None,
                            'pad_id': 5, 'pad_type_id': 0, 'pad_token': 'x'}  # fmt: skip
  description['model']['dropout'] = 0.9
  (tmp_path / 'tokenizer.json').write_text(json.dumps(description))
  words, plain = byte_level.read(tmp_path), byte_level.read(folders['json'])
  assert words.encode(CORPUS[0]) == plain.encode(CORPUS[0])


def test_a_tokenizer_that_changes_texts_is_refused(folders, tmp_path):
  description = json.loads((folders['json'] / 'tokenizer.json').read_text())
  (tmp_path / 'tokenizer.json').write_text(json.dumps({**description, 'normalizer': {'type': 'Lowercase'}}))
  with pytest.raises(ValueError, match='It changes texts'):
    byte_level.read(tmp_path)
