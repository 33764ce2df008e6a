"""MathCanvas-Instruct (arXiv 2510.14958): mathematics with drawn steps; parquet.

Columns (shiwk24/MathCanvas and its dataset card): id, question_interleave and solution_interleave (lists of
`type` text|image, `content`, `index`), question_images and solution_images (lists of pictures, that `index` counts
from 0), answer, options, knowledge, subknowledge.

    question_interleave: texts          prompt, joined by line ends
    question_interleave: images         given pictures: context, no flow target
    solution_interleave: text, image    instruction of a plan (its description is empty) and its draft
    text after the last image, answer   inspection, which approves

Lost: where in the question its pictures stand. Left out: options, knowledge, subknowledge; solutions without a picture.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pdgen.construction.importers import base, interleaved, parquet
from pdgen.core import trajectory as trajectory_lib

_COLUMNS = (*('id', 'question_interleave', 'question_images', 'solution_interleave', 'solution_images', 'answer'),)


def rows(source: base.Source, wanted: Callable[[base.Where], bool]) -> Iterator[tuple[base.Where, base.Load]]:
  """Rows of the parquet files."""
  return parquet.rows(source, wanted, columns=_COLUMNS, key='id')


def trajectory(row: Any, pictures: base.Pictures) -> trajectory_lib.Trajectory:
  """Raises: ValueError for a row that lacks a column, a text or a picture that an index names."""
  question, solution = (_parts(row, name, pictures) for name in ('question', 'solution'))
  return interleaved.trajectory(
    question=base.text('\n'.join(part for part in question if isinstance(part, str)), what='the question'),
    given=[part for part in question if isinstance(part, np.ndarray)],
    trace=solution,
    answer=base.words(base.column(row, 'answer'), what='answer'),
    source='MathCanvas-Instruct',
  )


def _parts(row: Any, section: str, pictures: base.Pictures) -> list[str | np.ndarray]:
  """Texts and pictures of the question or of the solution, in order."""
  name = f'{section}_interleave'
  found = base.many(base.column(row, f'{section}_images'), what=f'{section}_images')
  parts: list[str | np.ndarray] = []
  for number, item in enumerate(base.many(base.column(row, name), what=name)):
    item = base.as_json_object(item, what=f'{name}[{number}]')
    kind, index = item.get('type'), item.get('index')
    if kind == 'text':
      parts.append(base.words(item.get('content'), what=f'{name}[{number}]', empty=True))
    elif kind == 'image':
      if not isinstance(index, int) or not 0 <= index < len(found):
        raise ValueError(f'{name}[{number}] names the picture {index!r} of {len(found)} in {section}_images')
      parts.append(pictures.open(found[index], what=f'{section}_images[{index}]'))
    else:
      raise ValueError(f"{name}[{number}] has the type {kind!r}; known: ['text', 'image']")
  return parts
