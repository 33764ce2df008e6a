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

from pdgen import startup as startup  # First: Ctrl-C while the rest is imported.

# isort: split
import functools
import pathlib
import time
from collections.abc import Sequence

from pdgen import flags as flags_lib
from pdgen.data.tokenizers import byte_level
from pdgen.weights import bagel_convert


def main(arguments: Sequence[str] | None = None):
  """The command line."""
  parser = _parser()
  flags = vars(parser.parse_args(arguments))
  name, debug, to = flags.pop('command'), flags.pop('debug'), flags['to']
  with flags_lib.one_line_errors(f'{parser.prog} {name}', debug=debug) as kept:
    began, kept.words = time.perf_counter(), f'Nothing was written to {to}.'
    try:
      if name == 'import':
        options = dict(allow_bytes=flags.pop('bytes'), parse=tuple(flags.pop('parse')))
        bagel_convert.import_bagel(**flags, prepare_tokenizer=functools.partial(byte_level.prepare, **options))
      else:
        bagel_convert.export_bagel(**flags)
    except FileNotFoundError:
      raise
    except OSError as error:  # A full disk does not say whose.
      raise OSError(f'{to} was not written: {error}') from error
    kept.words = f'{to} is written.'
    size = sum(path.stat().st_size for path in pathlib.Path(to).rglob('*') if path.is_file())
    print(f'{to}: {size / 1e9:.2f} GB in {time.perf_counter() - began:.1f} s')


def _parser() -> flags_lib.Parser:
  parser = flags_lib.Parser(prog='python -m pdgen.convert', description=__doc__)
  commands = parser.add_subparsers(dest='command', required=True, metavar='import | export')
  for name, what in (('import', 'a released folder to a checkpoint'), ('export', 'a checkpoint to a released folder')):
    command, path = commands.add_parser(name, help=what), flags_lib.path
    command.add_argument('--from', dest='source', type=path, required=True, help='folder to read')
    command.add_argument('--to', type=path, required=True, help='folder to write, new or empty')
    command.add_argument('--debug', action='store_true', help='show tracebacks')
    if name == 'import':
      base = 'a download of BAGEL-7B-MoT: fills in files and tensors that FROM lacks'
      command.add_argument('--base', type=path, help=base)
      weights = 'a *.safetensors or its *.index.json: a name in FROM, or a path; without: ema before model'
      command.add_argument('--weights', type=path, help=weights)
      size, pixels = flags_lib.whole(1, 4096), flags_lib.whole(1, 65_536)
      command.add_argument('--max_latent_size', type=size, help='latent patches a side; beats config.json')
      command.add_argument('--image_size', type=pixels, help='pixels a side of the pictures to paint')
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
  return parser


if __name__ == '__main__':
  main()
