"""Ahead-of-time compilation of the real training step or sampler, for devices that need not be there.

The report has the bytes of a device by kind, whether they fit and what to change if not, the collectives, the FLOPs and
the seconds at the roofline.
"""

import importlib.util
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import packed, trees
from pdgen.core import trajectory as trajectory_lib
from pdgen.cost import accelerators, hlo, roofline
from pdgen.models import interleaved, partition
from pdgen.models import params as params_lib
from pdgen.models import quantize as quantize_lib
from pdgen.sampling import cycle, flow, grammar
from pdgen.training import state as state_lib
from pdgen.training import step as step_lib

PREFIX = 128  # und tokens of the prompts of a sampling batch.
# There is no GPU to time kernels on; not timed, XLA's Triton matmuls find no tiles for the resize before the ViT.
_UNTIMED = '--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false'
_EXTRAS = {'tpu': ('libtpu', 'pdgen[tpu]'), 'cuda': ('jax_cuda12_plugin', 'pdgen[cuda]')}


class Program(NamedTuple):
  """A program before it is compiled."""

  lower: Callable[[], jax.stages.Lowered]  # Traces and lowers it.
  arguments: dict[str, Any]  # Trees of ShapeDtypeStruct with shardings, by kind: `parameters`, `batch` ..


def configure(target: accelerators.Topology):
  """Sets JAX up to compile for a target. To be called before JAX uses a device.

  Nothing is ever run: accelerators that are there are left alone.
  """
  jax.config.update('jax_platforms', 'cpu')
  if target.machine.platform == 'cpu':
    jax.config.update('jax_num_cpu_devices', target.devices)
  if target.machine.platform == 'cuda':
    os.environ['XLA_FLAGS'] = f'{_UNTIMED} {os.environ.get("XLA_FLAGS", "")}'.strip()


def report(
  config: config_lib.Config,
  target: accelerators.Topology,
  *,
  program: str,
  batch_size: int = 0,
  quantize: str | None = None,
) -> dict[str, Any]:
  """Compiles a program for a target. Returns everything that is known of it, as JSON takes it.

  Args:
    config: of the run.
    target: devices to compile for.
    program: `train` or `sample`.
    batch_size: trajectories sampled at once; 0: four for each place along data x fsdp.
    quantize: of `models.quantize.KINDS`, of the weights that are sampled with; None: whole ones.

  Raises: ModuleNotFoundError, naming what to install, where the compiler for the target is missing; ValueError for a
  mesh that does not fit the devices or the model.
  """
  mesh = mesh_lib.make_mesh(config.mesh, devices=devices(target))
  batch_size = batch_size or 4 * mesh.shape['data'] * mesh.shape['fsdp']
  lowering = sample_program(config, mesh, batch_size, quantize) if program == 'sample' else train_program(config, mesh)
  kinds = {kind: _bytes_a_device(tree) for kind, tree in lowering.arguments.items()}
  out: dict[str, Any] = {
    'config': config.name,
    'program': program,
    'target': target.name,
    'mesh': dict(mesh.shape),
    'parameters': sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(interleaved.abstract_params(config.model))),
    'bytes': kinds,
    'capacity': target.machine.memory,
  }
  if quantize is not None:
    out['quantize'] = quantize
  if program == 'train' and (half := _in_bfloat16(lowering.arguments['parameters'][1])):
    out['frozen_in_bfloat16'] = half
  began = time.perf_counter()
  try:
    compiled = lowering.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    reason = ' '.join(str(error).split())[:400]
    return {**out, 'fits': False, 'reason': reason, 'advice': advice(config, kinds, target, program)}
  out['compile_seconds'] = round(time.perf_counter() - began, 1)
  kinds |= _bytes_of_compiled(compiled)
  out['fits'] = target.machine.memory is None or kinds['peak'] <= target.machine.memory
  if not out['fits']:
    out['advice'] = advice(config, kinds, target, program)
  found = hlo.collectives(compiled.as_text() or '', devices=mesh.size)
  out['collectives'] = _sent(found)
  if program == 'sample':
    size = None if quantize is None else quantize_lib.BYTES[quantize]
    found = roofline.sample(config, target.machine, mesh, batch_size=batch_size, prefix=PREFIX, weight_bytes=size)
    return out | found
  network = roofline.collective_seconds(found, target.machine)
  return out | roofline.train(config, target.machine, mesh, kinds, network)


