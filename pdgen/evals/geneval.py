"""GenEval: does a picture hold the objects, counts, colours and positions that its prompt asks for?

The rules are those of the official `evaluate_images.py` and `summary_scores.py` (Ghosh et al. 2023), for any detector:
it is an argument. The folder layout is theirs, too, so that the official scripts read it as it is:

    <out>/00000/metadata.jsonl      the prompt's metadata
    <out>/00000/samples/0000.png    its pictures
    <out>/results.jsonl             one line a picture, as the official evaluation writes it
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from pdgen.core import geometry
from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import intervals

COLORS = ('red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'brown', 'black', 'white')
TASKS = ('single_object', 'two_object', 'counting', 'colors', 'position', 'color_attr')
THRESHOLD = 0.3  # of a detection's score (official)
COUNTING_THRESHOLD = 0.9  # in the counting task (official)
MAX_OBJECTS = 16  # a class (official)


class Found(Protocol):
  """What a detector reports. name: the class, None if it has none; box: (x0, y0, x1, y1); score in [0, 1]."""

  name: str | None
  color: str
  box: tuple[float, float, float, float]
  score: float


Detect = Callable[[np.ndarray], Sequence[Found]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """The score of a set of pictures.

  tasks: what is right of each, by tag, in the order met. overall: mean over tasks (official). low, high: its 95 %
  interval, from the tasks' Wilson intervals by square-and-add (Zou and Donner 2008). results: one row a picture with
  the official fields `filename`, `tag`, `prompt`, `correct`, `reason`, `metadata`, `details`.
  """

  tasks: Mapping[str, intervals.Rate]
  overall: float
  low: float
  high: float
  results: tuple[Mapping[str, Any], ...]

  @property
  def failures(self) -> list[Mapping[str, Any]]:
    return [row for row in self.results if not row['correct']]

  def __str__(self) -> str:
    lines = [
      f'{tag:<16} = {r.value:7.2%} [{r.interval[0]:.3f}, {r.interval[1]:.3f}] ({r.hits} / {r.total})'
      for tag, r in self.tasks.items()
    ]
    return '\n'.join([*lines, f'{"overall":<16} = {self.overall:7.2%} [{self.low:.3f}, {self.high:.3f}]'])


def score(prompts: Sequence[Mapping[str, Any]], pictures: Sequence[np.ndarray], detect: Detect) -> Report:
  """Scores one picture, uint8[H, W, 3], of each prompt (GenEval metadata).

  Raises: ValueError where their numbers differ or there are none.
  """
  if len(prompts) != len(pictures):
    raise ValueError(f'{len(prompts)} prompts but {len(pictures)} pictures; give one picture a prompt.')
  names = [_name(i, 0) for i in range(len(prompts))]
  return _report([_result(*args, detect) for args in zip(names, prompts, pictures, strict=True)])


def last_pictures(trajectories: Sequence[trajectory_lib.Trajectory], *, size: int) -> list[np.ndarray]:
  """What each trajectory is scored by, uint8[size, size, 3]; a text that never came to a picture, by an empty one."""
  return [t.final if t.pictures else np.zeros((size, size, 3), np.uint8) for t in trajectories]


def evaluate(metadata: Mapping[str, Any], detections: Sequence[Found]) -> tuple[bool, str]:
  """Whether the detections keep the metadata, and why not (official `evaluate`; "" where they do).

  Every `include` clause needs `count` objects of its class; colour and position are those of the best-scored `count`;
  a position holds against every object of the clause it names. No `exclude` clause may reach its count.
  """
  objects = _by_class(metadata, detections)
  reasons: list[str] = []
  groups: list[Sequence[Found] | None] = []
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
  """Writes the pictures of each prompt: uint8[H, W, 3], or uint8[N, H, W, 3] for several."""
  if len(prompts) != len(pictures):
    raise ValueError(f'{len(prompts)} prompts but {len(pictures)} entries of pictures; give one entry a prompt.')
  for i, (metadata, entry) in enumerate(zip(prompts, pictures, strict=True)):
    samples = pathlib.Path(out, f'{i:05}', 'samples')
    samples.mkdir(parents=True, exist_ok=True)
    samples.with_name('metadata.jsonl').write_text(json.dumps(dict(metadata)) + '\n')
    entry = np.asarray(entry, np.uint8)
    for k, picture in enumerate(entry.reshape(-1, *entry.shape[-3:])):
      Image.fromarray(picture).save(samples / f'{k:04}.png')


def read_folder(out: str | pathlib.Path) -> tuple[list[dict[str, Any]], list[np.ndarray], list[str]]:
  """(prompts, pictures, file names) of a folder, one entry a picture.

  Raises: FileNotFoundError naming the folder if it holds no prompt with a picture.
  """
  rows = []
  for folder in sorted(p for p in pathlib.Path(out).glob('*') if p.is_dir() and p.name.isdigit()):
    metadata = json.loads((folder / 'metadata.jsonl').read_text())
    for path in sorted(p for p in (folder / 'samples').glob('*.png') if p.stem.isdigit()):
      with Image.open(path) as image:
        rows.append((metadata, np.asarray(image.convert('RGB')), path.relative_to(out).as_posix()))
  if not rows:
    raise FileNotFoundError(f'No GenEval pictures in {out}; expected <prompt number>/samples/<number>.png there.')
  prompts, pictures, names = zip(*rows, strict=True)
  return list(prompts), list(pictures), list(names)


def score_folder(out: str | pathlib.Path, detect: Detect) -> Report:
  """Scores every picture of a folder and writes `results.jsonl` into it."""
  prompts, pictures, names = read_folder(out)
  report = _report([_result(*args, detect) for args in zip(names, prompts, pictures, strict=True)])
  pathlib.Path(out, 'results.jsonl').write_text(''.join(json.dumps(dict(row)) + '\n' for row in report.results))
  return report


def read_results(out: str | pathlib.Path) -> Report:
  """The report of a folder's `results.jsonl`, be it ours or the official script's."""
  lines = pathlib.Path(out, 'results.jsonl').read_text().splitlines()
  return _report([json.loads(line) for line in lines if line.strip()])


# --- rules ---


def _by_class(metadata: Mapping[str, Any], detections: Sequence[Found]) -> dict[str, list[Found]]:
  threshold = COUNTING_THRESHOLD if metadata['tag'] == 'counting' else THRESHOLD
  found: dict[str, list[Found]] = {}
  for item in sorted(detections, key=lambda d: -d.score):
    if item.name is not None and item.score > threshold:
      found.setdefault(item.name, []).append(item)
  return {name: items[:MAX_OBJECTS] for name, items in found.items()}


def _broken_clause(
  clause: Mapping[str, Any], found: Sequence[Found], groups: Sequence[Sequence[Found] | None]
) -> str | None:
  """Why an `include` clause does not hold, or None. groups: the objects of the clauses before, None where broken."""
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


def _result(filename: str, metadata: Mapping[str, Any], picture: np.ndarray, detect: Detect) -> dict[str, Any]:
  detections = detect(picture)
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


def _report(results: list[dict[str, Any]]) -> Report:
  if not results:
    raise ValueError('No pictures to score.')
  tags = dict.fromkeys(row['tag'] for row in results)
  tasks = {tag: intervals.rate(row['correct'] for row in results if row['tag'] == tag) for tag in tags}
  overall = float(np.mean([r.value for r in tasks.values()]))
  below = math.sqrt(sum((r.value - r.interval[0]) ** 2 for r in tasks.values())) / len(tasks)
  above = math.sqrt(sum((r.interval[1] - r.value) ** 2 for r in tasks.values())) / len(tasks)
  low, high = max(0.0, overall - below), min(1.0, overall + above)
  return Report(tasks=tasks, overall=overall, low=low, high=high, results=tuple(results))


def _name(prompt: int, sample: int) -> str:
  return f'{prompt:05}/samples/{sample:04}.png'
