"""GenEval scorer: does a picture show the objects, counts, colours and positions that its prompt asks for?

Implements the rules of the official `evaluate_images.py` and `summary_scores.py` (Ghosh et al. 2023) for any detector
(`judges.base.Detector`). `GenEval` is the evaluator: it samples, then scores. The official scripts can read the
folders, which have the official layout:

    <out>/00000/metadata.jsonl      the prompt's metadata
    <out>/00000/samples/0000.png    its pictures
    <out>/results.jsonl             one line a picture, as the official evaluation writes it
    <out>/run.json                  what the pictures were made from (ours)
"""

import dataclasses
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pdgen.core import geometry
from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import base, intervals
from pdgen.judges import base as judges_base
from pdgen.viewing import gallery

COLORS = ('red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'brown', 'black', 'white')
TASKS = ('single_object', 'two_object', 'counting', 'colors', 'position', 'color_attr')
THRESHOLD = 0.3  # a detection counts above this score (official)
COUNTING_THRESHOLD = 0.9  # the same in the counting task (official)
MAX_OBJECTS = 16  # detections that count, a class (official)
_BATCH = 32  # prompts painted and written together, if nothing else is said


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """The scores of a set of pictures.

  Prompts without a picture are in no rate: `missing` names them, and the text says how many prompts the scores rest on.
  The 95 % interval of `overall` combines the tasks' Wilson intervals by square-and-add (Zou and Donner 2008). A row of
  `results` has the official fields `filename`, `tag`, `prompt`, `correct`, `reason`, `metadata`, `details`.
  """

  tasks: Mapping[str, intervals.Rate]  # tag to the rate of right pictures, in the order of appearance
  overall: float  # mean over tasks (official)
  low: float  # lower end of its interval
  high: float  # upper end of its interval
  results: tuple[Mapping[str, Any], ...]  # one row a picture
  missing: tuple[int, ...] = ()  # numbers of the prompts that have no picture

  @property
  def answered(self) -> int:
    """Prompts that the scores rest on."""
    return len({pathlib.PurePath(row['filename']).parent.parent for row in self.results})

  @property
  def asked(self) -> int:
    """Prompts that there are."""
    return self.answered + len(self.missing)

  @property
  def failures(self) -> list[Mapping[str, Any]]:
    return [row for row in self.results if not row['correct']]

  def __str__(self) -> str:
    lines = [
      f'{tag:<16} = {r.value:7.2%} [{r.interval[0]:.3f}, {r.interval[1]:.3f}] ({r.hits} / {r.total})'
      for tag, r in self.tasks.items()
    ]
    lines.append(f'{"overall":<16} = {self.overall:7.2%} [{self.low:.3f}, {self.high:.3f}]')
    if self.missing:
      names = ', '.join(f'{number:05}' for number in self.missing[:5]) + (', ..' if len(self.missing) > 5 else '')
      lines.append(f'These figures rest on {self.answered} of {self.asked} prompts; without a picture: {names}.')
    return '\n'.join(lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenEval:
  """Evaluator: paints each prompt once and scores the last pictures (`evals.base.Evaluator`).

  The picture of a prompt is a function of the painter, the prompt and its seed, in whichever batch it is painted.
  """

  prompts: base.PromptSet  # rows are GenEval metadata
  detector: judges_base.Detector  # of the objects of a picture
  mode: str = trajectory_lib.PROCESS  # or `direct`
  seed: int = 0  # of the first prompt; the next prompts take the next numbers
  batch_size: int | None = None  # trajectories painted together; None: as the painter does
  checkpoint: str = ''  # name of what the painter was loaded from: a folder is of one of them
  name: str = 'geneval'

  def run(self, painter: base.Painter, out: pathlib.Path | None) -> base.Scores:
    """Scores of a painter; `out` gets the official folder. Prompts whose pictures are there are not painted again."""
    painted: dict[int, trajectory_lib.Trajectory] = {}
    seconds = 0.0
    if out is not None:
      base.claim(out, self._identity(painter))
    for numbers in self._batches(out):
      texts = [self.prompts.texts[i] for i in numbers]
      seeds = [self.seed + i for i in numbers]
      result = painter.sample(texts, mode=self.mode, seed=seeds, batch_size=self.batch_size)
      seconds += result.timings['seconds']
      painted |= dict(zip(numbers, result.trajectories, strict=True))
      if out is not None:
        pictures = last_pictures(result.trajectories, size=painter.config.model.image_size)
        for i, picture in zip(numbers, pictures, strict=True):
          write_prompt(out, i, self.prompts.rows[i], [picture])
    if out is not None:
      report = score_folder(out, self.detector)
      if report.asked != len(self.prompts.rows):
        raise base.AnotherRunError(
          f'{out} holds {report.asked} prompts, not {len(self.prompts.rows)}: see its folders.'
        )
    else:
      pictures = last_pictures(list(painted.values()), size=painter.config.model.image_size)
      report = score(self.prompts.rows, pictures, self.detector)
    return self._scores(report, painted, seconds)

  def _identity(self, painter: base.Painter) -> dict[str, Any]:
    sampling = dataclasses.asdict(painter.config.sampling)
    settings = dict(evaluator=self.name, mode=self.mode, seed=self.seed, checkpoint=self.checkpoint)
    return {**settings, 'prompts': self.prompts.name, 'prompts_digest': self.prompts.digest, 'sampling': sampling}

  def _batches(self, out: pathlib.Path | None) -> list[list[int]]:
    """Numbers of the prompts that are still to be painted, those together that are written together."""
    if out is None:
      return [list(range(len(self.prompts.rows)))]
    missing = [i for i in range(len(self.prompts.rows)) if not pathlib.Path(out, _name(i, 0)).is_file()]
    size = self.batch_size or _BATCH
    return [missing[i : i + size] for i in range(0, len(missing), size)]

  def _scores(self, report: Report, painted: Mapping[int, trajectory_lib.Trajectory], seconds: float) -> base.Scores:
    firsts: dict[str, trajectory_lib.Trajectory] = {}  # of each task, one to look at
    for i, trajectory in painted.items():
      firsts.setdefault(self.prompts.rows[i]['tag'], trajectory)
    shown = [t for t in firsts.values() if t.pictures]
    details = {}
    if painted:
      details['eval/finished'] = float(np.mean([t.stop == trajectory_lib.FINISHED for t in painted.values()]))
      details['eval/pictures'] = float(np.mean([len(t.pictures) for t in painted.values()]))
    overall = intervals.Estimate(report.overall, report.low, report.high, len(report.results))
    return base.Scores(
      name=self.name,
      values={**{task: r.estimate for task, r in report.tasks.items()}, 'overall': overall},
      asked=len(self.prompts.rows),
      answered=report.answered,
      rows=report.results,
      details=details,
      text=f'{report}\n{_told(list(painted.values()), seconds)}',
      strip=gallery.filmstrip(shown) if shown else None,
    )


def score(
  prompts: Sequence[Mapping[str, Any]], pictures: Sequence[np.ndarray], detector: judges_base.Detector
) -> Report:
  """Scores one picture a prompt.

  Args:
    prompts: GenEval metadata of each prompt.
    pictures: uint8[H, W, 3] each.
    detector: sees the objects of a picture.

  Raises: ValueError if the numbers of prompts and pictures differ, there are none, or one is no uint8[H, W, 3].
  """
  if len(prompts) != len(pictures):
    raise ValueError(f'{len(prompts)} prompts but {len(pictures)} pictures; give one picture a prompt.')
  names = [_name(i, 0) for i in range(len(prompts))]
  for i, picture in enumerate(pictures):
    judges_base.check_picture(picture, whose=f' of prompt {i}')
  return _report([_result(*args, detector) for args in zip(names, prompts, pictures, strict=True)])


def last_pictures(trajectories: Sequence[trajectory_lib.Trajectory], *, size: int) -> list[np.ndarray]:
  """The last picture of each trajectory, uint8[size, size, 3]; a black one for a trajectory without pictures."""
  return [t.final if t.pictures else np.zeros((size, size, 3), np.uint8) for t in trajectories]


def evaluate(metadata: Mapping[str, Any], detections: Sequence[judges_base.Found]) -> tuple[bool, str]:
  """Whether the detections satisfy the metadata, and the reason why not (official `evaluate`; "" if they do).

  Every `include` clause needs `count` objects of its class; colour and position are those of the best-scored `count`;
  a position must hold against every object of the clause that it names. No `exclude` clause may reach its count.
  """
  objects = _by_class(metadata, detections)
  reasons: list[str] = []
  groups: list[Sequence[judges_base.Found] | None] = []
  for clause in metadata.get('include', []):
    found = objects.get(clause['class'], [])[: clause['count']]
    reason = _broken_clause(clause, found, groups)
    reasons += [reason] if reason else []
    groups.append(None if reason else found)
  for clause in metadata.get('exclude', []):
    name = clause['class']
    if len(objects.get(name, [])) >= clause['count']:
      reasons.append(f'expected {name}<{clause["count"]}, found {len(objects[name])}')
  return not reasons, '\n'.join(reasons)


# --- the official folder ---


def write_folder(out: str | pathlib.Path, prompts: Sequence[Mapping[str, Any]], pictures: Sequence[np.ndarray]) -> None:
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
  out: str | pathlib.Path, number: int, metadata: Mapping[str, Any], pictures: Sequence[np.ndarray] | np.ndarray
) -> None:
  """Writes the metadata and the pictures, uint8[H, W, 3] each, of one prompt; each file is whole or absent.

  Raises: ValueError for pictures of another type, of which nothing is written.
  """
  for picture in pictures:
    judges_base.check_picture(picture, whose=f' of prompt {number}')
  base.write_atomically(pathlib.Path(out, f'{number:05}', 'metadata.jsonl'), json.dumps(dict(metadata)) + '\n')
  for k, picture in enumerate(pictures):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format='png')
    base.write_atomically(pathlib.Path(out, _name(number, k)), file.getvalue())


