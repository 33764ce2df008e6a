"""What the data of a config look like: tokens a trajectory, fill of both row budgets, speed."""

import dataclasses
import time

import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.data import packing, pipeline, sources


def report(config: config_lib.Config, *, batches: int = 50, source: sources.Source | None = None) -> dict[str, float]:
  """Measures the data of a config: fill of both budgets, tokens a trajectory, speed on one thread."""
  source = source or sources.from_config(config)
  samples = pipeline.Samples(config, source)
  sizes = np.array([packing.sizes(samples(i).row) for i in range(500)])
  single = dataclasses.replace(config.data, workers=0, prefetch=0)
  iterator = iter(pipeline.dataset(dataclasses.replace(config, data=single), source=source))
  next(iterator)  # Fills the pool.
  fills, canvas, trajectories, start = [], [], 0, time.perf_counter()
  for _ in range(batches):
    batch = next(iterator)
    fills.append(packed.fill(batch))
    canvas += [] if batch.grids is None else _of_canvas(config, batch)
    trajectories += int(batch.und.tokens.segment.max(-1).sum())
  seconds = time.perf_counter() - start
  return {
    'und tokens a trajectory': float(sizes[:, 0].mean()),
    'gen tokens a trajectory': float(sizes[:, 1].mean()),
    'pictures a trajectory': float(sizes[:, 2].mean()),
    'most und tokens': float(sizes[:, 0].max()),
    'most gen tokens': float(sizes[:, 1].max()),
    'gen_tokens that fit und_tokens': float(config.data.und_tokens * sizes[:, 1].mean() / sizes[:, 0].mean()),
    'und budget used': float(np.mean([fill['und'] for fill in fills])),
    'gen budget used': float(np.mean([fill['gen'] for fill in fills])),
    **({'canvas used': float(np.mean(canvas))} if canvas else {}),
    'trajectories a row': trajectories / batches / config.data.batch_size,
    'trajectories a second': trajectories / seconds,
  }


def _of_canvas(config: config_lib.Config, batch: packed.PackedBatch) -> list[float]:
  """Share of the canvas that each picture of a batch fills; the autoencoder encodes all of it."""
  area = np.prod(np.asarray(batch.grids), axis=-1) * config.model.codec.patch**2
  return (area[area > 0] / np.prod(batch.pictures.shape[2:4])).tolist()
