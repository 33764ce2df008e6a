"""Shows the data of a config: what a trajectory takes and how full the rows are, one sample token by token, a page.

python -m pdgen.inspect_data --config=configs/shapes.py [--index=3 | --page=out/page [--count=24]]
"""

from pdgen import startup as startup  # First: Ctrl-C while the rest is imported.

# isort: split
from absl import flags
from ml_collections import config_flags

from pdgen import dataset_page
from pdgen import flags as flags_lib
from pdgen.core import config as config_lib
from pdgen.data import pipeline, sequence, sources, statistics, tokenizers
from pdgen.viewing import transcript


def show(config: config_lib.Config, *, index: int | None = None):
  """Prints the report of a config's data, or the sample of that number token by token."""
  source = sources.from_config(config)
  if index is not None:
    sample = pipeline.Samples(config, source)(index)
    print(transcript.printable(sample.name))
    print(sequence.describe(sample.row, tokenizers.load(config.data.tokenizer)))
    return
  for name, value in statistics.report(config, source=source).items():
    print(f'{name:<32}{value:10.3f}')


def main():
  """The command line."""
  config_flag = config_flags.DEFINE_config_file('config', None, 'File with get_config().')
  index_flag = flags.DEFINE_integer(
    'index', None, 'Number of a sample to print token by token, in place of the report.', 0
  )
  page_flag = flags.DEFINE_string('page', None, 'Folder for a page of samples to look at, in place of the report.')
  count_flag = flags.DEFINE_integer('count', 24, 'Samples on the page.', 1, flags_lib.MANY)
  flags.mark_flags_as_required(['config'])
  flags.mark_flags_as_mutual_exclusive(['index', 'page'])

  def run(_: flags_lib.Kept):
    config = config_lib.from_config_dict(config_flag.value)
    if page_flag.value == '':
      raise ValueError('--page: the name is empty.')
    if page_flag.value is not None:
      folder = flags_lib.writable_folder(page_flag.value)
      print(dataset_page.write_config(config, folder, count=count_flag.value))
      return
    show(config, index=index_flag.value)

  flags_lib.run_absl('python -m pdgen.inspect_data', run)


if __name__ == '__main__':
  main()
