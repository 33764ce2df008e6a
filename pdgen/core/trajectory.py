"""A painting process as data: a prompt and its steps of plan, draft, inspection and refined picture.

Text formats (paper, Figs. 2-4): a plan is `<ins>what to paint now</ins><des>the whole scene so far</des>`; an
inspection is free text that holds `<refine>corrective instruction</refine>` exactly when something is wrong.
"""

import dataclasses
from typing import Any

import numpy as np

from pdgen.core import tags

FINISHED = 'finished'
CAPS = PICTURE_CAP, TOKEN_CAP = 'picture_cap', 'token_cap'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """One cycle. Pictures are uint8[H, W, 3].

  plan: None only in direct mode, where the only step is a picture without words.
  draft: None only in the last step of a partial trajectory, which a sampler is to continue.
  inspection: None where the draft ended the trajectory without a word, or where it is still to come. One that finds
    nothing wrong may end the trajectory, too.
  corrected_plan: written after the inspection of a conflict (the plan contradicted the prompt), else None.
  refined: the picture painted after an inspection that holds `<refine>`, else None.
  draft_is_target: False for a draft that a model painted itself: context to learn from, never a flow target.
  """

  plan: str | None = None
  draft: np.ndarray | None = None
  inspection: str | None = None
  corrected_plan: str | None = None
  refined: np.ndarray | None = None
  draft_is_target: bool = True

  @property
  def rejected(self) -> bool:
    """The inspection of this step asks for a refined picture."""
    return self.inspection is not None and tags.refine_instruction(self.inspection) is not None

  @property
  def plan_rejected(self) -> bool:
    return self.corrected_plan is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
  """A prompt and the steps that paint it.

  metadata: the prompt in GenEval's format (`tag`, `include`, ...) and whatever its maker wants to keep.
  stop: `finished` when the painter ended by itself, one of `CAPS` when a limit ended it, None when it is partial.
  """

  prompt: str
  steps: tuple[Step, ...]
  metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
  stop: str | None = FINISHED

  @property
  def pictures(self) -> list[np.ndarray]:
    """Every picture in the order of painting."""
    return [p for s in self.steps for p in (s.draft, s.refined) if p is not None]

  @property
  def final(self) -> np.ndarray:
    """The picture that the trajectory ends with: uint8[H, W, 3]."""
    pictures = self.pictures
    if not pictures:
      raise ValueError(f'The trajectory of {self.prompt!r} holds no picture yet.')
    return pictures[-1]
