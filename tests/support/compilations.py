"""Counts what XLA compiles: a jitted function's own cache also has an entry for equal programs of other callers."""

import collections
import contextlib

import jax

_PHASES = ('prefill', 'decode_step', 'text_phase', 'picture_phase', 'denoise')


@contextlib.contextmanager
def counted():
  """Counts, by name, the phases of the sampler that are compiled inside the block."""
  counts = collections.Counter()

  def listen(event: str, duration_secs: float, **details: str | int):
    name = str(details.get('fun_name', '')).removeprefix('jit(').removesuffix(')')
    if event == '/jax/core/compile/backend_compile_duration' and name in _PHASES:
      counts[name] += 1

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield counts
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
