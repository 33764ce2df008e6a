"""Between a released BAGEL-7B-MoT folder and a checkpoint of pdgen, both ways, without having either in memory.

    python -m pdgen.convert import --from=BAGEL-7B-MoT --to=checkpoints/bagel
    python -m pdgen.sample --checkpoint=checkpoints/bagel --prompt='a photo of a red ring'
    python -m pdgen.convert export --from=checkpoints/bagel --to=BAGEL-again
    python -m pdgen.convert import --from=my-finetune --base=BAGEL-7B-MoT --to=checkpoints/mine

A fine-tune that lacks json files, the VAE, the tokenizer or some of the tensors takes them from --base.
Weights keep their bits and their type, bfloat16 or float32 (float16 is kept as float32); an export of an import has the
bytes of the folder that it came from. The `final` folder of a run that began with an import exports, too: what did not
learn bit for bit, what learned in the type it came in, or with --dtype=float32 unrounded; adapters merged, or
with --adapters=apart beside their matrices.
"""

import argparse
import functools
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
      command.add_argument('--base', help='a download of BAGEL-7B-MoT: fills in files and tensors that FROM lacks')
      command.add_argument(
        '--weights', help='a *.safetensors or its *.index.json: a name in FROM, or a path; without: ema before model'
      )
      command.add_argument('--max_latent_size', type=int, help='latent patches a side; beats config.json')
      command.add_argument('--image_size', type=int, help='pixels a side of the pictures to paint')
      command.add_argument(
        '--bytes', action='store_true', help='a folder without a tokenizer gets one of bytes, however many rows it has'
      )
      command.add_argument(
        '--parse', action='append', default=[], metavar='TOKEN',
        help='an added token of the model (<mesh>) that texts of training data may spell; may be repeated',
      )  # fmt: skip
    else:
      types = (bagel_convert.AS_SOURCE, bagel_convert.FLOAT32)
      command.add_argument('--dtype', choices=types, default=types[0], help='of what learned; source: as imported')
      places = (bagel_convert.MERGED, bagel_convert.APART)
      command.add_argument('--adapters', choices=places, default=places[0], help='apart: TO/adapter, as PEFT reads it')
  flags = vars(parser.parse_args(arguments))
  began, name = time.perf_counter(), flags.pop('command')
  try:
    if name == 'import':
      options = dict(allow_bytes=flags.pop('bytes'), parse=tuple(flags.pop('parse')))
      bagel_convert.import_bagel(**flags, prepare_tokenizer=functools.partial(byte_level.prepare, **options))
    else:
      bagel_convert.export_bagel(**flags)
  except (FileNotFoundError, ValueError) as error:
    parser.error(str(error))
  except OSError as error:  # A full disk does not say whose.
    parser.error(f'{flags["to"]} was not written: {error}')
  except KeyboardInterrupt:
    parser.exit(130, f'Stopped: nothing was written to {flags["to"]}.\n')
  size = sum(path.stat().st_size for path in pathlib.Path(flags['to']).rglob('*') if path.is_file())
  print(f'{flags["to"]}: {size / 1e9:.2f} GB in {time.perf_counter() - began:.1f} s')


if __name__ == '__main__':
  main()
