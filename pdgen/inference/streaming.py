"""Streaming sampling: events as tokens and pictures are made, with the results of the one compiled call.

    for event in painter.stream('a photo of a red ring'):
      if isinstance(event, streaming.Token):
        print(event.text, end='')

The host drives the phases that the compiled call consists of (`inference.phases`), one decode step at a time.
"""

import dataclasses
from collections.abc import Generator, Iterator, Sequence

import jax
import numpy as np

from pdgen.core import tags
from pdgen.core import trajectory as trajectory_lib
from pdgen.data.tokenizers import base
from pdgen.inference import phases as phases_lib
from pdgen.inference import requests as requests_lib
from pdgen.inference import results
from pdgen.sampling import cycle


@dataclasses.dataclass(frozen=True, kw_only=True)
class Token:
  """A piece of the text being written. The pieces of a text joined are the text."""

  row: int  # Number of the prompt.
  text: str  # At least one character; tags come in their spelling.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
  """A whole text."""

  row: int  # Number of the prompt.
  step: int  # Number of the trajectory step, from 0.
  kind: str  # `plan`, `inspection` or `corrected_plan`; `text` in modes without a process.
  text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
  """A picture."""

  row: int  # Number of the prompt.
  step: int  # Number of the trajectory step, from 0.
  kind: str  # `draft` or `refined`.
  picture: np.ndarray  # uint8[H, W, 3]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
  """What an inspection decides, after its `Text`."""

  row: int  # Number of the prompt.
  step: int  # Number of the trajectory step, from 0.
  rejected: bool  # The draft is to be refined.
  instruction: str | None  # The words of `<refine>`; None for a draft that is accepted.


@dataclasses.dataclass(frozen=True, kw_only=True)
class End:
  """The trajectory of a row has ended: its last event."""

  row: int  # Number of the prompt.
  trajectory: trajectory_lib.Trajectory
  finite: bool = True  # False: a picture holds values that are NaN or infinite (see `results.Result.not_finite`).


Event = Token | Text | Picture | Verdict | End


def events(
  phases: phases_lib.Phases,
  batch: cycle.SampleBatch,
  requests: Sequence[requests_lib.Request],
  tokenizer: base.Tokenizer,
) -> Generator[Event, None, None]:
  """Samples a batch to its end, row by row within a phase.

  Nothing is left behind when the iterator is closed or dropped early: the state belongs to it alone.

  Args:
    phases: the compiled phases.
    batch: of the requests, and rows that are idle.
    requests: the first rows.
    tokenizer: of the texts.
  """
  rows = {number: _Row(number, request, tokenizer) for number, request in enumerate(requests)}
  state, painted = phases.prefill(batch), None
  while True:
    seen = jax.device_get(phases_lib.progress(state))
    for number, row in list(rows.items()):
      if painted is not None and number in painted:
        yield row.picture(painted[number])
      if seen['output_count'][number] > row.count:
        yield from row.token(int(seen['next_input'][number]))
      if seen['status'][number] == cycle.ENDED:
        finite = bool(seen['finite'][number])
        results.warn_not_finite([] if finite else [requests[number].start.prompt])
        yield row.end(int(seen['stop'][number]), finite)
        del rows[number]
    if not rows:
      return
    if (seen['status'] == cycle.WRITING).any():
      state, painted = phases.decode_step(state), None
    else:
      state = phases.picture_phase(state)
      pictures = jax.device_get(phases_lib.last_pictures(state))
      painted = {int(number): pictures[number].copy() for number in np.flatnonzero(seen['status'] == cycle.WAITING)}


class _Row:
  """The events of one row."""

  def __init__(self, number: int, request: requests_lib.Request, tokenizer: base.Tokenizer):
    self.count = 0  # Tokens read.
    self._number, self._reader = number, results.OutputReader(request, tokenizer)
    self._told = 0  # Characters of the open text that have been told.

  def token(self, token: int) -> Iterator[Event]:
    self.count += 1
    item = self._reader.token(token)
    # U+FFFD at the end may be the first bytes of a character.
    text = self._reader.open_text.rstrip('\ufffd') if item is None else item.text
    if len(text) > self._told:
      piece, self._told = text[self._told :], len(text)
      yield Token(row=self._number, text=piece)
    if item is not None:
      self._told = 0
      yield Text(row=self._number, step=item.number, kind=item.kind, text=item.text)
      if item.kind == trajectory_lib.INSPECTION:
        instruction = tags.refine_instruction(item.text)
        yield Verdict(row=self._number, step=item.number, rejected=instruction is not None, instruction=instruction)

  def picture(self, picture: np.ndarray) -> Picture:
    item = self._reader.picture(picture)
    return Picture(row=self._number, step=item.number, kind=item.kind, picture=item.picture)

  def end(self, stop: int, finite: bool) -> End:
    return End(row=self._number, trajectory=self._reader.end(stop), finite=finite)
