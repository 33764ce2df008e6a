"""Trains a model from a config file, resuming where the workdir's newest checkpoint stands.

    python -m pdgen.train --config=configs/shapes.py --workdir=out/shapes --config.train.steps=1000

The same command on every host makes one run of them all (`core.distributed`; scripts in launch/); the workdir is then
a folder that all of them see.

The workdir afterwards: `final/` (the exported model), `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `strips/` (what
the model paints for held-out prompts, one picture an evaluation), `self_sampled/` (its own drafts, judged).
"""

import contextlib
import fcntl
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from pdgen import worlds
from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import rng as rng_lib
from pdgen.core import trees
from pdgen.cost import training_flops
from pdgen.data import feed, legacy_store, pipeline, records, sources, tokenizers
from pdgen.inference import painter as painter_lib
from pdgen.models import interleaved
from pdgen.models import params as params_lib
from pdgen.training import checkpoints, distributed, metrics
from pdgen.training import state as state_lib
from pdgen.training import step as step_lib
from pdgen.weights import exported, loading, run_checkpoints


def train(config: config_lib.Config, workdir: pathlib.Path) -> state_lib.TrainState:
  """Runs to config.train.steps, or to a SIGTERM, which saves and returns. Returns the last state.

  Raises: DisagreementError when processes were started with different code, configuration or data; FloatingPointError
  after max_bad_steps steps in a row whose loss or gradient was not finite; CheckpointError when the workdir holds a
  damaged checkpoint or one of another configuration; ValueError when the weights to begin with are another model's;
  BlockingIOError when another run is at work in the workdir.
  """
  cfg = config.train
  with contextlib.ExitStack() as stack:
    stack.enter_context(_alone_in(workdir))
    # 1. Machine and step. The first call compiles.
    mesh = mesh_lib.make_mesh(config.mesh)
    distributed.check_agreement(_facts(config))
    train_step = step_lib.make_train_step(config, mesh)

    # 2. State: resumed or new.
    saved = stack.enter_context(
      checkpoints.Checkpointer(workdir / run_checkpoints.CHECKPOINTS, keep=cfg.keep_checkpoints)
    )
    if saved.latest is None:
      state, start, data_state = state_lib.init_state(config, mesh, _weights(config, mesh)), 0, None
      # Left by a run that ended before its first checkpoint, maybe of another configuration.
      if distributed.is_main_process():
        shutil.rmtree(_self_sampled_file(workdir, 0).parent, ignore_errors=True)
      distributed.barrier('nothing is left of an earlier run')
    else:
      restored = saved.restore(state_lib.abstract_on_mesh(config, mesh), config=config)
      state, start, data_state = restored.state, restored.step, restored.data
      print(f'Resuming from step {start} of {workdir}.', flush=True)
    if distributed.is_main_process():
      (workdir / 'config.json').write_text(json.dumps(exported.as_json(config), indent=2) + '\n')

    # 3. Data, with the self-sampled sources that the run had before this step.
    data = feed.DataFeed(
      config,
      self_sampled=_own_drafts(config, workdir, before=start),
      share=mesh_lib.data_shard(mesh),
      state=data_state,
      all_gather=distributed.all_gather_text,
    )
    stack.callback(lambda: data.close())

    # 4. What is written.
    reports = _Reports(config, workdir, step=start)
    stack.callback(reports.close)
    stopping = stack.enter_context(distributed.preemption_notice())
    print(_overview(config, state, mesh), flush=True)

    # 5. The loop: evaluate, save, take data, step. Metrics are read one step late, so that a step is always running.
    for step in range(start, cfg.steps):
      if step > start and _due(step, cfg.eval_every):
        with reports.paused():
          reports.evaluation(step, *_evaluate(config, state, step))
      stop = stopping(step)
      if step > start and _due(step, cfg.checkpoint_every) or stop:
        with reports.paused():
          saved.save(state, data=data.state(), config=config)
      if stop:
        print(f'SIGTERM: saved step {step}. The same command goes on from there.', flush=True)
        return state
      if step in cfg.self_sample_steps:
        with reports.paused():
          _self_sample(config, state, step, workdir)
          data.reload(self_sampled=_own_drafts(config, workdir, before=step + 1))
      state, step_metrics = train_step(state, mesh_lib.put_batch(next(data), mesh))
      reports.step(step_metrics)

    # 6. The end: score, save, export.
    with reports.paused():
      if cfg.eval_every and start < cfg.steps:
        reports.evaluation(cfg.steps, *_evaluate(config, state, cfg.steps))
      saved.save(state, data=data.state(), config=config)
    averaged = jax.tree.map(distributed.fully_gathered, state.averaged())
    if distributed.is_main_process():
      tokenizer = _tokenizer_file(config.data.tokenizer)
      final = exported.export_ema(workdir / 'final', averaged, config=config, tokenizer=tokenizer)
      print(f'Finished {cfg.steps} steps: {final}', flush=True)
    distributed.barrier('the model is exported')
    return state


