"""From (seed, index) to packed batches: world -> sequence -> packing -> batch -> prefetch, all of it resumable.

    python -m pdgen.data.pipeline --config=configs/shapes.py

prints what a trajectory takes, how full the rows are and how fast they are made.

A sample is a function of (config, sources, index) alone. State of the iterator: the place in the index and the places
that wait in the packer; a run resumed from it sees exactly the batches that it would have seen.
"""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from pdgen import worlds
from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.core import rng as rng_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import packing, sequence, tokenizers
from pdgen.data.tokenizers import base

_ENDLESS = 2**48  # Trajectories made on the fly have no end; grain wants a length.


class Samples:
  """The trajectory of an index, as a packable sample. Pickles to worker processes.

  Attributes:
    config: of the experiment; its seed and `data`.
    sources: lists of self-sampled trajectories (`data.store`); together they take `data.self_share` of the samples.
    world: module or object with `KINDS` and `trajectory(kind, *, seed, index)`; None: `pdgen.worlds.<data.world>`,
      looked up by name, so that data needs no world to be imported.
  """

  def __init__(
    self,
    config: config_lib.Config,
    *,
    sources: Sequence[Sequence[trajectory_lib.Trajectory]] = (),
    world: Any = None,
  ):
    self.config = config
    self.sources = [source for source in sources if len(source)]
    self._given_world = world
    unknown = sorted({kind for kind, _ in config.data.mixture} - set(self.world.KINDS))
    if unknown:
      raise ValueError(f'config.data.mixture names {unknown[0]!r}. Known kinds: {list(self.world.KINDS)}')
    shares = np.array([share for _, share in config.data.mixture], np.float64)
    if not len(shares) or (shares < 0).any() or shares.sum() <= 0:
      raise ValueError(f'{config.data.mixture=} must give shares of at least 0, one of them above.')
    self._ceilings = np.cumsum(shares / shares.sum())

  @functools.cached_property
  def world(self) -> Any:
    return self._given_world or worlds.get(self.config.data.world)

  @property
  def tokenizer(self) -> base.Tokenizer:
    return tokenizers.load(self.config.data.tokenizer)

  def __getstate__(self) -> dict[str, Any]:
    return {name: value for name, value in self.__dict__.items() if name != 'world'}

  def __call__(self, index: int) -> packing.Sample:
    """The sample at that place of the endless index."""
    cfg = self.config
    rng = rng_lib.numpy_rng(cfg.seed, int(index))
    u_source, u_kind = rng.random(2)
    if self.sources and u_source < cfg.data.self_share:
      source = self.sources[int(rng.integers(len(self.sources)))]
      number = int(rng.integers(len(source)))
      trajectory, name = source[number], f'Self-sampled trajectory {number}'
    else:
      kind = cfg.data.mixture[min(int(np.searchsorted(self._ceilings, u_kind, side='right')), len(self._ceilings) - 1)][
        0
      ]
      trajectory = self.world.trajectory(kind, seed=cfg.seed, index=int(index))
      name = f'Trajectory {kind!r} {index}'
    row = sequence.build(
      trajectory,
      tokenizer=self.tokenizer,
      model=cfg.model,
      sequence=cfg.data.sequence,
      rng=rng,
      canvas=cfg.canvas,
    )
    return packing.Sample(name=f'{name} ({trajectory.prompt!r})', row=row)


def fits(config: config_lib.Config, trajectory: trajectory_lib.Trajectory) -> bool:
  """Whether a row has room for it. What a model paints may be wrong in so many ways that its inspection takes pages."""
  data, rng = config.data, np.random.default_rng(0)
  words = tokenizers.load(data.tokenizer)
  row = sequence.build(
    trajectory, tokenizer=words, model=config.model, sequence=data.sequence, rng=rng, canvas=config.canvas
  )
  return all(n <= most for n, most in zip(packing.sizes(row), config.row_budget, strict=True))


