"""Roofline estimates: the least seconds that arithmetic, memory and network need, each on its own."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pdgen.core import config as config_lib
from pdgen.cost import accelerators, hlo, sampling_flops, training_flops


def train(
  config: config_lib.Config, machine: accelerators.Accelerator, mesh: Mesh, kinds: Mapping[str, int], network: float
) -> dict[str, Any]:
  """Of a training step: FLOPs by part, seconds, and the model FLOPs utilisation that they would mean.

  Args:
    config: of the run.
    machine: the device.
    mesh: over the devices.
    kinds: bytes of a device by kind, `parameters`, `optimizer` and `ema` among them.
    network: seconds that the step's collectives take (`collective_seconds`).
  """
  work = training_flops.train_flops(config)
  hardware = work['total'] * (1 + (config.model.remat == 'full') / 3)
  compute = hardware / mesh.size / machine.flops
  # What goes in is read and what stays is written once; weights are read in forward, backward and recomputation, for
  # each micro-batch.
  state = sum(kinds[kind] for kind in ('parameters', 'optimizer', 'ema'))
  weights = 3 * jnp.dtype(config.model.dtype).itemsize * kinds['parameters'] / 4 * mesh.shape['fsdp']
  weights *= config.train.accumulate
  memory = (2 * state + weights) / machine.memory_bandwidth
  seconds = max(compute, memory, network)
  return {
    'flops': work,
    'seconds': seconds,
    'seconds_by_part': {'compute': compute, 'memory': memory, 'network': network},
    'model_flops_utilisation': work['total'] / mesh.size / machine.flops / seconds,
  }


def sample(
  config: config_lib.Config,
  machine: accelerators.Accelerator,
  mesh: Mesh,
  *,
  batch_size: int,
  prefix: int,
  weight_bytes: float | None = None,
) -> dict[str, Any]:
  """Of a batch of the longest trajectories that the caps allow: FLOPs and seconds by phase.

  Without the network: loops that end by themselves are counted once, so that what they send is not known.

  Args:
    config: of the model and the sampler.
    machine: the device.
    mesh: over the devices.
    batch_size: trajectories.
    prefix: und tokens of a prompt.
    weight_bytes: of a number of a matrix of the layers; None: those of the compute dtype.
  """
  phases = sampling_flops.sample_flops(config, batch_size=batch_size, prefix=prefix)
  width, parts = jnp.dtype(config.model.dtype).itemsize, {}
  for name, phase in phases.items():
    compute = phase.flops / mesh.size / machine.flops
    # Weights that are gathered over fsdp are read where they are used, whole; the cache is split by rows and heads.
    weights = (width if weight_bytes is None else weight_bytes) * phase.layers + width * phase.head
    memory = (weights / mesh.shape['tensor'] + width * phase.cache / mesh.size) / machine.memory_bandwidth
    parts[name] = phase.calls * max(compute, memory)
  work = {name: float(phase.calls * phase.flops) for name, phase in phases.items()}
  work['total'] = sum(work.values())
  return {'flops': work, 'batch_size': batch_size, 'seconds': sum(parts.values()), 'seconds_by_part': parts}


def collective_seconds(found: list[hlo.Collective], machine: accelerators.Accelerator) -> float:
  """Seconds that collectives take one after the other, each at the slowest link that it crosses."""
  return sum(c.times * c.bytes / _bandwidth(c, machine) for c in found)


def _bandwidth(collective: hlo.Collective, machine: accelerators.Accelerator) -> float:
  """Bytes a second of the slowest link in the way of a collective."""
  hosts = collective.groups // machine.host_devices
  inside = bool(np.all(hosts == hosts[:, :1]))
  return machine.link_bandwidth if inside else machine.network_bandwidth
