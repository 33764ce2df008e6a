"""Painting: Euler steps/s by guidance and picture size, and seconds of a whole picture, of the whole model.

The picture is the second of a trajectory: the first one, a prompt and two plans are in the cache.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdgen import testing
from pdgen.benchmarks import clock, synthetic
from pdgen.benchmarks import sizes as sizes_lib
from pdgen.core import config as config_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.inference import painter as painter_lib
from pdgen.inference import phases as phases_lib
from pdgen.inference import requests as requests_lib
from pdgen.models import presets
from pdgen.sampling import cycle, flow, spans

TEXT_GUIDANCE, PICTURE_GUIDANCE = 4.0, 1.5
# Times at which guidance is on, and the branches that are computed then.
INTERVALS = {'none': ((1.0, 1.0), 1), 'text and picture': ((0.0, 1.0), 3)}


class _Ready(NamedTuple):
  """A trajectory that waits for its second picture."""

  sampling: config_lib.SamplingConfig
  phases: phases_lib.Phases
  state: cycle.State
  model: config_lib.ModelConfig
  first_call: float  # Seconds of the first picture, which compiles, beside that of other sizes.

  def denoise(self, **options: Any) -> clock.Timing:
    """Times the Euler steps of a picture. options: of the sampling config; arguments of the program, all of them."""
    sampler = flow.SamplerParams.of(dataclasses.replace(self.sampling, **options))
    phases = dataclasses.replace(self.phases, sampler=sampler)
    return clock.timed(lambda: phases.denoise(self.state), repeats=3, at_least=0.0)


def run(sizes: sizes_lib.Sizes) -> Iterator[dict[str, object]]:
  """Rows of every size: Euler steps without and with both guidances, and the whole picture as BAGEL guides it."""
  params = synthetic.random_params(sizes.model)  # The same at every size.
  calls = [functools.partial(_prepare, sizes, params, side) for side in sizes.pictures]
  for side, ready in zip(sizes.pictures, clock.side_by_side(calls), strict=True):
    context = int(jnp.sum(ready.state.cache.tokens.segment[0] == spans.FULL))
    shared = {'context': context, 'cache_slots': ready.state.cache.slots, 'first_call': ready.first_call}
    for guidance, (interval, branches) in INTERVALS.items():
      few, many = 2, 2 + max(10, sizes.flow_steps // 4)
      short, long = (ready.denoise(guidance_interval=interval, flow_steps=n).median for n in (few, many))
      seconds = (long - short) / (many - few)  # Below 0 where a step is lost in the noise: tiny sizes.
      yield {
        'picture': side,
        'guidance': guidance,
        'euler_steps_a_second': 1 / seconds if seconds > 0 else None,
        'seconds': seconds,
        'tflops': branches * step_flops(ready.model, context) / seconds / 1e12 if seconds > 0 else None,
        **shared,
      }
    yield {
      'picture': side,
      'guidance': f'text and picture in {ready.sampling.guidance_interval}',
      'flow_steps': sizes.flow_steps,
      'picture_seconds': ready.denoise().median,
      **shared,
    }


def _prepare(sizes: sizes_lib.Sizes, params: Any, side: int) -> _Ready:
  model = presets.at_image_size(sizes.model, side)
  sampling = dataclasses.replace(
    presets.bagel_sampling(model, pictures=1),
    max_pictures=2,
    flow_steps=sizes.flow_steps,
    text_guidance=TEXT_GUIDANCE,
    image_guidance=PICTURE_GUIDANCE,
  )
  began = time.perf_counter()
  phases, state = start(model, params, sampling, batch_size=1, pictures=1)
  state = state.replace(status=jnp.full_like(state.status, cycle.WAITING))
  jax.block_until_ready(phases.denoise(state))
  return _Ready(sampling, phases, state, model, time.perf_counter() - began)


def step_flops(model: config_lib.ModelConfig, context: int) -> float:
  """Of an Euler step, one branch of guidance that sees the whole context."""
  inner, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
  expert = model.width * 2 * (inner + kv) + 3 * model.width * model.mlp_dim
  tokens = model.latent_tokens
  return model.depth * (2 * tokens * expert + 4 * inner * tokens * (context + tokens))


def start(
  model: config_lib.ModelConfig,
  params: Any,
  sampling: config_lib.SamplingConfig,
  *,
  batch_size: int,
  pictures: int = 0,
) -> tuple[phases_lib.Phases, cycle.State]:
  """The phases of a painter, and the state after it has read prompts, and steps with so many pictures."""
  painter = painter_lib.Painter(
    config=config_lib.Config(name='benchmark', model=model, sampling=sampling),
    params=params,
    tokenizer=testing.Letters(),
  )
  before = synthetic.trajectory(np.random.default_rng(0), pictures, model.image_size)
  if pictures:  # The next step has been planned.
    next_one = trajectory_lib.Step(plan=before.steps[0].plan)
    before = dataclasses.replace(before, steps=(*before.steps, next_one))
  prompts = [before] * batch_size if pictures else [before.prompt] * batch_size
  requests = requests_lib.make(prompts, sampling=sampling, mode='process', pictures=1)
  phases = painter.phases(sampling)
  return phases, phases.prefill(painter.sample_batch(requests))
