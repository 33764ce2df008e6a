"""What a run writes on its way: JSONL, TensorBoard and a progress line."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import tensorboardX

Scalars = dict[str, float]


class Writer:
  """Appends scalars to `metrics.jsonl` and to `tensorboard/` in a folder."""

  def __init__(self, workdir: str | os.PathLike, *, step: int = 0):
    """step: of the checkpoint that the run resumes from; what was written after it is taken back. 0: the run begins;
    what an earlier one has written is set aside (`metrics.1.jsonl`, ..).
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / 'metrics.jsonl'
    if step:
      _keep_until(path, step)
    else:
      _set_aside(path)
    self._file = path.open('a')
    self._board = tensorboardX.SummaryWriter(str(workdir / 'tensorboard'), purge_step=step + 1 if step else None)

  def write(self, step: int, scalars: Scalars):
    """One JSON line `{"step": .., name: value, ..}`; not finite values are written as null."""
    finite = {name: value if abs(value) < float('inf') else None for name, value in scalars.items()}
    self._file.write(json.dumps({'step': step, **finite}) + '\n')
    self._file.flush()
    for name, value in scalars.items():
      self._board.add_scalar(name, value, step)

  def close(self):
    self._file.close()
    self._board.close()


class Progress:
  """Averages what the steps report and keeps the time, without what `paused` covers.

  Attributes:
    step: steps reported, those before a resume included.
  """

  def __init__(self, *, step: int, steps: int):
    """step: taken before; steps: of the whole run."""
    self.step, self._steps = step, steps
    self._taken: list[Scalars] = []
    self._seconds = 0.0
    self._since = time.perf_counter()
    self._last = self._now()

  def add(self, metrics: dict[str, jax.Array]) -> Scalars:
    """Takes in one step's metrics and returns them as floats. Waits for that step."""
    scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
    self._taken.append(scalars)
    self.step += 1
    return scalars

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """The time inside is not training time."""
    self._seconds = self._now()
    try:
      yield
    finally:
      self._since = time.perf_counter()

  def summary(self) -> Scalars:
    """Means over the steps since the summary before (counters: the last), and rates. Empty when there was no step.

    tokens_per_second counts und and gen tokens that are not padding, where the loss reports them; seconds is training
    time of this process.
    """
    if not self._taken:
      return {}
    out = {name: sum(s[name] for s in self._taken) / len(self._taken) for name in self._taken[0]}
    out.update({name: value for name, value in self._taken[-1].items() if name.endswith('_steps')})
    now = self._now()
    elapsed = max(now - self._last, 1e-9)
    out['steps_per_second'] = len(self._taken) / elapsed
    tokens = [s[name] for s in self._taken for name in ('und_tokens', 'gen_tokens') if name in s]
    if tokens:
      out['tokens_per_second'] = sum(tokens) / elapsed
    out['seconds'] = now
    self._taken, self._last = [], now
    return out

  def line(self, summary: Scalars) -> str:
    """The summary for a person, with the time that is left."""
    left = (self._steps - self.step) / summary['steps_per_second']
    parts = [f'step {self.step}/{self._steps}']
    parts += [form(summary[name]) for name, form in _LINE.items() if name in summary]
    return '  '.join([*parts, f'eta {duration(left)}'])

  def _now(self) -> float:
    return self._seconds + time.perf_counter() - self._since


# What a line shows of a summary; another loss may report less.
_LINE: dict[str, Callable[[float], str]] = {
  'loss': 'loss {:.4f}'.format,
  'ce': 'ce {:.4f}'.format,
  'mse': 'mse {:.4f}'.format,
  'text_accuracy': 'text {:.3f}'.format,
  'learning_rate': 'lr {:.2e}'.format,
  'tokens_per_second': lambda rate: f'{rate / 1e3:.1f}k tokens/s',
  'steps_per_second': '{:.2f} steps/s'.format,
}


def duration(seconds: float) -> str:
  """
  >>> duration(75), duration(4000)
  ('1m15s', '1h06m')
  """
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}h{minutes:02d}m' if hours else f'{minutes}m{seconds:02d}s'


def _keep_until(path: pathlib.Path, step: int):
  """Drops lines of later steps, a last line that a kill cut short, and, saying so, lines that are damaged."""
  if not path.is_file():
    return
  kept, damaged = [], []
  lines = path.read_bytes().split(b'\n')
  for number, line in enumerate(lines, 1):
    try:
      if int(json.loads(line)['step']) <= step:
        kept.append(line + b'\n')
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
      if number < len(lines):  # The last one is empty, or was cut short.
        damaged.append(number)
  if damaged:
    print(f'{path}: {len(damaged)} lines cannot be read (line {damaged[0]} the first): they are dropped.', flush=True)
  partial = path.with_name(path.name + '.partial')
  partial.write_bytes(b''.join(kept))
  os.replace(partial, path)


def _set_aside(path: pathlib.Path):
  """Keeps what a run has written of which no checkpoint is left."""
  if not path.is_file() or not path.stat().st_size:
    return
  number = 1
  while (aside := path.with_name(f'{path.stem}.{number}{path.suffix}')).exists():
    number += 1
  os.replace(path, aside)
  print(
    f'No checkpoint is left of the run that wrote {path}: it begins anew. Its metrics are kept: {aside}', flush=True
  )
