"""A record set gives back what was written, and says so when a byte of it changed or a writer was killed."""

import concurrent.futures
import dataclasses
import io
import json
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import tracemalloc
import types
import zipfile

import grain
import numpy as np
import pytest
from PIL import Image

from pdgen.core import trajectory as trajectory_lib
from pdgen.data import legacy_store, record_codec, records
from pdgen.worlds import shapes

Step, Trajectory = trajectory_lib.Step, trajectory_lib.Trajectory
Clause, Content = trajectory_lib.Clause, trajectory_lib.Content

# The suite takes as many as it has time for; `PDGEN_KILLS=100 python -m pytest tests/test_records.py` takes 100.
KILLS = int(os.environ.get('PDGEN_KILLS', 5))
TOTAL = 1000
PER_SHARD = TOTAL // (4 * KILLS)  # Kills hit records, ends of shards and indices.


def _picture(seed, side=8):
  return np.random.default_rng(seed).integers(0, 256, [side, side, 3], dtype=np.uint8)


TRAJECTORIES = [
  Trajectory(
    prompt='a ring, 環',
    steps=(
      Step(plan='x', draft=_picture(0), inspection='<refine>r</refine>', refined=_picture(1), draft_is_target=False),
      Step(plan='y', draft=_picture(2, side=4), inspection='<refine>s</refine>', corrected_plan='z'),
    ),
    stop='token_cap',
    spec=trajectory_lib.PromptSpec(
      tag='position',
      include=(Clause(name='ring', count=2, color='red'), Clause(name='bar', position=('left of', 0))),
      exclude=(Clause(name='ring', count=3),),
    ),
    provenance=trajectory_lib.Provenance(
      source='shapes', kind='misalignment', errors=('extra', 'missing'), detour='swap', id='7'
    ),
    expected=(Content('ring', 'red', 3), Content('bar')),
    metadata={'score': 0.1, 'nested': [{'a': None}, True], 'lone surrogate': '\ud800', '環': 2**70},
  ),
  Trajectory(prompt='', steps=(Step(),), stop=None, expected=()),
  Trajectory(prompt='b', steps=(), stop='picture_cap', spec=trajectory_lib.PromptSpec(tag='colors')),
  Trajectory(prompt='c', steps=(Step(draft=_picture(3)[:, ::2]),), mode='direct'),
]


def _assert_same(got, want):
  assert len(got) == len(want)
  for a, b in zip(got, want, strict=True):
    assert isinstance(a, Trajectory) and isinstance(a.steps, tuple)
    for field in dataclasses.fields(Trajectory):
      if field.name != 'steps':
        assert getattr(a, field.name) == getattr(b, field.name), field.name
    assert len(a.steps) == len(b.steps)
    for s, t in zip(a.steps, b.steps, strict=True):
      for field in dataclasses.fields(Step):
        x, y = getattr(s, field.name), getattr(t, field.name)
        if isinstance(y, np.ndarray):
          assert x.dtype == np.uint8 and x.flags.writeable
          np.testing.assert_array_equal(x, y)
        else:
          assert x == y and type(x) is type(y), field.name


