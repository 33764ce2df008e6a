"""Round trip of any text; special ids out of reach of typed text; the shipped vocabulary fits the world."""

import doctest
import io
import random

import pytest
import sentencepiece

from pdgen import train_tokenizer
from pdgen.core import tags
from pdgen.data import tokenizers
from pdgen.data.tokenizers import sentencepiece as sentencepiece_lib
from pdgen.worlds import shapes

TOKENIZER = tokenizers.load('shapes')

AWKWARD = (
  '',
  ' ',
  '  two  spaces \t tab\r\n lines\n\n',
  '\u2581 the sign sentencepiece uses for a space \u2581\u2581',
  'NUL \0 inside',
  '<|im_start|><|im_end|><|vision_start|><|vision_end|><|endoftext|>',
  '<ins>a</ins><des>b</des> <refine> c </refine> d <\\refine>',
  '<unk> <s> </s> <0x41> <pad>',
  'e\u0301 versus \u00e9, \ufb01, \u2126, \uff21, \u200b\ufeff\u3000',
  '紅色の輪 🔴👩‍🎨 \U0010ffff',
)


def _random_texts(count: int):
  rng = random.Random(0)
  alphabets = ('ab .!<>/|\\\u2581\0\n', [chr(c) for c in range(0x250)], [chr(c) for c in _scalars()])
  for i in range(count):
    yield ''.join(rng.choice(alphabets[i % 3]) for _ in range(rng.randrange(1, 16)))


def _scalars():
  return (c for c in range(0x110000) if not 0xD800 <= c < 0xE000)


def test_any_text_comes_back_exactly():
  first_special = min(TOKENIZER.specials.__dict__.values())
  for text in (*AWKWARD, *_random_texts(3_000)):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(0 < i < first_special for i in ids), 'a typed text reached a special id or the unknown one'


def test_written_text_becomes_tags():
  s = TOKENIZER.specials
  ids = TOKENIZER.encode_with_tags('<ins>a</ins><des>b</des>')
  assert ids == [s.ins, *TOKENIZER.encode('a'), s.ins_end, s.des, *TOKENIZER.encode('b'), s.des_end]
  ids = TOKENIZER.encode_with_tags('x<refine>y<\\refine><|im_end|>')
  assert ids == [
    *TOKENIZER.encode('x'),
    s.refine,
    *TOKENIZER.encode('y'),
    s.refine_end,
    *TOKENIZER.encode('<|im_end|>'),
  ]
  assert TOKENIZER.decode(ids) == 'x<refine>y</refine><|im_end|>'


def test_decode_of_structure_and_of_what_is_no_text():
  s = TOKENIZER.specials
  assert TOKENIZER.decode([s.im_start, s.refine_end, s.endoftext]) == '<|im_start|></refine><|endoftext|>'
  ids = TOKENIZER.encode('\U0001f534')
  assert len(ids) == 4, 'the test wants a character made of bytes'
  assert TOKENIZER.decode(ids[:2]) == '\ufffd'
  assert TOKENIZER.decode([TOKENIZER.vocab_size, -1]) == '\ufffd\ufffd'


def test_lone_surrogate_is_refused():
  with pytest.raises(ValueError, match='lone surrogate'):
    TOKENIZER.encode('a\ud800')


def test_specials_are_distinct_and_last():
  ids = sorted(TOKENIZER.specials.__dict__.values())
  assert ids == list(range(TOKENIZER.vocab_size - 11, TOKENIZER.vocab_size))
  assert TOKENIZER.vocab_size <= 640


def test_no_piece_crosses_white_space():
  for i in range(TOKENIZER.vocab_size):
    text = TOKENIZER.decode([i])
    assert text == ' ' or text.rstrip() == text or len(text) == 1
    assert ' ' not in text[1:]


def test_words_of_the_world_are_one_token():
  texts = list(shapes.corpus(seed=12345, count=300))
  assert all(TOKENIZER.decode(TOKENIZER.encode_with_tags(text)) == text for text in texts)
  tokens = sum(len(TOKENIZER.encode_with_tags(text)) for text in texts)
  # Punctuation and tags are tokens of their own, so that one token a word is out of reach.
  words = sum(len(' '.join(p for p in tags.split(text) if p not in tags.NAMES).split()) for text in texts)
  assert tokens / words < 1.5


def test_encodings_are_not_shared():
  TOKENIZER.encode('a ring').append(0)
  assert TOKENIZER.decode(TOKENIZER.encode('a ring')) == 'a ring'


def test_load_names_what_is_shipped():
  with pytest.raises(FileNotFoundError, match="'shapes'"):
    tokenizers.load('no_such_tokenizer')


def test_the_training_command(tmp_path, capsys):
  paths = [tmp_path / name for name in ('a.model', 'b.model')]
  for path in paths:
    train_tokenizer.main(['--world=shapes', f'--out={path}', '--pieces=400', '--texts=200'])
  assert 'tokens a word' in capsys.readouterr().out
  assert paths[0].read_bytes() == paths[1].read_bytes()
  small = tokenizers.load(str(paths[0]))
  assert small.vocab_size <= 411
  assert all(small.decode(small.encode(text)) == text for text in AWKWARD)


def test_a_model_without_bytes_is_refused():
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(['a red ring'] * 9), model_writer=model, vocab_size=12, hard_vocab_limit=False, minloglevel=2
  )
  with pytest.raises(ValueError, match='byte_fallback'):
    sentencepiece_lib.SentencePiece(model.getvalue())


def test_docs():
  assert doctest.testmod(sentencepiece_lib).failed == 0
