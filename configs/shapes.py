"""The small world of coloured shapes, trained from nothing on a laptop's CPU in under an hour.

python -m pdgen.train --config=configs/shapes.py --workdir=out/shapes
"""

from pdgen.core import config
from pdgen.worlds import shapes


def get_config():
  sequence = config.SequenceConfig(
    noised_copies=3,  # Contexts cost most of a step: each is used for three timesteps.
    drop_text=0.1,
    verdict_weight=4.0,  # A handful of tokens decides whether a fault is found.
    fault_weight=3.0,
    decisive=shapes.DECISIVE,
    faults=shapes.FAULTS,
  )
  return config.to_config_dict(
    config.Config(
      name='shapes',
      model=config.ModelConfig(prediction='x', min_t=0.2, attention='blockwise', scan_layers=False),
      data=config.DataConfig(
        sources=(
          config.SourceConfig(
            kind='world',
            name='shapes',
            weight=0.75,
            mixture=(('multi_turn', 0.33), ('conflict', 0.21), ('misalignment', 0.42), ('direct', 0.04)),
          ),
          config.SourceConfig(kind='self_sampled', weight=0.25),
        ),
        sequence=sequence,
        batch_size=4,
        und_tokens=768,
        gen_tokens=400,
        pictures=24,
        packing_bins=24,
      ),
      train=config.TrainConfig(
        steps=3400,
        # 2/3 of AdamW's steps to the same losses (docs/experiments.md#optimizer).
        optimizer='muon',
        learning_rate=4e-3,
        b2=0.98,  # Few steps, changing gradients: a shorter memory than usual.
        warmup_steps=100,
        ema_decay=0.998,
        lambda_ce=0.2,
        timestep_shift=4.0,
        log_every=25,
        eval_every=1000,
        checkpoint_every=300,
        # Synthetic errors do not look like the model's own: show it those, early ones and late ones.
        self_sample_steps=(600, 1100, 1600),
        self_samples=1024,
      ),
      # Below t = 0.6 too: else a ring's hole fills up where rings are rare (docs/experiments.md#guidance-interval).
      sampling=config.SamplingConfig(max_tokens=896, max_text_tokens=224, max_pictures=8, guidance_interval=(0.3, 1.0)),
      mesh=config.MeshConfig(data=2, fsdp=1, cpu_devices=2),
    )
  )
