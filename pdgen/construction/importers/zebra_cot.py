"""Zebra-CoT (arXiv 2507.16746): interleaved reasoning with up to a dozen pictures; parquet.

Columns (dataset cards of multimodal-reasoning-lab; Bagel-Zebra-CoT's reader): Question, Text Reasoning Trace,
Final Answer, problem_image_1.., reasoning_image_1... The texts say where a picture belongs, as
`<image_start>[reasoning_image_1]<image_end>`.

    problem_image_*                     given pictures: context, no flow target
    text before each reasoning_image    instruction of a plan (its description is empty), `THOUGHT n:` and all
    reasoning_image_*                   drafts, in the order in which the trace names them
    text after the last, Final Answer   inspection, which approves

Lost: where in the question its pictures stand. Left out: traces without a picture, pictures that no text names.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from pdgen.construction.importers import base, interleaved, parquet
from pdgen.core import trajectory as trajectory_lib

_COLUMNS = ('Question', 'Text Reasoning Trace', 'Final Answer', 'problem_image_*', 'reasoning_image_*')
_PICTURE = re.compile(r'<image_start>\[((?:problem|reasoning)_image_\d+)\]<image_end>')


def rows(source: base.Source, wanted: Callable[[base.Where], bool]) -> Iterator[tuple[base.Where, base.Load]]:
  """Rows of the parquet files."""
  return parquet.rows(source, wanted, columns=_COLUMNS)


def trajectory(row: Any, pictures: base.Pictures) -> trajectory_lib.Trajectory:
  """Raises: ValueError for a row that lacks a column, a text or a picture that a text names."""
  question, trace, answer = (base.words(base.column(row, name), what=name) for name in _COLUMNS[:3])
  asked, reasoned = _PICTURE.split(question), _PICTURE.split(trace)  # text, name, text, name, .., text
  for name, text in (('Question', asked), ('Text Reasoning Trace', reasoned)):
    if any('<image_start>' in part or '<image_end>' in part for part in text):
      raise ValueError(f'{name} holds a reference to a picture that is none of problem_image_1, reasoning_image_1, ..')
  return interleaved.trajectory(
    question=base.text(' '.join(' '.join(asked[::2]).split()), what='Question'),
    given=[pictures.open(row.get(name), what=name) for name in asked[1::2]],
    trace=[pictures.open(row.get(part), what=part) if i % 2 else part for i, part in enumerate(reasoned)],
    answer=answer,
    source='Zebra-CoT',
  )
