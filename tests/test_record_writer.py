"""pdgen.data.records.Writer: whole or absent, continued after a kill, one at a time."""

import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from support import stored

from pdgen.core import trajectory as trajectory_lib
from pdgen.data import folder_lock, records

Step, Trajectory = trajectory_lib.Step, trajectory_lib.Trajectory


# The suite takes as many as it has time for; `PDGEN_KILLS=100 python -m pytest tests/test_record_writer.py` takes 100.
KILLS = int(os.environ.get('PDGEN_KILLS', 5))
TOTAL = 1000
PER_SHARD = TOTAL // (4 * KILLS)  # Kills hit records, ends of shards and indices.


@pytest.mark.parametrize('sync', range(1, 7))  # Of the shard; the unfinished index and its folder, twice; the folder.
def test_a_failed_write_keeps_the_old_set(tmp_path, monkeypatch, sync):
  folder = tmp_path / 'set'
  records.write(folder, stored.TRAJECTORIES[:1])
  old, calls, real = stored.contents(folder), [], os.fsync

  def fail(descriptor):
    calls.append(descriptor)
    if len(calls) == sync:
      raise OSError('disk full')
    real(descriptor)

  with monkeypatch.context() as patch:
    patch.setattr(records.os, 'fsync', fail)
    with pytest.raises(OSError, match='disk full'):
      records.write(folder, stored.TRAJECTORIES, overwrite=True, shard_records=4)
  if sync == 6:  # The last one: of the folder, when the new index is in place.
    stored.assert_same(records.read(folder), stored.TRAJECTORIES)
  else:
    stored.assert_same(records.read(folder), stored.TRAJECTORIES[:1])
    assert stored.contents(folder).items() >= old.items()
  if sync == 1:
    assert stored.contents(folder) == old
  records.write(folder, stored.TRAJECTORIES, overwrite=True)
  stored.assert_same(records.read(folder), stored.TRAJECTORIES)
  assert len(stored.names(folder)) == 2


def test_a_failed_shard_closes_the_writer(tmp_path, monkeypatch):
  with records.Writer(tmp_path / 'set', shard_records=2) as writer:
    for trajectory in stored.TRAJECTORIES[:3]:
      writer.write(trajectory)
    with monkeypatch.context() as patch:
      patch.setattr(records, '_file_sha256', lambda path: 1 / 0)
      with pytest.raises(ZeroDivisionError):
        writer.write(stored.TRAJECTORIES[3])
    with pytest.raises(ValueError, match='closed'):
      writer.write(stored.TRAJECTORIES[3])
  assert not records.exists(tmp_path / 'set'), 'records are missing'
  with pytest.raises(FileNotFoundError, match='unfinished'):
    records.Reader(tmp_path / 'set')


def test_an_unfinished_set_is_continued(tmp_path):
  folder = tmp_path / 'set'
  with pytest.raises(KeyboardInterrupt):
    with records.Writer(folder, shard_records=2) as writer:
      for trajectory in stored.TRAJECTORIES[:3]:
        writer.write(trajectory)
      raise KeyboardInterrupt
  assert writer.count == 2
  (folder / 'trajectories-00001.partial').write_bytes(b'killed')
  (folder / 'trajectories-00001-01234567.array_record').write_bytes(b'killed before it was listed')
  (folder / 'notes.txt').write_text('of the user')
  with records.Writer(folder) as writer:
    assert writer.count == 2
    assert len(stored.names(folder)) == 4, 'more than the shard, its list, the lock and the notes are left'
    writer.write(stored.TRAJECTORIES[2])
    writer.flush()
    assert writer.count == 3
    writer.write(stored.TRAJECTORIES[3])
  stored.assert_same(records.read(folder), stored.TRAJECTORIES)
  assert len(stored.names(folder)) == 5 and 'notes.txt' in stored.names(folder)
  records.write(tmp_path / 'whole', stored.TRAJECTORIES)
  assert records.Reader(folder).fingerprint() == records.Reader(tmp_path / 'whole').fingerprint()


