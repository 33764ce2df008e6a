"""The training loop: evaluate, save, take a batch, step; resumable bit for bit.

    loop.train(config, workdir, data=open_data, tokenizer=path, evaluators=[..], make_painter=make_painter)

Data, evaluators, painter and loss are arguments: training imports neither the data pipeline nor the sampler. What
`pdgen.train` passes is an example (`data.feed`, `evals.geneval`, `inference.painter`).

The workdir afterwards: `final/` (the exported model), `checkpoints/`, `config.json`, `metrics.jsonl`, `tensorboard/`,
`strips/` and, where steps are profiled, `profile/`.
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from clu import parameter_overview

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import packed, trees
from pdgen.models import interleaved
from pdgen.models import params as params_lib
from pdgen.training import checkpoints, distributed, losses, optimizer, profiling, run_logger
from pdgen.training import state as state_lib
from pdgen.training import step as step_lib
from pdgen.training import workdir as workdir_lib
from pdgen.weights import exported, loading, run_checkpoints


class Data(Protocol):
  """Batches of a run. All processes make the same calls."""

  def __next__(self) -> packed.PackedBatch:
    """The next batch: this process's share of its rows, numpy arrays."""
    ...

  def state(self) -> Any:
    """JSON from which `OpenData` goes on with the next batch, whichever number of processes does."""
    ...

  def fingerprint(self) -> str:
    """Equal on all processes exactly when they read the same data."""
    ...

  def close(self) -> None: ...


class OpenData(Protocol):
  """Opens the data of a run that has taken `step` steps."""

  def __call__(self, *, step: int, share: tuple[int, int], state: Any) -> Data:
    """share: (index, count) of the rows to make. state: what `Data.state` gave; None: a new run."""
    ...


class Evaluator(Protocol):
  """The part of `evals.base.Evaluator` that the loop needs."""

  def run(self, painter: Any, out: pathlib.Path | None) -> run_logger.Scores:
    """Scores of the painter. out: a folder for what it makes; None: nothing is kept."""
    ...


MakePainter = Callable[[state_lib.TrainState], Any]
AtStep = Callable[[int, state_lib.TrainState, Any], None]  # (step, state, data), before that step's batch is taken


