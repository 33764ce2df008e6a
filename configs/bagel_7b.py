"""BAGEL-7B-MoT, all parameters, as the paper fine-tunes it: 8 H100s, 10,000 steps.

python -m pdgen.convert import --from=BAGEL-7B-MoT --to=checkpoints/bagel --image_size=512
python -m pdgen.train --config=configs/bagel_7b.py --workdir=out/bagel_7b

Its data are record sets of trajectories of 512-pixel pictures (`pdgen/data/records.py`): the paper's three subsets, in
data/multi_turn/train and so on, or whatever --config.data.sources="('records:FOLDER',)" names. On fewer
devices, or on ones with less memory, --config.train.accumulate=8 computes a row at a time.
"""

from pdgen.core import config
from pdgen.models import presets

SIZES = {'multi_turn': 32_012, 'conflict': 15_201, 'alignment': 15_000}  # (paper) trajectories of each subset


def get_config():
  model = presets.at_image_size(presets.bagel_7b(), 512)  # (ours) five 1024-pixel pictures exceed the paper's rows
  return config.to_config_dict(
    config.Config(
      name='bagel_7b',
      model=model,
      data=config.DataConfig(
        sources=tuple(
          config.SourceConfig(kind='records', name=f'data/{subset}/train', weight=size / sum(SIZES.values()))
          for subset, size in SIZES.items()
        ),
        tokenizer='checkpoints/bagel/source',
        batch_size=8,
        shards=8,  # 1, 2, 4 or 8 processes can take the run over and see the same batches.
        # Together 33,000 tokens a row (paper). A picture takes 2 x 1,024 gen tokens and 1,375 und tokens, and its words
        # some 200 more: the same ratio as these.
        und_tokens=14_400,
        gen_tokens=18_600,
        pictures=9,
      ),
      train=config.TrainConfig(
        steps=10_000,  # (paper)
        init_from='checkpoints/bagel',
        learning_rate=2e-5,  # (paper)
        warmup_steps=500,  # (ours) the paper is silent
        b2=0.95,
        ema_decay=0.995,
        loss_chunk=1024,  # The logits of a row at once would be 9 GB.
        timestep_shift=4.0,  # (ours) the paper is silent
        checkpoint_every=500,
      ),
      sampling=presets.bagel_sampling(model),
      mesh=config.MeshConfig(fsdp=-1),
    )
  )
