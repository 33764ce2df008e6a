"""pdgen.data.legacy_store: runs that began before record sets resume with their files of self-sampled trajectories."""

import pathlib
import tracemalloc
import zipfile

import numpy as np
import pytest
from support import stored

from pdgen.core import trajectory as trajectory_lib
from pdgen.data import legacy_store, records

Clause, Content = trajectory_lib.Clause, trajectory_lib.Content


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
  stored.assert_same(records.read(tmp_path / 'set'), trajectories)


def test_an_array_that_inflates_beyond_measure_is_refused_before_it_does(tmp_path):
  path = tmp_path / 'bomb.npz'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
    file.writestr('pixels.npy', bytes(2**28 + 1))
  assert path.stat().st_size < 2**20
  tracemalloc.start()
  with pytest.raises(ValueError, match=f'bytes that inflate to {2**28 + 1}: it is no file of pdgen'):
    legacy_store.read_npz(path)
  assert tracemalloc.get_traced_memory()[1] < 2**23
  tracemalloc.stop()


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
      stored.assert_same(got, want)  # Only the zip's own clock and flags may change unnoticed.
  assert refused > 0.7 * len(places)
  path.write_bytes(content[: len(content) // 2])
  with pytest.raises(ValueError, match='damaged.npz'):
    legacy_store.read_npz(path)
  with pytest.raises(FileNotFoundError):
    legacy_store.read_npz(tmp_path / 'none.npz')
