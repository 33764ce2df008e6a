"""Sampling requests: from prompts and partial trajectories to the batch that the compiled program continues.

A prompt is a text, a picture, or texts and pictures in any order; a sequence that holds a picture is one prompt, any
other is many. What its mode (`core.modes`) allows is data of its row: a batch may hold requests of all modes.
Prefixes are padded to a few lengths, so that prompts of other lengths share a compiled program. Pictures of the model's
own size are read as in training on one size. Where a prefix holds a picture of another size, the program of its batch
takes pictures of all sizes: each is encoded alone before (`inference.encoding`). What is painted: `inference.sizes`.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from pdgen.core import config as config_lib
from pdgen.core import modes as modes_lib
from pdgen.core import packed
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import images, packing, sequence
from pdgen.data.tokenizers import base
from pdgen.inference import encoding, guidance
from pdgen.inference import sizes as sizes_lib
from pdgen.sampling import canvas, cycle, flow, grammar, stop_texts

# A file of a picture is a `pathlib.Path` (a str is a text), or its content.
Picture = np.ndarray | Image.Image | pathlib.Path | bytes
Size = sizes_lib.Size
Prompt = str | Picture | Sequence[str | Picture] | trajectory_lib.Trajectory

_UND_BUCKET = 32  # Lengths of prefixes are multiples of it.
_PICTURE_BUCKET = 2  # The same for the number of pictures.
_PICTURES = 'arrays uint8[H, W, 3], images of Pillow, or files as pathlib.Path'
# Numbers of a sampling config by which the program has a part more, unless they are these.
_OFF = {'top_k': 0, 'top_p': 1.0, 'repetition_penalty': 1.0, 'text_guidance': 1.0, 'image_guidance': 1.0}
_OFF['stop_texts'] = ()
_OF_EACH = (*flow.PER_TRAJECTORY, 'stop_texts')  # What the requests of a batch may have of their own.
_MAX_TEXT = 4096  # Tokens of a prompt or another text; more where a row of the training data has room for more.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """One trajectory to sample."""

  start: trajectory_lib.Trajectory  # What to continue from.
  seed: int  # Of its PRNG key.
  pictures: int  # At most so many more.
  has_ended: bool = False  # The trajectory was given as a finished one.
  sampling: config_lib.SamplingConfig
  size: Size | None = None  # (H, W) of the pictures to paint; None: the model's own.
  begins: tuple[tuple[int, ...], ...] = ()  # Ids that its texts begin with, one of several; (): as it likes.
  # Parts of the prompt that guidance knows, the first ones; None: all (`core.protocols.Protocol.guides_by_prompt`).
  asked: int | None = None

  def painted(self, model: config_lib.ModelConfig) -> Size | None:
    """(H, W) of the pictures to paint; None: it paints none."""
    return (self.size or model.own_size) if modes_lib.of(self.start.mode).paints else None


class BatchShape(NamedTuple):
  """What requests that may share a batch make of the compiled program, so that all batches of them have one."""

  row_budget: packed.RowBudget  # Of the prefixes.
  sampling: config_lib.SamplingConfig  # `joint`.
  any_size: bool = False  # Pictures of the prefixes may have any size, and are encoded apart.
  canvas: sizes_lib.Canvas = sizes_lib.Canvas()  # Of the pictures to paint.
  differ: bool = False  # Requests have numbers of the sampler of their own.


def make(
  prompts: Prompt | Sequence[Prompt],
  *,
  sampling: config_lib.SamplingConfig | Sequence[config_lib.SamplingConfig],
  mode: str | Sequence[str] | None = None,
  seed: int | np.integer | Sequence[int] = 0,
  pictures: int | None = None,
) -> list[Request]:
  """A request for each prompt. Arguments as of `painter.Painter.sample`, whose errors these are.

  Raises: ValueError for an unknown mode, no prompts, seeds that do not fit, or a trajectory with nothing left to paint.
  """
  whole: Any = prompts
  many: list[Any] = [whole] if is_one(whole) else list(whole)
  if not many:
    raise ValueError('There is nothing to sample: give at least one prompt.')
  modes = _of_each(mode, len(many), 'modes', one=(str, type(None)))
  for name in modes:
    if name is not None:
      modes_lib.of(name)
  seeds = [int(seed) + i for i in range(len(many))] if isinstance(seed, (int, np.integer)) else list(seed)
  if len(seeds) != len(many):
    raise ValueError(f'{len(seeds)} seeds for {len(many)} prompts.')
  for s in seeds:
    if not isinstance(s, (int, np.integer)) or not 0 <= s < 2**32:
      raise ValueError(f'Seeds are from 0 to 2**32 - 1, and a prompt takes the one after that of the last: not {s}.')
  starts = [start(prompt, name) for prompt, name in zip(many, modes, strict=True)]
  samplings = _of_each(sampling, len(many), 'sampling configs', one=config_lib.SamplingConfig)
  return [
    Request(
      start=s, seed=own_seed, pictures=_pictures_left(s, own, pictures), has_ended=_has_ended(prompt), sampling=own
    )
    for prompt, s, own_seed, own in zip(many, starts, seeds, samplings, strict=True)
  ]


def is_one(prompts: Any) -> bool:
  """Whether these are one prompt and not many: a text, a picture, a trajectory, or a sequence that holds a picture."""
  if isinstance(prompts, (str, trajectory_lib.Trajectory)) or _is_picture(prompts):
    return True
  return isinstance(prompts, Sequence) and any(map(_is_picture, prompts))


def sized(
  requests: Sequence[Request], size: Size | Sequence[Size | None] | None, model: config_lib.ModelConfig
) -> list[Request]:
  """The requests with the sizes of what they paint. size: (H, W) of all, or one for each; None: as the mode says.

  Raises: ValueError for a size that is not whole patches or does not fit the position table.
  """
  one = size is None or len(size) == 2 and all(isinstance(side, int) for side in size)
  wanted: list[Any] = [size] * len(requests) if one else _of_each(size, len(requests), 'sizes', one=())
  out = []
  for request, own in zip(requests, wanted, strict=True):
    if own is None and modes_lib.of(request.start.mode).size_of_given and request.start.given_pictures:
      own = sizes(request.start, model)[len(request.start.given_pictures) - 1]
    height, width = model.own_size if own is None else own
    sizes_lib.check((height, width), model)
    out.append(dataclasses.replace(request, size=(height, width)))
  return out


def check(requests: Sequence[Request]):
  """Raises ValueError for a finished trajectory: nothing would be painted, and what was given be the result."""
  for request in requests:
    if request.has_ended:
      raise ValueError(
        f'The trajectory of {request.start.prompt!r} is finished: nothing is left to paint. With stop=None the model '
        'looks at it once more, and may go on.'
      )


def check_streams(requests: Sequence[Request]):
  """Raises ValueError for a mode with a protocol: it is many calls, and no stream of one."""
  for request in requests:
    if modes_lib.of(request.start.mode).protocol:
      raise ValueError(f'Mode {request.start.mode!r} goes round by round and is not streamed: use Painter.sample.')


def start(prompt: Prompt, mode: str | None) -> trajectory_lib.Trajectory:
  """What to continue from. mode: of a trajectory that has no steps yet; None: its own, `process` for other prompts.

  Raises: ValueError for a picture that cannot be read, something that is neither text nor picture, and where the mode
    needs a picture and none is given.
  """
  if isinstance(prompt, trajectory_lib.Trajectory):
    if mode is None or prompt.steps:
      mode = prompt.mode
    made = dataclasses.replace(prompt, stop=None, mode=mode)
  else:
    whole: Any = prompt
    given: list[Any] = [whole] if isinstance(whole, str) or _is_picture(whole) else list(whole)
    if not given:
      raise ValueError('A prompt is a sequence of nothing: give a text or a picture.')
    for part in given:
      if not isinstance(part, str) and not _is_picture(part):
        raise ValueError(f'A prompt is texts and pictures, not {type(part).__name__}; pictures: {_PICTURES}.')
    parts = tuple(part if isinstance(part, str) else images.as_picture(part) for part in given)
    words, mode = trajectory_lib.joined(parts), mode or trajectory_lib.PROCESS
    parts = () if len(parts) == 1 and isinstance(parts[0], str) else parts
    made = trajectory_lib.Trajectory(prompt=words, steps=(), stop=None, mode=mode, parts=parts)
  if modes_lib.of(made.mode).needs_picture and not made.given_pictures:
    raise ValueError(
      f'Mode {made.mode!r} needs a picture, and the prompt {made.prompt[:80]!r} has none: give [picture, text].'
    )
  return made


def sizes(start: trajectory_lib.Trajectory, model: config_lib.ModelConfig) -> list[tuple[int, int]]:
  """(H, W) of the pictures of a trajectory as the model reads them, those of its prompt first.

  Raises: ValueError for what is no picture.
  """
  for picture in [*start.given_pictures, *start.pictures]:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
      raise ValueError(
        f'The trajectory of {start.prompt!r} has a picture {picture.dtype}{list(picture.shape)}; '
        'pictures are uint8[H, W, 3].'
      )
  rule = images.given(model)
  found = [rule.size(picture.shape[1], picture.shape[0]) for picture in start.given_pictures]
  own = [(picture.shape[0], picture.shape[1]) for picture in start.pictures]
  return [*((height, width) for width, height in found), *own]


def any_size(start: trajectory_lib.Trajectory, model: config_lib.ModelConfig) -> bool:
  """Whether a trajectory has a picture that is not of the model's own size."""
  return any(size != model.own_size for size in sizes(start, model))


