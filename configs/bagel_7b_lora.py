"""BAGEL-7B-MoT with adapters, on one 80 GB GPU: docs/fine_tune_bagel.md.

python -m pdgen.convert import --from=BAGEL-7B-MoT --to=checkpoints/bagel --image_size=512
python -m pdgen.train --config=configs/bagel_7b_lora.py --workdir=out/mine

Learns from mine_set/train, or what --config.data.sources="('records:FOLDER',)" names. On more GPUs:
--config.train.accumulate=1 for eight, 4 for two. All but the adapters, the embedding and the head is frozen, in the
type it came in.
"""

import pathlib
import runpy


def get_config():
  bagel = runpy.run_path(str(pathlib.Path(__file__).with_name('bagel_7b.py')))
  config = bagel['get_config']()
  config.name = 'bagel_7b_lora'
  config.model.lora = {'rank': 32, 'alpha': 64.0, 'kernels': '(und|gen)/(q|k|v|o|gate|up|down)'}  # (ours)
  config.data.sources = ({'kind': 'records', 'name': 'mine_set/train'},)
  config.data.too_long = 'skip'  # Of other people's trajectories some are.
  # Adapters always learn. So do the rows of <ins>, <des> and <refine>, which the release has no use for.
  config.train.freeze = ('trunk', 'vit', 'time', 'latent_in', 'latent_out')
  config.train.accumulate = 8  # One row of the batch at a time.
  config.train.steps = 2000
  config.train.learning_rate = 1e-4  # (ours) adapters begin at zero and take larger steps
  config.train.warmup_steps = 50
  config.train.checkpoint_every = 200
  return config
