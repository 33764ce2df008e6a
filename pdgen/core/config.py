"""Every option of pdgen and its default, once. A config file says only what differs.

Frozen dataclasses: hashable, so that they can be static arguments of compiled functions. `to_config_dict` and
`from_config_dict` carry them through ml_collections flags (`--config.train.steps=100`).
"""

import dataclasses
import math
from typing import Any

import ml_collections

from pdgen.core import dataclass_io, packed
from pdgen.core.data_config import DataConfig as DataConfig
from pdgen.core.data_config import SequenceConfig as SequenceConfig
from pdgen.core.data_config import SourceConfig as SourceConfig
from pdgen.core.model_config import CodecConfig as CodecConfig
from pdgen.core.model_config import LoraConfig as LoraConfig
from pdgen.core.model_config import ModelConfig as ModelConfig
from pdgen.core.model_config import VaeConfig as VaeConfig
from pdgen.core.model_config import VitConfig as VitConfig

MOST = 2**31 - 1  # Of what is counted in int32.
EULER, HEUN, AB2 = SOLVERS = ('euler', 'heun', 'ab2')  # `SamplingConfig.solver`
FREE, OFF, FORCED, DICTATED = INSPECTIONS = ('free', 'off', 'forced', 'dictated')  # `SamplingConfig.inspection`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Specials:
  """Ids of the tokens that structure the sequence. Text typed by a user is never parsed into them.

  Names of the first five as in BAGEL's vocabulary; the tags are those of the paper, one id each.
  """

  im_start: int
  im_end: int
  vision_start: int
  vision_end: int
  endoftext: int
  ins: int
  ins_end: int
  des: int
  des_end: int
  refine: int
  refine_end: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """Optimisation and what is written on the way.

  Attributes:
    accumulate: micro-batches that a batch is computed in, one after the other, whose gradients are summed: the same
      step with the activations of `batch_size / accumulate` rows. A run may resume with another number.
    init_from: a model that `pdgen.load` takes, whose weights a new run begins with; empty: random ones.
    steps: optimizer steps of the whole run.
    optimizer: `adamw`, or `muon` (orthogonalised momentum for the matrices of the layers, AdamW for the rest).
    learning_rate, warmup_steps, final_lr_fraction: linear warm-up, then one cosine down to the fraction.
    freeze: parts that do not learn, regular expressions of whole paths or of the folders of parameters (`embed`, `vit`,
      `trunk/layers/und`, `.*`). They keep their bits and their type (random ones become bfloat16), without
      gradient, optimizer state or average. Adapters (model.lora) always learn.
    b1, b2, weight_decay, clip_norm: AdamW; gradients clipped to a global norm (0: never). Decay only on matrices.
    ema_decay: of the averaged parameters that are sampled from; min(decay, (1 + step) / (10 + step)) early on.
    loss_chunk: und tokens of a device whose logits exist at once (recomputed in the backward pass); 0: all of them.
    lambda_ce: L = lambda_ce * CE + MSE (paper; its value is not printed).
    timestep_shift: s in t <- s t / (1 + (s - 1) t).
    log_every, eval_every, checkpoint_every: steps between metric lines, picture strips with scores, checkpoints.
      0 switches that off (a last checkpoint is always written).
    keep_checkpoints: newest checkpoints that are kept.
    eval_prompts: held-out prompts a task scored at every evaluation.
    self_sample_steps, self_samples: steps at which the model paints so many drafts of its own, which the world's
      detector judges; from then on they are part of the data (see data.sources). Steps that never come are none.
    lost_drafts: those of self_sample_steps whose drafts are damaged or gone: the run goes on without them.
    max_bad_steps: that many steps in a row with a loss, gradient or new parameters that are not finite stop the run;
      single ones are skipped.
  """

  accumulate: int = 1
  init_from: str = ''
  steps: int = 1000
  optimizer: str = 'adamw'
  learning_rate: float = 1e-3
  warmup_steps: int = 100
  final_lr_fraction: float = 0.0
  freeze: tuple[str, ...] = ()
  b1: float = 0.9
  b2: float = 0.95
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  ema_decay: float = 0.998
  loss_chunk: int = 0
  lambda_ce: float = 0.25
  timestep_shift: float = 1.0
  log_every: int = 50
  eval_every: int = 0
  checkpoint_every: int = 500
  keep_checkpoints: int = 2
  eval_prompts: int = 10
  self_sample_steps: tuple[int, ...] = ()
  self_samples: int = 512
  lost_drafts: tuple[int, ...] = ()
  max_bad_steps: int = 10

  def __post_init__(self):
    dataclass_io.at_least(
      self, 'train', steps=1, log_every=0, eval_every=0, checkpoint_every=0, keep_checkpoints=1, eval_prompts=1
    )
    dataclass_io.at_least(self, 'train', accumulate=1)
    dataclass_io.at_least(self, 'train', warmup_steps=0, loss_chunk=0, self_samples=1, max_bad_steps=1, learning_rate=0)
    dataclass_io.positive(self, 'train', 'timestep_shift')
    if not 0 <= self.ema_decay < 1:
      raise ValueError(f'config.train.ema_decay={self.ema_decay} is not in [0, 1).')
    for name in (
      'learning_rate',
      'final_lr_fraction',
      'b1',
      'b2',
      'weight_decay',
      'clip_norm',
      'lambda_ce',
      'timestep_shift',
    ):
      if not math.isfinite(getattr(self, name)):
        raise ValueError(f'config.train.{name}={getattr(self, name)} is not a finite number.')
    dataclass_io.at_least(self, 'train', final_lr_fraction=0, b1=0, b2=0, weight_decay=0, clip_norm=0, lambda_ce=0)
    dataclass_io.at_most(self, 'train', b1=1, b2=1)
    dataclass_io.patterns(self, 'train', 'freeze')
    if unknown := sorted(set(self.lost_drafts) - set(self.self_sample_steps)):
      raise ValueError(f'config.train.lost_drafts names {unknown[0]}, which is none of self_sample_steps.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
  """How trajectories are sampled.

  The caps, `grammar`, `inspection`, `renorm`, `contiguous_positions`, `solver`, and whether a scale of guidance,
  `top_p`, `repetition_penalty` or `guidance_every` is 1, `top_k` or `draft_steps` 0, or there are `stop_texts`, shape
  the compiled program; the others are its arguments.

  Attributes:
    max_pictures: pictures a trajectory, drafts and refined ones together (paper: up to 5 steps).
    max_text_tokens: tokens of one text; the grammar closes what is open when it is reached.
    max_tokens: tokens a trajectory may add to its prompt (texts and picture copies): the size of its cache.
    flow_steps: steps of the solver a picture.
    draft_steps: steps of a draft; refined pictures take `flow_steps`; 0: so do drafts.
    solver: `euler`; `ab2`: of second order, at one evaluation a step, too; `heun`: of second order, at two
      (`sampling.flow.integrate`).
    guidance_every: the branches of guidance are computed at one of so many steps, and what they take away from the
      velocity is used again in between: a step without them costs one branch.
    grammar: hold texts to the format of plans and inspections; False lets the model write what it likes.
    inspection: of drafts; `free`: as the model likes. For studies (`evals.process`), all with the grammar: `off`: none,
      a draft is followed by a plan or the end; `forced`: of every draft, and it asks to refine; `dictated`: of every
      draft, by someone else on the host (`inference.dictation`).
    renorm: `none`, or BAGEL's `global`, `channel`, `text_channel`.
    contiguous_positions: in that cache pictures leave no gap in the positions (BAGEL's sampler; QUIRKS 8, 27), as
      dropped ones do in training (BAGEL's, and ours).
    temperature: of the text; 0 = greedy, at most 1e6.
    top_k: above temperature 0, a token is one of the k likeliest; 0: of all.
    top_p: above temperature 0, a token is one of the fewest whose probabilities sum to at least this.
    repetition_penalty: of words that the text being written holds already (CTRL's); 1 = none.
    stop_texts: a text of the model ends with the token in which one of these is complete, byte by byte: case and
      Unicode form count, how the tokens cut it does not. What the grammar holds open is closed first. The text that is
      given out lacks it and the rest of that token (as in vLLM); the model has read both, and `Result.chosen` has them.
      At most 256 bytes of UTF-8 together; a batch takes 2 bytes for each of them and token of the vocabulary.
    text_guidance, image_guidance: BAGEL's two scales; 1 = none. Guidance by pictures costs a second, text-only cache.
    guidance_interval: guidance is on for low < t <= high, t the shifted time.
    renorm_min: lower clamp of the renormalisation, from 0 to 1.
    timestep_shift: s in t <- s t / (1 + (s - 1) t).
    max_edits: refined pictures a trajectory, after which `<refine>` is forbidden; 0: from the beginning. A step has one
      at most.

  Raises: ValueError for a number out of its bounds, NaN and infinity among them.
  """

  max_pictures: int = 10
  max_text_tokens: int = 96
  max_tokens: int = 1024
  flow_steps: int = 8
  draft_steps: int = 0
  solver: str = EULER
  guidance_every: int = 1
  grammar: bool = True
  inspection: str = 'free'
  renorm: str = 'none'
  contiguous_positions: bool = False
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  repetition_penalty: float = 1.0
  stop_texts: tuple[str, ...] = ()
  text_guidance: float = 2.0
  image_guidance: float = 1.0
  guidance_interval: tuple[float, float] = (0.6, 1.0)
  renorm_min: float = 0.0
  timestep_shift: float = 4.0
  max_edits: int = MOST

  def __post_init__(self):
    if self.inspection not in INSPECTIONS:
      raise ValueError(f'Unknown inspection {self.inspection!r} (config.sampling). Known: {list(INSPECTIONS)}')
    if self.inspection != FREE and not self.grammar:
      raise ValueError(f'config.sampling.inspection={self.inspection!r} needs the grammar: set sampling.grammar=true.')
    if self.inspection == DICTATED and self.max_edits != MOST:
      raise ValueError("config.sampling.max_edits has no say in what is dictated: leave it out with 'dictated'.")
    if self.stop_texts and self.inspection == DICTATED:
      raise ValueError("config.sampling.stop_texts has no say in what is dictated: leave it out with 'dictated'.")
    _check_stop_texts(self.stop_texts)
    if self.solver not in SOLVERS:
      raise ValueError(f'Unknown solver {self.solver!r} (config.sampling). Known: {list(SOLVERS)}')
    if self.renorm not in ('none', 'global', 'channel', 'text_channel'):
      raise ValueError(f"Unknown renorm {self.renorm!r}. Known: ['none', 'global', 'channel', 'text_channel']")
    dataclass_io.finite(self, 'sampling')
    dataclass_io.at_least(
      self, 'sampling', max_pictures=1, max_text_tokens=1, max_tokens=1, flow_steps=1, temperature=0, renorm_min=0
    )
    dataclass_io.at_least(self, 'sampling', draft_steps=0, guidance_every=1)
    for name in ('timestep_shift', 'top_p', 'repetition_penalty'):
      dataclass_io.positive(self, 'sampling', name)
    dataclass_io.at_least(self, 'sampling', timestep_shift=1e-6)  # Less is 0 in float32, some of it.
    # temperature: from about 1e37 on, noise times temperature is infinite, and what the grammar forbids is written.
    dataclass_io.at_most(self, 'sampling', temperature=1e6, renorm_min=1, flow_steps=10_000, timestep_shift=1e6)
    dataclass_io.at_most(self, 'sampling', draft_steps=10_000, guidance_every=10_000)
    dataclass_io.at_least(self, 'sampling', max_edits=0, top_k=0)
    dataclass_io.at_most(self, 'sampling', top_k=MOST, top_p=1, repetition_penalty=1e3)
    dataclass_io.at_most(self, 'sampling', max_edits=MOST, max_pictures=MOST, max_text_tokens=MOST, max_tokens=MOST)
    if len(self.guidance_interval) != 2 or self.guidance_interval[0] > self.guidance_interval[1]:
      raise ValueError(
        f'config.sampling.guidance_interval={self.guidance_interval}: give two times, the lower one first.'
      )

  def evaluations(self, *, refined: bool) -> int:
    """Velocities that a picture takes, of all branches of guidance one: of a refined picture, or of a draft."""
    steps = self.flow_steps if refined or not self.draft_steps else self.draft_steps
    return 2 * steps - 1 if self.solver == HEUN else steps


def _check_stop_texts(texts: tuple[str, ...]):
  """Raises ValueError for stop texts that are no texts, or too long."""
  if isinstance(texts, str) or not all(isinstance(text, str) and text for text in texts):
    raise ValueError(f'config.sampling.stop_texts={texts!r}: give texts of at least one character, as in ("###",).')
  try:
    size = sum(len(text.encode()) for text in texts)
  except UnicodeEncodeError as error:
    raise ValueError(f'config.sampling.stop_texts={texts!r} holds a lone surrogate: it is no Unicode text.') from error
  if size > 256:
    raise ValueError(f'config.sampling.stop_texts has {size} bytes of UTF-8 together, of at most 256: shorten them.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Devices along each mesh axis; -1 once: all that remain.

  Attributes:
    data, fsdp, tensor, sequence: see `core.mesh`.
    cpu_devices: devices that a CPU is split into. On two cores, two devices take a small training step 1.28 times as
      fast as one (docs/experiments.md#cpu-devices).
  """

  data: int = 1
  fsdp: int = -1
  tensor: int = 1
  sequence: int = 1
  cpu_devices: int = 1

  def __post_init__(self):
    if not 1 <= self.cpu_devices <= 1024:
      raise ValueError(f'config.mesh.cpu_devices={self.cpu_devices} is out of range: from 1 to 1024.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """One experiment: everything that a run is made of."""

  name: str = 'pdgen'
  seed: int = 0
  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()
  train: TrainConfig = TrainConfig()
  sampling: SamplingConfig = SamplingConfig()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self):
    patch, most = self.model.codec.patch, self.model.max_latent_size * self.model.codec.patch
    if not 0 <= self.seed < 2**32:
      raise ValueError(f'config.seed={self.seed} is out of range: from 0 to {2**32 - 1}.')
    for size in self.data.picture_sizes:
      if len(size) != 2 or any(side % patch or not 0 < side <= most for side in size):
        raise ValueError(
          f"config.data.picture_sizes has {size}: sides are multiples of {patch} pixels (the codec's patch), at most "
          f'{most} (model.max_latent_size patches).'
        )
    if self.data.picture_sizes and self.model.vit is not None and not self.data.vit_tokens:
      raise ValueError(
        'Pictures of other sizes (config.data.picture_sizes) need a budget for the ViT: data.vit_tokens.'
      )

  @property
  def canvas(self) -> tuple[int, int] | None:
    """(height, width) of the array that holds pictures of any size; None: all are of the model's own size."""
    if not self.data.picture_sizes:
      return None
    own = (self.model.image_size, self.model.image_size)
    heights, widths = zip(own, *self.data.picture_sizes, strict=True)
    return max(heights), max(widths)

  @property
  def row_budget(self) -> packed.RowBudget:
    data = self.data
    return packed.RowBudget(data.und_tokens, data.gen_tokens, data.pictures, data.vit_tokens)

  def batch_spec(self, *rows: int) -> Any:
    """The fields of a batch with those leading dimensions: a `PackedBatch` of `packed.Field`."""
    vit = self.model.vit
    return packed.spec(
      self.row_budget,
      rows=rows,
      canvas=self.canvas or (self.model.image_size, self.model.image_size),
      any_size=self.canvas is not None,
      vit_values=3 * vit.patch**2 if vit is not None and self.canvas is not None else 0,
    )


FORMAT = 3  # Of the files that hold a config: exported models, checkpoints.


def upgrade(values: dict[str, Any], format: int) -> dict[str, Any]:
  """The config of a file of an earlier format, as this version reads it.

  Args:
    values: nested dicts, as JSON has them; they are not changed.
    format: of the file that they were read from.

  Raises: ValueError for a format of a later version.
  """
  if not 1 <= format <= FORMAT:
    raise ValueError(f'The config has format {format}; this version of pdgen reads 1 to {FORMAT}. Update pdgen.')
  if format < 2:
    values = _upgrade_1(values)
  if format < 3:
    values = _upgrade_2(values)
  return values


def _upgrade_1(values: dict[str, Any]) -> dict[str, Any]:
  sampling, data = dict(values.get('sampling', {})), dict(values.get('data', {}))
  if 'closed_positions' in sampling:
    sampling['contiguous_positions'] = sampling.pop('closed_positions')
  world, mixture, share = data.pop('world', ''), data.pop('mixture', ()), data.pop('self_share', 0.25)
  own = [{'kind': 'self_sampled', 'name': '', 'weight': share, 'mixture': []}] if share else []
  made = [{'kind': 'world', 'name': world, 'weight': 1 - share, 'mixture': mixture}] if share < 1 else []
  data['sources'] = made + own if world else []
  return {**values, 'sampling': sampling, 'data': data}


def _upgrade_2(values: dict[str, Any]) -> dict[str, Any]:
  sequence = dict(values.get('data', {}).get('sequence', {}))
  plan = sequence.get('plan_weight', 1.0)
  sequence['corrected_plan_weight'] = plan
  sequence['rejected_plan_weight'] = plan if sequence.pop('learn_rejected_plans', False) else 0.0
  sequence['rejected_draft_weight'] = 1.0 if sequence.pop('learn_rejected_drafts', False) else 0.0
  return {**values, 'data': {**values.get('data', {}), 'sequence': sequence}}


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
  """The experiment as a locked ConfigDict, whose leaves flags may override; a None (`vit`) takes any type."""
  return ml_collections.ConfigDict(dataclass_io.to_dict(config))


def from_config_dict(values: ml_collections.ConfigDict | dict[str, Any]) -> Config:
  """Inverse of `to_config_dict`. Raises KeyError naming an unknown key and the keys that are known there.

  >>> from_config_dict(to_config_dict(Config())) == Config()
  True
  """
  # Where the file could not be read, ml_collections gives an object that says so when it is asked for anything.
  to_dict = None if isinstance(values, dict) else getattr(values, 'to_dict', None)
  nested: Any = to_dict() if to_dict else values
  return dataclass_io.from_dict(Config, nested, path='config')
