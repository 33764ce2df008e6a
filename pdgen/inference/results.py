"""Sampling results: from the tokens and pictures of a row to the steps of a trajectory."""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pdgen.core import trajectory as trajectory_lib
from pdgen.data.tokenizers import base
from pdgen.inference import requests as requests_lib
from pdgen.sampling import cycle, stop_texts

# Fields of `cycle.State` that a finished batch is read from.
FETCHED = (
  'output_tokens',
  'output_logprobs',
  'output_count',
  'pictures',
  'picture_count',
  'finite',
  'stop',
  'text_steps',
  'rounds',
)

STOPS = {
  cycle.FINISHED: trajectory_lib.FINISHED,
  cycle.PICTURE_CAP: trajectory_lib.PICTURE_CAP,
  cycle.TOKEN_CAP: trajectory_lib.TOKEN_CAP,
}


@dataclasses.dataclass(frozen=True)
class Chosen:
  """The tokens that a model chose for one trajectory, in order: what policy gradients need.

  Structure and tags are among them, and those that the grammar left no choice about, whose log-probability is 0. A
  whole picture is one `<|vision_start|>`; the token that ends the trajectory, which is not read, is missing.
  """

  ids: np.ndarray  # int32[N]
  # f32[N]; natural logarithm of the probability in the distribution that the token was drawn from: with the temperature
  # (1 where it is 0), the grammar, top-k, top-p and the repetition penalty.
  logprobs: np.ndarray

  def __len__(self) -> int:
    return len(self.ids)


@dataclasses.dataclass(frozen=True)
class Result:
  """What `Painter.sample` returns."""

  trajectories: list[trajectory_lib.Trajectory]  # One a prompt, in order, with the steps that it was given.
  # `seconds` of the whole call, `compile_calls` (batches that had to compile first), `text_steps` and `rounds` (decode
  # steps and picture phases, over all batches), `tokens` and `pictures` (made, over all trajectories).
  timings: dict[str, float]
  # Numbers of the trajectories with a picture of which a value was NaN or infinite: it is not what the model painted.
  not_finite: tuple[int, ...] = ()
  chosen: tuple[Chosen, ...] = ()  # For each trajectory, what the model added to what it was given. Empty: not known.


def warn_not_finite(prompts: Sequence[str]):
  """Warns of trajectories with a picture that is not finite. prompts: of each."""
  if prompts:
    warnings.warn(
      f'{len(prompts)} trajectories have pictures with values that are NaN or infinite, shown black: the first is of '
      f'{prompts[0][:80]!r}. Guidance may be too large, or the weights are damaged.',
      stacklevel=3,
    )


def of_batch(
  requests: Sequence[requests_lib.Request],
  host: Mapping[str, np.ndarray],
  tokenizer: base.Tokenizer,
  *,
  timings: Mapping[str, float],
) -> Result:
  """The result of a finished batch; warns of pictures that are not finite.

  Args:
    requests: of the first rows.
    host: the FETCHED fields of the final state.
    tokenizer: of the texts.
    timings: `seconds` and `compile_calls`.
  """
  counts = {name: int(host[name]) for name in ('text_steps', 'rounds')}
  counts |= {'tokens': int(host['output_count'].sum()), 'pictures': int(host['picture_count'].sum())}
  not_finite = tuple(i for i in range(len(requests)) if not host['finite'][i])
  warn_not_finite([requests[i].start.prompt for i in not_finite])
  trajectories = [parse_output(request, host, row, tokenizer) for row, request in enumerate(requests)]
  own_counts = host['output_count'][: len(requests)].tolist()
  chosen = tuple(
    Chosen(host['output_tokens'][row, :n].copy(), host['output_logprobs'][row, :n].copy())
    for row, n in enumerate(own_counts)
  )
  return Result(trajectories, {**timings, **counts}, not_finite, chosen)


def join(parts: Iterable[tuple[Sequence[int], Result]]) -> Result:
  """One result of several batches, each with the numbers of its prompts."""
  trajectories, not_finite = dict[int, trajectory_lib.Trajectory](), list[int]()
  chosen = dict[int, Chosen]()
  timings = dict[str, float]()
  for numbers, part in parts:
    trajectories |= zip(numbers, part.trajectories, strict=True)
    chosen |= zip(numbers, part.chosen, strict=bool(part.chosen))
    not_finite += [numbers[i] for i in part.not_finite]
    timings = {name: timings.get(name, 0) + value for name, value in part.timings.items()}
  order = sorted(trajectories)
  in_order = (
    [trajectories[i] for i in order],
    timings,
    tuple(sorted(not_finite)),
    tuple(chosen[i] for i in order if i in chosen),
  )
  return Result(*in_order)


class OutputReader:
  """Reads the tokens and pictures of one row, in order, into steps that follow those it started from."""

  def __init__(self, request: requests_lib.Request, tokenizer: base.Tokenizer):
    self.trajectory = request.start
    self._tokenizer, self._size = tokenizer, request.size
    self._stops = [text.encode() for text in request.sampling.stop_texts]
    self._written, self._has_stopped = b'', False

  @property
  def open_text(self) -> str:
    """The text being written, as far as it goes, less what may be the beginning of a stop text."""
    unsure = 0 if self._has_stopped else stop_texts.begun(self._written, self._stops)
    return _text(self._written[: len(self._written) - unsure])

  def token(self, token: int) -> trajectory_lib.Item | None:
    """Reads the next token. Returns the text that it completes."""
    specials = self._tokenizer.specials
    if token == specials.im_start:
      self._written, self._has_stopped = b'', False
    elif token == specials.im_end:
      self.trajectory = self.trajectory.with_text(_text(self._written))
      self._written = b''
      return self._last()
    elif token != specials.vision_start:
      self._written += self._tokenizer.bytes_of(token)
      found = -1 if self._has_stopped else stop_texts.find(self._written, self._stops)
      if found >= 0:  # What follows is how the grammar closes what is open.
        self._written, self._has_stopped = self._written[:found], True
    return None

  def picture(self, picture: np.ndarray) -> trajectory_lib.Item:
    """Reads a picture, uint8[H, W, 3], which `<|vision_start|>` announced, off its canvas."""
    height, width = self._size or picture.shape[:2]
    self.trajectory = self.trajectory.with_picture(picture[:height, :width])
    return self._last()

  def end(self, stop: int) -> trajectory_lib.Trajectory:
    """The whole trajectory. stop: as `cycle.State.stop`."""
    return dataclasses.replace(self.trajectory, stop=STOPS[stop])

  def _last(self) -> trajectory_lib.Item:
    *_, item = self.trajectory.items()
    return item


def _text(written: bytes) -> str:
  return written.decode('utf-8', errors='replace')


def parse_output(
  request: requests_lib.Request, host: Mapping[str, np.ndarray], row: int, tokenizer: base.Tokenizer
) -> trajectory_lib.Trajectory:
  """The trajectory of a row of a finished batch.

  Args:
    request: of the row.
    host: the FETCHED fields of the final state.
    row: number of the row.
    tokenizer: of its texts.
  """
  reader, pictures = OutputReader(request, tokenizer), iter(host['pictures'][row])
  for token in host['output_tokens'][row, : host['output_count'][row]].tolist():
    reader.token(token)
    if token == tokenizer.specials.vision_start:
      reader.picture(next(pictures))
  return reader.end(int(host['stop'][row]))
