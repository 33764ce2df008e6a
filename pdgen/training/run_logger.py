"""What a run says and writes: metric files, progress lines, scores of evaluators, picture strips."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import jax
import numpy as np
from PIL import Image

from pdgen.core import config as config_lib
from pdgen.training import distributed, metrics


class Scores(Protocol):
  """The part of `evals.base.Scores` that a run writes."""

  @property
  def name(self) -> str:
    """Of the evaluator."""
    ...

  @property
  def strip(self) -> np.ndarray | None:
    """A picture to look at, uint8[H, W, 3]."""
    ...

  def scalars(self) -> Mapping[str, float]:
    """By the names under which they are logged."""
    ...


class RunLogger:
  """Metric files, progress lines and picture strips of a run. Only the main process writes."""

  def __init__(self, config: config_lib.Config, workdir: pathlib.Path, *, step: int):
    """Opens the files.

    Args:
      config: of the run.
      workdir: `metrics.jsonl`, `tensorboard/` and `strips/` are written there.
      step: steps taken before; what was written of later ones is taken back.
    """
    self._cfg, self._workdir = config.train, workdir
    self._writer = metrics.Writer(workdir, step=step) if distributed.is_main_process() else None
    self._progress = metrics.Progress(step=step, steps=config.train.steps)
    self._pending: Mapping[str, jax.Array] | None = None

  def step(self, step_metrics: Mapping[str, jax.Array]):
    """Keeps the metrics of the step just launched, and reports those of the one before it.

    Raises: FloatingPointError after max_bad_steps steps in a row whose loss, gradient or new parameters were not
    finite.
    """
    self._flush()
    self._pending = step_metrics

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """What happens inside is not training: the step under way is reported first, and the clock stands still."""
    self._flush()
    with self._progress.paused():
      yield

  def evaluation(self, step: int, results: Sequence[Scores]):
    """Writes the scores of one evaluation, and the strips as PNG: `<step>.png`, further ones `<step>_<name>.png`."""
    if self._writer is None or not results:
      return
    scalars = {name: value for scores in results for name, value in scores.scalars().items()}
    self._writer.write(step, scalars)
    strips = {scores.name: scores.strip for scores in results if scores.strip is not None}
    for number, (name, strip) in enumerate(strips.items()):
      path = self._workdir / 'strips' / f'{step:07d}{f"_{name}" if number else ""}.png'
      path.parent.mkdir(exist_ok=True)
      Image.fromarray(strip).save(path, optimize=True)
    print(f'step {step}  ' + '  '.join(f'{name} {value:.3f}' for name, value in scalars.items()), flush=True)

  def close(self):
    """Closes the files."""
    if self._writer is not None:
      self._writer.close()

  def _flush(self):
    if self._pending is None:
      return
    now = self._progress.add(dict(self._pending))
    self._pending = None
    step, cfg = self._progress.step, self._cfg
    if now['bad_steps'] >= cfg.max_bad_steps:
      raise FloatingPointError(
        f'Step {step}: {cfg.max_bad_steps} steps in a row had a loss, gradient or new parameters that are not finite '
        f'(loss {now["loss"]}, gradient norm {now["grad_norm"]}, learning rate {now["learning_rate"]}). Look at the '
        'data, or go on with a lower rate: --config.train.learning_rate=LOWER --workdir=NEW --branch_from=THIS_WORKDIR.'
      )
    if self._writer is not None and (every(cfg.log_every, step) or step == cfg.steps):
      summary = self._progress.summary()
      self._writer.write(step, summary)
      print(self._progress.line(summary), flush=True)


def every(interval: int, step: int) -> bool:
  """Whether something that is done every so-many steps is due; an interval of 0: never.

  >>> [step for step in range(7) if every(3, step)], every(0, 6)
  ([0, 3, 6], False)
  """
  return interval > 0 and step % interval == 0
