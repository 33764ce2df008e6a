"""Frozen dataclasses to nested dicts and back, types checked on the way in; bounds of their fields."""

import dataclasses
import re
import types
import typing
from typing import Any

FLOAT32_MAX, INT32_MAX = 3.4028234663852886e38, 2**31 - 1


def to_dict(value: Any) -> Any:
  """Dataclasses to dicts, at every depth and in tuples; all else stays as it is."""
  if dataclasses.is_dataclass(value):
    return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
  if isinstance(value, tuple):
    return tuple(map(to_dict, value))
  return value


def from_dict(cls: type, values: dict[str, Any], *, path: str) -> Any:
  """Inverse of `to_dict` for a dataclass. path: what an error calls it.

  Raises: KeyError naming an unknown key and the known ones, ValueError naming a value of the wrong type.
  """
  hints = typing.get_type_hints(cls)
  if not isinstance(values, dict):
    raise ValueError(f'{path} must be a mapping of {list(hints)}, not {values!r}.')
  unknown = sorted(set(values) - set(hints))
  if unknown:
    raise KeyError(f'Unknown key {path}.{unknown[0]}. Known: {sorted(hints)}')
  return cls(**{k: _coerce(hints[k], v, path=f'{path}.{k}') for k, v in values.items()})


def _coerce(hint: Any, value: Any, *, path: str) -> Any:
  if isinstance(hint, types.UnionType):
    if value is None:
      return None
    hint = next(a for a in typing.get_args(hint) if a is not type(None))
  if isinstance(hint, type) and dataclasses.is_dataclass(hint):
    return from_dict(hint, value, path=path)
  if typing.get_origin(hint) is tuple:
    part = typing.get_args(hint)[0]
    if dataclasses.is_dataclass(part):
      return _as_dataclasses(part, value, path=path)
    return _as_tuple(value)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if hint in (int, float, bool, str) and not isinstance(value, hint) or hint is int and isinstance(value, bool):
    raise ValueError(f'{path} must be {hint.__name__}, not {value!r}.')
  if (
    hint is int and isinstance(value, int) and not -INT32_MAX <= value <= 2 * INT32_MAX + 1
  ):  # A seed may have 32 bits.
    raise ValueError(f'{path}={value} is too large: it is at most {INT32_MAX}.')
  return value


def _as_dataclasses(part: Any, values: Any, *, path: str) -> tuple[Any, ...]:
  """A tuple of dataclasses, of their dicts, or of the texts that their `parse` reads."""
  if not isinstance(values, (list, tuple)):
    raise ValueError(f'{path} must be a tuple, not {values!r}.')
  parse = getattr(part, 'parse', None)
  return tuple(
    parse(value) if parse and isinstance(value, str) else _coerce(part, value, path=f'{path}[{number}]')
    for number, value in enumerate(values)
  )


def _as_tuple(value: Any) -> Any:
  return tuple(_as_tuple(v) for v in value) if isinstance(value, (list, tuple)) else value


def at_least(section: Any, name: str, **least: float):
  """Raises ValueError naming the first field that is less than it must be."""
  for field, bound in least.items():
    if not getattr(section, field) >= bound:
      raise ValueError(f'config.{name}.{field}={getattr(section, field)} is too small: it is at least {bound}.')


def at_most(section: Any, name: str, **most: float):
  """Raises ValueError naming the first field that is more than it may be."""
  for field, bound in most.items():
    if not getattr(section, field) <= bound:
      raise ValueError(f'config.{name}.{field}={getattr(section, field)} is too large: it is at most {bound}.')


def finite(section: Any, name: str):
  """Raises ValueError naming the first number that is NaN or infinite in float32, in which programs compute."""
  for field in dataclasses.fields(section):
    value = getattr(section, field.name)
    for number in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(number, (int, float)) and not abs(number) <= FLOAT32_MAX:
        raise ValueError(f'config.{name}.{field.name}={value}: it must be finite (in float32).')


def patterns(section: Any, name: str, field: str):
  """Raises ValueError naming the first text of a field, a text or a tuple of them, that is no regular expression."""
  value = getattr(section, field)
  for pattern in (value,) if isinstance(value, str) else value:
    try:
      re.compile(pattern)
    except (re.error, TypeError) as e:
      raise ValueError(f'{pattern!r} in config.{name}.{field} is no regular expression: {e}.') from e


def positive(section: Any, name: str, field: str):
  if not getattr(section, field) > 0:
    raise ValueError(f'config.{name}.{field}={getattr(section, field)}: it must be more than 0.')
