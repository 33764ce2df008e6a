"""Dry run of a build: the calls, tokens, pictures and money that services would take, without asking any.

The build itself is run with tools that count, as if every answer were right at once; a build takes more by its retries
and rejected samples. Prompts that a writer must parse are counted with a graph of one object.
"""

import dataclasses
import pathlib
from collections.abc import Callable

from pdgen.construction import build, build_config, tools
from pdgen.core import trajectory as trajectory_lib
from pdgen.services import budget

MOST = 500  # Samples that are run through; more are estimated from these.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
  """What a build would take."""

  samples: int
  counted: int  # Samples that were run through.
  rejected: int  # Of those.
  cost: budget.Cost  # Of all samples.
  traces: int  # Of a model's own, which are judged besides (a call each, where a chat model judges).

  def words(self) -> str:
    """In a few lines."""
    lines = [f'{self.samples:,} samples (estimated from {self.counted:,}, of which {self.rejected:,} are rejected)']
    lines.append(f'{self.cost.calls:,} calls, of them {self.cost.pictures:,} pictures')
    tokens = f'{self.cost.prompt_tokens:,} read, {self.cost.completion_tokens:,} written'
    lines.append(f'about {self.cost.tokens:,} tokens ({tokens})')
    lines.append(f'about {self.cost.money:,.2f} in the currency of the prices')
    if self.traces:
      lines.append(f'{self.traces:,} traces are painted by the checkpoint first')
    return '\n'.join(lines)


def dry_run(
  config: build_config.BuildConfig,
  subset: str,
  *,
  limit: int | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> Estimate:
  """The estimate of a build; writes nothing.

  Args:
    config: what would be built.
    subset: one of `build_config.SUBSETS`.
    limit: samples at most.
    progress: called with the samples counted so far, and how many will be.
  """
  slots = build.wanted(config, subset, pathlib.Path(), limit=limit, dry=True)
  slots = dataclasses.replace(slots, config=_unsourced(config))
  kit = tools.of(slots.config, pathlib.Path(), make_painter=lambda checkpoint: None, dry=True)
  counted, rejected, cost = min(len(slots), MOST), 0, budget.Cost()
  for slot in range(counted):
    outcomes, own = slots.costed(kit, slot)
    cost += own
    rejected += not isinstance(outcomes[-1], trajectory_lib.Trajectory)
    if progress is not None:
      progress(slot + 1, counted)
  scale = len(slots) / counted
  scaled = {name: round(value * scale, 4) for name, value in dataclasses.asdict(cost).items()}
  scaled = {name: value if name == 'money' else round(value) for name, value in scaled.items()}
  traces = 0
  if subset == build_config.CONFLICT and config.conflict.checkpoint:
    traces = config.conflict.traces or len(slots)
  return Estimate(samples=len(slots), counted=counted, rejected=rejected, cost=budget.Cost(**scaled), traces=traces)


def _unsourced(config: build_config.BuildConfig) -> build_config.BuildConfig:
  """Samples of a source are counted as rendered ones: it is not read."""
  return dataclasses.replace(config, alignment=dataclasses.replace(config.alignment, source_share=0.0))
