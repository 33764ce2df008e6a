"""A small world that can be sampled, rendered and detected exactly: coloured shapes on a three by three grid.

scenes      what a picture is made of          prompts       GenEval's tasks, and what is held out
renderer    scene -> picture                   stories       prompt -> beats of painting, without errors
detector    picture -> objects                 errors        what goes wrong (with damage, critiques)
language    wording                            trajectories  training data      drafts  a model's own, injected errors
"""

from pdgen.worlds.shapes.detector import Detection, detect
from pdgen.worlds.shapes.drafts import DraftRequest, draft_request, injected, review
from pdgen.worlds.shapes.errors import ERROR_KINDS
from pdgen.worlds.shapes.prompts import TASKS, prompts
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
