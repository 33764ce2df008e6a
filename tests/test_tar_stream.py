"""Webdataset tars as a stream: samples, stopping early, and what is refused by name or by a bound."""

import io
import json
import os
import tarfile
import threading

import pytest
from support import foreign

from pdgen.construction import importers
from pdgen.construction.importers import base, tar_stream


def _rows(source, wanted=lambda where: True):
  """(key, parts) of samples, (key, reason) of what is refused, (key, None) of what is not wanted."""
  found = []
  for where, load in tar_stream.rows(source, wanted):
    if load is None or isinstance(load, base.Rejected):
      found.append((where.key, load and load.reason))
    else:
      try:
        found.append((where.key, load()))
      except ValueError as error:
        found.append((where.key, str(error)))
  return found


SAMPLES = {f'a/{n:03d}': {'txt': b'%d' % n, 'x.bin': bytes([n]) * 5000} for n in range(5)}


@pytest.mark.parametrize('mode', ['w', 'w:gz', 'w:bz2', 'w:xz'])
def test_samples_in_their_order(tmp_path, mode):
  foreign.write_tar(tmp_path / 'a.tar', SAMPLES, mode=mode)
  assert _rows(tmp_path / 'a.tar') == list(SAMPLES.items())
  seen = []

  def second(where):
    seen.append(where.row)
    return where.row == 2

  assert _rows(tmp_path / 'a.tar', second) == [(key, SAMPLES[key] if key == 'a/001' else None) for key in SAMPLES]
  assert seen == [1, 2, 3, 4, 5]


def test_all_kinds_of_headers(tmp_path):
  long = 'd/' * 70 + 'é' * 60
  for number, kind in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
    name = 'short' if kind == tarfile.USTAR_FORMAT else long
    with tarfile.open(tmp_path / f'{number}.tar', 'w', format=kind) as archive:
      folder = tarfile.TarInfo('d')
      folder.type = tarfile.DIRTYPE
      archive.addfile(folder)
      for part in ('txt', 'bin'):
        info = tarfile.TarInfo(f'{name}.{part}')
        info.size = 3
        archive.addfile(info, io.BytesIO(b'abc'))
    assert _rows(tmp_path / f'{number}.tar') == [(name, {'txt': b'abc', 'bin': b'abc'})]


def test_a_pipe_is_read_no_further_than_needed(tmp_path):
  """As `curl .. | ..`: the sender is stopped by the limit, long before it has sent all."""
  foreign.write_tar(tmp_path / 'a.tar', {f'{n:05d}': foreign.gen_ref(n % 3) for n in range(2000)})
  content = (tmp_path / 'a.tar').read_bytes()
  os.mkfifo(tmp_path / 'pipe.tar')
  sent = []

  def send():
    with open(tmp_path / 'pipe.tar', 'wb', buffering=0) as pipe:
      try:
        for at in range(0, len(content), 4096):
          pipe.write(content[at : at + 4096])
          sent.append(at)
      except BrokenPipeError:
        pass

  sender = threading.Thread(target=send)
  sender.start()
  counts = importers.import_records('gen_ref', tmp_path / 'pipe.tar', tmp_path / 'out', limit=4, heldout=0)
  sender.join(timeout=60)
  assert not sender.is_alive()
  assert counts.kept == counts.read == 4
  assert sent[-1] < len(content) / 4


def test_a_plain_file_is_read_only_where_samples_are_wanted(tmp_path, monkeypatch):
  foreign.write_tar(tmp_path / 'a.tar', {f'{n}': {'bin': bytes(100_000)} for n in range(20)})
  read = []
  real = tar_stream._Bounded.read
  monkeypatch.setattr(tar_stream._Bounded, 'read', lambda self, size=-1: read.append(size) or real(self, size))
  found = _rows(tmp_path / 'a.tar', lambda where: where.row == 7)
  assert [key for key, parts in found if parts] == ['6']
  assert sum(read) < 150_000


def test_memory_does_not_grow_with_the_archive(tmp_path, monkeypatch):
  foreign.write_tar(tmp_path / 'a.tar', {f'{n}': {'txt': b'x'} for n in range(30)})
  real, kept = tarfile.TarFile.next, []
  monkeypatch.setattr(tarfile.TarFile, 'next', lambda self: kept.append(len(self.members)) or real(self))
  assert len(_rows(tmp_path / 'a.tar')) == 30
  assert max(kept) <= 1 and len(kept) > 30


