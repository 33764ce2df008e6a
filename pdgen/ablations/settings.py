"""AblationsConfig: every budget of the paper's tables in the small, and its default, once.

A config file has a function `get_config()` that returns `to_config_dict(AblationsConfig(..))`; leaves are overridden on
the command line, `--config.process.train.steps=100`.
"""

import dataclasses
from typing import Any

import ml_collections

from pdgen.ablations import arms
from pdgen.construction import build_config
from pdgen.core import config as config_lib
from pdgen.core import dataclass_io


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubsetShares:
  """Shares of the samples of the three subsets, where an arm has them."""

  multi_turn: float = 32_012.0  # (paper) trajectories of each
  conflict: float = 15_201.0
  alignment: float = 15_000.0

  def __post_init__(self):
    for name in ('multi_turn', 'conflict', 'alignment'):
      dataclass_io.positive(self, 'shares', name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaintingConfig:
  """What every trained model is asked to paint: held-out prompts of the world, the same and with the same seeds."""

  per_task: int = 50  # Prompts of each of GenEval's six tasks.
  best_of: int = 3  # Paintings a prompt where one of several is chosen.
  more_flow_steps: int = 16  # Euler steps a picture of `direct`, about what the process takes for its pictures.
  prompts_seed: int = 3
  seed: int = 5
  batch_size: int = 32

  def __post_init__(self):
    dataclass_io.at_least(self, 'painting', per_task=1, best_of=1, more_flow_steps=1, batch_size=1)
    dataclass_io.at_least(self, 'painting', prompts_seed=0, seed=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedConfig:
  """What the estimate of the time rests on until it is measured; changes nothing that is made."""

  gflops: float = 65.0  # Of a training on one core: 115 GFLOP a step in 1.6 to 1.8 s (README).
  painting_seconds: float = 0.6  # Of a painting in process mode on one core, by a half-trained model.
  sample_seconds: float = 0.03  # Of a sample that a subset is built of.
  start_seconds: float = 45.0  # Of a command, its compilation included.
  trial_steps: int = (
    12  # Of the base, on one core, before anything else: its rate takes the place of `gflops`. 0: none.
  )

  def __post_init__(self):
    for name in ('gflops', 'painting_seconds', 'sample_seconds', 'start_seconds'):
      dataclass_io.positive(self, 'speed', name)
    dataclass_io.at_least(self, 'speed', trial_steps=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationsConfig:
  """What is trained, on what, how often, and what it is asked."""

  name: str = 'ablations'
  world: str = 'shapes'  # Whose held-out prompts are painted and judged.
  tables: tuple[str, ...] = tuple(arms.TABLES)
  seeds: tuple[int, ...] = (0, 1, 2)  # Of the tunings; the base and the subsets are the same for all.
  base: config_lib.Config = config_lib.Config()  # The model that paints in one go, from nothing.
  # What every arm takes. Its sources, seed and init_from are the arm's.
  process: config_lib.Config = config_lib.Config()
  direct: config_lib.Config = config_lib.Config()  # The arm that goes on in one go; its steps follow from the FLOPs.
  construct: build_config.BuildConfig = build_config.BuildConfig(world='shapes')  # Of the subsets.
  shares: SubsetShares = SubsetShares()
  painting: PaintingConfig = PaintingConfig()
  speed: SpeedConfig = SpeedConfig()

  def __post_init__(self):
    if unknown := sorted(set(self.tables) - set(arms.TABLES)):
      raise ValueError(f'config.tables names {unknown[0]!r}. Known: {list(arms.TABLES)}')
    if not self.tables or not self.seeds or len(set(self.seeds)) < len(self.seeds):
      raise ValueError(f'config.tables={self.tables} and config.seeds={self.seeds}: at least one each, no seed twice.')
    for name in ('process', 'direct'):
      sampling = getattr(self, name).sampling
      if any(sampling.evaluations(refined=refined) != sampling.flow_steps for refined in (False, True)):
        raise ValueError(
          f'config.{name}.sampling: the tables count flow_steps a picture. Leave solver and draft_steps.'
        )

  @property
  def arms(self) -> tuple[str, ...]:
    """The arms that the tables need."""
    wanted = {arm for name in self.tables for arm in arms.TABLES[name].arms}
    if any(arms.CONFLICT in arms.ARMS[arm] for arm in wanted):
      wanted.add(arms.TRACING)
    return tuple(arm for arm in arms.ARMS if arm in wanted)


def to_config_dict(config: AblationsConfig) -> ml_collections.ConfigDict:
  """As a locked ConfigDict, whose leaves flags may override."""
  return ml_collections.ConfigDict(dataclass_io.to_dict(config))


def from_config_dict(values: ml_collections.ConfigDict | dict[str, Any]) -> AblationsConfig:
  """Inverse of `to_config_dict`. Raises: KeyError naming an unknown key and those that are known; ValueError.

  >>> from_config_dict(to_config_dict(AblationsConfig())) == AblationsConfig()
  True
  """
  to_dict = None if isinstance(values, dict) else getattr(values, 'to_dict', None)
  nested: Any = to_dict() if to_dict else values
  return dataclass_io.from_dict(AblationsConfig, nested, path='config')
