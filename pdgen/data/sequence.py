r"""A trajectory as one row of tokens: spans, positions, reach, labels, weights (design, "The sequence").

    prompt | plan | noised .. clean ViT | inspection | [corrected plan |] [noised .. clean ViT |] plan | ...

The layout of a direct trajectory without prompt words, pictures of 2x2 latent patches, no ViT, one noised copy
(`^` noised copy, `n` order, `r` reach, `p` position, `s` span):

>>> import numpy as np
>>> from pdgen.core import config, trajectory
>>> from pdgen.data import tokenizer
>>> model = config.ModelConfig(image_size=16, codec=config.CodecConfig(patch=8), max_latent_size=2)
>>> picture = np.zeros([16, 16, 3], np.uint8)
>>> direct = trajectory.Trajectory(prompt='', steps=(trajectory.Step(draft=picture),))
>>> words = tokenizer.load('shapes')
>>> never = config.SequenceConfig(drop_text=0.0)
>>> row = build(direct, tokenizer=words, model=model, sequence=never, rng=np.random.default_rng(0))
>>> print(describe(row, words))
n   r   p  s  token              learns
0   0   0  0  <|im_start|>
1   1   1  0  <|im_end|>
2   2   2  1  <|vision_start|>^
3   3   2  1  patch 0^           flow 1
4   4   2  1  patch 1^           flow 1
5   5   2  1  patch 2^           flow 1
6   6   2  1  patch 3^           flow 1
7   7   2  1  <|vision_end|>^
8   8   2  2  <|vision_start|>
9   9   2  2  patch 0
10  10  2  2  patch 1
11  11  2  2  patch 2
12  12  2  2  patch 3
13  13  2  2  <|vision_end|>     <|endoftext|> 1

With `drop_text=1.0` the noised copy reaches nothing (r = -1) and stands at position 0, as if it came first.
"""

import dataclasses
import re

import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import layout as layout_lib
from pdgen.data.tokenizers import base


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Text:
  """A text span. weight: of its tokens; verdict: of an inspection's decisive words."""

  ids: list[int]
  learned: bool
  weight: float = 0.0
  verdict: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Picture:
  """A picture. target: it is painted, so that training adds noised copies; end_weight: of its last `vision_end`."""

  pixels: np.ndarray
  target: bool
  end_weight: float


def build(
  trajectory: trajectory_lib.Trajectory,
  *,
  tokenizer: base.Tokenizer,
  model: config_lib.ModelConfig,
  sequence: config_lib.SequenceConfig,
  rng: np.random.Generator | None,
) -> packed.PackedBatch:
  """One sample, unpadded, without the batch axis: und int32[U], gen int32[G], pictures uint8[P, H, W, 3]; segment 1.

  rng: draws the condition dropout. None: an inference prefix, without noised copies and without dropout.

  Supervision. A text the model wrote predicts its tokens and its `im_end` (plan_weight, inspection_weight; an
  inspection's decisive words, see SequenceConfig.decisive, verdict_weight, those that tell of a fault fault_weight
  times as much), then what follows it (boundary_weight): paint, write again or, after an inspection, finish. The last
  kept copy of a picture predicts at its `vision_end` whether the work goes on or is finished: on a draft that is a
  verdict, so that its weight is max(boundary_weight, verdict_weight). Nothing is learned on the prompt, on what the
  config excludes as rejected, where the successor is unknown (a partial trajectory), or after a picture that keeps no
  copy.

  A trajectory is direct when its first step has no plan: `Trajectory(prompt=.., steps=(Step(),), stop=None)` is the
  prefix of a direct painting, `steps=()` that of a process.

  Raises: ValueError for a picture whose size is not the model's, or a step whose parts are out of order.
  """
  blocks = _blocks(trajectory, tokenizer, sequence)
  approved = any(s.inspection is not None and not s.rejected for s in trajectory.steps[-1:])
  finished = trajectory.stop == trajectory_lib.FINISHED and (isinstance(blocks[-1], _Picture) or approved)
  layout = _Layout(tokenizer.specials, model)
  # Always two draws, so that a change of one probability changes nothing else.
  luck_clean, luck_vit = (1.0, 1.0) if rng is None else rng.random(2)
  keep_clean = luck_clean >= sequence.drop_clean
  keep_vit = model.vit is not None and luck_vit >= sequence.drop_vit
  pictures: list[np.ndarray] = []
  for i, block in enumerate(blocks):
    successor = _successor(blocks, i, tokenizer.specials, finished=finished)
    if isinstance(block, _Text):
      # A text after a picture that left no copy would be written unseen.
      learned = block.learned and (keep_clean or keep_vit or not pictures)
      layout.write(block, sequence, tokenizer, successor=successor, learned=learned)
      continue
    _check_picture(block.pixels, model, trajectory)
    copies = sequence.noised_copies if block.target and rng is not None else 0
    blind = rng.random(copies) < sequence.drop_text if copies else ()
    layout.show(len(pictures), block, blind=blind, keep_clean=keep_clean, keep_vit=keep_vit, successor=successor)
    pictures.append(block.pixels)
  size = model.image_size
  pixels = np.stack(pictures) if pictures else np.zeros([0, size, size, 3], np.uint8)
  return layout.row(pixels)


