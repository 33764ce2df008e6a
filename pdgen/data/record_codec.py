"""Encodes a trajectory as the bytes of one record, and back: typed fields as JSON, pictures as PNG, a content hash.

A record is the length of a header (uint32, little endian), the header (JSON) and the picture files. The header holds
the schema version, the content hash, the lengths of the files and the fields of the trajectory.
"""

import dataclasses
import hashlib
import io
import itertools
import json
import struct
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pdgen.core import trajectory as trajectory_lib

# Records that an earlier version would read wrongly (it knows two modes, no pictures of a prompt, no texts without a
# process) are of the second schema. All others keep the bytes that they had.
SCHEMA, _SECOND = 1, 2
_FIRST_MODES = ('process', 'direct')

# A small file may inflate to any size.
MOST_BYTES = 2**29  # Of a record.
_MOST_PIXELS = 2**27  # Of all pictures of a record.
_MOST_HEADER = 2**24  # Bytes of the fields of a record: objects of Python take 20 times the room of their JSON.

_PNG = b'\x89PNG\r\n\x1a\n'  # The first bytes of every PNG.


def encode(
  trajectory: trajectory_lib.Trajectory, *, name: str, picture_files: Sequence[bytes | None] = ()
) -> tuple[bytes, str]:
  """Encodes a trajectory.

  Args:
    trajectory: to encode. Tuples in its metadata come back as lists.
    name: of the trajectory in errors.
    picture_files: file contents (JPEG, PNG, ...) of the pictures of the prompt, then of `trajectory.pictures`, to store
      as they are; they must decode to exactly these pictures. A picture whose file is None, or all without any, are
      stored as PNG.

  Returns: the record, and its content hash.

  Raises: ValueError for pictures that are not uint8[H, W, 3], fields that are not JSON, files of other pictures, and
    what is too large to be read again.
  """
  pictures: list[np.ndarray] = []
  parts: list[str | int] = []
  for part in trajectory.parts:
    if not isinstance(part, str):
      _check_picture(part, name)
      pictures.append(part)
    parts.append(part if isinstance(part, str) else len(pictures) - 1)
  rows = []
  for step in trajectory.steps:
    row = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
    if step.text is None:
      del row['text']
    for part in trajectory_lib.PICTURES:
      if row[part] is not None:
        _check_picture(row[part], name)
        pictures.append(row[part])
        row[part] = len(pictures) - 1
    rows.append(row)
  if (pixels := sum(picture.shape[0] * picture.shape[1] for picture in pictures)) > _MOST_PIXELS:
    raise ValueError(f'The pictures of {name} have {pixels} pixels together; a record may have {_MOST_PIXELS}.')
  content = dict(
    prompt=trajectory.prompt,
    mode=trajectory.mode,
    stop=trajectory.stop,
    steps=rows,
    spec=trajectory.spec and trajectory.spec.to_row(trajectory.prompt),
    provenance=_checked(trajectory.provenance and _provenance_row(trajectory.provenance), f'Provenance of {name}'),
    expected=trajectory.expected,
    metadata=_checked(trajectory.metadata, f'Metadata of {name}'),
  )
  if parts:
    content['parts'] = parts
  new = parts or any('text' in row for row in rows) or trajectory.mode not in _FIRST_MODES
  schema = _SECOND if new else SCHEMA
  try:
    fields = canonical_json(content)
  except (TypeError, ValueError, RecursionError) as error:
    raise ValueError(f'A field of {name} is not JSON: {error}. Use texts and numbers of Python.') from error
  files = _files(pictures, picture_files, name)
  digest = _content_hash(fields, pictures, files)
  header = canonical_json(dict(schema=schema, sha256=digest, lengths=[len(file) for file in files], content=content))
  size = 4 + len(header) + sum(map(len, files))
  if len(header) > _MOST_HEADER or size > MOST_BYTES:
    raise ValueError(
      f'{name} has {len(header)} bytes of text and metadata and {size} in all; a record may have {_MOST_HEADER} and '
      f'{MOST_BYTES}.'
    )
  return b''.join([struct.pack('<I', len(header)), header, *files]), digest


