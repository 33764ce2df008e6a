"""Builds a subset as record sets: slots, attempts, workers, rejected samples; resumed from any kill without a change.

    out/train/, out/heldout/     record sets, split by the hash of the prompt
    out/rejected.jsonl           a line for each attempt that is left out: subset, sample (from 1), attempt, reason
    out/build.json               what was built, and the counts; put in place last
    out/build_unfinished.json    while it is not finished: how far it is
    out/finished/                samples that are made with services and not yet safe in the record sets
    out/cache/, out/budget.json  answers of services, and what they cost
    out/traces/                  conflict: what the model wrote and painted (`traces`)

A **slot** is one wanted sample, + or -; it has `config.tries` attempts, each a function of (config, slot, attempt).
Slots are made by processes (exact worlds) or threads (services) and written in their order.
"""

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pdgen.construction import alignment, build_config, conflict, multi_turn, slot_files, tools, traces
from pdgen.construction.importers import base, run
from pdgen.core import in_order
from pdgen.core import rng as rng_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import records, splits
from pdgen.services import budget, errors

DONE, UNFINISHED, REJECTED = 'build.json', 'build_unfinished.json', run.REJECTED
SOURCE, FINISHED = 'source', 'finished'  # Folders in the output folder.
_STREAM = 212  # random stream that decides which slots are -

