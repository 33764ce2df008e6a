"""PromptSet, Evaluator and Scores: what every evaluation is made of, in training and on the command line.

An evaluator is a frozen dataclass with a `name` and a `run`. Given a folder it is resumable: it claims the folder with
what identifies the run (`claim`), writes what is done as it is done (`write_atomically`), and skips what is there.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, Protocol

import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import intervals, published
from pdgen.viewing import score_page, transcript

_RUN = 'run.json'  # what identifies the run that a folder belongs to
_PARTIAL = '.partial'
_SHOWN = 20  # problems that a table names; JSON, markdown and page have all


class Result(Protocol):
  """What a painter returns."""

  @property
  def trajectories(self) -> Sequence[trajectory_lib.Trajectory]:
    """One for each prompt, in order."""
    ...

  @property
  def chosen(self) -> Sequence[Sized]:
    """Tokens chosen for each."""
    ...

  @property
  def timings(self) -> Mapping[str, float]:
    """`seconds` and `pictures` among others."""
    ...


class Painter(Protocol):
  """The part of `pdgen.Painter` that evaluators use."""

  @property
  def config(self) -> config_lib.Config: ...

  def sample(
    self,
    prompts: Any,
    *,
    mode: str | None = None,
    seed: int | Sequence[int] = 0,
    sampling: config_lib.SamplingConfig | None = None,
    batch_size: int | None = None,
    pictures: int | None = None,
    inspector: Callable[[trajectory_lib.Trajectory], str] | None = None,
  ) -> Result: ...


@dataclasses.dataclass(frozen=True)
class PromptSet:
  """The prompts of a benchmark, each with its metadata in the benchmark's official row format.

  >>> PromptSet('two', ({'tag': 'colors', 'prompt': 'a red ring'}, {'tag': 'colors', 'prompt': 'a bar'})).texts
  ['a red ring', 'a bar']
  """

  name: str  # of the set
  rows: tuple[Mapping[str, Any], ...]  # one a prompt
  key: str = 'prompt'  # of the text in a row; official names differ (WISE: `Prompt`)

  @classmethod
  def read(cls, path: str | os.PathLike, *, key: str = 'prompt') -> 'PromptSet':
    """The rows of a JSONL file. Raises: ValueError naming the first line that is no row with a prompt."""
    return cls(pathlib.Path(path).stem, tuple(read_rows(path, key)), key)

  @property
  def texts(self) -> list[str]:
    """The prompts."""
    return [row[self.key] for row in self.rows]

  @functools.cached_property
  def digest(self) -> str:
    """Equal exactly for equal rows in equal order."""
    return hashlib.sha256(json.dumps([dict(row) for row in self.rows]).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
  """What an evaluator found: figures with intervals, and the rows that they come from."""

  name: str  # of the evaluator
  values: Mapping[str, intervals.Estimate]  # figures, each with a 95 % interval and the count that it rests on
  asked: int  # prompts (or questions) of the set
  answered: int  # of them, those that the figures rest on
  rows: Sequence[Mapping[str, Any]] = ()  # one a picture or question; JSON
  details: Mapping[str, float] = dataclasses.field(default_factory=dict)  # logged besides, under their whole names
  text: str = ''  # the evaluator's own table, where it has one
  strip: np.ndarray | None = None  # a picture to look at, uint8[H, W, 3]
  problems: Sequence[str] = ()  # what was left out or is doubtful, each by name
  cards: Sequence[score_page.Card] = ()  # pictures for the page, where they are in files
  others: Sequence[published.Published] = ()  # figures of others, to be shown apart from these

  def scalars(self) -> dict[str, float]:
    """For training logs: `<evaluator>/<figure>`, without figures that rest on nothing, and the details."""
    return {f'{self.name}/{name}': e.value for name, e in self.values.items() if e.count} | dict(self.details)

  def table(self) -> str:
    """For people: the evaluator's own table, or one line a figure; the last line says if prompts are absent."""
    lines = [self.text] if self.text else [_line(name, e) for name, e in self.values.items()]
    if self.answered < self.asked and not (self.text and 'These figures rest on' in self.text):
      lines.append(f'These figures rest on {self.answered} of {self.asked}.')
    if self.problems:
      shown = [f'  {problem}' for problem in self.problems[:_SHOWN]]
      more = len(self.problems) - len(shown)
      lines += [f'Left out or doubtful ({len(self.problems)}):', *shown, *([f'  .. and {more} more'] if more else [])]
    return transcript.printable('\n'.join(lines), keep='\n')

  def to_json(self) -> dict[str, Any]:
    """Figures, counts and rows; figures that rest on nothing are null."""
    values = {
      name: {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in dataclasses.asdict(e).items()}
      for name, e in self.values.items()
    }
    counts = {'name': self.name, 'asked': self.asked, 'answered': self.answered}
    told = {**counts, 'values': values, 'details': dict(self.details), 'problems': list(self.problems)}
    others = [dataclasses.asdict(line) for line in self.others]
    return {**told, **({'published_by_others': others} if others else {}), 'rows': [dict(row) for row in self.rows]}


