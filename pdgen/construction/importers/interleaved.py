"""Interleaved traces of texts and pictures, a question before them, as a trajectory: what visual reasoning sets share.

    given pictures          a step each, without words: context, no flow target
    text, picture, text ..  a plan and its draft a step
    text after the last     the inspection of the last draft, which approves it

A text becomes the instruction of a plan whose description is empty: these sets have none. Where a picture follows a
picture there is no plan. The last inspection holds the answer.
"""

from collections.abc import Sequence

import numpy as np

from pdgen.construction.importers import base
from pdgen.core import trajectory as trajectory_lib


def trajectory(
  *,
  question: str,
  given: Sequence[np.ndarray],
  trace: Sequence[str | np.ndarray],
  answer: str,
  source: str,
  id: str = '',
) -> trajectory_lib.Trajectory:
  """The trajectory of a trace.

  Args:
    question: text of the question: the prompt.
    given: pictures of the question, uint8[H, W, 3].
    trace: texts and pictures as they were made. Texts that follow each other are joined.
    answer: to the question; empty: none is given apart.
    source: of the provenance.
    id: of the row in its source.

  Raises: ValueError for a trace without a picture: it teaches nothing about painting.
  """
  steps, words = [base.shown(picture) for picture in given], []
  for part in trace:
    if isinstance(part, str):
      words += [part.strip()] if part.strip() else []
      continue
    steps.append(trajectory_lib.Step(plan=base.plan('\n'.join(words)), draft=part))
    words = []
  if len(steps) == len(given):
    raise ValueError('the trace holds no picture')
  last = '\n'.join([*words, *([f'Answer: {answer}'] if answer else [])])
  if last:
    steps[-1] = trajectory_lib.Step(plan=steps[-1].plan, draft=steps[-1].draft, inspection=last)
  return trajectory_lib.Trajectory(
    prompt=question,
    steps=tuple(steps),
    provenance=trajectory_lib.Provenance(source=source, kind='interleaved', id=id),
  )
