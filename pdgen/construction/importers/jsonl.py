"""Trajectories as a folder of JSONL and picture files: the format for data made without Python (docs/add_a_dataset.md).

A line is one trajectory; pictures are named by their paths, from the folder of the JSONL file on:

    {"prompt": "a red ring", "steps": [{"plan": {"ins": "Paint a red ring.", "des": "A red ring."},
     "draft": "1a.png", "inspection": "It is blue. <refine>Make it red.</refine>", "refined": "1b.png"}]}

A prompt of texts and pictures is its `parts`, and `mode` says what was made of them (`core.modes`):

    {"parts": [{"picture": "1.png"}, {"text": "make it night"}], "mode": "edit", "steps": [{"draft": "1c.png"}]}

Everything is checked: names and types of the fields, the tags of plans and inspections, that a draft which is to be
refined is, that no name and no link leads out of the folder.
"""

import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from pdgen.construction.importers import base
from pdgen.core import json_file, modes, paths, tags
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import record_codec, splits

_LONGEST_LINE = 2**24
_FIELDS = ('prompt', 'parts', 'steps', 'mode', 'id', 'split', 'provenance', 'spec', 'metadata')
_STEP = ('text', 'plan', 'draft', 'inspection', 'corrected_plan', 'refined', 'draft_is_target')
_PART = ('text', 'picture')
# Types of the fields of the provenance in JSON.
_PROVENANCE: dict[str, type | tuple[type, ...]] = {
  **dict.fromkeys(('source', 'kind', 'detour', 'id', 'renderer', 'writer', 'judge'), str),
  **dict.fromkeys(('errors', 'verdicts', 'reasons'), list),
  **dict.fromkeys(('graph', 'cost'), dict),
  'seed': int,
}


class _Line(NamedTuple):
  where: base.Where
  folder: pathlib.Path  # Of the file: pictures are named from there.
  content: bytes
  assigned: Mapping[bytes, str]


def rows(source: base.Source, wanted: Callable[[base.Where], bool]) -> Iterator[tuple[base.Where, base.Load]]:
  """Lines of the files ending in `.jsonl`; empty ones are none."""
  assigned = assigned_splits(source)
  for name, path in base.files(source, '.jsonl'):
    for number, content in _lines(path):
      where = base.Where(name, number)
      if len(content) > _LONGEST_LINE:
        yield where, base.Rejected(f'the line has more than {_LONGEST_LINE} bytes')
      elif not wanted(where):
        yield where, None
      else:
        line = _Line(where, path.parent, content, assigned)
        yield where, lambda line=line: line


def trajectory(row: Any, pictures: base.Pictures) -> trajectory_lib.Trajectory:
  """Raises: ValueError for a line that is no JSON, and naming the field that is wrong."""
  line = json_file.parse(row.content, of='the line')
  base.only(line, _FIELDS, what='the trajectory')
  parts = _parts(line.get('parts'), row.folder, pictures)
  prompt = base.text(_prompt(line), what='prompt', empty=bool(parts))
  if parts and prompt != trajectory_lib.joined(parts):
    raise ValueError(f'prompt is {prompt[:60]!r}, but the texts of parts are {trajectory_lib.joined(parts)[:60]!r}')
  mode = line.get('mode', trajectory_lib.PROCESS)
  if mode not in trajectory_lib.MODES:
    raise ValueError(f'mode is {mode!r}; known: {list(trajectory_lib.MODES)}')
  rules = modes.of(mode)
  if rules.needs_picture and not any(not isinstance(part, str) for part in parts):
    raise ValueError(f'mode {mode!r} needs a picture in parts')
  split = line.get('split')
  if split is not None and split != row.assigned.get(_key(prompt)):
    if split not in splits.SPLITS:
      raise ValueError(f'split is {split!r}; known: {list(splits.SPLITS)}')
    raise ValueError(f'split is {split!r}, but another line with this prompt is {row.assigned[_key(prompt)]!r}')
  found = base.many(line.get('steps'), what='steps')
  if not found or rules.paints_once and len(found) > 1:
    raise ValueError(f'steps has {len(found)} entries; mode {mode!r} needs {"1" if found else "1 or more"}')
  steps = tuple(
    _step(base.as_json_object(one, what=f'steps[{i}]'), f'steps[{i}]', row.folder, pictures, rules=rules)
    for i, one in enumerate(found)
  )
  spec = line.get('spec')
  return trajectory_lib.Trajectory(
    prompt=prompt,
    steps=steps,
    mode=mode,
    spec=None if spec is None else _spec(base.as_json_object(spec, what='spec')),
    provenance=_provenance(base.as_json_object(line.get('provenance', {}), what='provenance'), line.get('id', '')),
    metadata=base.as_json_object(line.get('metadata', {}), what='metadata'),
    parts=parts,
  )


