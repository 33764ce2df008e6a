"""The batches of a training run: resumable, shared out to processes, with sources that may grow on the way."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.data import pipeline, sources


class DataFeed:
  """This process's share of each batch; its state is that of all processes together.

  Args:
    config: of the experiment.
    self_sampled: drafts of the model's own so far.
    share: (index, count) of the equal shares of a batch's rows (`core.mesh.data_shard`).
    state: to continue from, of all processes, however many they were.
    all_gather: the texts of all processes, in order, given this one's (`training.distributed.all_gather_text`).
  """

  def __init__(
    self,
    config: config_lib.Config,
    *,
    self_sampled: Sequence[sources.Source] = (),
    share: tuple[int, int] = (0, 1),
    state: Any = None,
    all_gather: Callable[[str], list[str]] = lambda text: [text],
  ):
    self._config, self._share, self._all_gather = config, share, all_gather
    self._open(self_sampled, state)

  def __next__(self) -> packed.PackedBatch:
    return next(self._batches)

  def state(self) -> Any:
    """JSON; where the next batch of all processes begins. All of them must call it."""
    mine = json.dumps({'share': self._share[0], 'state': self._batches.get_state()})
    everyone = {one['share']: one['state'] for one in map(json.loads, self._all_gather(mine))}
    return pipeline.merge_states([everyone[share] for share in sorted(everyone)])

  def reload(self, *, self_sampled: Sequence[sources.Source]):
    """Continues at the same place with other drafts of the model's own. All processes must call it."""
    state = self.state()
    self.close()
    self._open(self_sampled, state)

  def fingerprint(self) -> str:
    """A digest of the data: equal on all processes of a run, and where it resumes."""
    return pipeline.fingerprint(self._config, source=self._source)

  def close(self):
    self._batches.close()

  def _open(self, self_sampled: Sequence[sources.Source], state: Any):
    self._source = sources.from_config(self._config, self_sampled=self_sampled)
    index, count = self._share
    self._batches = pipeline.batches(self._config, source=self._source, process_index=index, process_count=count)
    if state is not None:
      self._batches.set_state(pipeline.split_state(state, process_index=index, process_count=count))
