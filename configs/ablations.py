"""The paper's tables in the small world, in some six hours of two cores; `:quick`, two of them, in about one.

python -m pdgen.evaluate ablations --config=configs/ablations.py --out=out/ablations --jobs=2 --dry_run
python -m pdgen.evaluate ablations --config=configs/ablations.py --out=out/ablations --jobs=2
python -m pdgen.evaluate ablations --config=configs/ablations.py:quick --out=out/ablations_quick --jobs=2

One base paints in one go: the BAGEL of this world. Every arm tunes it on constructed subsets, with equal FLOPs. A
process has one core: several run side by side.
"""

import dataclasses
import pathlib
import runpy

from pdgen.ablations import settings
from pdgen.construction import build_config, taxonomy
from pdgen.core import config as config_lib

BUDGETS = {
  'full': dict(
    base=2400, steps=750, samples=2400, per_task=50, best_of=3, seeds=(0, 1, 2),
    tables=('compute', 'augmentation', 'critique', 'subsets'),
  ),
  # Trainings differ so much by seed that one seed would say nothing.
  'quick': dict(base=700, steps=300, samples=900, per_task=16, best_of=2, seeds=(0, 1), tables=('compute', 'subsets')),
}  # fmt: skip


def get_config(budget: str = 'full'):
  """budget: one of BUDGETS, after a colon on the command line."""
  if budget not in BUDGETS:
    raise ValueError(f'configs/ablations.py:{budget} is unknown. Known: {list(BUDGETS)}')
  size = BUDGETS[budget]
  base = _config('shapes_direct')
  # Constructed texts are shorter than the world's own, prompts of drawn scenes longer: budgets that their rows fill.
  direct = _rows(base, und_tokens=176)
  process = _rows(_config('shapes_constructed'), und_tokens=576, gen_tokens=432)
  return settings.to_config_dict(
    settings.AblationsConfig(
      name='ablations' if budget == 'full' else f'ablations_{budget}',
      tables=size['tables'],
      seeds=size['seeds'],
      base=_trained(base, steps=size['base']),
      process=_trained(process, steps=size['steps'], learning_rate=3e-3, warmup_steps=30),
      direct=_trained(direct, learning_rate=3e-3, warmup_steps=30),  # As many steps as the process has FLOPs.
      construct=_construct(size['samples']),
      painting=settings.PaintingConfig(per_task=size['per_task'], best_of=size['best_of']),
    )
  )


def _config(name: str) -> config_lib.Config:
  """A neighbour of this file, for one core."""
  values = runpy.run_path(str(pathlib.Path(__file__).with_name(f'{name}.py')))['get_config']()
  config = config_lib.from_config_dict(values)
  return dataclasses.replace(config, mesh=config_lib.MeshConfig(data=1, fsdp=1, cpu_devices=1))


def _rows(config: config_lib.Config, **budgets) -> config_lib.Config:
  return dataclasses.replace(config, data=dataclasses.replace(config.data, too_long='skip', **budgets))


def _trained(config: config_lib.Config, **changes) -> config_lib.Config:
  shared = dict(self_sample_steps=(), eval_every=0, checkpoint_every=100)
  return dataclasses.replace(config, train=dataclasses.replace(config.train, **shared, **changes))


def _construct(samples: int) -> build_config.BuildConfig:
  half = samples // 2  # The paper has about half as many of each critique subset, and these shares of -.
  return build_config.BuildConfig(
    name='ablations',
    world='shapes',
    # Half of the prompts are such as are scored; drawn scenes make paintings of several steps.
    scenes=build_config.ScenesConfig(
      world=0.5, drawn=0.5, graphs=taxonomy.Shares(groups=(2, 3), counted=0.2, most=2, relation=0.4, second=0.0)
    ),
    multi_turn=build_config.MultiTurnConfig(samples=samples),
    # The checkpoint that writes the traces is the arm `multi_turn` of the first seed.
    conflict=build_config.ConflictConfig(
      samples=half, negative=round(half * 8296 / 15201), traces=half // 2, temperature=1.0
    ),
    alignment=build_config.AlignmentConfig(samples=half, negative=round(half * 2 / 3)),
  )