def _parts(value: Any, folder: pathlib.Path, pictures: base.Pictures) -> tuple[str | np.ndarray, ...]:
  """The texts and pictures of a prompt; (): it is one text."""
  if value is None:
    return ()
  out = list[str | np.ndarray]()
  for number, one in enumerate(base.many(value, what='parts')):
    what = f'parts[{number}]'
    part = base.as_json_object(one, what=what)
    base.only(part, _PART, what=what)
    if len(part) != 1:
      raise ValueError(f'{what} has {sorted(part)}: it is a text or a picture')
    if 'text' in part:
      out.append(base.text(part['text'], what=f'{what}.text'))
    else:
      out.append(_picture(part['picture'], f'{what}.picture', folder, pictures))
  if not out:
    raise ValueError('parts is empty')
  return tuple(out)


def _prompt(line: Mapping[str, Any]) -> Any:
  """The prompt of a line, which its parts may say alone."""
  parts = line.get('parts')
  if 'prompt' in line or not isinstance(parts, list):
    return line.get('prompt')
  texts = [part['text'] for part in parts if isinstance(part, Mapping) and isinstance(part.get('text'), str)]
  return trajectory_lib.joined([text.strip() for text in texts])


def assigned_splits(source: base.Source) -> dict[bytes, str]:
  """The splits that the lines of a source give to prompts; one that is held out once is held out.

  By the first 16 bytes of the hash of the prompt, as `split_of` takes them. Reads all lines, and no picture.
  """
  found: dict[bytes, str] = {}
  for _, path in base.files(source, '.jsonl'):
    for _, content in _lines(path):
      if b'"split"' not in content or len(content) > _LONGEST_LINE:
        continue
      try:
        line = json_file.parse(content, of='the line')
      except ValueError:
        continue  # `trajectory` says so.
      prompt, split = _prompt(line), line.get('split')
      if isinstance(prompt, str) and split in splits.SPLITS and found.get(_key(prompt)) != splits.HELDOUT:
        found[_key(prompt)] = split
  return found


def splitter(source: base.Source, *, heldout: float) -> Callable[[str], str]:
  """The split of a prompt: what the source gives it, else that of its hash (`data.splits`)."""
  assigned = assigned_splits(source)
  return lambda prompt: assigned.get(_key(prompt)) or splits.split_of(prompt, heldout=heldout)


def _key(prompt: str) -> bytes:
  return hashlib.sha256(splits.prompt_hash(prompt).encode()).digest()[:16]


def _lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
  """(number from 1, line) of a file; of a line that is too long a little more than it may have."""
  with path.open('rb') as file:
    for number in itertools.count(1):
      line = file.readline(_LONGEST_LINE + 1)
      if not line:
        return
      rest = line
      while len(rest) > _LONGEST_LINE and not rest.endswith(b'\n'):
        rest = file.readline(_LONGEST_LINE + 1)
      if line.strip():
        yield number, line


def _step(
  row: Mapping[str, Any], what: str, folder: pathlib.Path, pictures: base.Pictures, *, rules: modes.Mode
) -> trajectory_lib.Step:
  base.only(row, _STEP, what=what)
  if rules.texts != modes.STEPS:
    return _words(row, what, folder, pictures, rules=rules)
  inspection = _inspection(row.get('inspection'), f'{what}.inspection')
  asks = inspection is not None and tags.refine_instruction(inspection) is not None
  for name in ('refined', 'corrected_plan'):
    if row.get(name) is not None and not asks:
      raise ValueError(f'{what} has {name!r}, but no inspection that asks for it with <refine>..</refine>')
  if asks and row.get('refined') is None:
    raise ValueError(f'{what}.inspection asks for a refined picture, but there is none')
  return trajectory_lib.Step(
    plan=_plan(row.get('plan'), f'{what}.plan'),
    draft=_picture(row.get('draft'), f'{what}.draft', folder, pictures),
    inspection=inspection,
    corrected_plan=_plan(row.get('corrected_plan'), f'{what}.corrected_plan'),
    refined=None if row.get('refined') is None else _picture(row['refined'], f'{what}.refined', folder, pictures),
    draft_is_target=_is_target(row, what),
  )


