"""What the branches of guidance see of a prefix, by the rules of its mode (`core.modes`)."""

from pdgen.core import config as config_lib
from pdgen.core import modes, packed
from pdgen.core import trajectory as trajectory_lib


def seen(
  row: packed.PackedBatch, start: trajectory_lib.Trajectory, asked: int | None, specials: config_lib.Specials
) -> tuple[int, int]:
  """(kept_order, texts_until) of a prefix, as of `cycle.SampleBatch`.

  Args:
    row: the prefix.
    start: what it is the prefix of.
    asked: parts of the prompt that guidance knows, the first ones; None: all, and the pictures of steps.
    specials: ids of the tokenizer.
  """
  mode, parts = modes.of(start.mode), start.given[:asked]
  given = sum(isinstance(part, str) for part in parts) + bool(mode.system)
  tokens, others = row.und.tokens, row.gen.tokens
  begins = tokens.order[(row.und.token_id == specials.im_start) & (tokens.segment > 0) & (tokens.span == 0)]
  written = int(begins[given]) if len(begins) > given else None  # Order of the first text after those.
  until = config_lib.MOST if asked is None or written is None else written
  kept = max(_last_order(stream, until=until) for stream in (tokens, others))
  if mode.text_guidance_drops == modes.LAST_TEXT and given:
    kept = max(kept, int(begins[given - 1]) - 1)
  if mode.image_guidance_keeps_written:
    return kept, config_lib.MOST
  if written is not None:
    return kept, written
  return kept, int(max(tokens.order.max(initial=-1), others.order.max(initial=-1))) + 1


def _last_order(tokens: packed.TokenMeta, *, until: int) -> int:
  """The last order of a picture's token before `until`; -1: there is none."""
  in_picture = (tokens.segment > 0) & (tokens.span > 0) & (tokens.order < until)
  return int(tokens.order[in_picture].max(initial=-1))
