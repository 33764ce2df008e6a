"""Trains a model from a config file, resuming where the workdir's newest checkpoint stands.

    python -m pdgen.train --config=configs/shapes.py --workdir=out/shapes --config.train.steps=1000

The same command on every host makes one run of them all (`training.distributed`; scripts in launch/), in a folder that
all of them see. `--profile_steps=100:103` writes a profiler trace of three steps. `--branch_from=OTHER_WORKDIR` begins
with the newest checkpoint of another run: more steps, another rate, longer rows. What the workdir holds afterwards:
`training.loop`; and `self_sampled/`, drafts of the model's own, judged.
"""

from pdgen import startup as startup  # First: Ctrl-C while the rest is imported.

# isort: split
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from absl import flags, logging
from ml_collections import config_flags

from pdgen import flags as flags_lib
from pdgen import worlds
from pdgen.construction import self_sampled
from pdgen.core import config as config_lib
from pdgen.cost import training_flops
from pdgen.data import feed, tokenizers
from pdgen.evals import in_training
from pdgen.inference import painter as painter_lib
from pdgen.training import distributed, loop, losses, profiling
from pdgen.training import state as state_lib
from pdgen.training import step as step_lib
from pdgen.training import workdir as workdir_lib


def train(
  config: config_lib.Config,
  workdir: pathlib.Path,
  *,
  loss: step_lib.Loss = losses.interleaved_loss,
  profile_steps: profiling.Steps | None = None,
  branch_from: str | os.PathLike | None = None,
) -> state_lib.TrainState:
  """Runs `training.loop.train` with the config's data, evaluators and self-sampling. Returns the last state."""
  processes: Any = {'is_main_process': distributed.is_main_process(), 'barrier': distributed.barrier}
  branch = workdir_lib.branch_point(workdir, branch_from)

  def paint(step: int, state_of: Callable[[], state_lib.TrainState]):
    world, painter = worlds.get(config.data.world), lambda: make_painter(config, state_of())
    self_sampled.write_drafts(config, workdir, step, world=world, make_painter=painter, **processes)

  def open_data(*, step: int, share: tuple[int, int], state: Any) -> feed.DataFeed:
    again = lambda step: paint(step, lambda: loop.averaged_state(config, workdir, step=step))
    drafts = self_sampled.prepare_drafts(
      config, workdir, before=step, is_new=state is None, branch_from=branch, paint=again, **processes
    )
    state, gather = feed.without_inputs(state) if branch else state, distributed.all_gather_text
    return feed.DataFeed(config, self_sampled=drafts, share=share, state=state, all_gather=gather)

  def self_sample(step: int, state: state_lib.TrainState, data: feed.DataFeed):
    paint(step, lambda: state)
    data.reload(self_sampled=self_sampled.read_drafts(config, workdir, before=step + 1))

  if distributed.is_main_process():
    print(f'{config.name}: {training_flops.summary(config)}', flush=True)
  return loop.train(
    config,
    workdir,
    data=open_data,
    tokenizer=tokenizers.files(config.data.tokenizer),
    evaluators=in_training.evaluators(config) if config.train.eval_every else (),
    make_painter=lambda state: make_painter(config, state),
    at_steps=dict.fromkeys(config.train.self_sample_steps, self_sample),
    loss=loss,
    profile_steps=profile_steps,
    branch_from=branch,
  )


def make_painter(config: config_lib.Config, state: state_lib.TrainState) -> painter_lib.Painter:
  """The painter of the state's averaged parameters, on one device where each process samples for itself."""
  params = state.averaged()
  if jax.process_count() > 1:  # A model that does not fit one device is sampled from its checkpoints.
    params = jax.tree.map(distributed.fully_gathered, params)
  if jax.default_backend() == 'cpu' or jax.process_count() > 1:  # Else each device of a CPU paints the same batch.
    params = jax.device_put(params, jax.local_devices()[0])
  return painter_lib.Painter(config=config, params=params, tokenizer=tokenizers.load(config.data.tokenizer))


def main():
  """The command line."""
  config_flag = config_flags.DEFINE_config_file('config', None, 'File with get_config().')
  workdir_flag = flags.DEFINE_string('workdir', None, 'Folder of the run: written, and resumed from.', required=True)
  profile_flag = flags.DEFINE_string('profile_steps', '', 'A:B: a trace of steps A to B - 1, into WORKDIR/profile.')
  branch_flag = flags.DEFINE_string(
    'branch_from', None, 'Workdir of a run whose newest checkpoint a new run begins with.'
  )
  flags.mark_flag_as_required('config')

  def run(kept: flags_lib.Kept):
    logging.set_verbosity(logging.ERROR)  # Orbax tells of every file of every save.
    config, workdir = config_lib.from_config_dict(config_flag.value), pathlib.Path(workdir_flag.value)
    if not workdir_flag.value.strip():
      raise ValueError('--workdir: the name is empty.')
    kept.words = f'The same command goes on from the newest checkpoint in {workdir}, if there is one.'
    steps = profiling.parse_steps(profile_flag.value) if profile_flag.value else None
    flags_lib.writable_folder(workdir)
    workdir_lib.branch_point(workdir, branch_flag.value)  # Said before anything is compiled.
    jax.config.update('jax_num_cpu_devices', config.mesh.cpu_devices)
    flags_lib.enable_compilation_cache()
    distributed.initialize()
    train(config, workdir, profile_steps=steps, branch_from=branch_flag.value)

  flags_lib.run_absl('python -m pdgen.train', run)


if __name__ == '__main__':
  main()
