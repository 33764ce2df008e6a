"""DataFeed: this process's batches of a training run, resumable, from the world and from the model's own drafts."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import grain

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import legacy_store, pipeline, records


class DataFeed:
  """Batches of a run, and where they stand. It is what `training.loop.Data` asks for.

  Its state is that of the data of all processes, however many they were: a run may go on with another number of them.
  """

  def __init__(
    self,
    config: config_lib.Config,
    workdir: pathlib.Path,
    *,
    before: int = 0,
    share: tuple[int, int] = (0, 1),
    state: Any = None,
    all_gather_text: Callable[[str], list[str]] = lambda text: [text],
  ):
    """Opens the data.

    Args:
      config: of the run.
      workdir: of the run, where its self-sampled drafts are.
      before: self-sampled drafts of earlier steps are sources.
      share: (index, count): which of the equal shares of a batch's rows this process makes.
      state: what `state()` gave, to go on from there; None: from the beginning.
      all_gather_text: texts of all processes, in their order; all of them must call it.
    """
    self._config, self._workdir, self._share, self._all_gather_text = config, workdir, share, all_gather_text
    self._batches = self._open(before, state)

  def __next__(self) -> packed.PackedBatch:
    """The next batch: this process's rows, numpy arrays."""
    return next(self._batches)

  def state(self) -> Any:
    """JSON; where the next batch of all processes stands. All of them must call it."""
    mine = json.dumps({'share': self._share[0], 'position': self._batches.get_state()})
    everyone = {one['share']: one['position'] for one in map(json.loads, self._all_gather_text(mine))}
    return pipeline.merge_states([everyone[share] for share in sorted(everyone)])

  def reload(self, *, before: int):
    """Goes on at the same place with the self-sampled drafts of all steps before that one."""
    state = self.state()
    self.close()
    self._batches = self._open(before, state)

  def fingerprint(self) -> str:
    """A digest of the first samples: equal on all processes whose data are the same."""
    return pipeline.fingerprint(self._config)

  def close(self):
    """Ends the prefetching."""
    self._batches.close()

  def _open(self, before: int, state: Any) -> grain.DatasetIterator:
    steps = sorted(s for s in self._config.train.self_sample_steps if s < before)
    sources = [read_self_sampled(self._workdir, s) for s in steps]
    index, count = self._share
    batches = pipeline.batches(self._config, sources=sources, process_index=index, process_count=count)
    if state is not None:
      batches.set_state(pipeline.split_state(state, process_index=index, process_count=count))
    return batches


def self_sampled_path(workdir: pathlib.Path, step: int) -> pathlib.Path:
  """The record set of the drafts that the model of that step painted itself."""
  return workdir / 'self_sampled' / f'{step:07d}'


def forget_self_sampled(workdir: pathlib.Path):
  """Deletes all drafts: a run that ended before its first checkpoint, maybe of another configuration, left them."""
  shutil.rmtree(self_sampled_path(workdir, 0).parent, ignore_errors=True)


def has_self_sampled(workdir: pathlib.Path, step: int) -> bool:
  """Whether the drafts of that step are there, in today's form or in that of an earlier version."""
  path = self_sampled_path(workdir, step)
  return records.exists(path) or path.with_suffix('.npz').is_file()


def read_self_sampled(workdir: pathlib.Path, step: int) -> list[trajectory_lib.Trajectory] | records.Reader:
  """The drafts of that step. Raises: FileNotFoundError when there are none."""
  path = self_sampled_path(workdir, step)
  older = path.with_suffix('.npz')  # Of a run that began with an earlier version.
  return legacy_store.read_npz(older) if older.is_file() else records.Reader(path)
