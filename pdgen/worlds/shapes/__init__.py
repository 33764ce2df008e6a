"""A small world that can be sampled, rendered and detected exactly: coloured shapes on a three by three grid.

scenes: what a picture is made of. renderer: scene to picture. detector: picture to objects. prompt_space: GenEval's
tasks over this world and what is held out. stories: from a prompt to beats of painting, without errors. faults (with
damage and critiques): what goes wrong. language: wording. trajectories: training data. drafts: a model's own drafts,
and injected errors.
"""

from pdgen.worlds.shapes.detector import Detection, detect
from pdgen.worlds.shapes.drafts import DraftRequest, draft_request, injected, review
from pdgen.worlds.shapes.faults import ERROR_KINDS
from pdgen.worlds.shapes.prompt_space import TASKS, prompts
from pdgen.worlds.shapes.scenes import COLORS, SHAPES, SIZE
from pdgen.worlds.shapes.trajectories import KINDS, corpus, trajectory

__all__ = [
  'COLORS',
  'ERROR_KINDS',
  'KINDS',
  'SHAPES',
  'SIZE',
  'TASKS',
  'Detection',
  'DraftRequest',
  'corpus',
  'detect',
  'draft_request',
  'injected',
  'prompts',
  'review',
  'trajectory',
]
