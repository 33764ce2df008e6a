"""Writing: tokens/s of the text phase at several batch sizes, of the whole model, greedy, under the grammar."""

import dataclasses
import functools
import time
from collections.abc import Iterator

import jax

from pdgen.benchmarks import clock, flow, synthetic
from pdgen.benchmarks import sizes as sizes_lib
from pdgen.models import presets


def run(sizes: sizes_lib.Sizes) -> Iterator[dict[str, object]]:
  """A row a batch size. Random weights write until the cap, all trajectories side by side."""
  model = presets.at_image_size(sizes.model, sizes.pictures[0])
  params = synthetic.random_params(model)
  sampling = dataclasses.replace(
    presets.bagel_sampling(model, pictures=1), max_text_tokens=sizes.text_tokens, text_guidance=1.0
  )

  def once(size: int) -> tuple[float, int, int]:
    """(seconds, decode steps) of a text phase, and the slots of its cache."""
    phases, state = flow.start(model, params, sampling, batch_size=size)
    jax.block_until_ready(state.status)
    slots, began = state.cache.slots, time.perf_counter()
    steps = int(phases.text_phase(state).text_steps)  # Waits. The state is donated.
    return time.perf_counter() - began, steps, slots

  first = clock.side_by_side([functools.partial(once, size) for size in sizes.batch_sizes])
  for size, (compiled, _, slots) in zip(sizes.batch_sizes, first, strict=True):
    runs = [once(size) for _ in range(2)]
    step = min(seconds / steps for seconds, steps, _ in runs)
    yield {
      'batch_size': size,
      'tokens_a_second': size / step,
      'step_seconds': step,
      'steps': runs[0][1],
      'cache_slots': slots,
      'first_call': compiled,
    }
