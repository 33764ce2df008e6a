"""Renderers of trajectory steps: an exact world, FLUX Kontext or another image service, a pdgen checkpoint.

`RENDERERS` finds them by name; another one is a class with `render` and a line there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from pdgen import worlds
from pdgen.core import scene_graph, tags
from pdgen.core import trajectory as trajectory_lib
from pdgen.services import images
from pdgen.worlds import base as worlds_base


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RenderRequest:
  """A picture to paint: the step that asks for it, and what is known of the trajectory."""

  instruction: str  # What to paint, move or remove now: an edit of the previous picture.
  description: str  # The whole scene afterwards.
  scene: scene_graph.SceneGraph | None = None  # The scene afterwards as a graph, where there is one.
  seed: int = 0  # Equal requests give equal pictures, where the renderer can.
  prompt: str = ''  # Of the whole trajectory; empty: the description stands for it.
  before: tuple[trajectory_lib.Step, ...] = ()  # Finished steps, whose last picture is the previous one.


class Renderer(Protocol):
  """Paints the picture of a step."""

  def render(self, step: RenderRequest, previous: np.ndarray | None) -> np.ndarray:
    """uint8[H, W, 3]. previous: the picture that the step changes; None: it is the first.

    Raises: ValueError for a request that the renderer cannot paint.
    """
    ...


class Painter(Protocol):
  """The part of `pdgen.Painter` that is needed here."""

  def sample(self, prompts: list[trajectory_lib.Trajectory], *, seed: int, pictures: int) -> Any:
    """Continues partial trajectories; `trajectories` of the result are the continued ones."""
    ...


@dataclasses.dataclass(frozen=True)
class WorldRenderer:
  """Exact: the picture of the request's scene, whatever was before."""

  world: worlds_base.GraphWorld

  def render(self, step: RenderRequest, previous: np.ndarray | None) -> np.ndarray:
    """As `Renderer.render`. Raises: ValueError for a request without a scene."""
    del previous
    if step.scene is None:
      raise ValueError(f'The request {step.instruction!r} has no scene: a world paints nothing else.')
    return self.world.render_graph(step.scene)


@dataclasses.dataclass(frozen=True)
class FluxKontextRenderer:
  """The first picture from text, the others as edits of the one before (paper), by FLUX Kontext or its like."""

  client: images.ImageClient  # `services.images.FluxKontext` or `OpenAIImages`.
  size: tuple[int, int] = (512, 512)  # (height, width) of the first picture; edits keep that of the previous one.

  def render(self, step: RenderRequest, previous: np.ndarray | None) -> np.ndarray:
    """As `Renderer.render`. Raises: `services.errors`."""
    return self.paint(step, previous).picture

  def paint(self, step: RenderRequest, previous: np.ndarray | None) -> images.Painted:
    """The picture with its cost. Arguments and errors as of `render`."""
    if previous is None:
      return self.client.generate(step.description, size=self.size, seed=step.seed)
    return self.client.edit(previous, step.instruction, seed=step.seed)


@dataclasses.dataclass(frozen=True)
class PainterRenderer:
  """A pdgen checkpoint: continues the partial trajectory by one picture."""

  painter: Painter

  def render(self, step: RenderRequest, previous: np.ndarray | None) -> np.ndarray:
    """As `Renderer.render`.

    A previous picture without `before` is given as the draft of a step without a plan.

    Raises: ValueError where nothing was painted.
    """
    before = step.before
    if previous is not None and not before:
      before = (trajectory_lib.Step(draft=previous, inspection='The intermediate step is correct.'),)
    plan = trajectory_lib.Step(plan=tags.plan(step.instruction, step.description))
    start = trajectory_lib.Trajectory(prompt=step.prompt or step.description, steps=(*before, plan), stop=None)
    painted = self.painter.sample([start], seed=step.seed, pictures=1).trajectories[0]
    draft = painted.steps[len(before)].draft
    if draft is None:
      raise ValueError(f'No picture was painted for {step.instruction!r} (stop: {painted.stop}). Raise max_tokens.')
    return draft


def _world(world: str | worlds_base.GraphWorld) -> WorldRenderer:
  found = worlds.get(world) if isinstance(world, str) else world
  return WorldRenderer(worlds.require(found, worlds_base.GraphWorld))


RENDERERS: dict[str, Callable[..., Renderer]] = {
  'world': _world,  # (world or its name)
  'flux_kontext': FluxKontextRenderer,  # (services.images client, size=)
  'painter': PainterRenderer,  # (painter)
}


def get(name: str, *args: Any, **options: Any) -> Renderer:
  """The renderer of that name. Raises: ValueError, naming those there are; for a world that paints no scenes."""
  if name not in RENDERERS:
    raise ValueError(f'Unknown renderer {name!r}. Known: {sorted(RENDERERS)}')
  return RENDERERS[name](*args, **options)