def _info(name, *, kind=tarfile.REGTYPE, link='', size=0):
  info = tarfile.TarInfo(name)
  info.type, info.linkname, info.size = kind, link, size
  return info


def test_traversal_links_and_devices_are_refused_by_name(tmp_path):
  refused = {
    '../evil.txt': (_info('../evil.txt', size=1), 'leads out of its folder'),
    'a/../../evil.txt': (_info('a/../../evil.txt', size=1), 'leads out of its folder'),
    '/etc/passwd': (_info('/etc/passwd', size=1), 'leads out of its folder'),
    'c:/evil.txt': (_info('c:/evil.txt', size=1), 'leads out of its folder'),
    'a\\evil.txt': (_info('a\\evil.txt', size=1), 'leads out of its folder'),
    'a\nb.txt': (_info('a\nb.txt', size=1), 'no name of a file'),
    'soft.txt': (_info('soft.txt', kind=tarfile.SYMTYPE, link='/etc/passwd'), "is a link to '/etc/passwd'"),
    'hard.txt': (_info('hard.txt', kind=tarfile.LNKTYPE, link='a/000.txt'), "is a link to 'a/000.txt'"),
    'null': (_info('null', kind=tarfile.CHRTYPE), 'no plain file'),
    'disk': (_info('disk', kind=tarfile.BLKTYPE), 'no plain file'),
    'pipe': (_info('pipe', kind=tarfile.FIFOTYPE), 'no plain file'),
  }
  extra = [(info, b'x' if info.size else None) for info, _ in refused.values()]
  for mode in ('w', 'w:gz'):
    foreign.write_tar(tmp_path / 'a.tar', SAMPLES, mode=mode, extra=[*extra, (_info('z.txt', size=1), b'z')])
    found = _rows(tmp_path / 'a.tar')
    assert found[:5] == list(SAMPLES.items()) and found[-1] == ('z', {'txt': b'z'})
    for (key, reason), (name, (_, message)) in zip(found[5:-1], refused.items(), strict=True):
      assert key == name and message in reason, reason
  assert sorted(path.name for path in tmp_path.rglob('*')) == ['a.tar'], 'nothing is written'


def test_members_and_samples_have_bounds(tmp_path, monkeypatch):
  monkeypatch.setattr(tar_stream, '_MOST_BYTES', 6000)
  monkeypatch.setattr(tar_stream, '_MOST_SAMPLE_BYTES', 9000)
  monkeypatch.setattr(tar_stream, '_MOST_MEMBERS', 3)
  samples = {
    'a': {'txt': b'a'},
    'b': {'big': bytes(6001)},
    'c': {'x': bytes(5000), 'y': bytes(5000)},
    'd': {str(n): b'' for n in range(4)},
    'e': {'txt': b'e'},
  }
  foreign.write_tar(tmp_path / 'a.tar', samples)
  with tarfile.open(tmp_path / 'a.tar', 'a') as archive:
    for _ in range(2):
      archive.addfile(_info('f.txt', size=1), io.BytesIO(b'f'))
  found = dict(_rows(tmp_path / 'a.tar'))
  assert found['a'] == samples['a'] and found['e'] == samples['e']
  assert found['b.big'] == "'b.big' has 6001 bytes; a member may have 6000"
  assert found['c'] == 'the sample has more than 9000 bytes'
  assert found['d'] == 'the sample has more than 3 members'
  assert found['f'] == "the sample holds 'txt' twice"


@pytest.mark.parametrize('mode', ['w:gz', 'w:bz2', 'w:xz'])
def test_an_archive_that_inflates_beyond_measure_is_given_up(tmp_path, monkeypatch, mode):
  monkeypatch.setattr(tar_stream, '_INFLATED', 2**20)
  foreign.write_tar(tmp_path / 'a.tar', {**SAMPLES, 'bomb': {'bin': bytes(2**24)}, 'z': {'txt': b'z'}}, mode=mode)
  foreign.write_tar(tmp_path / 'b.tar', {'y': {'txt': b'y'}})
  *kept, (key, reason), last = _rows(tmp_path)
  assert kept == list(SAMPLES.items()) and last == ('y', {'txt': b'y'})
  assert key == '' and 'the archive is given up' in reason and 'inflate to more than' in reason


