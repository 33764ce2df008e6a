"""Samples of unequal length into rows of two budgets, und tokens and gen tokens (design, "The packed batch").

A row is filled from a pool of waiting samples: the oldest one, so that none waits for ever, and with it the set that
leaves the least of both budgets unused. First-fit and best-fit, which see one sample at a time, stay far below 95 %
when a row holds a handful of samples and has two lengths to meet.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from pdgen.core import packed

_BEAM = 256  # Partial sets kept while a row is searched.
_GOOD_ENOUGH = 0.01  # Share of a budget that may stay unused without searching on.


class Sample(NamedTuple):
  """One sequence to pack. name: what an error calls it. row: as `data.sequence.build` makes it, without batch axis."""

  name: str
  row: packed.PackedBatch


def sizes(row: packed.PackedBatch) -> packed.RowBudget:
  """What a row or a sample takes of each budget, padding included."""
  vit_tokens = 0 if row.vit is None else len(row.vit.image)
  return packed.RowBudget(len(row.und.label), len(row.gen.patch), len(row.pictures), vit_tokens)


def select(sizes: np.ndarray, budgets: packed.RowBudget) -> list[int]:
  """Indices of the samples that make the next row, ascending. sizes: int[N, 3 or 4] in the order of waiting.

  The first is always taken; with it the set, found by beam search, with the least unused of the two token budgets
  (sum of squared shares). Deterministic.

  >>> select(np.array([[50, 40, 1], [60, 10, 1], [50, 70, 1], [45, 55, 1]]), packed.RowBudget(100, 100, 9))
  [0, 3]
  """
  budget = np.asarray(budgets)[: sizes.shape[1]]
  members = np.zeros([1, 1], np.int64)
  used = np.asarray(sizes[:1])
  best, least = [0], _unused(used, budget)[0]
  while least > 2 * _GOOD_ENOUGH**2:
    # Ascending members: every set is met once.
    fits = (used[:, None] + sizes[None] <= budget).all(-1) & (np.arange(len(sizes)) > members[:, -1:])
    old, new = np.nonzero(fits)
    if not len(old):
      break
    used = used[old] + sizes[new]
    members = np.concatenate([members[old], new[:, None]], axis=1)
    unused = _unused(used, budget)
    if unused.min() < least:
      best, least = members[unused.argmin()].tolist(), unused.min()
    if len(used) > _BEAM:
      # Partial sets whose two shares are alike are the ones that average samples can complete.
      skew = np.abs(used[:, 0] / budget[0] - used[:, 1] / budget[1])
      kept = np.argpartition(skew, _BEAM)[:_BEAM]
      used, members = used[kept], members[kept]
  return best


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
  total = packed.RowBudget(*np.sum([sizes(s) for s in samples], axis=0).tolist())
  if any(t > b for t, b in zip(total, budget, strict=True)):
    raise ValueError(f'{len(samples)} samples of together {total} do not fit a row of {budget}.')
  has_grids, has_vit = (_all_or_none(name, samples) for name in ('grids', 'vit'))
  first = samples[0]
  spec = packed.spec(
    budget,
    canvas=first.pictures.shape[1:3],
    any_size=has_grids,
    vit_values=first.vit.pixels.shape[-1] if has_vit else 0,
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
  those samples again and goes on exactly.
  """

  def __init__(self, parent: grain.MapDataset, *, budgets: packed.RowBudget, bins: int):
    """bins: rows' worth of tokens that wait in the pool."""
    super().__init__(parent)
    if min(budgets[:3]) < 1 or bins < 1:
      raise ValueError(f'{budgets=} and {bins=} must be at least 1 (vit_tokens may be 0).')
    self._budgets = budgets
    self._bins = bins

  def set_slice(self, part: slice, sequential_slice: bool = False):
    """Called by grain in a worker process, which then packs every so-many-th sample."""
    if sequential_slice:
      raise ValueError('The parent has no end, so that it has no sequential slices. Use sequential_slice=False.')
    self._parents = (self._parent.slice(part),)

  def __iter__(self) -> grain.DatasetIterator:
    return _PackIterator(self._parent, budgets=self._budgets, bins=self._bins)


class _PackIterator(grain.DatasetIterator):
  """See PackIterDataset. Takes samples from the parent by place, in order."""

  def __init__(self, source: grain.MapDataset, *, budgets: packed.RowBudget, bins: int):
    super().__init__()
    self._source = source
    self._budgets = budgets
    self._bins = bins
    self.set_state({'next': 0, 'waiting': []})

  def get_state(self) -> dict[str, Any]:
    return {'next': self._next, 'waiting': [*(place for place, _ in self._pool), *self._to_load]}

  def set_state(self, state: dict[str, Any]):
    self._next = int(state['next'])
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
    chosen = select(waiting, self._budgets)
    rows = [self._pool[i][1] for i in chosen]
    self._pool_rows -= sum(self._row_share(row) for row in rows)
    self._pool = [entry for i, entry in enumerate(self._pool) if i not in set(chosen)]
    return pack_row(rows, self._budgets)

  def _take(self, place: int):
    sample = self._source[place]
    self._check(sample)
    self._pool.append((place, sample.row))
    self._pool_rows += self._row_share(sample.row)

  def _row_share(self, row: packed.PackedBatch) -> float:
    und, gen, *_ = sizes(row)
    return (und / self._budgets.und_tokens + gen / self._budgets.gen_tokens) / 2

  def _check(self, sample: Sample):
    needs = sizes(sample.row)
    for name, need, budget in zip(packed.RowBudget._fields, needs, self._budgets, strict=True):
      if need > budget:
        raise ValueError(
          f'{sample.name} needs {needs.und_tokens} und tokens, {needs.gen_tokens} gen tokens and {needs.pictures} '
          f'pictures, but a row holds {budget} ({name}). Raise config.data.{name} to at least {need}.'
        )
