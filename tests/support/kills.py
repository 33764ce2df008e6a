"""Runs a function of a test file in a process of its own, which the system kills at a line of code."""

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def at_line(line: int, call: Callable[[], Any], *, of: tuple[ModuleType, ...]):
  """Calls; at the given executed line of these modules the system kills the process. 0: prints how many there are."""
  lines, watched = 0, {module.__file__ for module in of}

  def count(frame, event, argument):
    nonlocal lines
    lines += event == 'line'
    if lines == line:
      os.kill(os.getpid(), signal.SIGKILL)
    return count

  sys.settrace(lambda frame, event, argument: count if frame.f_code.co_filename in watched else None)
  call()
  sys.settrace(None)
  print(lines)


def process(file: str, *arguments: object) -> subprocess.CompletedProcess:
  """`python FILE ARGUMENTS` with pdgen and tests/support at hand."""
  root = pathlib.Path(__file__).parents[2]
  environment = {**os.environ, 'PYTHONPATH': f'{root}{os.pathsep}{root / "tests"}'}
  command = [sys.executable, file, *map(str, arguments)]
  return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
