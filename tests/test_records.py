"""A record set gives back what was written, and says so when a byte of it changed or a writer was killed."""

import concurrent.futures
import dataclasses
import io
import json
import multiprocessing
import pickle
import types

import grain
import numpy as np
import pytest
from PIL import Image
from support import stored

from pdgen.core import trajectory as trajectory_lib
from pdgen.data import chunk_sizes, record_codec, records
from pdgen.worlds import shapes

Step, Trajectory = trajectory_lib.Step, trajectory_lib.Trajectory
Clause, Content = trajectory_lib.Clause, trajectory_lib.Content


@pytest.mark.parametrize('count', [0, 2, 3, 4])
def test_round_trip_is_exact_and_deterministic(tmp_path, count):
  for name in ('a', 'b'):
    records.write(tmp_path / name, iter(stored.TRAJECTORIES[:count]))
  stored.assert_same(records.read(tmp_path / 'a'), stored.TRAJECTORIES[:count])
  assert stored.contents(tmp_path / 'a') == stored.contents(tmp_path / 'b')
  shards = [name for name in stored.names(tmp_path / 'a') if name.startswith('trajectories-00000-')]
  assert stored.names(tmp_path / 'a') == ['index.json', *shards], 'a partial file or a lock was left'
  assert len(shards) == (count > 0)


def test_types_come_back(tmp_path):
  records.write(tmp_path / 'a', stored.TRAJECTORIES)
  got = records.Reader(tmp_path / 'a')[0]
  assert isinstance(got.spec.include[1], Clause) and isinstance(got.spec.include[1].position, tuple)
  assert isinstance(got.provenance.errors, tuple)
  assert isinstance(got.expected[0], Content)
  records.write(tmp_path / 'b', [Trajectory(prompt='q', steps=(), metadata=types.MappingProxyType({'a': (1, (2,))}))])
  assert records.read(tmp_path / 'b')[0].metadata == {'a': [1, [2]]}, 'tuples come back as lists'


def test_random_access(tmp_path):
  records.write(tmp_path / 'set', stored.TRAJECTORIES, shard_records=3)
  assert len([name for name in stored.names(tmp_path / 'set') if name.startswith('trajectories-')]) == 2
  reader = records.Reader(tmp_path / 'set')
  assert len(reader) == 4
  for index in (3, 0, np.int64(2), 1, 3):
    stored.assert_same([reader[index]], [stored.TRAJECTORIES[int(index)]])
  for index in (-1, 4):
    with pytest.raises(IndexError, match=f'Record {index} .* has 4'):
      reader[index]
  with pytest.raises(TypeError):
    reader['0']
  reader.verify()


@pytest.mark.parametrize('sizes', [dict(shard_records=1), dict(shard_records=2), dict(shard_bytes=1)])
def test_the_fingerprint_is_of_the_trajectories_alone(tmp_path, sizes):
  records.write(tmp_path / 'whole', stored.TRAJECTORIES)
  records.write(tmp_path / 'cut', stored.TRAJECTORIES, **sizes)
  whole, cut = records.Reader(tmp_path / 'whole'), records.Reader(tmp_path / 'cut')
  assert len(stored.names(tmp_path / 'cut')) > len(stored.names(tmp_path / 'whole'))
  assert whole.fingerprint() == cut.fingerprint()
  assert repr(whole) == repr(cut)
  stored.assert_same(list(cut), list(whole))


def test_every_field_is_in_the_fingerprint(tmp_path):
  base = stored.TRAJECTORIES[0]
  first, second = base.steps
  other = stored.picture(0)
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
  lists = [
    [base],
    *([trajectory] for trajectory in changed),
    [base, base],
    [*stored.TRAJECTORIES],
    stored.TRAJECTORIES[::-1],
    [],
  ]
  lists += [[Trajectory(prompt='c', steps=(), mode=mode)] for mode in trajectory_lib.MODES]
  found = set()
  for number, trajectories in enumerate(lists):
    records.write(tmp_path / str(number), trajectories)
    found.add(records.Reader(tmp_path / str(number)).fingerprint())
  assert len(found) == len(lists)


def test_a_changed_byte_is_noticed(tmp_path):
  folder = tmp_path / 'set'
  records.write(folder, stored.TRAJECTORIES[:1])
  index, shard = (folder / name for name in stored.names(folder))
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
      stored.assert_same([got], stored.TRAJECTORIES[:1])  # Only what is not needed to read it may change unnoticed.
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
      stored.assert_same(got, stored.TRAJECTORIES[:1])  # White space.


def test_a_damaged_record_is_located(tmp_path):
  folder = tmp_path / 'set'
  wanted = [
    Trajectory(prompt='p', steps=(Step(plan='x', draft=stored.picture(number, side=64)),)) for number in range(7)
  ]
  records.write(folder, wanted, shard_records=3)
  shard = next(folder.glob('trajectories-00001-*'))
  record, _ = record_codec.encode(wanted[4], name='t')
  content = bytearray(shard.read_bytes())
  content[content.index(record[5000:5100])] ^= 1  # Noise is stored as it is.
  shard.write_bytes(content)
  reader = records.Reader(folder)
  with pytest.raises(ValueError, match=rf'Record 4 \(.*{shard.name}, number 1 in it\) cannot be read.*make it again'):
    reader[4]
  stored.assert_same([reader[i] for i in (0, 3, 5, 6)], [wanted[i] for i in (0, 3, 5, 6)])


