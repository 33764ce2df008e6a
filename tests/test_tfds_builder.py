"""TFDS reads record sets through `tfds_builder`, without tensorflow and without a copy of their shards."""

import json
import os
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from support import stored

from pdgen.core import trajectory as trajectory_lib
from pdgen.data import record_codec, records, tfds_builder

FOLDER = f'{tfds_builder.NAME}/{tfds_builder.VERSION}'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tfds')
  records.write(folder / 'train', stored.TRAJECTORIES, shard_records=3)
  records.write(folder / 'heldout', stored.TRAJECTORIES[:1])
  records.write(folder / 'empty', [])
  sets = {split: folder / split for split in ('train', 'heldout', 'empty')}
  assert tfds_builder.write(sets, folder / 'out') == folder / 'out' / FOLDER
  return folder


def _assert_equal(example, trajectory):
  text = dict(prompt=trajectory.prompt, mode=trajectory.mode, stop=trajectory.stop or '')
  assert {name: example[name].decode() for name in text} == text
  items = list(trajectory.items())
  columns = example['items']
  assert [kind.decode() for kind in columns['kind']] == [item.kind for item in items]
  assert columns['step'].tolist() == [item.number for item in items]
  assert [t.decode() for t in columns['text']] == ['' if item.is_picture else item.text for item in items]
  assert len(example['pictures']) == len(trajectory.pictures)
  for item, number in zip(items, columns['picture'], strict=True):
    assert (number >= 0) == item.is_picture
    if item.is_picture:
      np.testing.assert_array_equal(example['pictures'][number], item.picture)
  fields = json.loads(example['fields'])
  assert fields['metadata'] == json.loads(json.dumps(dict(trajectory.metadata)))
  made = fields['provenance']
  assert (made and record_codec.provenance_of(made)) == trajectory.provenance


def test_builder_from_directory_reads_what_was_written(made):
  builder = tfds.builder_from_directory(os.fspath(made / 'out' / FOLDER))
  assert {name: split.num_examples for name, split in builder.info.splits.items()} == {'train': 4, 'heldout': 1}
  source = builder.as_data_source('train')
  assert len(source) == 4
  for index in (3, 0, 1, 2):
    _assert_equal(source[index], stored.TRAJECTORIES[index])
  batch = source.__getitems__([1, 3])
  _assert_equal(batch[1], stored.TRAJECTORIES[3])
  rest = builder.as_data_source('train[75%:]')
  assert len(rest) == 1
  _assert_equal(rest[0], stored.TRAJECTORIES[3])
  targets = source[0]['items']['is_target'].tolist()
  assert targets == [False, False, False, True, False, True, False, False]
  assert 'tensorflow' not in sys.modules


def test_data_source_finds_it_by_name(made):
  sources = tfds.data_source(tfds_builder.NAME, data_dir=os.fspath(made / 'out'), download=False)
  assert sorted(sources) == ['heldout', 'train']
  _assert_equal(sources['heldout'][0], stored.TRAJECTORIES[0])
  with pytest.raises(ValueError, match='no decoders'):
    tfds.data_source(
      tfds_builder.NAME, data_dir=os.fspath(made / 'out'), split='train', decoders={'prompt': None}, download=False
    )[0]


def test_the_features_describe_the_examples(made):
  builder = tfds.builder_from_directory(os.fspath(made / 'out' / FOLDER))
  example = builder.as_data_source('train')[0]
  assert set(builder.info.features) == set(example)
  assert set(builder.info.features['items'].feature) == set(example['items'])
  for name, info in builder.info.features['items'].feature.get_tensor_info().items():
    assert example['items'][name].dtype == info.np_dtype, name
  assert builder.info.features['pictures'].feature.shape == (None, None, 3)
  with pytest.raises(NotImplementedError, match='tf.data'):
    builder.info.features.deserialize_example(b'')


def test_shards_are_links(made):
  ours = {os.stat(path).st_ino for path in (made / 'train').glob('*.array_record')}
  theirs = {os.stat(path).st_ino for path in (made / 'out' / FOLDER).glob('*-train.*')}
  assert ours == theirs and len(ours) == 2


def test_without_hard_links_they_are_copied_and_an_earlier_data_set_is_replaced(made, monkeypatch, tmp_path):
  def fail(*_):
    raise OSError('no links')

  monkeypatch.setattr(os, 'link', fail)
  for count in (2, 1):
    records.write(tmp_path / 'a', stored.TRAJECTORIES[:count], overwrite=True)
    folder = tfds_builder.write({'train': tmp_path / 'a'}, tmp_path / 'out', name='mine', version='2.0.0')
    source = tfds.data_source('mine', data_dir=os.fspath(tmp_path / 'out'), split='train', download=False)
    assert len(source) == count and len(list(folder.glob('*.array_record*'))) == 1
    _assert_equal(source[0], stored.TRAJECTORIES[0])


def test_what_is_no_record_set_or_no_data_set_of_tfds(tmp_path):
  with pytest.raises(FileNotFoundError, match='no record set'):
    tfds_builder.write({'train': tmp_path / 'none'}, tmp_path / 'out')
  records.write(tmp_path / 'empty', [])
  with pytest.raises(ValueError, match='no trajectory'):
    tfds_builder.write({'train': tmp_path / 'empty'}, tmp_path / 'out')
  records.write(tmp_path / 'a', [trajectory_lib.Trajectory(prompt='p', steps=())])
  taken = tmp_path / 'out' / FOLDER
  taken.mkdir(parents=True)
  (taken / 'thesis.txt').write_text('of the user')
  with pytest.raises(ValueError, match='no TFDS data set'):
    tfds_builder.write({'train': tmp_path / 'a'}, tmp_path / 'out')
  assert (taken / 'thesis.txt').exists()
