"""Ctrl-C while a command is imported: one line and status 130. Commands import this before anything else.

A signal handler, not an `except`: while packages are imported some swallow exceptions, and jaxlib aborts.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn


def began():
  """Ctrl-C is a KeyboardInterrupt from here on: the command says what it keeps."""
  if signal.getsignal(signal.SIGINT) is _stop:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def importing() -> Iterator[None]:
  """Around what is imported later: as before `began`."""
  before = signal.getsignal(signal.SIGINT)
  _listen()
  try:
    yield
  finally:
    if signal.getsignal(signal.SIGINT) is not before:
      signal.signal(signal.SIGINT, before)


def _listen():
  if _command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # Else it is ignored, as by nohup.
    signal.signal(signal.SIGINT, _stop)


def _command() -> str:
  """The module that Python runs, if it is one of pdgen."""
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  return spec.name if spec is not None and spec.name.startswith(f'{__package__}.') else ''


def _stop(*_) -> NoReturn:
  os.write(2, f'python -m {_command()}: stopped before it began.\n'.encode())
  os._exit(130)


_listen()
