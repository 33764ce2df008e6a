"""Importers: other people's trajectories as record sets, found by the name of their format.

    counts = importers.import_records('jsonl', '/data/mine', '/data/mine_set')
    config.data.sources = ('records:/data/mine_set/train', ..)

docs/add_a_dataset.md has the format for data of one's own, and how to add an importer: a module with two functions
(`base`) and a line here.
"""

import os
from collections.abc import Callable, Iterator

import numpy as np

from pdgen.construction.importers import (
  base,
  gen_ref,
  jsonl,
  math_canvas,
  run,
  thinkmorph,
  umm_reflection,
  zebra_cot,
)
from pdgen.construction.importers.base import Rejected, Where
from pdgen.construction.importers.run import Counts
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import splits

FORMATS: dict[str, base.Format] = {
  'jsonl': jsonl,
  'thinkmorph': thinkmorph,
  'zebra_cot': zebra_cot,
  'math_canvas': math_canvas,
  'gen_ref': gen_ref,
  'umm_reflection': umm_reflection,
}

__all__ = ['FORMATS', 'Counts', 'Rejected', 'Where', 'get', 'import_records', 'read']


def get(name: str) -> base.Format:
  """The format of that name. Raises: ValueError for an unknown one."""
  if name not in FORMATS:
    raise ValueError(f'Unknown format {name!r}. Known: {sorted(FORMATS)}')
  return FORMATS[name]


def read(
  name: str, source: base.Source, *, start: int = 0, share: float = 1.0
) -> Iterator[tuple[Where, trajectory_lib.Trajectory | Rejected]]:
  """Every row of a source, with its place: a trajectory, or why it is none.

  Args:
    name: of the format.
    source: a folder, a file, or a list of them.
    start: rows to pass over, undecoded.
    share: of the rows that are taken, chosen by a hash of their place.

  Raises: FileNotFoundError for a source without files of the format; ValueError for an unknown format, or for a link
    out of the folder; ImportError for a package that the format needs.
  """
  for entry in base.entries(get(name), source, start=start, share=share):
    if entry.outcome is not None:
      yield entry.where, entry.outcome


def import_records(
  format: str,
  source: base.Source,
  out: str | os.PathLike,
  *,
  limit: int | None = None,
  share: float = 1.0,
  heldout: float = splits.HELDOUT_SHARE,
  resize: Callable[[np.ndarray], np.ndarray] | None = None,
  shard_records: int = 1000,
  progress: Callable[[Counts], None] | None = None,
) -> Counts:
  """Imports a data set as the record sets `out`/train and `out`/heldout; see `run` for the files.

  A row that is malformed stops nothing: it is a line of `out`/rejected.jsonl. An import that was stopped goes on when
  it is called again with the same arguments.

  Args:
    format: name of the format, see FORMATS.
    source: a folder, a file, or a list of them.
    out: folder of the import; made where it does not exist.
    limit: trajectories to keep; the source is read no further. None: all.
    share: of the rows that are taken, in (0, 1], chosen by a hash of their place; the others are not decoded.
    heldout: share of the prompts that is held out (`data.splits`).
    resize: applied to every picture, uint8[H, W, 3], such as `images.VAE.resize`; None: they stay as they are, and
      JPEG files are stored as they are.
    shard_records: trajectories of a shard of the record sets.
    progress: called with the counts so far, every 100 rows and at the end.

  Returns: the counts: read == kept + rejected.

  Raises: exceptions of `read`; FileExistsError for a finished import; BlockingIOError while another one is at work
    there; ValueError for an unfinished one with other arguments or another source, or damaged record sets.
  """
  return run.import_records(
    get(format),
    source,
    out,
    name=format,
    limit=limit,
    share=share,
    heldout=heldout,
    resize=resize,
    shard_records=shard_records,
    progress=progress,
  )