def dataset(
  config: config_lib.Config,
  *,
  sources: Sequence[Sequence[trajectory_lib.Trajectory]] = (),
  world: Any = None,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.IterDataset:
  """The endless dataset of PackedBatch with `batch_size // process_count` rows, for one of the processes.

  Each of `data.shards` packs every so-many-th sample into its own rows of a batch, whichever process it is made by: a
  batch of all processes is the same for every number of them.

  With `data.workers > 0` the caller must be a main module behind `if __name__ == '__main__'`. Another number of workers
  makes other (equally distributed) batches, and their states do not fit each other.

  Raises: ValueError for a mixture, a batch size or a sample that does not fit, naming the config field.
  """
  data = config.data
  if data.batch_size % data.shards:
    raise ValueError(f'{config.data.batch_size=} must be a multiple of {config.data.shards=}.')
  if data.shards % process_count:
    raise ValueError(f'{config.data.shards=} must be a multiple of {process_count=}.')
  make = Samples(config, sources=sources, world=world)
  own = data.shards // process_count
  rows = [
    packing.PackIterDataset(
      grain.MapDataset.range(shard, _ENDLESS, data.shards).map(make), budgets=config.row_budget, bins=data.packing_bins
    )
    for shard in range(process_index * own, (process_index + 1) * own)
  ]
  rows = rows[0] if own == 1 else _RoundRobin(rows, each=data.batch_size // data.shards)
  ready = rows.batch(data.batch_size // process_count)
  if data.workers:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # Grain reads its flags, which outside of absl.app.run nobody has parsed.
    ahead = max(1, data.prefetch // data.workers)
    return ready.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=ahead))
  return grain.experimental.ThreadPrefetchIterDataset(ready, prefetch_buffer_size=data.prefetch)


def batches(config: config_lib.Config, **options: Any) -> grain.DatasetIterator:
  """Iterator over `dataset(config, **options)`: `next`, `get_state`, `set_state`, `start_prefetch`, `close`.

  To change the sources in the middle of a run: `batches(config, sources=more)`, then `set_state(old.get_state())`.
  """
  return iter(dataset(config, **options))


def fingerprint(config: config_lib.Config, **options: Any) -> str:
  """A digest of the first samples: equal on all machines whose data are the same."""
  digest, samples = hashlib.sha256(), Samples(config, **options)
  for index in range(4):
    for field in _fields(samples(index).row):
      digest.update(f'{field.dtype}{field.shape}'.encode() + np.ascontiguousarray(field).tobytes())
  return digest.hexdigest()[:16]


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


def _fields(row: Any) -> list[np.ndarray]:
  """The arrays of a row, in order."""
  if isinstance(row, tuple):
    return [field for part in row for field in _fields(part)]
  return [] if row is None else [np.asarray(row)]


def report(config: config_lib.Config, *, batches: int = 50, **options: Any) -> dict[str, float]:
  """Measures the data of a config: fill of both budgets, tokens a trajectory, speed on one thread."""
  samples = Samples(config, **options)
  sizes = np.array([packing.sizes(samples(i).row) for i in range(500)])
  single = dataclasses.replace(config.data, workers=0, prefetch=0)
  iterator = iter(dataset(dataclasses.replace(config, data=single), **options))
  next(iterator)  # Fills the pool.
  fills, trajectories, start = [], 0, time.perf_counter()
  for _ in range(batches):
    batch = next(iterator)
    fills.append(packed.fill(batch))
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
    'trajectories a row': trajectories / batches / config.data.batch_size,
    'trajectories a second': trajectories / seconds,
  }


def main():
  """Prints the report of a config file."""
  from absl import app
  from ml_collections import config_flags

  flag = config_flags.DEFINE_config_file('config', None, 'File with get_config().')

  def run(_):
    for name, value in report(config_lib.from_config_dict(flag.value)).items():
      print(f'{name:<32}{value:10.3f}')

  app.run(run)


if __name__ == '__main__':
  main()
