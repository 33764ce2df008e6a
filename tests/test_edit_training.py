"""Training on trajectories whose prompts hold pictures: one step of an edit."""

import dataclasses

import jax
import numpy as np
from support import toy

from pdgen.core import config, mesh, trees
from pdgen.data import packing
from pdgen.training import state as state_lib
from pdgen.training import step as step_lib

MODEL = dataclasses.replace(toy.MODEL, depth=1, prediction='x')
DATA = config.DataConfig(
  batch_size=1, und_tokens=64, gen_tokens=48, pictures=4, packing_bins=1, prefetch=0, sequence=toy.PLAIN
)
# Whole steps: no warm-up, no clipping.
TRAIN = config.TrainConfig(learning_rate=1e-2, warmup_steps=0, clip_norm=0.0)
EXPERIMENT = config.Config(name='edits', model=MODEL, data=DATA, train=TRAIN)


def _edit(given):
  steps = (toy.Step(draft=toy.picture(2)),)
  return toy.Trajectory(prompt='night', parts=(given, 'night'), steps=steps, mode='edit')


def _batch(trajectory):
  row = toy.row(trajectory, MODEL, seed=0)
  return toy.batch(packing.pack_row([row], EXPERIMENT.row_budget))


def test_a_step_on_an_edit_reaches_the_expert_of_pictures():
  batch, one = _batch(_edit(toy.picture(1))), mesh.make_mesh(config.MeshConfig(fsdp=1))
  # The flow loss is on the edited picture alone: what is given is context.
  assert batch.pictures.shape[1] == 4 and (np.asarray(batch.gen.weight) > 0).sum() == MODEL.latent_tokens
  train_step = step_lib.make_train_step(EXPERIMENT, one)

  def step(batch):
    state = state_lib.init_state(EXPERIMENT, one)
    # A head of zeros, as it begins, would hide all behind it.
    place = lambda new, old: jax.device_put(np.asarray(new), old.sharding)
    state = state.replace(trainable=jax.tree.map(place, toy.params(MODEL), state.trainable))
    before = jax.tree.map(np.asarray, state.trainable)
    state, metrics = train_step(state, mesh.put_batch(batch, one))
    after = jax.tree.map(np.asarray, state.trainable)
    moved = {
      name: float(np.abs(new - old).max())
      for (name, new), (_, old) in zip(trees.flatten_with_paths(after), trees.flatten_with_paths(before), strict=True)
    }
    return {name: float(metrics[name]) for name in ('loss', 'mse', 'grad_norm')}, moved

  metrics, moved = step(batch)
  assert np.isfinite(list(metrics.values())).all() and metrics['mse'] > 0 and metrics['grad_norm'] > 0
  of_pictures = [name for name in moved if '/gen/' in name and name.endswith('kernel')]
  assert of_pictures and min(moved[name] for name in (*of_pictures, 'latent_in/kernel', 'latent_out/kernel')) > 0
  # The given picture is seen: another one, another loss.
  other, _ = step(_batch(_edit(toy.picture(3))))
  assert other['mse'] != metrics['mse']
