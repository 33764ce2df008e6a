"""GenEval's figures from its rows: rates by task with intervals, both official summaries (pictures, prompts).

A row is a line of the official `results.jsonl`: filename, tag, prompt, correct, reason, metadata, details.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdgen.evals import intervals

_NAMED = 5  # of a list of names, those that a text gives


@dataclasses.dataclass(frozen=True)
class Summary:
  """What the official `summary_scores.py` prints.

  A prompt is right if any of its pictures is. Prompts with equal metadata are one prompt (pandas' groupby): of 600
  held-out prompts of a small world there are fewer. Figures per task are over pictures, and so is the overall score.
  """

  images: int
  prompts: int
  correct_images: float  # share
  correct_prompts: float  # share
  tasks: Mapping[str, tuple[float, int, int]]  # tag -> share, right, total; in the order of appearance
  overall: float  # mean of the shares of the tasks

  def __str__(self) -> str:
    lines = ['Summary', '=======', f'Total images: {self.images}', f'Total prompts: {self.prompts}']
    lines += [f'% correct images: {self.correct_images:.2%}', f'% correct prompts: {self.correct_prompts:.2%}']
    lines += ['', 'Task breakdown', '==============']
    lines += [f'{tag:<16} = {share:.2%} ({right} / {total})' for tag, (share, right, total) in self.tasks.items()]
    return '\n'.join([*lines, '', f'Overall score (avg. over tasks): {self.overall:.5f}'])


def summary(rows: Sequence[Mapping[str, Any]]) -> Summary:
  """Both official summaries. Raises: ValueError without rows."""
  if not rows:
    raise ValueError('No pictures to score.')
  tasks: dict[str, list[bool]] = {}
  prompts: dict[str, bool] = {}
  for row in rows:
    tasks.setdefault(row['tag'], []).append(row['correct'])
    prompts[row['metadata']] = prompts.get(row['metadata'], False) or row['correct']
  shares = {tag: (float(np.mean(right)), sum(right), len(right)) for tag, right in tasks.items()}
  return Summary(
    images=len(rows),
    prompts=len(prompts),
    correct_images=sum(row['correct'] for row in rows) / len(rows),
    correct_prompts=sum(prompts.values()) / len(prompts),
    tasks=shares,
    overall=float(np.mean([share for share, _, _ in shares.values()])),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """The scores of a set of pictures.

  Prompts without a picture that could be scored are in no rate: `missing` names them, and the text says how many
  prompts the scores rest on. The interval of a task resamples its prompts (`intervals.ClusteredRate`), and that of
  `overall` combines those of the tasks (`intervals.combined`).
  """

  tasks: Mapping[str, intervals.Rate]  # tag to the rate of right pictures, in the order of appearance
  prompts: intervals.Rate  # prompts (folders) of which any picture is right
  overall: float  # mean over tasks (official)
  low: float  # lower end of its interval
  high: float  # upper end of its interval
  results: tuple[Mapping[str, Any], ...]  # one row a picture
  missing: tuple[int, ...] = ()  # numbers of the prompts without a scored picture
  problems: tuple[str, ...] = ()  # what was left out or is doubtful, each by its file's name

  @classmethod
  def of(
    cls, results: Sequence[Mapping[str, Any]], *, missing: Sequence[int] = (), problems: Sequence[str] = ()
  ) -> 'Report':
    """The report of rows. Raises: ValueError without rows."""
    if not results:
      raise ValueError('No pictures to score.')
    of: dict[str, list[tuple[str, bool]]] = {}
    right: dict[str, bool] = {}
    for row in results:
      prompt = _folder(row)
      of.setdefault(row['tag'], []).append((prompt, row['correct']))
      right[prompt] = right.get(prompt, False) or row['correct']
    tasks = {tag: intervals.clustered_rate(answers) for tag, answers in of.items()}
    overall = intervals.combined([r.estimate for r in tasks.values()])
    return cls(
      tasks=tasks,
      prompts=intervals.rate(right.values()),
      overall=overall.value,
      low=overall.low,
      high=overall.high,
      results=tuple(results),
      missing=tuple(missing),
      problems=tuple(problems),
    )

  @property
  def answered(self) -> int:
    """Prompts that the scores rest on."""
    return len({_folder(row) for row in self.results})

  @property
  def asked(self) -> int:
    """Prompts that there are."""
    return self.answered + len(self.missing)

  @property
  def images(self) -> intervals.Rate:
    """All pictures that are right, whatever their task."""
    return intervals.clustered_rate((_folder(row), row['correct']) for row in self.results)

  @property
  def failures(self) -> list[Mapping[str, Any]]:
    return [row for row in self.results if not row['correct']]

  @property
  def values(self) -> dict[str, intervals.Estimate]:
    """Figures by name: the tasks, then `images` and `prompts` (the first official summary), then `overall`."""
    overall = intervals.Estimate(self.overall, self.low, self.high, len(self.results))
    more = {'images': self.images.estimate, 'prompts': self.prompts.estimate, 'overall': overall}
    return {**{task: r.estimate for task, r in self.tasks.items()}, **more}

  def __str__(self) -> str:
    rates = {**self.tasks, 'images': self.images, 'prompts': self.prompts}
    lines = [
      f'{tag:<16} = {r.value:7.2%} [{r.interval[0]:.3f}, {r.interval[1]:.3f}] ({r.hits} / {r.total})'
      for tag, r in rates.items()
    ]
    lines.append(f'{"overall":<16} = {self.overall:7.2%} [{self.low:.3f}, {self.high:.3f}]')
    if self.missing:
      names = named([f'{number:05}' for number in self.missing])
      lines.append(f'These figures rest on {self.answered} of {self.asked} prompts; without a picture: {names}.')
    return '\n'.join(lines)


def named(names: Sequence[str]) -> str:
  """The first names of a list.

  >>> named(['a', 'b'])
  'a, b'
  """
  return ', '.join(names[:_NAMED]) + (', ..' if len(names) > _NAMED else '')


def _folder(row: Mapping[str, Any]) -> str:
  """What the pictures of one prompt have in common: <folder>/samples/<picture>."""
  return pathlib.PurePosixPath(row['filename']).parent.parent.as_posix()