def devices(
  target: accelerators.Topology,
) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]: an unannotated alias of jax
  """Stand-ins for the target's devices, which programs can be compiled for and not run on.

  Raises: ModuleNotFoundError where the compiler for them is not installed; ValueError for too few CPU devices.
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
    alone = {'chips_per_host_bounds': (1, 1, 1)} if target.devices == 1 else {}  # Hosts have four, unless it is said.
    return topologies.get_topology_desc(target.name, platform='tpu', **alone).devices
  hosts = max(1, target.devices // target.machine.host_devices)
  shape = f'1x{hosts}x{target.devices // hosts}'
  return topologies.get_topology_desc(
    '', platform='cuda', target_config=accelerators.H100_TARGET, topology=shape
  ).devices


def train_program(config: config_lib.Config, mesh: Mesh) -> Program:
  """The training step as `pdgen.train` runs it."""
  state = state_lib.abstract_on_mesh(config, mesh)
  batch = _placed(step_lib.abstract_batch(config), mesh_lib.batch_sharding(mesh))
  arguments = {
    'parameters': (state.trainable, state.frozen),
    'optimizer': state.opt_state,
    'ema': state.ema,
    'batch': batch,
  }
  return Program(lambda: step_lib.make_train_step(config, mesh).lower(state, batch), arguments)


def sample_program(config: config_lib.Config, mesh: Mesh, batch_size: int, quantize: str | None = None) -> Program:
  """The sampler (`pdgen.sampling.cycle`) for prompts of PREFIX tokens. Matrices: in the compute dtype, or quantised."""
  cfg, sampling = config.model, config.sampling
  params = interleaved.abstract_params(cfg)
  dtype = lambda name, leaf: cfg.dtype if params_lib.is_matrix(name) else leaf.dtype
  params = trees.map_with_path(lambda name, x: jax.ShapeDtypeStruct(x.shape, dtype(name, x)), params)
  if quantize is not None:
    params = jax.eval_shape(lambda whole: quantize_lib.params(whole, quantize), params)
  where = partition.shardings(params, mesh)
  params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, where)
  batch = _placed(_abstract_prompts(cfg, batch_size), NamedSharding(mesh, P(mesh_lib.ROWS)))
  sampler = _placed(jax.eval_shape(lambda: flow.SamplerParams.of(sampling)), mesh_lib.replicated(mesh))
  # Which ids they are does not matter to what is compiled.
  specials = config_lib.Specials(**{name: i for i, name in enumerate(config_lib.Specials.__dataclass_fields__)})
  spec = cycle.SamplerSpec.of(sampling, specials, cfg.vocab_size)

  def lower() -> jax.stages.Lowered:
    with jax.set_mesh(mesh):
      return cycle.run.lower(interleaved.sampling_graphdef(cfg), params, batch, sampler, spec)

  return Program(lower, {'parameters': params, 'batch': batch})


def advice(
  config: config_lib.Config, kinds: Mapping[str, int], target: accelerators.Topology, program: str
) -> list[str]:
  """What to change so that it fits, what gains most first.

  Args:
    config: of the run.
    kinds: bytes of a device by kind.
    target: devices that it does not fit.
    program: `train` or `sample`.
  """
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
    ways = target.devices // (config.mesh.tensor * config.mesh.sequence)  # Of the rows of a batch.
    if config.data.batch_size >= 2 * ways * config.train.accumulate:
      less_activations.append('compute the batch in parts: config.train.accumulate')
    less_activations += [
      'split rows over devices: config.mesh.sequence',
      'take shorter rows: config.data.und_tokens, config.data.gen_tokens',
    ]
  else:
    less_state.append('split heads and columns over more devices: config.mesh.tensor')
    less_state.append('hold matrices in 8 or 4 bits: --quantize=int8, --quantize=int4')
    less_activations.append('sample fewer trajectories at once: --batch_size')
    less_activations.append('give them a shorter cache: config.sampling.max_tokens')
  capacity = target.machine.memory or math.inf
  first, second = (less_state, less_activations) if state > capacity / 2 else (less_activations, less_state)
  return first + second


def text(found: Mapping[str, Any]) -> str:
  """A report for a person."""
  mesh = ' x '.join(f'{axis} {size}' for axis, size in found['mesh'].items() if size > 1) or 'one device'
  of = f'{found["parameters"] / 1e9:.2f}G parameters' + (f' in {found["quantize"]}' if 'quantize' in found else '')
  lines = [f'{found["config"]} {found["program"]} on {found["target"]}: {mesh}; {of}']
  lines += [f'  {kind:<12}{size / accelerators.GIB:9.2f} GiB a device' for kind, size in found['bytes'].items()]
  if found['capacity']:
    lines.append(
      f'  {"of":<12}{found["capacity"] / accelerators.GIB:9.2f} GiB: {"fits" if found["fits"] else "DOES NOT FIT"}'
    )
  if half := found.get('frozen_in_bfloat16'):
    lines.append(
      f'    {half["parameters"] / 1e9:.2f}G frozen parameters are counted in bfloat16. What a run begins with '
      f'(train.init_from) keeps its type: float32 takes {half["bytes"] / accelerators.GIB:.2f} GiB a device more'
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


def _abstract_prompts(cfg: config_lib.ModelConfig, batch_size: int) -> cycle.SampleBatch:
  """A batch of prompts as ShapeDtypeStructs."""

  def prompts() -> cycle.SampleBatch:
    zeros = jnp.zeros((batch_size,), jnp.int32)
    state = grammar.from_trajectories([trajectory_lib.Trajectory(prompt='', steps=())] * batch_size)
    return cycle.SampleBatch(
      prefix=_prefix(cfg, batch_size),
      grammar=state,
      key=jax.random.split(jax.random.key(0), batch_size),
      picture_limit=zeros,
      kept_order=zeros,
      texts_until=zeros,
    )

  return jax.eval_shape(prompts)


def _prefix(cfg: config_lib.ModelConfig, batch_size: int) -> packed.PackedBatch:
  """Prompts of PREFIX und tokens, without pictures, all zeros."""
  side = (cfg.image_size, cfg.image_size)
  fields = packed.spec(packed.RowBudget(PREFIX, 0, 0), canvas=side, rows=(batch_size,))
  return packed.map_fields(lambda name, field: jnp.zeros(field.shape, field.dtype), fields)


def _placed(tree: Any, sharding: Sharding) -> Any:
  """The abstract tree with one sharding for all leaves."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _bytes_a_device(tree: Any) -> int:
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _in_bfloat16(frozen: Any) -> dict[str, int]:
  """Number and bytes on a device of the frozen parameters in bfloat16; empty where there are none."""
  half = [leaf for leaf in jax.tree.leaves(frozen) if leaf.dtype == jnp.bfloat16]
  number = sum(math.prod(leaf.shape) for leaf in half)
  return {'parameters': number, 'bytes': _bytes_a_device(half)} if half else {}


def _bytes_of_compiled(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Bytes of a device that the compiled program tells: its temporaries, and all that it holds at a time."""
  memory = compiled.memory_analysis()
  if memory is None:
    raise RuntimeError('The compiler for this target does not tell how much memory the program takes.')
  held = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
  return {'activations': memory.temp_size_in_bytes, 'peak': held - memory.alias_size_in_bytes}


def _sent(found: list[hlo.Collective]) -> dict[str, dict[str, int]]:
  """Number and bytes of the collectives of each kind."""
  out = {}
  for kind in hlo.KINDS:
    of_kind = [c for c in found if c.kind == kind]
    if of_kind:
      out[kind] = {'count': sum(c.times for c in of_kind), 'bytes': int(sum(c.times * c.bytes for c in of_kind))}
  return out
