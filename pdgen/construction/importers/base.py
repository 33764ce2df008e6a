"""What every importer shares: rows with their place, pictures with their files, checks of texts, rejected rows.

A format is a module (or an object) with two functions, found by name in `importers.FORMATS`:

    rows(source, wanted) -> iterator of (Where, load)
    trajectory(row, pictures) -> Trajectory

`rows` walks the files in a fixed order and decodes nothing: `load()` gives the row that `trajectory` takes. It asks
`wanted(where)` once for each row, in order, and yields None instead of `load` for one that is not wanted. What cannot
be read at all, such as the rest of a damaged file, it yields as a row of its own, unasked: `Rejected` instead of
`load`. Whatever `load` and `trajectory` raise as a ValueError rejects that row alone.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from pdgen.core import paths, tags
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import images

Source = str | os.PathLike | Sequence[str | os.PathLike]
_KEPT_AS_THEY_ARE = (b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff')  # First bytes of PNG and JPEG.
_LONGEST = 2**20  # Characters of a text: a row that is longer is no sample.


class Where(NamedTuple):
  """The place of a row in its source."""

  file: str  # Path of the file in the source, with `/`.
  row: int  # Counted from 1; of a text file the line. 0: the file as a whole.
  key: str = ''  # Its name in the source, where it has one.

  def __str__(self) -> str:
    place = f'{self.file} row {self.row}' if self.row else self.file
    return f'{place} ({self.key})' if self.key else place


@dataclasses.dataclass(frozen=True)
class Rejected:
  """A row that is left out."""

  reason: str


class Entry(NamedTuple):
  """A row as it was read."""

  where: Where
  outcome: trajectory_lib.Trajectory | Rejected | None  # None: it was not wanted.
  files: Sequence[
    bytes | None
  ] = ()  # Of the prompt's pictures and the trajectory's, to store as they are; see `records.Writer.write`.


Load = Callable[[], Any] | Rejected | None


class Format(Protocol):
  """How a data set lies on disk, and what its rows mean."""

  def rows(self, source: Source, wanted: Callable[[Where], bool]) -> Iterator[tuple[Where, Load]]: ...

  def trajectory(self, row: Any, pictures: 'Pictures') -> trajectory_lib.Trajectory: ...


class Pictures:
  """Opens the pictures of one row, and remembers the files that a record may hold as they are."""

  def __init__(self, resize: Callable[[np.ndarray], np.ndarray] | None = None):
    """resize: applied to every picture, uint8[H, W, 3]; None: they stay as they are."""
    self._resize, self._files = resize, {}

  def open(self, source: Any, *, what: str) -> np.ndarray:
    """A picture: uint8[H, W, 3].

    Args:
      source: content of a file, its path, or a dict with `bytes` as the datasets library stores pictures.
      what: its name in errors.

    Raises: ValueError for none, and for what cannot be decoded.
    """
    if isinstance(source, Mapping):
      source = source.get('bytes')
    if isinstance(source, pathlib.Path) and source.is_file() and source.stat().st_size <= images.MOST_BYTES:
      source = source.read_bytes()
    if source is None:
      raise ValueError(f'{what} is missing')
    if not isinstance(source, bytes | pathlib.Path):
      raise ValueError(f'{what} is {type(source).__name__}, no content of a picture file')
    try:
      picture = images.open_picture(source)
    except (OSError, ValueError) as error:
      raise ValueError(f'{what}: {error}') from None
    if self._resize is not None:
      return self._resize(picture)
    if isinstance(source, bytes) and source.startswith(_KEPT_AS_THEY_ARE) and images.is_plain(source):
      self._files[id(picture)] = (picture, source)  # The picture too, so that no other gets its id.
    return picture

  def files_of(self, trajectory: trajectory_lib.Trajectory) -> list[bytes | None]:
    """The files of its pictures, the prompt's first; None where there is none that shows exactly that picture."""
    pictures = [*trajectory.given_pictures, *trajectory.pictures]
    return [self._files.get(id(picture), (None, None))[1] for picture in pictures]


