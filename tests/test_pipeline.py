"""The data of a run: deterministic, shared out over processes and workers, resumed exactly, rows nearly full."""

import collections
import dataclasses
import json
import pathlib
import re
import runpy
import shutil

import jax
import numpy as np
import pytest

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import feed, pipeline, records, sources, statistics, tokenizers
from pdgen.worlds import shapes
from pdgen.worlds.shapes import prompt_space, stories, trajectories

ROOT = pathlib.Path(__file__).parent.parent


def _config(**data):
  cfg = config_lib.Config()
  return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, **data))


def _world(mixture=()):
  return config_lib.SourceConfig(kind='world', name='shapes', mixture=mixture)


@pytest.fixture
def opened():
  """Makes iterators and closes them, so that no prefetching thread outlives its test."""
  iterators = []

  def make(*args, **options):
    iterators.append(pipeline.batches(*args, **options))
    return iterators[-1]

  yield make
  for iterator in iterators:
    iterator.close()


def _take(iterator, count):
  return [next(iterator) for _ in range(count)]


def _same(a, b):
  leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in leaves)


def _prompts(batch):
  """Prompt tokens of every sample of the batch, as text."""
  words = tokenizers.load('shapes')
  found = []
  for ids, segments in zip(batch.und.token_id, batch.und.tokens.segment, strict=True):
    for segment in range(1, segments.max() + 1):
      sample = ids[segments == segment].tolist()
      found.append(words.decode(sample[1 : sample.index(words.specials.im_end)]))
  return found


def test_batches_fit_the_config(opened):
  cfg = _config(batch_size=3)
  batch = next(opened(cfg))
  assert isinstance(batch, packed.PackedBatch) and isinstance(batch.gen.tokens, packed.TokenMeta)
  packed.check(batch)
  assert batch.und.label.shape == (3, cfg.data.und_tokens)
  assert batch.gen.patch.shape == (3, cfg.data.gen_tokens)
  assert batch.pictures.shape == (3, cfg.data.pictures, 32, 32, 3) and batch.pictures.dtype == np.uint8
  assert batch.und.token_id.max() < tokenizers.load('shapes').vocab_size <= cfg.model.vocab_size
  assert batch.und.weight.max() > 0 and batch.gen.weight.max() == 1


def test_same_seed_same_data_other_seed_other_data(opened):
  cfg = _config()
  first = _take(opened(cfg), 3)
  assert _same(first, _take(opened(cfg), 3))
  assert not _same(first[0], next(opened(dataclasses.replace(cfg, seed=1))))


@pytest.mark.parametrize('prefetch', [0, 1, 4])
def test_resuming_sees_the_same_batches(opened, prefetch):
  cfg = _config(batch_size=2, prefetch=prefetch)
  iterator = opened(cfg)
  _take(iterator, 3)
  state = json.loads(json.dumps(iterator.get_state()))
  want = _take(iterator, 4)
  fresh = opened(cfg)
  next(fresh)
  fresh.set_state(state)
  assert _same(_take(fresh, 4), want)
  assert fresh.get_state() == iterator.get_state()
  assert not _same(want[0], want[1])


def test_processes_share_the_index_out(opened):
  cfg = _config(batch_size=4, packing_bins=4, shards=2)
  batches = [next(opened(cfg, process_index=i, process_count=2)) for i in range(2)]
  assert all(batch.und.label.shape[0] == 2 for batch in batches)
  samples = pipeline.Samples(cfg, sources.from_config(cfg))
  places = [samples(index).row for index in range(6)]
  # The oldest sample opens a row: process 0 starts with index 0, process 1 with index 1.
  for process, batch in enumerate(batches):
    first = batch.und.token_id[0][batch.und.tokens.segment[0] == 1]
    np.testing.assert_array_equal(first, places[process].und.token_id)
  with pytest.raises(ValueError, match=r'config\.data\.shards=2 must be a multiple of process_count=3'):
    pipeline.dataset(cfg, process_index=0, process_count=3)
  with pytest.raises(ValueError, match=r'config\.data\.batch_size=3 must be a multiple of config\.data\.shards=2'):
    pipeline.dataset(_config(batch_size=3, shards=2))


