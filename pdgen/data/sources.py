"""Where training trajectories come from: worlds, record sets, mixtures of them by weight.

A source is `len`, `[i] -> Trajectory` and `fingerprint()`; `from_config` makes the one that `config.data.sources`
names. Someone with trajectories of their own writes them as a record set (`data.records`), or writes a class with these
three methods and gives it to `pipeline.dataset(config, source=..)`.

    sources = (
      SourceConfig(kind='world', name='shapes', weight=0.75),
      SourceConfig(kind='records', name='/data/mine', weight=0.25),
    )
"""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from pdgen import worlds
from pdgen.core import config as config_lib
from pdgen.core import rng as rng_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import record_codec, records
from pdgen.worlds import base as world_base

ENDLESS = 2**48  # Length of a source that makes trajectories on the fly.
_MIXTURE, _EPOCH, _KNOWLEDGE = (
  1_000_001,
  1_000_002,
  1_000_003,
)  # Random streams, apart from the numbers that a sample's own stream has.


@runtime_checkable
class Source(Protocol):
  """Trajectories by number, the same one each time. Pickles to worker processes."""

  def __len__(self) -> int:
    """Number of trajectories; ENDLESS for a source that makes them on the fly."""
    ...

  def __getitem__(self, index: int) -> trajectory_lib.Trajectory: ...

  def fingerprint(self) -> str:
    """A digest of the content: equal on all machines whose data are the same."""
    ...


class WorldSource:
  """Trajectories that a world makes on the fly, kinds drawn by their shares."""

  def __init__(
    self,
    world: str | world_base.World,
    *,
    mixture: Sequence[tuple[str, float]] = (),
    knowledge: float = 0.0,
    seed: int = 0,
  ):
    """Makes the source.

    Args:
      world: name of a world, or the world itself.
      mixture: (kind, share); shares are normalised. Empty: all kinds of the world, equally often.
      knowledge: share of the trajectories whose prompt names what is wanted by a fact.
      seed: of the trajectories and of the kinds.

    Raises: ValueError for a kind that the world does not know, shares that do not add up to more than 0, and facts of a
      world that has none (`worlds.base.KnowingWorld`).
    """
    self._name = world if isinstance(world, str) else ''
    self._given = None if isinstance(world, str) else world
    self._mixture = tuple(mixture) or tuple((kind, 1.0) for kind in self.world.KINDS)
    self._seed, self._knowledge = seed, knowledge
    if knowledge:
      worlds.require(self.world, world_base.KnowingWorld)
    if unknown := sorted({kind for kind, _ in self._mixture} - set(self.world.KINDS)):
      raise ValueError(f'The mixture names the kind {unknown[0]!r}. Known kinds: {list(self.world.KINDS)}')
    shares = np.array([share for _, share in self._mixture], np.float64)
    if (shares < 0).any() or shares.sum() <= 0:
      raise ValueError(f'{self._mixture=} must give shares of at least 0, one of them above.')
    self._cumulative = np.cumsum(shares / shares.sum())

  @functools.cached_property
  def world(self) -> world_base.World:
    return worlds.get(self._name) if self._given is None else self._given

  def __getstate__(self) -> dict:
    return {name: value for name, value in self.__dict__.items() if name != 'world'}

  def __len__(self) -> int:
    return ENDLESS

  def __getitem__(self, index: int) -> trajectory_lib.Trajectory:
    # The second draw of the sample's stream; the first is not used any more.
    u_kind = sample_rng(self._seed, index, skip=False).random(2)[1]
    number = min(int(np.searchsorted(self._cumulative, u_kind, side='right')), len(self._mixture) - 1)
    made = self.world.trajectory(self._mixture[number][0], seed=self._seed, index=index)
    # A stream apart: what is asked plainly stays as it is, whatever the share.
    if self._knowledge and rng_lib.numpy_rng(self._seed, index, _KNOWLEDGE).random() < self._knowledge:
      world = worlds.require(self.world, world_base.KnowingWorld)
      return world.asked_by_fact(made, seed=self._seed, index=index)
    return made

  def fingerprint(self) -> str:
    """Of the first trajectories: worlds are code, and the code is what may differ."""
    told = [f'knowledge {self._knowledge}'] if self._knowledge else []  # The first four may all be asked plainly.
    return _digest([*told, *(record_codec.encode(self[i], name=f'trajectory {i}')[1] for i in range(4))])


class RecordSource:
  """Trajectories of a record set (`data.records`)."""

  def __init__(self, folder: str):
    """Raises: FileNotFoundError or ValueError for a folder that holds no whole record set."""
    self.name = folder
    self._reader = records.Reader(folder)

  def __len__(self) -> int:
    return len(self._reader)

  def __getitem__(self, index: int) -> trajectory_lib.Trajectory:
    return self._reader[index]

  def fingerprint(self) -> str:
    return self._reader.fingerprint()

  def verify(self):
    """Reads every byte. Raises: ValueError naming a damaged file."""
    self._reader.verify()


