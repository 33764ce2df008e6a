"""Shows the data of a config: what a trajectory takes, how full the rows are, and one trajectory token by token.

python -m pdgen.inspect_data --config=configs/shapes.py [--index=3]
"""

from pdgen import startup as startup  # First: Ctrl-C while the rest is imported.

# isort: split
from absl import flags
from ml_collections import config_flags

from pdgen import flags as flags_lib
from pdgen.core import config as config_lib
from pdgen.data import pipeline, sequence, sources, statistics, tokenizers
from pdgen.viewing import transcript


def main():
  """The command line."""
  config_flag = config_flags.DEFINE_config_file('config', None, 'File with get_config().')
  index_flag = flags.DEFINE_integer(
    'index', None, 'Number of a sample to print token by token, in place of the report.', 0
  )
  flags.mark_flags_as_required(['config'])

  def run(_: flags_lib.Kept):
    config = config_lib.from_config_dict(config_flag.value)
    source = sources.from_config(config)
    if index_flag.value is not None:
      sample = pipeline.Samples(config, source)(index_flag.value)
      print(transcript.printable(sample.name))
      print(sequence.describe(sample.row, tokenizers.load(config.data.tokenizer)))
      return
    for name, value in statistics.report(config, source=source).items():
      print(f'{name:<32}{value:10.3f}')

  flags_lib.run_absl('python -m pdgen.inspect_data', run)


if __name__ == '__main__':
  main()
