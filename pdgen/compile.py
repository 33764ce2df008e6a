"""Compiles the real training step, or the real sampling program, for a machine that is not there.

    python -m pdgen.compile --config=configs/bagel_7b.py --target=h100:8
    python -m pdgen.compile --config=configs/bagel_7b.py --target=v5p:4x4x4 --program=sample --config.mesh.tensor=4

Prints, and writes as JSON (`--json`), the bytes on a device by kind, whether they fit and what to change if not, the
analytic FLOPs, the collectives, the step time at the roofline and the seconds that compiling took. Targets: h100:8,
h100:64, v5p:4x4x4, v6e:16x16, cpu:8 and the like. TPUs need `pip install 'pdgen[tpu]'`, H100s `.. 'pdgen[cuda]'`.
Ends with 1 where the program does not fit.
"""

import importlib.util
import json
import math
import os
import pathlib
import sys
import time
from typing import Any

os.environ['TPU_SKIP_MDS_QUERY'] = '1'  # There is no TPU near whose metadata JAX could ask for when it is imported.
os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = 'true'  # No device is taken, so that several may compile at a time.

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import config_flags

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import packed, trees
from pdgen.cost import accelerators, hlo, sampling_flops, training_flops
from pdgen.models import interleaved, partition
from pdgen.sampling import cycle, flow, grammar
from pdgen.training import state as state_lib
from pdgen.training import step

PREFIX = 128  # und tokens of the prompts of a sampling batch.
# There is no GPU to time kernels on; not timed, XLA's Triton matmuls find no tiles for the resize before the ViT.
_UNTIMED = '--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false'
_EXTRAS = {'tpu': ('libtpu', 'pdgen[tpu]'), 'cuda': ('jax_cuda12_plugin', 'pdgen[cuda]')}


def report(
  config: config_lib.Config, target: accelerators.Topology, *, program: str, batch_size: int = 0
) -> dict[str, Any]:
  """Everything that is known of the compiled program, as JSON takes it.

  program: `train` or `sample`. batch_size: trajectories sampled at once; 0: four for each place along data x fsdp.

  Raises: ModuleNotFoundError, naming what to install, where the compiler for the target is missing; ValueError for a
  mesh that does not fit the devices or the model.
  """
  mesh = mesh_lib.make_mesh(config.mesh, devices=devices(target))
  if program == 'sample':
    batch_size = batch_size or 4 * mesh.shape['data'] * mesh.shape['fsdp']
    lower, arguments = _sample(config, mesh, batch_size)
  else:
    lower, arguments = _train(config, mesh)
  kinds = {kind: _bytes_a_device(tree) for kind, tree in arguments.items()}
  out = dict(
    config=config.name,
    program=program,
    target=target.name,
    mesh=dict(mesh.shape),
    parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(arguments['parameters'])),
    bytes=kinds,
    capacity=target.machine.memory,
  )
  began = time.perf_counter()
  try:
    compiled = lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    reason = ' '.join(str(error).split())[:400]
    out.update(fits=False, reason=reason, advice=advice(config, kinds, target, program))
    return out
  out['compile_seconds'] = round(time.perf_counter() - began, 1)
  memory = compiled.memory_analysis()
  kinds['activations'] = memory.temp_size_in_bytes
  kinds['peak'] = (
    memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  )
  out['fits'] = target.machine.memory is None or kinds['peak'] <= target.machine.memory
  if not out['fits']:
    out['advice'] = advice(config, kinds, target, program)
  found = hlo.collectives(compiled.as_text(), devices=mesh.size)
  out['collectives'] = {
    kind: dict(
      count=sum(c.times for c in found if c.kind == kind),
      bytes=int(sum(c.times * c.bytes for c in found if c.kind == kind)),
    )
    for kind in hlo.KINDS
    if any(c.kind == kind for c in found)
  }
  network = sum(c.times * c.bytes / _bandwidth(c, target) for c in found)
  out.update(_roofline(config, target, mesh, kinds, network, program=program, batch_size=batch_size))
  return out


