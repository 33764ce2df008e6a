"""Worlds by name: `get('shapes')`. What a world offers: `worlds.base`."""

import importlib
import pkgutil
from typing import Any, TypeVar

from pdgen.worlds import base

_Protocol = TypeVar('_Protocol')


def get(name: str) -> Any:
  """The world of that name, a module `pdgen.worlds.<name>` with at least the members of `base.World`.

  >>> get('shapes').KINDS
  ('multi_turn', 'conflict', 'misalignment', 'direct')

  Raises: ValueError, naming those there are, for any other name.
  """
  known = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg)
  if name not in known:
    raise ValueError(f'There is no world {name!r} (config.data.sources). Known: {known}')
  return require(importlib.import_module(f'pdgen.worlds.{name}'), base.World)


def require(world: Any, protocol: type[_Protocol]) -> _Protocol:
  """The world, as one that offers a protocol of `base`.

  Raises: ValueError naming the members that it lacks.
  """
  wanted = set(getattr(protocol, '__protocol_attrs__', ())) or _members(protocol)
  missing = sorted(name for name in wanted if not hasattr(world, name))
  if missing:
    name = getattr(world, '__name__', type(world).__name__)
    raise ValueError(f'The world {name} is no {protocol.__name__}: it lacks {missing}. See pdgen/worlds/base.py.')
  return world


def _members(protocol: type) -> set[str]:
  """Names of a protocol and of those that it extends; Python 3.11 does not keep them."""
  names: set[str] = set()
  for one in protocol.__mro__:
    if one.__module__ == base.__name__:
      names |= {name for name in (*vars(one), *one.__dict__.get('__annotations__', {})) if not name.startswith('_')}
  return names
