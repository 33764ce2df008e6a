"""The twin of configs/shapes.py that paints in one go: same model and optimizer, no process, 12 % more tokens a step.

python -m pdgen.train --config=configs/shapes_direct.py --workdir=out/shapes_direct
"""

import pathlib
import runpy


def get_config():
  shapes = runpy.run_path(str(pathlib.Path(__file__).with_name('shapes.py')))
  config = shapes['get_config']()
  config.name = 'shapes_direct'
  config.data.sources = ({'kind': 'world', 'name': 'shapes', 'mixture': (('direct', 1.0),)},)
  # A direct trajectory is 17 und and 64 gen tokens: other budgets fill the rows. 8 x 656 tokens are about 4 x 1,168.
  config.data.batch_size = 8
  config.data.und_tokens = 144
  config.data.gen_tokens = 512
  config.train.self_sample_steps = ()  # There is no draft to inspect.
  return config
