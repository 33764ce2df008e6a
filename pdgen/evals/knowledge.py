"""Knowledge: prompts that name what is wanted by a fact, beside plain prompts for the same (the WISE of a small world).

Every prompt is painted twice with the same seed: as it is, and **plainly**, in the world's own words for what it
resolves to. What both get wrong is a matter of painting; the difference is a matter of knowing. The figures are told
apart by split, how the fact or its phrasing was held out (`worlds.base.KnowingWorld`), and by kind of fact:

    <split>, <split>/<kind>   right paintings
    heldout                   mean of the splits that are held out
    plain/<split>             right paintings of the plain prompts
    cost/<split>              plain right minus right, prompt by prompt
    known/<split>             right, of those whose plain prompt is painted right
    said/<split>              process mode: the last plan describes a picture that would be right
    done/<split>              process mode: right paintings of those whose last plan would be right

`Knowledge` is the evaluator; the folder that it is given gets

    rows.jsonl                one line a painting; it grows batch by batch
    fact/00000.png            the last pictures
    plain/00000.png
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pdgen import judges, worlds
from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import base, geneval, intervals, judged_pictures, painting
from pdgen.judges import base as judges_base
from pdgen.viewing import score_page
from pdgen.worlds import base as world_base

FACT, PLAIN = 'fact', 'plain'
_ROWS = 'rows.jsonl'

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knowledge:
  """Evaluator: does the picture show what a fact in its prompt resolves to (`evals.base.Evaluator`)?

  A row has `number`, `asked` (`fact` or `plain`), `split`, `knowledge`, `tag`, `prompt`, `correct`, `reason`, `said`
  (None without a plan or without `described`), `filename`, `size` and the `boxes` that were found.
  """

  prompts: base.PromptSet  # rows of `worlds.base.KnowingWorld.knowledge_prompts`
  detector: judges_base.Detector  # of the objects of a picture
  trained: str = 'trained'  # the split that is not held out
  described: Callable[[str], np.ndarray | None] | None = (
    None  # a picture of what a plan describes; None: plans are not read
  )
  mode: str = trajectory_lib.PROCESS  # or `direct`
  seed: int = 0  # of the first prompt; the next prompts take the next numbers
  batch_size: int | None = None  # trajectories painted together; None: as the painter does
  checkpoint: str = ''  # name of what the painter was loaded from: a folder is of one of them
  name: str = 'knowledge'

  def run(self, painter: base.Painter, out: pathlib.Path | None) -> base.Scores:
    """Scores of a painter. Prompts whose rows are in `out` are not painted again. Raises: base.AnotherRunError."""
    rows: dict[tuple[str, int], Row] = {}
    if out is not None:
      settings = dict(evaluator=self.name, mode=self.mode, seed=self.seed, checkpoint=self.checkpoint)
      base.claim(out, base.identity(painter, self.prompts, **settings))
      rows = self._kept(out / _ROWS)
    for asked in (FACT, PLAIN):
      texts = self.prompts.texts if asked == FACT else [row['plain'] for row in self.prompts.rows]
      todo = [job for job in painting.jobs(texts, seed=self.seed) if (asked, job.number) not in rows]
      size = painting.CALL * (self.batch_size or painting.BATCH)
      for first in range(0, len(todo), size):
        batch = todo[first : first + size]
        painted = painting.paint(painter, batch, mode=self.mode, batch_size=self.batch_size, write=None).trajectories
        pictures = painting.last_pictures(list(painted.values()), size=painter.config.model.image_size)
        for (job, trajectory), picture in zip(painted.items(), pictures, strict=True):
          rows[asked, job.number] = self._row(asked, job, trajectory, picture)
          if out is not None:
            judged_pictures.save(out / rows[asked, job.number]['filename'], picture)
        if out is not None:
          base.write_atomically(out / _ROWS, ''.join(json.dumps(rows[key]) + '\n' for key in sorted(rows)))
    ordered = [rows[key] for key in sorted(rows)]
    values = figures(ordered, trained=self.trained)
    return base.Scores(
      name=self.name,
      values=values,
      asked=len(self.prompts.rows),
      answered=len(self.prompts.rows),
      rows=ordered,
      text=table(values),
      cards=() if out is None else tuple(map(_card, ordered)),
    )

  def _kept(self, path: pathlib.Path) -> dict[tuple[str, int], Row]:
    if not path.is_file():
      return {}
    rows = {(row['asked'], row['number']): row for row in base.read_rows(path, 'asked', 'number', 'correct', 'said')}
    if any(number >= len(self.prompts.rows) for _, number in rows):
      raise ValueError(f'{path} has rows of other prompts: it is of another run. Delete it.')
    return rows

  def _row(self, asked: str, job: painting.Job, trajectory: trajectory_lib.Trajectory, picture: np.ndarray) -> Row:
    prompt = self.prompts.rows[job.number]
    found = self.detector.detect(picture)
    correct, reason = geneval.evaluate(prompt, found)
    return {
      'number': job.number,
      'asked': asked,
      **{name: prompt[name] for name in ('split', 'knowledge', 'tag')},
      'prompt': job.prompt,
      'correct': correct,
      'reason': reason,
      'said': self._said(prompt, trajectory),
      'filename': f'{asked}/{job.number:05}.png',
      'size': [picture.shape[1], picture.shape[0]],
      'boxes': [[' '.join(filter(None, (one.color, one.name or 'something'))), *one.box] for one in found],
    }

  def _said(self, prompt: Mapping[str, Any], trajectory: trajectory_lib.Trajectory) -> bool | None:
    """Whether the last plan describes what the prompt resolves to."""
    plans = [plan for step in trajectory.steps for plan in (step.plan, step.corrected_plan) if plan is not None]
    if self.described is None or self.mode == trajectory_lib.DIRECT:
      return None
    picture = self.described(plans[-1]) if plans else None
    return picture is not None and geneval.evaluate(prompt, self.detector.detect(picture))[0]


def of_world(world: Any, *, per_kind: int, prompts_seed: int = 0, **options: Any) -> Knowledge:
  """The evaluator of the facts of a world.

  Args:
    world: a `worlds.base.KnowingWorld`.
    per_kind: prompts of each kind of fact and split.
    prompts_seed: of their order.
    options: of `Knowledge`.

  Raises: ValueError for a world without facts.
  """
  knowing = worlds.require(world, world_base.KnowingWorld)
  of_split = lambda split: knowing.knowledge_prompts(split, per_kind=per_kind, seed=prompts_seed)
  return Knowledge(
    prompts=base.PromptSet(
      f'{world.__name__}:knowledge', tuple(row for split in knowing.KNOWLEDGE_SPLITS for row in of_split(split))
    ),
    detector=judges.detector('exact', world),
    trained=knowing.KNOWLEDGE_SPLITS[0],
    described=knowing.described,
    **options,
  )


def figures(rows: Sequence[Row], *, trained: str) -> dict[str, intervals.Estimate]:
  """Figures by name (see the module), each with its 95 % interval: Wilson's; of differences the bootstrap.

  Args:
    rows: of `Knowledge`, of both ways of asking.
    trained: the split that is not held out.
  """
  fact, plain = ({row['number']: row for row in rows if row['asked'] == asked} for asked in (FACT, PLAIN))
  splits = list(dict.fromkeys(row['split'] for row in rows))
  right = lambda of: intervals.rate(row['correct'] for row in of).estimate
  values, more = {}, {}
  for split in splits:
    of = {number: row for number, row in fact.items() if row['split'] == split}
    values[split] = right(of.values())
    for kind in dict.fromkeys(row['knowledge'] for row in of.values()):
      more[f'{split}/{kind}'] = right([row for row in of.values() if row['knowledge'] == kind])
    pairs = [(row['correct'], plain[number]['correct']) for number, row in of.items() if number in plain]
    more[f'plain/{split}'] = right([plain[number] for number in of if number in plain])
    more[f'cost/{split}'] = intervals.ratio([int(plainly) - int(by_fact) for by_fact, plainly in pairs])
    more[f'known/{split}'] = intervals.rate(by_fact for by_fact, plainly in pairs if plainly).estimate
    said = [row for row in of.values() if row['said'] is not None]
    if said:
      more[f'said/{split}'] = intervals.rate(row['said'] for row in said).estimate
      more[f'done/{split}'] = right([row for row in said if row['said']])
  heldout = [values[split] for split in splits if split != trained]
  if heldout:
    values['heldout'] = intervals.combined(heldout)
  return values | more


def table(values: Mapping[str, intervals.Estimate]) -> str:
  """A line a split and kind, a column a figure."""
  columns = [
    name for name in ('plain', 'cost', 'known', 'said', 'done') if any(v.startswith(name + '/') for v in values)
  ]
  lines = [name for name in values if name.partition('/')[0] not in columns]
  cells = [['', 'right', *columns]]
  for line in sorted(lines, key=lambda name: (name != 'heldout', name)):
    cells.append([line, _cell(values[line]), *(_cell(values.get(f'{column}/{line}')) for column in columns)])
  widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
  return '\n'.join('  '.join(f'{c:<{w}}' for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def _cell(e: intervals.Estimate | None) -> str:
  return '-' if e is None or not e.count else f'{e.value:.3f} ({e.low:.3f} to {e.high:.3f}) of {e.count}'


def _card(row: Row) -> score_page.Card:
  verdict = score_page.RIGHT if row['correct'] else score_page.WRONG
  boxes = tuple(score_page.Box(tuple(box), label) for label, *box in row['boxes'])
  task = f'{row["split"]}/{row["knowledge"]}' if row['asked'] == FACT else f'plain/{row["split"]}'
  said = '' if row['said'] is None else f' (the plan is {"right" if row["said"] else "wrong"})'
  return score_page.Card(row['filename'], row['prompt'], task, verdict, row['reason'] + said, boxes, tuple(row['size']))