def decode(record: bytes) -> trajectory_lib.Trajectory:
  """Decodes a record. Raises: ValueError for another schema or content hash, any exception for a damaged record."""
  header = header_of(record)
  _check_schema(header)
  ends = itertools.accumulate(header['lengths'], initial=4 + struct.unpack_from('<I', record)[0])
  files = [record[a:b] for a, b in itertools.pairwise(ends)]
  if (pixels := sum(map(_pixels, files))) > _MOST_PIXELS:
    raise ValueError(f'its pictures have {pixels} pixels together; a record may have {_MOST_PIXELS}')
  pictures, content = [_decode_picture(file) for file in files], header['content']
  if _content_hash(canonical_json(content), pictures, files) != header['sha256']:
    raise ValueError('its content does not match its content hash')
  return _trajectory(content, pictures)


def decode_texts(record: bytes) -> trajectory_lib.Trajectory:
  """The trajectory of a record with empty pictures, uint8[0, 0, 3], for counts: fast, and the hash is not checked.

  Raises: ValueError for another schema, any exception for a damaged header.
  """
  header = header_of(record)
  _check_schema(header)
  return _trajectory(header['content'], [np.zeros([0, 0, 3], np.uint8)] * len(header['lengths']))


def _check_schema(header: Mapping[str, Any]):
  if header['schema'] not in (SCHEMA, _SECOND):
    raise ValueError(f'its schema is {header["schema"]}, this version of pdgen reads {SCHEMA} and {_SECOND}')


def _trajectory(content: Mapping[str, Any], pictures: Sequence[np.ndarray]) -> trajectory_lib.Trajectory:
  spec, provenance, expected = content['spec'], content['provenance'], content['expected']
  return trajectory_lib.Trajectory(
    prompt=content['prompt'],
    steps=steps_of(content['steps'], pictures),
    mode=content['mode'],
    stop=content['stop'],
    spec=spec and trajectory_lib.PromptSpec.from_row(spec),
    provenance=provenance and provenance_of(provenance),
    expected=None if expected is None else tuple(trajectory_lib.Content(*row) for row in expected),
    metadata=content['metadata'],
    parts=tuple(pictures[part] if isinstance(part, int) else part for part in content.get('parts', ())),
  )


def header_of(record: bytes) -> dict[str, Any]:
  """The header of a record, unchecked but for its size: `schema`, `sha256`, `lengths`, `content`."""
  size = struct.unpack_from('<I', record)[0]
  if size > _MOST_HEADER:
    raise ValueError(f'its text and metadata have {size} bytes; a record may have {_MOST_HEADER}')
  return json.loads(record[4 : 4 + size])


def steps_of(rows: Sequence[Mapping[str, Any]], pictures: Sequence[np.ndarray]) -> tuple[trajectory_lib.Step, ...]:
  """Steps from rows of their fields, where a picture is its index in `pictures`."""
  steps = []
  for row in rows:
    shown = {part: pictures[row[part]] for part in trajectory_lib.PICTURES if row[part] is not None}
    steps.append(trajectory_lib.Step(**{**row, **shown}))
  return tuple(steps)


def provenance_of(row: Mapping[str, Any]) -> trajectory_lib.Provenance:
  """Provenance from a row of its fields; those that are left out have their defaults.

  Raises: TypeError for an unknown field, naming it, or a list that is none.
  """
  fields = dict(row)
  for name in ('errors', 'verdicts', 'reasons'):
    if name in fields:
      fields[name] = tuple(fields[name])
  if fields.get('cost') is not None:
    fields['cost'] = trajectory_lib.Cost(**fields['cost'])
  return trajectory_lib.Provenance(**fields)