def test_any_number_of_processes_makes_and_goes_on_with_the_same_batches(opened):
  cfg = _config(batch_size=8, packing_bins=2, shards=4)

  def joined(parts):
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)

  def all_of(count):
    return [opened(cfg, process_index=i, process_count=count) for i in range(count)]

  one, two = all_of(1), all_of(2)
  for _ in range(3):
    want = next(one[0])
    assert _same([joined([next(process) for process in two])], [want])
  positions = [
    json.loads(json.dumps(pipeline.merge_states([process.get_state() for process in processes])))
    for processes in (one, two)
  ]
  assert positions[0] == positions[1]
  want = _take(one[0], 2)
  for count in (1, 2, 4):
    processes = all_of(count)
    for i, process in enumerate(processes):
      process.set_state(pipeline.split_state(positions[0], process_index=i, process_count=count))
    assert _same([joined([next(process) for process in processes]) for _ in range(2)], want)


def test_a_fingerprint_tells_data_apart():
  cfg = _config()
  assert pipeline.fingerprint(cfg) == pipeline.fingerprint(_config(prefetch=7))
  other = dataclasses.replace(cfg, seed=cfg.seed + 1)
  assert pipeline.fingerprint(other) != pipeline.fingerprint(cfg)


def test_the_kind_of_a_sample_says_nothing_about_its_task():
  """The draws that choose a kind are not those of the trajectory: every kind has every task at its share."""
  seen = collections.defaultdict(collections.Counter)

  class Recorder:
    KINDS = shapes.KINDS

    def trajectory(self, kind, *, seed, index):
      made = shapes.trajectory(kind, seed=seed, index=index)
      seen[kind][made.spec.tag] += 1
      seen[kind]['detour'] += made.provenance.detour is not None
      return made

  # Beside another source, too: what it takes of the samples must not matter either.
  own = sources.ListSource([shapes.trajectory('multi_turn', seed=9, index=0)])
  world = sources.WorldSource(Recorder(), mixture=(('direct', 0.6), ('multi_turn', 0.4)))
  source = sources.Mixture([world, own], weights=[0.75, 0.25], seed=0)
  for index in range(1500):
    source[index]
  for kind, counts in seen.items():
    shares = {tag: counts[tag] / sum(counts[t] for t in prompt_space.TASKS) for tag in prompt_space.TASKS}
    expected = dict(zip(prompt_space.TASKS, stories.TASK_SHARES, strict=True))
    assert all(abs(shares[t] - expected[t]) < 0.06 for t in shares), (kind, shares)
  detours = seen['multi_turn']['detour'] / sum(seen['multi_turn'][t] for t in prompt_space.TASKS)
  assert abs(detours - trajectories.DETOUR_SHARE) < 0.05


@pytest.mark.parametrize(
  'mixture, message', [((('paint', 1.0),), "'paint'.*multi_turn"), ((('direct', 0.0),), 'shares')]
)
def test_a_wrong_mixture_is_named(mixture, message):
  with pytest.raises(ValueError, match=message):
    pipeline.dataset(_config(sources=(_world(mixture),)))


def test_a_sample_over_the_budget_is_named(opened):
  with pytest.raises(ValueError, match=r'Trajectory \d+ .*shapes multi_turn.*config\.data\.und_tokens to at least'):
    next(opened(_config(und_tokens=40, sources=(_world((('multi_turn', 1.0),)),), prefetch=0)))


def test_what_fits_a_row_is_what_the_packer_takes(opened):
  """A draft of many faults has an inspection of any length: told beforehand, it must not end a run."""
  made = shapes.trajectory('multi_turn', seed=9, index=0)
  (first, *rest) = made.steps
  longer = dataclasses.replace(first, inspection=first.inspection + ' There is also a red ring: wrong.' * 80)
  long = dataclasses.replace(made, steps=(longer, *rest))
  cfg = _config(prefetch=0)
  assert pipeline.fits(cfg, made) and not pipeline.fits(cfg, long)
  assert not pipeline.fits(_config(pictures=0), made)
  next(opened(cfg, source=sources.ListSource([made])))
  with pytest.raises(ValueError, match=r'Trajectory 0 .*config\.data\.und_tokens'):
    next(opened(cfg, source=sources.ListSource([long])))


