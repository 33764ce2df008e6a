"""Runs suites, each in a process of its own: one that fails, hangs or takes the device down leaves the others whole."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from pdgen import benchmarks

_PACKAGES = ('pdgen', 'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'jax-cuda12-plugin', 'jax-cuda13-plugin', 'libtpu')


def run_here(name: str, size: str, file: pathlib.Path, say: Callable[[str], None], **options: Any) -> None:
  """One suite in this process. The file holds the machine and every row as soon as it is measured.

  Args:
    name: of benchmarks.SUITES.
    size: of benchmarks.SIZES.
    file: JSON to write.
    say: called with each row as text.
    **options: fields of the size that differ.
  """
  found: dict[str, Any] = {'suite': name, 'size': size, 'machine': machine(), 'rows': []}
  began = time.perf_counter()
  for row in benchmarks.SUITES[name](dataclasses.replace(benchmarks.SIZES[size](), **options)):
    found['rows'].append(row)
    found['wall_seconds'] = time.perf_counter() - began
    file.write_text(json.dumps(found, indent=2) + '\n')
    say(json.dumps(row))


def run_all(
  names: Sequence[str],
  size: str,
  out: pathlib.Path,
  *,
  command: Sequence[str],
  limit: float,
  total: float,
  say: Callable[[str], None],
) -> dict[str, str]:
  """Every suite in turn; writes <suite>.json and <suite>.log. Returns what went wrong, by suite.

  Args:
    names: of benchmarks.SUITES.
    size: of benchmarks.SIZES.
    out: folder, which is there.
    command: that runs one, given its options.
    limit: seconds of a suite, after which it is ended.
    total: seconds of all together; what they do not reach is reported as not run.
    say: called with a line as each begins, and of each that fails.
  """
  failed, end = {}, time.monotonic() + total
  for name in names:
    left = min(limit, end - time.monotonic())
    file = out / f'{name}.json'
    file.unlink(missing_ok=True)  # Not that of an earlier run.
    say(f'{name} ...')
    line = [*command, f'--suite={name}', f'--size={size}', f'--out={file}']
    with (out / f'{name}.log').open('w') as log:
      try:
        status = None if left < 1 else subprocess.run(line, stdout=log, stderr=subprocess.STDOUT, timeout=left)
        if status is None:
          reason = f'was not run: {total:g} s are over'
        else:
          reason = f'ended with status {status.returncode}: {_last_line(log.name)}' if status.returncode else ''
      except subprocess.TimeoutExpired:
        reason = f'took longer than {left:.0f} s and was ended'
    if reason:
      failed[name] = reason
      say(f'{name} {reason}')
      found = json.loads(file.read_text()) if file.exists() else {'suite': name, 'size': size, 'rows': []}
      file.write_text(json.dumps({**found, 'error': reason}, indent=2) + '\n')
  return failed


def machine() -> dict[str, Any]:
  """Versions, device and date: what a figure is worth nothing without."""
  device = jax.devices()[0]
  versions = {}
  for package in _PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return {
    'device': device.device_kind,
    'devices': jax.device_count(),
    'memory': (device.memory_stats() or {}).get('bytes_limit') if device.platform != 'cpu' else None,
    'platform_version': ' '.join(str(getattr(device.client, 'platform_version', '')).split()),
    'host_cores': os.cpu_count(),
    'python': platform.python_version(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'versions': versions,
    'date': datetime.date.today().isoformat(),
  }


def _last_line(file: str) -> str:
  text = pathlib.Path(file).read_text(errors='replace')
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  return lines[-1][:300] if lines else 'it said nothing'
