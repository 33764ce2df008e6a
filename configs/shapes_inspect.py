"""Second stage of configs/shapes.py: the trained model learns to see faults, its own too. Gives the shipped model.

python -m pdgen.train --config=configs/shapes_inspect.py --workdir=out/shapes_inspect

The first stage shows the model drafts of its own that it painted badly early on. What its end result still does wrong
is rare and of other kinds (rings whose holes fill up): many drafts are needed to find some. And it sees most faults
before it says so: weight on the words for what is seen moves that threshold, and a low learning rate keeps the
painting.
"""

import pathlib
import runpy


def get_config():
  shapes = runpy.run_path(str(pathlib.Path(__file__).with_name('shapes.py')))
  config = shapes['get_config']()
  config.name = 'shapes_inspect'
  config.seed = 1  # other stories than the first stage's
  config.data.sequence.faults += (r'(?<=\bElse: shown )(?!nothing\b)\w+',)  # what is there besides the plan
  config.data.sequence.fault_weight = 8.0
  config.train.init_from = 'out/shapes/final'
  config.train.steps = 600
  config.train.learning_rate = 6e-4
  config.train.warmup_steps = 20
  config.train.self_sample_steps = (1,)
  config.train.self_samples = 4096
  config.train.eval_every = 300
  return config
