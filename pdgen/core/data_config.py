"""The part of a configuration that says what is learned from; `core.config` has the rest, and all of these names."""

import dataclasses
import re

from pdgen.core import dataclass_io


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceConfig:
  """How a trajectory becomes tokens (docs/design.md, section 2).

  Attributes:
    opening: words before the prompt in process mode (paper).
    direct_opening: words before the prompt in direct mode.
    noised_copies: noised copies of one target picture that share one context, each with its own timestep.
    drop_text: probability, for each noised copy, of not seeing the texts since the picture before (for the first
      picture: the prompt too), as the text-dropped branch of guidance does.
    drop_clean, drop_vit: probability, for each sample, that its clean (its ViT) copies are left out. Where a
      picture keeps neither, the texts after it carry no cross-entropy: they would teach to write unseen.
    plan_weight, corrected_plan_weight, rejected_plan_weight, inspection_weight, text_weight: cross-entropy weight of
      the tokens of each kind of text (`text`: thoughts, answers and all else that is written without a process). 0
      leaves a kind out; docs/design.md#what-is-learned has a table of this and of the next two.
      A plan is rejected where a corrected one follows, a draft where its inspection asks for a refined picture.
    boundary_weight: of the boundary labels (what comes after a text or a picture).
    draft_weight, rejected_draft_weight, refined_weight: flow weight of each kind of picture. 0: without noised copies.
    verdict_weight: of what decides: the decisive words of an inspection, and whether a draft ends the trajectory.
    decisive: regular expressions; what they match in an inspection is decisive. A world has those of its wording
      (`worlds.shapes.DECISIVE`: verdicts, and what is shown, which in a faulty draft is not what was planned).
    fault_weight: factor on the weight of what `faults` match in an inspection. What is shown is mostly what was
      planned, so that a model in doubt repeats the plan; this makes the odds for that so many times smaller, at the
      price of false alarms.
    faults: regular expressions (`worlds.shapes.FAULTS`: what is shown and not planned).
    length_weighting: divide the weights of a text by sqrt(its tokens) (BAGEL's ce_loss_reweighting).
  """

  opening: str = 'Please create the image step-by-step: '
  direct_opening: str = ''
  noised_copies: int = 1
  drop_text: float = 0.1
  drop_clean: float = 0.0
  drop_vit: float = 0.0
  plan_weight: float = 1.0
  corrected_plan_weight: float = 1.0
  rejected_plan_weight: float = 0.0  # (ours)
  inspection_weight: float = 1.0
  text_weight: float = 1.0
  verdict_weight: float = 1.0
  decisive: tuple[str, ...] = ('<refine>',)
  fault_weight: float = 1.0
  faults: tuple[str, ...] = ()
  boundary_weight: float = 1.0
  draft_weight: float = 1.0
  rejected_draft_weight: float = 0.0  # (ours)
  refined_weight: float = 1.0
  length_weighting: bool = False

  def __post_init__(self):
    weights = {field.name: 0 for field in dataclasses.fields(self) if field.name.endswith('_weight')}
    dataclass_io.at_least(self, 'data.sequence', **weights)
    for name in ('decisive', 'faults'):
      dataclass_io.patterns(self, 'data.sequence', name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
  """Trajectories to learn from: `data.sources` says how they are read.

  Attributes:
    kind: `world` (made on the fly), `records` (a record set on disk, `data.records`), or `self_sampled` (drafts that
      the model has painted itself during training; see TrainConfig.self_sample_steps).
    name: of the world, or folder of the record set.
    weight: share of the samples, relative to the other sources; a source that is empty so far counts nothing.
    mixture: of a world, (kind of trajectory, share); shares are normalised. Empty: all kinds equally.
    knowledge: of a world, the share of the trajectories whose prompt names what is wanted by a fact
      (`worlds.base.KnowingWorld`).
  """

  kind: str
  name: str = ''
  weight: float = 1.0
  mixture: tuple[tuple[str, float], ...] = ()
  knowledge: float = 0.0

  @classmethod
  def parse(cls, text: str) -> 'SourceConfig':
    """A source as one writes it on the command line: `world:shapes`, `records:/data/mine*0.5`, `self_sampled`.

    >>> SourceConfig.parse('records:/data/mine*0.5')
    SourceConfig(kind='records', name='/data/mine', weight=0.5, mixture=(), knowledge=0.0)
    """
    head, _, weight = text.rpartition('*') if re.search(r'\*[\d.]+$', text) else (text, '', '1')
    kind, _, name = head.partition(':')
    return cls(kind=kind, name=name, weight=float(weight))

  def __post_init__(self):
    known = ('world', 'records', 'self_sampled')
    if self.kind not in known:
      raise ValueError(f'Unknown kind of source {self.kind!r} in config.data.sources. Known: {list(known)}')
    if (self.kind == 'self_sampled') == bool(self.name):
      raise ValueError(f'{self}: a world or a record set needs a name, self_sampled has none (config.data.sources).')
    if not 0 < self.weight < float('inf'):
      raise ValueError(f'{self}: the weight must be above 0 (config.data.sources).')
    if not 0 <= self.knowledge <= 1 or self.knowledge and self.kind != 'world':
      raise ValueError(f'{self}: knowledge is a share of the trajectories of a world (config.data.sources).')


_SHAPES = SourceConfig(
  kind='world',
  name='shapes',
  weight=0.75,
  mixture=(('multi_turn', 0.5), ('conflict', 0.25), ('misalignment', 0.25)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Which trajectories, and how they are packed.

  Attributes:
    sources: see SourceConfig; on the command line texts, `--config.data.sources="('records:/data/mine',)"`. Empty: the
      model can only be sampled.
    tokenizer: name of a shipped tokenizer, or a path that `data.tokenizers.load` takes.
    sequence: see SequenceConfig.
    batch_size: packed rows a step, over all processes.
    und_tokens, gen_tokens, pictures: budgets of a row. Both token budgets fill up only when their ratio is that of the
      data: `python -m pdgen.inspect_data` prints it.
    picture_sizes: (height, width) in pixels that pictures may have besides the model's own size: multiples of the
      codec's patch, within the position table. A batch's canvas is the largest of each side, and costs memory and
      encoding for every picture. Empty: all are of the model's own size.
    vit_tokens: budget of ViT patches of a row where pictures have other sizes and the model has a ViT.
    too_long: what is done with a sample that is longer than a row: `raise` stops the run, `skip` leaves it out and
      counts it.
    packing_bins: rows' worth of samples that wait for the packer; more, fuller rows, more latency on the first batch.
    shards: packers that the rows of a batch are dealt out to, and that the processes of a run share out; raised to what
      the processes need. A run goes on with the same batches on any number of processes that divides its packers; with
      another number, or when this is raised, with other batches from there on, and says so.
    workers: worker processes; 0 makes the data in a thread of the main process.
    prefetch: batches made ahead.
  """

  sources: tuple[SourceConfig, ...] = (_SHAPES, SourceConfig(kind='self_sampled', weight=0.25))
  tokenizer: str = 'shapes'
  sequence: SequenceConfig = SequenceConfig()
  batch_size: int = 4
  und_tokens: int = 768
  gen_tokens: int = 232
  pictures: int = 20
  picture_sizes: tuple[tuple[int, int], ...] = ()
  vit_tokens: int = 0
  too_long: str = 'raise'
  packing_bins: int = 16
  shards: int = 1
  workers: int = 0
  prefetch: int = 4

  def __post_init__(self):
    dataclass_io.at_least(
      self, 'data', batch_size=1, und_tokens=1, gen_tokens=0, pictures=0, vit_tokens=0, packing_bins=1
    )
    dataclass_io.at_least(self, 'data', shards=1, workers=0, prefetch=0)
    # More is a slip, and hangs.
    dataclass_io.at_most(self, 'data', batch_size=2**20, packing_bins=2**20, shards=2**20, workers=1024, prefetch=2**16)
    dataclass_io.at_most(self, 'data', und_tokens=2**28, gen_tokens=2**28, pictures=2**20, vit_tokens=2**28)
    if not self.tokenizer.strip():
      raise ValueError('config.data.tokenizer is empty: name a shipped one, a file or a folder.')
    if self.too_long not in ('raise', 'skip'):
      raise ValueError(f"config.data.too_long={self.too_long!r}. Known: ['raise', 'skip']")
    if sum(source.kind == 'self_sampled' for source in self.sources) > 1:
      raise ValueError('config.data.sources names self_sampled more than once.')

  @property
  def world(self) -> str:
    """Name of the first world among the sources, which judges pictures in evaluations; empty: there is none."""
    return next((source.name for source in self.sources if source.kind == 'world'), '')

  @property
  def lacks_direct(self) -> bool:
    """Whether certainly no painting in one go is learned from: worlds alone make the data, with no share of it."""
    shares = [dict(source.mixture) for source in self.sources if source.kind == 'world']
    return self.of_worlds_alone and all(mixture and not mixture.get('direct') for mixture in shares)

  @property
  def of_worlds_alone(self) -> bool:
    """Whether worlds alone make what is learned from, which paint in steps or in one go and do nothing else."""
    made = [source.kind for source in self.sources if source.kind != 'self_sampled']
    return bool(made) and set(made) == {'world'}

  @property
  def mode(self) -> str:
    """`direct` where nothing but direct trajectories are made, else `process`: how a model of these data paints."""
    kinds = [kind for source in self.sources for kind, share in source.mixture if share > 0]
    return 'direct' if kinds and all(kind == 'direct' for kind in kinds) else 'process'