def test_the_content_hash_covers_texts_and_pictures():
  record, content_hash = record_codec.encode(stored.TRAJECTORIES[0], name='t')
  stored.assert_same([record_codec.decode(record)], stored.TRAJECTORIES[:1])
  other, _ = record_codec.encode(
    dataclasses.replace(stored.TRAJECTORIES[0], steps=(Step(draft=stored.picture(9)), stored.TRAJECTORIES[0].steps[1])),
    name='t',
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
  with pytest.raises(ValueError, match='schema is 3.*reads 1 and 2'):
    record_codec.decode(repacked(header.replace(b'"schema":1', b'"schema":3'), files))


def test_damaged_sets(tmp_path):
  def damaged(change):
    folder = tmp_path / f'{len(stored.names(tmp_path))}'
    records.write(folder, stored.TRAJECTORIES, shard_records=2)
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
  records.write(folder, stored.TRAJECTORIES[:1], overwrite=True)
  stored.assert_same(records.read(folder), stored.TRAJECTORIES[:1])
  assert len(stored.names(folder)) == 2


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
    records.write(tmp_path / 'a', [stored.TRAJECTORIES[2], bad])
  assert not list(tmp_path.iterdir())
  with records.Writer(tmp_path / 'b') as writer:
    writer.write(stored.TRAJECTORIES[0])
    with pytest.raises(ValueError, match=message):
      writer.write(bad)
    writer.write(stored.TRAJECTORIES[1])
  stored.assert_same(records.read(tmp_path / 'b'), stored.TRAJECTORIES[:2])


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
    stored.assert_same(records.read(tmp_path / name), [trajectory])
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


def _digest_of(reader):
  return [(trajectory.prompt, [picture.tobytes() for picture in trajectory.pictures]) for trajectory in reader]


def test_a_reader_goes_to_worker_processes_and_threads(tmp_path):
  records.write(tmp_path / 'set', stored.TRAJECTORIES, shard_records=3)
  reader = records.Reader(tmp_path / 'set')
  want = _digest_of(reader)  # Opens both files.
  stored.assert_same(list(pickle.loads(pickle.dumps(reader))), stored.TRAJECTORIES)
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    assert pool.apply(_digest_of, (reader,)) == want
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for index, got in zip(range(200), pool.map(lambda i: reader[i % 4], range(200)), strict=True):
      assert got.prompt == stored.TRAJECTORIES[index % 4].prompt
  dataset = grain.MapDataset.source(reader).repeat(2).to_iter_dataset()
  stored.assert_same(list(dataset), [*stored.TRAJECTORIES, *stored.TRAJECTORIES])


def test_pictures_that_inflate_beyond_measure_are_refused_before_they_do(tmp_path, monkeypatch):
  # A picture says its size in its head.
  records.write(tmp_path / 'set', [shapes.trajectory('multi_turn', seed=9, index=0)])
  pixels = sum(picture.shape[0] * picture.shape[1] for picture in records.read(tmp_path / 'set')[0].pictures)
  monkeypatch.setattr(record_codec, '_MOST_PIXELS', pixels - 1)
  monkeypatch.setattr(record_codec, '_decode_picture', lambda file: pytest.fail('it was decoded'))
  with pytest.raises(ValueError, match=f'its pictures have {pixels} pixels together'):
    records.read(tmp_path / 'set')


@pytest.mark.parametrize('group, records_of_a_chunk', [(1, 1), (64, 64)])
def test_a_shard_that_inflates_beyond_measure_is_refused_before_it_does(
  tmp_path, monkeypatch, group, records_of_a_chunk
):
  """Three megabytes of a shard may be gigabytes of zeros; its chunks say so in their headers."""
  folder = tmp_path / 'set'
  records.write(folder, stored.TRAJECTORIES)
  index = records._read_index(folder / 'index.json')
  file = folder / index.shards[0].file
  bomb = records.array_record_module.ArrayRecordWriter(str(file), f'group_size:{group}')
  for _ in range(index.count + group - 1):
    bomb.write(bytes(2**22))
  bomb.close()
  shard = dataclasses.replace(index.shards[0], bytes=file.stat().st_size)
  assert shard.bytes < 2**20, 'no bomb'
  records._write_index(folder / 'index.json', dataclasses.replace(index, shards=(shard,)))
  reader = records.Reader(folder)
  monkeypatch.setattr(record_codec, 'MOST_BYTES', 2**22 - 1)
  monkeypatch.setattr(reader, '_source', None)  # Nothing is decompressed.
  size = 2**22 * records_of_a_chunk
  with pytest.raises(ValueError, match=rf'{file.name} has \d+ bytes at 64 that inflate to {size} \('):
    reader[0]


@pytest.mark.parametrize('size', [10, 65_000, 65_424, 65_425, 65_448, 65_449, 131_000, 300_000])
def test_chunks_are_found_wherever_blocks_end(tmp_path, size):
  """All headers that the library writes are read: a chunk too large behind records of any size is seen."""
  file = tmp_path / 'file'
  writer = records.array_record_module.ArrayRecordWriter(str(file), 'group_size:1,uncompressed')
  for record in (bytes(size), bytes(size), bytes(2**19)):
    writer.write(record)
  writer.close()
  chunk_sizes.check(file, most=2**19 + 100)
  with pytest.raises(ValueError, match='inflate to 524288'):
    chunk_sizes.check(file, most=2**19 - 1)


def test_a_record_that_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
  monkeypatch.setattr(record_codec, '_MOST_HEADER', 1000)
  with records.Writer(tmp_path / 'set') as writer:
    with pytest.raises(ValueError, match='bytes of text and metadata'):
      writer.write(Trajectory(prompt='x' * 1000, steps=()))
    writer.write(Trajectory(prompt='x', steps=()))
  monkeypatch.setattr(record_codec, '_MOST_HEADER', 10)
  with pytest.raises(ValueError, match='its text and metadata have'):
    records.read(tmp_path / 'set')
