"""Rounds of a trajectory whose mode has a protocol: what each text said, decided and asked to edit.

Nothing of it is stored: it is read from the texts, as the sampler did.
"""

import dataclasses
from collections.abc import Mapping

from pdgen.core import modes, protocols
from pdgen.core import trajectory as trajectory_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
  """One text and what came of it."""

  number: int  # From 0.
  text: str  # As it was written.
  move: str = ''  # `protocols.PAINT` or `END`; '': it cannot be read.
  values: Mapping[str, str] = dataclasses.field(default_factory=dict)  # Of its fields: score, action, ..
  # The picture that is edited, among those that are given and then those that are painted, from 0; None: none is.
  source: int | None = None
  source_name: str = ''  # As the texts call it.
  problem: str = ''  # Why it cannot be read.

  def __str__(self) -> str:
    """In words.

    >>> str(Round(number=1, text='..', move='paint', values={'score': '4'}, source=1, source_name='Image #1'))
    'round 1: edit of Image #1, score 4'
    """
    painted = 'a picture' if self.source is None else f'edit of {self.source_name}'
    what = f'cannot be read: {self.problem}' if self.problem else painted if self.move == protocols.PAINT else 'done'
    score = self.values.get('score')
    return f'round {self.number}: {what}' + (f', score {score}' if score else '')


def of(trajectory: trajectory_lib.Trajectory) -> list[Round]:
  """The rounds of a trajectory, one a text; none in modes without a protocol."""
  protocol, out = modes.of(trajectory.mode).protocol, list[Round]()
  pictures = given = len(trajectory.given_pictures)
  if protocol is None:
    return []
  for item in trajectory.items():
    if item.is_picture:
      pictures += 1
    else:
      out.append(_round(protocol, len(out), item.text, pictures=pictures, given=given > 0))
  return out


def _round(protocol: protocols.Protocol, number: int, text: str, *, pictures: int, given: bool) -> Round:
  try:
    move, values = protocol.read(text)
    source = None
    if move == protocols.PAINT and protocol.sees == protocols.SOURCE:
      source = _source(protocol, values, pictures=pictures, given=given)
  except protocols.UnreadableError as error:
    return Round(number=number, text=text, problem=str(error))
  name = 'None' if source is None else protocol.name(source, given=given)
  return Round(number=number, text=text, move=move, values=values, source=source, source_name=name)


def _source(protocol: protocols.Protocol, values: Mapping[str, str], *, pictures: int, given: bool) -> int | None:
  """Number of the picture that is edited; None: one is painted anew. Raises: UnreadableError for one that is absent."""
  if protocol.source == protocols.LAST:
    return pictures - 1 if pictures else None
  names = [protocol.name(number, given=given) for number in range(pictures)]
  if values['source'] == 'None':
    return None
  if values['source'] not in names:
    raise protocols.UnreadableError(f'source is {values["source"][:60]!r}; there are {names}')
  return names.index(values['source'])
