"""The Python API: prompts in, trajectories out. Ties the model, the tokenizer, the sequence and the cycle together.

    painter = pdgen.load('shapes')
    result = painter.sample(['a photo of a red ring and a blue square'], seed=1)
    result.trajectories[0].final

Top-level, because nothing below may know both the data and the sampler (tests/test_imports.py).
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import packing, sequence, tokenizers
from pdgen.data.tokenizers import base
from pdgen.models import interleaved
from pdgen.sampling import cycle, flow, grammar
from pdgen.weights import loading

# What is asked for at once when the caller does not say: enough to use the machine, small enough for any of them.
DEFAULT_BATCH = 32
# Lengths of prefixes are rounded up to these, so that prompts of other lengths do not compile the program again.
_UND_BUCKET, _PICTURE_BUCKET = 32, 2

Prompt = str | trajectory_lib.Trajectory
_STOPS = {
  cycle.FINISHED: trajectory_lib.FINISHED,
  cycle.PICTURE_CAP: trajectory_lib.PICTURE_CAP,
  cycle.TOKEN_CAP: trajectory_lib.TOKEN_CAP,
}


@dataclasses.dataclass(frozen=True)
class Result:
  """What a call of `Painter.sample` returns.

  trajectories: one for each prompt, in order; those continued hold the steps they were given, too.
  timings: `seconds` of the whole call, `compile_calls` (batches that had to compile first), `text_steps` and `rounds`
    (token steps and picture phases, over all batches), `tokens` and `pictures` (made, over all trajectories).
  """

  trajectories: list[trajectory_lib.Trajectory]
  timings: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Painter:
  """A model with its tokenizer, ready to sample. `pdgen.load` makes one from a checkpoint.

  params: nested dict of arrays, as `nnx.merge(models.interleaved.graphdef(config.model), params)` takes it.
  """

  config: config_lib.Config
  params: Any
  tokenizer: base.Tokenizer

  def __post_init__(self):
    if self.tokenizer.vocab_size > self.config.model.vocab_size:
      raise ValueError(f'{self.tokenizer.vocab_size=} exceeds {self.config.model.vocab_size=}.')

  @functools.cached_property
  def graphdef(self):
    return interleaved.graphdef(self.config.model)

  def sample(
    self,
    prompts: Prompt | Sequence[Prompt],
    *,
    mode: str | None = None,
    seed: int | Sequence[int] = 0,
    sampling: config_lib.SamplingConfig | None = None,
    batch_size: int | None = None,
    pictures: int | None = None,
  ) -> Result:
    """Paints every prompt.

    Args:
      prompts: texts, or partial trajectories to go on from: a person may have edited a plan, a picture or a `<refine>`.
      mode: `process` (plan, sketch, inspect, refine) or `direct` (one picture, no words). Partial trajectories that
        have steps keep their own. None: `process` for texts, their own for trajectories.
      seed: of the first prompt; the next ones take the next numbers, so that any of them can be had again alone. Or
        one for each prompt.
      sampling: the config's own by default.
      batch_size: trajectories a compiled call; by default all, at most 32. The last batch is filled up with idle rows.
      pictures: at most so many more pictures for each; by default sampling.max_pictures in all.

    Raises: ValueError for an unknown mode, no prompts, seeds that do not fit, or caps that leave no room.
    """
    prompts = [prompts] if isinstance(prompts, (str, trajectory_lib.Trajectory)) else list(prompts)
    if not prompts:
      raise ValueError('There is nothing to sample: give at least one prompt.')
    if mode is not None and mode not in trajectory_lib.MODES:
      raise ValueError(f'Unknown mode {mode!r}. Known: {list(trajectory_lib.MODES)}')
    sampling = sampling or self.config.sampling
    self.check(sampling)
    starts = [_start(p, mode) for p in prompts]
    seeds = [seed + i for i in range(len(starts))] if isinstance(seed, (int, np.integer)) else list(seed)
    if len(seeds) != len(starts):
      raise ValueError(f'{len(seeds)} seeds for {len(starts)} prompts.')
    if not all(0 <= s < 2**32 for s in seeds):
      raise ValueError(f'Seeds are from 0 to 2**32 - 1, not {seeds}.')
    budgets = [_picture_budget(s, sampling, pictures) for s in starts]
    batch_size = batch_size or min(len(starts), DEFAULT_BATCH)
    row_budget = self.row_budget(starts)  # of all batches, so that they share one compiled program
    began, compiled = time.perf_counter(), cycle.run._cache_size()
    trajectories, timings = [], {'compile_calls': 0, 'text_steps': 0, 'rounds': 0, 'tokens': 0, 'pictures': 0}
    for i in range(0, len(starts), batch_size):
      rows = slice(i, i + batch_size)
      state = self.run(
        starts[rows], seeds[rows], budgets[rows], sampling=sampling, batch_size=batch_size, row_budget=row_budget
      )
      host = jax.device_get({name: getattr(state, name) for name in _FETCHED})
      trajectories += [parse_output(s, host, row, self.tokenizer) for row, s in enumerate(starts[rows])]
      timings['text_steps'] += int(host['text_steps'])
      timings['rounds'] += int(host['rounds'])
      timings['tokens'] += int(host['output_count'].sum())
      timings['pictures'] += int(host['picture_count'].sum())
    timings['compile_calls'] = cycle.run._cache_size() - compiled
    return Result(trajectories, {'seconds': time.perf_counter() - began, **timings})

  def run(
    self,
    starts: Sequence[trajectory_lib.Trajectory],
    seeds: Sequence[int],
    budgets: Sequence[int],
    *,
    sampling: config_lib.SamplingConfig,
    batch_size: int,
    row_budget: packed.RowBudget | None = None,
  ) -> cycle.State:
    """One compiled call for at most `batch_size` trajectories; the final state of the loop, still on the device."""
    batch = self.sample_batch(starts, seeds, budgets, batch_size=batch_size, row_budget=row_budget)
    return cycle.run(self.graphdef, self.params, batch, flow.SamplerParams.of(sampling), self.spec(sampling))

  def check(self, sampling: config_lib.SamplingConfig):
    """Raises ValueError when the caps leave no room for one round."""
    if sampling.max_text_tokens < grammar.SHORTEST:
      raise ValueError(f'{sampling.max_text_tokens=} leaves no room: the tags of a plan alone take {grammar.SHORTEST}.')
    worst = cycle.max_tokens_per_round(self.config.model, sampling)
    if sampling.max_tokens < worst:
      raise ValueError(f'{sampling.max_tokens=} leaves no room: a plan, an inspection and a picture may take {worst}.')

  def spec(self, sampling: config_lib.SamplingConfig) -> cycle.SamplerSpec:
    """What of the sampling config shapes the compiled program, with this painter's tokens."""
    return cycle.SamplerSpec.of(sampling, self.tokenizer.specials, self.tokenizer.vocab_size)

  def sample_batch(
    self,
    starts: Sequence[trajectory_lib.Trajectory],
    seeds: Sequence[int],
    budgets: Sequence[int],
    *,
    batch_size: int,
    row_budget: packed.RowBudget | None = None,
  ) -> cycle.SampleBatch:
    """Prefixes as one batch, on the device, padded to `row_budget` (by default what they need).

    Rows beyond `starts` are idle copies of the first.
    """
    starts, seeds, budgets = (
      [*x, *[filler] * (batch_size - len(x))] for x, filler in ((starts, starts[0]), (seeds, 0), (budgets, 0))
    )
    row_budget = row_budget or self.row_budget(starts)
    rows = (packing.pack_row([self._prefix(s)], row_budget) for s in starts)
    prefix = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *rows)
    return cycle.SampleBatch(
      prefix=packed.check(prefix),
      grammar=grammar.from_trajectories(starts),
      key=jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32)),
      picture_limit=jnp.asarray(budgets, jnp.int32),
    )

  def row_budget(self, starts: Sequence[trajectory_lib.Trajectory]) -> packed.RowBudget:
    """Lengths that hold the prefix of each of them, rounded up so that few different ones are ever compiled."""
    und, _, pictures, _ = map(max, zip(*(packing.sizes(self._prefix(s)) for s in starts), strict=True))
    pictures = _round_up(pictures, _PICTURE_BUCKET)
    return packed.RowBudget(_round_up(und, _UND_BUCKET), pictures * self.config.model.latent_tokens, pictures)

  def _prefix(self, start: trajectory_lib.Trajectory) -> packed.PackedBatch:
    cfg = self.config
    return sequence.build(start, tokenizer=self.tokenizer, model=cfg.model, sequence=cfg.data.sequence, rng=None)


