"""Sources of trajectories: shares, epochs, worlds without a name, what they say of their content."""

import collections
import dataclasses
import pickle

import numpy as np
import pytest

from pdgen import worlds
from pdgen.core import config as config_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import records, sources
from pdgen.worlds import base, shapes


def _numbered(name, count):
  return sources.ListSource([trajectory_lib.Trajectory(prompt=f'{name} {i}', steps=()) for i in range(count)])


def test_a_mixture_gives_every_source_its_share_and_every_trajectory_once_an_epoch():
  mixture = sources.Mixture([_numbered('a', 7), _numbered('b', 50)], weights=[1.0, 3.0], seed=3)
  prompts = [mixture[i].prompt for i in range(4096)]
  counts = collections.Counter(prompts)
  assert sum(n for prompt, n in counts.items() if prompt.startswith('a')) == 1024
  of_a, of_b = ([p for p in prompts if p.startswith(name)] for name in 'ab')
  for found, size in ((of_a, 7), (of_b, 50)):
    epochs = [found[i : i + size] for i in range(0, len(found) - size + 1, size)]
    assert all(len(set(epoch)) == size for epoch in epochs)
    assert epochs[0] != epochs[1]
  # No part of the index is of one source: packers take every so-many-th sample.
  for start in range(4):
    assert 0.15 < np.mean([p.startswith('a') for p in prompts[start:1024:4]]) < 0.35


def test_a_mixture_is_a_function_of_its_arguments():
  parts = [_numbered('a', 7), _numbered('b', 50)]
  first, again, other = (sources.Mixture(parts, weights=[1.0, 3.0], seed=seed) for seed in (3, 3, 4))
  take = lambda mixture: [mixture[i].prompt for i in (0, 5, 2000, 99_999, 2**40)]
  assert take(first) == take(again) == take(pickle.loads(pickle.dumps(first))) != take(other)


@pytest.mark.parametrize(('parts', 'weights'), [(0, []), (1, [0.0]), (1, [1.0, 2.0]), (1, [float('nan')])])
def test_mixtures_that_cannot_be_are_refused(parts, weights):
  with pytest.raises(ValueError, match='each with a weight above 0'):
    sources.Mixture([_numbered('a', 2)] * parts, weights=weights, seed=0)


def test_a_world_gives_its_kinds_by_their_shares_and_never_the_same_trajectory_twice():
  source = sources.WorldSource('shapes', mixture=(('multi_turn', 2.0), ('conflict', 1.0), ('direct', 1.0)))
  made = [source[i] for i in range(400)]
  counts = collections.Counter(t.provenance.kind for t in made)
  shares = {kind: count / 400 for kind, count in counts.items()}
  assert shares == pytest.approx({'multi_turn': 0.5, 'conflict': 0.25, 'direct': 0.25}, abs=0.08)
  again = pickle.loads(pickle.dumps(source))
  assert [t.prompt for t in made[:20]] == [again[i].prompt for i in range(20)]


def test_fingerprints_tell_content_apart(tmp_path):
  made = [shapes.trajectory('multi_turn', seed=0, index=i) for i in range(4)]
  records.write(tmp_path / 'set', made)
  listed, stored = sources.ListSource(made), sources.RecordSource(str(tmp_path / 'set'))
  worlds_ = [sources.WorldSource('shapes', seed=seed) for seed in (0, 1)]
  found = [s.fingerprint() for s in (listed, stored, *worlds_, sources.ListSource(made[:3]))]
  assert len(set(found)) == 5
  assert sources.WorldSource('shapes').fingerprint() == worlds_[0].fingerprint()
  mixtures = [sources.Mixture([listed], weights=[1.0], seed=0), sources.Mixture([stored], weights=[1.0], seed=0)]
  assert mixtures[0].fingerprint() != mixtures[1].fingerprint()


def test_sources_of_a_config(tmp_path):
  records.write(tmp_path / 'set', [shapes.trajectory('multi_turn', seed=0, index=i) for i in range(3)])
  texts = ('world:shapes*2', f'records:{tmp_path / "set"}', 'self_sampled')
  parsed = tuple(map(config_lib.SourceConfig.parse, texts))
  config = config_lib.Config(data=config_lib.DataConfig(sources=parsed))
  alone = sources.from_config(config)
  assert alone.locate(0)[0] in (0, 1) and {alone.locate(i)[0] for i in range(1024)} == {0, 1}
  own = [_numbered('x', 3), _numbered('y', 1), _numbered('z', 0)]
  counts = collections.Counter(sources.from_config(config, self_sampled=own).locate(i)[0] for i in range(1024))
  # Drafts share out the weight of their source by their number.
  assert {part: round(16 * n / 1024) for part, n in counts.items()} == {0: 8, 1: 4, 2: 3, 3: 1}
  nothing = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=parsed[2:]))
  with pytest.raises(ValueError, match='There is nothing to learn from: config.data.sources'):
    sources.from_config(nothing)


def test_an_empty_record_set_is_refused_by_name(tmp_path):
  records.write(tmp_path / 'set', [])
  source = config_lib.SourceConfig(kind='records', name=str(tmp_path / 'set'))
  with pytest.raises(ValueError, match=r'The record set .*set is empty'):
    sources.from_config(config_lib.Config(data=config_lib.DataConfig(sources=(source,))))


@pytest.mark.parametrize(
  'protocol', [base.World, base.JudgedWorld, base.InspectedWorld, base.DraftingWorld, base.WrittenWorld]
)
def test_the_shapes_world_offers_everything(protocol):
  assert worlds.require(shapes, protocol) is shapes


def test_what_a_world_lacks_is_named():
  class Bare:
    KINDS = ('one',)

    def trajectory(self, kind, *, seed, index):
      return trajectory_lib.Trajectory(prompt=f'{kind} {index}', steps=())

  assert sources.WorldSource(Bare())[3].prompt == 'one 3'
  with pytest.raises(
    ValueError, match=r"Bare is no JudgedWorld: it lacks \['TASKS', 'detect', 'parse', 'prompts', 'shows'\]"
  ):
    worlds.require(Bare(), base.JudgedWorld)