def read_folder(out: str | pathlib.Path) -> tuple[list[dict[str, Any]], list[np.ndarray], list[str]]:
  """Reads an official folder. Returns (prompts, pictures, file names), one entry a picture.

  Raises: FileNotFoundError, naming the folder, if it has no prompt with a picture; ValueError naming a damaged file.
  """
  rows = []
  for folder in _prompt_folders(out):
    metadata, *_ = base.read_rows(folder / 'metadata.jsonl', 'tag', 'prompt')
    for path in _sample_files(folder):
      try:
        with Image.open(path) as image:
          picture = np.asarray(image.convert('RGB'))
      except (OSError, SyntaxError, ValueError) as error:  # What PIL raises for a file that is cut or no picture.
        raise ValueError(f'{path} is no whole picture ({error}). Delete it, and paint it again.') from error
      rows.append((metadata, picture, path.relative_to(out).as_posix()))
  if not rows:
    raise FileNotFoundError(f'No GenEval pictures in {out}; expected <prompt number>/samples/<number>.png there.')
  prompts, pictures, names = zip(*rows, strict=True)
  return list(prompts), list(pictures), list(names)


def score_folder(out: str | pathlib.Path, detector: judges_base.Detector) -> Report:
  """Scores every picture of an official folder and writes `results.jsonl` into it.

  Prompts without a picture are in `Report.missing`, those among them whose whole folder is missing. Raises: as
  `read_folder`.
  """
  prompts, pictures, names = read_folder(out)
  results = [_result(*args, detector) for args in zip(names, prompts, pictures, strict=True)]
  report = _report(results, missing=_without_pictures(out))
  lines = [json.dumps(dict(row)) + '\n' for row in report.results]
  base.write_atomically(pathlib.Path(out, 'results.jsonl'), ''.join(lines))
  return report


