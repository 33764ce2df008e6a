"""Worlds by name, so that no folder that reads a config needs to import one."""

import importlib
import pkgutil
import types


def load(name: str) -> types.ModuleType:
  """The module `pdgen.worlds.<name>`. Raises ValueError, naming those there are, for any other name.

  >>> load('shapes').__name__
  'pdgen.worlds.shapes'
  """
  known = sorted(m.name for m in pkgutil.iter_modules(importlib.import_module('pdgen.worlds').__path__))
  if name not in known:
    raise ValueError(f'There is no world {name!r} (config.data.world). Known: {known}')
  return importlib.import_module(f'pdgen.worlds.{name}')
