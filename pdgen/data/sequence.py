r"""A trajectory as a token sequence: its items (`data.items`) and what each teaches (docs/design.md, section 2).

    prompt | plan | noised .. clean ViT | inspection | [corrected plan |] [noised .. clean ViT |] plan | ...

The layout of a direct trajectory without prompt words, pictures of 2x2 latent patches, no ViT, one noised copy
(`^` noised copy, `n` order, `r` reach, `p` position, `s` span):

>>> import numpy as np
>>> from pdgen.core import config, trajectory
>>> from pdgen.data import tokenizers
>>> model = config.ModelConfig(image_size=16, codec=config.CodecConfig(patch=8), max_latent_size=2)
>>> picture = np.zeros([16, 16, 3], np.uint8)
>>> direct = trajectory.Trajectory(prompt='', steps=(trajectory.Step(draft=picture),), mode='direct')
>>> words = tokenizers.load('shapes')
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

import re
from collections.abc import Iterable

import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import modes, packed
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import images, token_table
from pdgen.data import items as items_lib
from pdgen.data.tokenizers import base


def build(
  trajectory: trajectory_lib.Trajectory,
  *,
  tokenizer: base.Tokenizer,
  model: config_lib.ModelConfig,
  sequence: config_lib.SequenceConfig,
  rng: np.random.Generator | None,
  canvas: tuple[int, int] | None = None,
) -> packed.PackedBatch:
  """One sample, unpadded, without the batch axis: und int32[U], gen int32[G], pictures uint8[P, H, W, 3]; segment 1.

  Args:
    trajectory: finished, or partial.
    tokenizer: of its texts.
    model: its sizes.
    sequence: weights, dropout, noised copies.
    rng: draws the condition dropout. None: an inference prefix, without noised copies and without dropout.
    canvas: (H, W) that holds pictures of any size; None: all are of the model's own size (see `items.build`).

  Raises: ValueError for a picture that does not fit the model, naming the trajectory.
  """
  items = to_items(trajectory, tokenizer=tokenizer, model=model, sequence=sequence, rng=rng, canvas=canvas)
  try:
    return items_lib.build(items, specials=tokenizer.specials, model=model, sequence=sequence, canvas=canvas)
  except ValueError as error:
    raise ValueError(f'The trajectory of {trajectory.prompt!r} does not fit the model: {error}') from error


def to_items(
  trajectory: trajectory_lib.Trajectory,
  *,
  tokenizer: base.Tokenizer,
  model: config_lib.ModelConfig,
  sequence: config_lib.SequenceConfig,
  rng: np.random.Generator | None,
  canvas: tuple[int, int] | None = None,
) -> list[items_lib.Item]:
  """The items of a trajectory, dropout applied. Arguments as of `build`.

  Supervision. A text the model wrote predicts its tokens and its `im_end` (plan_weight and those of the other kinds; an
  inspection's decisive words, see SequenceConfig.decisive, verdict_weight, those that tell of a fault fault_weight
  times as much), then what follows it (boundary_weight): paint, write again or, after an inspection, finish. The last
  kept copy of a picture predicts at its `vision_end` whether the work goes on or is finished: on a draft that is a
  verdict, so that its weight is max(boundary_weight, verdict_weight). Nothing is learned on the prompt, on what has
  weight 0 (docs/design.md#what-is-learned), where the successor is unknown (a partial trajectory), or after a picture
  that keeps no copy.
  """
  for number, step in enumerate(trajectory.steps[:-1]):
    if step.draft is None and step.text is None:
      raise ValueError(
        f'Step {number} of the trajectory of {trajectory.prompt!r} has no draft. Only the last step of a partial '
        'trajectory may lack one.'
      )
  parts = list(trajectory.items())
  successors = _successors(trajectory, parts, tokenizer.specials)
  # Always two draws, so that a change of one probability changes nothing else.
  u_clean, u_vit = (1.0, 1.0) if rng is None else rng.random(2)
  keep_clean = u_clean >= sequence.drop_clean
  keep_vit = model.vit is not None and u_vit >= sequence.drop_vit
  out = _given_items(
    trajectory, tokenizer, model, sequence, keep_clean=keep_clean, keep_vit=keep_vit, end=successors[0], canvas=canvas
  )
  # A text after a picture that left no copy would be written unseen.
  seen_nothing = bool(trajectory.given_pictures) and not any(_is_copy(item) for item in out)
  for part, successor in zip(parts, successors[1:], strict=True):
    if part.is_picture:
      blind = rng.random(sequence.noised_copies) < sequence.drop_text if rng and _flow_weight(part, sequence) else ()
      out += _picture_items(
        part, model, sequence, blind=blind, keep_clean=keep_clean, keep_vit=keep_vit, end=successor, canvas=canvas
      )
      seen_nothing = not (keep_clean or keep_vit)
    else:
      out.append(_text_item(part, tokenizer, sequence, end=successor, learned=not seen_nothing))
  return out


def describe(row: packed.PackedBatch, tokenizer: base.Tokenizer) -> str:
  """A table of a row's tokens in interleaved order (`token_table.rows`), one line each; see the module's example."""
  lines = [('n', 'r', 'p', 's', 'token', 'learns')]
  for token in token_table.rows(row, tokenizer):
    learns = {
      token_table.CE: f'{token.label} {token.weight:.3g}',
      token_table.FLOW: f'flow {token.weight:g}',
      token_table.NONE: '',
    }[token.loss]
    order, reach, position, span = map(str, (token.order, token.reach, token.position, token.span))
    lines.append((order, reach, position, span, token.token + '^' * token.noised, learns))
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join('  '.join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _successors(
  trajectory: trajectory_lib.Trajectory, parts: list[trajectory_lib.Item], specials: config_lib.Specials
) -> list[int | None]:
  """Id that comes after the prompt and after each part; None where that is unknown."""
  ids: list[int | None] = [specials.vision_start if part.is_picture else specials.im_start for part in parts]
  last = parts[-1] if parts else None
  approves = last is not None and last.kind == trajectory_lib.INSPECTION and not last.step.rejected
  ends = last is not None and (last.is_picture or approves or last.kind == trajectory_lib.TEXT)
  return [*ids, specials.endoftext if ends and trajectory.stop == trajectory_lib.FINISHED else None]


def _given_items(
  trajectory: trajectory_lib.Trajectory,
  tokenizer: base.Tokenizer,
  model: config_lib.ModelConfig,
  sequence: config_lib.SequenceConfig,
  *,
  keep_clean: bool,
  keep_vit: bool,
  end: int | None,
  canvas: tuple[int, int] | None,
) -> list[items_lib.Item]:
  """The prompt: its mode's system prompt, its texts, and the copies of its pictures; nothing of it is learned.

  Pictures are resized by the model's rules (`images.given`). end: id that follows the prompt.
  """
  mode, given = modes.of(trajectory.mode), list(trajectory.given)
  opening = getattr(sequence, mode.opening) if mode.opening else ''
  copies = (modes.CLEAN,) if model.vit is None else mode.copies
  keep = {modes.CLEAN: keep_clean, modes.VIT: keep_vit}
  texts = [mode.system] if mode.system else []
  texts += [part for part in given if isinstance(part, str)]
  given = [mode.system, *given] if mode.system else given
  out: list[items_lib.Item] = []
  read = 0  # Texts so far.
  for number, part in enumerate(given):
    label = end if number == len(given) - 1 else None
    if isinstance(part, str):
      read += 1
      first = read == 1 + bool(mode.system)
      ids = tuple(tokenizer.encode((opening if first else '') + part))
      kept = mode.text_guidance_drops == modes.LAST_TEXT and read < len(texts)
      out.append(items_lib.Text(ids=ids, end_label=label, end_weight=0.0, kept=kept))
      continue
    pixels = images.given(model).resize(part)
    for copy in copies:
      if not keep[copy]:
        out.append(items_lib.Gap())
      elif copy == modes.CLEAN:
        out.append(items_lib.Latents(pixels=pixels))
      else:
        assert model.vit is not None
        seen = pixels if canvas is None else images.given_for_vit(model.vit).resize(pixels)
        out.append(items_lib.Patches(pixels=seen))
  return out


def _is_copy(item: items_lib.Item) -> bool:
  return isinstance(item, items_lib.Latents | items_lib.Patches)


def _flow_weight(part: trajectory_lib.Item, sequence: config_lib.SequenceConfig) -> float:
  """Weight of the noised copies that training adds of a picture; 0: it is not painted."""
  if part.kind == trajectory_lib.REFINED:
    return sequence.refined_weight
  if not part.step.draft_is_target:
    return 0.0
  return sequence.rejected_draft_weight if part.step.rejected else sequence.draft_weight


def _picture_items(
  part: trajectory_lib.Item,
  model: config_lib.ModelConfig,
  sequence: config_lib.SequenceConfig,
  *,
  blind: Iterable[bool],
  keep_clean: bool,
  keep_vit: bool,
  end: int | None,
  canvas: tuple[int, int] | None,
) -> list[items_lib.Item]:
  """Noised copies, then the clean and the ViT copy, which advance the position even where they are dropped."""
  pixels = part.picture
  is_draft = part.kind == trajectory_lib.DRAFT
  weight = sequence.boundary_weight
  if is_draft and weight:
    weight = max(weight, sequence.verdict_weight)
  flow = _flow_weight(part, sequence)
  out: list[items_lib.Item] = [
    items_lib.Latents(pixels=pixels, learned=True, weight=flow, blind=bool(b)) for b in blind
  ]
  if keep_clean:
    label = None if keep_vit else end
    out.append(items_lib.Latents(pixels=pixels, end_label=label, end_weight=weight))
  else:
    out.append(items_lib.Gap())
  if keep_vit:
    seen = pixels if canvas is None else images.for_vit(pixels, model)
    out.append(items_lib.Patches(pixels=seen, end_label=end, end_weight=weight))
  elif model.vit is not None:
    out.append(items_lib.Gap())
  return out


def _text_item(
  part: trajectory_lib.Item,
  tokenizer: base.Tokenizer,
  sequence: config_lib.SequenceConfig,
  *,
  end: int | None,
  learned: bool,
) -> items_lib.Text:
  """A text that a model wrote. learned: unless it is a rejected plan of weight 0."""
  ids = tokenizer.encode_with_tags(part.text)
  is_rejected = part.kind == trajectory_lib.PLAN and part.step.plan_rejected
  if is_rejected:
    weight = sequence.rejected_plan_weight
  else:
    weight = getattr(sequence, f'{part.kind}_weight')  # The names of the fields are those of the kinds.
  if not learned or is_rejected and not weight:
    return items_lib.Text(ids=tuple(ids), end_label=end, end_weight=0.0)
  weights = [weight] * (len(ids) + 1)
  if part.kind == trajectory_lib.INSPECTION and weight:
    pieces = [tokenizer.decode([i]) for i in ids]
    for i in _places(pieces, sequence.decisive):
      weights[i] = sequence.verdict_weight
    for i in _places(pieces, sequence.faults):
      weights[i] *= sequence.fault_weight
  return items_lib.Text(ids=tuple(ids), weights=tuple(weights), end_label=end)


def _places(pieces: list[str], patterns: tuple[str, ...]) -> list[int]:
  """Places of the tokens that hold a part of what the patterns match, ` wrong` of `This step is wrong. The ring ..`.

  Not of the sentence around them: how it begins is chosen at random, and weight on a choice is weight on noise.

  pieces: text of each token.
  """
  text, ends = ''.join(pieces), np.cumsum([len(piece) for piece in pieces], dtype=int)
  starts = ends - [len(piece) for piece in pieces]
  found = np.zeros(len(pieces), bool)
  for pattern in patterns:
    for match in re.finditer(pattern, text):
      first, last = np.searchsorted(ends, match.start(), 'right'), np.searchsorted(starts, match.end(), 'left')
      found[first:last] = True
  return np.flatnonzero(found).tolist()
