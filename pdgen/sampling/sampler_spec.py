"""What of a sampling config shapes the compiled program; `flow.SamplerParams` has the rest, the program's arguments."""

import dataclasses
from typing import NamedTuple

from pdgen.core import config as config_lib
from pdgen.sampling import canvas, flow
from pdgen.sampling import grammar as grammar_lib


class SamplerSpec(NamedTuple):
  """What shapes the compiled program. Hashable, a static argument."""

  sampling: config_lib.SamplingConfig  # Static options; the dynamic ones (`flow.SamplerParams`) are at their defaults.
  specials: config_lib.Specials  # Ids of the structure tokens and tags.
  vocab_size: int  # Ids of the tokenizer; the language head may have more rows, which are never chosen.
  text_branch: bool  # Guidance by texts is on: one more branch of a denoising step.
  image_branch: bool  # Guidance by pictures is on: one more branch, and a text-only cache.
  ranks: bool = False  # Only the likeliest tokens are drawn: top-k or top-p is on.
  penalises: bool = False  # The repetition penalty is on.
  stops: bool = False  # Texts end at stop texts.
  drafts: bool = False  # Drafts have a number of steps of their own.
  reuses: bool = False  # Branches of guidance are not computed at every step.
  size: canvas.Size = None  # Of the pictures that are painted, or of the canvas that holds them.
  most: canvas.Most | None = None  # Cells of a row where its pictures have a size of their own; None: all have `size`.

  @classmethod
  def of(
    cls,
    sampling: config_lib.SamplingConfig,
    specials: config_lib.Specials,
    vocab_size: int,
    size: canvas.Size = None,
    most: canvas.Most | None = None,
  ) -> 'SamplerSpec':
    """The static part of a config."""
    defaults = config_lib.SamplingConfig()
    dynamic = (*flow.DYNAMIC_FIELDS, 'stop_texts')
    return cls(
      sampling=dataclasses.replace(sampling, **{name: getattr(defaults, name) for name in dynamic}),
      specials=specials,
      vocab_size=vocab_size,
      text_branch=sampling.text_guidance != 1.0,
      image_branch=sampling.image_guidance != 1.0,
      ranks=sampling.top_k > 0 or sampling.top_p < 1.0,
      penalises=sampling.repetition_penalty != 1.0,
      stops=bool(sampling.stop_texts),
      drafts=sampling.draft_steps not in (0, sampling.flow_steps),
      reuses=sampling.guidance_every > 1 and (sampling.text_guidance != 1.0 or sampling.image_guidance != 1.0),
      size=size,
      most=most,
    )

  @property
  def grammar(self) -> grammar_lib.Grammar:
    sampling = self.sampling
    return grammar_lib.Grammar(
      self.specials, self.vocab_size, sampling.max_text_tokens, sampling.grammar, sampling.inspection
    )
