"""What a world offers: a small domain whose trajectories are made, and whose pictures are judged, by rule.

A world is a module `pdgen.worlds.<name>` (or an object) with the members of `World`. The protocols after it are
optional; what needs one asks for it by `worlds.require`, which names the members that are missing.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from pdgen.core import scene_graph
from pdgen.core import trajectory as trajectory_lib


class Found(Protocol):
  """One object that a detector reports in a picture."""

  @property
  def name(self) -> str | None:
    """Class of the object; None where it is malformed."""
    ...

  @property
  def color(self) -> str: ...

  @property
  def box(self) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) in pixels, x1 and y1 exclusive."""
    ...

  @property
  def score(self) -> float:
    """Confidence in [0, 1]."""
    ...


class World(Protocol):
  """Makes training trajectories: needed of every world."""

  KINDS: tuple[str, ...]  # Kinds of trajectories.

  def trajectory(self, kind: str, *, seed: int, index: int) -> trajectory_lib.Trajectory:
    """A finished training trajectory: the same for the same (kind, seed, index)."""
    ...


class JudgedWorld(World, Protocol):
  """Optional: held-out prompts and exact judgement of pictures. For evaluation, and `pdgen.sample --heldout`."""

  TASKS: tuple[str, ...]  # GenEval tags of its prompts.

  def prompts(self, split: str, *, per_task: int, seed: int = 0) -> list[dict[str, Any]]:
    """GenEval rows, `per_task` of each task, task after task. split: `heldout` or `train`."""
    ...

  def parse(self, prompt: str) -> trajectory_lib.PromptSpec | None:
    """What a prompt of the world asks for; None for any other text."""
    ...

  def detect(self, picture: np.ndarray) -> Sequence[Found]:
    """The objects of uint8[H, W, 3]."""
    ...

  def shows(self, picture: np.ndarray, expected: Iterable[trajectory_lib.Content]) -> bool:
    """Whether uint8[H, W, 3] shows the expected objects and nothing else."""
    ...


class InspectedWorld(JudgedWorld, Protocol):
  """Optional: drafts with known errors. For `evals.inspection`."""

  ERROR_KINDS: tuple[str, ...]

  def injected(self, kind: str | None, *, seed: int, index: int) -> trajectory_lib.Trajectory:
    """A partial trajectory on a held-out prompt, whose last draft has an error of that kind (None: it is right)."""
    ...


class Inspected(Protocol):
  """What an inspector that sees everything finds in a step."""

  @property
  def errors(self) -> Sequence[str]:
    """Kinds of errors, those of the plan against the prompt first; empty where the step is right."""
    ...

  @property
  def text(self) -> str:
    """The inspection, in the words of the world's training trajectories."""
    ...

  @property
  def approval(self) -> str:
    """The words that would approve the step, whether it is right or not."""
    ...


class OracleWorld(JudgedWorld, Protocol):
  """Optional: exact inspection of a model's own steps. For `evals.process`."""

  def inspect(self, prompt: str, plan: str | None, draft: np.ndarray, *, before: str | None = None) -> Inspected:
    """What is wrong with the draft uint8[H, W, 3] of a plan that a model wrote. before: plan of the step before."""
    ...


class KnowingWorld(JudgedWorld, Protocol):
  """Optional: prompts that name what is wanted by a fact. For `evals.knowledge`, and `SourceConfig.knowledge`."""

  KNOWLEDGE: tuple[str, ...]  # Kinds of facts.
  KNOWLEDGE_SPLITS: tuple[str, ...]  # The first one is trained, the others are held out.

  def knowledge_prompts(self, split: str, *, per_kind: int, seed: int = 0) -> list[dict[str, Any]]:
    """GenEval rows of what is wanted, with `knowledge` (the kind), `split`, `fact` and `plain` (the plain prompt)."""
    ...

  def asked_by_fact(self, made: trajectory_lib.Trajectory, *, seed: int, index: int) -> trajectory_lib.Trajectory:
    """A training trajectory with a prompt that names something by a fact; as it is, where none fits."""
    ...

  def described(self, plan: str | None) -> np.ndarray | None:
    """The picture uint8[H, W, 3] of what a plan describes; None where it cannot be read."""
    ...


class DraftRequest(Protocol):
  """A draft that a world wants of a model."""

  @property
  def prefix(self) -> trajectory_lib.Trajectory:
    """A partial trajectory whose last step has a plan and no draft yet."""
    ...


class DraftingWorld(World, Protocol):
  """Optional: drafts of a model's own, reviewed. For `construction.self_sampled`."""

  def draft_request(self, *, seed: int, index: int) -> Any:
    """The DraftRequest of that number."""
    ...

  def review(self, request: Any, draft: np.ndarray) -> trajectory_lib.Trajectory:
    """The finished training trajectory around the draft uint8[H, W, 3]; its provenance names the errors found."""
    ...


class GraphWorld(JudgedWorld, Protocol):
  """Optional: pictures of scene graphs. For `pdgen.construction`."""

  TAXONOMY: dict[str, Any]  # What graphs of the world are drawn from (`construction.taxonomy`).

  def render_graph(self, graph: scene_graph.SceneGraph) -> np.ndarray:
    """The picture uint8[H, W, 3]. Raises: ValueError naming an object that the world cannot show."""
    ...

  def contents(self, graph: scene_graph.SceneGraph) -> Sequence[trajectory_lib.Content]:
    """What a picture of the graph shows, for `shows`."""
    ...


class WrittenWorld(World, Protocol):
  """Optional: texts to train a tokenizer on, and the words that decide. For `pdgen.train_tokenizer` and configs."""

  DECISIVE: tuple[str, ...]  # Regular expressions for `SequenceConfig.decisive`.
  FAULTS: tuple[str, ...]  # For `SequenceConfig.faults`.

  def corpus(self, *, seed: int, count: int) -> Iterator[str]:
    """Texts of `count` trajectories."""
    ...


class HeldOutWorld(GraphWorld, Protocol):
  """Optional: what a world keeps from training. For `pdgen.construction`."""

  def keeps_out(self, graph: scene_graph.SceneGraph) -> bool:
    """Whether no training picture, right or wrong, may show the graph. If not, no graph with more in it, either."""
    ...


class DamagingWorld(GraphWorld, Protocol):
  """Optional: malformed objects. For `construction.alignment`."""

  def render_malformed(
    self, graph: scene_graph.SceneGraph, ids: Sequence[str], *, rng: np.random.Generator
  ) -> np.ndarray:
    """The picture uint8[H, W, 3] of a graph, some of its objects malformed."""
    ...