def devices(target: accelerators.Topology) -> list[jax.Device]:
  """Stand-ins for the target's devices, which programs can be compiled for and not run on.

  Raises: ModuleNotFoundError where the compiler for them is not installed.
  """
  from jax.experimental import topologies

  platform = target.machine.platform
  if platform == 'cpu':
    found = jax.devices('cpu')
    if len(found) < target.devices:
      raise ValueError(f'{target.name}: there are {len(found)} CPU devices. Set jax_num_cpu_devices before JAX starts.')
    return found[: target.devices]
  module, extra = _EXTRAS[platform]
  if importlib.util.find_spec(module) is None:
    raise ModuleNotFoundError(f"{target.name} needs XLA's compiler for it: pip install '{extra}'")
  if platform == 'tpu':
    return topologies.get_topology_desc(target.name, platform='tpu').devices
  hosts = max(1, target.devices // target.machine.host_devices)
  shape = f'1x{hosts}x{target.devices // hosts}'
  return topologies.get_topology_desc(
    '', platform='cuda', target_config=accelerators.H100_TARGET, topology=shape
  ).devices


def advice(config: config_lib.Config, kinds: dict[str, int], target: accelerators.Topology, program: str) -> list[str]:
  """What to change so that it fits, what gains most first."""
  state = sum(kinds.get(kind, 0) for kind in ('parameters', 'optimizer', 'ema'))
  less_state, less_activations = [], []
  if config.mesh.data > 1:
    less_state.append('split weights over more devices: config.mesh.data=1, config.mesh.fsdp=-1')
  if program == 'train':
    less_state += [
      'freeze a part: config.train.freeze (no gradient, optimizer state nor average of it)',
      'learn adapters alone: config.model.lora',
      'take a larger target',
    ]
    if config.model.attention == 'reference':
      less_activations.append('never build the matrix of attention: config.model.attention=blockwise')
    if config.model.remat != 'full':
      less_activations.append('recompute layers in the backward pass: config.model.remat=full')
    if not config.train.loss_chunk:
      less_activations.append('compute the loss of texts in parts: config.train.loss_chunk=1024')
    less_activations += [
      'split rows over devices: config.mesh.sequence',
      'take shorter rows: config.data.und_tokens, config.data.gen_tokens',
    ]
  else:
    less_state.append('split heads and columns over more devices: config.mesh.tensor')
    less_activations.append('sample fewer trajectories at once: --batch_size')
    less_activations.append('give them a shorter cache: config.sampling.max_tokens')
  capacity = target.machine.memory or math.inf
  first, second = (less_state, less_activations) if state > capacity / 2 else (less_activations, less_state)
  return first + second


def _train(config: config_lib.Config, mesh: Mesh):
  """How to lower the training step, and its arguments by kind."""
  state = state_lib.abstract_on_mesh(config, mesh)
  batch = _placed(step.abstract_batch(config), lambda leaf: mesh_lib.batch_sharding(mesh))
  arguments = dict(parameters=(state.trainable, state.frozen), optimizer=state.opt_state, ema=state.ema, batch=batch)
  return (lambda: step.make_train_step(config, mesh).lower(state, batch)), arguments


def _sample(config: config_lib.Config, mesh: Mesh, batch_size: int):
  """How to lower the sampling program, and its arguments by kind. Matrices are in the compute dtype."""
  cfg, sampling = config.model, config.sampling
  params = interleaved.abstract_params(cfg)
  dtype = lambda name, leaf: cfg.dtype if name.endswith(('kernel', 'table')) else leaf.dtype
  params = trees.map_with_path(lambda name, x: jax.ShapeDtypeStruct(x.shape, dtype(name, x)), params)
  where = partition.shardings(params, mesh)
  params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, where)
  integers = lambda *shape: jax.ShapeDtypeStruct((batch_size, *shape), jnp.int32)
  stream = lambda kind, n: kind(*(packed.TokenMeta(*6 * [integers(n)]), *(len(kind._fields) - 1) * [integers(n)]))
  picture = jax.ShapeDtypeStruct((batch_size, 0, cfg.image_size, cfg.image_size, 3), jnp.uint8)
  prefix = packed.PackedBatch(stream(packed.UndStream, PREFIX), stream(packed.GenStream, 0), picture)
  flags_ = {'refining': jnp.bool_, 'direct': jnp.bool_}
  state = {
    name: jax.ShapeDtypeStruct((batch_size,), flags_.get(name, jnp.int32))
    for name in grammar.GrammarState.__dataclass_fields__
  }
  batch = cycle.SampleBatch(
    prefix=prefix,
    grammar=grammar.GrammarState(**state),
    key=jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size)),
    picture_limit=integers(),
  )
  over_rows = NamedSharding(mesh, P(mesh_lib.ROWS))
  batch = _placed(batch, lambda leaf: over_rows)
  sampler = _placed(jax.eval_shape(lambda: flow.SamplerParams.of(sampling)), lambda leaf: mesh_lib.replicated(mesh))
  # Which ids they are does not matter to what is compiled.
  specials = config_lib.Specials(**{name: i for i, name in enumerate(config_lib.Specials.__dataclass_fields__)})
  spec = cycle.SamplerSpec.of(sampling, specials, cfg.vocab_size)

  def lower():
    with jax.set_mesh(mesh):
      return cycle.run.lower(interleaved.graphdef(cfg), params, batch, sampler, spec)

  return lower, dict(parameters=params, batch=batch)


