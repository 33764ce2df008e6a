"""Self-sampled critique (paper), on a small scale: a model's own drafts, judged by the world, become training data.

Synthetic errors do not look like the model's own. To notice its own errors, a model has to be trained on them.

Second stage: 7 of 15 wrong drafts of its own noticed, against 1 of 14 (docs/experiments.md#second-stage).
"""

import pathlib
import shutil
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import rng as rng_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import legacy_store, pipeline, records, sources

_ORDER = 17  # random stream that chooses among right drafts


class Request(Protocol):
  """A draft that a world asks for."""

  prefix: trajectory_lib.Trajectory  # partial; its last step has a plan and no draft yet


class World(Protocol):
  """What a world must offer, as functions of a module or as methods (`pdgen.worlds.shapes`)."""

  def draft_request(self, *, seed: int, index: int) -> Request: ...

  def review(self, request: Request, draft: np.ndarray) -> trajectory_lib.Trajectory: ...


class Painter(Protocol):
  """The part of `pdgen.Painter` that is needed here."""

  def sample(self, prompts: list[trajectory_lib.Trajectory], *, seed: int, batch_size: int, pictures: int) -> Any: ...


def collect(
  painter: Painter, world: World, *, count: int, seed: int, batch_size: int = 64
) -> list[trajectory_lib.Trajectory]:
  """Paints drafts and returns training trajectories around them. A pure function of painter's weights, count and seed.

  Args:
    painter: paints the next picture of a partial trajectory.
    world: requests drafts and reviews them; a wrong draft's trajectory has an error in its provenance.
    count: drafts painted; how many are returned depends on how many are wrong.
    seed: of requests and noise.
    batch_size: drafts a compiled call.

  Returns: the trajectories of all wrong drafts and of at most as many right ones, in the order of the requests. Right
    ones alone would teach that nothing is ever wrong: without wrong drafts the list is empty.

  Raises: ValueError if the painter ends a trajectory without a draft.
  """
  requests = [world.draft_request(seed=seed, index=index) for index in range(count)]
  painted = painter.sample([r.prefix for r in requests], seed=seed, batch_size=batch_size, pictures=1).trajectories
  reviewed = []
  for request, trajectory in zip(requests, painted, strict=True):
    draft = trajectory.steps[len(request.prefix.steps) - 1].draft
    if draft is None:
      raise ValueError(f'No draft was painted for {trajectory.prompt!r} (stop: {trajectory.stop}). Raise max_tokens.')
    reviewed.append(world.review(request, draft))
  is_wrong = np.array([_is_wrong(t) for t in reviewed], bool)
  right = rng_lib.numpy_rng(seed, _ORDER).permutation(np.flatnonzero(~is_wrong))[: is_wrong.sum()]
  kept = np.sort(np.concatenate([np.flatnonzero(is_wrong), right]))
  return [reviewed[i] for i in kept]


def write_drafts(
  config: config_lib.Config,
  workdir: pathlib.Path,
  step: int,
  *,
  world: World,
  make_painter: Callable[[], Painter],
  is_main_process: bool = True,
  barrier: Callable[[str], None] = lambda name: None,
):
  """Drafts of the model of a step as a record set in the workdir, a function of config and step; see `read_drafts`.

  What exists and is whole is kept: it was made by the same weights, before a stop between this step and the next
  checkpoint. What is damaged is made again. All processes must call it, and paint the same.

  Args:
    config: of the run.
    workdir: of the run.
    step: steps taken.
    world: requests and reviews the drafts.
    make_painter: the model of that step; called if there is something to paint. FileNotFoundError: it is gone.
    is_main_process: whether this process writes.
    barrier: returns when all processes have come to the point of that name.

  Raises: ValueError where the drafts are damaged or absent and cannot be painted, saying how to go on.
  """
  path = _path(workdir, step)
  damage = '' if step in config.train.lost_drafts else _damage(path)
  barrier(f'drafts of step {step} were looked for')
  if not damage:
    return
  try:
    painter = make_painter()
  except FileNotFoundError as error:
    lost = ', '.join(map(str, sorted({*config.train.lost_drafts, step})))
    raise ValueError(
      f'The drafts that the model painted at step {step} cannot be read ({damage}), nor be painted again ({error}). '
      'Copy them back from where they are whole, or go on without them: '
      f"--config.train.lost_drafts='({lost},)'. From then on the batches differ from those that the run would have had."
    ) from error
  if is_main_process and (path.exists() or _older(path).exists()):
    print(f'The drafts of step {step} are made again: {damage}', flush=True)
    _older(path).unlink(missing_ok=True)
  seed = int(rng_lib.numpy_rng(config.seed, step).integers(2**31))
  collected = collect(painter, world, count=config.train.self_samples, seed=seed)
  if is_main_process:
    trajectories = [t for t in collected if pipeline.fits(config, t)]
    if path.exists():
      shutil.rmtree(path)
    records.write(path, trajectories)
    wrong = sum(map(_is_wrong, trajectories))
    print(f'step {step}  of {config.train.self_samples} drafts of its own {wrong} are wrong: {path}', flush=True)
    if len(trajectories) < len(collected):
      print(f'step {step}  {len(collected) - len(trajectories)} more are longer than a row: left out', flush=True)
  barrier(f'drafts of step {step} are saved')


