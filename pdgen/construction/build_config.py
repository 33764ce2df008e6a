"""BuildConfig: every option of building the three training subsets and its default, once (`python -m pdgen.construct`).

Sizes and shares are those of the paper's Table 1. A config file has a function `get_config()` that returns
`to_config_dict(BuildConfig(..))` and says only what differs; `--config.conflict.samples=100` overrides a leaf.
"""

import dataclasses
import pathlib
from typing import Any

import ml_collections

from pdgen.construction import graph_errors, rewrites, subgraphs, taxonomy
from pdgen.core import dataclass_io
from pdgen.data import splits
from pdgen.services import budget, transport

SUBSETS = MULTI_TURN, CONFLICT, ALIGNMENT = ('multi_turn', 'conflict', 'alignment')
RENDERERS = ('world', 'flux_kontext', 'openai_images', 'painter')
WRITERS = ('template', 'openai')
JUDGES = ('exact', 'openai', 'self')


# Above the classes: defaults are made, and checked, as the module is read.


def _known(section: str, name: str, known: tuple[str, ...]):
  if name not in known:
    raise ValueError(f'config.{section}.name={name!r} is unknown. Known: {list(known)}')


def _needs_endpoint(section: str, part: Any, names: tuple[str, ...]):
  if (part.name in names) != (part.endpoint is not None):
    verb = 'needs' if part.name in names else 'has no use for'
    raise ValueError(f'config.{section}.name={part.name} {verb} config.{section}.endpoint.')