Outcome = trajectory_lib.Trajectory | base.Rejected
MakePainter = Callable[[str], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slots:
  """The samples that are wanted of a subset, and how each is made."""

  config: build_config.BuildConfig
  subset: str
  negative: np.ndarray  # bool[N]: of each slot.
  traces: tuple[int | None, ...] = ()  # conflict: number of the trace that a slot is made of; None: of none.
  out: str = ''  # Folder with `traces` and `source`.

  def __len__(self) -> int:
    return len(self.negative)

  def make(self, kit: tools.Tools, slot: int) -> list[Outcome]:
    """The outcomes of the attempts at a slot: rejections, then the sample or one more. Raises: BudgetExhausted."""
    return self.costed(kit, slot)[0]

  def costed(self, kit: tools.Tools, slot: int) -> tuple[list[Outcome], budget.Cost]:
    """As `make`, and what all attempts have cost."""
    made: list[Outcome] = []
    cost = budget.Cost()
    for number in range(self.config.tries):
      attempt = tools.Attempt(kit, subset=self.subset, index=slot, number=number)
      attempt.cost = cost  # A sample costs what its rejected attempts have cost, too.
      try:
        made.append(self._sample(attempt, slot))
      except tools.RejectionError as error:
        made.append(base.Rejected(base.one_line(error)))
      cost = attempt.cost
      if isinstance(made[-1], trajectory_lib.Trajectory):
        break
    return made, cost

  def _sample(self, attempt: tools.Attempt, slot: int) -> trajectory_lib.Trajectory:
    negative = bool(self.negative[slot])
    if self.subset == build_config.MULTI_TURN:
      return multi_turn.make(attempt)
    if self.subset == build_config.CONFLICT:
      trace = self.traces[slot] if attempt.number == 0 else None  # A trace that cannot be used is replaced.
      if trace is not None:
        return conflict.of_trace(attempt, _reader(str(pathlib.Path(self.out) / traces.FOLDER))[trace])
      return conflict.make(attempt, negative=negative)
    config = self.config.alignment
    if attempt.number == 0 and _spread(slot) < config.source_share:
      source = _reader(str(pathlib.Path(self.out) / SOURCE / splits.TRAIN))
      number = sum(_spread(i) < config.source_share for i in range(slot))
      return alignment.of_source(attempt, source, number=number, negative=negative)
    return alignment.make(attempt, negative=negative)


def build(
  config: build_config.BuildConfig,
  subset: str,
  out: str | os.PathLike,
  *,
  limit: int | None = None,
  make_painter: MakePainter | None = None,
  progress: Callable[[run.Counts, int], None] | None = None,
  traced: Callable[[int, int], None] | None = None,
) -> run.Counts:
  """Builds a subset, or goes on with one that was stopped.

  Args:
    config: what is built.
    subset: one of `build_config.SUBSETS`.
    out: folder of the record sets.
    limit: samples at most; None: as many as the config says.
    make_painter: loads a checkpoint, where the config names one.
    progress: called with the counts so far and the samples wanted.
    traced: called with the traces so far and their number, while a model paints them.

  Returns: the counts.

  Raises: ValueError for an unfinished build of another config; FileExistsError for a finished one; BlockingIOError
    while another one is at work there; services.errors.BudgetExhausted: the same call goes on with a larger budget;
    services.errors.Unavailable where services fail for `work.most_failures` samples in a row.
  """
  out = pathlib.Path(out)
  if (out / DONE).exists():
    raise FileExistsError(f'The build {out} is finished. Delete the folder to make it again, or give another.')
  slots = wanted(config, subset, out, limit=limit, make_painter=make_painter, traced=traced)
  tell = None if progress is None else functools.partial(_tell, progress, len(slots))
  counts = run.write_entries(
    lambda start: _entries(slots, out, start=start, make_painter=make_painter),
    out,
    asked=dict(subset=subset, config=json.loads(json.dumps(build_config.identity(config, subset))), samples=len(slots)),
    split_of=functools.partial(splits.split_of, heldout=config.heldout),
    shard_records=config.shard_records,
    progress=tell,
    what='build',
  )
  shutil.rmtree(out / FINISHED, ignore_errors=True)
  return counts


def wanted(
  config: build_config.BuildConfig,
  subset: str,
  out: pathlib.Path,
  *,
  limit: int | None = None,
  make_painter: MakePainter | None = None,
  dry: bool = False,
  traced: Callable[[int, int], None] | None = None,
) -> Slots:
  """The slots of a subset; makes what they need first: a model's traces, the import of a source.

  Args:
    config: what is built.
    subset: its name.
    out: folder of the build.
    limit: slots at most.
    make_painter: loads the checkpoint that writes traces.
    dry: without traces and sources.
    traced: see `build`.
  """
  size = config.subset(subset)
  negative = np.zeros(size.samples, bool)
  negative[rng_lib.numpy_rng(config.seed, _STREAM).permutation(size.samples)[: size.negative]] = True
  negative = negative[:limit]
  chosen: tuple[int | None, ...] = (None,) * len(negative)
  if subset == build_config.CONFLICT and config.conflict.checkpoint and not dry:
    count = config.conflict.traces or len(negative)
    traces.write(config, out, count=count, make_painter=make_painter, progress=traced)
    chosen = traces.chosen(out / traces.FOLDER, negative)
  if subset == build_config.ALIGNMENT and config.alignment.source_share and not dry:
    _import_source(config, out, count=sum(_spread(i) < config.alignment.source_share for i in range(len(negative))))
  return Slots(config=config, subset=subset, negative=negative, traces=chosen, out=str(out))


def _entries(slots: Slots, out: pathlib.Path, *, start: int, make_painter: MakePainter | None) -> Iterator[base.Entry]:
  """`config.tries` entries a slot, in the order of the slots; attempts that were not needed are None.

  start: entries that are safe; a place is noted after a sample alone, so the rest of its slot was not needed.
  """
  tries = slots.config.tries
  first = -(-start // tries)
  for row in range(first * tries):
    yield base.Entry(_where(slots.subset, row, tries), None)
  failed: list[int] = []  # Slots in a row that services failed.
  for slot, outcomes, files in _in_order(slots, out, first=first, make_painter=make_painter):
    failed = [] if _lasts(outcomes) else [*failed, slot]
    if len(failed) >= slots.config.work.most_failures:
      slot_files.forget(out / FINISHED, failed)
      reason = getattr(outcomes[-1], 'reason', '')
      raise errors.Unavailable(
        f'{len(failed)} samples in a row failed ({reason}). What is built is kept; the same command goes on.'
      )
    if failed:  # It counts from here on: a resumed build must not make it otherwise.
      slot_files.keep(out / FINISHED, slot, outcomes)
    for number in range(tries):
      outcome = outcomes[number] if number < len(outcomes) else None
      given = files if isinstance(outcome, trajectory_lib.Trajectory) else ()
      yield base.Entry(_where(slots.subset, slot * tries + number, tries), outcome, given)


def _in_order(
  slots: Slots, out: pathlib.Path, *, first: int, make_painter: MakePainter | None
) -> Iterator[tuple[int, list[Outcome], Sequence[bytes | None]]]:
  """(slot, outcomes, picture files) of every slot from `first` on."""
  config = slots.config
  if config.uses_services:
    kit = tools.of(config, out, make_painter=make_painter)
    make = functools.partial(slot_files.kept, out / FINISHED, functools.partial(slots.make, kit), lasts=_lasts)
    with concurrent.futures.ThreadPoolExecutor(config.work.threads) as pool:
      yield from in_order.results(
        pool, (functools.partial(make, piece) for piece in range(first, len(slots))), ahead=2 * config.work.threads
      )
    return
  # Threads of the painter's own are enough, and its weights are not sent to other processes.
  exact = config.renderer.name == 'world' and config.judge.name == 'exact'
  if not config.work.processes or not exact:
    kit = tools.of(config, out, make_painter=make_painter)
    for slot in range(first, len(slots)):
      yield slot, slots.make(kit, slot), ()
    return
  chunks = [range(i, min(i + config.work.chunk, len(slots))) for i in range(first, len(slots), config.work.chunk)]
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(
    config.work.processes, mp_context=context, initializer=_start_worker, initargs=(slots,)
  ) as pool:
    for made in in_order.results(
      pool, (functools.partial(_make_chunk, piece) for piece in chunks), ahead=2 * config.work.processes
    ):
      yield from made


_worker: list[Any] = []  # Of a worker process: its slots and tools.


def _start_worker(slots: Slots):
  _worker[:] = [slots, tools.of(slots.config, pathlib.Path(slots.out))]


def _make_chunk(chunk: range) -> list[tuple[int, list[Outcome], Sequence[bytes | None]]]:
  slots, kit = _worker
  return [(slot, outcomes := slots.make(kit, slot), slot_files.pictures(outcomes)) for slot in chunk]


def _import_source(config: build_config.BuildConfig, out: pathlib.Path, *, count: int):
  from pdgen.construction import importers

  folder = out / SOURCE
  if count and not (folder / run.DONE).exists():
    importers.import_records(config.alignment.format, config.alignment.source, folder, limit=count, heldout=0)


@functools.lru_cache(maxsize=4)
def _reader(folder: str) -> records.Reader:
  return records.Reader(folder)


def _tell(progress: Callable[[run.Counts, int], None], samples: int, counts: run.Counts):
  progress(counts, samples)


def _where(subset: str, row: int, tries: int) -> base.Where:
  return base.Where(subset, row // tries + 1, f'attempt {row % tries + 1}')


def _lasts(outcomes: Sequence[Outcome]) -> bool:
  """Whether a slot ended otherwise than by services alone, which may be well again when the build goes on."""
  return not all(isinstance(o, base.Rejected) and o.reason.startswith('service: ') for o in outcomes)


def _spread(index: int) -> float:
  """A number in [0, 1) for an index, any run of them evenly spread."""
  return (index + 1) * 0.7548776662466927 % 1.0