def _bytes(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def _names(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('count', [0, 2, 3, 4])
def test_round_trip_is_exact_and_deterministic(tmp_path, count):
  for name in ('a', 'b'):
    records.write(tmp_path / name, iter(TRAJECTORIES[:count]))
  _assert_same(records.read(tmp_path / 'a'), TRAJECTORIES[:count])
  assert _bytes(tmp_path / 'a') == _bytes(tmp_path / 'b')
  shards = [name for name in _names(tmp_path / 'a') if name.startswith('trajectories-00000-')]
  assert _names(tmp_path / 'a') == ['index.json', *shards], 'a partial file or a lock was left'
  assert len(shards) == (count > 0)


def test_types_come_back(tmp_path):
  records.write(tmp_path / 'a', TRAJECTORIES)
  got = records.Reader(tmp_path / 'a')[0]
  assert isinstance(got.spec.include[1], Clause) and isinstance(got.spec.include[1].position, tuple)
  assert isinstance(got.provenance.errors, tuple)
  assert isinstance(got.expected[0], Content)
  records.write(tmp_path / 'b', [Trajectory(prompt='q', steps=(), metadata=types.MappingProxyType({'a': (1, (2,))}))])
  assert records.read(tmp_path / 'b')[0].metadata == {'a': [1, [2]]}, 'tuples come back as lists'


def test_random_access(tmp_path):
  records.write(tmp_path / 'set', TRAJECTORIES, shard_records=3)
  assert len([name for name in _names(tmp_path / 'set') if name.startswith('trajectories-')]) == 2
  reader = records.Reader(tmp_path / 'set')
  assert len(reader) == 4
  for index in (3, 0, np.int64(2), 1, 3):
    _assert_same([reader[index]], [TRAJECTORIES[int(index)]])
  for index in (-1, 4):
    with pytest.raises(IndexError, match=f'Record {index} .* has 4'):
      reader[index]
  with pytest.raises(TypeError):
    reader['0']
  reader.verify()


@pytest.mark.parametrize('sizes', [dict(shard_records=1), dict(shard_records=2), dict(shard_bytes=1)])
def test_the_fingerprint_is_of_the_trajectories_alone(tmp_path, sizes):
  records.write(tmp_path / 'whole', TRAJECTORIES)
  records.write(tmp_path / 'cut', TRAJECTORIES, **sizes)
  whole, cut = records.Reader(tmp_path / 'whole'), records.Reader(tmp_path / 'cut')
  assert len(_names(tmp_path / 'cut')) > len(_names(tmp_path / 'whole'))
  assert whole.fingerprint() == cut.fingerprint()
  assert repr(whole) == repr(cut)
  _assert_same(list(cut), list(whole))


def test_every_field_is_in_the_fingerprint(tmp_path):
  base = TRAJECTORIES[0]
  first, second = base.steps
  other = _picture(0)
  other[7, 7, 2] ^= 1
  change = dataclasses.replace
  changed = [
    change(base, prompt='d'),
    change(base, stop=None),
    change(base, spec=None),
    change(base, spec=change(base.spec, tag='d')),
    change(base, provenance=change(base.provenance, id='8')),
    change(base, expected=None),
    change(base, metadata={}),
    change(base, steps=(first,)),
    *(change(base, steps=(change(first, **{name: 'd <refine>'}), second)) for name in ('plan', 'inspection')),
    change(base, steps=(first, change(second, corrected_plan=None))),
    change(base, steps=(change(first, draft_is_target=True), second)),
    change(base, steps=(change(first, draft=other), second)),
    change(base, steps=(change(first, draft=first.refined, refined=first.draft), second)),
    change(base, steps=(first, change(second, draft=second.draft.reshape(2, 8, 3)))),
  ]
  lists = [[base], *([trajectory] for trajectory in changed), [base, base], [*TRAJECTORIES], TRAJECTORIES[::-1], []]
  lists += [[Trajectory(prompt='c', steps=(), mode=mode)] for mode in trajectory_lib.MODES]
  found = set()
  for number, trajectories in enumerate(lists):
    records.write(tmp_path / str(number), trajectories)
    found.add(records.Reader(tmp_path / str(number)).fingerprint())
  assert len(found) == len(lists)


def test_a_changed_byte_is_noticed(tmp_path):
  folder = tmp_path / 'set'
  records.write(folder, TRAJECTORIES[:1])
  index, shard = (folder / name for name in _names(folder))
  content = shard.read_bytes()
  used = np.flatnonzero(np.frombuffer(content, np.uint8))  # The rest is padding.
  refused = 0
  places = [int(place) for place in (*used[:: len(used) // 100], *used[-20:], len(content) // 2 - 1)]
  for place in places:
    shard.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
    reader = records.Reader(folder)
    try:
      got = reader[0]
    except ValueError as error:
      assert 'Record 0' in str(error) and shard.name in str(error) and 'make it again' in str(error)
      refused += 1
    else:
      _assert_same([got], TRAJECTORIES[:1])  # Only what is not needed to read it may change unnoticed.
    with pytest.raises(ValueError, match=f'{shard.name} is damaged: its SHA-256 .* make it again'):
      reader.verify()
  assert refused > 0.5 * len(places)
  shard.write_bytes(content)
  content = index.read_bytes()
  for place in range(0, len(content), 7):
    index.write_bytes(content[:place] + bytes([content[place] ^ 0x15]) + content[place + 1 :])
    try:
      got = records.read(folder)
    except ValueError as error:
      assert 'index.json' in str(error)
    else:
      _assert_same(got, TRAJECTORIES[:1])  # White space.


def test_a_damaged_record_is_located(tmp_path):
  folder = tmp_path / 'set'
  wanted = [Trajectory(prompt='p', steps=(Step(plan='x', draft=_picture(number, side=64)),)) for number in range(7)]
  records.write(folder, wanted, shard_records=3)
  shard = next(folder.glob('trajectories-00001-*'))
  record, _ = record_codec.encode(wanted[4], name='t')
  content = bytearray(shard.read_bytes())
  content[content.index(record[5000:5100])] ^= 1  # Noise is stored as it is.
  shard.write_bytes(content)
  reader = records.Reader(folder)
  with pytest.raises(ValueError, match=rf'Record 4 \(.*{shard.name}, number 1 in it\) cannot be read.*make it again'):
    reader[4]
  _assert_same([reader[i] for i in (0, 3, 5, 6)], [wanted[i] for i in (0, 3, 5, 6)])


def test_the_content_hash_covers_texts_and_pictures():
  record, content_hash = record_codec.encode(TRAJECTORIES[0], name='t')
  _assert_same([record_codec.decode(record)], TRAJECTORIES[:1])
  other, _ = record_codec.encode(
    dataclasses.replace(TRAJECTORIES[0], steps=(Step(draft=_picture(9)), TRAJECTORIES[0].steps[1])), name='t'
  )
  header = record[4 : 4 + int.from_bytes(record[:4], 'little')]
  files, other_files = record[4 + len(header) :], other[4 + int.from_bytes(other[:4], 'little') :]

  def repacked(header, files):
    return len(header).to_bytes(4, 'little') + header + files

  assert repacked(header, files) == record
  lengths = json.loads(header)['lengths']
  swapped = files[lengths[0] : lengths[0] + lengths[1]] + files[: lengths[0]] + files[sum(lengths[:2]) :]
  relabelled = header.replace(str(lengths[:2])[1:-1].replace(' ', '').encode(), f'{lengths[1]},{lengths[0]}'.encode())
  assert len(other_files) != len(files)
  for damaged in (
    repacked(header.replace(b'"plan":"y"', b'"plan":"w"'), files),
    repacked(header.replace(b'"score":0.1', b'"score":0.2'), files),
    repacked(header.replace(content_hash.encode(), content_hash[::-1].encode()), files),
    repacked(relabelled, swapped),
  ):
    assert damaged != record
    with pytest.raises(ValueError, match='content hash'):
      record_codec.decode(damaged)
  with pytest.raises(ValueError, match='schema is 2.*reads 1'):
    record_codec.decode(repacked(header.replace(b'"schema":1', b'"schema":2'), files))


def test_damaged_sets(tmp_path):
  def damaged(change):
    folder = tmp_path / f'{len(_names(tmp_path))}'
    records.write(folder, TRAJECTORIES, shard_records=2)
    change(folder, next(folder.glob('trajectories-00001-*')))
    return folder

  def truncate(folder, shard):
    shard.write_bytes(shard.read_bytes()[:-1])

  def newer(folder, shard):
    index = json.loads((folder / 'index.json').read_text())
    (folder / 'index.json').write_text(json.dumps({**index, 'schema': 2}))

  with pytest.raises(ValueError, match='trajectories-00001-.* has 131071 bytes, not 131072.*make it again'):
    records.Reader(damaged(truncate))
  with pytest.raises(ValueError, match='trajectories-00001-.* is missing.*make it again'):
    records.Reader(damaged(lambda folder, shard: shard.unlink()))
  with pytest.raises(FileNotFoundError, match='no index.json'):
    records.Reader(damaged(lambda folder, shard: (folder / 'index.json').unlink()))
  with pytest.raises(ValueError, match='index.json has schema 2.*reads schema 1.*Update pdgen'):
    records.Reader(damaged(newer))
  folder = damaged(lambda folder, shard: (folder / 'index.json').write_text('{'))
  with pytest.raises(ValueError, match='index.json is damaged.*make it again'):
    records.Reader(folder)
  records.write(folder, TRAJECTORIES[:1], overwrite=True)
  _assert_same(records.read(folder), TRAJECTORIES[:1])
  assert len(_names(folder)) == 2


def test_a_missing_set(tmp_path):
  with pytest.raises(FileNotFoundError, match='none'):
    records.read(tmp_path / 'none')
  assert not records.exists(tmp_path / 'none') and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'bad, message',
  [
    (dict(metadata={'x': object()}), "Metadata of trajectory 1 .*'q'.* not JSON"),
    (dict(metadata={'x': float('nan')}), "Metadata of trajectory 1 .*'q'.* not JSON"),
    (dict(metadata={'x': {1: 2}}), "Metadata of trajectory 1 .*'q'.* not JSON: the key 1"),
    (dict(expected=(Content('ring', 'red', np.int64(3)),)), "field of trajectory 1 .*'q'.* not JSON"),
    (dict(steps=(Step(draft=np.zeros([4, 4, 3])),)), r"trajectory 1 .*'q'.* float64\[4, 4, 3\]"),
    (dict(steps=(Step(draft=np.zeros([4, 4, 4], np.uint8)),)), r"trajectory 1 .*'q'.* uint8\[4, 4, 4\]"),
    (dict(steps=(Step(draft=np.zeros([0, 4, 3], np.uint8)),)), r"trajectory 1 .*'q'.* uint8\[0, 4, 3\]"),
    (dict(steps=(Step(draft=b'png'),)), "trajectory 1 .*'q'.* type bytes"),
  ],
)
def test_what_cannot_be_stored_is_named(tmp_path, bad, message):
  bad = Trajectory(**{'prompt': 'q', 'steps': (), **bad})
  with pytest.raises(ValueError, match=message):
    records.write(tmp_path / 'a', [TRAJECTORIES[2], bad])
  assert not list(tmp_path.iterdir())
  with records.Writer(tmp_path / 'b') as writer:
    writer.write(TRAJECTORIES[0])
    with pytest.raises(ValueError, match=message):
      writer.write(bad)
    writer.write(TRAJECTORIES[1])
  _assert_same(records.read(tmp_path / 'b'), TRAJECTORIES[:2])


def test_encoded_pictures_are_stored_as_they_are(tmp_path, monkeypatch):
  def encoded(picture, kind, **options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()

  smooth = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], [1, 64, 3])
  jpeg = encoded(smooth, 'JPEG')
  decoded = np.asarray(Image.open(io.BytesIO(jpeg)).convert('RGB'))
  trajectory = Trajectory(prompt='p', steps=(Step(plan='x', draft=decoded), Step(plan='y', draft=smooth)))
  files = dict(
    none=(),
    jpeg=[jpeg, None],
    png=[None, encoded(smooth, 'PNG', compress_level=0)],
    both=[jpeg, encoded(smooth, 'PNG')],
  )
  for name, given in files.items():
    with records.Writer(tmp_path / name) as writer:
      writer.write(trajectory, picture_files=given)
    _assert_same(records.read(tmp_path / name), [trajectory])
  prints = {name: records.Reader(tmp_path / name).fingerprint() for name in files}
  assert prints['png'] == prints['none'], 'how a PNG is compressed is no content'
  assert prints['jpeg'] == prints['both']
  record, _ = record_codec.encode(trajectory, name='t', picture_files=files['jpeg'])
  assert jpeg in record
  with monkeypatch.context() as patch:
    real = record_codec._decode_picture
    patch.setattr(record_codec, '_decode_picture', lambda file: real(file) ^ np.uint8(file == jpeg))
    other = record_codec.decode(record).steps[0].draft  # Another machine's decoder of JPEG.
  np.testing.assert_array_equal(other, decoded ^ 1)
  with records.Writer(tmp_path / 'wrong') as writer:
    with pytest.raises(ValueError, match="Picture file 1 of trajectory 0 .*'p'.* another picture"):
      writer.write(trajectory, picture_files=[jpeg, jpeg])
    with pytest.raises(ValueError, match="trajectory 0 .*'p'.* has 2 pictures, but 1"):
      writer.write(trajectory, picture_files=[jpeg])


@pytest.mark.parametrize('sync', range(1, 7))  # Of the shard; the unfinished index and its folder, twice; the folder.
def test_a_failed_write_keeps_the_old_set(tmp_path, monkeypatch, sync):
  folder = tmp_path / 'set'
  records.write(folder, TRAJECTORIES[:1])
  old, calls, real = _bytes(folder), [], os.fsync

  def fail(descriptor):
    calls.append(descriptor)
    if len(calls) == sync:
      raise OSError('disk full')
    real(descriptor)

  with monkeypatch.context() as patch:
    patch.setattr(records.os, 'fsync', fail)
    with pytest.raises(OSError, match='disk full'):
      records.write(folder, TRAJECTORIES, overwrite=True, shard_records=4)
  if sync == 6:  # The last one: of the folder, when the new index is in place.
    _assert_same(records.read(folder), TRAJECTORIES)
  else:
    _assert_same(records.read(folder), TRAJECTORIES[:1])
    assert _bytes(folder).items() >= old.items()
  if sync == 1:
    assert _bytes(folder) == old
  records.write(folder, TRAJECTORIES, overwrite=True)
  _assert_same(records.read(folder), TRAJECTORIES)
  assert len(_names(folder)) == 2


def test_a_failed_shard_closes_the_writer(tmp_path, monkeypatch):
  with records.Writer(tmp_path / 'set', shard_records=2) as writer:
    for trajectory in TRAJECTORIES[:3]:
      writer.write(trajectory)
    with monkeypatch.context() as patch:
      patch.setattr(records, '_file_sha256', lambda path: 1 / 0)
      with pytest.raises(ZeroDivisionError):
        writer.write(TRAJECTORIES[3])
    with pytest.raises(ValueError, match='closed'):
      writer.write(TRAJECTORIES[3])
  assert not records.exists(tmp_path / 'set'), 'records are missing'
  with pytest.raises(FileNotFoundError, match='unfinished'):
    records.Reader(tmp_path / 'set')


def test_an_unfinished_set_is_continued(tmp_path):
  folder = tmp_path / 'set'
  with pytest.raises(KeyboardInterrupt):
    with records.Writer(folder, shard_records=2) as writer:
      for trajectory in TRAJECTORIES[:3]:
        writer.write(trajectory)
      raise KeyboardInterrupt
  assert writer.count == 2
  (folder / 'trajectories-00001.partial').write_bytes(b'killed')
  (folder / 'trajectories-00001-01234567.array_record').write_bytes(b'killed before it was listed')
  (folder / 'notes.txt').write_text('of the user')
  with records.Writer(folder) as writer:
    assert writer.count == 2
    assert len(_names(folder)) == 4, 'more than the shard, its list, the lock and the notes are left'
    writer.write(TRAJECTORIES[2])
    writer.flush()
    assert writer.count == 3
    writer.write(TRAJECTORIES[3])
  _assert_same(records.read(folder), TRAJECTORIES)
  assert len(_names(folder)) == 5 and 'notes.txt' in _names(folder)
  records.write(tmp_path / 'whole', TRAJECTORIES)
  assert records.Reader(folder).fingerprint() == records.Reader(tmp_path / 'whole').fingerprint()


def test_an_unfinished_set_can_be_given_up(tmp_path):
  for name in ('set', 'damaged'):
    with pytest.raises(KeyboardInterrupt):
      with records.Writer(tmp_path / name, shard_records=1) as writer:
        writer.write(TRAJECTORIES[0])
        raise KeyboardInterrupt
  with pytest.raises(KeyboardInterrupt):
    with records.Writer(tmp_path / 'set', resume=False) as writer:
      assert writer.count == 0
      raise KeyboardInterrupt
  with records.Writer(tmp_path / 'set') as writer:
    assert writer.count == 0, 'what was given up came back'
    for trajectory in TRAJECTORIES[1:]:
      writer.write(trajectory)
  _assert_same(records.read(tmp_path / 'set'), TRAJECTORIES[1:])
  assert len(_names(tmp_path / 'set')) == 2
  next((tmp_path / 'damaged').glob('trajectories-*')).unlink()
  with pytest.raises(ValueError, match='missing'):
    records.Writer(tmp_path / 'damaged')
  records.write(tmp_path / 'damaged', TRAJECTORIES)


def test_a_finished_set_is_not_written_to(tmp_path):
  folder = tmp_path / 'set'
  records.write(folder, TRAJECTORIES)
  old = _bytes(folder)
  with pytest.raises(FileExistsError, match='overwrite=True'):
    records.Writer(folder)
  with pytest.raises(FileExistsError, match='overwrite=True'):
    records.write(folder, TRAJECTORIES)
  assert _bytes(folder) == old
  with records.Writer(folder, overwrite=True, shard_records=1) as writer:
    for trajectory in TRAJECTORIES[::-1]:
      writer.write(trajectory)
    _assert_same(records.read(folder), TRAJECTORIES)
  _assert_same(records.read(folder), TRAJECTORIES[::-1])
  assert len(_names(folder)) == 5
  with pytest.raises(ValueError, match='closed'):
    writer.write(TRAJECTORIES[0])
  writer.close()


def test_one_writer_at_a_time(tmp_path):
  with records.Writer(tmp_path / 'set') as writer:
    writer.write(TRAJECTORIES[0])
    with pytest.raises(BlockingIOError, match='Another writer is at work in .*set'):
      records.Writer(tmp_path / 'set')
    with pytest.raises(BlockingIOError):
      records.write(tmp_path / 'set', [], overwrite=True)
    writer.write(TRAJECTORIES[1])
  _assert_same(records.read(tmp_path / 'set'), TRAJECTORIES[:2])


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
  assert _names(tmp_path / 'set') == ['index.json']


def test_a_lock_whose_file_was_removed_is_no_lock(tmp_path, monkeypatch):
  """Its last owner removed it after this writer had opened it: the next writer would lock another file."""
  real = records.fcntl.flock

  def flock(file, flags):
    (tmp_path / 'lock').unlink()
    real(file, flags)

  with monkeypatch.context() as patch:
    patch.setattr(records.fcntl, 'flock', flock)
    with pytest.raises(BlockingIOError, match='Another writer'):
      records.Writer(tmp_path)
  records.write(tmp_path, TRAJECTORIES)


def test_a_folder_that_cannot_be_locked(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError('no locks here')

  monkeypatch.setattr(records.fcntl, 'flock', fail)
  with pytest.warns(UserWarning, match='set cannot be locked .no locks here.. Make sure'):
    records.write(tmp_path / 'set', TRAJECTORIES)
  _assert_same(records.read(tmp_path / 'set'), TRAJECTORIES)


@pytest.mark.parametrize('sizes', [dict(shard_records=0), dict(shard_bytes=0)])
def test_shards_of_nothing(tmp_path, sizes):
  with pytest.raises(ValueError, match='at least 1'):
    records.Writer(tmp_path / 'set', **sizes)
  assert not list(tmp_path.iterdir())


def _digest_of(reader):
  return [(trajectory.prompt, [picture.tobytes() for picture in trajectory.pictures]) for trajectory in reader]


def test_a_reader_goes_to_worker_processes_and_threads(tmp_path):
  records.write(tmp_path / 'set', TRAJECTORIES, shard_records=3)
  reader = records.Reader(tmp_path / 'set')
  want = _digest_of(reader)  # Opens both files.
  _assert_same(list(pickle.loads(pickle.dumps(reader))), TRAJECTORIES)
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    assert pool.apply(_digest_of, (reader,)) == want
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for index, got in zip(range(200), pool.map(lambda i: reader[i % 4], range(200)), strict=True):
      assert got.prompt == TRAJECTORIES[index % 4].prompt
  dataset = grain.MapDataset.source(reader).repeat(2).to_iter_dataset()
  _assert_same(list(dataset), [*TRAJECTORIES, *TRAJECTORIES])


# Runs that began before record sets resume with their files of self-sampled trajectories.

FORMAT1 = pathlib.Path(__file__).parent / 'data' / 'store_format1.npz'  # Written by pdgen.data.store at commit dbb0ef8.


def test_files_of_the_old_store_are_read(tmp_path):
  conflict, direct, own = trajectories = legacy_store.read_npz(FORMAT1)
  assert [t.mode for t in trajectories] == ['process', 'direct', 'process']
  assert [t.prompt for t in trajectories] == [
    'a photo of a triangle right of a cross',
    'a photo of four crosses',
    'a photo of a bar left of a square',
  ]
  assert [t.provenance for t in trajectories] == [
    trajectory_lib.Provenance(source='shapes', kind='conflict', errors=('conflict_relation',)),
    trajectory_lib.Provenance(source='shapes', kind='direct'),
    trajectory_lib.Provenance(source='shapes', kind='self_sampled', errors=('missing', 'extra')),
  ]
  assert conflict.spec == trajectory_lib.PromptSpec(
    tag='position', include=(Clause(name='cross'), Clause(name='triangle', position=('right of', 0)))
  )
  assert direct.spec.exclude == (Clause(name='cross', count=5),)
  assert conflict.expected == (Content('triangle', 'purple', 5), Content('cross', 'white', 3))
  assert [(t.stop, t.metadata) for t in trajectories] == [('finished', {})] * 3
  assert [len(t.pictures) for t in trajectories] == [3, 1, 3]
  assert conflict.steps[1].plan_rejected and conflict.steps[1].rejected and not conflict.steps[0].rejected
  assert conflict.steps[1].corrected_plan.startswith('<ins>Remove the white cross at the bottom right.')
  assert [step.draft_is_target for step in own.steps] == [False, True]
  assert (own.steps[0].draft == 255).all(), 'the draft that was reviewed was blank'
  assert own.steps[0].refined.shape == (32, 32, 3) and own.steps[0].refined.std() > 0
  assert legacy_store.read_npz(FORMAT1, source='mine')[0].provenance.source == 'mine'
  records.write(tmp_path / 'set', trajectories)
  _assert_same(records.read(tmp_path / 'set'), trajectories)


def test_what_inflates_beyond_measure_is_refused_before_it_does(tmp_path, monkeypatch):
  path = tmp_path / 'bomb.npz'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
    file.writestr('pixels.npy', bytes(2**28 + 1))
  assert path.stat().st_size < 2**20
  tracemalloc.start()
  with pytest.raises(ValueError, match=f'bytes that inflate to {2**28 + 1}: it is no file of pdgen'):
    legacy_store.read_npz(path)
  assert tracemalloc.get_traced_memory()[1] < 2**23
  tracemalloc.stop()
  # A picture says its size in its head.
  records.write(tmp_path / 'set', [shapes.trajectory('multi_turn', seed=9, index=0)])
  pixels = sum(picture.shape[0] * picture.shape[1] for picture in records.read(tmp_path / 'set')[0].pictures)
  monkeypatch.setattr(record_codec, '_MOST_PIXELS', pixels - 1)
  monkeypatch.setattr(record_codec, '_decode_picture', lambda file: pytest.fail('it was decoded'))
  with pytest.raises(ValueError, match=f'its pictures have {pixels} pixels together'):
    records.read(tmp_path / 'set')


def test_a_damaged_file_of_the_old_store(tmp_path):
  path = tmp_path / 'damaged.npz'
  with np.load(FORMAT1) as file:
    content = dict(file)
  for name in ('texts', 'pixels', 'digest'):
    changed = {**content, name: content[name].copy()}
    changed[name][-3] ^= 1
    np.savez(path, **changed)
    with pytest.raises(ValueError, match='damaged.npz.*digest'):
      legacy_store.read_npz(path)
  content, want = FORMAT1.read_bytes(), legacy_store.read_npz(FORMAT1)
  refused, places = 0, range(0, len(content), 3)
  for place in places:
    path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
    try:
      got = legacy_store.read_npz(path)
    except ValueError as error:
      assert 'damaged.npz' in str(error)
      refused += 1
    else:
      _assert_same(got, want)  # Only the zip's own clock and flags may change unnoticed.
  assert refused > 0.7 * len(places)
  path.write_bytes(content[: len(content) // 2])
  with pytest.raises(ValueError, match='damaged.npz'):
    legacy_store.read_npz(path)
  with pytest.raises(FileNotFoundError):
    legacy_store.read_npz(tmp_path / 'none.npz')


# A writer that is killed at random lines of its code. `python tests/test_records.py FOLDER LINE` is its process.


def _made(number):
  """A trajectory of a few kilobytes; equal numbers give equal ones."""
  steps = [Step(plan=f'plan {number}', draft=_picture([number, step])) for step in range(number % 4)]
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
    left.append(_names(killed) if killed.exists() else [])
    with pytest.raises(FileNotFoundError, match='killed'):
      records.Reader(killed)
  print(f'{KILLS} kills left {[len(names) for names in left]} files')
  assert any('.partial' in name for names in left for name in names) or KILLS < 5
  process = _process(killed, 0)
  assert process.returncode == 0, process.stderr

  assert _bytes(killed) == _bytes(whole)
  assert len(_names(killed)) == TOTAL // PER_SHARD + 1
  reader = records.Reader(killed)
  assert len(reader) == TOTAL and reader.fingerprint() == records.Reader(whole).fingerprint()
  reader.verify()
  order = rng.permutation(TOTAL)
  _assert_same([reader[i] for i in order], [_made(int(i)) for i in order])


@pytest.mark.parametrize('line', ['first', 'rename', 'remove'])
def test_the_last_moments_of_a_writer(tmp_path, monkeypatch, line):
  """Whole or absent at every line of `close`."""
  folder = tmp_path / 'set'
  records.write(folder, TRAJECTORIES[:1])

  class Killed(BaseException):
    pass

  def kill(*_):
    raise Killed

  writer = records.Writer(folder, overwrite=True, resume=False)
  writer.write(TRAJECTORIES[1])
  target = {
    'first': (records, '_write_index'),
    'rename': (records.os, 'replace'),
    'remove': (writer, '_remove_unlisted'),
  }
  monkeypatch.setattr(*target[line], kill)
  with pytest.raises(Killed):
    writer.close()
  _assert_same(records.read(folder), TRAJECTORIES[1:2] if line == 'remove' else TRAJECTORIES[:1])


if __name__ == '__main__':
  _write_set(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