@contextlib.contextmanager
def _alone_in(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps other runs out of the workdir: they would clear away each other's half-written checkpoints."""
  workdir.mkdir(parents=True, exist_ok=True)
  if not distributed.is_main_process():
    yield
    return
  with (workdir / 'lock').open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # The system lets go of it however the process ends.
    except BlockingIOError as error:
      message = f'Another run is at work in {workdir}. Wait for its end, or give another --workdir.'
      raise BlockingIOError(message) from error
    except OSError as error:
      print(f'{workdir} cannot be locked ({error}): see to it that no other run writes there.', flush=True)
    yield


def _own_drafts(config: config_lib.Config, workdir: pathlib.Path, *, before: int) -> list[sources.Source]:
  """The self-sampled trajectories of the steps before that one."""
  steps = sorted(step for step in config.train.self_sample_steps if step < before)
  return [_self_sampled(workdir, step) for step in steps]


class _Reports:
  """Metric files, progress lines and picture strips. Only process 0 writes."""

  def __init__(self, config: config_lib.Config, workdir: pathlib.Path, *, step: int):
    self._cfg, self._workdir = config.train, workdir
    self._writer = metrics.Writer(workdir, step=step) if distributed.is_main_process() else None
    self._progress = metrics.Progress(step=step, steps=config.train.steps)
    self._pending: dict[str, jax.Array] | None = None

  def step(self, step_metrics: dict[str, jax.Array]):
    """Keeps the metrics of the step just launched, and reports those of the one before it."""
    self._flush()
    self._pending = step_metrics

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """What happens inside is not training: the step under way is reported first, and the clock stands still."""
    self._flush()
    with self._progress.paused():
      yield

  def evaluation(self, step: int, scalars: dict[str, float], strip: np.ndarray):
    """Writes scores, and the strip uint8[H, W, 3] as a PNG."""
    if self._writer is None:
      return
    from pdgen.viewing import gallery

    self._writer.write(step, scalars)
    folder = self._workdir / 'strips'
    folder.mkdir(exist_ok=True)
    (folder / f'{step:07d}.png').write_bytes(gallery.png(strip))
    print(f'step {step}  ' + '  '.join(f'{name} {value:.3f}' for name, value in scalars.items()), flush=True)

  def close(self):
    if self._writer is not None:
      self._writer.close()

  def _flush(self):
    if self._pending is None:
      return
    now = self._progress.add(self._pending)
    self._pending = None
    step, cfg = self._progress.step, self._cfg
    if now['bad_steps'] >= cfg.max_bad_steps:
      raise FloatingPointError(
        f'Step {step}: {cfg.max_bad_steps} steps in a row had a loss or gradient that is not finite (loss '
        f'{now["loss"]}, gradient norm {now["grad_norm"]}). Lower config.train.learning_rate, or look at the data.'
      )
    if self._writer is not None and (_due(step, cfg.log_every) or step == cfg.steps):
      summary = self._progress.summary()
      self._writer.write(step, summary)
      print(self._progress.line(summary), flush=True)


def _evaluate(config: config_lib.Config, state: state_lib.TrainState, step: int) -> tuple[dict[str, float], np.ndarray]:
  """GenEval scores of the fixed held-out prompts, and a strip of the first of each task: uint8[H, W, 3]."""
  from pdgen.evals import geneval
  from pdgen.viewing import gallery

  world = worlds.get(config.data.world)
  prompts = world.prompts('heldout', per_task=config.train.eval_prompts)
  result = _painter(config, state).sample([p['prompt'] for p in prompts], mode=config.data.mode, seed=0)
  pictures = geneval.last_pictures(result.trajectories, size=config.model.image_size)
  report = geneval.score(prompts, pictures, world.detect)
  scalars = {f'geneval/{task}': r.value for task, r in report.tasks.items()}
  scalars['geneval/overall'] = float(report.overall)
  scalars['eval/finished'] = float(np.mean([t.stop == 'finished' for t in result.trajectories]))
  scalars['eval/pictures'] = float(np.mean([len(t.pictures) for t in result.trajectories]))
  firsts = {p['tag']: t for p, t in reversed(list(zip(prompts, result.trajectories, strict=True)))}
  shown = [t for t in reversed(firsts.values()) if t.pictures]
  return scalars, gallery.filmstrip(shown) if shown else pictures[0]


def _self_sample(config: config_lib.Config, state: state_lib.TrainState, step: int, workdir: pathlib.Path):
  """The model paints drafts, the world judges them; the file is a function of config, seed and step.

  An existing file is kept: it was made by the same weights, before a stop between this step and the next checkpoint.
  """
  from pdgen.construction import self_sampled

  file = _self_sampled_file(workdir, step)
  exists = records.exists(file) or file.with_suffix('.npz').is_file()
  distributed.barrier(f'drafts of step {step} were looked for')
  if exists:
    return
  seed = int(rng_lib.numpy_rng(config.seed, step).integers(2**31))
  painter = _painter(config, state)
  collected = self_sampled.collect(painter, worlds.get(config.data.world), count=config.train.self_samples, seed=seed)
  if distributed.is_main_process():  # All have painted the same.
    trajectories = [t for t in collected if pipeline.fits(config, t)]
    records.write(file, trajectories)
    wrong = sum(t.provenance is not None and t.provenance.error is not None for t in trajectories)
    print(f'step {step}  of {config.train.self_samples} drafts of its own {wrong} are wrong: {file}', flush=True)
    if len(trajectories) < len(collected):
      print(f'step {step}  {len(collected) - len(trajectories)} more are longer than a row: left out', flush=True)
  distributed.barrier(f'drafts of step {step} are saved')


def _painter(config: config_lib.Config, state: state_lib.TrainState):

  words = tokenizers.load(config.data.tokenizer)
  params = state.averaged()
  if jax.process_count() > 1:
    # Each process samples for itself, on one device. A model that does not fit one is sampled from its checkpoints.
    params = jax.tree.map(distributed.fully_gathered, params)
  if jax.default_backend() == 'cpu' or jax.process_count() > 1:
    # Replicated weights would make every device of the CPU sample the same batch, in each other's way.
    params = jax.device_put(params, jax.local_devices()[0])
  return painter_lib.Painter(config=config, params=params, tokenizer=words)


def _weights(config: config_lib.Config, mesh: jax.sharding.Mesh) -> Any:
  """What `train.init_from` names, or None. Raises ValueError listing the weights that are not this model's."""
  if not config.train.init_from:
    return None
  try:
    _, params, _ = loading.load_for_sampling(config.train.init_from, mesh=mesh)
  except FileNotFoundError as error:
    raise FileNotFoundError(f'config.train.init_from, what this run begins with: {error}') from None
  have, want = (dict(trees.flatten_with_paths(tree)) for tree in (params, interleaved.abstract_params(config.model)))
  want = {name: leaf for name, leaf in want.items() if name in have or not params_lib.is_adapter(name)}
  if differ := trees.diff_shapes(have, want):
    raise ValueError(f'{config.train.init_from} does not fit config.model:\n  ' + '\n  '.join(differ))
  return params


def _self_sampled_file(workdir: pathlib.Path, step: int) -> pathlib.Path:
  return workdir / 'self_sampled' / f'{step:07d}'


def _self_sampled(workdir: pathlib.Path, step: int) -> sources.Source:
  file = _self_sampled_file(workdir, step)
  older = file.with_suffix('.npz')  # Of a run that began with an earlier version.
  return sources.ListSource(legacy_store.read_npz(older)) if older.is_file() else sources.RecordSource(str(file))


def _tokenizer_file(name_or_path: str) -> pathlib.Path:
  shipped = tokenizers.ASSETS / f'{name_or_path}.model'
  return shipped if shipped.is_file() else pathlib.Path(name_or_path)


def _facts(config: config_lib.Config) -> dict[str, str]:
  """What all processes of a run must have been started with."""
  facts = {f'config/{name}': repr(value) for name, value in trees.flatten_with_paths(exported.as_json(config))}
  return {**facts, 'code': distributed.code_version(), 'data': pipeline.fingerprint(config), 'jax': jax.__version__}


def _overview(config: config_lib.Config, state: state_lib.TrainState, mesh: jax.sharding.Mesh) -> str:
  learn, fixed = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (state.trainable, state.frozen))
  work = training_flops.train_flops(config)
  shares = ', '.join(f'{name} {part / work["total"]:.0%}' for name, part in work.items() if part and name != 'total')
  return (
    f'{config.name}: {learn / 1e6:.2f}M parameters learn, {fixed / 1e6:.2f}M are frozen; mesh {dict(mesh.shape)}; '
    f'{work["total"] / 1e9:.1f} GFLOP a step ({shares})'
  )


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


def main():
  """The command line."""
  config_flag = config_flags.DEFINE_config_file('config', None, 'File with get_config().')
  workdir_flag = flags.DEFINE_string('workdir', None, 'Folder of the run: what is written, and what is resumed from.')
  flags.mark_flags_as_required(['config', 'workdir'])

  def run(_):
    workdir = pathlib.Path(workdir_flag.value)
    logging.set_verbosity(logging.ERROR)  # Orbax tells of every file of every save.
    config = config_lib.from_config_dict(config_flag.value)
    jax.config.update('jax_num_cpu_devices', config.mesh.cpu_devices)
    distributed.initialize()
    train(config, workdir)

  app.run(run)


if __name__ == '__main__':
  main()
