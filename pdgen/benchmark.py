"""How fast a checkpoint paints: trajectories a second at several batch sizes, split into text and denoising.

    python -m pdgen.benchmark --checkpoint=shapes --batch_sizes=1,8,64

The whole cycle is one compiled call. Its parts are timed by driving the same phases from Python, on the same states:
`reading` prompts, `text`, `denoising`, and `looking` (the picture just painted enters the cache). What the call takes
beyond their sum is `other`. A second call of a batch size must not compile anything.
"""

import argparse
import functools
import itertools
import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pdgen import flags as flags_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.inference import painter as painter_lib
from pdgen.sampling import cycle, flow

PHASES = ('reading', 'text', 'denoising', 'looking')


def main(arguments: Sequence[str] | None = None):
  """The command line."""
  parser = argparse.ArgumentParser(
    prog='python -m pdgen.benchmark',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--batch_sizes', type=lambda text: [int(n) for n in text.split(',')], default=[1, 8, 64])
  parser.add_argument('--mode', choices=trajectory_lib.MODES, default='process', help='direct: one picture, no words')
  parser.add_argument('--repeats', type=int, default=3, help='timed calls, of which the fastest counts')
  parser.add_argument('--out', help='file for the figures, JSON')
  flags_lib.add_arguments(parser)
  flags = parser.parse_args(arguments)
  painter, world = flags_lib.load(parser, flags)
  prompts = [m['prompt'] for m in world.prompts('heldout', per_task=-(-max(flags.batch_sizes) // len(world.TASKS)))]
  print(f'{jax.devices()[0].device_kind} x {jax.device_count()}, {os.cpu_count()} host cores, {flags.mode} mode')
  print(f'{"batch":>5} {"trajectories/s":>15} {"pictures/s":>11} {"seconds":>8}  {_heads()}  compile')
  rows = []
  for size in flags.batch_sizes:
    # Tasks in turn, so that a small batch holds as many kinds of prompts as it can.
    mixed = list(itertools.islice(_in_turn(prompts, len(world.TASKS)), size))
    row = measure(painter, mixed, mode=flags.mode, repeats=flags.repeats)
    rows.append({'batch_size': size, **row})
    print(_line(rows[-1]), flush=True)
  if flags.out:
    pathlib.Path(flags.out).write_text(json.dumps(rows, indent=2) + '\n')


def measure(
  painter: painter_lib.Painter, prompts: Sequence[str], *, mode: str = 'process', repeats: int = 3
) -> dict[str, float]:
  """Times sampling all prompts as one batch, after a first call that compiles.

  Returns: `seconds` a call (the fastest of `repeats`); of these, each of PHASES and `other`; `compile`, what the first
    call took more; `text_steps` and `rounds` of a call; `trajectories` and `pictures` of a call; `compiled_again`,
    calls that compiled although an equal one had, which is a defect unless it is 0.
  """
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
    'trajectories': len(prompts),
    'pictures': first['pictures'],
    'compiled_again': sum(c['compile_calls'] for c in calls),
  }


def _phases(painter: painter_lib.Painter, prompts: Sequence[str], *, mode: str, repeats: int) -> dict[str, float]:
  """Seconds of each phase over a whole call, the fastest of `repeats`; a first one compiles."""
  sampling, count = painter.config.sampling, len(prompts)
  starts = [trajectory_lib.Trajectory(prompt=p, steps=(), mode=mode, stop=None) for p in prompts]
  batch = painter.sample_batch(starts, range(count), [sampling.max_pictures] * count, batch_size=count)
  sampler, spec = flow.SamplerParams.of(sampling), painter.spec(sampling)

  def compiled(phase: Callable[..., Any], **donate: Any) -> Callable[[Any], tuple[Any, float]]:
    function = jax.jit(
      lambda params, x, sampler: phase(nnx.merge(painter.graphdef, params), x, sampler, spec), **donate
    )
    return lambda x: _timed(lambda: function(painter.params, x, sampler))

  def write(model: Any, state: cycle.State, sampler: Any, spec: cycle.SamplerSpec) -> cycle.State:
    writes = lambda s: jnp.any(s.status == cycle.WRITING)
    return jax.lax.while_loop(writes, lambda s: cycle.decode_step(model, s, sampler, spec), state)

  # The state is donated where it changes, as the whole program changes its cache in place.
  start, text, denoise = compiled(cycle.prefill), compiled(write, donate_argnums=1), compiled(cycle.denoise)
  paint = compiled(cycle.picture_phase, donate_argnums=1)
  runs = []
  for _ in range(1 + repeats):
    spent = dict.fromkeys(PHASES, 0.0)
    state, spent['reading'] = start(batch)
    while bool(jnp.any(state.status != cycle.ENDED)):
      state, seconds = text(state)
      spent['text'] += seconds
      if bool(jnp.any(state.status == cycle.WAITING)):
        _, denoising = denoise(state)
        state, seconds = paint(state)  # denoises once more, then looks
        spent['denoising'] += denoising
        spent['looking'] += seconds - denoising
    runs.append(spent)
  return min(runs[1:], key=lambda spent: sum(spent.values()))


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
  """(what the call returns, seconds until it is there)."""
  began = time.perf_counter()
  result = jax.block_until_ready(call())
  return result, time.perf_counter() - began


def _in_turn(prompts: Sequence[str], tasks: int):
  """Prompts come task after task; here the first of each, then the second of each, and so on."""
  per_task = len(prompts) // tasks
  return (prompts[task * per_task + i] for i in range(per_task) for task in range(tasks))


def _heads() -> str:
  return '  '.join((*PHASES, 'other'))


def _line(row: dict[str, float]) -> str:
  seconds = row['seconds']
  shares = '  '.join(f'{row[part] / seconds:>{len(part)}.0%}' for part in (*PHASES, 'other'))
  again = f'  COMPILED AGAIN: {row["compiled_again"]}' if row['compiled_again'] else ''
  return (
    f'{row["batch_size"]:>5} {row["trajectories"] / seconds:>15.2f} {row["pictures"] / seconds:>11.2f} {seconds:>8.2f}'
    f'  {shares}  {row["compile"]:>6.1f}s{again}'
  )


if __name__ == '__main__':
  main()