def load(name_or_path: str) -> Painter:
  """A shipped checkpoint by name (`shapes`), an exported folder, or a training run's workdir (its newest average).

  Raises: FileNotFoundError naming what is shipped; ValueError for a folder that is damaged.
  """
  config, params, tokenizer = loading.load_for_sampling(name_or_path)
  return Painter(config=config, params=params, tokenizer=tokenizers.load(tokenizer))


_FETCHED = ('output_tokens', 'output_count', 'pictures', 'picture_count', 'stop', 'text_steps', 'rounds')


def _round_up(n: int, multiple: int) -> int:
  return -(-n // multiple) * multiple


def _start(prompt: Prompt, mode: str | None) -> trajectory_lib.Trajectory:
  """What to continue from."""
  if isinstance(prompt, str):
    return trajectory_lib.Trajectory(prompt=prompt, steps=(), stop=None, mode=mode or trajectory_lib.PROCESS)
  keeps = mode is None or prompt.steps
  return dataclasses.replace(prompt, stop=None, mode=prompt.mode if keeps else mode)


def _picture_budget(start: trajectory_lib.Trajectory, sampling: config_lib.SamplingConfig, pictures: int | None) -> int:
  painted = len(start.pictures)
  budget = min(sampling.max_pictures - painted, sampling.max_pictures if pictures is None else pictures)
  if budget < 1:
    raise ValueError(
      f'The trajectory of {start.prompt!r} has {painted} pictures and may not paint another: '
      f'{sampling.max_pictures=}, {pictures=}. Raise the cap, or give it a shorter beginning.'
    )
  return budget


def parse_output(
  start: trajectory_lib.Trajectory, host: dict[str, np.ndarray], row: int, tokenizer: base.Tokenizer
) -> trajectory_lib.Trajectory:
  """Reads what a row wrote and painted into steps that follow those it started from."""
  trajectory, specials, text = start, tokenizer.specials, []
  pictures = iter(host['pictures'][row])
  for token in host['output_tokens'][row, : host['output_count'][row]].tolist():
    if token == specials.im_start:
      text = []
    elif token == specials.im_end:
      trajectory = trajectory.with_text(tokenizer.decode(text))
    elif token == specials.vision_start:
      trajectory = trajectory.with_picture(next(pictures))
    else:
      text.append(token)
  return dataclasses.replace(trajectory, stop=_STOPS[int(host['stop'][row])])
