"""Accelerator specifications (memory, peak FLOP/s, bandwidths; vendor figures) for AOT compilation and rooflines."""

import dataclasses
import math
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accelerator:
  """One device, and how devices are connected."""

  platform: str  # Of JAX: `tpu`, `cuda` or `cpu`.
  memory: int | None  # Bytes that a program may use on a device; None: as much as the host has.
  flops: float  # Peak bfloat16 FLOP/s, two a multiply-add.
  memory_bandwidth: float  # Bytes a second.
  link_bandwidth: float  # Bytes a second that a device sends to others of its host (of its slice on TPU).
  network_bandwidth: float  # Bytes a second that a device sends to other hosts.
  host_devices: int  # Devices of a host.


ACCELERATORS = {
  # 80 GB HBM3, of which CUDA, NCCL and XLA's own reserve leave 94 %; NVLink 4 one way; 400 Gbit/s InfiniBand a GPU.
  'h100': Accelerator(
    platform='cuda',
    memory=int(0.94 * 84_942_979_072),
    flops=989e12,
    memory_bandwidth=3.35e12,
    link_bandwidth=450e9,
    network_bandwidth=50e9,
    host_devices=8,
  ),
  # The same processor with 141 GB of HBM3e.
  'h200': Accelerator(
    platform='cuda',
    memory=int(0.94 * 150_754_820_096),
    flops=989e12,
    memory_bandwidth=4.8e12,
    link_bandwidth=450e9,
    network_bandwidth=50e9,
    host_devices=8,
  ),
  # ICI: six links of 100 GB/s one way on v5p, four of 112 GB/s on v6e; one slice, so that the network is ICI too.
  'v5p': Accelerator(
    platform='tpu',
    memory=int(95.2 * GIB),
    flops=459e12,
    memory_bandwidth=2.765e12,
    link_bandwidth=600e9,
    network_bandwidth=600e9,
    host_devices=4,
  ),
  'v6e': Accelerator(
    platform='tpu',
    memory=int(31.2 * GIB),
    flops=918e12,
    memory_bandwidth=1.64e12,
    link_bandwidth=448e9,
    network_bandwidth=448e9,
    host_devices=4,
  ),
  # A core of a laptop each: the order of magnitude, for estimates that are printed beside a compilation for tests.
  'cpu': Accelerator(
    platform='cpu',
    memory=None,
    flops=1e11,
    memory_bandwidth=2e10,
    link_bandwidth=1e10,
    network_bandwidth=1e9,
    host_devices=8,
  ),
}

# How JAX calls them (`device_kind`), beginnings that tell them apart.
_KINDS = {'NVIDIA H100': 'h100', 'NVIDIA H200': 'h200', 'TPU v5p': 'v5p', 'TPU v6': 'v6e', 'cpu': 'cpu'}

# An H100 SXM5 as a GpuTargetConfigProto of XLA: what it must know to compile for one that is not there.
H100_TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """Devices of one kind, as `--target` names them."""

  name: str  # h100:8
  kind: str  # Of ACCELERATORS.
  shape: tuple[int, ...]  # Of a TPU slice, or (devices,).

  @property
  def devices(self) -> int:
    return math.prod(self.shape)

  @property
  def machine(self) -> Accelerator:
    return ACCELERATORS[self.kind]


def of_device(kind: str) -> Accelerator | None:
  """The specification of a device by JAX's name for it; None for one that is not known.

  >>> of_device('NVIDIA H100 80GB HBM3') is ACCELERATORS['h100']
  True
  """
  return next((ACCELERATORS[name] for start, name in _KINDS.items() if kind.startswith(start)), None)


def parse(name: str) -> Topology:
  """Reads `h100:8`, `v5p:4x4x4`, `v6e:16x16`, `cpu:8`. Raises ValueError for anything else.

  >>> parse('v6e:16x16').devices
  256
  """
  kind, _, shape = name.partition(':')
  axes = {'v5p': 3, 'v6e': 2}.get(kind, 1)
  if kind not in ACCELERATORS or not re.fullmatch('x'.join([r'[1-9]\d*'] * axes), shape):
    raise ValueError(f'Unknown target {name!r}. Targets read like h100:8, h100:64, v5p:4x4x4, v6e:16x16, cpu:8.')
  target = Topology(name=name, kind=kind, shape=tuple(int(n) for n in shape.split('x')))
  if target.devices > target.machine.host_devices and target.devices % target.machine.host_devices:
    raise ValueError(f'Target {name!r} has {target.devices} devices; hosts have {target.machine.host_devices} each.')
  return target
