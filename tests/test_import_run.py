"""importers.import_records: killed and resumed as if never stopped; limits, splits, progress, refusals."""

import json
import os
import pathlib
import signal
import sys

import numpy as np
import pytest
from support import foreign, kills, stored

from pdgen.construction import importers
from pdgen.construction.importers import base, run
from pdgen.data import images, records, splits

# `PDGEN_KILLS=100 python -m pytest tests/test_import_run.py` takes 100. The process that is killed at a line of code is
# `python tests/test_import_run.py FOLDER OUT LINE`.
KILLS = int(os.environ.get('PDGEN_KILLS', 3))
ROWS, PER_SHARD, HELDOUT = 60, 7, 0.3


def _contents(folder):
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def _write_source(folder):
  lines = [foreign.jsonl_line(n % 40, id=n, prompt=f'{n} rings') for n in range(ROWS)]
  for number in range(3, ROWS, 5):
    lines[number] = dict(prompt=f'row {number}', steps=[])  # Rejected.
  foreign.write_jsonl(folder, lines)


def _import(source, out):
  return importers.import_records('jsonl', source, out, heldout=HELDOUT, shard_records=PER_SHARD)


def test_a_killed_import_ends_as_one_that_was_never_stopped(tmp_path):
  source, whole, killed = tmp_path / 'mine', tmp_path / 'whole', tmp_path / 'killed'
  _write_source(source)
  process = kills.process(__file__, source, whole, 0)
  assert process.returncode == 0, process.stderr
  lines = int(process.stdout)
  rng = np.random.default_rng(int(os.environ.get('PDGEN_SEED', 0)))
  left = []
  for _ in range(KILLS):
    process = kills.process(__file__, source, killed, int(rng.integers(lines // 8, lines // 3)))
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not (killed / run.DONE).exists()
    left.append(json.loads((killed / run.UNFINISHED).read_text())['place']['rows'])
  print(f'places after the kills: {left}')
  assert left == sorted(left) and left[-1] > 0, 'nothing was safe'
  process = kills.process(__file__, source, killed, 0)
  assert process.returncode == 0, process.stderr
  assert _contents(killed) == _contents(whole)
  ids = [t.provenance.id for split in splits.SPLITS for t in records.read(killed / split)]
  assert sorted(map(int, ids)) == [n for n in range(ROWS) if n % 5 != 3]


@pytest.mark.parametrize('step', range(0, 17, 3))
def test_the_moments_between_the_files(tmp_path, monkeypatch, step):
  """Stops at every 17th of the calls that make something safe, again and again, in this process."""
  source = tmp_path / 'mine'
  foreign.write_jsonl(source, [foreign.jsonl_line(n, prompt=f'{n} rings') for n in range(6)] + [dict(prompt='')])
  options = dict(heldout=0.5, shard_records=2)
  importers.import_records('jsonl', source, tmp_path / 'whole', **options)

  class Killed(BaseException):
    pass

  real, calls, kills = os.fsync, [], 0

  def fsync(descriptor):
    calls.append(descriptor)
    if len(calls) % 17 == step:
      raise Killed
    real(descriptor)

  monkeypatch.setattr(os, 'fsync', fsync)
  while not (tmp_path / 'out' / run.DONE).exists():
    try:
      importers.import_records('jsonl', source, tmp_path / 'out', **options)
    except Killed:
      kills += 1
      assert kills < 30, 'it does not come to an end'
  monkeypatch.undo()
  assert kills >= 2
  with pytest.raises(FileExistsError):
    importers.import_records('jsonl', source, tmp_path / 'out', **options)
  assert _contents(tmp_path / 'out') == _contents(tmp_path / 'whole')


def test_counts_splits_and_progress(tmp_path, monkeypatch):
  source = tmp_path / 'mine'
  _write_source(source)
  seen = []
  counts = importers.import_records('jsonl', source, tmp_path / 'out', heldout=HELDOUT, progress=seen.append)
  assert counts.read == ROWS and counts.rejected == 12 and counts.kept == 48
  assert seen == [counts]
  for split in splits.SPLITS:
    found = records.read(tmp_path / 'out' / split)
    assert len(found) == getattr(counts, split) > 5
    assert {splits.split_of(t.prompt, heldout=HELDOUT) for t in found} == {split}
  shown = []
  run.import_records(
    importers.get('jsonl'), source, tmp_path / 'again', name='jsonl', progress=shown.append, progress_rows=25
  )
  assert [c.read for c in shown] == [25, 50, 60]
  done = json.loads((tmp_path / 'out' / 'import.json').read_text())
  assert done['format'] == 'jsonl' and done['files'] == [['a.jsonl', (source / 'a.jsonl').stat().st_size]]


def test_a_limit_stops_there(tmp_path):
  source = tmp_path / 'mine'
  _write_source(source)
  counts = importers.import_records('jsonl', source, tmp_path / 'out', limit=5, heldout=0)
  assert (counts.read, counts.kept, counts.rejected) == (6, 5, 1)
  assert [t.provenance.id for t in records.read(tmp_path / 'out' / 'train')] == ['0', '1', '2', '4', '5']
  counts = importers.import_records('jsonl', source, tmp_path / 'part', share=0.4, heldout=0)
  assert counts.read + counts.passed_over == ROWS and 10 < counts.read < 40
  assert counts.kept == len(records.read(tmp_path / 'part' / 'train'))


def test_only_rows_after_the_place_are_decoded(tmp_path, monkeypatch):
  source, out = tmp_path / 'mine', tmp_path / 'out'
  foreign.write_jsonl(source, [foreign.jsonl_line(n) for n in range(20)])
  real, opened = images.open_picture, []

  def open_picture(content):
    opened.append(content)
    if len(opened) == 3 * 17 + 1:
      raise KeyboardInterrupt
    return real(content)

  monkeypatch.setattr(images, 'open_picture', open_picture)
  with pytest.raises(KeyboardInterrupt):
    importers.import_records('jsonl', source, out, heldout=0, shard_records=5)
  assert not records.exists(out / 'train')
  opened[:] = [None] * 100
  counts = importers.import_records('jsonl', source, out, heldout=0, shard_records=5)
  assert len(opened) - 100 == 3 * 5, 'the first 15 were safe'
  assert counts.kept == 20
  stored.assert_same(records.read(out / 'train'), [t for _, t in importers.read('jsonl', source)])


def test_what_is_finished_or_something_else_is_not_touched(tmp_path):
  source, out = tmp_path / 'mine', tmp_path / 'out'
  foreign.write_jsonl(source, [foreign.jsonl_line(n) for n in range(4)])
  importers.import_records('jsonl', source, out)
  before = _contents(out)
  with pytest.raises(FileExistsError, match='finished. Delete'):
    importers.import_records('jsonl', source, out)
  assert _contents(out) == before
  # The record set of someone else, in the same place.
  records.write(tmp_path / 'other' / 'train', stored.TRAJECTORIES)
  with pytest.raises(ValueError, match='train has 4 records, the import that is to go on there 0'):
    importers.import_records('jsonl', source, tmp_path / 'other')
  stored.assert_same(records.read(tmp_path / 'other' / 'train'), stored.TRAJECTORIES)


def _stopped(source, out, **options):
  """An import that stops after its first shard."""
  form = importers.get('jsonl')

  class Stops:
    def rows(self, source, wanted):
      yield from form.rows(source, wanted)

    def trajectory(self, row, pictures):
      if row.where.row == 4:
        raise KeyboardInterrupt
      return form.trajectory(row, pictures)

  with pytest.raises(KeyboardInterrupt):
    run.import_records(Stops(), source, out, name='jsonl', heldout=0, shard_records=2, **options)


def test_another_source_or_other_options_do_not_go_on(tmp_path):
  source, out = tmp_path / 'mine', tmp_path / 'out'
  foreign.write_jsonl(source, [foreign.jsonl_line(n) for n in range(8)])
  _stopped(source, out)
  options = dict(heldout=0, shard_records=2)
  limits = (dict(shard_records=3), dict(limit=3))
  for change in limits:
    with pytest.raises(ValueError, match='unfinished import with other limits'):
      importers.import_records('jsonl', source, out, **{**options, **change})
  for change in (dict(heldout=0.5), dict(share=0.5), dict(resize=images.VAE.resize)):
    with pytest.raises(ValueError, match='unfinished import with other options'):
      importers.import_records('jsonl', source, out, **{**options, **change})
  with pytest.raises(ValueError, match='other format'):
    importers.import_records('gen_ref', source / 'a.jsonl', out, **options)
  foreign.write_jsonl(source, [foreign.jsonl_line(0)], name='b.jsonl')
  with pytest.raises(ValueError, match='other files'):
    importers.import_records('jsonl', source, out, **options)
  (source / 'b.jsonl').unlink()
  next((out / 'train').glob('*.array_record')).rename(tmp_path / 'lost')
  with pytest.raises(ValueError, match='missing'):
    importers.import_records('jsonl', source, out, **options)
  (tmp_path / 'lost').rename(
    out / 'train' / json.loads((out / 'train' / 'unfinished.json').read_text())['shards'][0]['file']
  )
  assert importers.import_records('jsonl', source, out, **options).kept == 8


def test_one_import_at_a_time(tmp_path):
  source, out = tmp_path / 'mine', tmp_path / 'out'
  foreign.write_jsonl(source, [foreign.jsonl_line(n) for n in range(2)])

  form = importers.get('jsonl')

  class Meets:
    def rows(self, source, wanted):
      with pytest.raises(BlockingIOError, match='Another writer'):
        importers.import_records('jsonl', tmp_path / 'mine', out)
      yield from form.rows(source, wanted)

    trajectory = staticmethod(form.trajectory)

  assert run.import_records(Meets(), source, out, name='jsonl').kept == 2


@pytest.mark.parametrize('bad', [dict(limit=0), dict(share=0), dict(share=1.5), dict(shard_records=0), dict(heldout=2)])
def test_numbers_that_are_out_of_range(tmp_path, bad):
  foreign.write_jsonl(tmp_path / 'mine', [foreign.jsonl_line(0)])
  with pytest.raises(ValueError):
    importers.import_records('jsonl', tmp_path / 'mine', tmp_path / 'out', **bad)
  assert not (tmp_path / 'out').exists()


def test_what_is_imported_is_not_imported_into(tmp_path):
  foreign.write_jsonl(tmp_path / 'mine', [foreign.jsonl_line(0)])
  for out in (tmp_path / 'mine', tmp_path / 'mine' / 'out', tmp_path / 'mine' / '..' / 'mine' / 'out'):
    with pytest.raises(ValueError, match='lies in the source'):
      importers.import_records('jsonl', tmp_path / 'mine', out)
  assert not (tmp_path / 'mine' / 'out').exists()


def test_lost_rejects_and_names_of_functions(tmp_path):
  source, out = tmp_path / 'mine', tmp_path / 'out'
  foreign.write_jsonl(source, [dict(prompt=''), *(foreign.jsonl_line(n) for n in range(8))])
  _stopped(source, out)
  (out / run.REJECTED).write_text('')
  with pytest.raises(ValueError, match='rejected.jsonl has lost rows'):
    importers.import_records('jsonl', source, out, heldout=0, shard_records=2)
  assert '0x' not in run._name_of(_stopped) and run._name_of(None) is None
  assert 'max_size=1024' in run._name_of(images.VAE.resize) != run._name_of(images.VIT.resize)


def test_any_stream_of_entries_is_written_and_resumed(tmp_path):
  """As the construction of subsets does: what is dear to make is not made again."""
  made = []

  def entries(start):
    for number in range(7):
      if number < start:
        yield base.Entry(base.Where('world', number + 1), None)
        continue
      made.append(number)
      if len(made) == 6:
        raise KeyboardInterrupt
      yield base.Entry(base.Where('world', number + 1), stored.TRAJECTORIES[number % 2])

  options = dict(asked={'world': 'shapes', 'seed': 1}, split_of=lambda prompt: 'train', shard_records=3)
  with pytest.raises(KeyboardInterrupt):
    run.write_entries(entries, tmp_path / 'out', **options)
  assert run.write_entries(entries, tmp_path / 'out', **options).train == 7
  assert made == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6]
  stored.assert_same(records.read(tmp_path / 'out' / 'train'), [stored.TRAJECTORIES[n % 2] for n in range(7)])
  assert json.loads((tmp_path / 'out' / 'import.json').read_text())['seed'] == 1


def test_a_source_that_is_not_there_leaves_nothing(tmp_path):
  with pytest.raises(FileNotFoundError):
    importers.import_records('jsonl', tmp_path / 'none', tmp_path / 'out')
  assert not list(tmp_path.iterdir())


def test_rows_that_are_rejected_have_a_place():
  assert str(base.Where('a', 3, 'k')) == 'a row 3 (k)' and str(base.Where('a', 0)) == 'a'
  entry = base.Entry(base.Where('a', 3), base.Rejected('why'))
  assert base.reject(entry) == {'file': 'a', 'row': 3, 'key': '', 'reason': 'why'}
  with pytest.raises(TypeError, match='not rejected'):
    base.reject(base.Entry(base.Where('a', 3), None))


if __name__ == '__main__':
  source, out, line = sys.argv[1:]
  kills.at_line(int(line), lambda: _import(pathlib.Path(source), pathlib.Path(out)), of=(run, records))
