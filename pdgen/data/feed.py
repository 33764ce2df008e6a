"""The batches of a training run: resumable, shared out to processes, with sources that may grow on the way."""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.data import pipeline, sources, tokenizers
from pdgen.data.tokenizers import byte_level

_INPUTS = 'inputs'  # Key of a state, beside those of `pipeline`.


class DataFeed:
  """This process's share of each batch; its state is that of all processes together.

  The state holds a digest of all that is read from disk, by name: a run does not go on with other files.

  Args:
    config: of the experiment. `data.shards` is raised to a multiple of the shares.
    self_sampled: drafts of the model's own so far.
    share: (index, count) of the equal shares of a batch's rows (`core.mesh.data_shard`).
    state: to continue from, of all processes, however many they were.
    all_gather: the texts of all processes, in order, given this one's (`training.distributed.all_gather_text`).

  Raises: ValueError naming an input that is not the one that the state was saved with.
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
    self._share, self._all_gather = share, all_gather
    position, saved = _split(state)
    self._config, position = _dealt(config, position, share=share)
    self._tokenizer = {f'tokenizer {config.data.tokenizer}': tokenizer_digest(config.data.tokenizer)}
    self._left_out = left_out(position)
    self._open(self_sampled, position)
    _check_inputs(saved, self._inputs)

  def __next__(self) -> packed.PackedBatch:
    return next(self._batches)

  def state(self) -> Any:
    """JSON; where the next batch of all processes begins. All of them must call it.

    What was left out of the batches since the last call is said here, by one process.
    """
    mine = json.dumps({'share': self._share[0], 'state': self._batches.get_state()})
    everyone = {one['share']: one['state'] for one in map(json.loads, self._all_gather(mine))}
    position = pipeline.merge_states([everyone[share] for share in sorted(everyone)])
    self._report(position)
    return {**position, _INPUTS: self._inputs}

  def reload(self, *, self_sampled: Sequence[sources.Source]):
    """Continues at the same place with other drafts of the model's own. All processes must call it."""
    position, _ = _split(self.state())
    self.close()
    self._open(self_sampled, position)

  def fingerprint(self) -> str:
    """A digest of the data: equal on all processes of a run, and where it resumes."""
    return pipeline.fingerprint(self._config, source=self._source)

  def close(self):
    self._batches.close()

  def _open(self, self_sampled: Sequence[sources.Source], position: Any):
    self._source = sources.from_config(self._config, self_sampled=self_sampled)
    self._inputs = {**self._tokenizer, **_digests(self._config, self_sampled)}
    index, count = self._share
    self._batches = pipeline.batches(self._config, source=self._source, process_index=index, process_count=count)
    if position is None:
      return
    share = dict(process_index=index, process_count=count)
    if self._config.data.workers and not pipeline.layout(position).workers:
      state = pipeline.with_workers(position, like=self._batches.get_state(), **share)
    else:
      state = pipeline.split_state(position, **share)
    self._batches.set_state(state)

  def _report(self, position: Any):
    found = left_out(position)
    if self._share[0] == 0 and found != self._left_out:
      print(
        f'Samples left out so far: {found["skipped"]} longer than a row, {found["unsupervised"]} without a supervised '
        'token (nothing to write or to paint).',
        flush=True,
      )
    self._left_out = found


def without_inputs(state: Any) -> Any:
  """A state that other inputs may go on from, of a run that branches off: the place in the data alone."""
  position, _ = _split(state)
  return position


def left_out(position: Any) -> dict[str, int]:
  """Samples left out up to a position: `skipped` for their length, `unsupervised` for want of a supervised token.

  >>> left_out({'turn': 0, 'shards': [{'next': 9, 'skipped': 1}, {'next': 8, 'skipped': 2, 'unsupervised': 3}]})
  {'skipped': 3, 'unsupervised': 3}
  """
  counts: dict[str, int] = {'skipped': 0, 'unsupervised': 0}
  for name, value in _items(position):
    if name in counts:
      counts[name] += value
  return counts


def tokenizer_digest(name_or_path: str) -> str:
  """SHA-256 of the file or files that `data.tokenizers.load` reads."""
  path = tokenizers.files(name_or_path)
  files = [path] if path.is_file() else [path / name for name in byte_level.FILES if (path / name).is_file()]
  digest = hashlib.sha256()
  for file in files:
    content = file.read_bytes()
    digest.update(f'{file.name if len(files) > 1 else ""} {len(content)} '.encode() + content)
  return digest.hexdigest()


def _digests(config: config_lib.Config, self_sampled: Sequence[sources.Source]) -> dict[str, str]:
  """Digests of the record sets, and of the drafts of the model's own, by name."""
  found = {}
  for source in config.data.sources:
    if source.kind == 'records':
      found[f'records {source.name}'] = sources.RecordSource(source.name).fingerprint()
  for number, source in enumerate(self_sampled):
    # The last part of the path: a workdir may move.
    name = pathlib.Path(getattr(source, 'name', '') or str(number)).name
    found[f'self_sampled/{name}'] = source.fingerprint()
  return found


def _check_inputs(saved: dict[str, str], now: dict[str, str]):
  changed = [
    f'{name}: {saved[name][:16]} saved, {now[name][:16]} now'
    for name in saved
    if now.get(name, saved[name]) != saved[name]
  ]
  if changed:
    raise ValueError(
      'These inputs have other content than when the run was saved:\n  ' + '\n  '.join(changed) + '\nPut the former '
      'ones back, or begin a run with these where the old one is: --workdir=NEW --branch_from=OLD_WORKDIR'
    )


def _split(state: Any) -> tuple[Any, dict[str, str]]:
  """(position, digests of the inputs) of a state; none of an earlier version's."""
  if state is None:
    return None, {}
  return {name: value for name, value in state.items() if name != _INPUTS}, state.get(_INPUTS, {})


def _dealt(config: config_lib.Config, position: Any, *, share: tuple[int, int]) -> tuple[config_lib.Config, Any]:
  """The configuration with as many packers as the shares need, and the position for that many.

  A run goes on with the packers that it has, where they can be shared out: its batches stay the same.
  """
  (index, count), given, workers = share, config.data.shards, config.data.workers
  shards = math.lcm(given, count)
  if position is not None:
    old = pipeline.layout(position)
    if not old.workers and not workers and old.packers % shards == 0:
      shards = old.packers
    elif not old.workers or old != (shards, workers, count):
      if index == 0:
        print(
          f'The run goes on with {_packers(shards, workers)} instead of {_packers(*old[:2])} '
          f'(config.data.shards={given}, {count} processes with rows of their own): from here on its batches differ '
          'from those that it would have had.',
          flush=True,
        )
      position = pipeline.deal_again(pipeline.without_workers(position), shards=shards * max(1, workers))
  return dataclasses.replace(config, data=dataclasses.replace(config.data, shards=shards)), position


def _packers(packers: int, workers: int) -> str:
  return f'{packers} packers' + (f' in each of {workers} worker processes' if workers else '')


def _items(value: Any) -> Iterator[tuple[str, Any]]:
  """(key, value) at every depth of nested dicts and lists."""
  if isinstance(value, dict):
    for name, item in value.items():
      yield name, item
      yield from _items(item)
  elif isinstance(value, list):
    for item in value:
      yield from _items(item)