class ListSource:
  """Trajectories in memory."""

  def __init__(self, trajectories: Sequence[trajectory_lib.Trajectory], *, name: str = ''):
    """name: of the file that they were read from."""
    self._trajectories, self.name = list(trajectories), name

  def __len__(self) -> int:
    return len(self._trajectories)

  def __getitem__(self, index: int) -> trajectory_lib.Trajectory:
    return self._trajectories[index]

  def fingerprint(self) -> str:
    return _digest(record_codec.encode(t, name=f'trajectory {i}')[1] for i, t in enumerate(self._trajectories))


class Mixture:
  """An endless source that mixes others by weight.

  Of every 1,024 samples each source gives its share, in random order; a finite source gives all of its trajectories
  once an epoch, in an order of each epoch's own. A sample is a function of its number and the arguments alone.

  >>> parts = [ListSource(['a0', 'a1']), ListSource(['b0', 'b1', 'b2'])]
  >>> mixture = Mixture(parts, weights=[0.25, 0.75], seed=0)
  >>> import collections
  >>> found = collections.Counter(mixture[i] for i in range(1024))
  >>> found['a0'], found['a1'], found['b0']
  (128, 128, 256)
  """

  _BLOCK = 1024

  def __init__(self, parts: Sequence[Source], *, weights: Sequence[float], seed: int):
    """Raises: ValueError without parts, or for weights that are not above 0."""
    if not parts or len(parts) != len(weights) or min(weights) <= 0 or not np.isfinite(weights).all():
      raise ValueError(f'A mixture needs sources, each with a weight above 0; these are {len(parts)} with {weights}.')
    self._parts, self._seed = list(parts), seed
    self._cumulative = np.cumsum(np.array([0.0, *weights]) / sum(weights))
    self._cumulative[-1] = 1.0

  def __len__(self) -> int:
    return ENDLESS

  def __getitem__(self, index: int) -> trajectory_lib.Trajectory:
    part, number = self.locate(index)
    return self._parts[part][number]

  def locate(self, index: int) -> tuple[int, int]:
    """(which source, number of the trajectory in it) of a sample."""
    if len(self._parts) == 1:
      part, count = 0, index
    else:
      block, within = divmod(index, self._BLOCK)
      part, count = self._in_block(block, within)
    length = len(self._parts[part])
    if length >= ENDLESS:
      return part, index
    epoch, place = divmod(count, length)
    return part, int(_order(self._seed, part, epoch, length)[place])

  def _in_block(self, block: int, within: int) -> tuple[int, int]:
    """(source, how many of its samples came before) of the sample at a place of a block."""
    before, after = (np.diff(np.round(b * self._BLOCK * self._cumulative)).astype(int) for b in (block, block + 1))
    sources = np.repeat(np.arange(len(self._parts)), after - before)
    sources = rng_lib.numpy_rng(self._seed, _MIXTURE, block).permutation(sources)
    part = int(sources[within])
    return part, int(before[part] + np.sum(sources[:within] == part))

  def fingerprint(self) -> str:
    return _digest([str(self._cumulative.tolist()), *(part.fingerprint() for part in self._parts)])


def from_config(config: config_lib.Config, *, self_sampled: Sequence[Source] = ()) -> Mixture:
  """The source of `config.data.sources`.

  Args:
    config: of the experiment; its seed and `data`.
    self_sampled: drafts of the model's own, painted so far; together they are the source `self_sampled`, which is left
      out while there are none.

  Raises: ValueError naming the config field where nothing is left to learn from, or a source is wrong.
  """
  parts, weights = [], []
  for source in config.data.sources:
    if source.kind == 'world':
      made: list[Source] = [
        WorldSource(source.name, mixture=source.mixture, knowledge=source.knowledge, seed=config.seed)
      ]
    elif source.kind == 'records':
      made = [RecordSource(source.name)]
      if not len(made[0]):
        raise ValueError(
          f'The record set {source.name} is empty: there is nothing to learn from (config.data.sources).'
        )
    else:
      made = [one for one in self_sampled if len(one)]
    parts += made
    weights += [source.weight * len(one) / sum(map(len, made)) for one in made]
  if not parts:
    raise ValueError('There is nothing to learn from: config.data.sources names no world and no record set.')
  return Mixture(parts, weights=weights, seed=config.seed)


def sample_rng(seed: int, index: int, *, skip: bool = True) -> np.random.Generator:
  """The random stream of a sample: two draws choose what it is (`WorldSource`), the rest drop conditions.

  skip: what comes after those two draws.
  """
  rng = rng_lib.numpy_rng(seed, index)
  if skip:
    rng.random(2)
  return rng


@functools.lru_cache(maxsize=16)
def _order(seed: int, part: int, epoch: int, length: int) -> np.ndarray:
  """The order of a source's trajectories in an epoch."""
  return rng_lib.numpy_rng(seed, _EPOCH, part, epoch).permutation(length)


def _digest(parts: Iterable[str]) -> str:
  digest = hashlib.sha256()
  for part in parts:
    digest.update(f'{len(part)} {part}'.encode())
  return digest.hexdigest()