def _provenance_row(provenance: trajectory_lib.Provenance) -> dict[str, Any]:
  """Fields that came after the first record sets are left out at their defaults: equal content keeps its hash."""
  row = {field.name: getattr(provenance, field.name) for field in dataclasses.fields(provenance)}
  row['cost'] = provenance.cost and dataclasses.asdict(provenance.cost)
  first = ('source', 'kind', 'errors', 'detour', 'id')
  defaults = {field.name: field.default for field in dataclasses.fields(provenance)}
  return {name: value for name, value in row.items() if name in first or value != defaults[name]}


def canonical_json(value: Any) -> bytes:
  """JSON that is equal for equal values. Raises: TypeError or ValueError for what is not JSON, as NaN is not.

  >>> canonical_json({'b': (1, 2), 'a': None})
  b'{"a":null,"b":[1,2]}'
  """
  return json.dumps(value, sort_keys=True, allow_nan=False, separators=(',', ':')).encode()


def _content_hash(fields: bytes, pictures: Sequence[np.ndarray], files: Sequence[bytes]) -> str:
  """SHA-256 of the fields (canonical JSON) and the pictures.

  A PNG counts as its pixels, however it is compressed. Other files count as they are: decoders of JPEG differ in last
  bits, and a record must not seem damaged on another machine.
  """
  digest = hashlib.sha256(fields)
  for picture, file in zip(pictures, files, strict=True):
    digest.update(f' {picture.shape} '.encode())
    digest.update(np.ascontiguousarray(picture).data if file.startswith(_PNG) else file)
  return digest.hexdigest()


def _checked(value: Any, what: str) -> Any:
  """The value as it comes back from JSON. what: its name in errors."""
  try:
    plain = _plain(value)
    canonical_json(plain)
  except (TypeError, ValueError, RecursionError) as error:
    raise ValueError(f'{what} is not JSON: {error}. Use texts, finite numbers, lists and dicts.') from error
  return plain


def _plain(value: Any) -> Any:
  """The value as it comes back from JSON. Raises: TypeError for a key that JSON would turn into a text."""
  if isinstance(value, Mapping):
    for key in value:
      if not isinstance(key, str):
        raise TypeError(f'the key {key!r} is not a text')
    return {key: _plain(item) for key, item in value.items()}
  return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _check_picture(picture: Any, name: str):
  if not isinstance(picture, np.ndarray):
    raise ValueError(f'A picture of {name} is of type {type(picture).__name__}; pictures are uint8[H, W, 3] arrays.')
  if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3 or not picture.size:
    raise ValueError(f'A picture of {name} is {picture.dtype}{list(picture.shape)}; pictures are uint8[H, W, 3].')


def _files(pictures: Sequence[np.ndarray], given: Sequence[bytes | None], name: str) -> list[bytes]:
  """The file of each picture: the given one where there is one."""
  if given and len(given) != len(pictures):
    raise ValueError(f'{name} has {len(pictures)} pictures, but {len(given)} picture files were given.')
  files = []
  for number, (picture, file) in enumerate(zip(pictures, given or [None] * len(pictures), strict=True)):
    if file is not None and not np.array_equal(_decode_picture(file), picture):
      raise ValueError(f'Picture file {number} of {name} is of another picture. Decode the file to RGB with Pillow.')
    files.append(_png(picture) if file is None else file)
  return files


def _png(picture: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(picture).save(file, 'PNG')
  return file.getvalue()


def _pixels(file: bytes) -> int:
  """Width times height, as the head of the file says."""
  with warnings.catch_warnings(action='ignore', category=Image.DecompressionBombWarning):
    with Image.open(io.BytesIO(file)) as image:
      return image.width * image.height


def _decode_picture(file: bytes) -> np.ndarray:
  """uint8[H, W, 3] of any format that Pillow reads."""
  with Image.open(io.BytesIO(file)) as image:
    return np.array(image if image.mode == 'RGB' else image.convert('RGB'))
