"""Flags of XLA's CPU compiler for short compilations. Imports nothing of jax, which reads them as it is imported."""

import importlib.util
import mmap
import os
import pathlib

# CPU seconds to compile the train step of the tiny config: 7.0, then 3.2, and 1.4 with the preset too. Together with
# JAX_DISABLE_MOST_OPTIMIZATIONS alone: optimized, what the older emitters make takes two to three times as long.
_FAST = {
  'xla_cpu_use_fusion_emitters': 'false',
  'xla_cpu_opt_preset': 'CPU_OPT_PRESET_FAST_COMPILE',
  'xla_cpu_parallel_codegen_split_count': '1',  # Splitting a module copies it, and tests run on all cores anyway.
}
_DEFAULTS = {'xla_cpu_use_fusion_emitters': True, 'xla_cpu_opt_preset': 'CPU_OPT_PRESET_DEFAULT'}


def fast_compile() -> str:
  """Flags for `XLA_FLAGS`. Those that the installed jaxlib does not name are left out: they would end the process."""
  found = importlib.util.find_spec('jaxlib')
  assert found and found.origin
  library = pathlib.Path(found.origin).parent / 'libjax_common.so'
  if not library.exists():
    return ''
  with library.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
    return ' '.join(f'--{name}={value}' for name, value in _FAST.items() if content.find(f'\0{name}\0'.encode()) >= 0)


def without_devices() -> str:
  """The `XLA_FLAGS` of this process for a command with devices of its own number."""
  return ' '.join(flag for flag in os.environ.get('XLA_FLAGS', '').split() if 'device_count' not in flag)


def undone() -> dict[str, str | bool]:
  """Options of `lowered.compile` that undo `fast_compile`: the passes that users' programs go through."""
  return {name: value for name, value in _DEFAULTS.items() if name in os.environ['XLA_FLAGS']}
