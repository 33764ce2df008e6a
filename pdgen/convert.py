"""Between a released BAGEL-7B-MoT folder and a checkpoint of pdgen, both ways, without having either in memory.

    python -m pdgen.convert import --from=BAGEL-7B-MoT --to=checkpoints/bagel
    python -m pdgen.sample --checkpoint=checkpoints/bagel --prompt='a photo of a red ring'
    python -m pdgen.convert export --from=checkpoints/bagel --to=BAGEL-again

Weights keep their bits and their type, bfloat16 or float32; an export of an import has the bytes of the folder that
it came from.
"""

import argparse
import pathlib
import time
from collections.abc import Sequence

from pdgen.data.tokenizers import byte_level
from pdgen.weights import bagel_convert


def main(arguments: Sequence[str] | None = None):
  """The command line."""
  parser = argparse.ArgumentParser(
    prog='python -m pdgen.convert',
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(dest='command', required=True)
  for name, what in (('import', 'a released folder to a checkpoint'), ('export', 'a checkpoint to a released folder')):
    command = commands.add_parser(name, help=what, allow_abbrev=False)
    command.add_argument('--from', dest='source', required=True, help='folder to read')
    command.add_argument('--to', required=True, help='folder to write, new or empty')
    if name == 'import':
      command.add_argument('--max_latent_size', type=int, help='latent patches a side that the checkpoint must have')
      command.add_argument('--image_size', type=int, help='pixels a side of the pictures to paint')
  flags = vars(parser.parse_args(arguments))
  began, name = time.perf_counter(), flags.pop('command')
  try:
    if name == 'import':
      bagel_convert.import_bagel(**flags, prepare_tokenizer=byte_level.prepare)
    else:
      bagel_convert.export_bagel(**flags)
  except (FileNotFoundError, ValueError) as error:
    parser.error(str(error))
  size = sum(path.stat().st_size for path in pathlib.Path(flags['to']).rglob('*') if path.is_file())
  print(f'{flags["to"]}: {size / 1e9:.2f} GB in {time.perf_counter() - began:.1f} s')


if __name__ == '__main__':
  main()