def test_an_unfinished_set_can_be_given_up(tmp_path):
  for name in ('set', 'damaged'):
    with pytest.raises(KeyboardInterrupt):
      with records.Writer(tmp_path / name, shard_records=1) as writer:
        writer.write(stored.TRAJECTORIES[0])
        raise KeyboardInterrupt
  with pytest.raises(KeyboardInterrupt):
    with records.Writer(tmp_path / 'set', resume=False) as writer:
      assert writer.count == 0
      raise KeyboardInterrupt
  with records.Writer(tmp_path / 'set') as writer:
    assert writer.count == 0, 'what was given up came back'
    for trajectory in stored.TRAJECTORIES[1:]:
      writer.write(trajectory)
  stored.assert_same(records.read(tmp_path / 'set'), stored.TRAJECTORIES[1:])
  assert len(stored.names(tmp_path / 'set')) == 2
  next((tmp_path / 'damaged').glob('trajectories-*')).unlink()
  with pytest.raises(ValueError, match='missing'):
    records.Writer(tmp_path / 'damaged')
  records.write(tmp_path / 'damaged', stored.TRAJECTORIES)


def test_a_finished_set_is_not_written_to(tmp_path):
  folder = tmp_path / 'set'
  records.write(folder, stored.TRAJECTORIES)
  old = stored.contents(folder)
  with pytest.raises(FileExistsError, match='overwrite=True'):
    records.Writer(folder)
  with pytest.raises(FileExistsError, match='overwrite=True'):
    records.write(folder, stored.TRAJECTORIES)
  assert stored.contents(folder) == old
  with records.Writer(folder, overwrite=True, shard_records=1) as writer:
    for trajectory in stored.TRAJECTORIES[::-1]:
      writer.write(trajectory)
    stored.assert_same(records.read(folder), stored.TRAJECTORIES)
  stored.assert_same(records.read(folder), stored.TRAJECTORIES[::-1])
  assert len(stored.names(folder)) == 5
  with pytest.raises(ValueError, match='closed'):
    writer.write(stored.TRAJECTORIES[0])
  writer.close()


def test_one_writer_at_a_time(tmp_path):
  with records.Writer(tmp_path / 'set') as writer:
    writer.write(stored.TRAJECTORIES[0])
    with pytest.raises(BlockingIOError, match='Another writer is at work in .*set'):
      records.Writer(tmp_path / 'set')
    with pytest.raises(BlockingIOError):
      records.write(tmp_path / 'set', [], overwrite=True)
    writer.write(stored.TRAJECTORIES[1])
  stored.assert_same(records.read(tmp_path / 'set'), stored.TRAJECTORIES[:2])


def test_writers_that_race_for_a_folder_never_share_it(tmp_path):
  """Threads stand for processes here: a lock belongs to an open file."""
  busy, most = [], []

  def attempt(_):
    try:
      with records.Writer(tmp_path / 'set', overwrite=True, resume=False) as writer:
        busy.append(writer)
        most.append(len(busy))
        busy.pop()
    except BlockingIOError:
      return 0
    return 1

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    done = sum(pool.map(attempt, range(200)))
  assert done >= 1 and max(most) == 1
  assert stored.names(tmp_path / 'set') == ['index.json']


def test_a_lock_whose_file_was_removed_is_no_lock(tmp_path, monkeypatch):
  """Its last owner removed it after this writer had opened it: the next writer would lock another file."""
  real = folder_lock.fcntl.flock

  def flock(file, flags):
    (tmp_path / 'lock').unlink()
    real(file, flags)

  with monkeypatch.context() as patch:
    patch.setattr(folder_lock.fcntl, 'flock', flock)
    with pytest.raises(BlockingIOError, match='Another writer'):
      records.Writer(tmp_path)
  records.write(tmp_path, stored.TRAJECTORIES)


