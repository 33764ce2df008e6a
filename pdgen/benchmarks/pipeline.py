"""Reading of record sets into packed rows, beside what a train step takes: rows/s by worker processes, CPU seconds.

A step at the roofline is the fastest that there can be: the model's FLOPs (attention by visible pairs, nothing computed
again) at the peak of every device of a host. What it takes of rows is what the host must read at least. Pictures have
the spectrum of photographs, and decoding them costs somewhat more (docs/performance.md#reading-records).
"""

import dataclasses
import io
import os
import tempfile
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from pdgen.benchmarks import sizes as sizes_lib
from pdgen.benchmarks import synthetic, train
from pdgen.core import config as config_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.cost import accelerators
from pdgen.data import pipeline, records

TARGET = 'h100:8'  # A host of it.
_FORMATS = {'PNG': {}, 'JPEG': {'quality': 95}}
_PICTURES, _TRAJECTORIES = 8, 48


def run(sizes: sizes_lib.Sizes) -> Iterator[dict[str, object]]:
  """A row for each format of pictures and number of workers; `sizes.records` in their place where it is given."""
  config = synthetic.config(sizes, tokens=sizes.row_tokens[-1])
  takes = appetite(config, TARGET)
  if sizes.records:
    for workers in sizes.workers:
      yield {'pictures': 'given', **measure(config, sizes.records, rows=sizes.read_rows, workers=workers, takes=takes)}
    return
  for name in _FORMATS:
    with tempfile.TemporaryDirectory() as folder:
      write(folder, side=config.model.image_size, format=name, steps=sizes.read_steps)
      for workers in sizes.workers:
        yield {'pictures': name, **measure(config, folder, rows=sizes.read_rows, workers=workers, takes=takes)}


def appetite(config: config_lib.Config, target: str) -> float:
  """Rows a second that a host takes at the roofline. config: of one row."""
  machine = accelerators.parse(target).machine
  batch = synthetic.row(config)
  flops = train.model_flops(config, synthetic.visible_pairs(synthetic.tokens_of(batch)))
  return machine.host_devices * machine.flops / flops


def measure(
  config: config_lib.Config, folder: str, *, rows: int, workers: int, takes: float, tokenizer: str = 'shapes'
) -> dict[str, object]:
  """Reads, decodes, builds and packs rows of a record set as a run does, after those that fill the packers.

  Args:
    config: of one row; its model, budgets and dropout.
    folder: the record set.
    rows: that are timed.
    workers: processes; 0: a thread of this one.
    takes: rows a second of the step.
    tokenizer: of the texts.
  """
  source = config_lib.SourceConfig(kind='records', name=folder)
  data = dataclasses.replace(config.data, sources=(source,), tokenizer=tokenizer, workers=workers, packing_bins=4)
  iterator = pipeline.batches(dataclasses.replace(config, data=data))
  try:
    for _ in range(1 + data.prefetch + workers):  # What was made ahead is not counted.
      next(iterator)
    samples = tokens = pictures = 0
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(rows):
      batch = next(iterator)
      samples += int(batch.und.tokens.segment.max())
      tokens += int(np.sum(synthetic.tokens_of(batch).segment > 0))
      pictures += int(batch.gen.picture.max()) + 1
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
  finally:
    getattr(iterator, 'close', lambda: None)()
  row: dict[str, object] = {
    'workers': workers,
    'rows_a_second': rows / seconds,
    'samples_a_second': samples / seconds,
    'pictures_a_second': pictures / seconds,
    'tokens_a_second': tokens / seconds,
    'step_takes_rows_a_second': takes,
    'times_the_step': rows / seconds / takes,
  }
  if not workers:  # Of a process that does nothing else; how long it waited for a core does not count.
    row |= {'cpu_seconds_a_row': cpu / rows, 'cores_for_4_times_the_step': 4 * takes * cpu / rows}
  return row


def write(
  folder: str | os.PathLike,
  *,
  side: int,
  format: str,
  steps: tuple[int, ...],
  pictures: list[np.ndarray] | None = None,
):
  """Writes a record set of trajectories of pictures.

  Args:
    folder: of the record set.
    side: of the pictures, in pixels.
    format: `PNG` or `JPEG`.
    steps: pictures of the trajectories, in turn.
    pictures: uint8[side, side, 3]; None: of the spectrum of photographs.
  """
  rng = np.random.default_rng(0)
  pictures = pictures or [natural_picture(rng, side) for _ in range(_PICTURES)]
  files = [_encoded(picture, format) for picture in pictures]
  shown = [np.array(Image.open(io.BytesIO(file))) for file in files]
  with records.Writer(folder) as writer:
    for number in range(_TRAJECTORIES):
      blank = synthetic.trajectory(rng, steps[number % len(steps)], side=8)
      chosen = rng.integers(len(files), size=len(blank.steps))
      done = tuple(dataclasses.replace(step, draft=shown[n]) for step, n in zip(blank.steps, chosen, strict=True))
      made = trajectory_lib.Trajectory(prompt=f'{blank.prompt}{number}', steps=done)
      writer.write(made, picture_files=[files[n] for n in chosen])


def natural_picture(rng: np.random.Generator, side: int) -> np.ndarray:
  """uint8[side, side, 3]: amplitudes that fall with the frequency, as in photographs, and colours that vary little."""
  frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
  frequency[0, 0] = np.inf

  def field() -> np.ndarray:
    x = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(side, side))) / frequency**1.4, s=(side, side))
    return x / x.std()

  grey = field()
  picture = np.stack([118 + 50 * grey + 6 * field() for _ in range(3)], axis=-1)
  return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def _encoded(picture: np.ndarray, format: str) -> bytes:
  file = io.BytesIO()
  Image.fromarray(picture).save(file, format, **_FORMATS[format])
  return file.getvalue()
