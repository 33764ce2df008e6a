"""Input pipeline: source -> sequence -> packing -> batch -> prefetch; resumable exactly.

    python -m pdgen.inspect_data --config=configs/shapes.py

prints what a trajectory takes, how full the rows are and how fast they are made.

A sample is a function of (config, sources, index) alone. State of the iterator: the place in the index and the places
that wait in the packer; a run resumed from it sees exactly the batches that it would have seen.
"""

import hashlib
import multiprocessing
import os
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import packing, sequence, sources, tokenizers

_WORKERS = 'iterators_in_use_states'  # What grain calls the states of the worker processes.


class Samples:
  """The packable sample of an index: a trajectory of the source, as a row of tokens. Pickles to worker processes."""

  def __init__(self, config: config_lib.Config, source: sources.Source):
    """config: of the experiment; its seed, model and `data`."""
    self.config, self.source = config, source

  def __call__(self, index: int) -> packing.Sample:
    """The sample at that place of the index, which repeats a source that ends."""
    trajectory = self.source[int(index) % len(self.source)]
    rng = sources.sample_rng(self.config.seed, int(index))
    return packing.Sample(
      name=f'Trajectory {index} {_described(trajectory)}', row=build_row(self.config, trajectory, rng)
    )


def build_row(
  config: config_lib.Config, trajectory: trajectory_lib.Trajectory, rng: np.random.Generator | None
) -> packed.PackedBatch:
  """A trajectory as the config has it in its rows: `sequence.build`."""
  return sequence.build(
    trajectory,
    tokenizer=tokenizers.load(config.data.tokenizer),
    model=config.model,
    sequence=config.data.sequence,
    rng=rng,
    canvas=config.canvas,
  )


def fits(config: config_lib.Config, trajectory: trajectory_lib.Trajectory) -> bool:
  """Whether a row has room for it. What a model paints may be wrong in so many ways that its inspection takes pages."""
  row = build_row(config, trajectory, np.random.default_rng(0))
  return all(n <= most for n, most in zip(packing.sizes(row), config.row_budget, strict=True))


def _described(trajectory: trajectory_lib.Trajectory) -> str:
  made = trajectory.provenance
  return f'({trajectory.prompt!r}{f", {made.source} {made.kind}" if made else ""})'