def test_samples_that_are_too_long_are_left_out_and_counted_where_the_config_says_so(opened):
  made = shapes.trajectory('multi_turn', seed=9, index=0)
  (first, *rest) = made.steps
  longer = dataclasses.replace(first, inspection=first.inspection + ' There is also a red ring: wrong.' * 80)
  long = dataclasses.replace(made, steps=(longer, *rest))
  source = sources.ListSource([made, made, long])
  cfg = _config(too_long='skip', batch_size=1, packing_bins=2, prefetch=0)
  iterator = opened(cfg, source=source)
  _take(iterator, 3)
  state = iterator.get_state()
  assert state['skipped'] == state['next'] // 3 > 0
  resumed = opened(cfg, source=source)
  resumed.set_state(state)
  assert _same(_take(resumed, 2), _take(iterator, 2)) and resumed.get_state() == iterator.get_state()
  with pytest.raises(ValueError, match=r'100 of \d+ samples are longer than a row'):
    _take(opened(cfg, source=sources.ListSource([long])), 3)


def test_samples_that_teach_nothing_are_left_out_counted_and_reported(opened, capsys):
  taught = shapes.trajectory('multi_turn', seed=9, index=0)
  empty = trajectory_lib.Trajectory(prompt='nothing but a prompt', steps=())
  cfg = _config(batch_size=1, packing_bins=2, prefetch=0)
  source = sources.ListSource([taught, empty, taught])
  iterator = opened(cfg, source=source)
  assert all('nothing but' not in prompt for batch in _take(iterator, 3) for prompt in _prompts(batch))
  state = iterator.get_state()
  assert state['unsupervised'] == (state['next'] + 1) // 3 > 0 == state['skipped']
  resumed = opened(cfg, source=source)
  resumed.set_state(state)
  assert _same(_take(resumed, 2), _take(iterator, 2)) and resumed.get_state() == iterator.get_state()
  # A run of nothing else is refused; a single good sample among many is not.
  with pytest.raises(ValueError, match=r"none of the first 100 samples .*supervised.*'nothing but a prompt'"):
    next(opened(cfg, source=sources.ListSource([empty])))
  next(opened(cfg, source=sources.ListSource([taught] + [empty] * 200)))


def test_a_feed_says_what_was_left_out(tmp_path, capsys):
  empty = trajectory_lib.Trajectory(prompt='nothing but a prompt', steps=())
  records.write(tmp_path / 'own', [shapes.trajectory('multi_turn', seed=9, index=0), empty])
  own = config_lib.SourceConfig(kind='records', name=str(tmp_path / 'own'))
  data = feed.DataFeed(_config(batch_size=2, shards=2, packing_bins=2, sources=(own,)))
  next(data)
  state = data.state()
  data.close()
  count = feed.left_out(state)['unsupervised']
  assert count > 0 and f'0 longer than a row, {count} without a supervised token' in capsys.readouterr().out


def test_inputs_that_were_replaced_are_named(tmp_path):
  words = tmp_path / 'words.model'
  shutil.copy(tokenizers.files('shapes'), words)
  own, made = tmp_path / 'own', [shapes.trajectory('multi_turn', seed=9, index=i) for i in range(3)]
  records.write(own, made[:2])
  records.write(tmp_path / '0000004', made[:1])
  kinds = (dict(kind='records', name=str(own)), dict(kind='self_sampled'))
  cfg = _config(sources=tuple(config_lib.SourceConfig(**kind) for kind in kinds), tokenizer=str(words))

  def opened(state=None):
    data = feed.DataFeed(cfg, self_sampled=[sources.RecordSource(str(tmp_path / '0000004'))], state=state)
    state = json.loads(json.dumps(data.state()))
    data.close()
    return state

  state = opened()
  assert opened(state) == state
  words.write_bytes(words.read_bytes() + b'\x00')
  records.write(own, made[1:], overwrite=True)
  records.write(tmp_path / '0000004', made[2:], overwrite=True)
  with pytest.raises(ValueError, match='other content than when the run was saved') as error:
    opened(state)
  for name in (f'tokenizer {words}', f'records {own}', 'self_sampled/0000004'):
    assert re.search(rf'{re.escape(name)}: \w{{16}} saved, \w{{16}} now', str(error.value))
  assert '--branch_from=' in str(error.value)
  # A state of an earlier version, and a run that branches off, have none to compare with.
  opened({name: value for name, value in state.items() if name != 'inputs'})
  assert 'inputs' not in feed.without_inputs(state)