def read_results(out: str | pathlib.Path) -> Report:
  """The report of a folder's `results.jsonl`, whether pdgen or the official script wrote it.

  Raises: ValueError where it has a line that is cut, or not one row for each picture that is in the folder.
  """
  path = pathlib.Path(out, 'results.jsonl')
  rows = base.read_rows(path, 'filename', 'tag', 'prompt', 'correct')
  pictures = sum(len(_sample_files(folder)) for folder in _prompt_folders(out))
  if pictures and len(rows) != pictures:
    raise ValueError(f'{path} has {len(rows)} rows for {pictures} pictures: it is not whole. Score the folder again.')
  return _report(rows, missing=_without_pictures(out) if pictures else ())


def _prompt_folders(out: str | pathlib.Path) -> list[pathlib.Path]:
  return sorted(p for p in pathlib.Path(out).glob('*') if p.is_dir() and p.name.isdigit())


def _sample_files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(p for p in (folder / 'samples').glob('*.png') if p.stem.isdigit())


def _without_pictures(out: str | pathlib.Path) -> tuple[int, ...]:
  """Numbers of the prompts up to the last one that have no picture; official numbers have no gaps."""
  counts = {int(folder.name): len(_sample_files(folder)) for folder in _prompt_folders(out)}
  return tuple(number for number in range(max(counts, default=-1) + 1) if not counts.get(number))