def steps_before(config: config_lib.Config, before: int) -> list[int]:
  """The steps before that one whose drafts are among the data."""
  return sorted({step for step in config.train.self_sample_steps if step < before} - {*config.train.lost_drafts})


def prepare_drafts(
  config: config_lib.Config,
  workdir: pathlib.Path,
  *,
  before: int,
  is_new: bool,
  branch_from: pathlib.Path | None,
  paint: Callable[[int], None],
  is_main_process: bool = True,
  barrier: Callable[[str], None] = lambda name: None,
) -> list[sources.Source]:
  """The drafts of the steps before that one, as a run needs them that begins or goes on there.

  Args:
    config: of the run.
    workdir: of the run.
    before: steps taken.
    is_new: the run begins: drafts that are there are not its own, and are set aside.
    branch_from: workdir of the run that it branches off, whose drafts are copied.
    paint: `write_drafts` of a step, with the model of that step.
    is_main_process: whether this process writes.
    barrier: returns when all processes have come to the point of that name.

  Raises: as `write_drafts`.
  """
  if is_main_process and is_new:
    set_drafts_aside(workdir)
  if is_main_process and branch_from is not None:
    copy_drafts(config, workdir, source=branch_from, before=before)
  barrier('the drafts are those of this run')
  for step in steps_before(config, before):
    paint(step)
  return read_drafts(config, workdir, before=before)


def read_drafts(config: config_lib.Config, workdir: pathlib.Path, *, before: int) -> list[sources.Source]:
  """What `write_drafts` has written in the steps before that one, a source for each step.

  Raises: FileNotFoundError where the drafts of a step are absent, ValueError where they are damaged.
  """
  return [_read(_path(workdir, step)) for step in steps_before(config, before)]


def set_drafts_aside(workdir: pathlib.Path):
  """Of a run that ended before its first checkpoint, maybe of another configuration, or whose checkpoints are gone.

  They are in `self_sampled.before` afterwards; what an earlier beginning had set aside is deleted.
  """
  folder = _path(workdir, 0).parent
  if folder.is_dir():
    aside = folder.with_name(f'{folder.name}.before')
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def copy_drafts(config: config_lib.Config, workdir: pathlib.Path, *, source: pathlib.Path, before: int):
  """Copies the drafts of the steps before that one from another run's workdir; absent ones are left absent."""
  for step in steps_before(config, before):
    path, wanted = _path(source, step), _path(workdir, step)
    wanted.parent.mkdir(parents=True, exist_ok=True)
    if _older(path).is_file():
      shutil.copyfile(_older(path), _older(wanted))
    elif path.is_dir():
      shutil.copytree(path, wanted, dirs_exist_ok=True)


def _path(workdir: pathlib.Path, step: int) -> pathlib.Path:
  return workdir / 'self_sampled' / f'{step:07d}'


def _older(path: pathlib.Path) -> pathlib.Path:
  """The same in a run that began with an earlier version."""
  return path.with_suffix('.npz')


def _read(path: pathlib.Path) -> sources.Source:
  if _older(path).is_file():
    return sources.ListSource(legacy_store.read_npz(_older(path)), name=str(_older(path)))
  source = sources.RecordSource(str(path))
  source.verify()
  return source


def _damage(path: pathlib.Path) -> str:
  """Why the drafts of a step cannot be read; empty: they can."""
  try:
    _read(path)
  except (OSError, ValueError) as error:
    return str(error)
  return ''


def _is_wrong(trajectory: trajectory_lib.Trajectory) -> bool:
  return trajectory.provenance is not None and trajectory.provenance.error is not None