def test_any_number_of_processes_takes_a_run_over_and_no_sample_is_lost(capsys):
  cfg = _config(batch_size=4, packing_bins=2)

  def run(count, state, batches):
    together = lambda: None
    feeds = [
      feed.DataFeed(cfg, share=(i, count), state=state, all_gather=lambda text: together(text)) for i in range(count)
    ]
    parts = [[next(data) for data in feeds] for _ in range(batches)]
    texts = [json.dumps({'share': i, 'state': data._batches.get_state()}) for i, data in enumerate(feeds)]
    together = lambda text: texts
    states = [data.state() for data in feeds]
    for data in feeds:
      data.close()
    return [jax.tree.map(lambda *x: np.concatenate(x), *part) for part in parts], states[0]

  packed_, state = run(1, None, 3)
  assert 'next' in state and not capsys.readouterr().out
  more, two = run(2, state, 3)  # One packer cannot be shared out to two processes.
  assert '2 packers instead of 1' in capsys.readouterr().out and len(two['shards']) == 2
  same, _ = run(1, two, 2)  # Two can be taken over by one.
  want, after = run(2, two, 2)
  assert _same(same, want) and not capsys.readouterr().out
  last, end = run(4, after, 2)
  assert '4 packers instead of 2' in capsys.readouterr().out
  # Every sample up to the end was packed once, or waits.
  seen = collections.Counter(prompt for batch in packed_ + more + want + last for prompt in _prompts(batch))
  samples = pipeline.Samples(cfg, sources.from_config(cfg))
  opening = cfg.data.sequence.opening
  taken = {place * 4 + number for number, one in enumerate(end['shards']) for place in range(one['next'])}
  waiting = {place * 4 + number for number, one in enumerate(end['shards']) for place in one['waiting']}
  prompts = collections.Counter(opening + samples.source[index].prompt for index in taken - waiting)
  assert seen == prompts


def test_self_sampled_trajectories_take_their_share(opened, tmp_path):
  # The packer keeps samples waiting, awkward ones longer: few wait here, and many are counted.
  own = [dataclasses.replace(shapes.trajectory('multi_turn', seed=9, index=i), prompt=f'own {i}') for i in range(5)]
  records.write(tmp_path / 'own', own)
  own_source = config_lib.SourceConfig(kind='self_sampled', weight=1.0)
  cfg = _config(sources=(config_lib.SourceConfig(kind='world', name='shapes'), own_source), packing_bins=4)
  drafts = [sources.RecordSource(str(tmp_path / 'own')), sources.ListSource([])]
  iterator = opened(cfg, source=sources.from_config(cfg, self_sampled=drafts))
  prompts = [prompt for batch in _take(iterator, 25) for prompt in _prompts(batch)]
  mine = [prompt.removeprefix(cfg.data.sequence.opening) for prompt in prompts if ': own ' in prompt]
  assert set(mine) == {f'own {i}' for i in range(5)}
  assert abs(len(mine) / len(prompts) - 0.5) < 0.15


def test_sources_may_change_in_the_middle_of_a_run(opened):
  cfg = _config(batch_size=2)
  own = trajectory_lib.Trajectory(prompt='own', steps=shapes.trajectory('conflict', seed=9, index=0).steps)
  more = sources.from_config(cfg, self_sampled=[sources.ListSource([own])])
  iterator = opened(cfg)
  _take(iterator, 2)
  runs = []
  for _ in range(2):
    changed = opened(cfg, source=more)
    changed.set_state(iterator.get_state())
    first = next(changed)
    state = changed.get_state()
    runs.append([first, next(changed)])
    resumed = opened(cfg, source=more)
    resumed.set_state(state)
    assert _same(next(resumed), runs[-1][1])
  assert _same(*runs)


def _as_shipped():
  return config_lib.from_config_dict(runpy.run_path(str(ROOT / 'configs/shapes.py'))['get_config']())


def _longer_rows():
  sequence = config_lib.SequenceConfig(noised_copies=3)
  return _config(und_tokens=832, gen_tokens=416, pictures=20, sequence=sequence)


def _one_noised_copy():
  sequence = config_lib.SequenceConfig(noised_copies=1)
  return _config(und_tokens=1024, gen_tokens=288, pictures=24, sequence=sequence)


@pytest.mark.parametrize('make', [_as_shipped, _longer_rows, _one_noised_copy])
def test_both_budgets_are_used(make):
  cfg = make()
  figures = statistics.report(cfg, batches=30)
  assert figures['und budget used'] >= 0.95 and figures['gen budget used'] >= 0.95
  assert abs(figures['gen_tokens that fit und_tokens'] / cfg.data.gen_tokens - 1) < 0.08
