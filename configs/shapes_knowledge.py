"""Does it help to write down what is meant? Prompts that name things by facts, tuned with the process or without.

python -m pdgen.train --config=configs/shapes_knowledge.py --workdir=out/knowledge
python -m pdgen.train --config=configs/shapes_knowledge.py:direct --workdir=out/knowledge_direct
python -m pdgen.evaluate knowledge --checkpoint=out/knowledge --per_kind=50
python -m pdgen.evaluate knowledge --checkpoint=out/knowledge_direct --per_kind=50 --mode=direct

Both begin with the shipped model and take the same FLOPs. That model has learned the process: the plain prompts, which
are painted beside those with facts, say what each of the two has of it, and `cost` is what the facts take away. From
nothing: --config.train.init_from= --config.train.steps=3400 (direct: 3678).
"""

import pathlib
import runpy

from pdgen.core import config as config_lib
from pdgen.cost import training_flops

KNOWLEDGE = 0.6  # Share of the prompts; the rest are plain, so that plain prompts are not forgotten.
MIXTURES = {
  'process': (('multi_turn', 0.4), ('conflict', 0.2), ('misalignment', 0.4)),
  'direct': (('direct', 1.0),),
}


def get_config(mode: str = 'process'):
  """mode: `process` or `direct`, after a colon on the command line."""
  if mode not in MIXTURES:
    raise ValueError(f'configs/shapes_knowledge.py:{mode} is unknown. Known: {list(MIXTURES)}')
  shapes = runpy.run_path(str(pathlib.Path(__file__).with_name('shapes.py')))
  config = shapes['get_config']()
  config.name = 'shapes_knowledge' if mode == 'process' else 'shapes_knowledge_direct'
  config.train.init_from = 'shapes'
  config.train.learning_rate = 1e-3
  config.train.warmup_steps = 20
  config.train.self_sample_steps = ()
  config.train.steps = 600
  config.train.eval_every = 200
  config.data.und_tokens = 832  # Facts take more words than what they resolve to.
  config.data.sources = ({'kind': 'world', 'name': 'shapes', 'mixture': MIXTURES[mode], 'knowledge': KNOWLEDGE},)
  if mode == 'direct':
    compute = training_flops.train_flops(config_lib.from_config_dict(config))['total'] * config.train.steps
    config.data.batch_size = 8  # A direct trajectory has fewer words a picture: other budgets fill the rows.
    config.data.und_tokens = 208
    config.data.gen_tokens = 512
    config.train.steps = round(compute / training_flops.train_flops(config_lib.from_config_dict(config))['total'])
  return config
