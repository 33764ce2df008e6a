"""Worlds by name: `get('shapes')`."""

import importlib
import pkgutil
import types


def get(name: str) -> types.ModuleType:
  """The module `pdgen.worlds.<name>`. Raises ValueError, naming those there are, for any other name.

  >>> get('shapes').__name__
  'pdgen.worlds.shapes'
  """
  known = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg)
  if name not in known:
    raise ValueError(f'There is no world {name!r} (config.data.sources). Known: {known}')
  return importlib.import_module(f'pdgen.worlds.{name}')
