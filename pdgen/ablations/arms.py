"""Arms: the training sets that one base is tuned on; tables: what the paper compares, line by line.

Every arm but `direct` takes the same steps of the same rows, `direct` as many as have the same FLOPs.
"""

import dataclasses
from collections.abc import Mapping

# Training sets (`tasks`): three subsets of `pdgen.construct`, and variants.
MULTI_TURN, CONFLICT, ALIGNMENT = 'multi_turn', 'conflict', 'alignment'
PLAIN = 'multi_turn_plain'  # Without augmentation: every step adds, nothing is changed, replaced or removed.
GRAPH_CONFLICT = 'conflict_graph'  # Errors injected into scene graphs, in place of a model's own.
DIRECT_SET = 'direct'  # The multi-turn paintings, in one go.
SETS = (MULTI_TURN, PLAIN, CONFLICT, GRAPH_CONFLICT, ALIGNMENT, DIRECT_SET)
SUBSET_OF = {PLAIN: MULTI_TURN, GRAPH_CONFLICT: CONFLICT, DIRECT_SET: MULTI_TURN}

DIRECT, PROCESS = 'direct', 'process'
ARMS: Mapping[str, tuple[str, ...]] = {
  DIRECT: (DIRECT_SET,),
  PROCESS: (MULTI_TURN, CONFLICT, ALIGNMENT),
  'multi_turn': (MULTI_TURN,),
  'conflict': (MULTI_TURN, CONFLICT),
  'alignment': (MULTI_TURN, ALIGNMENT),
  'graph_critique': (MULTI_TURN, GRAPH_CONFLICT, ALIGNMENT),
  'plain': (PLAIN,),
  'plain_critique': (PLAIN, CONFLICT, ALIGNMENT),
}
# The model that writes the traces of CONFLICT, tuned on multi_turn alone (paper); that of the first seed.
TRACING = 'multi_turn'


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
  """A line of a table: an arm in a setting of the sampler."""

  label: str
  arm: str
  setting: str = 'free'  # of `figures`
  paper: Mapping[str, float] = dataclasses.field(default_factory=dict)  # the paper's figures, by column


@dataclasses.dataclass(frozen=True)
class Table:
  """A table, and the pairs of lines that it is about."""

  name: str
  title: str
  columns: tuple[str, ...]
  lines: tuple[Line, ...]
  pairs: tuple[tuple[int, int], ...]  # (line, line that it is compared with)

  @property
  def arms(self) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line.arm for line in self.lines))


_COLORS = ('colors', 'position', 'color_attr')
_FOUR = ('counting', *_COLORS)


def _paper(columns: tuple[str, ...], *values: float) -> dict[str, float]:
  return dict(zip(columns, values, strict=True))


TABLES: Mapping[str, Table] = {
  table.name: table
  for table in (
    Table(
      'compute',
      'Painting in one go against the process, at equal training compute and at equal inference compute',
      ('overall', *_FOUR, 'evaluations', 'tokens'),
      (
        Line('direct', DIRECT, 'direct'),
        Line('direct, more flow steps', DIRECT, 'more_steps'),
        Line('direct, best of n by an exact judge (no verdict can do better)', DIRECT, 'best_exact'),
        Line('process', PROCESS),
        Line('process, without edits', PROCESS, 'no_edits'),
        Line('process without edits, best of n by its own verdict', PROCESS, 'best_own'),
        Line('process without edits, best of n by an exact judge', PROCESS, 'best_exact'),
      ),
      ((3, 0), (3, 1), (3, 2), (3, 4), (3, 5)),
    ),
    Table(
      'augmentation',
      'Table 5: augmentation of the multi-turn subset, self-critique',
      ('overall', *_COLORS),
      (
        Line('w/o augmentation', 'plain', paper=_paper(_COLORS, 0.81, 0.58, 0.50)),
        Line('w/o augmentation + self-critique', 'plain_critique', paper=_paper(_COLORS, 0.84, 0.61, 0.53)),
        Line('w/ augmentation', 'multi_turn', paper=_paper(_COLORS, 0.82, 0.67, 0.62)),
        Line('w/ augmentation + self-critique', PROCESS, paper=_paper(_COLORS, 0.87, 0.72, 0.69)),
      ),
      ((1, 0), (2, 0), (3, 1), (3, 2)),
    ),
    Table(
      'critique',
      'Table 6: where the critiques come from',
      ('overall', *_COLORS),
      (
        Line('baseline', 'multi_turn', paper=_paper(_COLORS, 0.82, 0.67, 0.62)),
        Line('+ scene-graph critique', 'graph_critique', paper=_paper(_COLORS, 0.83, 0.70, 0.67)),
        Line('+ self-sampled critique', PROCESS, paper=_paper(_COLORS, 0.87, 0.72, 0.69)),
      ),
      ((1, 0), (2, 0), (2, 1)),
    ),
    Table(
      'subsets',
      'Table 7: the two critique subsets',
      ('overall', *_FOUR),
      (
        Line('baseline', 'multi_turn', paper=_paper(_FOUR, 0.61, 0.84, 0.66, 0.62)),
        Line('+ instruction-intermediate conflict', 'conflict', paper=_paper(_FOUR, 0.62, 0.85, 0.71, 0.65)),
        Line('+ image-instruction alignment', 'alignment', paper=_paper(_FOUR, 0.73, 0.86, 0.69, 0.65)),
        Line('both', PROCESS, paper=_paper(_FOUR, 0.75, 0.87, 0.72, 0.69)),
      ),
      ((1, 0), (2, 0), (3, 0), (3, 1), (3, 2)),
    ),
  )
}
