"""T2I-CompBench++ evaluator for the two categories that boxes decide: numeracy and 2-D spatial relations.

    <out>/samples/<prompt>_<id>.png     the pictures; the number of a picture is of six digits (official)
    <out>/vqa_result.json               [{question_id, answer}], as the official evaluation writes it
    <out>/run.json                      what the pictures were made from (ours)

Prompts are the lines of the official .txt files; rules and quirks are in `compbench_rules`.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import base, compbench_rules, intervals, judged_pictures, painting
from pdgen.judges import base as judges_base
from pdgen.judges import coco
from pdgen.viewing import score_page

NUMERACY, SPATIAL = 'numeracy', 'spatial'
RESULTS, LOG = 'vqa_result.json', 'judged.jsonl'
_FILE = re.compile(r'(.+)_([0-9]+)\.(?:png|jpg|jpeg)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompBench:
  """Evaluator (`evals.base.PictureEvaluator`)."""

  prompts: base.PromptSet  # rows have `prompt`
  category: str  # NUMERACY or SPATIAL
  detector: judges_base.Detector
  objects: Mapping[str, str] = dataclasses.field(default_factory=lambda: coco_objects())
  classes: tuple[str, ...] = ()  # that the detector knows; empty: it is not asked
  samples: int = 1  # pictures a prompt; the official number is 10
  mode: str = trajectory_lib.PROCESS
  seed: int = 0  # of the first prompt
  batch_size: int | None = None
  checkpoint: str = ''

  def __post_init__(self):
    if self.category not in (NUMERACY, SPATIAL):
      raise ValueError(f'{self.category=} is none of {NUMERACY}, {SPATIAL}.')
    slashed = [text for text in self.prompts.texts if '/' in text or '_' in text]
    if slashed:
      raise ValueError(f'Pictures are named by their prompts, which {slashed[0]!r} cannot be.')

  @property
  def name(self) -> str:
    return f'compbench_{self.category}'

  def run(self, painter: base.Painter, out: pathlib.Path | None) -> base.Scores:
    """Paints what is missing, then scores. Raises: ValueError without a folder."""
    if out is None:
      raise ValueError('T2I-CompBench++ needs a folder: --out.')
    self.paint(painter, out)
    return self.score(out)

  def paint(self, painter: base.Painter, out: pathlib.Path) -> painting.Painted:
    """Paints what is missing. Raises: base.AnotherRunError."""
    settings = dict(evaluator=self.name, mode=self.mode, seed=self.seed, checkpoint=self.checkpoint)
    base.claim(out, base.identity(painter, self.prompts, **settings))
    jobs = painting.jobs(self.prompts.texts, samples=self.samples, seed=self.seed)
    todo = [job for job in jobs if not (out / self._file(job)).is_file()]

    def write(job: painting.Job, picture: np.ndarray):
      judged_pictures.save(out / self._file(job), picture)

    return painting.paint(painter, todo, mode=self.mode, batch_size=self.batch_size, write=write)

  def score(self, out: pathlib.Path) -> base.Scores:
    """Scores of the pictures in a folder. Raises: FileNotFoundError without one that can be scored."""
    asked, problems = self._asked(out)
    identity = getattr(self.detector, 'identity', None)
    told = identity and f'{self.name} {identity} {sorted(self.objects.items())}'
    answers, wrong = judged_pictures.judge(out, asked, self._rate, identity=told, log=LOG)
    if not answers:
      raise FileNotFoundError(f'No picture of {out} can be scored. {[*problems, *wrong][:1]}')
    about = {item.name: item.about for item in asked}
    of: dict[str, list[float]] = {}
    for name, answer in answers.items():
      of.setdefault(about[name]['prompt'], []).append(answer['answer'])
    figure = intervals.mean([float(np.mean(scores)) for scores in of.values()])
    if len({len(scores) for scores in of.values()}) > 1:
      # The official figure is the mean over pictures; the interval resamples prompts with what they have.
      sums, counts = [sum(s) for s in of.values()], [len(s) for s in of.values()]
      figure = intervals.Estimate(sum(sums) / sum(counts), *intervals.bootstrap(sums, weights=counts), len(of))
    lines = [{'question_id': about[n]['id'], 'answer': a['answer']} for n, a in answers.items()]
    base.write_atomically(out / RESULTS, json.dumps(lines) + '\n')
    texts = dict.fromkeys(self.prompts.texts)
    without = [text for text in texts if text not in of]
    problems += wrong + [f'{text}: no picture that can be scored' for text in without]
    return base.Scores(
      name=self.name,
      values={self.category: figure},
      asked=len(texts),
      answered=len(of),
      rows=[{'filename': n, 'prompt': about[n]['prompt'], **a} for n, a in answers.items()],
      problems=problems,
      cards=[self._card(n, about[n]['prompt'], a, out) for n, a in answers.items()],
    )

  def _file(self, job: painting.Job) -> str:
    number = job.sample * len(self.prompts.rows) + job.number
    return f'samples/{job.prompt}_{number:06}.png'

  def _asked(self, out: pathlib.Path) -> tuple[list[judged_pictures.Asked], list[str]]:
    texts, numbers = set(self.prompts.texts), dict[int, str]()
    asked, problems = [], []
    for path in sorted((out / 'samples').glob('*')):
      match = _FILE.fullmatch(path.name)
      if match is None:
        continue
      prompt, number = match[1], int(match[2])
      if prompt not in texts:
        problems.append(f'{path.name}: no prompt of the set; it is not scored')
      elif number in numbers:
        problems.append(f'{path.name}: the same number as {numbers[number]}; it is not scored')
      else:
        numbers[number] = path.name
        asked.append(judged_pictures.Asked(f'samples/{path.name}', {'prompt': prompt, 'id': number}))
    if not asked:
      raise FileNotFoundError(f'No pictures in {out}; expected samples/<prompt>_<number>.png there.')
    return sorted(asked, key=lambda item: item.about['id']), problems

  def _rate(self, about: Mapping[str, Any], picture: np.ndarray) -> dict[str, Any]:
    """Raises: ValueError for a prompt that cannot be read, or asks for what the detector does not know."""
    targets, asked = self._read(about['prompt'])
    names = [name for name, _ in targets] if asked is None else [asked[0], asked[2]]
    if not names:
      raise ValueError('the prompt names no known objects; give --objects')
    strange = compbench_rules.unknown(names, self.classes) if self.classes else []
    if strange:
      raise ValueError(f'the detector does not know {", ".join(strange)}')
    found = self.detector.detect(picture)
    score = compbench_rules.numeracy(targets, found) if asked is None else compbench_rules.spatial(asked, found)
    counting = [item for item in found if item.score > compbench_rules.THRESHOLD]
    boxes = [[item.name, *map(float, item.box), float(item.score)] for item in counting]
    return {'answer': score.value, 'reason': score.reason, 'boxes': boxes}

  def _read(self, prompt: str) -> tuple[list[tuple[str, int]], tuple[str, str, str] | None]:
    """What a prompt counts, or the relation that it asks for."""
    if self.category == NUMERACY:
      return compbench_rules.counted(prompt, self.objects), None
    return [], compbench_rules.relation(prompt)

  def _card(self, name: str, prompt: str, answer: Mapping[str, Any], out: pathlib.Path) -> score_page.Card:
    value = answer['answer']
    verdict = score_page.RIGHT if not answer['reason'] else score_page.PARTLY if value > 0 else score_page.WRONG
    boxes = [score_page.Box((a, b, c, d), f'{label} {score:.2f}') for label, a, b, c, d, score in answer['boxes']]
    reason = f'{value:.2f}\n{answer["reason"]}'.strip()
    size = judged_pictures.size(out / name)
    return score_page.Card(name, prompt, self.category, verdict, reason, tuple(boxes), size)


def coco_objects() -> dict[str, str]:
  """COCO's classes and plurals of them, for prompts whose official list of objects is not at hand.

  >>> coco_objects()['knives'], coco_objects()['buses'], coco_objects()['cup']
  ('knife', 'bus', 'cup')
  """
  words: dict[str, str] = {}
  for name in coco.NAMES:
    plural = name[:-2] + 'ves' if name.endswith('fe') else name + ('es' if name.endswith(('s', 'ch', 'sh')) else 's')
    words |= {name: name, plural: name}
  return {**words, 'people': 'person', 'mice': 'computer mouse', 'sheep': 'sheep', 'skis': 'skis'}


def read_prompts(path: str | pathlib.Path) -> base.PromptSet:
  """The lines of a .txt file. Raises: ValueError for a file without any."""
  path = pathlib.Path(path)
  lines = [line.strip().rstrip('.') for line in path.read_text(encoding='utf-8').splitlines()]
  rows = tuple({'prompt': line} for line in dict.fromkeys(lines) if line)
  if not rows:
    raise ValueError(f'{path} has no prompts.')
  return base.PromptSet(path.stem, rows)
