"""The twin of configs/shapes.py that paints in one go: same model, data budget and training, without any process.

python -m pdgen.train --config=configs/shapes_direct.py --workdir=out/shapes_direct
"""

import pathlib
import runpy


def get_config():
  shapes = runpy.run_path(str(pathlib.Path(__file__).with_name('shapes.py')))
  config = shapes['get_config']()
  config.name = 'shapes_direct'
  config.data.mixture = (('direct', 1.0),)
  config.train.self_sample_steps = ()  # There is no draft to inspect.
  return config
