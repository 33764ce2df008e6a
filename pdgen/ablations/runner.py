"""Runs the tasks of a plan as processes, several side by side; estimates their time, and goes on after a kill.

Each process that runs beside others gets its share of the cores, so that its speed is that of the estimate.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from pdgen.ablations import tasks
from pdgen.core import dataclass_io
from pdgen.cost import training_flops
from pdgen.data import folder_lock
from pdgen.evals import base

LOG = 'log.txt'  # In the folder of a task: what its process printed.
_TRIAL = 'trial.json'
_POLL = 0.2  # seconds between two looks at the processes


@dataclasses.dataclass(frozen=True)
class Rates:
  """Seconds of a core, by kind of work."""

  gflops: float  # of a training
  painting: float  # seconds of a painting
  sample: float  # seconds of a sample of a subset
  start: float  # seconds of a command besides
  source: str  # where the rate of trainings is from, in words

  def seconds(self, task: tasks.Task) -> float:
    """Of a task."""
    if task.kind == tasks.TRAIN:
      return self.start + task.work / (self.gflops * 1e9)
    return self.start + task.work * {tasks.BUILD: self.sample, tasks.PAINT: self.painting}.get(task.kind, 0.0)


def rates(plan: tasks.Plan, out: pathlib.Path) -> Rates:
  """From the trainings that are done; else from the trial in `out`; else from the config."""
  speed = plan.config.speed
  told = Rates(speed.gflops, speed.painting_seconds, speed.sample_seconds, speed.start_seconds, 'the config')
  if (out / _TRIAL).is_file():
    trial = json.loads((out / _TRIAL).read_text())
    told = dataclasses.replace(told, gflops=trial['gflops'], source=f'a trial of {trial["steps"]} steps of the base')
  for kind in (tasks.TRAIN, tasks.PAINT):
    done = [task for task in plan.tasks if task.kind == kind and task.is_done]
    work = sum(task.work for task in done)
    spent = sum(max(1.0, _taken(task) - speed.start_seconds) for task in done)
    if work and kind == tasks.TRAIN:
      told = dataclasses.replace(told, gflops=work / spent / 1e9, source=f'{len(done)} trainings that are done')
    elif work:
      told = dataclasses.replace(told, painting=spent / work)
  return told


def left(plan: tasks.Plan, rate: Rates, *, jobs: int) -> float:
  """Seconds until all is done, `jobs` processes side by side, each on one core.

  Args:
    plan: of the tasks; those that are done take no time.
    rate: of the work.
    jobs: processes at once.
  """
  ends = {task.name: 0.0 for task in plan.tasks if task.is_done}
  free = [0.0] * jobs
  waiting = [task for task in plan.tasks if not task.is_done]
  while waiting:
    # The next that can begin, in the order of the plan, as `run` takes them.
    ready = [t for t in waiting if all(n in ends for n in t.needs)]
    begin = {t.name: max([min(free), *(ends[n] for n in t.needs)]) for t in ready}
    task = min(ready, key=lambda t: begin[t.name])
    free.remove(min(free))
    ends[task.name] = begin[task.name] + rate.seconds(task)
    free.append(ends[task.name])
    waiting.remove(task)
  return max(ends.values(), default=0.0)


def described(plan: tasks.Plan, rate: Rates, *, jobs: int) -> str:
  """Every task with its time and command, and the whole."""
  lines = []
  for task in plan.tasks:
    what = 'done' if task.is_done else duration(rate.seconds(task))
    lines.append(f'{task.name:<28} {what:>8}  {task.shell}')
  return '\n'.join([*lines, summary(plan, rate, jobs=jobs)])


def summary(plan: tasks.Plan, rate: Rates, *, jobs: int) -> str:
  """What is left, in one line."""
  todo = [task for task in plan.tasks if not task.is_done]
  return (
    f'{len(todo)} of {len(plan.tasks)} tasks are left: about {duration(left(plan, rate, jobs=jobs))} with {jobs} at '
    f'once on a core each (trainings from their FLOPs at {rate.gflops:.0f} GFLOP/s, the rate of {rate.source}; '
    f'paintings at {rate.painting:.2f} s).'
  )


def run(
  plan: tasks.Plan,
  out: pathlib.Path,
  *,
  jobs: int,
  launch: Callable[[tasks.Task, Sequence[int]], subprocess.Popen] | None = None,
  say: Callable[[str], None] = print,
):
  """Does what is not done yet.

  Args:
    plan: the tasks.
    out: folder of everything, locked meanwhile.
    jobs: processes at once.
    launch: starts the process of a task on those cores; None: its command.
    say: tells of each task that ends.

  Raises: ValueError naming a task that failed and its log; those beside it end first. BlockingIOError where another
    one is at work in `out`. KeyboardInterrupt, with every process stopped: the same call goes on.
  """
  launch = launch or start
  cores = shares_of_cores(jobs)
  with folder_lock.exclusive(out):
    if plan.config.speed.trial_steps and not (out / _TRIAL).is_file() and not all(t.is_done for t in plan.tasks):
      _try(plan, out, launch, cores[0], say)
    say(summary(plan, rates(plan, out), jobs=jobs))
    running: dict[int, tuple[tasks.Task, subprocess.Popen, float]] = {}
    failed: list[tasks.Task] = []
    with _stopped_at_the_end(running):
      while True:
        for slot, (task, process, since) in list(running.items()):
          if process.poll() is not None:
            del running[slot]
            if process.returncode or not task.product.is_file():
              failed.append(task)
            else:
              _finish(task, time.monotonic() - since)
              say(f'{task.name}: {duration(_taken(task))}. {summary(plan, rates(plan, out), jobs=jobs)}')
        names = {task.name for task, _, _ in running.values()}
        for slot in range(jobs):
          ready = (t for t in plan.tasks if t.name not in names and not t.is_done)
          task = next((t for t in ready if all(plan.task(n).is_done for n in t.needs)), None)
          if slot in running or task is None or failed:
            continue
          if task.kind == tasks.BUILD and task.product.is_file():  # Killed before it was noted. It is not built twice.
            _finish(task, 0.0)
            continue
          names.add(task.name)
          running[slot] = (task, launch(task, cores[slot]), time.monotonic())
        if not running and (failed or all(task.is_done for task in plan.tasks)):
          break
        time.sleep(_POLL)
  if failed:
    log = failed[0].folder / LOG
    last = log.read_text(errors='replace').strip().splitlines()[-1:] if log.is_file() else []
    raise ValueError(f'{failed[0].name} did not finish: {"".join(last) or "it printed nothing"} (see {log}).')


def start(task: tasks.Task, cores: Sequence[int]) -> subprocess.Popen:
  """The process of a task on those cores; it writes what it prints into the folder of the task."""
  _write_files(task)
  if task.kind == tasks.CONVERT:
    call = f'from pdgen.ablations import direct_set; direct_set.write({task.command[0]!r}, {task.command[1]!r})'
    command = [tasks.arguments(task)[0], '-c', call]
  else:
    command = tasks.arguments(task)
  with (task.folder / LOG).open('a') as log:
    return subprocess.Popen(
      command,
      stdout=log,
      stderr=subprocess.STDOUT,
      preexec_fn=lambda: _settle(cores),  # Before it starts threads. Nothing here has threads of its own.
      start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the others.
    )


def _settle(cores: Sequence[int]):
  """In the new process: on its cores, and ended with the one that started it, however that ends."""
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, cores)
  if sys.platform == 'linux':
    # PR_SET_PDEATHSIG. At once: the next run must not find the folder in use by one that still saves or compiles.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def shares_of_cores(jobs: int) -> list[list[int]]:
  """The cores of each of the processes that run side by side.

  >>> [len(share) >= 1 for share in shares_of_cores(3)]
  [True, True, True]
  """
  known = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else list(range(os.cpu_count() or 1))
  return [known[slot::jobs] or [known[slot % len(known)]] for slot in range(jobs)]


def duration(seconds: float) -> str:
  """As people say it.

  >>> duration(42), duration(750), duration(21000)
  ('42 s', '12 min', '5.8 h')
  """
  if seconds < 90:
    return f'{seconds:.0f} s'
  return f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'


def _try(
  plan: tasks.Plan,
  out: pathlib.Path,
  launch: Callable[[tasks.Task, Sequence[int]], subprocess.Popen],
  cores: Sequence[int],
  say: Callable[[str], None],
):
  """A few steps of the base, for their rate; without its compilation."""
  steps, whole = plan.config.speed.trial_steps, plan.task(tasks.BASE)
  config = plan.config.base
  short = dataclasses.replace(config.train, steps=2 * steps, log_every=steps, eval_every=0, checkpoint_every=0)
  config = dataclasses.replace(config, train=dataclasses.replace(short, self_sample_steps=(), lost_drafts=()))
  folder = out / 'trial'
  text = json.dumps(dataclass_io.to_dict(config))
  trial = dataclasses.replace(
    whole,
    folder=folder,
    command=tuple(part.replace(str(whole.folder), str(folder)) for part in whole.command),
    files={**whole.files, 'config.json': text},
  )
  say(f'A trial of {2 * steps} steps of the base, to say how long the whole takes ..')
  running = {0: (trial, launch(trial, cores), 0.0)}
  with _stopped_at_the_end(running):
    while running[0][1].poll() is None:
      time.sleep(_POLL)
  lines = folder / 'run' / 'metrics.jsonl'
  if running[0][1].returncode or not lines.is_file():
    raise ValueError(f'The trial of the base failed: see {folder / LOG}.')
  rate = json.loads(lines.read_text().splitlines()[-1])['steps_per_second']
  gflops = rate * training_flops.train_flops(config)['total'] / 1e9
  base.write_atomically(out / _TRIAL, json.dumps({'steps': steps, 'gflops': gflops}) + '\n')


@contextlib.contextmanager
def _stopped_at_the_end(running: Mapping[int, tuple[tasks.Task, subprocess.Popen, float]]) -> Iterator[None]:
  """However the block is left, no process outlives it."""
  try:
    yield
  finally:
    for _, process, _ in running.values():
      if process.poll() is None:
        process.send_signal(signal.SIGTERM)  # A training saves its step.
    for _, process, _ in running.values():
      try:
        process.wait(timeout=60)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _write_files(task: tasks.Task):
  task.folder.mkdir(parents=True, exist_ok=True)
  for name, content in task.files.items():
    base.write_atomically(task.folder / name, content)


def _finish(task: tasks.Task, seconds: float):
  base.write_atomically(task.folder / tasks.DONE, json.dumps({'seconds': seconds, 'command': task.shell}) + '\n')


def _taken(task: tasks.Task) -> float:
  return float(json.loads((task.folder / tasks.DONE).read_text())['seconds'])
