"""What a record keeps of how a trajectory was made; records of the first version read, and keep their hash."""

import dataclasses
import pathlib
import re

import pytest
from support import stored

from pdgen.core import trajectory as trajectory_lib
from pdgen.data import record_codec, records

ROOT = pathlib.Path(__file__).parents[1]
FULL = trajectory_lib.Provenance(
  source='shapes',
  kind='conflict',
  errors=('extra',),
  detour='swap',
  id='7',
  graph={'objects': [{'name': 'ring', 'attributes': ['red']}], 'relations': []},
  seed=3,
  renderer='flux-kontext 1',
  writer='writer 2',
  judge='judge 3',
  verdicts=({'ok': False, 'reason': 'two rings'}, {'ok': True}),
  reasons=('repaired once',),
  cost=trajectory_lib.Cost(calls=2, tokens=300, money=0.01),
)


def _with(provenance):
  return dataclasses.replace(stored.TRAJECTORIES[0], provenance=provenance)


def test_all_fields_come_back(tmp_path):
  records.write(tmp_path / 'set', [_with(FULL), stored.TRAJECTORIES[0]])
  got = records.read(tmp_path / 'set')
  stored.assert_same(got, [_with(FULL), stored.TRAJECTORIES[0]])
  made = got[0].provenance
  assert isinstance(made.verdicts, tuple) and isinstance(made.reasons, tuple)
  assert isinstance(made.cost, trajectory_lib.Cost)
  assert made.cost + made.cost == trajectory_lib.Cost(calls=4, tokens=600, money=0.02)


def test_every_field_is_in_the_content_hash():
  hashes = {record_codec.encode(_with(FULL), name='t')[1]}
  fields = dataclasses.fields(trajectory_lib.Provenance)
  for field in fields:
    if field.name not in ('source', 'kind'):
      assert getattr(FULL, field.name) != field.default, f'the example leaves out {field.name}'
      changed = dataclasses.replace(FULL, **{field.name: field.default})
    else:
      changed = dataclasses.replace(FULL, **{field.name: 'other'})
    hashes.add(record_codec.encode(_with(changed), name='t')[1])
  assert len(hashes) == 1 + len(fields)


def test_records_of_the_first_version_read_and_keep_their_hash():
  old = (ROOT / 'tests' / 'data' / 'record_of_0.1.0.bin').read_bytes()
  stored.assert_same([record_codec.decode(old)], stored.TRAJECTORIES[:1])
  content_hash = 'baf4b97244a110233feb63f3ecccc114684037dab58d7e7bdd4b198393b3d900'
  assert record_codec.header_of(old)['sha256'] == content_hash
  assert record_codec.encode(stored.TRAJECTORIES[0], name='t')[1] == content_hash


@pytest.mark.parametrize('bad', [dict(graph={1: 2}), dict(verdicts=({'x': float('nan')},)), dict(reasons=(object(),))])
def test_what_is_not_json_is_named(bad):
  with pytest.raises(ValueError, match='Provenance of t is not JSON'):
    record_codec.encode(_with(dataclasses.replace(FULL, **bad)), name='t')


def test_the_table_of_the_documents_has_every_field():
  text = (ROOT / 'docs' / 'add_a_dataset.md').read_text(encoding='utf-8')
  table = text[text.index('## Provenance') :]
  named = set(re.findall(r'^\| `(\w+)` \|', table, re.MULTILINE))
  assert named == {field.name for field in dataclasses.fields(trajectory_lib.Provenance)}


def test_more_pixels_than_a_record_may_have_are_refused_when_it_is_written(monkeypatch):
  monkeypatch.setattr(record_codec, '_MOST_PIXELS', 100)
  with pytest.raises(ValueError, match='The pictures of t have 144 pixels together; a record may have 100'):
    record_codec.encode(stored.TRAJECTORIES[0], name='t')
