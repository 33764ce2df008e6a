"""Modes with a protocol: the host reads each text and decides what comes next, round by round, for a whole batch.

A round is at most two compiled calls: a text of every trajectory that writes, then a picture of every one that paints.
Those that have ended leave; the batch keeps its rows, and the room of its prefixes doubles when it must, so that rounds
share a few programs. Each call begins anew with all that it is to see: texts and pictures so far as a prompt.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import modes, protocols
from pdgen.core import rounds as rounds_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.data.tokenizers import base
from pdgen.inference import dictation, results
from pdgen.inference import requests as requests_lib
from pdgen.sampling import cycle, grammar

# One compiled call of requests whose modes have no protocol.
Call = Callable[[Sequence[requests_lib.Request]], results.Result]
_STRIDE = 0x9E3779B1  # Between the seeds of the calls of a trajectory; odd, and unlike those of prompts and samples.


@dataclasses.dataclass
class _Row:
  """One trajectory as far as it has come."""

  request: requests_lib.Request
  trajectory: trajectory_lib.Trajectory
  painted: int = 0  # Pictures so far.
  chosen: list[results.Chosen] = dataclasses.field(default_factory=list)
  finite: bool = True


def run(
  requests: Sequence[requests_lib.Request],
  call: Call,
  model: config_lib.ModelConfig,
  tokenizer: base.Tokenizer,
  inspector: dictation.Inspector | None = None,
) -> results.Result:
  """The trajectories of requests whose modes have a protocol.

  Args:
    requests: as of `requests.make`.
    call: samples requests, one text or one picture each.
    model: its sizes.
    tokenizer: of what the host begins texts with.
    inspector: writes the texts in place of the model.

  Raises: ValueError for a dictated text that is longer than a text may be.
  """
  rows = [_Row(request, request.start) for request in requests]
  timings: dict[str, float] = {}
  while any(row.trajectory.stop is None for row in rows):
    for move in (modes.WRITE, modes.PAINT):  # Who has just written may paint in the same round.
      due = [row for row in rows if row.trajectory.stop is None and _next(row) == move]
      if not due:
        continue
      made = call([_request(row, move, model, tokenizer, inspector) for row in due])
      timings |= {name: timings.get(name, 0.0) + value for name, value in made.timings.items()}
      for number, (row, one) in enumerate(zip(due, made.trajectories, strict=True)):
        _take(row, one, move)
        row.chosen.append(made.chosen[number])
        row.finite &= number not in made.not_finite
  not_finite = tuple(number for number, row in enumerate(rows) if not row.finite)
  return results.Result([row.trajectory for row in rows], timings, not_finite, tuple(map(_joined, rows)))


def check(requests: Sequence[requests_lib.Request], tokenizer: base.Tokenizer):
  """Raises ValueError where what the host begins texts with leaves no room in `sampling.max_text_tokens`."""
  for request in requests:
    protocol, cap = modes.of(request.start.mode).protocol, request.sampling.max_text_tokens
    if protocol is None or request.sampling.inspection == config_lib.DICTATED:
      continue
    longest = max(map(len, _begins(protocol, 0, tokenizer)), default=0)
    if longest + grammar.SHORTEST > cap:
      raise ValueError(
        f'sampling.max_text_tokens={cap} leaves no room: texts of mode {request.start.mode!r} begin with {longest} '
        'tokens that the host writes. Allow 512.'
      )


def _next(row: _Row) -> str | None:
  """What comes next: WRITE or PAINT; None: nothing, and the trajectory says why."""
  stop, move = _decide(row.trajectory, pictures=row.request.pictures - row.painted)
  if stop is not None:
    row.trajectory = dataclasses.replace(row.trajectory, stop=stop)
  return move


def _decide(trajectory: trajectory_lib.Trajectory, *, pictures: int) -> tuple[str | None, str | None]:
  """(why it ends, what comes next), one of them None. pictures: that it may still paint."""
  protocol = modes.of(trajectory.mode).protocol
  assert protocol is not None
  *_, last = (None, *trajectory.items())
  if last is None:
    first = protocol.paints_first and not trajectory.given_pictures
    return None, modes.PAINT if first else modes.WRITE
  if last.is_picture:
    asked = sum(step.text is not None and step.draft is not None for step in trajectory.steps)
    spent = asked >= protocol.edits or pictures < 1
    return (trajectory_lib.PICTURE_CAP, None) if spent else (None, modes.WRITE)
  said = rounds_lib.of(trajectory)[-1]
  if said.move == protocols.PAINT:
    return (None, modes.PAINT) if pictures > 0 else (trajectory_lib.PICTURE_CAP, None)
  return (trajectory_lib.FINISHED if said.move == protocols.END else trajectory_lib.UNREADABLE), None


def _request(
  row: _Row,
  move: str,
  model: config_lib.ModelConfig,
  tokenizer: base.Tokenizer,
  inspector: dictation.Inspector | None,
) -> requests_lib.Request:
  """The request of the next call of a trajectory."""
  trajectory, request, cap = row.trajectory, row.request, row.request.sampling.max_text_tokens
  mode = modes.of(trajectory.mode)
  protocol, said = mode.protocol, rounds_lib.of(trajectory)
  assert protocol is not None
  begins = ()
  if move == modes.WRITE and inspector is not None:
    begins = (tuple(dictation.tokens_of(inspector(trajectory), tokenizer, cap)),)
  elif move == modes.WRITE:
    begins = _begins(protocol, len(said), tokenizer)
  parts = _painted_from(trajectory, said) if move == modes.PAINT else _so_far(trajectory, said)
  start = trajectory_lib.Trajectory(
    prompt=trajectory_lib.joined(parts), steps=(), mode=f'{mode.name}.{move}', stop=None, parts=parts
  )
  count = sum(1 for _ in trajectory.items())
  # Room for one text and one picture, whatever the whole trajectory may take.
  sampling = dataclasses.replace(request.sampling, max_pictures=1, inspection=config_lib.FREE)
  if move == modes.WRITE:  # Nothing is guided, so that its program has no branches.
    sampling = dataclasses.replace(sampling, text_guidance=1.0, image_guidance=1.0)
  picture = model.picture_tokens_of(request.size or model.own_size)
  sampling = dataclasses.replace(sampling, max_tokens=cycle.max_tokens_per_round(sampling, picture))
  return dataclasses.replace(
    request,
    start=start,
    seed=(request.seed + count * _STRIDE) % 2**32,
    pictures=1,
    sampling=sampling,
    begins=begins,
    asked=len(trajectory.given) if protocol.guides_by_prompt else None,
  )


def _begins(protocol: protocols.Protocol, number: int, tokenizer: base.Tokenizer) -> tuple[tuple[int, ...], ...]:
  """Ids that text `number` begins with, one of several. What the host writes and what the model chooses are apart."""
  first = tuple(tokenizer.encode(protocol.begin(number)))
  return tuple((*first, *tokenizer.encode(words)) for words in protocol.choices) or ((first,) if first else ())


def _so_far(trajectory: trajectory_lib.Trajectory, said: Sequence[rounds_lib.Round]) -> tuple[str | np.ndarray, ...]:
  """All texts and pictures so far, as one prompt; texts as the protocol keeps them."""
  protocol, texts, out = modes.of(trajectory.mode).protocol, iter(said), [*trajectory.given]
  assert protocol is not None
  for item in trajectory.items():
    if item.is_picture:
      out.append(item.picture)
    else:
      one = next(texts)
      out.append(protocol.kept_text(one.text, one.values, number=one.number, source=one.source_name))
  return tuple(out)


def _painted_from(
  trajectory: trajectory_lib.Trajectory, said: Sequence[rounds_lib.Round]
) -> tuple[str | np.ndarray, ...]:
  """What the next picture is painted from, as one prompt."""
  protocol = modes.of(trajectory.mode).protocol
  assert protocol is not None
  if not said or protocol.sees == protocols.ALL:
    return _so_far(trajectory, said)
  last, pictures = said[-1], [*trajectory.given_pictures, *trajectory.pictures]
  edited = () if last.source is None else (pictures[last.source],)
  return (*edited, last.values[protocol.instruction])


def _take(row: _Row, made: trajectory_lib.Trajectory, move: str):
  """Adds what a call has made."""
  if move == modes.WRITE:
    row.trajectory = row.trajectory.with_text(made.texts[-1])
  else:
    row.trajectory = row.trajectory.with_picture(made.final)
    row.painted += 1


def _joined(row: _Row) -> results.Chosen:
  if not row.chosen:
    return results.Chosen(np.zeros(0, np.int32), np.zeros(0, np.float32))
  ids, logprobs = (np.concatenate([getattr(one, name) for one in row.chosen]) for name in ('ids', 'logprobs'))
  return results.Chosen(ids, logprobs)
