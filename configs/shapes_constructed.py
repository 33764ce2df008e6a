"""The shapes model, trained on the three subsets as record sets that were built before, in the paper's mix.

python -m pdgen.train --config=configs/shapes_constructed.py --workdir=out/shapes_constructed

The sets are out/construct/multi_turn, conflict and alignment, each with train/ and heldout/. The world itself is no
source: nothing else than what the sets hold is learned, and no drafts of the model's own. Score what comes of it with
`python -m pdgen.evaluate geneval --checkpoint=out/shapes_constructed/final --world=shapes`.
"""

import pathlib
import runpy

SIZES = {'multi_turn': 32_012, 'conflict': 15_201, 'alignment': 15_000}  # (paper)


def get_config():
  shapes = runpy.run_path(str(pathlib.Path(__file__).with_name('shapes.py')))
  config = shapes['get_config']()
  config.name = 'shapes_constructed'
  config.data.sources = tuple(
    {'kind': 'records', 'name': f'out/construct/{subset}/train', 'weight': size / sum(SIZES.values())}
    for subset, size in SIZES.items()
  )
  config.data.too_long = 'skip'  # A painting of many objects.
  config.train.self_sample_steps = ()  # Drafts of the model's own are in the conflict set.
  config.train.eval_every = 0  # Pictures are scored by the world of a source, and there is none.
  return config
