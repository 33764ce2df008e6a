"""Sampling requests: from prompts and partial trajectories to the batch that the compiled program continues.

Prefixes are padded to a few lengths, so that prompts of other lengths share a compiled program. Pictures of the model's
own size are read as in training on one size. A trajectory that holds a picture of another size is read on a canvas, a
larger array with every picture in its corner: a program of its own for each size of the canvas.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import packing, sequence
from pdgen.data.tokenizers import base
from pdgen.sampling import cycle, grammar

Prompt = str | trajectory_lib.Trajectory

_UND_BUCKET = 32  # Lengths of prefixes are multiples of it.
_PICTURE_BUCKET = 2  # The same for the number of pictures.
_CANVAS_SIZES = 4  # Different heights, and widths, that a canvas may have.
_MAX_TEXT = 4096  # Tokens of a prompt or another text; more where a row of the training data has room for more.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """One trajectory to sample."""

  start: trajectory_lib.Trajectory  # What to continue from.
  seed: int  # Of its PRNG key.
  pictures: int  # At most so many more.
  has_ended: bool = False  # The trajectory was given as a finished one.


class PrefixShape(NamedTuple):
  """What of a batch of prefixes shapes the compiled program."""

  row_budget: packed.RowBudget
  canvas: tuple[int, int] | None = None  # (H, W) that holds every picture; None: all are of the model's own size.


def make(
  prompts: Prompt | Sequence[Prompt],
  *,
  sampling: config_lib.SamplingConfig,
  mode: str | None = None,
  seed: int | np.integer | Sequence[int] = 0,
  pictures: int | None = None,
) -> list[Request]:
  """A request for each prompt. Arguments as of `painter.Painter.sample`, whose errors these are.

  Raises: ValueError for an unknown mode, no prompts, seeds that do not fit, or a trajectory with nothing left to paint.
  """
  prompts = [prompts] if isinstance(prompts, (str, trajectory_lib.Trajectory)) else list(prompts)
  if not prompts:
    raise ValueError('There is nothing to sample: give at least one prompt.')
  if mode is not None and mode not in trajectory_lib.MODES:
    raise ValueError(f'Unknown mode {mode!r}. Known: {list(trajectory_lib.MODES)}')
  seeds = [int(seed) + i for i in range(len(prompts))] if isinstance(seed, (int, np.integer)) else list(seed)
  if len(seeds) != len(prompts):
    raise ValueError(f'{len(seeds)} seeds for {len(prompts)} prompts.')
  for s in seeds:
    if not isinstance(s, (int, np.integer)) or not 0 <= s < 2**32:
      raise ValueError(f'Seeds are from 0 to 2**32 - 1, and a prompt takes the one after that of the last: not {s}.')
  starts = [start(prompt, mode) for prompt in prompts]
  return [
    Request(start=s, seed=own_seed, pictures=_pictures_left(s, sampling, pictures), has_ended=_has_ended(prompt))
    for prompt, s, own_seed in zip(prompts, starts, seeds, strict=True)
  ]


def check(requests: Sequence[Request]):
  """Raises ValueError for a finished trajectory: nothing would be painted, and what was given be the result."""
  for request in requests:
    if request.has_ended:
      raise ValueError(
        f'The trajectory of {request.start.prompt!r} is finished: nothing is left to paint. With stop=None the model '
        'looks at it once more, and may go on.'
      )


def start(prompt: Prompt, mode: str | None) -> trajectory_lib.Trajectory:
  """What to continue from. mode: of a trajectory that has no steps yet; None: its own, `process` for a text."""
  if isinstance(prompt, str):
    return trajectory_lib.Trajectory(prompt=prompt, steps=(), stop=None, mode=mode or trajectory_lib.PROCESS)
  if mode is None or prompt.steps:
    mode = prompt.mode
  return dataclasses.replace(prompt, stop=None, mode=mode)


def canvas(start: trajectory_lib.Trajectory, model: config_lib.ModelConfig) -> tuple[int, int] | None:
  """(H, W) of the array for the pictures of a trajectory; None where all are of the model's own size.

  The largest sides of its own pictures, rounded up to a quarter of the position table. Not of its batch: a convolution
  at the edge of a picture sees the rest of the canvas, and a result must not depend on the neighbours.
  """
  own = (model.image_size, model.image_size, 3)
  pictures = start.pictures
  for picture in pictures:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
      raise ValueError(
        f'The trajectory of {start.prompt!r} has a picture {picture.dtype}{list(picture.shape)}; '
        'pictures are uint8[H, W, 3].'
      )
  if all(picture.shape == own for picture in pictures):
    return None
  patch, table = model.codec.patch, model.max_latent_size
  bucket = -(-table // _CANVAS_SIZES)
  height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
  height, width = (patch * min(table, _round_up(-(-side // patch), bucket)) for side in (height, width))
  return height, width


def prefix_shape(requests: Sequence[Request], *, config: config_lib.Config, tokenizer: base.Tokenizer) -> PrefixShape:
  """The shape that holds the prefix of each of them, rounded up so that few different ones are ever compiled.

  Raises: ValueError for a text that is too long, where they do not share a canvas, or for a picture that does not fit.
  """
  for request in requests:
    _check_texts(request.start, config, tokenizer)
  canvases = {canvas(request.start, config.model) for request in requests}
  if len(canvases) > 1:
    raise ValueError(
      f"Trajectories with pictures of different sizes need canvases {sorted(canvases, key=str)} (None: the model's own "
      'size) and do not share a batch. Give them one at a time; `Painter.sample` does so by itself.'
    )
  shared = canvases.pop()
  sizes = [packing.sizes(_prefix(r.start, config, tokenizer, shared)) for r in requests]
  und, gen, pictures, vit = (max(column) for column in zip(*sizes, strict=True))
  und, pictures = _round_up(und, _UND_BUCKET), _round_up(pictures, _PICTURE_BUCKET)
  cells = config.model.latent_tokens
  if shared is None:
    return PrefixShape(packed.RowBudget(und, pictures * cells, pictures))
  gen, vit = _round_up(gen, _PICTURE_BUCKET * cells), _round_up(vit, _PICTURE_BUCKET * config.model.vit_tokens)
  return PrefixShape(packed.RowBudget(und, gen, pictures, vit), shared)


def sample_batch(
  requests: Sequence[Request],
  *,
  config: config_lib.Config,
  tokenizer: base.Tokenizer,
  batch_size: int | None = None,
  shape: PrefixShape | None = None,
) -> cycle.SampleBatch:
  """Requests as one batch, on the default device.

  Args:
    requests: at least one, at most `batch_size`.
    config: of the model and its sequence.
    tokenizer: of the prompts and texts.
    batch_size: rows; those beyond `requests` are idle copies of the first. None: one for each request.
    shape: what the prefixes are padded to; None: what these need.

  Raises: ValueError for more requests than rows, and as `prefix_shape`.
  """
  batch_size = batch_size or len(requests)
  if len(requests) > batch_size:
    raise ValueError(f'{len(requests)} trajectories do not fit a batch of {batch_size}.')
  idle = dataclasses.replace(requests[0], seed=0, pictures=0)
  requests = [*requests, *[idle] * (batch_size - len(requests))]
  shape = shape or prefix_shape(requests, config=config, tokenizer=tokenizer)
  rows = [packing.pack_row([_prefix(r.start, config, tokenizer, shape.canvas)], shape.row_budget) for r in requests]
  prefix = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *rows)
  return cycle.SampleBatch(
    prefix=packed.check(prefix),
    grammar=grammar.from_trajectories([r.start for r in requests]),
    key=jax.vmap(jax.random.key)(jnp.asarray([r.seed for r in requests], jnp.uint32)),
    picture_limit=jnp.asarray([r.pictures for r in requests], jnp.int32),
  )


def _prefix(
  start: trajectory_lib.Trajectory,
  config: config_lib.Config,
  tokenizer: base.Tokenizer,
  canvas: tuple[int, int] | None,
) -> packed.PackedBatch:
  """The sequence of a partial trajectory, unpadded, without the batch axis."""
  return sequence.build(
    start, tokenizer=tokenizer, model=config.model, sequence=config.data.sequence, rng=None, canvas=canvas
  )


def _has_ended(prompt: Prompt) -> bool:
  """Whether a process says that it is finished, and ends as finished ones do: with a picture, or words of approval."""
  if isinstance(prompt, str) or prompt.mode != trajectory_lib.PROCESS or prompt.stop != trajectory_lib.FINISHED:
    return False
  *_, last = (None, *prompt.items())
  approves = last is not None and last.kind == trajectory_lib.INSPECTION and not last.step.rejected
  return last is not None and (last.is_picture or approves)


def _check_texts(start: trajectory_lib.Trajectory, config: config_lib.Config, tokenizer: base.Tokenizer):
  """Raises ValueError for a prompt, or another text, of more tokens than a model could have seen in training."""
  most = max(_MAX_TEXT, config.data.und_tokens)
  texts = [('prompt', len(tokenizer.encode(start.prompt)))]
  texts += [(i.kind, len(tokenizer.encode_with_tags(i.text))) for i in start.items() if not i.is_picture]
  for kind, tokens in texts:
    if tokens > most:
      raise ValueError(f'The {kind} of {start.prompt[:40]!r}.. has {tokens:,} tokens, of at most {most:,}: shorten it.')


def _pictures_left(start: trajectory_lib.Trajectory, sampling: config_lib.SamplingConfig, pictures: int | None) -> int:
  """How many pictures the trajectory may still paint. pictures: the caller's own limit."""
  painted = len(start.pictures)
  if start.mode == trajectory_lib.DIRECT and painted:
    raise ValueError(
      f'The direct trajectory of {start.prompt!r} has its picture: nothing is left to paint. Give the prompt alone.'
    )
  left = min(sampling.max_pictures - painted, sampling.max_pictures if pictures is None else pictures)
  if left < 1:
    raise ValueError(
      f'The trajectory of {start.prompt!r} has {painted} pictures and may not paint another: '
      f'{sampling.max_pictures=}, {pictures=}. Raise the cap, or give it a shorter beginning.'
    )
  return left


def _round_up(n: int, multiple: int) -> int:
  return -(-n // multiple) * multiple if multiple else n