def batch_shape(requests: Sequence[Request], *, config: config_lib.Config, tokenizer: base.Tokenizer) -> BatchShape:
  """The shape that holds each of them, rounded up so that few different ones are ever compiled.

  Raises: ValueError for a text that is too long, or for a picture that does not fit; as `joint`.
  """
  for request in requests:
    _check_texts(request.start, config, tokenizer)
  apart = any(any_size(request.start, config.model) for request in requests)
  taken = [packing.sizes(_prefix(r.start, config, tokenizer, any_size=apart)) for r in requests]
  und, gen, pictures, vit = (max(column) for column in zip(*taken, strict=True))
  # What grows from call to call is given more room each time, so that a few programs do for all rounds.
  grows = any(modes_lib.is_call(request.start.mode) for request in requests)
  rounded = _doubled if grows else _round_up
  und, pictures = rounded(und, _UND_BUCKET), rounded(pictures, _PICTURE_BUCKET)
  cells = config.model.latent_tokens
  if apart:
    gen, vit = rounded(gen, _PICTURE_BUCKET * cells), rounded(vit, _PICTURE_BUCKET * config.model.vit_tokens)
    budget = packed.RowBudget(und, gen, 0, vit)
  else:
    budget = packed.RowBudget(und, pictures * cells, pictures)
  numbers = {tuple(getattr(r.sampling, name) for name in flow.PER_TRAJECTORY) for r in requests}
  canvas_ = sizes_lib.canvas([r.painted(config.model) for r in requests], config.model)
  return BatchShape(budget, joint(requests), apart, canvas_, differ=len(numbers) > 1)