def dataset(
  config: config_lib.Config,
  *,
  source: sources.Source | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.IterDataset:
  """The endless dataset of PackedBatch with `batch_size // process_count` rows, for one of the processes.

  Each of `data.shards` packs every so-many-th sample into its own rows of a batch, whichever process it is made by: a
  batch of all processes is the same for every number of them.

  With `data.workers > 0` the caller must be a main module behind `if __name__ == '__main__'`. Another number of workers
  makes other (equally distributed) batches; `without_workers` and `deal_again` make a state of theirs fit.

  Args:
    config: of the experiment.
    source: of the trajectories; None: that of `config.data.sources`.
    process_index: of this process.
    process_count: processes that share the batches out.

  Raises: ValueError for a source, a batch size or a sample that does not fit, naming the config field.
  """
  data = config.data
  if data.batch_size % data.shards:
    raise ValueError(
      f'{config.data.batch_size=} must be a multiple of {config.data.shards=}. Change one of them: a divisor of '
      'batch_size as --config.data.shards=.., or more rows as --config.data.batch_size=..'
    )
  if data.shards % process_count:
    raise ValueError(
      f'{config.data.shards=} must be a multiple of {process_count=}, such as --config.data.shards={process_count}'
    )
  make = Samples(config, source or sources.from_config(config))
  own = data.shards // process_count
  rows = [
    packing.PackIterDataset(
      grain.MapDataset.range(shard, sources.ENDLESS, data.shards).map(make),
      budget=config.row_budget,
      bins=data.packing_bins,
      skip_too_long=data.too_long == 'skip',
    )
    for shard in range(process_index * own, (process_index + 1) * own)
  ]
  rows = rows[0] if own == 1 else _RoundRobin(rows, each=data.batch_size // data.shards)
  ready = rows.batch(data.batch_size // process_count)
  if data.workers:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # Grain reads its flags, which outside of absl.app.run nobody has parsed.
    ahead = max(1, data.prefetch // data.workers)
    options = grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=ahead)
    return ready.mp_prefetch(options, worker_init_fn=_end_with_parent)
  return grain.experimental.ThreadPrefetchIterDataset(ready, prefetch_buffer_size=data.prefetch)


def batches(config: config_lib.Config, **options: Any) -> grain.DatasetIterator:
  """Iterator over `dataset(config, **options)`: `next`, `get_state`, `set_state`, `start_prefetch`, `close`.

  To change the source in the middle of a run: `batches(config, source=other)`, then `set_state(old.get_state())`.
  """
  return iter(dataset(config, **options))


def fingerprint(config: config_lib.Config, *, source: sources.Source | None = None) -> str:
  """A digest of the source and of its first samples: equal on all machines whose data are the same."""
  source = source or sources.from_config(config)
  digest, samples = hashlib.sha256(source.fingerprint().encode()), Samples(config, source)

  def add(name: str, field: np.ndarray):
    digest.update(f'{name}{field.dtype}{field.shape}'.encode() + np.ascontiguousarray(field).tobytes())

  for index in range(4):
    packed.map_fields(add, samples(index).row)
  return digest.hexdigest()[:16]


class Layout(NamedTuple):
  """Who packs: what a position fits as it is."""

  packers: int  # `data.shards`, of all processes together. Each worker process has as many of its own.
  workers: int  # Worker processes of each process; 0: none.
  processes: int | None  # With worker processes: those that share the packers out. Without: any number can.


def layout(position: Any) -> Layout:
  """Of a position of the whole data."""
  parts = position.get('shards', [position])
  if _WORKERS not in parts[0]:
    return Layout(len(parts), 0, None)
  own = parts[0][_WORKERS][0].get('shards', [None])
  return Layout(len(own) * len(parts), len(parts[0][_WORKERS]), len(parts))


def without_workers(position: Any) -> Any:
  """A position of worker processes as one of as many packers in one process, which takes the same samples each.

  Worker w of W takes every W-th sample of a packer, the w-th and on.

  >>> worker = lambda n: {'next': n, 'waiting': []}
  >>> without_workers({'iterators_in_use_states': [worker(2), worker(1)], 'next_index_in_cycle': 1})
  {'turn': 0, 'shards': [{'next': 2, 'waiting': []}, {'next': 1, 'waiting': []}]}
  """
  packers, workers, processes = layout(position)
  if not processes:
    return position
  parts = [one[_WORKERS] for one in position.get('shards', [position])]
  own = packers // processes
  return merge_states(
    [parts[n // own][w].get('shards', [parts[n // own][w]])[n % own] for w in range(workers) for n in range(packers)]
  )


def with_workers(position: Any, *, like: Any, process_index: int, process_count: int) -> Any:
  """The state of one of the processes whose worker processes take a position over; inverse of `without_workers`.

  Args:
    position: of `workers x packers` packers in one process.
    like: the state of that process's iterator at its beginning.
    process_index: of the process.
    process_count: processes that share the packers out.
  """
  shards, workers = position.get('shards', [position]), len(like[_WORKERS])
  packers, share = len(shards) // workers, dict(process_index=process_index, process_count=process_count)
  each = [merge_states(shards[w * packers : (w + 1) * packers]) for w in range(workers)]
  return {**like, _WORKERS: [split_state(one, **share) for one in each]}


def deal_again(position: Any, *, shards: int) -> Any:
  """A position of the whole data for another number of packers: none of the samples is lost, none comes twice.

  Samples that some packers have taken and others have not come to yet wait.

  >>> two = {'turn': 0, 'shards': [{'next': 3, 'waiting': [1]}, {'next': 1, 'waiting': []}]}  # 0, 4 and 1 are packed
  >>> one = deal_again(two, shards=1)
  >>> one['next'], one['waiting']
  (5, [2, 3])
  """
  old = position.get('shards', [position])
  end = max(((one['next'] - 1) * len(old) + number + 1 for number, one in enumerate(old) if one['next']), default=0)
  waiting = []
  for number, one in enumerate(old):
    places = [*one['waiting'], *range(one['next'], -(-(end - number) // len(old)))]
    waiting += [place * len(old) + number for place in places]
  waiting.sort()
  new = [
    {
      'next': -(-(end - number) // shards),
      'waiting': [place // shards for place in waiting if place % shards == number],
      **{name: sum(one.get(name, 0) for one in old) if not number else 0 for name in ('skipped', 'unsupervised')},
    }
    for number in range(shards)
  ]
  return merge_states(new)


def merge_states(positions: Sequence[Any]) -> Any:
  """One position of the whole data from those of its processes (states of their iterators), in order."""
  if len(positions) == 1:
    return positions[0]
  return {'turn': 0, 'shards': [shard for position in positions for shard in position.get('shards', [position])]}


def split_state(position: Any, *, process_index: int, process_count: int) -> Any:
  """The state of one of the processes in that of the whole data (inverse of `merge_states`), for any number of them."""
  if process_count == 1:
    return position
  own = len(position['shards']) // process_count
  shards = position['shards'][process_index * own : (process_index + 1) * own]
  return shards[0] if own == 1 else {'turn': 0, 'shards': shards}


def _end_with_parent(index: int, count: int):
  """Called in a worker process: it ends when its parent does, even where that was killed and could not say so."""
  parent = multiprocessing.parent_process()
  if parent is None:
    return

  def watch():
    parent.join()
    os._exit(1)  # The main thread waits at a queue that nobody reads any more.

  threading.Thread(target=watch, daemon=True, name=f'parent of worker {index} of {count}').start()


class _RoundRobin(grain.IterDataset):
  """So many elements of each of the parents, one parent after the other."""

  def __init__(self, parents: Sequence[grain.IterDataset], *, each: int):
    super().__init__(parents)
    self._each = each

  def __iter__(self) -> grain.DatasetIterator:
    return _RoundRobinIterator([iter(parent) for parent in self._parents], each=self._each)


class _RoundRobinIterator(grain.DatasetIterator):
  """See _RoundRobin. State: the number of the next element in the round, and the parents' states."""

  def __init__(self, parents: Sequence[grain.DatasetIterator], *, each: int):
    super().__init__(parents)
    self._each = each
    self._turn = 0

  def __next__(self) -> Any:
    element = next(self._parents[self._turn // self._each])
    self._turn = (self._turn + 1) % (self._each * len(self._parents))
    return element

  def get_state(self) -> dict[str, Any]:
    return {'turn': self._turn, 'shards': [parent.get_state() for parent in self._parents]}

  def set_state(self, state: dict[str, Any]):
    self._turn = int(state['turn'])
    for parent, one in zip(self._parents, state['shards'], strict=True):
      parent.set_state(one)
