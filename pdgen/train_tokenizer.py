"""Trains a SentencePiece model on the text of a world.

python -m pdgen.train_tokenizer --world=shapes --out=pdgen/data/tokenizers/assets/shapes.model
"""

from pdgen import startup as startup  # First: Ctrl-C while the rest is imported.

# isort: split
import os
from collections.abc import Sequence

from pdgen import flags as flags_lib
from pdgen import worlds
from pdgen.data.tokenizers import sentencepiece


def main(arguments: Sequence[str] | None = None):
  """Trains on a world's text and writes the model."""
  parser = flags_lib.Parser(prog='python -m pdgen.train_tokenizer', description=__doc__)
  parser.add_argument('--world', default='shapes', help='a module of pdgen.worlds with corpus(seed, count)')
  parser.add_argument('--out', type=flags_lib.path, required=True, help='file to write')
  pieces = flags_lib.whole(1, 1_000_000)
  parser.add_argument('--pieces', type=pieces, default=629, help='sentencepiece vocabulary; specials are added to it')
  parser.add_argument('--texts', type=flags_lib.whole(1, 10_000_000), default=20_000, help='texts to train on')
  parser.add_argument('--seed', type=flags_lib.whole(0, 2**32 - 2), default=0, help='of the texts')
  parser.add_argument('--debug', action='store_true', help='show tracebacks')
  flags = parser.parse_args(arguments)
  with flags_lib.one_line_errors(parser.prog, debug=flags.debug):
    out, world = flags_lib.writable_file(flags.out), worlds.get(flags.world)
    model = sentencepiece.train(world.corpus(seed=flags.seed, count=flags.texts), pieces=flags.pieces)
    partial = out.with_name(f'{out.name}.partial')
    partial.write_bytes(model)
    os.replace(partial, out)
    tokenizer = sentencepiece.SentencePiece(model)
    texts = list(world.corpus(seed=flags.seed + 1, count=1_000))
    tokens = sum(len(tokenizer.encode_with_tags(text)) for text in texts)
    words = sum(len(text.split()) for text in texts)
    print(f'{out}: {tokenizer.vocab_size} ids, {tokens / words:.2f} tokens a word of fresh text')


if __name__ == '__main__':
  main()
