"""WISE's scores: categories by prompt number, weights, the judge's lines, and files of answers with all that is wrong.

WISE (PKU-YuanGroup/WISE, arXiv 2503.07265) comes in two versions, whose figures cannot be compared: the legacy one
(GPT-4o; consistency, realism and aesthetic quality, 0 to 2 each, as 0.7, 0.2, 0.1) and WISE_Verified (an open judge;
right or wrong), with other prompts and other numbers of prompts a category.

Two means are given, by name. `official` weights the categories as the official scripts do. `unweighted` is the mean
over categories: the overalls of the paper's table are such means (with official weights its .76 is .754).

Quirks of the official scripts, not kept, because they average away what is missing: a line whose value is no number
counts as present; two lines of one prompt are both averaged in; numbers are not held to their range (7 counts as 7).
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pdgen.evals import geneval_report, intervals

UNWEIGHTED, OFFICIAL = 'unweighted', 'official'


@dataclasses.dataclass(frozen=True)
class Category:
  """Prompts of one kind."""

  name: str
  first: int  # number of its first prompt
  last: int  # number of its last prompt
  weight: float  # in the official overall


@dataclasses.dataclass(frozen=True)
class Version:
  """One of the two benchmarks."""

  name: str
  metrics: Mapping[str, float]  # what the judge rates, and its weight
  most: int  # best value of a metric; the worst is 0
  categories: tuple[Category, ...]

  def score(self, values: Mapping[str, float]) -> float:
    """Of one picture, from 0 to 1.

    >>> round(LEGACY.score({'consistency': 2, 'realism': 1, 'aesthetic_quality': 0}), 3)
    0.8
    """
    return sum(weight * values[name] for name, weight in self.metrics.items()) / self.most

  def category(self, prompt_id: int) -> Category | None:
    return next((c for c in self.categories if c.first <= prompt_id <= c.last), None)


def _categories(*rows: tuple[str, int, int, float]) -> tuple[Category, ...]:
  return tuple(Category(*row) for row in rows)


LEGACY = Version(
  'wise_legacy',
  {'consistency': 0.7, 'realism': 0.2, 'aesthetic_quality': 0.1},
  2,
  _categories(
    ('CULTURE', 1, 400, 0.4),
    ('TIME', 401, 567, 0.167),
    ('SPACE', 568, 700, 0.133),
    ('BIOLOGY', 701, 800, 0.1),
    ('PHYSICS', 801, 900, 0.1),
    ('CHEMISTRY', 901, 1000, 0.1),
  ),
)
VERIFIED = Version(
  'wise_verified',
  {'score': 1.0},
  1,
  _categories(
    ('CULTURE', 1, 400, 0.4),
    ('TIME', 401, 520, 0.12),
    ('SPACE', 521, 640, 0.12),
    ('BIOLOGY', 641, 760, 0.12),
    ('PHYSICS', 761, 880, 0.12),
    ('CHEMISTRY', 881, 1000, 0.12),
  ),
)
VERSIONS = {'legacy': LEGACY, 'verified': VERIFIED}


def parse(text: str, version: Version) -> tuple[dict[str, int] | None, str]:
  """The values in a judge's answer, or None and what is wrong with it.

  Takes `Consistency: 2`, bold labels, `2/2`, JSON, and bare lines of numbers; thoughts before the answer are left
  out. An answer that says two values of one metric says none.

  >>> parse('**Consistency**: 2\\nRealism: 1/2\\nAesthetic Quality: 0', LEGACY)
  ({'consistency': 2, 'realism': 1, 'aesthetic_quality': 0}, '')
  >>> parse('Consistency: 3', LEGACY)
  (None, 'consistency is 3, not one of 0, 1, 2')
  """
  text = re.sub(r'<think>.*?</think>|^.*?</think>', '', text, flags=re.DOTALL)
  found: dict[str, set[str]] = {}
  for name in version.metrics:
    label = name.replace('_', r'[ _]')
    pattern = rf'\b{label}\b["\'*_\s]*(?:\([^)]*\))?["\'*_\s]*[:\uff1a=]?["\'*_\s]*(-?\d+(?:\.\d+)?)'
    if values := set(re.findall(pattern, text, re.IGNORECASE)):
      found[name] = values
  if not found:
    bare = re.findall(r'(?m)^[\s*]*(-?\d+(?:\.\d+)?)[\s*]*$', text)
    if len(bare) == len(version.metrics):
      found = {name: {value} for name, value in zip(version.metrics, bare, strict=True)}
  values = {}
  for name in version.metrics:
    said = sorted(found.get(name, ()))
    if len(said) != 1:
      return None, f'{name} is {" and ".join(said)}' if said else f'no {name}'
    wrong = _wrong_value(float(said[0]), version)
    if wrong:
      return None, f'{name} is {said[0]}, {wrong}'
    values[name] = int(float(said[0]))
  return values, ''


@dataclasses.dataclass(frozen=True)
class Reading:
  """Answers that count, and what is wrong with those that do not."""

  entries: Mapping[int, Mapping[str, float]]  # prompt's number -> value of each metric
  problems: tuple[str, ...]


def read_results(paths: Sequence[str | pathlib.Path], version: Version) -> Reading:
  """Reads official `*_scores_results.jsonl` files, or JSON lists, of any system.

  Nothing that is doubtful counts: numbers as texts, values out of range, numbers of no prompt, two answers that
  differ, lines that are cut. Each is named by file and line.

  Raises: OSError for a file that cannot be read.
  """
  problems: list[str] = []
  found: dict[int, tuple[dict[str, float], str]] = {}
  disputed: set[int] = set()
  for place, entry, what in (line for path in paths for line in _entries(pathlib.Path(path))):
    wrong = what or _wrong(entry, version)
    if wrong:
      problems.append(f'{place}: {wrong}')
      continue
    number = entry['prompt_id']
    values = {name: entry[name] for name in version.metrics}
    if number not in found:
      found[number] = (values, place)
    elif found[number][0] == values:
      problems.append(f'{place}: prompt {number} again, as in {found[number][1]}; it counts once')
    else:
      problems.append(f'{place}: prompt {number} again, otherwise than in {found[number][1]}; neither counts')
      disputed.add(number)
  return Reading({n: values for n, (values, _) in sorted(found.items()) if n not in disputed}, tuple(problems))


def figures(
  entries: Mapping[int, Mapping[str, float]], version: Version, *, asked: Sequence[int]
) -> tuple[dict[str, intervals.Estimate], list[str]]:
  """Figures by name, and what is missing.

  Args:
    entries: values of each prompt.
    version: of the benchmark.
    asked: numbers of the prompts that there should be.

  Returns: a mean a category with the bootstrap's interval over prompts, then `unweighted` and `official`; nan where a
    category has none.
  """
  wanted = set(asked)
  problems = [f'prompt {n}: not among those asked; it does not count' for n in sorted(set(entries) - wanted)]
  missing = [n for n in asked if n not in entries]
  if missing:
    problems.append(f'without a score: {len(missing)} of {len(asked)} prompts: {ranges(missing)}')
  values: dict[str, intervals.Estimate] = {}
  for category in version.categories:
    scores = [version.score(v) for n, v in entries.items() if n in wanted and category.first <= n <= category.last]
    values[category.name] = intervals.mean(scores)
  means = list(values.values())
  values[UNWEIGHTED] = intervals.combined(means)
  values[OFFICIAL] = intervals.combined(means, weights=[c.weight for c in version.categories])
  return values, problems


def ranges(numbers: Sequence[int]) -> str:
  """Numbers in words.

  >>> ranges([1, 2, 3, 7])
  '1-3, 7'
  """
  runs: list[list[int]] = []
  for n in sorted(numbers):
    if runs and runs[-1][1] == n - 1:
      runs[-1][1] = n
    else:
      runs.append([n, n])
  return geneval_report.named([str(a) if a == b else f'{a}-{b}' for a, b in runs])


def _entries(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any], str]]:
  """(place, entry, what is wrong with the line) of a file; where something is wrong the entry is empty."""
  text = path.read_text(encoding='utf-8', errors='replace')
  if text.lstrip().startswith('['):
    try:
      whole = json.loads(text)
    except ValueError as error:
      yield path.name, {}, f'no JSON ({error})'
      return
    for number, entry in enumerate(whole, 1):
      yield f'{path.name}, entry {number}', *_object(entry)
    return
  for number, line in enumerate(text.splitlines(), 1):
    place = f'{path.name}, line {number}'
    if line.strip():
      try:
        yield place, *_object(json.loads(line))
      except (ValueError, RecursionError):
        yield place, {}, 'no whole JSON object'


def _object(entry: Any) -> tuple[dict[str, Any], str]:
  return (entry, '') if isinstance(entry, dict) else ({}, f'a {type(entry).__name__}, no JSON object')


def _wrong(entry: Mapping[str, Any], version: Version) -> str:
  """What is wrong with an entry; empty if nothing is."""
  number = entry.get('prompt_id')
  if number is None:
    return 'no prompt_id'
  if isinstance(number, bool) or not isinstance(number, int):
    return f'prompt_id is {number!r}, no whole number'
  if version.category(number) is None:
    return f'prompt_id {number} is out of range: 1 to {version.categories[-1].last}'
  for name in version.metrics:
    wrong = _wrong_value(entry.get(name), version)
    if wrong:
      return (
        f'prompt {number}: {name} is {entry.get(name)!r}, {wrong}' if name in entry else f'prompt {number}: no {name}'
      )
  return ''


def _wrong_value(value: Any, version: Version) -> str:
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return 'no number'
  allowed = range(version.most + 1)
  return '' if math.isfinite(value) and value in allowed else f'not one of {", ".join(map(str, allowed))}'