def entries(
  form: Format,
  source: Source,
  *,
  start: int = 0,
  share: float = 1.0,
  resize: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Iterator[Entry]:
  """Every row of a source: a trajectory, or why it is none.

  Args:
    form: of the source.
    source: a folder, a file, or a list of them.
    start: rows to pass over, undecoded.
    share: of the rows that are taken, chosen by a hash of their place; the others are passed over, undecoded.
    resize: applied to every picture.
  """
  asked, rejected = 0, 0

  def wanted(where: Where) -> bool:
    nonlocal asked
    asked += 1
    return asked + rejected > start and _chosen(where, share)

  for number, (where, load) in enumerate(form.rows(source, wanted), 1):
    if isinstance(load, Rejected):
      rejected += 1
      yield Entry(where, load if number > start else None)
      continue
    if load is None:
      yield Entry(where, None)
      continue
    pictures = Pictures(resize)
    try:
      made = form.trajectory(load(), pictures)
    except (ValueError, FileNotFoundError, PermissionError) as error:
      yield Entry(where, Rejected(one_line(error)))
    except (TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
      yield Entry(where, Rejected(f'{type(error).__name__}: {one_line(error)}'))  # Of a row of unforeseen form.
    else:
      yield Entry(where, _with_id(made, where), pictures.files_of(made))


def files(source: Source, *suffixes: str) -> list[tuple[str, pathlib.Path]]:
  """(name in the source, path) of every file with one of the suffixes, in the order of the names.

  Of a folder at any depth, without hidden ones; files that are given themselves keep their order and may have any
  suffix.

  Raises: FileNotFoundError for what is not there or holds no such file; ValueError for a link out of the folder.
  """
  if not isinstance(source, str | os.PathLike):
    found = [pair for one in source for pair in files(one, *suffixes)]
    if not found:
      raise FileNotFoundError('The source is an empty list of files.')
    return found
  path = pathlib.Path(source)
  if not path.is_dir():
    if not path.exists():
      raise FileNotFoundError(f'{path} does not exist.')
    return [(path.name, path)]
  found = []
  for one in sorted(path.rglob('*')):
    name = one.relative_to(path).as_posix()
    if one.suffix in suffixes and not any(part.startswith('.') for part in name.split('/')) and not one.is_dir():
      found.append((name, paths.inside(path, name)))
  if not found:
    raise FileNotFoundError(f'{path} holds no file of the kind {" or ".join(suffixes)}.')
  return found


def text(value: Any, *, what: str, empty: bool = False) -> str:
  """A text of a row, stripped. what: its name in errors. empty: whether it may be.

  Raises: ValueError for another type, a lone surrogate, a text that is empty or too long.
  """
  if not isinstance(value, str):
    raise ValueError(f'{what} is {"missing" if value is None else type(value).__name__}, no text')
  try:
    value.encode()
  except UnicodeEncodeError:
    raise ValueError(f'{what} is no Unicode text: it holds a lone surrogate') from None
  value = value.strip()
  if not value and not empty:
    raise ValueError(f'{what} is empty')
  if len(value) > _LONGEST:
    raise ValueError(f'{what} has {len(value)} characters; it may have {_LONGEST}')
  return value


def words(value: Any, *, what: str, empty: bool = False) -> str:
  """A text without tags of pdgen: what a foreign data set wrote must not open or close a plan. Arguments of `text`."""
  value = text(value, what=what, empty=empty)
  if found := [part for part in tags.split(value) if part in tags.NAMES]:
    raise ValueError(f'{what} holds the tag {found[0]}')
  return value


def plan(instruction: str, description: str = '') -> str | None:
  """The text of a plan, or None for one that says nothing."""
  return tags.plan(instruction, description) if instruction or description else None


def shown(picture: np.ndarray) -> trajectory_lib.Step:
  """A given picture as a step: context, no flow target, no words."""
  return trajectory_lib.Step(draft=picture, draft_is_target=False)


def reject(entry: Entry) -> dict[str, Any]:
  """The row of a rejected entry in `rejected.jsonl`."""
  if not isinstance(entry.outcome, Rejected):
    raise TypeError(f'{entry.where} is not rejected.')
  return {**entry.where._asdict(), 'reason': entry.outcome.reason}


def one_line(error: BaseException) -> str:
  """What an error says, on one line."""
  return ' '.join(str(error).split())[:500]


def raise_if_of_the_disk(error: Exception):
  """Raises errors of the system again: a disk that is gone is no fault of a row. Those of parsers have no number."""
  if isinstance(error, OSError) and error.errno is not None:
    raise error


def column(row: Mapping[str, Any], name: str) -> Any:
  """A column of a row. Raises: ValueError where it has none of that name."""
  if name not in row:
    raise ValueError(f'there is no column {name!r}; it has {sorted(row)}')
  return row[name]


def many(value: Any, *, what: str) -> list[Any]:
  """A column that is a list. Raises: ValueError for anything else."""
  if not isinstance(value, list):
    raise ValueError(f'{what} is {"missing" if value is None else type(value).__name__}, no list')
  return value


def _chosen(where: Where, share: float) -> bool:
  if share >= 1:
    return True
  digest = hashlib.sha256(f'{where.file} {where.row} {where.key}'.encode('utf-8', 'surrogatepass')).digest()
  return int.from_bytes(digest[:8], 'big') < share * 2**64


def _with_id(trajectory: trajectory_lib.Trajectory, where: Where) -> trajectory_lib.Trajectory:
  made = trajectory.provenance
  if made is None or made.id:
    return trajectory
  return dataclasses.replace(
    trajectory, provenance=dataclasses.replace(made, id=where.key or f'{where.file}:{where.row}')
  )


def as_json_object(value: Any, *, what: str) -> Mapping[str, Any]:
  """A JSON object. Raises: ValueError for anything else."""
  if not isinstance(value, Mapping):
    raise ValueError(f'{what} is {type(value).__name__}, no object')
  return value


def only(row: Mapping[str, Any], known: Iterable[str], *, what: str):
  """Raises: ValueError for a field that is not known: a misspelt one would be left out unseen."""
  if unknown := sorted(set(row) - set(known)):
    raise ValueError(f'{what} has the unknown field {unknown[0]!r}; known: {sorted(known)}')