def sample_batch(
  requests: Sequence[Request],
  *,
  config: config_lib.Config,
  tokenizer: base.Tokenizer,
  encode: encoding.Encode,
  batch_size: int | None = None,
  shape: BatchShape | None = None,
) -> cycle.SampleBatch:
  """Requests as one batch, on the default device.

  Args:
    requests: at least one, at most `batch_size`.
    config: of the model and its sequence.
    tokenizer: of the prompts and texts.
    encode: of pictures that are not of the model's own size.
    batch_size: rows; those beyond `requests` are idle copies of the first. None: one for each request.
    shape: what they are padded to; None: what these need.

  Raises: ValueError for more requests than rows, and as `batch_shape`.
  """
  batch_size = batch_size or len(requests)
  if len(requests) > batch_size:
    raise ValueError(f'{len(requests)} trajectories do not fit a batch of {batch_size}.')
  idle = dataclasses.replace(requests[0], seed=0, pictures=0)
  requests = [*requests, *[idle] * (batch_size - len(requests))]
  shape = shape or batch_shape(requests, config=config, tokenizer=tokenizer)
  samples = [_prefix(r.start, config, tokenizer, any_size=shape.any_size) for r in requests]
  clean = None
  if shape.any_size:
    tokens = shape.row_budget.gen_tokens
    clean = jnp.asarray(encoding.clean_latents(samples, encode, tokens=tokens, codec=config.model.codec))
    samples = list(map(encoding.without_pictures, samples))
  rows = [packing.pack_row([sample], shape.row_budget) for sample in samples]
  prefix = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *rows)
  grids = canvas.Grids.of(config.model, [r.size or config.model.own_size for r in requests])
  seen = [guidance.seen(row, r.start, r.asked, tokenizer.specials) for row, r in zip(rows, requests, strict=True)]
  return cycle.SampleBatch(
    prefix=packed.check(prefix),
    grammar=grammar.from_trajectories([r.start for r in requests], [r.begins for r in requests]),
    key=jax.vmap(jax.random.key)(jnp.asarray([r.seed for r in requests], jnp.uint32)),
    picture_limit=jnp.asarray([r.pictures for r in requests], jnp.int32),
    kept_order=jnp.asarray([kept for kept, _ in seen], jnp.int32),
    texts_until=jnp.asarray([until for _, until in seen], jnp.int32),
    clean=clean,
    grids=grids if shape.canvas.most else None,
  )


def program_of(sampling: config_lib.SamplingConfig) -> config_lib.SamplingConfig:
  """What of a sampling config the requests of a batch share: all but what each may have of its own."""
  defaults = config_lib.SamplingConfig()
  return dataclasses.replace(sampling, **{name: getattr(defaults, name) for name in _OF_EACH})