class Evaluator(Protocol):
  """Scores a painter: in training (`training.loop`) and on the command line (`pdgen.evaluate`)."""

  @property
  def name(self) -> str:
    """A short word; the figures are logged under it."""
    ...

  def run(self, painter: Painter, out: pathlib.Path | None) -> Scores:
    """The scores of a painter.

    Args:
      painter: what is scored.
      out: a folder to keep what is made, and to go on from what is there; None: nothing is kept.

    Raises: AnotherRunError for a folder of another run.
    """
    ...


class PictureEvaluator(Evaluator, Protocol):
  """An evaluator of pictures in a folder, in two halves: `run` is one after the other."""

  def paint(self, painter: Painter, out: pathlib.Path) -> Any:
    """Paints what is missing. Raises: AnotherRunError."""
    ...

  def score(self, out: pathlib.Path) -> Scores:
    """Scores what is there, whoever painted it."""
    ...


class AnotherRunError(ValueError):
  """The folder holds what another run has made: it would be scored, too."""


def identity(painter: Painter, prompts: PromptSet, **settings: Any) -> dict[str, Any]:
  """What decides the files of a run over prompts, for `claim`. settings: what the evaluator has besides."""
  sampling = dataclasses.asdict(painter.config.sampling)
  return {**settings, 'prompts': prompts.name, 'prompts_digest': prompts.digest, 'sampling': sampling}


def claim(out: pathlib.Path, identity: Mapping[str, Any]):
  """Makes `out` the folder of a run, or goes on in it if it is that already.

  Args:
    out: the folder; made if it is missing.
    identity: JSON; what decides the files of the run (checkpoint, prompts, seeds, options).

  Raises: AnotherRunError when the folder holds another run, naming what differs, or files of no run.
  """
  given = json.loads(json.dumps(identity))
  if (out / _RUN).is_file():
    try:
      there = dict(json.loads((out / _RUN).read_text()))
    except (ValueError, TypeError) as error:
      raise AnotherRunError(f'{out / _RUN} is damaged ({error}): it is not known whose folder it is.') from None
    differ = sorted(name for name in there.keys() | given.keys() if there.get(name) != given.get(name))
    if differ:
      found = ', '.join(f'{name} {there.get(name)!r} there, {given.get(name)!r} given' for name in differ)
      raise AnotherRunError(f'{out} holds another run, whose files would be scored, too: {found}. Name another folder.')
    return
  if out.exists() and any(not p.name.endswith(_PARTIAL) for p in out.iterdir()):
    raise AnotherRunError(f'{out} is not empty: what is left there of another run would be scored, too. Name another.')
  out.mkdir(parents=True, exist_ok=True)
  write_atomically(out / _RUN, json.dumps(given, indent=2) + '\n')


def read_rows(path: str | os.PathLike, *keys: str) -> list[dict[str, Any]]:
  """The objects of a JSONL file, each with those keys.

  Raises: ValueError naming the first line that is cut or lacks a key, and for a file without rows.
  """
  rows = []
  for number, line in enumerate(pathlib.Path(path).read_text(encoding='utf-8').splitlines(), 1):
    if line.strip():
      try:
        rows.append(json.loads(line))
        for key in keys:
          rows[-1][key]
      except (ValueError, KeyError, TypeError) as error:
        named = ', '.join(map(repr, keys))
        raise ValueError(f'{path}, line {number}: no JSON object with {named} ({error}).') from None
  if not rows:
    raise ValueError(f'{path} has no rows.')
  return rows


def write_atomically(path: pathlib.Path, content: str | bytes):
  """Writes a file that is whole or absent after a kill."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + _PARTIAL)
  partial.write_bytes(content.encode() if isinstance(content, str) else content)
  os.replace(partial, path)


def _line(name: str, e: intervals.Estimate) -> str:
  if not e.count:
    return f'{name:<24} nothing to count'
  return f'{name:<24} {e.value:.3f} ({e.low:.3f}-{e.high:.3f}) of {e.count}'