def test_a_folder_that_cannot_be_locked(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError('no locks here')

  monkeypatch.setattr(folder_lock.fcntl, 'flock', fail)
  with pytest.warns(UserWarning, match='set cannot be locked .no locks here.. Make sure'):
    records.write(tmp_path / 'set', stored.TRAJECTORIES)
  stored.assert_same(records.read(tmp_path / 'set'), stored.TRAJECTORIES)


@pytest.mark.parametrize('sizes', [dict(shard_records=0), dict(shard_bytes=0)])
def test_shards_of_nothing(tmp_path, sizes):
  with pytest.raises(ValueError, match='at least 1'):
    records.Writer(tmp_path / 'set', **sizes)
  assert not list(tmp_path.iterdir())


# A writer that is killed at random lines of its code. `python tests/test_record_writer.py FOLDER LINE` is its process.


def _made(number):
  """A trajectory of a few kilobytes; equal numbers give equal ones."""
  steps = [Step(plan=f'plan {number}', draft=stored.picture([number, step])) for step in range(number % 4)]
  return Trajectory(prompt=f'prompt {number}', steps=tuple(steps), metadata={'number': number})


def _write_set(folder, line):
  """Writes, or continues, the set; at the given executed line of pdgen.data.records the system kills the process."""
  lines = 0

  def count(frame, event, argument):
    nonlocal lines
    lines += event == 'line'
    if lines == line:
      os.kill(os.getpid(), signal.SIGKILL)
    return count

  sys.settrace(lambda frame, event, argument: count if frame.f_code.co_filename == records.__file__ else None)
  with records.Writer(folder, shard_records=PER_SHARD) as writer:
    for number in range(writer.count, TOTAL):
      writer.write(_made(number))
  sys.settrace(None)
  print(lines)


def _process(folder, line):
  command = [sys.executable, __file__, folder, str(line)]
  environment = {**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parents[1])}
  return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_a_set_whose_writer_is_killed_is_as_one_whose_writer_was_not(tmp_path):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  process = _process(whole, 0)
  assert process.returncode == 0, process.stderr
  lines = int(process.stdout)
  rng = np.random.default_rng(0)
  left = []
  for _ in range(KILLS):
    # Together less than the lines of all the work.
    process = _process(killed, int(rng.integers(1, lines // (KILLS + 1))))
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not records.exists(killed)
    left.append(stored.names(killed) if killed.exists() else [])
    with pytest.raises(FileNotFoundError, match='killed'):
      records.Reader(killed)
  print(f'{KILLS} kills left {[len(names) for names in left]} files')
  assert any('.partial' in name for names in left for name in names) or KILLS < 5
  process = _process(killed, 0)
  assert process.returncode == 0, process.stderr

  assert stored.contents(killed) == stored.contents(whole)
  assert len(stored.names(killed)) == TOTAL // PER_SHARD + 1
  reader = records.Reader(killed)
  assert len(reader) == TOTAL and reader.fingerprint() == records.Reader(whole).fingerprint()
  reader.verify()
  order = rng.permutation(TOTAL)
  stored.assert_same([reader[i] for i in order], [_made(int(i)) for i in order])


@pytest.mark.parametrize('line', ['first', 'rename', 'remove'])
def test_the_last_moments_of_a_writer(tmp_path, monkeypatch, line):
  """Whole or absent at every line of `close`."""
  folder = tmp_path / 'set'
  records.write(folder, stored.TRAJECTORIES[:1])

  class Killed(BaseException):
    pass

  def kill(*_):
    raise Killed

  writer = records.Writer(folder, overwrite=True, resume=False)
  writer.write(stored.TRAJECTORIES[1])
  target = {
    'first': (records, '_write_index'),
    'rename': (records.os, 'replace'),
    'remove': (writer, '_remove_unlisted'),
  }
  monkeypatch.setattr(*target[line], kill)
  with pytest.raises(Killed):
    writer.close()
  stored.assert_same(records.read(folder), stored.TRAJECTORIES[1:2] if line == 'remove' else stored.TRAJECTORIES[:1])


if __name__ == '__main__':
  _write_set(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
