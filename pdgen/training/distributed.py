"""Several processes, one run: how they find each other, that they agree on what they run, and how they stop together.

A process drives the devices of one host. What tells it of the others is, in this order:

    PDGEN_COORDINATOR=host:port, PDGEN_PROCESSES=2, PDGEN_PROCESS=0     plain addresses, on any machines
    Slurm's SLURM_* variables (`srun`, one task a node)                 launch/slurm_h100.sbatch
    a TPU pod's own metadata                                            launch/tpu_pod.sh, launch/gke_xpk.md

and without any of them it is alone.
"""

import collections
import contextlib
import hashlib
import json
import os
import pathlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

_ADDRESS = ('PDGEN_COORDINATOR', 'PDGEN_PROCESSES', 'PDGEN_PROCESS')


class DisagreementError(ValueError):
  """Processes of one run were started with different code, configuration or data."""


def initialize(environment: Mapping[str, str] = os.environ) -> str:
  """Joins the processes of the run. To be called before JAX uses any device.

  Returns: what told of them: `coordinator`, `slurm`, `tpu`, or `alone`. Raises: ValueError for half of an address.
  """
  given = [name for name in _ADDRESS if environment.get(name)]
  if given:
    if len(given) < len(_ADDRESS):
      raise ValueError(f'{", ".join(given)} without {", ".join(sorted(set(_ADDRESS) - set(given)))}: set all three.')
    address, count, index = (environment[name] for name in _ADDRESS)
    jax.distributed.initialize(coordinator_address=address, num_processes=int(count), process_id=int(index))
    return 'coordinator'
  if int(environment.get('SLURM_NTASKS', 1)) > 1 and 'SLURM_PROCID' in environment:
    # JAX would take one device a task. With one task a node, a task has all devices of its node.
    alone_on_node = environment.get('SLURM_NTASKS') == environment.get('SLURM_STEP_NUM_NODES')
    jax.distributed.initialize(local_device_ids=list(range(_gpus(environment))) if alone_on_node else None)
    return 'slurm'
  if _in_tpu_pod(environment):
    jax.distributed.initialize()
    return 'tpu'
  return 'alone'


def is_main_process() -> bool:
  """Whether this is the process that writes what is written once."""
  return jax.process_index() == 0


def all_gather_text(text: str) -> list[str]:
  """The texts of all processes, in order. All of them must call it."""
  if jax.process_count() == 1:
    return [text]
  content = np.frombuffer(text.encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.array([content.size], np.int32)).reshape(-1)
  padded = np.zeros(int(lengths.max()), np.uint8)
  padded[: content.size] = content
  everyone = multihost_utils.process_allgather(padded)
  return [bytes(row[:length]).decode() for row, length in zip(np.asarray(everyone), lengths, strict=True)]


def barrier(name: str):
  """Returns when all processes have come to this point, which they know by the same name."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def fully_gathered(x: jax.Array) -> np.ndarray:
  """The values of an array that is split over the devices of all processes. All of them must call it."""
  if x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(jax.device_get(x))
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def check_agreement(facts: Mapping[str, str]):
  """Compares what each process was started with. facts: name to value, the same names everywhere.

  Raises: DisagreementError, on all processes, naming the processes that differ from most (from the first, in a tie),
  their hosts, in what, and both values.
  """
  everyone = [
    json.loads(text) for text in all_gather_text(json.dumps({'host': socket.gethostname(), 'facts': dict(facts)}))
  ]
  found = disagreements([(one['host'], one['facts']) for one in everyone])
  if found:
    raise DisagreementError('The processes of this run do not agree:\n  ' + '\n  '.join(found))


def disagreements(everyone: list[tuple[str, Mapping[str, str]]]) -> list[str]:
  """One line for each process and fact that is not as most have it. everyone: (host, facts) of each process.

  >>> disagreements([('a', {'code': '1'}), ('b', {'code': '1'}), ('c', {'code': '2'})])
  ["code: '2' in process 2 (c), '1' in 0, 1"]
  """
  lines = []
  for name in sorted(set().union(*(facts for _, facts in everyone))):
    values = [facts.get(name, 'absent') for _, facts in everyone]
    common, _ = collections.Counter(values).most_common(1)[0]  # Of equal counts, the one that came first.
    holders = [str(i) for i, value in enumerate(values) if value == common]
    most = ', '.join(holders[:4]) + (f' and {len(holders) - 4} more' if len(holders) > 4 else '')
    for i, value in enumerate(values):
      if value != common:
        lines.append(f'{name}: {value!r} in process {i} ({everyone[i][0]}), {common!r} in {most}')
  return lines


def code_version() -> str:
  """A digest of the source of pdgen."""
  root, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
  for file in sorted(root.rglob('*.py')):
    digest.update(file.relative_to(root).as_posix().encode() + b'\0' + file.read_bytes())
  return digest.hexdigest()[:16]


@contextlib.contextmanager
def preemption_notice() -> Iterator[Callable[[int], bool]]:
  """A function of the step: whether SIGTERM asks to save and stop before it. One answer for all processes.

  Alone, it is asked where signals can be had (in the main thread); otherwise the answer is no. Among several, JAX hears
  the signal of any of them and tells all of the same step, so that each must ask at every step.
  """
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  if threading.current_thread() is not threading.main_thread():
    yield lambda step: False
    return
  terminated = threading.Event()
  before = signal.signal(signal.SIGTERM, lambda *_: terminated.set())
  try:
    yield lambda step: terminated.is_set()
  finally:
    signal.signal(signal.SIGTERM, before)


def _gpus(environment: Mapping[str, str]) -> int:
  """Devices of this node that Slurm gave to the task."""
  if visible := environment.get('CUDA_VISIBLE_DEVICES'):
    return len(visible.split(','))
  return int(environment.get('SLURM_GPUS_ON_NODE', 8))


def _in_tpu_pod(environment: Mapping[str, str]) -> bool:
  """Several workers, as the metadata that Cloud TPU and GKE put into the environment say, or PDGEN_TPU_POD does."""
  workers = environment.get('TPU_PROCESS_ADDRESSES') or environment.get('TPU_WORKER_HOSTNAMES') or ''
  if workers.startswith('WARNING'):  # What JAX leaves there when libtpu is installed and no TPU is near.
    workers = ''
  return ',' in workers or 'MEGASCALE_COORDINATOR_ADDRESS' in environment or environment.get('PDGEN_TPU_POD') == '1'
