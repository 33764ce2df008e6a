"""TFDS over record sets: `tfds.builder_from_directory` and `tfds.data_source` read their shards, without tensorflow.

    tfds_builder.write({'train': '/data/mine/train', 'heldout': '/data/mine/heldout'}, '/data/tfds')
    ...
    builder = tfds.builder_from_directory('/data/tfds/pdgen_trajectories/1.0.0')
    builder.as_data_source('train')[0]                                    # a dict, see `_features`
    tfds.data_source('pdgen_trajectories', data_dir='/data/tfds', split='train', download=False)

`write` makes the folder of a TFDS data set (`dataset_info.json`, `features.json`) whose shards are links to those of
the record sets: nothing is copied where the file system has hard links. `features.json` names the class
`TrajectoryFeatures` below, which reads a record of pdgen, so that whoever reads needs pdgen installed. tf.data
(`as_dataset`) does not read it.

Needs `tensorflow-datasets`, the extra `tfds`.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info, naming
from tensorflow_datasets.core import splits as splits_lib

from pdgen.core import trajectory as trajectory_lib
from pdgen.data import record_codec, records

NAME, VERSION = 'pdgen_trajectories', '1.0.0'


def _features() -> dict[str, Any]:
  text = tfds.features.Text
  return {
    'prompt': text(),
    'mode': text(),
    'stop': text(),  # '' for None.
    # `Trajectory.items()`, in the order of the sequence; those of a kind that has no text, or no picture: '', -1.
    'items': tfds.features.Sequence(
      {'kind': text(), 'step': np.int32, 'text': text(), 'picture': np.int32, 'is_target': np.bool_}
    ),
    # Those of the prompt first, which `parts` (in `fields`) names by number.
    'pictures': tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3))),
    'fields': text(),  # JSON of spec, provenance, expected and metadata, as a record holds them.
  }


class TrajectoryFeatures(tfds.features.FeaturesDict):
  """Features of TFDS that are decoded from a record of `data.record_codec`, not from a tf.train.Example."""

  def __init__(self, feature_dict: Any = None, *, doc: Any = None):
    """feature_dict: what TFDS read from `features.json`; None: those of this version."""
    super().__init__(_features() if feature_dict is None else feature_dict, doc=doc)

  def deserialize_example_np(self, serialized_example: Any, *, decoders: Any = None) -> dict[str, Any]:
    """A record as a dict; texts are bytes, pictures uint8[H, W, 3], as TFDS has them.

    Raises: ValueError for decoders, and for a damaged record.
    """
    if decoders:
      raise ValueError('Records of pdgen take no decoders of TFDS: change the example afterwards.')
    return example(bytes(serialized_example))

  def deserialize_example(self, serialized_example: Any, *, decoders: Any = None):
    raise NotImplementedError('tf.data does not read records of pdgen. Use as_data_source, or tfds.data_source.')


def example(record: bytes) -> dict[str, Any]:
  """A record as the dict that TFDS hands out."""
  trajectory = record_codec.decode(record)
  pictures = trajectory.given_pictures
  rows: dict[str, list] = {name: [] for name in ('kind', 'step', 'text', 'picture', 'is_target')}
  for item in trajectory.items():
    values = (
      item.kind.encode(),
      item.number,
      b'' if item.is_picture else item.text.encode('utf-8', 'surrogatepass'),
      len(pictures) if item.is_picture else -1,
      item.kind == trajectory_lib.REFINED or item.is_picture and item.step.draft_is_target,
    )
    pictures += [item.picture] if item.is_picture else []
    for column, value in zip(rows.values(), values, strict=True):
      column.append(value)
  content = record_codec.header_of(record)['content']
  return {
    'prompt': trajectory.prompt.encode('utf-8', 'surrogatepass'),
    'mode': trajectory.mode.encode(),
    'stop': (trajectory.stop or '').encode(),
    'items': {
      'kind': np.array(rows['kind'], object),
      'step': np.array(rows['step'], np.int32),
      'text': np.array(rows['text'], object),
      'picture': np.array(rows['picture'], np.int32),
      'is_target': np.array(rows['is_target'], np.bool_),
    },
    'pictures': pictures,
    'fields': record_codec.canonical_json(
      {name: content[name] for name in ('spec', 'provenance', 'expected', 'metadata', 'parts') if name in content}
    ),
  }


def write(
  sets: Mapping[str, str | os.PathLike],
  out: str | os.PathLike,
  *,
  name: str = NAME,
  version: str = VERSION,
  description: str = 'Trajectories of pdgen.',
) -> pathlib.Path:
  """Makes a TFDS data set of record sets, whole or absent. An earlier one of that name and version is replaced.

  Args:
    sets: split -> folder of a record set. Empty sets are left out: TFDS has no split without shards.
    out: the `data_dir` of TFDS.
    name: of the data set, snake case.
    version: of the data set, `1.0.0`.
    description: of the data set, in words.

  Returns: the folder for `tfds.builder_from_directory`: `out`/`name`/`version`.

  Raises: FileNotFoundError or ValueError for a folder that is no whole record set; ValueError without any trajectory,
    and for what is there and no TFDS data set.
  """
  readers = {split: records.Reader(folder) for split, folder in sets.items()}
  readers = {split: reader for split, reader in readers.items() if len(reader)}
  if not readers:
    raise ValueError(f'{sorted(sets)} hold no trajectory: there is nothing to make a TFDS data set of.')
  folder = pathlib.Path(out) / name / version
  partial = folder.with_name(f'{version}.partial')
  for path in (folder, partial):
    if path.exists() and not (path / 'features.json').exists() and any(path.iterdir()):
      raise ValueError(f'{path} is there and no TFDS data set. Move it away, or give another folder.')
  with contextlib.suppress(FileNotFoundError):
    shutil.rmtree(partial)
  partial.mkdir(parents=True)
  features = TrajectoryFeatures()
  features.save_config(os.fspath(partial))
  splits = []
  data_dir: Any = partial  # TFDS makes it a path of etils.
  for split, reader in readers.items():
    template = naming.ShardedFileTemplate(
      dataset_name=name, data_dir=data_dir, split=split, filetype_suffix='array_record'
    )
    shards = reader.shards
    for number, shard in enumerate(shards):
      _link(shard.path, pathlib.Path(template.sharded_filepath(shard_index=number, num_shards=len(shards))))
    splits.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[shard.count for shard in shards],
        num_bytes=sum(shard.bytes for shard in shards),
        filename_template=template,
      )
    )
  info = tfds.core.DatasetInfo(
    builder=dataset_info.DatasetIdentity(
      name=name, version=tfds.core.Version(version), data_dir=os.fspath(partial), module_name=__name__
    ),
    description=description,
    features=features,
  )
  info.set_file_format('array_record')
  info.set_splits(splits_lib.SplitDict(splits))
  info.write_to_directory(partial)
  with contextlib.suppress(FileNotFoundError):
    shutil.rmtree(folder)
  partial.rename(folder)
  return folder


def _link(source: pathlib.Path, target: pathlib.Path):
  try:
    os.link(source, target)
  except OSError:  # Another file system, or one without hard links.
    shutil.copyfile(source, target)
