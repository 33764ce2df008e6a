"""WISE evaluator: does a picture show what one must know to understand its prompt? Judged by a vision-language model.

    <out>/1.png .. 1000.png           the pictures, by the prompt's number (official)
    <out>/scores_results.jsonl        one line a prompt, as the official evaluation writes it
    <out>/judged.jsonl                the judge's answers as they come, with what they rest on
    <out>/run.json                    what the pictures were made from (ours)

The judge is any OpenAI-compatible server (`services.chat`). The official wording belongs to the benchmark and is not
copied here: `WORDING` asks for the same three figures, or the same verdict, in words of ours. For figures to be set
beside published ones, give the official text by `--wording` and the official judge (GPT-4o-2024-05-13;
Qwen3.5-35B-A3B).
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import base, judged_pictures, painting, published, wise_rules
from pdgen.services import chat as chat_lib
from pdgen.viewing import score_page

RESULTS, LOG = 'scores_results.jsonl', 'judged.jsonl'
_TRIES = 3  # answers asked for, if one cannot be read (official)
_END = '\n\nPrompt: {PROMPT}\nWhat it means: {EXPLANATION}\n\n'
WORDING = {
  'wise_legacy': (
    'You rate a picture that was painted for a prompt. What the prompt means is explained: a picture of its words '
    'alone, without what they mean, is wrong. Be strict: when in doubt, take the lower figure.\n'
    'Consistency, 0 to 2: 0 misses or contradicts what is meant, 1 shows a part of it, 2 shows all of it.\n'
    'Realism, 0 to 2: 0 cannot be or looks artificial, 1 has flaws, 2 could be a photograph.\n'
    'Aesthetic Quality, 0 to 2: 0 is badly composed, 1 is acceptable, 2 is outstanding.'
    + _END
    + 'Answer with three lines and nothing else:\nConsistency: 0, 1 or 2\nRealism: 0, 1 or 2\n'
    'Aesthetic Quality: 0, 1 or 2'
  ),
  'wise_verified': (
    'You judge a picture that was painted for a prompt. What the prompt means is explained: a picture of its words '
    'alone, without what they mean, is wrong. Beauty and style do not matter. The picture is right (1) if it shows '
    'what is meant with all its objects, states and relations, clearly enough to be sure; else, and when in doubt, it '
    'is wrong (0).' + _END + 'Answer with one line and nothing else: Score: 0 or Score: 1'
  ),
}


@dataclasses.dataclass(frozen=True)
class WiseJudge:
  """Asks a chat model for WISE's figures. Safe for threads."""

  chat: chat_lib.Chat
  version: wise_rules.Version
  wording: str = ''  # with {PROMPT} and {EXPLANATION}; empty: WORDING

  @property
  def identity(self) -> str:
    text = self.wording or WORDING[self.version.name]
    return f'{self.version.name} {self.chat.name} {hashlib.sha256(text.encode()).hexdigest()[:16]}'

  def rate(self, about: Mapping[str, Any], picture: np.ndarray) -> dict[str, Any]:
    """Values, the text that they were read from, and who wrote it.

    Args:
      about: `Prompt` and `Explanation`.
      picture: uint8[H, W, 3].

    Raises: ValueError if no answer of three can be read; `services.errors`.
    """
    text = self.wording or WORDING[self.version.name]
    text = text.replace('{PROMPT}', about['Prompt']).replace('{EXPLANATION}', about['Explanation'])
    wrong = ''
    for seed in (None, *range(1, _TRIES)):
      answer = self.chat.ask([chat_lib.Message('user', text, (picture,))], seed=seed)
      values, wrong = wise_rules.parse(answer.text, self.version)
      if values is not None:
        return {**values, 'text': answer.text, 'by': answer.by}
    raise ValueError(f'no answer of {_TRIES} can be read: {wrong}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wise:
  """Evaluator (`evals.base.PictureEvaluator`)."""

  prompts: base.PromptSet  # rows of the official file
  version: wise_rules.Version
  judge: WiseJudge | None = None  # None: answers are in `results`
  results: Sequence[str] = ()  # someone's files of answers, scored in place of pictures
  mode: str = trajectory_lib.PROCESS
  seed: int = 0  # of the first prompt
  batch_size: int | None = None
  checkpoint: str = ''

  @property
  def name(self) -> str:
    return self.version.name

  def run(self, painter: base.Painter, out: pathlib.Path | None) -> base.Scores:
    """Paints what is missing, then scores. Raises: ValueError without a folder: pictures are judged from files."""
    if out is None:
      raise ValueError('WISE needs a folder: --out.')
    self.paint(painter, out)
    return self.score(out)

  def paint(self, painter: base.Painter, out: pathlib.Path) -> painting.Painted:
    """Paints what is missing. Raises: base.AnotherRunError."""
    settings = dict(evaluator=self.name, mode=self.mode, seed=self.seed, checkpoint=self.checkpoint)
    base.claim(out, base.identity(painter, self.prompts, **settings))
    names = [f'{row["prompt_id"]}.png' for row in self.prompts.rows]
    todo = [j for j in painting.jobs(self.prompts.texts, seed=self.seed) if not (out / names[j.number]).is_file()]
    write = lambda job, picture: judged_pictures.save(out / names[job.number], picture)
    return painting.paint(painter, todo, mode=self.mode, batch_size=self.batch_size, write=write)

  def score(self, out: pathlib.Path | None) -> base.Scores:
    """Scores of the pictures in a folder, or of `results`. Raises: as `judged_pictures.judge`; ValueError."""
    rows = {row['prompt_id']: row for row in self.prompts.rows}
    answers: Mapping[str, Mapping[str, Any]] = {}
    names: dict[int, str] = {}
    if self.results:
      reading = wise_rules.read_results(self.results, self.version)
      entries, problems = dict(reading.entries), list(reading.problems)
    elif out is None or self.judge is None:
      raise ValueError('Give a judge and the folder of the pictures (--judge_url, --out), or --results.')
    else:
      names, problems = self._pictures(out)
      asked = [judged_pictures.Asked(names[n], _told(rows[n])) for n in names]
      threads = self.judge.chat.endpoint.concurrency
      answers, wrong = judged_pictures.judge(
        out, asked, self.judge.rate, identity=self.judge.identity, log=LOG, threads=threads
      )
      problems += wrong
      entries = {n: {m: answers[name][m] for m in self.version.metrics} for n, name in names.items() if name in answers}
      lines = [{'prompt_id': n, 'Subcategory': rows[n].get('Subcategory'), **v} for n, v in entries.items()]
      base.write_atomically(out / RESULTS, ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines))
    if not entries:
      raise ValueError(f'No prompt has a score. {problems[0] if problems else ""}')
    values, more = wise_rules.figures(entries, self.version, asked=sorted(rows))
    answered = len([n for n in entries if n in rows])
    scored = [{'prompt_id': n, **entries[n], **_said(answers.get(names.get(n, '')))} for n in entries]
    cards = [self._card(row, names.get(n), entries.get(n), answers, out) for n, row in rows.items()] if names else []
    return base.Scores(
      name=self.name,
      values=values,
      asked=len(rows),
      answered=answered,
      rows=scored,
      problems=[*problems, *more],
      cards=cards,
      others=published.TABLES[self.version.name],
    )

  def _pictures(self, out: pathlib.Path) -> tuple[dict[int, str], list[str]]:
    """Files of the prompts' pictures, and what is wrong with the folder."""
    names: dict[int, str] = {}
    problems: list[str] = []
    for row in self.prompts.rows:
      name, others = judged_pictures.find(out, str(row['prompt_id']))
      problems += [f'{other}: the same prompt as {name}; it is not judged' for other in others]
      if name is not None:
        names[row['prompt_id']] = name
    if not names:
      raise FileNotFoundError(f'No pictures of WISE in {out}: expected <prompt_id>.png there.')
    return names, problems

  def _card(
    self,
    row: Mapping[str, Any],
    name: str | None,
    values: Mapping[str, float] | None,
    answers: Mapping[str, Mapping[str, Any]],
    out: pathlib.Path | None,
  ) -> score_page.Card:
    category = self.version.category(row['prompt_id'])
    task = category.name if category else ''
    title = f'{row["prompt_id"]}. {row["Prompt"]}'
    if values is None or name is None or out is None:
      return score_page.Card(name, title, task, score_page.UNSCORED, row['Explanation'])
    score = self.version.score(values)
    verdict = score_page.RIGHT if score == 1 else score_page.PARTLY if score > 0 else score_page.WRONG
    reason = f'{answers[name]["text"].strip()}\n{row["Explanation"]}'
    return score_page.Card(name, title, task, verdict, reason)


