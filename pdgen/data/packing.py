"""Packs samples into fixed-size rows under two token budgets (und, gen), by beam search over a pool.

A row is filled from a pool of waiting samples: the oldest one, so that none waits for ever, and with it the set that
leaves the least of both budgets unused. First-fit and best-fit, which see one sample at a time, stay far below 95 %
when a row holds a handful of samples and has two lengths to meet.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from pdgen.core import packed

_BEAM = 256  # Partial sets kept while a row is searched.
_GOOD_ENOUGH = 0.01  # Share of a budget that may stay unused without searching on.
_SEARCHED = 10  # Samples of a row that are searched for; what more a long row holds are the oldest ones.
_LOOKED_AT = 8  # Oldest samples of which each of these is chosen, so that both budgets are used alike.
_CANDIDATES = 512  # Samples that the search looks at, the oldest ones.
_HOPELESS = 100  # Samples left out before a run of which most are too long, or all teach nothing, is an error.
_LOG = logging.getLogger(__name__)


class Sample(NamedTuple):
  """One sequence to pack. name: what an error calls it. row: as `data.sequence.build` makes it, without batch axis."""

  name: str
  row: packed.PackedBatch


def sizes(row: packed.PackedBatch) -> packed.RowBudget:
  """What a row or a sample takes of each budget, padding included."""
  vit_tokens = 0 if row.vit is None else len(row.vit.image)
  return packed.RowBudget(len(row.und.label), len(row.gen.patch), len(row.pictures), vit_tokens)


def teaches(row: packed.PackedBatch) -> bool:
  """Whether a row or a sample has a supervised token: in the cross-entropy or in the flow loss."""
  return bool((row.und.weight > 0).any() or (row.gen.weight > 0).any())


def select(waiting: np.ndarray, budget: packed.RowBudget) -> list[int]:
  """Indices of the samples that make the next row, ascending. waiting: int[N, 3 or 4], sizes in order.

  The first is always taken; with it the set, found by beam search, with the least unused of the two token budgets
  (sum of squared shares). A row that holds dozens of samples takes the oldest ones until some ten more fit, and these
  are searched for: a search from the start would end with half the row empty. Deterministic.

  >>> select(np.array([[50, 40, 1], [60, 10, 1], [50, 70, 1], [45, 55, 1]]), packed.RowBudget(100, 100, 9))
  [0, 3]
  """
  limits = np.asarray(budget)[: waiting.shape[1]]
  taken = _oldest(waiting, limits)
  rest = np.delete(np.arange(len(waiting)), taken)[:_CANDIDATES]
  used = waiting[taken].sum(axis=0)[None]
  best, least = _search(waiting[rest], used, limits)
  return sorted([*taken, *rest[best].tolist()])


def _oldest(waiting: np.ndarray, limits: np.ndarray) -> list[int]:
  """The first sample, and of a long row those after it until about `_SEARCHED` more fit."""
  taken, used = [0], waiting[0]
  typical = np.maximum(waiting[:, :2].mean(axis=0), 1)
  left = list(range(1, len(waiting)))
  while ((limits - used)[:2] / typical).min() > _SEARCHED:
    fitting = [i for i in left[:_LOOKED_AT] if (used + waiting[i] <= limits).all()]
    if not fitting:
      break
    after = (used + waiting[fitting])[:, :2] / limits[:2]
    chosen = fitting[np.abs(after[:, 0] - after[:, 1]).argmin()]
    taken, used = [*taken, chosen], used + waiting[chosen]
    left.remove(chosen)
  return taken


def _search(waiting: np.ndarray, used: np.ndarray, limits: np.ndarray) -> tuple[list[int], float]:
  """Beam search for the samples that leave the least unused: (their indices, how much that is). used: int[1, N]."""
  members = np.full([1, 1], -1, np.int64)
  best, least = [], _unused(used, limits)[0]
  while least > 2 * _GOOD_ENOUGH**2:
    # Ascending members: every set is met once.
    fits = (used[:, None] + waiting[None] <= limits).all(-1) & (np.arange(len(waiting)) > members[:, -1:])
    old, new = np.nonzero(fits)
    if not len(old):
      break
    used = used[old] + waiting[new]
    members = np.concatenate([members[old], new[:, None]], axis=1)
    unused = _unused(used, limits)
    if unused.min() < least:
      best, least = members[unused.argmin(), 1:].tolist(), unused.min()
    if len(used) > _BEAM:
      # Partial sets whose two shares are alike are the ones that average samples can complete.
      skew = np.abs(used[:, 0] / limits[0] - used[:, 1] / limits[1])
      kept = np.argpartition(skew, _BEAM)[:_BEAM]
      used, members = used[kept], members[kept]
  return best, least


def _unused(used: np.ndarray, budget: np.ndarray) -> np.ndarray:
  return np.sum((1 - used[:, :2] / budget[:2]) ** 2, axis=-1)


def pack_row(samples: Sequence[packed.PackedBatch], budget: packed.RowBudget) -> packed.PackedBatch:
  """One row of the samples in turn, padded to the budget (`core.packed.spec`); no batch axis.

  Segments, pictures and noised copies are numbered through the row.

  Args:
    samples: at least one, each unpadded with segment 1, all on the same canvas.
    budget: of the row.

  Raises: ValueError when they do not fit, in numbers or in kind: of grids and ViT streams all samples or none have
    their own.
  """
  total = packed.RowBudget(*(sum(part) for part in zip(*map(sizes, samples), strict=True)))
  if any(t > b for t, b in zip(total, budget, strict=True)):
    raise ValueError(f'{len(samples)} samples of together {total} do not fit a row of {budget}.')
  has_grids = _all_or_none('grids', samples)
  vit = samples[0].vit if _all_or_none('vit', samples) else None
  first = samples[0]
  spec = packed.spec(
    budget,
    canvas=first.pictures.shape[1:3],
    any_size=has_grids,
    vit_values=0 if vit is None else vit.pixels.shape[-1],
    pixels=str(first.pictures.dtype),
  )
  return packed.map_fields(_padded, spec, *_renumbered(samples))


def _renumbered(samples: Sequence[packed.PackedBatch]) -> list[packed.PackedBatch]:
  """The samples with segments, pictures, copies, ViT patches and ViT pictures numbered through their row."""
  out, pictures, copies, patches, images = [], 0, 0, 0, 0
  for number, sample in enumerate(samples, 1):
    und, gen, vit = sample.und, sample.gen, sample.vit
    seen = und.picture >= 0
    und = und._replace(
      tokens=und.tokens._replace(segment=np.full_like(und.tokens.segment, number)),
      picture=np.where(seen, und.picture + np.int32(pictures if vit is None else images), und.picture),
      patch=und.patch if vit is None else np.where(seen, und.patch + np.int32(patches), und.patch),
    )
    gen = gen._replace(
      tokens=gen.tokens._replace(segment=np.full_like(gen.tokens.segment, number)),
      picture=gen.picture + np.int32(pictures),
      copy=np.where(gen.copy > 0, gen.copy + np.int32(copies), gen.copy),
    )
    vit = None if vit is None else vit._replace(image=vit.image + np.int32(images))
    out.append(sample._replace(und=und, gen=gen, vit=vit))
    pictures += len(sample.pictures)
    copies += int(sample.gen.copy.max(initial=0))
    if sample.vit is not None:
      patches, images = patches + len(sample.vit.image), images + int(sample.vit.image.max(initial=0))
  return out


def _padded(name: str, field: packed.Field, *arrays: np.ndarray) -> np.ndarray:
  """The arrays one after the other in an array of the field's shape."""
  dtype = arrays[0].dtype if arrays[0].dtype == np.float32 else field.dtype  # ViT pixels may be normalised.
  out = np.full(field.shape, field.padding, dtype)
  np.concatenate(arrays, out=out[: sum(map(len, arrays))])
  return out


