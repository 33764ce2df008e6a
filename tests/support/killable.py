"""A training run to be killed: `python tests/support/killable.py WORKDIR STEPS CACHE`.

WORKDIR/consumed.txt gets a line for every batch that is taken: the step and a digest of all of its arrays.
"""

import dataclasses
import hashlib
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import numpy as np
import test_train

from pdgen import testing, train
from pdgen.core import mesh as mesh_lib
from pdgen.training import checkpoints


def main(workdir: pathlib.Path, steps: int, cache: str):
  jax.config.update('jax_compilation_cache_dir', cache)  # Every life would compile again otherwise.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_num_cpu_devices', 2)
  tiny = testing.tiny_config()
  settings = dataclasses.replace(tiny.train, steps=steps, checkpoint_every=2, log_every=1, self_samples=4)
  # Some batches have a trajectory of more than 640 tokens.
  data = dataclasses.replace(tiny.data, und_tokens=768, batch_size=4)
  config = dataclasses.replace(tiny, train=settings, data=data, mesh=dataclasses.replace(tiny.mesh, data=2))
  workdir.mkdir(exist_ok=True)
  consumed = (workdir / 'consumed.txt').open('a', buffering=1)
  place = {'step': 0}
  restore, put = checkpoints.Checkpointer.restore, mesh_lib.put_batch

  def noting_restore(self, *args, **options):
    restored = restore(self, *args, **options)
    place['step'] = restored.step
    return restored

  def noting_put(batch, mesh):
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(batch):
      digest.update(np.ascontiguousarray(leaf).tobytes())
    consumed.write(f'{place["step"]} {digest.hexdigest()}\n')
    place['step'] += 1
    return put(batch, mesh)

  checkpoints.Checkpointer.restore = noting_restore
  mesh_lib.put_batch = noting_put
  train.make_painter = test_train.Scribbler
  train.train(config, workdir)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
