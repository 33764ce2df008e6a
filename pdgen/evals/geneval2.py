"""GenEval 2 evaluator: Soft-TIFA, the probability of the right answer to each question about a picture.

Prompts, questions and answers come from the user's copy of `geneval2_data.jsonl` (facebookresearch/GenEval2, CC BY-NC
4.0, not shipped here). The official answerer is Qwen3-VL-8B's probability of one word; here it is any judge
(`judges.base.Judge`): its verdict on "the answer to .. is .." with its confidence. Figures of other answerers cannot
be compared.

    <out>/pictures/00000.png     by the number of the prompt
    <out>/images.json            {prompt: picture}: the official evaluation reads it, and so does --score_only
    <out>/score_lists.json       a list of probabilities a prompt, in the order of the file; written if none is missing
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import base, intervals, judged_pictures, painting
from pdgen.judges import base as judges_base
from pdgen.viewing import score_page

SKILLS = ('object', 'attribute', 'count', 'position', 'verb')
IMAGES, SCORES, LOG = 'images.json', 'score_lists.json', 'judged.jsonl'


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenEval2:
  """Evaluator (`evals.base.PictureEvaluator`)."""

  prompts: base.PromptSet  # rows of `geneval2_data.jsonl`
  judge: judges_base.Judge
  judge_name: str = ''  # names it and its options; empty: answers are not kept
  threads: int = 1  # questions at once; a judge of a chat model is safe for them
  mode: str = trajectory_lib.PROCESS
  seed: int = 0  # of the first prompt
  batch_size: int | None = None
  checkpoint: str = ''
  name: str = 'geneval2'

  def run(self, painter: base.Painter, out: pathlib.Path | None) -> base.Scores:
    """Paints what is missing, then scores. Raises: ValueError without a folder."""
    if out is None:
      raise ValueError('GenEval 2 needs a folder: --out.')
    self.paint(painter, out)
    return self.score(out)

  def paint(self, painter: base.Painter, out: pathlib.Path) -> painting.Painted:
    """Paints what is missing. Raises: base.AnotherRunError."""
    settings = dict(evaluator=self.name, mode=self.mode, seed=self.seed, checkpoint=self.checkpoint)
    base.claim(out, base.identity(painter, self.prompts, **settings))
    jobs = painting.jobs(self.prompts.texts, seed=self.seed)
    todo = [job for job in jobs if not (out / _file(job.number)).is_file()]

    def write(job: painting.Job, picture: np.ndarray):
      judged_pictures.save(out / _file(job.number), picture)

    painted = painting.paint(painter, todo, mode=self.mode, batch_size=self.batch_size, write=write)
    files = {text: _file(number) for number, text in enumerate(self.prompts.texts)}
    base.write_atomically(out / IMAGES, json.dumps(files, indent=1) + '\n')
    return painted

  def score(self, out: pathlib.Path) -> base.Scores:
    """Scores of the pictures that `images.json` names. Raises: FileNotFoundError without one; services.errors."""
    files = dict(json.loads((out / IMAGES).read_text(encoding='utf-8')))
    rows = {row['prompt']: row for row in self.prompts.rows}
    asked = [
      judged_pictures.Asked(files[text], {'questions': row['vqa_list']})
      for text, row in rows.items()
      if text in files and (out / files[text]).is_file()
    ]
    if not asked:
      raise FileNotFoundError(f'No picture that {out / IMAGES} names is there.')
    answers, problems = judged_pictures.judge(
      out, asked, self._rate, identity=self.judge_name or None, log=LOG, threads=self.threads
    )
    lists = {text: answers[files[text]]['scores'] for text in rows if files.get(text) in answers}
    problems += [f'{text}: no picture' for text in rows if text not in lists and files.get(text) not in answers]
    if len(lists) == len(rows):
      base.write_atomically(out / SCORES, json.dumps([lists[text] for text in rows]) + '\n')
    if not lists:
      raise ValueError(f'No picture was judged. {problems[0]}')
    return base.Scores(
      name=self.name,
      values=figures([rows[text] for text in lists], list(lists.values())),
      asked=len(rows),
      answered=len(lists),
      rows=[{'prompt': text, 'scores': scores, **_said(answers[files[text]])} for text, scores in lists.items()],
      problems=problems,
      cards=[_card(files[text], rows[text], answers[files[text]]) for text in lists],
    )

  def _rate(self, about: Mapping[str, Any], picture: np.ndarray) -> dict[str, Any]:
    scores, reasons = [], []
    for question, answer in about['questions']:
      text = f'The right one-word answer to the question "{question}" about this picture is "{answer}".'
      verdict = self.judge.judge(judges_base.Question(prompt=text, picture=picture))
      scores.append(probability(verdict))
      reasons.append('' if verdict.ok else f'{question} not {answer}: {verdict.reason}')
    return {'scores': scores, 'reasons': reasons}


def probability(verdict: judges_base.Verdict) -> float:
  """Of being right, by a judge.

  >>> probability(judges_base.Verdict(ok=False, confidence=0.75))
  0.25
  """
  return verdict.confidence if verdict.ok else 1 - verdict.confidence


def figures(rows: Sequence[Mapping[str, Any]], lists: Sequence[Sequence[float]]) -> dict[str, intervals.Estimate]:
  """Soft-TIFA: over prompts `am` (arithmetic) and `gm` (geometric mean of a prompt), by skill, by number of atoms.

  Args:
    rows: of the prompts, with `skills` and `atom_count`.
    lists: the probabilities of each.

  Returns: as the official analysis has them: a skill by its atoms (arithmetic), numbers of atoms by prompts
  (geometric).
  """
  geometric = [_geometric(scores) for scores in lists]
  values = {
    'soft_tifa_am': intervals.mean([float(np.mean(s)) for s in lists]),
    'soft_tifa_gm': intervals.mean(geometric),
  }
  for skill in SKILLS:
    sums, counts = [], []
    for row, scores in zip(rows, lists, strict=True):
      of = [s for s, name in zip(scores, row['skills'], strict=True) if name == skill]
      if of:
        sums.append(sum(of))
        counts.append(len(of))
    if counts:
      interval = intervals.bootstrap(sums, weights=counts)
      values[f'skill_{skill}'] = intervals.Estimate(sum(sums) / sum(counts), *interval, sum(counts))
  for count in sorted({row['atom_count'] for row in rows}):
    picked = [g for row, g in zip(rows, geometric, strict=True) if row['atom_count'] == count]
    values[f'atoms_{count}'] = intervals.mean(picked)
  return values


def read_prompts(path: str | pathlib.Path) -> base.PromptSet:
  """The official file. Raises: ValueError naming the first row that is damaged or of a prompt that was there before."""
  rows = base.read_rows(path, 'prompt', 'atom_count', 'vqa_list', 'skills')
  seen: set[str] = set()
  for number, row in enumerate(rows, 1):
    questions, skills = row['vqa_list'], row['skills']
    pairs = isinstance(questions, list) and all(isinstance(q, list) and len(q) == 2 for q in questions)
    if not pairs or not questions or len(questions) != len(skills) or not set(skills) <= set(SKILLS):
      raise ValueError(f'{path}, row {number}: it needs as many skills of {SKILLS} as pairs of question and answer.')
    if row['prompt'] in seen:
      raise ValueError(f'{path}, row {number}: the prompt {row["prompt"]!r} again.')
    seen.add(row['prompt'])
  return base.PromptSet(pathlib.Path(path).stem, tuple(rows))


def _geometric(scores: Sequence[float]) -> float:
  return 0.0 if min(scores) <= 0 else math.exp(sum(map(math.log, scores)) / len(scores))


def _file(number: int) -> str:
  return f'pictures/{number:05}.png'


def _said(answer: Mapping[str, Any]) -> dict[str, Any]:
  return {'reasons': answer['reasons']}


def _card(name: str, row: Mapping[str, Any], answer: Mapping[str, Any]) -> score_page.Card:
  least = min(answer['scores'])
  verdict = (
    score_page.RIGHT if least >= 0.5 else score_page.PARTLY if max(answer['scores']) >= 0.5 else score_page.WRONG
  )
  reason = '\n'.join(filter(None, answer['reasons']))
  return score_page.Card(name, row['prompt'], f'{row["atom_count"]} atoms', verdict, reason)
