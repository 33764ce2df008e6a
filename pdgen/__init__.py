"""pdgen: one model that plans, sketches, inspects and refines a picture in one sequence of text and vision tokens.

    import pdgen
    painter = pdgen.load('shapes')
    result = painter.sample(['a photo of a red ring and a blue square'])
    result.trajectories[0].final  # uint8[32, 32, 3]

Importing pdgen imports nothing else: the names below arrive, and JAX with them, when first used.
"""

import importlib
from typing import Any

__version__ = '0.1.0'
__all__ = ['Painter', 'load']


def __getattr__(name: str) -> Any:
  if name in __all__:
    return getattr(importlib.import_module('pdgen.inference.painter'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}. Public: {__all__}')


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
