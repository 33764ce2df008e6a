"""Gradient accumulation: the gradients of a batch, one micro-batch after the other, inside of the compiled step.

The loss is a weighted mean over the supervised tokens of the whole batch. So each micro-batch divides by the weights of
the whole (`losses.Whole`), and losses, metrics and gradients are summed. What is random is drawn for the whole batch:
any number of micro-batches learns the same, within the rounding of float32 sums.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import packed
from pdgen.models import partition
from pdgen.training import losses

# (trainable, frozen, batch, key[, whole]) -> ((loss, metrics), gradients of trainable)
Gradients = Callable[..., tuple[tuple[jax.Array, Any], Any]]


def check(config: config_lib.Config, mesh: Mesh, loss: Callable[..., Any]):
  """Raises ValueError for a batch that has no such micro-batches, or for a loss that cannot be summed over them."""
  count, rows, ways = config.train.accumulate, config.data.batch_size, _ways(mesh)
  if count == 1:
    return
  if rows % (count * ways):
    raise ValueError(
      f'config.train.accumulate={count}: a batch of {rows} rows does not divide into {count} micro-batches for data x '
      f'fsdp = {ways} devices. Set config.data.batch_size to a multiple of {count * ways}, or accumulate to another '
      'number.'
    )
  named = inspect.signature(loss).parameters
  if 'whole' not in named and all(one.kind != inspect.Parameter.VAR_KEYWORD for one in named.values()):
    raise ValueError(
      f'config.train.accumulate={count} needs a loss that takes `whole` (`losses.Whole`): that of a micro-batch is a '
      f'summand of that of the batch. {getattr(loss, "__name__", loss)} does not.'
    )


def accumulated(of_micro_batch: Gradients, config: config_lib.Config, mesh: Mesh) -> Gradients:
  """(trainable, frozen, batch, key) -> ((loss, metrics), gradients), each a sum over `train.accumulate` micro-batches.

  Besides the activations of one micro-batch there are two copies of the gradients: the sum and the summand.

  Args:
    of_micro_batch: (trainable, frozen, batch, key, whole) -> ((loss, metrics), gradients).
    config: of the run.
    mesh: over the devices.
  """

  def run(trainable: Any, frozen: Any, batch: packed.PackedBatch, key: jax.Array):
    whole = losses.whole(batch, key, config)
    parts = jax.tree.map(lambda x: split_rows(x, config.train.accumulate, mesh), (batch, whole.draws))
    shardings = partition.shardings(trainable, mesh)
    zeros = jax.tree.map(lambda x, s: _placed(jnp.zeros_like(x), s), trainable, shardings)

    def add(total: Any, part: Any) -> tuple[Any, Any]:
      micro_batch, draws = part
      scalars, grads = of_micro_batch(trainable, frozen, micro_batch, key, whole._replace(draws=draws))
      return jax.tree.map(lambda a, b, s: _placed(a + b, s), total, grads, shardings), scalars

    grads, scalars = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), scalars), grads

  return run


def split_rows(x: jax.Array, count: int, mesh: Mesh) -> jax.Array:
  """[B, T, ..] to [count, B / count, T, ..]: the rows of every device in `count` equal parts, so that none moves.

  >>> mesh = mesh_lib.make_mesh(config_lib.MeshConfig(fsdp=1), devices=jax.devices()[:1])
  >>> split_rows(jnp.arange(4)[:, None], 2, mesh)[..., 0].tolist()
  [[0, 1], [2, 3]]
  """
  ways = _ways(mesh)
  x = x.reshape(ways, count, x.shape[0] // (ways * count), *x.shape[1:])
  x = mesh_lib.constrain(x, mesh_lib.ROWS, None, None, 'sequence')
  x = jnp.swapaxes(x, 0, 1)
  return mesh_lib.constrain(x.reshape(count, -1, *x.shape[3:]), None, mesh_lib.ROWS, 'sequence')


def _placed(x: jax.Array, sharding: NamedSharding) -> jax.Array:
  return mesh_lib.constrain(x, *sharding.spec)


def _ways(mesh: Mesh) -> int:
  return math.prod(mesh.shape[axis] for axis in mesh_lib.ROWS)
