r"""Token table: each token of a packed row in plain values, with its expert, copy, loss, weight and label.

What a row teaches is read off the arrays that the losses read (`PackedBatch.und.weight`, `PackedBatch.gen.weight`), so
that `sequence.describe` and the page of a data set (`pdgen.dataset_page`) show what is trained.

>>> from pdgen.core import config
>>> from pdgen.data import items, tokenizers
>>> words, plain = tokenizers.load('shapes'), config.SequenceConfig()
>>> model = config.ModelConfig(codec=config.CodecConfig(patch=8), max_latent_size=4)
>>> grey = np.zeros([8, 16, 3], np.uint8)
>>> picture = items.Latents(pixels=grey, learned=True)
>>> row = items.build([picture], specials=words.specials, model=model, sequence=plain, canvas=(16, 16))
>>> for r in rows(row, words):
...   print(r.order, r.expert, r.index, r.copy, r.token, r.loss or '-', r.weight)
0 und 0 noised <|vision_start|> - 0.0
1 gen 0 noised patch 0 flow 1.0
2 gen 1 noised patch 1 flow 1.0
3 und 1 noised <|vision_end|> - 0.0
>>> [(run[0].token, len(run)) for run in runs(rows(row, words))]
[('<|vision_start|>', 1), ('patch 0', 2), ('<|vision_end|>', 1)]
"""

import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np

from pdgen.core import packed
from pdgen.data.tokenizers import base

UND, GEN = EXPERTS = ('und', 'gen')
TEXT, NOISED, CLEAN, VIT = COPIES = ('text', 'noised', 'clean', 'ViT')
CE, FLOW, NONE = LOSSES = ('cross-entropy', 'flow', '')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRow:
  """One token of a row. Numbers as in `core.packed`."""

  segment: int  # Sample of the row, from 1.
  order: int  # Place in the interleaved sequence of the sample.
  expert: str  # One of EXPERTS: which weights it goes through.
  index: int  # Its place in the stream of its expert.
  reach: int  # Last order that it may see outside its own span.
  position: int  # RoPE position.
  span: int  # Number of its picture copy; 0 for text.
  copy: str  # One of COPIES: what it is a part of, boundary tokens included.
  noised: bool  # Hidden from all tokens outside its span.
  token: str  # Its text, escaped as in Python; `patch 3`, `ViT 3`.
  picture: int | None  # Picture of the row; with `PackedBatch.vit`, of ViT tokens: picture of the ViT.
  patch: int | None  # Position id of a latent patch, place of a ViT patch.
  loss: str  # One of LOSSES.
  weight: float  # In that loss; 0 for none.
  label: str  # What it must predict, as text; '' unless the loss is the cross-entropy.


def rows(row: packed.PackedBatch, tokenizer: base.Tokenizer) -> list[TokenRow]:
  """Every token of a row without batch axis, in interleaved order, one sample after the other; no padding."""
  und, gen, copies = row.und, row.gen, _copies(row)
  out = []
  for i in np.flatnonzero(und.tokens.segment > 0).tolist():
    seen, learned = bool(und.picture[i] >= 0), bool(und.weight[i])
    where = _where(und.tokens, i, copies)
    out.append(
      TokenRow(
        **where,
        expert=UND,
        index=i,
        token=f'ViT {und.patch[i]}' if seen else _spelled(tokenizer, und.token_id[i]),
        picture=int(und.picture[i]) if seen else None,
        patch=int(und.patch[i]) if seen else None,
        loss=CE if learned else NONE,
        weight=float(und.weight[i]),
        label=_spelled(tokenizer, und.label[i]) if learned else '',
      )
    )
  for i in np.flatnonzero(gen.tokens.segment > 0).tolist():
    where = _where(gen.tokens, i, copies)
    out.append(
      TokenRow(
        **where,
        expert=GEN,
        index=i,
        token=f'patch {gen.patch[i]}',
        picture=int(gen.picture[i]),
        patch=int(gen.patch[i]),
        loss=FLOW if gen.weight[i] else NONE,
        weight=float(gen.weight[i]),
        label='',
      )
    )
  return sorted(out, key=lambda token: (token.segment, token.order))


def runs(table: Iterable[TokenRow]) -> list[list[TokenRow]]:
  """The rows in order, patches in a run together: equal but for order, index (both by 1), patch, and reach of own."""
  out: list[list[TokenRow]] = []
  for token in table:
    last = out[-1][-1] if out else None
    if last is not None and last.patch is not None and _follows(last, token):
      out[-1].append(token)
    else:
      out.append([token])
  return out


def ranges(numbers: Iterable[int]) -> str:
  """Ascending stretches of numbers in short.

  >>> ranges([0, 1, 2, 64, 65, 7])
  '0-2, 64-65, 7'
  """
  out = []
  for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
    stretch = [number for _, number in group]
    out.append(f'{stretch[0]}-{stretch[-1]}' if len(stretch) > 1 else f'{stretch[0]}')
  return ', '.join(out)


def _follows(last: TokenRow, token: TokenRow) -> bool:
  moved = dict(order=last.order + 1, index=last.index + 1, patch=token.patch, token=token.token)
  moved['reach'] = last.reach + 1 if last.reach == last.order else last.reach
  return token.patch is not None and token == dataclasses.replace(last, **moved)


def _copies(row: packed.PackedBatch) -> dict[tuple[int, int], str]:
  """Which copy of a picture a span is, by (segment, span)."""
  gen, seen = row.gen, row.und.picture >= 0
  out = {}
  for segment, span, copy in zip(gen.tokens.segment.tolist(), gen.tokens.span.tolist(), gen.copy.tolist(), strict=True):
    out[segment, span] = NOISED if copy else CLEAN
  for segment, span in zip(row.und.tokens.segment[seen].tolist(), row.und.tokens.span[seen].tolist(), strict=True):
    out[segment, span] = VIT
  return out


def _where(tokens: packed.TokenMeta, i: int, copies: dict[tuple[int, int], str]) -> dict:
  """The fields of a row that its metadata give."""
  fields = {name: int(field[i]) for name, field in tokens._asdict().items()}
  copy = copies[fields['segment'], fields['span']] if fields['span'] else TEXT
  return {**fields, 'noised': bool(fields['noised']), 'copy': copy}


def _spelled(tokenizer: base.Tokenizer, token_id: int) -> str:
  return repr(tokenizer.decode([int(token_id)]))[1:-1]
