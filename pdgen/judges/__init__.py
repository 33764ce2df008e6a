"""Detectors and judges by name: what sees the objects of a picture, and what answers whether a picture is right.

A new one is a file with a `get` of its own and a line in a dict here.
"""

from collections.abc import Callable
from typing import Any

from pdgen.judges import base, exact, mask2former, openai, opencv, self_judge

DETECTORS: dict[str, Callable[..., base.Detector]] = {
  'exact': exact.get,  # (world)
  'mask2former': mask2former.get,  # (model, clip, device): GenEval's own
  'opencv': opencv.get,  # (model, config, ..): an SSD
}
JUDGES: dict[str, Callable[..., base.Judge]] = {
  'exact': exact.get,  # (world)
  'openai': openai.get,  # (services.chat.Chat)
  'self': self_judge.get,  # (painter)
}


def detector(name: str, *args: Any, **options: Any) -> base.Detector:
  """The detector of that name, made with the arguments of its `get`. Raises ValueError, naming those there are."""
  return _named(DETECTORS, 'detector', name)(*args, **options)


def judge(name: str, *args: Any, **options: Any) -> base.Judge:
  """The judge of that name, made with the arguments of its `get`. Raises ValueError, naming those there are."""
  return _named(JUDGES, 'judge', name)(*args, **options)


def _named(known: dict[str, Callable[..., Any]], what: str, name: str) -> Callable[..., Any]:
  if name not in known:
    raise ValueError(f'Unknown {what} {name!r}. Known: {sorted(known)}')
  return known[name]