def train(
  config: config_lib.Config,
  workdir: pathlib.Path,
  *,
  data: OpenData,
  tokenizer: pathlib.Path,
  evaluators: Sequence[Evaluator] = (),
  make_painter: MakePainter = lambda state: None,
  at_steps: Mapping[int, AtStep] | None = None,
  loss: step_lib.Loss = losses.interleaved_loss,
  profile_steps: profiling.Steps | None = None,
  branch_from: pathlib.Path | None = None,
) -> state_lib.TrainState:
  """Runs to config.train.steps, or to a SIGTERM, which saves and returns.

  Args:
    config: of the run.
    workdir: folder of the run; where it holds a checkpoint, the run resumes from the newest.
    data: opens the batches.
    tokenizer: file or folder that is exported with the model.
    evaluators: run every config.train.eval_every steps and at the end, on all processes alike.
    make_painter: what the evaluators sample, from the state.
    at_steps: called before the batch of that step is taken, also when a run resumes at that step. What they do is to be
      a function of config, step and state, and to be skipped where it is done: then a resumed run repeats it.
    loss: replaces the training objective inside of the compiled step.
    profile_steps: (A, B): a profiler trace of the steps from A up to B without B.
    branch_from: workdir of another run, whose newest checkpoint this one begins with, at the step that it has taken:
      more steps, another rate, longer rows. Of no effect once this workdir has a checkpoint.

  Returns: the last state.

  Raises: DisagreementError when processes were started with different code, configuration or data; FloatingPointError
    after max_bad_steps steps in a row whose loss, gradient or new parameters were not finite, or for weights to begin
    with that are not; CheckpointError when the workdir holds a damaged checkpoint or one of another configuration;
    ValueError when the weights to begin with are another model's; BlockingIOError when another run is at work in the
    workdir.
  """
  cfg, at_steps = config.train, at_steps or {}
  with contextlib.ExitStack() as stack:
    # 1. Machine and step. The first call compiles.
    stack.enter_context(workdir_lib.exclusive_workdir(workdir))
    mesh = mesh_lib.make_mesh(config.mesh)
    distributed.check_agreement(workdir_lib.run_fingerprint(config))
    train_step = step_lib.make_train_step(config, mesh, loss=loss)

    # 2. State: resumed (1), or branched off another run (2), or from given weights (3), or from random ones (4).
    saved = stack.enter_context(
      checkpoints.Checkpointer(workdir / run_checkpoints.CHECKPOINTS, keep=cfg.keep_checkpoints)
    )
    branch_from = workdir_lib.branch_point(workdir, branch_from)
    abstract = state_lib.abstract_on_mesh(config, mesh)
    if saved.latest is not None:
      restored = saved.restore(abstract, config=config)
      print(f'Resuming from step {restored.step} of {workdir}.', flush=True)
    elif branch_from is not None:
      restored = checkpoints.restore(branch_from / run_checkpoints.CHECKPOINTS, abstract, config=config, branch=True)
      print(_branch(config, restored, branch_from), flush=True)
    else:
      state = state_lib.init_state(config, mesh, _initial_weights(config, mesh))
      restored = checkpoints.Restored(state, None, 0)
    state, start, data_state = restored.state, restored.step, restored.data
    checkpoints.check_finite(state, f'Nothing can be learned from the weights that the run begins with at step {start}')

    # 3. Data, from where the state was saved.
    batches = stack.enter_context(
      contextlib.closing(data(step=start, share=mesh_lib.data_shard(mesh), state=data_state))
    )
    distributed.check_agreement({'data': batches.fingerprint()})

    # 4. What is written.
    logger = stack.enter_context(contextlib.closing(run_logger.RunLogger(config, workdir, step=start)))
    tracer = stack.enter_context(contextlib.closing(profiling.StepTracer(workdir / 'profile', profile_steps)))
    stopping = stack.enter_context(distributed.preemption_notice())
    if distributed.is_main_process():
      (workdir / 'config.json').write_text(json.dumps(exported.as_json(config), indent=2) + '\n')
      print(overview(config, state, mesh), flush=True)

    def evaluate(step: int):
      if evaluators:
        with logger.paused():
          painter = make_painter(state)
          logger.evaluation(step, [evaluator.run(painter, None) for evaluator in evaluators])

    def save():
      with logger.paused():
        saved.save(state, data=batches.state(), config=config)

    if branch_from is not None:
      save()  # What it begins with stays as it is, whatever becomes of the other run.

    # 5. The loop: evaluate, save, take data, step. Metrics are read one step late, so that a step is always running.
    for step in range(start, cfg.steps):
      if step > start and run_logger.every(cfg.eval_every, step):
        evaluate(step)
      stop = stopping(step)
      if step > start and run_logger.every(cfg.checkpoint_every, step) or stop:
        save()
      if stop:
        print(f'SIGTERM: saved step {step}. The same command goes on from there.', flush=True)
        return state
      if step in at_steps:
        with logger.paused():
          at_steps[step](step, state, batches)
      tracer.start(step)
      with jax.profiler.StepTraceAnnotation('train', step_num=step):
        batch = mesh_lib.put_batch(next(batches), mesh)
        with jax.transfer_guard('disallow'):  # A transfer that nobody asked for would wait for the step before.
          state, step_metrics = train_step(state, batch)
      tracer.stop(step, step_metrics)
      logger.step(step_metrics)

    # 6. The end: score, save, export.
    if cfg.eval_every and start < cfg.steps:
      evaluate(cfg.steps)
    save()
    averaged = jax.tree.map(distributed.fully_gathered, state.averaged())
    if distributed.is_main_process():
      folder = workdir_lib.export_folder(workdir)
      final = exported.export_ema(folder, averaged, config=config, tokenizer=tokenizer)
      print(f'Finished {cfg.steps} steps: {final}', flush=True)
    distributed.barrier('the model is exported')
    return state


def overview(config: config_lib.Config, state: state_lib.TrainState, mesh: jax.sharding.Mesh) -> str:
  """Every parameter with its shape and sharding, a total of those that learn and of those that do not, the mesh."""
  parts = {'trainable': state.trainable, 'frozen': state.frozen}
  table = parameter_overview.get_parameter_overview(parts, include_stats='sharding')
  learn, fixed = (parameter_overview.count_parameters(part) for part in parts.values())
  return (
    f'{table}\n{config.name}: {learn / 1e6:.2f}M parameters learn, {fixed / 1e6:.2f}M are frozen; '
    f'mesh {dict(mesh.shape)}'
  )


def averaged_state(config: config_lib.Config, workdir: pathlib.Path, *, step: int) -> state_lib.TrainState:
  """What is sampled of the checkpoint of a step, on the run's mesh. Raises: FileNotFoundError where it is gone."""
  abstract = state_lib.abstract_on_mesh(config, mesh_lib.make_mesh(config.mesh))
  return checkpoints.restore_averaged(workdir / run_checkpoints.CHECKPOINTS, abstract, config=config, step=step)


def _branch(config: config_lib.Config, restored: checkpoints.Restored, source: pathlib.Path) -> str:
  """What a run that branches off says. Raises: ValueError where it would have nothing to do."""
  start, steps = restored.step, config.train.steps
  if start >= steps:
    raise ValueError(
      f'config.train.steps={steps}, and {source} has taken {start} steps already. Give more: --config.train.steps=..'
    )
  rate = float(optimizer.learning_rate(config.train, jnp.int32(start)))
  changed = ''.join(f'\n  {line}' for line in restored.changed)
  return (
    f'Branching off {source} at step {start}. The learning rate is that of step {start} of {steps} from here on, '
    f'{rate:.3g} now. What differs:{changed or " nothing"}'
  )


def _initial_weights(config: config_lib.Config, mesh: jax.sharding.Mesh) -> Any:
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
