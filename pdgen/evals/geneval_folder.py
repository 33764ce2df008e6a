"""GenEval's official folder: written whole or not at all, read with all that is wrong in it named, scored and resumed.

    <out>/00000/metadata.jsonl      the prompt's metadata
    <out>/00000/samples/0000.png    its pictures; other systems' may be .jpg
    <out>/results.jsonl             one line a picture, as the official evaluation writes it
    <out>/scored.jsonl              the same lines as they come, with what they rest on (detectors with an `identity`)

A folder of ours that was killed goes on; a folder of another system is taken as it is: a prompt without pictures, a cut
file, metadata without a tag, two files of one number are named in `Report.problems` and never counted in silence.
Quirk of the official script, not kept: it scores every file whose name begins as `0000.png` does (`0000.png.bak`).
"""

import dataclasses
import hashlib
import io
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from pdgen.evals import base, geneval_rules, row_log
from pdgen.evals.geneval_report import Report
from pdgen.judges import base as judges_base

RESULTS, SCORED = 'results.jsonl', 'scored.jsonl'
_ENDINGS = ('png', 'jpg', 'jpeg')  # the first of two files of one number is the one that is scored


@dataclasses.dataclass(frozen=True)
class Sample:
  """A picture of a folder."""

  prompt: int  # number of its prompt
  name: str  # relative to the folder
  metadata: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Listing:
  """What is in a folder, before any picture is opened."""

  samples: tuple[Sample, ...]  # in order of prompts, then of samples
  numbers: tuple[int, ...]  # prompts that there should be
  problems: tuple[str, ...]


def write(out: str | pathlib.Path, prompts: Sequence[Mapping[str, Any]], pictures: Sequence[np.ndarray]) -> None:
  """Writes an official folder.

  Args:
    out: the folder.
    prompts: GenEval metadata of each prompt.
    pictures: uint8[H, W, 3] for each prompt, or uint8[N, H, W, 3] for several.

  Raises: ValueError if the numbers of prompts and entries of pictures differ, or for pictures of another type.
  """
  if len(prompts) != len(pictures):
    raise ValueError(f'{len(prompts)} prompts but {len(pictures)} entries of pictures; give one entry a prompt.')
  for i, (metadata, entry) in enumerate(zip(prompts, pictures, strict=True)):
    write_prompt(out, i, metadata, entry if np.ndim(entry) == 4 else [entry])


def write_prompt(
  out: str | pathlib.Path,
  number: int,
  metadata: Mapping[str, Any],
  pictures: Sequence[np.ndarray] | np.ndarray,
  *,
  first: int = 0,
) -> None:
  """Writes the metadata and the pictures, uint8[H, W, 3] each, of one prompt; each file is whole or absent.

  Args:
    out: the folder.
    number: of the prompt.
    metadata: of the prompt.
    pictures: its samples.
    first: number of the first of them.

  Raises: ValueError for pictures of another type, of which nothing is written.
  """
  for picture in pictures:
    judges_base.check_picture(picture, whose=f' of prompt {number}')
  base.write_atomically(pathlib.Path(out, f'{number:05}', 'metadata.jsonl'), json.dumps(dict(metadata)) + '\n')
  for k, picture in enumerate(pictures, first):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format='png')
    base.write_atomically(pathlib.Path(out, name(number, k)), file.getvalue())


def name(prompt: int, sample: int) -> str:
  """Of a picture, relative to the folder.

  >>> name(3, 0)
  '00003/samples/0000.png'
  """
  return f'{prompt:05}/samples/{sample:04}.png'