def _words(
  row: Mapping[str, Any], what: str, folder: pathlib.Path, pictures: base.Pictures, *, rules: modes.Mode
) -> trajectory_lib.Step:
  """A step of a mode without a process: a text, a picture, or both."""
  may = [name for name, has in (('text', rules.writes), ('draft', rules.paints)) if has]
  for name in row:
    if name not in (*may, 'draft_is_target') and row[name] is not None:
      raise ValueError(f'{what} has {name!r}, but those of mode {rules.name!r} have: {may}')
  if not any(row.get(name) is not None for name in may):
    raise ValueError(f'{what}.{may[-1]} is missing')
  if rules.paints_once and row.get('draft') is None:
    raise ValueError(f'{what}.draft is missing')
  return trajectory_lib.Step(
    text=None if row.get('text') is None else base.text(row['text'], what=f'{what}.text'),
    draft=None if row.get('draft') is None else _picture(row['draft'], f'{what}.draft', folder, pictures),
    draft_is_target=_is_target(row, what),
  )


def _is_target(row: Mapping[str, Any], what: str) -> bool:
  is_target = row.get('draft_is_target', True)
  if not isinstance(is_target, bool):
    raise ValueError(f'{what}.draft_is_target is {is_target!r}, not true or false')
  return is_target


def _plan(value: Any, what: str) -> str | None:
  if value is None:
    return None
  if isinstance(value, Mapping):
    base.only(value, ('ins', 'des'), what=what)
    parts = value.get('ins'), value.get('des', '')
  else:
    parts = tags.plan_parts(base.text(value, what=what))
  instruction, description = (
    base.words(part, what=f'{what}.{name}', empty=name == 'des')
    for name, part in zip(('ins', 'des'), parts, strict=True)
  )
  return tags.plan(instruction, description)


def _inspection(value: Any, what: str) -> str | None:
  if value is None:
    return None
  value = base.text(value, what=what)
  found = [tags.NAMES[part] for part in tags.split(value) if part in tags.NAMES]
  if found not in ([], ['refine', 'refine_end']):
    raise ValueError(f'{what} has the tags {found}: it may hold <refine>..</refine> once, and no others')
  if tags.refine_instruction(value) == '':
    raise ValueError(f'{what} has an empty <refine></refine>')
  return value


def _picture(value: Any, what: str, folder: pathlib.Path, pictures: base.Pictures):
  path = paths.inside(folder, base.text(value, what=what))
  if not path.is_file():
    raise ValueError(f'{what}: there is no file {value!r}')
  return pictures.open(path, what=f'{what} ({value})')


def _spec(row: Mapping[str, Any]) -> trajectory_lib.PromptSpec:
  try:
    return trajectory_lib.PromptSpec.from_row(row)
  except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
    raise ValueError(f'spec is no row of GenEval: {error!r}') from None


def _provenance(row: Mapping[str, Any], id: Any) -> trajectory_lib.Provenance:
  if not isinstance(id, str | int):
    raise ValueError(f'id is {type(id).__name__}, no text and no number')
  base.only(row, _PROVENANCE, what='provenance')
  for name, value in row.items():
    if not isinstance(value, _PROVENANCE[name]) or isinstance(value, bool):
      raise ValueError(f'provenance.{name} is {type(value).__name__}')
  for name in ('errors', 'reasons'):
    for number, one in enumerate(row.get(name, ())):
      base.text(one, what=f'provenance.{name}[{number}]')
  try:
    return record_codec.provenance_of({'source': 'jsonl', 'kind': 'imported', 'id': str(id), **row})
  except (TypeError, ValueError) as error:
    raise ValueError(f'provenance: {error}') from None