def describe(row: packed.PackedBatch, tokenizer: base.Tokenizer) -> str:
  """A table of a row's tokens in interleaved order, one line each; see the module's example."""
  lines = [('n', 'r', 'p', 's', 'token', 'learns')]
  order = np.concatenate([row.und.tokens.order, row.gen.tokens.order])
  for i in np.argsort(order, kind='stable'):
    stream, j = (row.und, i) if i < len(row.und.label) else (row.gen, i - len(row.und.label))
    meta = packed.TokenMeta(*(int(field[j]) for field in stream.tokens))
    if stream is row.gen:
      token, learns = f'patch {stream.patch[j]}', f'flow {stream.weight[j]:g}' if stream.weight[j] else ''
    else:
      seen = stream.picture[j] >= 0
      token = f'ViT {stream.patch[j]}' if seen else repr(tokenizer.decode([stream.token_id[j]]))[1:-1]
      label = repr(tokenizer.decode([stream.label[j]]))[1:-1]
      learns = f'{label} {stream.weight[j]:.3g}' if stream.weight[j] else ''
    noised = '^' if meta.noised else ''
    lines.append((str(meta.order), str(meta.reach), str(meta.position), str(meta.span), token + noised, learns))
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join('  '.join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _blocks(
  trajectory: trajectory_lib.Trajectory, tokenizer: base.Tokenizer, cfg: config_lib.SequenceConfig
) -> list[_Text | _Picture]:
  """Texts and pictures in the order of the sequence, with what each of them teaches."""
  steps = trajectory.steps
  direct = bool(steps) and steps[0].plan is None
  opening = cfg.direct_opening if direct else cfg.opening
  blocks: list[_Text | _Picture] = [_Text(ids=tokenizer.encode(opening + trajectory.prompt), learned=False)]
  verdict_end = max(cfg.boundary_weight, cfg.verdict_weight)
  for number, step in enumerate(steps):
    _check_step(trajectory, number)
    if step.plan is not None:
      learned = cfg.learn_rejected_plans or not step.plan_rejected
      blocks.append(_Text(ids=tokenizer.encode_with_tags(step.plan), learned=learned, weight=cfg.plan_weight))
    if step.draft is not None:
      target = step.draft_is_target and (cfg.learn_rejected_drafts or not step.rejected)
      blocks.append(_Picture(pixels=step.draft, target=target, end_weight=verdict_end))
    if step.inspection is not None:
      ids = tokenizer.encode_with_tags(step.inspection)
      blocks.append(_Text(ids=ids, learned=True, weight=cfg.inspection_weight, verdict=cfg.verdict_weight))
    if step.corrected_plan is not None:
      blocks.append(_Text(ids=tokenizer.encode_with_tags(step.corrected_plan), learned=True, weight=cfg.plan_weight))
    if step.refined is not None:
      blocks.append(_Picture(pixels=step.refined, target=True, end_weight=cfg.boundary_weight))
  return blocks


def _check_step(trajectory: trajectory_lib.Trajectory, number: int):
  step = trajectory.steps[number]
  where = f'Step {number} of the trajectory of {trajectory.prompt!r}'
  if step.draft is None:
    if number + 1 < len(trajectory.steps):
      raise ValueError(f'{where} has no draft. Only the last step of a partial trajectory may lack one.')
    if step.inspection is not None or step.refined is not None:
      raise ValueError(f'{where} has an inspection or a refined picture, but no draft that it could be about.')
  if step.inspection is None and (step.refined is not None or step.corrected_plan is not None):
    raise ValueError(f'{where} has a corrected plan or a refined picture, but no inspection that asks for it.')


def _check_picture(pixels: np.ndarray, model: config_lib.ModelConfig, trajectory: trajectory_lib.Trajectory):
  want = (model.image_size, model.image_size, 3)
  if pixels.shape != want or pixels.dtype != np.uint8:
    raise ValueError(
      f'A picture of the trajectory of {trajectory.prompt!r} is {pixels.dtype}{list(pixels.shape)}; the model paints '
      f'uint8{list(want)}. Resize it or set config.model.image_size.'
    )


def _successor(blocks: list[_Text | _Picture], i: int, specials: config_lib.Specials, *, finished: bool) -> int | None:
  """Id that comes after block i, or None where that is unknown."""
  if i + 1 < len(blocks):
    return specials.im_start if isinstance(blocks[i + 1], _Text) else specials.vision_start
  return specials.endoftext if finished else None


class _Layout(layout_lib.Layout):
  """The blocks of a trajectory, as spans and copies."""

  def __init__(self, specials: config_lib.Specials, model: config_lib.ModelConfig):
    super().__init__(specials)
    self._latents = packed.position_ids(
      model.latent_grid, model.latent_grid, model.max_latent_size, interpolate=model.interpolate_positions
    )
    self._vit = np.arange(model.vit_tokens, dtype=np.int32)
    self._has_vit = model.vit is not None
    self._copies = 0
    self._before = (-1, 0)  # Last order and counter right after the last picture: what a text-blind copy knows.

  def write(
    self,
    block: _Text,
    cfg: config_lib.SequenceConfig,
    tokenizer: base.Tokenizer,
    *,
    successor: int | None,
    learned: bool,
  ):
    """A text. successor: what comes after it."""
    length = len(block.ids) + 2
    weights = [0.0] * length
    if learned:
      # On the text itself, never on the boundary label (BAGEL).
      scale = layout_lib.length_weight(length - 1) if cfg.length_weighting else 1.0
      weights[:-1] = [block.weight * scale] * (length - 1)
      if block.verdict is not None:
        for i in _places(block.ids, tokenizer, cfg.decisive):
          weights[i] = block.verdict * scale
        for i in _places(block.ids, tokenizer, cfg.faults):
          weights[i] *= cfg.fault_weight
      weights[-1] = cfg.boundary_weight if successor is not None else 0.0
    self.text(block.ids, weights=weights, end_label=successor)

  def show(self, picture: int, block: _Picture, *, blind, keep_clean: bool, keep_vit: bool, successor: int | None):
    """Noised copies, then the clean and the ViT copy, which advance the position even where they are dropped."""
    latents = dict(is_gen=True, picture=picture)
    for is_blind in blind:
      self._copies += 1
      reach, position = self._before if is_blind else (None, self.position)
      self.copy(self._latents, position=position, reach=reach, noised=True, copy=self._copies, **latents)
    end = dict(end_label=successor, end_weight=block.end_weight)
    if keep_clean:
      self.copy(self._latents, position=self.position, **latents, **({} if keep_vit else end))
    self.position += 1
    if keep_vit:
      self.copy(self._vit, is_gen=False, picture=picture, position=self.position, **end)
    self.position += int(self._has_vit)
    self._before = (self.order - 1, self.position)


def _places(ids: list[int], tokenizer: base.Tokenizer, patterns: tuple[str, ...]) -> list[int]:
  """Places of the tokens that hold a part of what the patterns match, ` wrong` of `This step is wrong. The ring ..`.

  Not of the sentence around them: how it begins is chosen at random, and weight on a choice is weight on noise.
  """
  pieces = [tokenizer.decode([i]) for i in ids]
  ends = np.cumsum([len(piece) for piece in pieces], dtype=int)
  matches = [m.span() for pattern in patterns for m in re.finditer(pattern, ''.join(pieces))]
  return [
    i
    for i, (end, piece) in enumerate(zip(ends, pieces, strict=True))
    if any(first < end and end - len(piece) < last for first, last in matches)
  ]
