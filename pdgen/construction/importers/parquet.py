"""Rows of parquet files, as the datasets library of Hugging Face writes them, a few at a time.

Needs `pyarrow`, the extra `parquet`.
"""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pdgen.construction.importers import base

_ROWS = 8  # Held in memory at once: a row may hold ten pictures of 2 MB.


def rows(
  source: base.Source, wanted: Callable[[base.Where], bool], *, columns: Sequence[str], key: str = ''
) -> Iterator[tuple[base.Where, base.Load]]:
  """Every row of the files ending in `.parquet`, as a dict; row groups of which nothing is wanted are not read.

  Args:
    source: a folder, a file, or a list of them.
    wanted: see `base`.
    columns: names, or beginnings of names with `*`, of the columns that are read; others are not.
    key: column that names a row. Not read for rows that are not wanted, so that it is no part of their place.

  Raises: ImportError without pyarrow; exceptions of `base.files`.
  """
  for name, path in base.files(source, '.parquet'):
    yield from _rows_of(name, path, wanted, columns, key)


def _rows_of(
  name: str, path: pathlib.Path, wanted: Callable[[base.Where], bool], columns: Sequence[str], key: str
) -> Iterator[tuple[base.Where, base.Load]]:
  parquet = _pyarrow_parquet()
  number = 0
  try:
    with parquet.ParquetFile(path) as file:
      found = [column for column in file.schema_arrow.names if _is_one_of(column, columns)]
      if not found:
        raise ValueError(f'it has none of the columns {list(columns)}')
      for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        places = [base.Where(name, number + i + 1) for i in range(count)]
        needed = [wanted(place) for place in places]
        if not any(needed):
          number += count
          yield from ((place, None) for place in places)
          continue
        at = 0
        for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=found):
          for i in range(batch.num_rows):
            row = batch.slice(i, 1) if needed[at] else None
            place = places[at]
            at, number = at + 1, number + 1
            if row is None:
              yield place, None
            else:
              yield place._replace(key=_key(row, key)), lambda row=row: row.to_pylist()[0]
  except (OSError, ValueError) as error:  # Those of pyarrow are among them.
    base.raise_if_of_the_disk(error)
    reason = ' '.join(str(error).split())[:200]
    yield base.Where(name, 0), base.Rejected(f'cannot be read as parquet after row {number}: {reason}')


def _key(row: Any, key: str) -> str:
  if not key or key not in row.schema.names:
    return ''
  value = row.column(key)[0].as_py()
  return value[:200] if isinstance(value, str) else '' if value is None else str(value)[:200]


def _is_one_of(column: str, known: Sequence[str]) -> bool:
  return any(column.startswith(one[:-1]) if one.endswith('*') else column == one for one in known)


def _pyarrow_parquet() -> Any:
  try:
    import pyarrow.parquet
  except ImportError as error:
    raise ImportError('Parquet files need pyarrow: pip install "pdgen[parquet]".') from error
  return pyarrow.parquet