# --- rules ---


def _by_class(
  metadata: Mapping[str, Any], detections: Sequence[judges_base.Found]
) -> dict[str, list[judges_base.Found]]:
  threshold = COUNTING_THRESHOLD if metadata['tag'] == 'counting' else THRESHOLD
  found: dict[str, list[judges_base.Found]] = {}
  for item in sorted(detections, key=lambda d: -d.score):
    if item.name is not None and item.score > threshold:
      found.setdefault(item.name, []).append(item)
  return {name: items[:MAX_OBJECTS] for name, items in found.items()}


def _broken_clause(
  clause: Mapping[str, Any], found: Sequence[judges_base.Found], groups: Sequence[Sequence[judges_base.Found] | None]
) -> str | None:
  """Why an `include` clause does not hold, or None if it holds.

  Args:
    clause: the clause.
    found: the best-scored objects of its class.
    groups: the objects of the clauses before it; None for a clause that does not hold.
  """
  name, count = clause['class'], clause['count']
  if len(found) < count:
    return f'expected {name}>={count}, found {len(found)}'
  if 'color' in clause:
    colors = [item.color for item in found]
    if colors.count(clause['color']) < count:
      color, others = clause['color'], ', '.join(f'{colors.count(c)} {c}' for c in COLORS if c in colors)
      return f'expected {color} {name}>={count}, found {colors.count(color)} {color}; and {others}'
  if 'position' in clause:
    relation, target = clause['position']
    if groups[target] is None:
      return f'no target for {name} to be {relation}'
    for item in found:
      for other in groups[target]:
        relations = geometry.spatial_relations(item.box, other.box)
        if relation not in relations:
          return f'expected {name} {relation} target, found {" and ".join(sorted(relations))} target'
  return None


def _result(
  filename: str, metadata: Mapping[str, Any], picture: np.ndarray, detector: judges_base.Detector
) -> dict[str, Any]:
  detections = detector.detect(picture)
  correct, reason = evaluate(metadata, detections)
  details = {
    name: [[*map(float, item.box), float(item.score)] for item in items]
    for name, items in _by_class(metadata, detections).items()
  }
  return {
    'filename': filename,
    'tag': metadata['tag'],
    'prompt': metadata['prompt'],
    'correct': correct,
    'reason': reason,
    'metadata': json.dumps(dict(metadata)),
    'details': json.dumps(details),
  }


def _report(results: list[dict[str, Any]], *, missing: tuple[int, ...] = ()) -> Report:
  if not results:
    raise ValueError('No pictures to score.')
  tags = dict.fromkeys(row['tag'] for row in results)
  tasks = {tag: intervals.rate(row['correct'] for row in results if row['tag'] == tag) for tag in tags}
  mean = intervals.mean_of_rates(list(tasks.values()))
  return Report(tasks=tasks, overall=mean.value, low=mean.low, high=mean.high, results=tuple(results), missing=missing)


def _name(prompt: int, sample: int) -> str:
  return f'{prompt:05}/samples/{sample:04}.png'


def _told(painted: Sequence[trajectory_lib.Trajectory], seconds: float) -> str:
  """How many trajectories were painted, and how they went."""
  if not painted:
    return 'Nothing was left to paint.'
  count, refined = len(painted), sum(s.refined is not None for t in painted for s in t.steps)
  finished = sum(t.stop == trajectory_lib.FINISHED for t in painted)
  return (
    f'{count} trajectories in {seconds:.0f} s, {finished} of them ended by themselves; '
    f'{sum(len(t.pictures) for t in painted) / count:.2f} pictures each, {refined / count:.2f} of them refined'
  )