def read_prompts(path: str | pathlib.Path, version: wise_rules.Version) -> base.PromptSet:
  """The official file (a JSON list), or the same as JSONL.

  Raises: ValueError naming the first row without a prompt, an explanation or a number of its own in the version's
  range.
  """
  path = pathlib.Path(path)
  text = path.read_text(encoding='utf-8')
  try:
    rows = (
      json.loads(text) if text.lstrip().startswith('[') else [json.loads(x) for x in text.splitlines() if x.strip()]
    )
  except ValueError as error:
    raise ValueError(f'{path} is no whole JSON ({error}).') from None
  seen: set[int] = set()
  for number, row in enumerate(rows, 1):
    fields = ('Prompt', 'Explanation')
    if not isinstance(row, dict) or not all(isinstance(row.get(f), str) for f in fields):
      raise ValueError(f'{path}, entry {number}: no object with Prompt and Explanation.')
    given = row.get('prompt_id')
    if not isinstance(given, int) or isinstance(given, bool) or version.category(given) is None or given in seen:
      raise ValueError(f'{path}, entry {number}: prompt_id {given!r} is no number of its own from 1 to 1000.')
    seen.add(given)
  if not rows:
    raise ValueError(f'{path} has no rows.')
  return base.PromptSet(path.stem, tuple(rows), 'Prompt')


def _told(row: Mapping[str, Any]) -> dict[str, str]:
  return {'Prompt': row['Prompt'], 'Explanation': row['Explanation']}


def _said(answer: Mapping[str, Any] | None) -> dict[str, Any]:
  return {} if answer is None else {'text': answer['text'], 'by': answer['by']}
