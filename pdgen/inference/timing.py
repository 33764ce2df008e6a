"""Timing of sampling: seconds of a whole call, split into the phases of the sampler.

The whole cycle is one compiled call. Its parts are timed by running the same phases from Python on the same states
(`inference.phases`, or those of `sampling.lanes`): `reading` prompts, `text`, `denoising`, and `looking` (the picture
just painted enters the cache). What the call takes beyond their sum is `other`.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from pdgen.inference import painter as painter_lib
from pdgen.inference import requests as requests_lib
from pdgen.sampling import cycle, lanes

T = TypeVar('T')
PHASES = ('reading', 'text', 'denoising', 'looking')


def measure(
  painter: painter_lib.Painter, prompts: Sequence[str], *, mode: str = 'process', repeats: int = 3
) -> dict[str, float]:
  """Times sampling all prompts as one batch, after a first call that compiles.

  Args:
    painter: with the sampling config that is timed.
    prompts: one a row.
    mode: `process` or `direct`.
    repeats: timed calls, of which the fastest counts; at least 1.

  Returns: `seconds` a call; of these, each of PHASES and `other`; `compile`, what the first call took more;
    `text_steps` and `rounds` of a call; `text_use` and `picture_use`, the share of the rows of decode steps and picture
    phases that took part; `trajectories` and `pictures` of a call; `compiled_again`, calls that compiled
    although an equal one had, which is a defect unless it is 0.
  """
  if repeats < 1:
    raise ValueError(f'{repeats=}: at least 1 call is timed.')
  call = functools.partial(painter.sample, list(prompts), mode=mode, batch_size=len(prompts))
  first = call().timings
  calls = [call().timings for _ in range(repeats)]
  seconds = min(c['seconds'] for c in calls)
  phases = _phases(painter, prompts, mode=mode, repeats=repeats)
  return {
    'seconds': seconds,
    **phases,
    'other': seconds - sum(phases.values()),
    'compile': first['seconds'] - seconds,
    'text_steps': first['text_steps'],
    'rounds': first['rounds'],
    'text_use': (first['tokens'] - first['pictures']) / first['text_rows'] if first['text_rows'] else 1.0,
    'picture_use': first['pictures'] / first['picture_rows'] if first['picture_rows'] else 1.0,
    'trajectories': len(prompts),
    'pictures': first['pictures'],
    'compiled_again': sum(c['compile_calls'] for c in calls),
  }


def _phases(painter: painter_lib.Painter, prompts: Sequence[str], *, mode: str, repeats: int) -> dict[str, float]:
  """Seconds of each phase over a whole call, the fastest of `repeats`; a first one compiles."""
  once = _lanes if len(prompts) >= lanes.LEAST and painter.mesh is None else _rows
  runs = [once(painter, prompts, mode) for _ in range(1 + repeats)]
  return min(runs[1:], key=lambda spent: sum(spent.values()))


def _rows(painter: painter_lib.Painter, prompts: Sequence[str], mode: str) -> dict[str, float]:
  """One call, each prompt in a row of its own."""
  sampling = painter.config.sampling
  spent: dict[str, float] = dict.fromkeys(PHASES, 0.0)
  batch = painter.sample_batch(requests_lib.make(prompts, sampling=sampling, mode=mode))
  phases = painter.phases(sampling)
  state, spent['reading'] = _timed(phases.prefill, batch)
  while bool(jnp.any(state.status != cycle.ENDED)):
    state, seconds = _timed(phases.text_phase, state)
    spent['text'] += seconds
    if bool(jnp.any(state.status == cycle.WAITING)):
      _, denoising = _timed(phases.denoise, state)
      state, seconds = _timed(phases.picture_phase, state)  # Denoises once more, then looks.
      spent['denoising'] += denoising
      spent['looking'] += seconds - denoising
  return spent


def _lanes(painter: painter_lib.Painter, prompts: Sequence[str], mode: str) -> dict[str, float]:
  """One call, lanes that work off the prompts."""
  sampling = painter.config.sampling
  spent: dict[str, float] = dict.fromkeys(PHASES, 0.0)
  batch = painter.sample_batch(requests_lib.make(prompts, sampling=sampling, mode=mode))
  phases = painter.phases(sampling)
  queue = lanes.Queue(batch, jnp.int32(len(prompts)), phases.sampler)
  plan = lanes.Plan.of(len(prompts))
  call = lambda phase: lambda work: phase(painter.graphdef, painter.params, work, queue, spec=phases.spec, plan=plan)
  work = call(_start)(None)
  while (number := int(lanes.next_phase(work, queue, plan))) < len(lanes.PHASES):
    phase = lanes.PHASES[number]
    denoising = _timed(call(_denoise), work)[1] if phase is lanes.paint else 0.0
    work, seconds = _timed(call(_LANES[phase]), work)
    spent['denoising'] += denoising
    spent[_SPENT_ON[phase]] += seconds - denoising
  return spent


def _compiled(phase: Callable[..., Any], *, donate: bool = True) -> Any:
  def run(graphdef: nnx.GraphDef, params: Any, work: Any, queue: lanes.Queue, **static: Any) -> Any:
    return phase(nnx.merge(graphdef, params), *(() if work is None else (work,)), queue=queue, **static)

  return jax.jit(run, static_argnames=('graphdef', 'spec', 'plan'), donate_argnames='work' if donate else ())


_start, _denoise = _compiled(lanes.start), _compiled(lanes.denoise, donate=False)
_LANES = {phase: _compiled(phase) for phase in lanes.PHASES}
_LANES[lanes.write] = _compiled(functools.partial(lanes.stretch, lanes.write))  # All steps until another phase.
_SPENT_ON = {lanes.refill: 'reading', lanes.paint: 'looking', lanes.write: 'text'}


def _timed(phase: Callable[[Any], T], x: object) -> tuple[T, float]:
  """(what the phase returns, seconds until it is there)."""
  began = time.perf_counter()
  result = jax.block_until_ready(phase(x))
  return result, time.perf_counter() - began