def listing(out: str | pathlib.Path, prompts: Sequence[Mapping[str, Any]] | None = None) -> Listing:
  """The pictures of a folder and what is wrong with it.

  Args:
    out: the folder.
    prompts: metadata of the prompts that it should hold, by number; None: those up to the last one that is there.
  """
  samples: list[Sample] = []
  problems: list[str] = []
  folders: dict[int, pathlib.Path] = {}
  for folder in sorted(p for p in pathlib.Path(out).glob('*') if p.is_dir() and re.fullmatch('[0-9]+', p.name)):
    first = folders.setdefault(int(folder.name), folder)
    if first != folder:
      problems.append(f'{folder.name}: the same prompt as {first.name}; it is not scored')
  for number, folder in sorted(folders.items()):
    metadata, wrong = _metadata(folder)
    if prompts is not None and number >= len(prompts):
      problems.append(f'{folder.name}: there are {len(prompts)} prompts; it is not scored')
      continue
    if metadata is None:
      problems.append(f'{folder.name}/metadata.jsonl: {wrong}; its pictures are not scored')
      continue
    if prompts is not None and metadata != json.loads(json.dumps(dict(prompts[number]))):
      problems.append(f'{folder.name}/metadata.jsonl: not the prompt of this number; its pictures are not scored')
      continue
    names, doubled = _pictures(folder)
    problems += [f'{folder.name}/samples/{file}: {what}' for file, what in doubled]
    samples += [Sample(number, f'{folder.name}/samples/{file}', metadata) for file in names]
  there = {sample.prompt for sample in samples}
  count = max(folders, default=-1) + 1 if prompts is None else len(prompts)
  problems += [
    f'{n:05}: no picture' for n in range(count) if n not in there and (n not in folders or _is_empty(folders[n]))
  ]
  return Listing(tuple(samples), tuple(range(count)), tuple(problems))


def read_picture(path: pathlib.Path) -> np.ndarray:
  """uint8[H, W, 3] of a file, upright (official). Raises: ValueError, naming it, for what is no whole picture."""
  try:
    with Image.open(path) as image:
      return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL's, of cut and other files
    raise ValueError(f'{path} is no whole picture ({error}). Delete it, and paint it again.') from error


def read(out: str | pathlib.Path) -> tuple[list[dict[str, Any]], list[np.ndarray], list[str]]:
  """Reads an official folder that is whole. Returns (prompts, pictures, file names), one entry a picture.

  Raises: FileNotFoundError, naming the folder, if it has no prompt with a picture; ValueError naming a damaged file.
  """
  found = listing(out)
  damaged = [p for p in found.problems if 'metadata.jsonl' in p]
  if damaged:
    raise ValueError(f'{out}: {damaged[0]}')
  _require(out, found)
  pictures = [read_picture(pathlib.Path(out, sample.name)) for sample in found.samples]
  return [dict(s.metadata) for s in found.samples], pictures, [s.name for s in found.samples]


def score(
  out: str | pathlib.Path,
  detector: judges_base.Detector,
  *,
  prompts: Sequence[Mapping[str, Any]] | None = None,
  rules: geneval_rules.Rules = geneval_rules.OFFICIAL,
) -> Report:
  """Scores every picture of an official folder and writes `results.jsonl` into it; goes on where it was killed.

  Args:
    out: the folder.
    detector: sees the objects of a picture.
    prompts: as of `listing`.
    rules: thresholds.

  Raises: FileNotFoundError for a folder without any picture that can be scored.
  """
  found = listing(out, prompts)
  _require(out, found)
  rows: list[Mapping[str, Any]] = []
  problems = list(found.problems)
  scored: set[int] = set()
  first_of: dict[str, str] = {}  # digest of a picture -> the file that had it first
  identity = getattr(detector, 'identity', None)
  with row_log.RowLog(pathlib.Path(out, SCORED), identity and f'{identity} {rules}') as log:
    for sample in found.samples:
      path = pathlib.Path(out, sample.name)
      digest = hashlib.sha256(path.read_bytes()).hexdigest()
      row = log.find(sample.name, dict(sample.metadata), digest)
      if row is None:
        try:
          picture = read_picture(path)
        except ValueError as error:
          problems.append(f'{sample.name}: no whole picture ({_cause(error)}); it is not scored')
          continue
        row = result(sample.name, sample.metadata, picture, detector, rules=rules)
        log.add(sample.name, dict(sample.metadata), digest, row=row)
      first = first_of.setdefault(digest, sample.name)
      if first != sample.name:
        problems.append(f'{sample.name}: the same file as {first}; both are scored')
      rows.append(row)
      scored.add(sample.prompt)
    if not rows:
      raise FileNotFoundError(f'No picture of {out} can be scored: {problems[0]}.')
    log.close([sample.name for sample in found.samples])
  base.write_atomically(pathlib.Path(out, RESULTS), ''.join(json.dumps(dict(row)) + '\n' for row in rows))
  return Report.of(rows, missing=[n for n in found.numbers if n not in scored], problems=problems)


