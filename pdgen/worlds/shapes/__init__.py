"""The shapes world: synthetic scenes of coloured shapes on a 3 x 3 grid, with an exact renderer and an exact detector.

scenes         objects, colours, silhouettes
renderer       scene to picture
detector       picture to detections, by rule
prompt_space   GenEval's six tasks over these shapes, and which prompts are held out
stories        prompt to an error-free sequence of scene edits
faults         injected errors and the diagnosis of drafts; damage: malformed objects; critiques: reasons in words
comparisons    the sentences that open every inspection
language       templates of plans and inspections
trajectories   training trajectories
knowledge      prompts that name what is wanted by a fact
oracle         inspection of a model's own steps, whatever its plans say
drafts         review of drafts that a model painted; injected errors for the inspection metrics
"""

from pdgen.worlds.shapes.damage import render_malformed
from pdgen.worlds.shapes.detector import Detection, detect
from pdgen.worlds.shapes.drafts import DraftRequest, contents, draft_request, injected, review, shows
from pdgen.worlds.shapes.faults import ERROR_KINDS
from pdgen.worlds.shapes.knowledge import KNOWLEDGE, KNOWLEDGE_SPLITS, asked_by_fact, knowledge_prompts
from pdgen.worlds.shapes.language import DECISIVE, FAULTS
from pdgen.worlds.shapes.oracle import described, inspect, planned
from pdgen.worlds.shapes.prompt_space import TASKS, keeps_out, parse, prompts
from pdgen.worlds.shapes.renderer import render_graph
from pdgen.worlds.shapes.scenes import COLORS, SHAPES, SIZE, TAXONOMY
from pdgen.worlds.shapes.trajectories import KINDS, corpus, trajectory

__all__ = [
  'COLORS',
  'DECISIVE',
  'ERROR_KINDS',
  'FAULTS',
  'KINDS',
  'KNOWLEDGE',
  'KNOWLEDGE_SPLITS',
  'SHAPES',
  'SIZE',
  'TASKS',
  'TAXONOMY',
  'Detection',
  'DraftRequest',
  'asked_by_fact',
  'contents',
  'corpus',
  'described',
  'detect',
  'draft_request',
  'injected',
  'inspect',
  'keeps_out',
  'knowledge_prompts',
  'parse',
  'planned',
  'prompts',
  'render_graph',
  'render_malformed',
  'review',
  'shows',
  'trajectory',
]