def _all_or_none(name: str, samples: Sequence[packed.PackedBatch]) -> bool:
  have = {getattr(s, name) is not None for s in samples}
  if len(have) > 1:
    raise ValueError(f'Some samples of a row have {name}, others have none. Build all of them in the same way.')
  return have.pop()


class PackIterDataset(grain.IterDataset):
  """Rows packed from a random-access dataset of `Sample`.

  The state of its iterator is the place in the parent and the places of the samples that wait, so that resuming makes
  those samples again and goes on exactly. Samples without a supervised token are left out and counted.
  """

  def __init__(self, parent: grain.MapDataset, *, budget: packed.RowBudget, bins: int, skip_too_long: bool = False):
    """Makes the dataset.

    Args:
      parent: the samples.
      budget: of a row.
      bins: rows' worth of tokens that wait in the pool.
      skip_too_long: leave out, and count, samples that are longer than a row; False: they are an error.
    """
    super().__init__(parent)
    self._samples = parent
    if min(budget[:3]) < 1 or bins < 1:
      raise ValueError(f'{budget=} and {bins=} must be at least 1 (vit_tokens may be 0).')
    self._budget, self._bins, self._skip_too_long = budget, bins, skip_too_long

  def set_slice(self, part: slice, sequential_slice: bool = False):
    """Called by grain in a worker process, which then packs every so-many-th sample."""
    if sequential_slice:
      raise ValueError('The parent has no end, so that it has no sequential slices. Use sequential_slice=False.')
    self._samples = self._samples.slice(part)
    self._parents = (self._samples,)

  def __iter__(self) -> grain.DatasetIterator:
    return _PackIterator(self._samples, budget=self._budget, bins=self._bins, skip_too_long=self._skip_too_long)