def joint(requests: Sequence[Request]) -> config_lib.SamplingConfig:
  """The sampling config whose program does what any of the requests asks for.

  Raises: ValueError where they differ in more than each may have of its own.
  """
  samplings = [request.sampling for request in requests]
  if len(set(map(program_of, samplings))) > 1:
    raise ValueError(
      f'Requests whose sampling configs differ in more than {", ".join(_OF_EACH)} do not share a batch: '
      '`Painter.sample` makes one for each kind by itself.'
    )
  asked = {name: next((v for s in samplings if (v := getattr(s, name)) != off), off) for name, off in _OFF.items()}
  return dataclasses.replace(samplings[0], **asked)


def sampler_params(
  requests: Sequence[Request], batch_size: int, *, shape: BatchShape, tokenizer: base.Tokenizer
) -> flow.SamplerParams:
  """The sampler's arguments for a batch of requests and idle rows. tokenizer: of the stop texts.

  Raises: as `flow.SamplerParams.of`, `stop_texts.StopTexts.of`.
  """
  rows = [request.sampling for request in requests]
  rows += rows[:1] * (batch_size - len(rows))
  params = flow.SamplerParams.of_rows(rows, differ=shape.differ)
  if not shape.sampling.stop_texts:
    return params
  return params.replace(stops=stop_texts.StopTexts.of([row.stop_texts for row in rows], tokenizer.pieces))


def _prefix(
  start: trajectory_lib.Trajectory,
  config: config_lib.Config,
  tokenizer: base.Tokenizer,
  *,
  any_size: bool,
) -> packed.PackedBatch:
  """The sequence of a partial trajectory, unpadded, without the batch axis."""
  canvas = None
  if any_size:  # Holds the pictures until they are encoded, and no longer.
    patch = config.model.codec.patch
    canvas = tuple(map(max, zip((patch, patch), *sizes(start, config.model), strict=True)))
  return sequence.build(
    start, tokenizer=tokenizer, model=config.model, sequence=config.data.sequence, rng=None, canvas=canvas
  )


def _has_ended(prompt: Prompt) -> bool:
  """Whether a process says that it is finished, and ends as finished ones do: with a picture, or words of approval."""
  if not isinstance(prompt, trajectory_lib.Trajectory) or prompt.stop != trajectory_lib.FINISHED:
    return False
  *_, last = (None, *prompt.items())
  if modes_lib.of(prompt.mode).texts != modes_lib.STEPS:
    return last is not None and prompt.mode != trajectory_lib.DIRECT  # Of that `_pictures_left` has told.
  approves = last is not None and last.kind == trajectory_lib.INSPECTION and not last.step.rejected
  return last is not None and (last.is_picture or approves)


def _is_picture(value: Any) -> bool:
  return isinstance(value, np.ndarray | Image.Image | pathlib.Path | bytes)


def _of_each(value: Any, count: int, what: str, *, one: Any) -> list[Any]:
  """A value for each of the prompts. one: type of a value that is that of all."""
  if isinstance(value, one):
    return [value] * count
  values = list(value)
  if len(values) != count:
    raise ValueError(f'{len(values)} {what} for {count} prompts.')
  return values


def _check_texts(start: trajectory_lib.Trajectory, config: config_lib.Config, tokenizer: base.Tokenizer):
  """Raises ValueError for a prompt, or another text, of more tokens than a model could have seen in training."""
  most = max(_MAX_TEXT, config.data.und_tokens)
  texts = [('prompt', len(tokenizer.encode(part))) for part in start.given if isinstance(part, str)]
  texts += [(i.kind, len(tokenizer.encode_with_tags(i.text))) for i in start.items() if not i.is_picture]
  for kind, tokens in texts:
    if tokens > most:
      raise ValueError(f'The {kind} of {start.prompt[:40]!r}.. has {tokens:,} tokens, of at most {most:,}: shorten it.')


def _pictures_left(start: trajectory_lib.Trajectory, sampling: config_lib.SamplingConfig, pictures: int | None) -> int:
  """How many pictures the trajectory may still paint. pictures: the caller's own limit."""
  painted, mode = len(start.pictures), modes_lib.of(start.mode)
  if not mode.paints:
    return 1  # None of it is used, but a row without any is an idle one.
  if mode.paints_once and painted:
    raise ValueError(
      f'The {start.mode} trajectory of {start.prompt!r} has its picture: nothing is left to paint. Give the prompt '
      'alone.'
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


def _doubled(n: int, least: int) -> int:
  """The first of 0, least, 2 least, 4 least, .. that is not below n."""
  return least << max(0, math.ceil(math.log2(n / least))) if n and least else n