def result(
  filename: str,
  metadata: Mapping[str, Any],
  picture: np.ndarray,
  detector: judges_base.Detector,
  *,
  rules: geneval_rules.Rules = geneval_rules.OFFICIAL,
) -> dict[str, Any]:
  """The official row of a picture. Arguments as of `score`; filename: as the row has it."""
  objects = geneval_rules.by_class(metadata, detector.detect(picture), rules=rules)
  namer = geneval_rules.color_namer(detector, picture)
  correct, reason = geneval_rules.judged(metadata, objects, colors_of=namer, rules=rules)
  details = {name: [[*map(float, item.box), float(item.score)] for item in items] for name, items in objects.items()}
  return {
    'filename': filename,
    'tag': metadata['tag'],
    'prompt': metadata['prompt'],
    'correct': correct,
    'reason': reason,
    'metadata': json.dumps(dict(metadata)),
    'details': json.dumps(details),
  }


def read_results(out: str | pathlib.Path) -> Report:
  """The report of a folder's `results.jsonl`, whether pdgen or the official script wrote it.

  Raises: ValueError where it has a line that is cut or lacks a field, two rows of one picture, or not one row for each
    picture that is in the folder.
  """
  path = pathlib.Path(out, RESULTS)
  rows = base.read_rows(path, 'filename', 'tag', 'prompt', 'correct', 'metadata')
  names = [row['filename'] for row in rows]
  doubled = sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < len(names) else []
  if doubled:
    raise ValueError(f'{path} has more than one row of {doubled[0]}. Score the folder again.')
  found = listing(out)
  if found.samples and len(rows) != len(found.samples):
    wanted = f'{len(rows)} rows for {len(found.samples)} pictures'
    raise ValueError(f'{path} has {wanted}: it is not whole. Score the folder again.')
  if not found.samples:
    return Report.of(rows)
  there = {sample.prompt for sample in found.samples}
  return Report.of(rows, missing=[n for n in found.numbers if n not in there], problems=found.problems)


def _metadata(folder: pathlib.Path) -> tuple[dict[str, Any] | None, str]:
  """The metadata of a prompt, or what is wrong with the file."""
  try:
    row, *_ = base.read_rows(folder / 'metadata.jsonl')
  except FileNotFoundError:
    return None, 'missing'
  except ValueError as error:
    return None, str(error).partition('metadata.jsonl')[2].strip(', ') or 'damaged'
  if not isinstance(row, dict):
    return None, 'no JSON object'
  absent = [field for field in ('tag', 'prompt') if not isinstance(row.get(field), str)]
  return (None, f'no {absent[0]}') if absent else (row, '')


def _pictures(folder: pathlib.Path) -> tuple[list[str], list[tuple[str, str]]]:
  """Names of the pictures of a prompt in order, and those of numbers that are there twice with what is wrong."""
  found: dict[int, list[str]] = {}
  for path in sorted((folder / 'samples').glob('*')):
    if path.is_file() and (match := re.fullmatch(rf'([0-9]+)\.({"|".join(_ENDINGS)})', path.name)):
      found.setdefault(int(match[1]), []).append(path.name)
  names, doubled = [], []
  for _, files in sorted(found.items()):
    first, *rest = sorted(files, key=lambda file: (_ENDINGS.index(file.partition('.')[2]), file))
    names.append(first)
    doubled += [(file, f'the same number as {first}; it is not scored') for file in rest]
  return names, doubled


def _is_empty(folder: pathlib.Path) -> bool:
  return not _pictures(folder)[0]


def _require(out: str | pathlib.Path, found: Listing):
  if not found.samples:
    told = f' ({found.problems[0]})' if found.problems else ''
    raise FileNotFoundError(f'No GenEval pictures in {out}; expected <prompt number>/samples/<number>.png there{told}.')


def _cause(error: ValueError) -> str:
  return ' '.join(str(error.__cause__ or error).split())[:100]