def _roofline(
  config: config_lib.Config,
  target: accelerators.Topology,
  mesh: Mesh,
  kinds: dict[str, int],
  network: float,
  *,
  program: str,
  batch_size: int,
) -> dict[str, Any]:
  """Analytic FLOPs, and the least seconds that arithmetic, memory and network need, each on its own."""
  machine, width = target.machine, jnp.dtype(config.model.dtype).itemsize
  if program == 'train':
    work = training_flops.train_flops(config)
    hardware = work['total'] * (1 + (config.model.remat == 'full') / 3)
    compute = hardware / mesh.size / machine.flops
    # What goes in is read and what stays is written once; weights are read in forward, backward and recomputation.
    state = sum(kinds[kind] for kind in ('parameters', 'optimizer', 'ema'))
    weights = 3 * width * kinds['parameters'] / 4 * mesh.shape['fsdp']
    memory = (2 * state + weights) / machine.memory_bandwidth
    seconds = max(compute, memory, network)
    parts = dict(compute=compute, memory=memory, network=network)
    return dict(
      flops=work, seconds=seconds, seconds_by_part=parts, model_flops_utilisation=work['total'] / mesh.size
      / machine.flops / seconds,
    )  # fmt: skip
  phases = sampling_flops.sample_flops(config, batch_size=batch_size, prefix=PREFIX)
  parts = {}
  for name, phase in phases.items():
    compute = phase.flops / mesh.size / machine.flops
    # Weights that are gathered over fsdp are read where they are used, whole; the cache lies with its rows and heads.
    memory = width * (phase.weights / mesh.shape['tensor'] + phase.cache / mesh.size) / machine.memory_bandwidth
    parts[name] = phase.calls * max(compute, memory)
  work = {name: float(phase.calls * phase.flops) for name, phase in phases.items()}
  work['total'] = sum(work.values())
  # Loops that end by themselves are counted once: the network's part of a call of each phase, not of all of them.
  return dict(flops=work, batch_size=batch_size, seconds=sum(parts.values()), seconds_by_part=parts)


def _bandwidth(collective: hlo.Collective, target: accelerators.Topology) -> float:
  """Bytes a second of the slowest link in the way of a collective."""
  machine = target.machine
  hosts = collective.groups // machine.host_devices
  inside = bool(np.all(hosts == hosts[:, :1]))
  return machine.link_bandwidth if inside else machine.network_bandwidth


def _placed(tree: Any, sharding_of: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(x)), tree)


def _bytes_a_device(tree: Any) -> int:
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _text(found: dict[str, Any]) -> str:
  """The report for a person."""
  mesh = ' x '.join(f'{axis} {size}' for axis, size in found['mesh'].items() if size > 1) or 'one device'
  lines = [
    f'{found["config"]} {found["program"]} on {found["target"]}: {mesh}; {found["parameters"] / 1e9:.2f}G parameters'
  ]
  lines += [f'  {kind:<12}{size / accelerators.GIB:9.2f} GiB a device' for kind, size in found['bytes'].items()]
  if found['capacity']:
    lines.append(
      f'  {"of":<12}{found["capacity"] / accelerators.GIB:9.2f} GiB: {"fits" if found["fits"] else "DOES NOT FIT"}'
    )
  lines += [f'  {found["reason"]}'] if 'reason' in found else []
  lines += [f'    - {line}' for line in found.get('advice', ())]
  if 'compile_seconds' in found:
    parts = ', '.join(f'{name} {seconds:.3g} s' for name, seconds in found['seconds_by_part'].items())
    total = found['flops']['total']
    lines += [
      f'  {k:<20}{v["count"]:>7} times {v["bytes"] / accelerators.GIB:9.3f} GiB sent'
      for k, v in found['collectives'].items()
    ]
    lines += [f'  {total:.3g} FLOP; at the roofline {found["seconds"]:.3g} s ({parts})']
    lines += [f'  compiled in {found["compile_seconds"]} s']
  return '\n'.join(lines)


def main():
  """The command line."""
  config_flag = config_flags.DEFINE_config_file('config', None, 'File with get_config().')
  target_flag = flags.DEFINE_string('target', None, 'h100:8, h100:64, v5p:4x4x4, v6e:16x16, cpu:8 and the like.')
  program_flag = flags.DEFINE_enum('program', 'train', ['train', 'sample'], 'Which of the two programs.')
  batch_flag = flags.DEFINE_integer('batch_size', 0, 'Trajectories sampled at once; 0: four for each row of devices.')
  json_flag = flags.DEFINE_string('json', None, 'File to write; default: out/compile/<config>-<target>-<program>.json.')
  flags.mark_flags_as_required(['config', 'target'])

  def run(_):
    config = config_lib.from_config_dict(config_flag.value)
    try:
      target = accelerators.parse(target_flag.value)
      # Nothing is ever run: where there are accelerators, they are left alone.
      jax.config.update('jax_platforms', 'cpu')
      if target.machine.platform == 'cpu':
        jax.config.update('jax_num_cpu_devices', target.devices)
      if target.machine.platform == 'cuda':
        os.environ['XLA_FLAGS'] = f'{_UNTIMED} {os.environ.get("XLA_FLAGS", "")}'.strip()
      found = report(config, target, program=program_flag.value, batch_size=batch_flag.value)
    except (ModuleNotFoundError, ValueError) as error:
      sys.exit(str(error))
    print(_text(found))
    name = f'{config.name}-{target.name.replace(":", "-")}-{program_flag.value}.json'
    file = pathlib.Path(json_flag.value or f'out/compile/{name}')
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + '\n')
    sys.exit(0 if found['fits'] else 1)

  app.run(run)


if __name__ == '__main__':
  main()
