"""ThinkMorph (arXiv 2510.27492): visual reasoning with one picture in the trace; parquet.

Columns (dataset cards of ThinkMorph/Jigsaw_Assembly, Spatial_Navigation, Visual_Search, Chart_Refocus; the spelling is
theirs): pid, question, answer, problem_image_0, resoning_thought_0, reasoning_image_0, resoning_thought_1, task,
full_text_only_thought.

    problem_image_0                     given picture: context, no flow target
    resoning_thought_0                  instruction of the plan (its description is empty)
    reasoning_image_0                   draft
    resoning_thought_1, answer          inspection, which approves

Left out: full_text_only_thought (a trace without the picture). `<think>`, `<answer>` and image tags, which the authors
add for training, are not in the columns and are not added.
"""

from collections.abc import Callable, Iterator
from typing import Any

from pdgen.construction.importers import base, interleaved, parquet
from pdgen.core import trajectory as trajectory_lib

_COLUMNS = (
  *('pid', 'question', 'answer', 'task', 'problem_image_0', 'resoning_thought_0', 'reasoning_image_0'),
  'resoning_thought_1',
)


def rows(source: base.Source, wanted: Callable[[base.Where], bool]) -> Iterator[tuple[base.Where, base.Load]]:
  """Rows of the parquet files."""
  return parquet.rows(source, wanted, columns=_COLUMNS, key='pid')


def trajectory(row: Any, pictures: base.Pictures) -> trajectory_lib.Trajectory:
  """Raises: ValueError for a row that lacks a column, a text or a picture."""
  given, painted = (
    pictures.open(base.column(row, name), what=name) for name in ('problem_image_0', 'reasoning_image_0')
  )
  question, before, after, answer = (
    base.words(base.column(row, name), what=name)
    for name in ('question', 'resoning_thought_0', 'resoning_thought_1', 'answer')
  )
  return interleaved.trajectory(
    question=question, given=[given], trace=[before, painted, after], answer=answer, source='ThinkMorph'
  )
