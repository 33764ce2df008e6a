"""A store gives back what was saved, and says so when a byte of it changed."""

import numpy as np
import pytest

from pdgen.core import trajectory as trajectory_lib
from pdgen.data import store

Step, Trajectory = trajectory_lib.Step, trajectory_lib.Trajectory


def _picture(seed, side=8):
  return np.random.default_rng(seed).integers(0, 256, [side, side, 3], dtype=np.uint8)


TRAJECTORIES = [
  Trajectory(
    prompt='a ring, 環',
    steps=(
      Step(plan='x', draft=_picture(0), inspection='<refine>r</refine>', refined=_picture(1), draft_is_target=False),
      Step(plan='y', draft=_picture(2, side=4)),
    ),
    metadata={'tag': 'single_object', 'include': [{'class': 'ring', 'count': 1}], 'error': None},
  ),
  Trajectory(prompt='', steps=(Step(),), stop=None),
  Trajectory(prompt='b', steps=(), stop='picture_cap'),
]


def _assert_same(got, want):
  assert len(got) == len(want)
  for a, b in zip(got, want, strict=True):
    assert (a.prompt, a.stop, a.metadata, len(a.steps)) == (b.prompt, b.stop, b.metadata, len(b.steps))
    for s, t in zip(a.steps, b.steps, strict=True):
      assert (s.plan, s.inspection, s.corrected_plan) == (t.plan, t.inspection, t.corrected_plan)
      assert s.draft_is_target == t.draft_is_target
      for x, y in ((s.draft, t.draft), (s.refined, t.refined)):
        assert (x is None) == (y is None)
        if x is not None:
          assert x.dtype == np.uint8
          np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('count', [0, 2, 3])
def test_round_trip_is_exact_and_deterministic(tmp_path, count):
  for name in ('a.npz', 'b.npz'):
    store.save(tmp_path / name, iter(TRAJECTORIES[:count]))
  _assert_same(store.load(tmp_path / 'a.npz'), TRAJECTORIES[:count])
  assert (tmp_path / 'a.npz').read_bytes() == (tmp_path / 'b.npz').read_bytes()
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a.npz', 'b.npz'], 'a partial file was left'


def test_a_changed_byte_is_noticed(tmp_path):
  path, damaged = tmp_path / 'a.npz', tmp_path / 'damaged.npz'
  store.save(path, TRAJECTORIES)
  content = path.read_bytes()
  refused = 0
  places = range(0, len(content), 3)
  for place in places:
    damaged.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
    try:
      got = store.load(damaged)
    except ValueError as error:
      assert 'damaged.npz' in str(error)
      refused += 1
    else:
      _assert_same(got, TRAJECTORIES)  # Only the zip's own clock and flags may change unnoticed.
  assert refused > 0.7 * len(places)
  damaged.write_bytes(content[: len(content) // 2])
  with pytest.raises(ValueError, match='damaged.npz'):
    store.load(damaged)


def test_the_digest_covers_texts_and_pictures(tmp_path):
  path = tmp_path / 'a.npz'
  store.save(path, TRAJECTORIES)
  with np.load(path) as file:
    content = dict(file)
  for name in ('texts', 'pixels', 'digest'):
    changed = {**content, name: content[name].copy()}
    changed[name][-3] ^= 1
    np.savez(path, **changed)
    with pytest.raises(ValueError, match='digest'):
      store.load(path)


def test_what_cannot_be_stored_is_named(tmp_path):
  with pytest.raises(ValueError, match="trajectory 1 .*'q'.* not JSON"):
    store.save(tmp_path / 'a.npz', [TRAJECTORIES[2], Trajectory(prompt='q', steps=(), metadata={'x': object()})])
  with pytest.raises(ValueError, match='float64'):
    store.save(tmp_path / 'a.npz', [Trajectory(prompt='q', steps=(Step(draft=np.zeros([4, 4, 3])),))])
  assert not list(tmp_path.iterdir())


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'a.npz'
  store.save(path, TRAJECTORIES[:1])

  def fail(*_):
    raise OSError('disk full')

  monkeypatch.setattr(store.os, 'fsync', fail)
  with pytest.raises(OSError, match='disk full'):
    store.save(path, TRAJECTORIES)
  _assert_same(store.load(path), TRAJECTORIES[:1])
  assert [p.name for p in tmp_path.iterdir()] == ['a.npz']


def test_a_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError):
    store.load(tmp_path / 'none.npz')
