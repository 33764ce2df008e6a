"""Profiler traces of chosen training steps, for TensorBoard's profile plugin and Perfetto."""

import pathlib
from typing import Any

import jax

Steps = tuple[int, int]  # The first step to trace, and the first one not to.


def parse_steps(text: str) -> Steps:
  """Reads `A:B`, the steps from A up to B without B.

  >>> parse_steps('10:12')
  (10, 12)

  Raises: ValueError for anything else.
  """
  first, _, last = text.partition(':')
  if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
    raise ValueError(f'--profile_steps={text}: write A:B, two numbers of steps, A below B.')
  return int(first), int(last)


class StepTracer:
  """Traces the chosen steps of a run. One that resumes among them traces the rest of them."""

  def __init__(self, folder: pathlib.Path, steps: Steps | None):
    """folder: the trace goes to `plugins/profile/<time>/` in it, a file for each process. steps: None: never trace."""
    self._folder, self._steps = folder, steps
    self._active = False

  def start(self, step: int):
    """Starts the trace if the step that is about to be launched is one of the chosen."""
    if self._steps and not self._active and self._steps[0] <= step < self._steps[1]:
      jax.profiler.start_trace(self._folder)
      self._active = True

  def stop(self, step: int, launched: Any):
    """Ends the trace if the step just launched is the last of the chosen. launched: its arrays; they are waited for."""
    if self._steps and self._active and step + 1 >= self._steps[1]:
      jax.block_until_ready(launched)
      self.close()

  def close(self):
    """Writes the trace of a run that ends among the chosen steps."""
    if self._active:
      self._active = False
      jax.profiler.stop_trace()