class _PackIterator(grain.DatasetIterator):
  """See PackIterDataset. Takes samples from the parent by place, in order."""

  def __init__(self, source: grain.MapDataset, *, budget: packed.RowBudget, bins: int, skip_too_long: bool):
    super().__init__()
    self._source, self._budget, self._bins, self._skip_too_long = source, budget, bins, skip_too_long
    self.set_state({'next': 0, 'waiting': []})

  def get_state(self) -> dict[str, Any]:
    waiting = [*(place for place, _ in self._pool), *self._to_load]
    return {'next': self._next, 'waiting': waiting, 'skipped': self._skipped, 'unsupervised': self._unsupervised}

  def set_state(self, state: dict[str, Any]):
    self._next = int(state['next'])
    # Samples left out so far, for their length and for want of a supervised token; absent in earlier versions' states.
    self._skipped, self._unsupervised = int(state.get('skipped', 0)), int(state.get('unsupervised', 0))
    self._to_load = [int(place) for place in state['waiting']]
    self._pool: list[tuple[int, packed.PackedBatch]] = []
    self._pool_rows = 0.0  # Rows that the pool would fill, were they perfectly full.

  def __next__(self) -> packed.PackedBatch:
    for place in self._to_load:
      self._take(place)
    self._to_load = []
    while self._pool_rows < self._bins and self._next < len(self._source):
      self._take(self._next)
      self._next += 1
    if not self._pool:
      raise StopIteration
    waiting = np.array([sizes(row) for _, row in self._pool])
    chosen = select(waiting, self._budget)
    rows = [self._pool[i][1] for i in chosen]
    self._pool_rows -= sum(self._row_share(row) for row in rows)
    self._pool = [entry for i, entry in enumerate(self._pool) if i not in set(chosen)]
    return pack_row(rows, self._budget)

  def _take(self, place: int):
    sample = self._source[place]
    assert sample is not None  # grain: an element that a filter dropped; nothing filters.
    if not teaches(sample.row):
      self._unsupervised += 1
      if self._unsupervised >= _HOPELESS and self._unsupervised + self._skipped > self._next:
        raise ValueError(
          f'There is nothing to learn from (config.data.sources): none of the first {self._unsupervised} samples has a '
          f'supervised token, neither a text that the model is to write nor a picture that it is to paint. The last of '
          f'them: {sample.name}. Look at one: python -m pdgen.inspect_data --config=.. --index=0'
        )
      return
    if (reason := self._too_long(sample)) is not None:
      if not self._skip_too_long:
        raise ValueError(
          f'{reason} Or leave such samples out: config.data.too_long=skip. A run that is under way goes on with either '
          'in a workdir of its own: --workdir=NEW --branch_from=OLD_WORKDIR'
        )
      self._skipped += 1
      _LOG.warning('%s It is left out, as %d were before it.', reason, self._skipped - 1)
      if self._skipped >= _HOPELESS and self._skipped > self._next / 2:
        raise ValueError(f'{self._skipped} of {self._next} samples are longer than a row. {reason}')
      return
    self._pool.append((place, sample.row))
    self._pool_rows += self._row_share(sample.row)

  def _row_share(self, row: packed.PackedBatch) -> float:
    und, gen, *_ = sizes(row)
    return (und / self._budget.und_tokens + gen / self._budget.gen_tokens) / 2

  def _too_long(self, sample: Sample) -> str | None:
    """Why a sample does not fit a row; None: it does."""
    needs = sizes(sample.row)
    for name, need, most in zip(packed.RowBudget._fields, needs, self._budget, strict=True):
      if need > most:
        return (
          f'{sample.name} needs {needs.und_tokens} und tokens, {needs.gen_tokens} gen tokens and {needs.pictures} '
          f'pictures, but a row holds {most} ({name}). Raise config.data.{name} to at least {need}.'
        )
    return None
