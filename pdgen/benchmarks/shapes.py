"""The small world: steps/s of the shipped model's training with its input pipeline, trajectories/s of its sampling."""

import dataclasses
import itertools
import time
from collections.abc import Iterator

import jax

from pdgen.benchmarks import sizes as sizes_lib
from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import packed
from pdgen.data import pipeline
from pdgen.inference import painter as painter_lib
from pdgen.inference import timing
from pdgen.training import state as state_lib
from pdgen.training import step as step_lib
from pdgen.worlds import shapes


def train(sizes: sizes_lib.Sizes) -> Iterator[dict[str, object]]:
  """Steps/s of the config that the shipped model names, random weights, on one device."""
  config = painter_lib.load('shapes').config
  config = dataclasses.replace(config, mesh=config_lib.MeshConfig(fsdp=1))
  mesh = mesh_lib.make_mesh(config.mesh, devices=jax.devices()[:1])
  state, step = state_lib.init_state(config, mesh), step_lib.make_train_step(config, mesh)
  batches = pipeline.batches(config)  # Without drafts of its own, as a run begins.
  try:

    def steps(count: int, batch: packed.PackedBatch | None = None) -> float:
      """Seconds of so many steps, on fresh batches unless one is given."""
      nonlocal state
      began = time.perf_counter()
      for _ in range(count):
        state, _ = step(state, mesh_lib.put_batch(next(batches), mesh) if batch is None else batch)
      jax.block_until_ready(state.step)
      return time.perf_counter() - began

    compiled = steps(2)
    seconds = steps(sizes.train_steps) / sizes.train_steps
    alone = steps(sizes.train_steps, mesh_lib.put_batch(next(batches), mesh)) / sizes.train_steps
  finally:
    batches.close()
  yield {
    'config': config.name,
    'steps_a_second': 1 / seconds,
    'seconds': seconds,
    'seconds_without_pipeline': alone,
    'first_call': compiled,
  }


def sample(sizes: sizes_lib.Sizes) -> Iterator[dict[str, object]]:
  """Trajectories/s of held-out prompts at several batch sizes (`inference.timing`)."""
  painter = painter_lib.load('shapes')
  per_task = -(-max(sizes.batch_sizes) // len(shapes.TASKS))
  prompts = [m['prompt'] for m in shapes.prompts('heldout', per_task=per_task)]
  mixed = list(itertools.chain(*(prompts[i::per_task] for i in range(per_task))))
  for size in sizes.batch_sizes:
    row = timing.measure(painter, mixed[:size], repeats=2)
    yield {'batch_size': size, 'trajectories_a_second': row['trajectories'] / row['seconds'], **row}
