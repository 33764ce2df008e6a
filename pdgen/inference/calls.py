"""Compiled calls: which requests share one, with how many rows, and whether these fit the device."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import modes as modes_lib
from pdgen.data.tokenizers import base
from pdgen.inference import memory
from pdgen.inference import requests as requests_lib
from pdgen.inference import sizes as sizes_lib
from pdgen.inference.requests import Size
from pdgen.sampling import cycle, lanes

# Trajectories of a batch when the caller does not say: enough to use the machine, small enough for any of them.
DEFAULT_BATCH = 32
QUEUE = 4  # Trajectories of a compiled call, to a row of the batch, where rows that have ended take the next one.


class Call(NamedTuple):
  """What a compiled call takes."""

  numbers: list[int]  # Of the requests.
  rows: int  # Of the batch, or of the queue.
  shape: requests_lib.BatchShape
  plan: lanes.Plan | None  # None: each request has its own row.


@dataclasses.dataclass(frozen=True)
class Planner:
  """Of one painter, whose fields these are."""

  config: config_lib.Config
  params: Any
  tokenizer: base.Tokenizer
  mesh: Mesh | None

  def shape(self, requests: Sequence[requests_lib.Request]) -> requests_lib.BatchShape:
    return requests_lib.batch_shape(requests, config=self.config, tokenizer=self.tokenizer)

  def split(self, requests: Sequence[requests_lib.Request], batch_size: int | None, *, refill: bool) -> Iterator[Call]:
    """What each compiled call takes. Requests whose sampling configs may share a program and that paint sizes of one
    bucket (`sizes.buckets`) share a shape, and so a program, whatever their modes and prefixes. refill: rows may be
    refilled.
    """
    programs: dict[Any, list[int]] = {}
    for i, request in enumerate(requests):
      protocol = modes_lib.of(request.start.mode).protocol is not None
      kind = requests_lib.program_of(request.sampling), protocol, bool(request.begins)
      programs.setdefault(kind, []).append(i)
    groups: list[list[int]] = []
    for numbers in programs.values():
      painted = [requests[i].painted(self.config.model) for i in numbers]
      groups += [[numbers[i] for i in bucket] for bucket in sizes_lib.buckets(painted, self.config.model)]
    for group in groups:
      shape = self.shape([requests[i] for i in group])
      size = self.rows(batch_size, min(len(group), DEFAULT_BATCH))
      plan = lanes.Plan.of(size) if refill and self.mesh is None and size >= lanes.LEAST else None
      rows = size if plan is None or len(group) <= size else QUEUE * size
      if plan and not self._fits([requests[i] for i in group], shape=shape, rows=rows, plan=plan):
        plan, rows = None, size  # Lanes hold some of the cache twice.
      for first in range(0, len(group), rows):
        yield Call(group[first : first + rows], rows, shape, plan)

  def rows(self, batch_size: int | None, default: int) -> int:
    """The batch size, rounded up to what the mesh divides. Raises: ValueError for a size below 1."""
    batch_size = default if batch_size is None else batch_size
    if batch_size < 1:
      raise ValueError(f'{batch_size=}: a batch holds at least 1 trajectory.')
    ways = self._row_ways
    return -(-batch_size // ways) * ways

  @property
  def _row_ways(self) -> int:
    """Devices that share the rows of a batch."""
    return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in mesh_lib.ROWS)

  @functools.cached_property
  def _memory(self) -> tuple[int, int | None]:
    """Bytes on a device: of the weights, and of all that it has (None: not known)."""
    return memory.of_weights(self.params), memory.limit(self.params)

  def _fits(self, requests: Sequence[requests_lib.Request], **batch: Any) -> bool:
    """Whether a batch fits the device. Arguments as of `check_fits`."""
    try:
      self.check_fits(requests, **batch)
    except ValueError:
      return False
    return True

  def check_fits(
    self,
    requests: Sequence[requests_lib.Request],
    *,
    shape: requests_lib.BatchShape,
    rows: int,
    plan: lanes.Plan | None = None,
  ):
    """Raises ValueError for a batch with caps that leave no room, or that does not fit the device."""
    self.check_room(shape, rows=rows, sizes=[request.size for request in requests], plan=plan)

  def check_room(
    self, shape: requests_lib.BatchShape, *, rows: int, sizes: Sequence[Size | None], plan: lanes.Plan | None = None
  ):
    model, sampling, prefix = self.config.model, shape.sampling, shape.row_budget
    picture_tokens = max(model.picture_tokens_of(size or model.own_size) for size in sizes)
    worst = cycle.max_tokens_per_round(sampling, picture_tokens)
    if sampling.max_tokens < worst:
      raise ValueError(f'{sampling.max_tokens=} leaves no room: a plan, an inspection and a picture may take {worst}.')
    weights, limit = self._memory
    rows = -(-rows // self._row_ways)
    split = 1 if self.mesh is None else self.mesh.shape['tensor']
    limit = 2**63 if limit is None else limit
    needed = memory.required(
      model, sampling, prefix=prefix, rows=rows, heads_split=split, canvas=shape.canvas, plan=plan
    )
    memory.check(needed, weights=weights, rows=rows, prefix=prefix, max_tokens=sampling.max_tokens, limit=limit)
