"""How fast a checkpoint paints: trajectories a second at several batch sizes, split into text and denoising.

    python -m pdgen.benchmark --checkpoint=shapes --batch_sizes=1,8,64

The whole cycle is one compiled call, so that its parts are timed apart: the same token step and the same denoising of a
picture, compiled alone, on the caches that the call ends with, times how often the call ran them. What remains
(reading prompts, looking at pictures, the loop) is `other`. A second call of a batch size must not compile anything.
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

from pdgen import command_line
from pdgen import painter as painter_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.sampling import cycle

# Token steps timed in one compiled loop: enough that copying the cache into the loop does not count.
_TEXT_STEPS = 64


def main(arguments: Sequence[str] | None = None):
  """The command line."""
  parser = argparse.ArgumentParser(
    prog='python -m pdgen.benchmark',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--batch_sizes', type=lambda text: [int(n) for n in text.split(',')], default=[1, 8, 64])
  parser.add_argument('--mode', choices=painter_lib.MODES, default='process', help='direct: one picture, no words')
  parser.add_argument('--repeats', type=int, default=3, help='timed calls, of which the fastest counts')
  parser.add_argument('--out', help='file for the figures, JSON')
  command_line.add_arguments(parser)
  flags = parser.parse_args(arguments)
  painter, world = command_line.load(parser, flags)
  prompts = [m['prompt'] for m in world.prompts('heldout', per_task=-(-max(flags.batch_sizes) // len(world.TASKS)))]
  print(f'{jax.devices()[0].device_kind} x {jax.device_count()}, {os.cpu_count()} host cores, {flags.mode} mode')
  print(f'{"batch":>5} {"trajectories/s":>15} {"pictures/s":>11} {"seconds":>8}  text denoising other  compile')
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

  Returns: `seconds` a call (the fastest of `repeats`), of which `text`, `denoising` and `other`; `compile`, what the
    first call took more; `text_steps` and `rounds` of a call; `trajectories` and `pictures` of a call;
    `compiled_again`, calls that compiled although an equal one had, which is a defect unless it is 0.
  """
  call = functools.partial(painter.sample, list(prompts), mode=mode, batch_size=len(prompts))
  first = call().timings
  calls = [call().timings for _ in range(repeats)]
  seconds = min(c['seconds'] for c in calls)
  token_step, picture = _parts(painter, prompts, mode=mode, repeats=repeats)
  text, denoising = token_step * first['text_steps'], picture * first['rounds']
  return {
    'seconds': seconds,
    'text': text,
    'denoising': denoising,
    'other': seconds - text - denoising,
    'compile': first['seconds'] - seconds,
    'text_steps': first['text_steps'],
    'rounds': first['rounds'],
    'trajectories': len(prompts),
    'pictures': first['pictures'],
    'compiled_again': sum(c['compile_calls'] for c in calls),
  }


def _parts(painter: painter_lib.Painter, prompts: Sequence[str], *, mode: str, repeats: int) -> tuple[float, float]:
  """Seconds of one token step and of denoising one picture, each for the whole batch."""
  sampling, count = painter.config.sampling, len(prompts)
  steps = (trajectory_lib.Step(),) if mode == 'direct' else ()
  starts = [trajectory_lib.Trajectory(prompt=p, steps=steps, stop=None) for p in prompts]
  budgets = [sampling.max_pictures] * count
  state = painter.run(starts, range(count), budgets, sampling=sampling, batch_size=count)
  knobs, program = painter_lib.knobs(sampling), painter.program(sampling)

  @jax.jit
  def texts(params: Any, state: cycle.State) -> jax.Array:
    model = nnx.merge(painter.graphdef, params)

    def step(_: jax.Array, state: cycle.State) -> cycle.State:
      state = state.replace(status=jnp.full_like(state.status, cycle.WRITING))
      return cycle.write_token(model, state, knobs, program)

    return jax.lax.fori_loop(0, _TEXT_STEPS, step, state).pending

  @jax.jit
  def picture(params: Any, state: cycle.State) -> jax.Array:
    state = state.replace(status=jnp.full_like(state.status, cycle.WAITING))
    return cycle.denoise(nnx.merge(painter.graphdef, params), state, knobs, program)

  times = [_best(functools.partial(f, painter.params, state), repeats) for f in (texts, picture)]
  return times[0] / _TEXT_STEPS, times[1]


def _best(call: Callable[[], jax.Array], repeats: int) -> float:
  """Seconds of the fastest call after a first one."""
  jax.block_until_ready(call())
  times = []
  for _ in range(repeats):
    began = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - began)
  return min(times)


def _in_turn(prompts: Sequence[str], tasks: int):
  """Prompts come task after task; here the first of each, then the second of each, and so on."""
  per_task = len(prompts) // tasks
  return (prompts[task * per_task + i] for i in range(per_task) for task in range(tasks))


def _line(row: dict[str, float]) -> str:
  seconds = row['seconds']
  text, denoising, other = (f'{row[part] / seconds:.0%}' for part in ('text', 'denoising', 'other'))
  again = f'  COMPILED AGAIN: {row["compiled_again"]}' if row['compiled_again'] else ''
  return (
    f'{row["batch_size"]:>5} {row["trajectories"] / seconds:>15.2f} {row["pictures"] / seconds:>11.2f} {seconds:>8.2f}'
    f'  {text:>4} {denoising:>9} {other:>5} {row["compile"]:>7.1f}s{again}'
  )


if __name__ == '__main__':
  main()