def test_headers_that_ask_for_too_much_memory_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(tar_stream, '_INFLATED', 2**20)
  for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGLINK):
    foreign.write_tar(tmp_path / 'a.tar', SAMPLES)
    content = (tmp_path / 'a.tar').read_bytes()
    bomb = _info('x', kind=kind, size=2**33).tobuf(tarfile.GNU_FORMAT)
    (tmp_path / 'a.tar').write_bytes(bomb + content)
    ((_, reason),) = _rows(tmp_path / 'a.tar')
    assert 'bytes at once' in reason


def test_archives_that_are_damaged_or_cut_off_say_so(tmp_path):
  foreign.write_tar(tmp_path / 'a.tar', SAMPLES)
  content = (tmp_path / 'a.tar').read_bytes()
  per_sample = 512 + 512 + 512 + 5120  # Two headers, a block of text, ten of bytes.
  first = list(SAMPLES.items())[:2]
  begun = ('a/002', {'txt': b'2'})  # The members before the cut; what needs more rejects it.
  for cut, more in ((0, []), (100, []), (600, [begun]), (per_sample - 200, [begun])):
    (tmp_path / 'a.tar').write_bytes(content[: 2 * per_sample + cut])
    *kept, (key, reason) = _rows(tmp_path / 'a.tar')
    assert kept == first + more and 'damaged or cut off' in reason, cut
  damaged = bytearray(content)
  damaged[2 * per_sample + 10] ^= 255
  (tmp_path / 'a.tar').write_bytes(damaged)
  *kept, (key, reason) = _rows(tmp_path / 'a.tar')
  assert kept == first and f'at byte {2 * per_sample}' in reason
  for other in (b'', b'no tar' * 200, b'\x1f\x8b no gzip'):
    (tmp_path / 'a.tar').write_bytes(other)
    ((_, reason),) = _rows(tmp_path / 'a.tar')
    assert 'damaged or cut off' in reason
  foreign.write_tar(tmp_path / 'b.tar', SAMPLES, mode='w:gz')
  whole = (tmp_path / 'b.tar').read_bytes()
  (tmp_path / 'b.tar').write_bytes(whole[: len(whole) // 2])
  assert 'damaged or cut off' in _rows(tmp_path / 'b.tar')[-1][1]


def test_malformed_samples_of_gen_ref(tmp_path):
  bad = {
    'no prompt': (foreign.gen_ref(1, **{'prompt.txt': None}), 'prompt.txt is missing'),
    'empty prompt': (foreign.gen_ref(1, **{'prompt.txt': b' '}), 'prompt.txt is empty'),
    'no UTF-8': (foreign.gen_ref(1, **{'prompt.txt': b'\xff'}), 'prompt.txt is no UTF-8'),
    'no reflection': (foreign.gen_ref(1, **{'reflection.txt': None}), 'reflection.txt is missing'),
    'short reflection': (foreign.gen_ref(1, **{'reflection.txt': b'ok'}), 'less than 5 characters'),
    'tags': (foreign.gen_ref(1, **{'reflection.txt': b'x <refine> y'}), 'holds the tag <refine>'),
    'no picture': (foreign.gen_ref(1, **{'bad_image.jpg': None}), 'bad_image is missing'),
    'cut picture': (
      foreign.gen_ref(1, **{'good_image.jpg': foreign.gen_ref(1)['good_image.jpg'][:300]}),
      'good_image: ',
    ),
  }
  samples = {'good': foreign.gen_ref(0), **{key: row for key, (row, _) in bad.items()}, 'last': foreign.gen_ref(2)}
  png = foreign.gen_ref(3, **{'bad_image.jpg': None, 'bad_image.png': foreign.png(3)})
  foreign.write_tar(tmp_path / 'a.tar', {**samples, 'png': png})
  counts = importers.import_records('gen_ref', tmp_path / 'a.tar', tmp_path / 'out', heldout=0)
  assert (counts.kept, counts.rejected, counts.read) == (3, len(bad), len(bad) + 3)
  rows = [json.loads(line) for line in (tmp_path / 'out' / 'rejected.jsonl').read_text().splitlines()]
  for number, (row, (key, (_, message))) in enumerate(zip(rows, bad.items(), strict=True), 2):
    assert (row['file'], row['row'], row['key']) == ('a.tar', number, key)
    assert message in row['reason']
