"""GenRef (ReflectionFlow, arXiv 2504.16080): a bad picture, a reflection, a good picture; webdataset tars (GenRef-wds).

Members of a sample (ReflectionFlow's train_flux/train/data_wds.py): good_image.jpg, bad_image.jpg, reflection.txt,
prompt.txt, subset.txt (general, length, rule, editing). Pictures may end in .png or .webp too.

    prompt.txt        prompt
    bad_image         draft; no flow target
    reflection.txt    inspection: the reflection is the corrective instruction, `<refine>..</refine>`
    good_image        refined picture

There are no plans, and no words about what is wrong besides the instruction. A reflection of less than 5 characters,
which the authors drop as well, rejects the row. The two pictures may differ in size and are left so. `subset.txt`
becomes `metadata['subset']`.

The set has 2.78 TB: `limit` stops the stream there, and `share` takes that share of the samples, as they come; the
archives are read as far as needed, from disk or from a pipe:

    curl -L .../genref_0.tar | python -c "..import_records('gen_ref', '/dev/stdin', 'out', limit=1000)"
"""

from collections.abc import Callable, Iterator
from typing import Any

from pdgen.construction.importers import base, tar_stream
from pdgen.core import tags
from pdgen.core import trajectory as trajectory_lib

_SUFFIXES = ('jpg', 'jpeg', 'png', 'webp')
_SHORTEST = 5  # Characters of a reflection.


def rows(source: base.Source, wanted: Callable[[base.Where], bool]) -> Iterator[tuple[base.Where, base.Load]]:
  """Samples of the tar files."""
  return tar_stream.rows(source, wanted)


def trajectory(row: Any, pictures: base.Pictures) -> trajectory_lib.Trajectory:
  """Raises: ValueError for a sample that lacks a member, or whose pictures cannot be decoded."""
  prompt = base.words(_text(row, 'prompt.txt'), what='prompt.txt')
  reflection = base.words(_text(row, 'reflection.txt'), what='reflection.txt')
  if len(reflection) < _SHORTEST:
    raise ValueError(f'reflection.txt says {reflection!r}: it has less than {_SHORTEST} characters')
  bad, good = (pictures.open(_picture(row, name), what=name) for name in ('bad_image', 'good_image'))
  subset = base.words(_text(row, 'subset.txt'), what='subset.txt', empty=True) if 'subset.txt' in row else ''
  return trajectory_lib.Trajectory(
    prompt=prompt,
    steps=(trajectory_lib.Step(draft=bad, inspection=tags.refine(reflection), refined=good, draft_is_target=False),),
    provenance=trajectory_lib.Provenance(source='GenRef', kind='misalignment'),
    metadata={'subset': subset} if subset else {},
  )


def _text(row: dict[str, bytes], name: str) -> str | None:
  content = row.get(name)
  try:
    return None if content is None else content.decode()
  except UnicodeDecodeError:
    raise ValueError(f'{name} is no UTF-8') from None


def _picture(row: dict[str, bytes], name: str) -> bytes | None:
  return next((row[f'{name}.{suffix}'] for suffix in _SUFFIXES if f'{name}.{suffix}' in row), None)
