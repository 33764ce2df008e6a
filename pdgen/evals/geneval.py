"""GenEval evaluator: does a picture show the objects, counts, colours and positions that its prompt asks for?

`GenEval` paints the prompts into the official folder and scores it by the official rules with any detector
(`judges.base.Detector`). The rules are in `geneval_rules`, the folder in `geneval_folder`, figures and both official
summaries in `geneval_report`; the names that most callers need are here.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pdgen.core import modes
from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import base, geneval_folder, geneval_report, geneval_rules, painting, published
from pdgen.judges import base as judges_base
from pdgen.viewing import gallery, score_page

COLORS = geneval_rules.COLORS
TASKS = geneval_rules.TASKS
Rules = geneval_rules.Rules
Report = geneval_report.Report
evaluate = geneval_rules.evaluate
summary = geneval_report.summary
write_folder = geneval_folder.write
write_prompt = geneval_folder.write_prompt
read_folder = geneval_folder.read
score_folder = geneval_folder.score
read_results = geneval_folder.read_results
last_pictures = painting.last_pictures


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenEval:
  """Evaluator: paints each prompt and scores the last pictures (`evals.base.PictureEvaluator`).

  The picture of a prompt is a function of the painter, the prompt and its seed, in whichever batch it is painted. More
  samples of the same run may be asked for later: those that are there stay.
  """

  prompts: base.PromptSet | None  # rows are GenEval metadata; None: those of the folder, which is only scored
  detector: judges_base.Detector  # of the objects of a picture
  samples: int = 1  # pictures a prompt; the official number is 4
  mode: str = trajectory_lib.PROCESS  # or `direct`
  seed: int = 0  # of the first prompt; the next prompts take the next numbers
  batch_size: int | None = None  # trajectories painted together; None: as the painter does
  checkpoint: str = ''  # name of what the painter was loaded from: a folder is of one of them
  rules: geneval_rules.Rules = geneval_rules.OFFICIAL
  published: str | None = None  # table of `evals.published` to show beside the figures
  name: str = 'geneval'

  def run(self, painter: base.Painter, out: pathlib.Path | None) -> base.Scores:
    """Scores of a painter; `out` gets the official folder. Pictures that are there are not painted again."""
    if out is not None:
      return self._scores(out, self.paint(painter, out))
    todo = painting.jobs(self._prompts.texts, samples=self.samples, seed=self.seed)
    painted = painting.paint(painter, todo, mode=self.mode, batch_size=self.batch_size, write=None)
    last = painting.last_pictures(list(painted.trajectories.values()), size=painter.config.model.image_size)
    pictures = dict(zip(painted.trajectories, last, strict=True))
    ordered = sorted(pictures, key=lambda job: (job.number, job.sample))
    rows = [self._row(job, pictures[job]) for job in ordered]
    return self._told(geneval_report.Report.of(rows), painted, None)

  def paint(self, painter: base.Painter, out: pathlib.Path) -> painting.Painted:
    """Paints what is missing in the official folder. Raises: base.AnotherRunError for a folder of another run."""
    prompts = self._prompts
    base.claim(out, self._identity(painter))
    todo = [
      job
      for job in painting.jobs(prompts.texts, samples=self.samples, seed=self.seed)
      if not pathlib.Path(out, geneval_folder.name(job.number, job.sample)).is_file()
    ]

    def write(job: painting.Job, picture: np.ndarray):
      geneval_folder.write_prompt(out, job.number, prompts.rows[job.number], [picture], first=job.sample)

    return painting.paint(painter, todo, mode=self.mode, batch_size=self.batch_size, write=write)

  def score(self, out: pathlib.Path) -> base.Scores:
    """Scores of a folder, of ours or of another system. Raises: as `geneval_folder.score`."""
    return self._scores(out, None)

  @property
  def _prompts(self) -> base.PromptSet:
    if self.prompts is None:
      raise ValueError('There are no prompts to paint: give a set, or score a folder.')
    return self.prompts

  def _identity(self, painter: base.Painter) -> dict[str, Any]:
    settings = dict(evaluator=self.name, mode=self.mode, seed=self.seed, checkpoint=self.checkpoint)
    return base.identity(painter, self._prompts, **settings)

  def _row(self, job: painting.Job, picture: np.ndarray) -> dict[str, Any]:
    name = geneval_folder.name(job.number, job.sample)
    return geneval_folder.result(name, self._prompts.rows[job.number], picture, self.detector, rules=self.rules)

  def _scores(self, out: pathlib.Path, painted: painting.Painted | None) -> base.Scores:
    """Scores of a folder; of one that was just painted, exactly of the pictures that were asked for."""
    rows = None if self.prompts is None else self.prompts.rows
    if painted is not None:
      self._check(out)
    return self._told(geneval_folder.score(out, self.detector, prompts=rows, rules=self.rules), painted, out)

  def _check(self, out: pathlib.Path):
    """Raises AnotherRunError for a folder of ours that holds more than this run paints."""
    found = geneval_folder.listing(out)
    wanted = len(self._prompts.rows)
    if len(found.numbers) != wanted:
      raise base.AnotherRunError(f'{out} holds {len(found.numbers)} prompts, not {wanted}: see its folders.')
    if len(found.samples) != wanted * self.samples:
      told = f'{len(found.samples)} pictures, not {wanted * self.samples}'
      raise base.AnotherRunError(f'{out} holds {told}: give the number of samples that it was painted with.')

  def _told(self, report: geneval_report.Report, painted: painting.Painted | None, out: pathlib.Path | None):
    details = {}
    shown: list[trajectory_lib.Trajectory] = []
    if painted is not None and painted.trajectories:
      trajectories = list(painted.trajectories.values())
      details['eval/finished'] = float(np.mean([t.stop == trajectory_lib.FINISHED for t in trajectories]))
      if modes.of(self.mode).protocol is not None:
        details['eval/unreadable'] = float(np.mean([t.stop == trajectory_lib.UNREADABLE for t in trajectories]))
      details['eval/pictures'] = float(np.mean([len(t.pictures) for t in trajectories]))
      firsts: dict[str, trajectory_lib.Trajectory] = {}  # of each task, one to look at
      for job, trajectory in painted.trajectories.items():
        firsts.setdefault(self._prompts.rows[job.number]['tag'], trajectory)
      shown = [t for t in firsts.values() if t.pictures]
    return base.Scores(
      name=self.name,
      values=report.values,
      asked=report.asked if self.prompts is None else len(self.prompts.rows),
      answered=report.answered,
      rows=report.results,
      details=details,
      text=str(report) if painted is None else f'{report}\n{painted}',
      problems=report.problems,
      strip=gallery.filmstrip(shown) if shown else None,
      cards=() if out is None else tuple(card(row, out) for row in report.results),
      others=() if self.published is None else published.TABLES[self.published],
    )


def score(
  prompts: Sequence[Mapping[str, Any]], pictures: Sequence[np.ndarray], detector: judges_base.Detector
) -> geneval_report.Report:
  """Scores one picture a prompt.

  Args:
    prompts: GenEval metadata of each prompt.
    pictures: uint8[H, W, 3] each.
    detector: sees the objects of a picture.

  Raises: ValueError if the numbers of prompts and pictures differ, there are none, or one is no uint8[H, W, 3].
  """
  if len(prompts) != len(pictures):
    raise ValueError(f'{len(prompts)} prompts but {len(pictures)} pictures; give one picture a prompt.')
  for i, picture in enumerate(pictures):
    judges_base.check_picture(picture, whose=f' of prompt {i}')
  names = [geneval_folder.name(i, 0) for i in range(len(prompts))]
  rows = [geneval_folder.result(*args, detector) for args in zip(names, prompts, pictures, strict=True)]
  return geneval_report.Report.of(rows)


def card(row: Mapping[str, Any], out: pathlib.Path) -> score_page.Card:
  """A row of `results.jsonl` as it is shown on the page: its picture with the boxes that counted."""
  with Image.open(out / row['filename']) as image:
    size = image.size
  boxes = [
    score_page.Box((x0, y0, x1, y1), f'{name} {confidence:.2f}')
    for name, found in json.loads(row['details']).items()
    for x0, y0, x1, y1, confidence in found
  ]
  verdict = score_page.RIGHT if row['correct'] else score_page.WRONG
  return score_page.Card(row['filename'], row['prompt'], row['tag'], verdict, row['reason'], tuple(boxes), size)
