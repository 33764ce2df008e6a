"""Trains a SentencePiece model on the text of a world.

python -m pdgen.train_tokenizer --world=shapes --out=pdgen/data/tokenizers/assets/shapes.model
"""

import argparse
import os
import pathlib
from collections.abc import Sequence

from pdgen import worlds
from pdgen.data.tokenizers import sentencepiece


def main(arguments: Sequence[str] | None = None):
  """Trains on a world's text and writes the model."""
  parser = argparse.ArgumentParser(description='Train a tokenizer on the text of a world.')
  parser.add_argument('--world', default='shapes', help='a module of pdgen.worlds with corpus(seed, count)')
  parser.add_argument('--out', required=True, help='file to write')
  parser.add_argument('--pieces', type=int, default=629, help='sentencepiece vocabulary; specials are added to it')
  parser.add_argument('--texts', type=int, default=20_000, help='texts to train on')
  parser.add_argument('--seed', type=int, default=0)
  flags = parser.parse_args(arguments)
  world = worlds.get(flags.world)
  model = sentencepiece.train(world.corpus(seed=flags.seed, count=flags.texts), pieces=flags.pieces)
  partial = f'{flags.out}.partial'
  pathlib.Path(partial).write_bytes(model)
  os.replace(partial, flags.out)
  tokenizer = sentencepiece.SentencePiece(model)
  texts = list(world.corpus(seed=flags.seed + 1, count=1_000))
  tokens = sum(len(tokenizer.encode_with_tags(text)) for text in texts)
  words = sum(len(text.split()) for text in texts)
  print(f'{flags.out}: {tokenizer.vocab_size} ids, {tokens / words:.2f} tokens a word of fresh text')


if __name__ == '__main__':
  main()