def _kinds(section: str, kinds: tuple[str, ...], known: tuple[str, ...]):
  unknown = [kind for kind in kinds if kind not in known]
  if unknown or not kinds:
    raise ValueError(f'config.{section}.kinds={kinds}: one or more of {list(known)}.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesConfig:
  """Where prompts and their scene graphs come from, and how they are painted."""

  world: float = 0.0  # Share of the world's own prompts, of which the graph is known.
  drawn: float = 1.0  # Share of graphs that are drawn, and the prompt worded from them.
  prompts: float = 0.0  # Share of the prompts of `prompt_file`: by world, template, or a writer.
  prompt_file: str = ''  # Text file, a prompt a line.
  taxonomy_file: str = ''  # JSON; empty: the world's own, without a world the shipped one.
  graphs: taxonomy.Shares = taxonomy.Shares()  # Of drawn graphs.
  operations: rewrites.OperationShares = rewrites.OperationShares()  # Of the paintings of multi_turn.
  max_pictures: int = subgraphs.MAX_PICTURES  # Steps of a painting.

  def __post_init__(self):
    shares = (self.world, self.drawn, self.prompts)
    if min(shares) < 0 or sum(shares) <= 0:
      raise ValueError(f'config.scenes: the shares world, drawn, prompts = {shares} are at least 0, one above.')
    if self.prompts and not self.prompt_file:
      raise ValueError('config.scenes.prompts has a share: give the file of the prompts (config.scenes.prompt_file).')
    dataclass_io.at_least(self, 'scenes', max_pictures=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RendererConfig:
  """What paints the pictures."""

  name: str = 'world'  # One of RENDERERS.
  endpoint: transport.Endpoint | None = None  # Of a service.
  price: budget.Price = budget.Price()
  size: tuple[int, int] = (512, 512)  # (height, width) of a first picture by a service.
  poll_seconds: float = 1.0  # FLUX: between two looks at a task.
  checkpoint: str = ''  # Of a painter.

  def __post_init__(self):
    _known('renderer', self.name, RENDERERS)
    _needs_endpoint('renderer', self, ('flux_kontext', 'openai_images'))
    if self.name == 'painter' and not self.checkpoint:
      raise ValueError('config.renderer.name=painter needs config.renderer.checkpoint.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriterConfig:
  """What words the plans, and parses free prompts."""

  name: str = 'template'  # One of WRITERS.
  endpoint: transport.Endpoint | None = None
  price: budget.Price = budget.Price()
  tries: int = 3  # Answers for a text at most; then the templates' text is taken.
  max_tokens: int = 1024  # Of an answer.
  answer_tokens: int = 120  # Of an answer, for estimates alone.

  def __post_init__(self):
    _known('writer', self.name, WRITERS)
    _needs_endpoint('writer', self, ('openai',))
    dataclass_io.at_least(self, 'writer', tries=1, max_tokens=1, answer_tokens=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeConfig:
  """What judges pictures, and plans of a model's own."""

  name: str = 'exact'  # One of JUDGES.
  endpoint: transport.Endpoint | None = None
  price: budget.Price = budget.Price()
  max_tokens: int = 1024  # Of an answer.
  answer_tokens: int = 80  # Of an answer, for estimates alone.
  picture_tokens: int = 1536  # Of a picture, for budget and estimates.
  checkpoint: str = ''  # Of a painter, for `self`.

  def __post_init__(self):
    _known('judge', self.name, JUDGES)
    _needs_endpoint('judge', self, ('openai',))
    if self.name == 'self' and not self.checkpoint:
      raise ValueError('config.judge.name=self needs config.judge.checkpoint.')
    dataclass_io.at_least(self, 'judge', max_tokens=1, answer_tokens=0, picture_tokens=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BudgetConfig:
  """Limits of all services together, kept over resumes in the output folder; None: no limit."""

  calls: int | None = None
  tokens: int | None = None
  money: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkConfig:
  """How the work is shared. Does not change what is built."""

  processes: int = 0  # Worker processes of an exact world; 0: this one.
  threads: int = 8  # Samples made at once where services are asked.
  chunk: int = 32  # Samples that a process gets at once.
  most_failures: int = 20  # Samples in a row that all failed by services: then the build stops.

  def __post_init__(self):
    dataclass_io.at_least(self, 'work', processes=0, threads=1, chunk=1, most_failures=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiTurnConfig:
  """Multi-turn generation."""

  samples: int = 32_012  # (paper)

  def __post_init__(self):
    dataclass_io.at_least(self, MULTI_TURN, samples=1)

  @property
  def negative(self) -> int:
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConflictConfig:
  """Instruction-intermediate conflict: plans of a model's own, judged against the prompt."""

  samples: int = 15_201  # (paper)
  negative: int = 8_296  # (paper)
  checkpoint: str = ''  # A painter tuned on multi_turn: a shipped model, a folder, a workdir. Empty: all is injected.
  traces: int = 0  # Prompts that it paints; 0: as many as samples.
  batch_size: int = 64  # Traces of a compiled call.
  temperature: float | None = None  # Of its texts; None: the checkpoint's own.
  kinds: tuple[str, ...] = graph_errors.CONFLICTS  # Of injected errors.

  def __post_init__(self):
    dataclass_io.at_least(self, CONFLICT, samples=1, negative=0, traces=0, batch_size=1)
    dataclass_io.at_most(self, CONFLICT, negative=self.samples)
    _kinds(CONFLICT, self.kinds, graph_errors.CONFLICTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
  """Image-instruction alignment: drafts that do not show their plan."""

  samples: int = 15_000  # (paper)
  negative: int = 10_000  # (paper)
  kinds: tuple[str, ...] = graph_errors.KINDS  # Of rendered corruptions.
  source: str = ''  # Folder or tar of bad and good pictures (paper: Gen-Ref); empty: all is rendered.
  format: str = 'gen_ref'  # Of the source (`importers.FORMATS`).
  source_share: float = 0.0  # Of the samples that come from the source.

  def __post_init__(self):
    dataclass_io.at_least(self, ALIGNMENT, samples=1, negative=0, source_share=0)
    dataclass_io.at_most(self, ALIGNMENT, negative=self.samples, source_share=1)
    _kinds(ALIGNMENT, self.kinds, graph_errors.KINDS)
    if self.source_share and not self.source:
      raise ValueError('config.alignment.source_share needs config.alignment.source.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildConfig:
  """What is built, from what, and by whom."""

  name: str = 'construction'
  world: str = ''  # A world that parses, paints and judges exactly; empty: none.
  seed: int = 0
  heldout: float = splits.HELDOUT_SHARE  # Share of the prompts that is held out.
  shard_records: int = 1000  # Of a shard; what is safe after a kill is whole shards.
  tries: int = 3  # Attempts at a sample; every rejected one is listed with its reason.
  scenes: ScenesConfig = ScenesConfig()
  renderer: RendererConfig = RendererConfig()
  writer: WriterConfig = WriterConfig()
  judge: JudgeConfig = JudgeConfig()
  budget: BudgetConfig = BudgetConfig()
  work: WorkConfig = WorkConfig()
  multi_turn: MultiTurnConfig = MultiTurnConfig()
  conflict: ConflictConfig = ConflictConfig()
  alignment: AlignmentConfig = AlignmentConfig()

  def __post_init__(self):
    for field, low in (('seed', 0), ('shard_records', 1), ('tries', 1)):
      if getattr(self, field) < low:
        raise ValueError(f'config.{field}={getattr(self, field)} is too small: it is at least {low}.')
    splits.split_of('', heldout=self.heldout)  # Checks the share.
    exact = [f'config.{n}.name={v}' for n, v in (('renderer', self.renderer.name), ('judge', self.judge.name))]
    if not self.world and (self.renderer.name == 'world' or self.judge.name == 'exact'):
      raise ValueError(f'{" and ".join(exact)}: an exact renderer or judge needs a world (config.world).')
    if self.judge.name == 'exact' and self.renderer.name in ('flux_kontext', 'openai_images'):
      raise ValueError('config.judge.name=exact reads pictures of its world alone: give another judge for a service.')

    if self.judge.name == 'exact' and self.alignment.source_share:
      raise ValueError('config.alignment.source has pictures of no world: give another judge (config.judge.name).')

  @property
  def uses_services(self) -> bool:
    return any(part.endpoint is not None for part in (self.renderer, self.writer, self.judge))

  def subset(self, name: str) -> MultiTurnConfig | ConflictConfig | AlignmentConfig:
    """The options of a subset. Raises: ValueError for an unknown one."""
    if name not in SUBSETS:
      raise ValueError(f'Unknown subset {name!r}. Known: {list(SUBSETS)}')
    return getattr(self, name)


def of_prompts(config: BuildConfig, file: str) -> BuildConfig:
  """The config with the prompts of a file alone. Raises: FileNotFoundError."""
  if not pathlib.Path(file).is_file():
    raise FileNotFoundError(f'{file}: there is no file of prompts.')
  scenes = dataclasses.replace(config.scenes, world=0.0, drawn=0.0, prompts=1.0, prompt_file=file)
  return dataclasses.replace(config, scenes=scenes)


def identity(config: BuildConfig, subset: str) -> dict[str, Any]:
  """What decides the samples of a subset, as JSON: without budgets, workers, prices and patience."""
  values = dataclass_io.to_dict(config)
  kept = {name: values[name] for name in values if name not in {'budget', 'work', *SUBSETS} - {subset}}
  for part in ('renderer', 'writer', 'judge'):
    kept[part] = {k: v for k, v in kept[part].items() if k not in ('price', 'answer_tokens', 'picture_tokens')}
    if kept[part]['endpoint'] is not None:
      kept[part]['endpoint'] = {k: kept[part]['endpoint'][k] for k in ('base_url', 'model')}
  return kept


def to_config_dict(config: BuildConfig) -> ml_collections.ConfigDict:
  """As a locked ConfigDict, whose leaves flags may override."""
  return ml_collections.ConfigDict(dataclass_io.to_dict(config))


def from_config_dict(values: ml_collections.ConfigDict | dict[str, Any]) -> BuildConfig:
  """Inverse of `to_config_dict`. Raises: KeyError naming an unknown key and those that are known; ValueError.

  >>> from_config_dict(to_config_dict(BuildConfig(world='shapes'))) == BuildConfig(world='shapes')
  True
  """
  to_dict = None if isinstance(values, dict) else getattr(values, 'to_dict', None)
  nested: Any = to_dict() if to_dict else values
  return dataclass_io.from_dict(BuildConfig, nested, path='config')
