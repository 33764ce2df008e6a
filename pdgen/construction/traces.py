"""Self-sampled traces (paper): a model paints prompts, batch by batch; its plans are judged against the prompt.

The record set `out/traces` holds every trace as the model made it, with a verdict (`right`, `conflict`, `unused`) and
the reason in its provenance. A batch is a function of config and weights; a killed run goes on with the next one.
"""

import concurrent.futures
import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from pdgen.construction import asked as asked_lib
from pdgen.construction import build_config, graph_errors, plan_reader, tools
from pdgen.core import json_file, scene_graph
from pdgen.core import rng as rng_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import records

FOLDER, ASKED = 'traces', 'traces.json'  # In the output folder.
SOURCE = 'self_sampled'  # `Provenance.source`.
RIGHT, WRONG, UNUSED = VERDICTS = ('right', 'conflict', 'unused')
_NUMBER = 2**20  # Of the attempt that draws a trace's prompt: apart from those at samples.
_STREAM = 213  # random stream of the seeds of noise, and of readings

_SCHEMA = {
  'type': 'object',
  'properties': {
    'ok': {'type': 'boolean', 'description': 'whether no plan contradicts the prompt'},
    'step': {'type': 'integer', 'minimum': 0, 'description': 'number of the first plan that does, from 1; 0: none'},
    'reason': {'type': 'string', 'description': 'the contradiction as a clause, as: the bird is above the skateboard'},
    'correction': {'type': 'string', 'description': 'the instruction that corrects the picture of that plan'},
    'description': {'type': 'string', 'description': 'the whole picture after the correction'},
  },
  'required': ['ok', 'step', 'reason', 'correction', 'description'],
  'additionalProperties': False,
}
_TASK = """A picture is painted step by step. Compare the plans with the prompt, one after the other. A plan is wrong if
it contradicts the prompt: another colour, place, count or object than the prompt asks for. What the prompt asks for and
is not there yet will be added in following steps and is no error. What the prompt does not mention is no error.

Prompt: {prompt}
{plans}"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """What an exact world reads in a trace."""

  graphs: tuple[scene_graph.SceneGraph, ...] = ()  # After each step up to the first conflict, or all of them.
  error: graph_errors.GraphError | None = None  # Of the last of them.
  reason: str = ''  # Why the trace cannot be used; empty: it can.


def write(
  config: build_config.BuildConfig,
  out: pathlib.Path,
  *,
  count: int,
  make_painter: Callable[[str], Any] | None,
  progress: Callable[[int, int], None] | None = None,
):
  """Paints and judges traces into `out`/traces, or goes on; does nothing where they are finished.

  Args:
    config: of the build.
    out: its folder.
    count: traces.
    make_painter: loads the checkpoint.
    progress: called with the traces so far and their number, after every batch.

  Raises: ValueError for traces of another config, a build without loader, or one whose plans nothing can judge.
  """
  own, folder = config.conflict, out / FOLDER
  asked = json.loads(json.dumps(dict(build_config.identity(config, build_config.CONFLICT), traces=count)))
  out.mkdir(parents=True, exist_ok=True)
  if (out / ASKED).exists() and json_file.read(out / ASKED) != asked:
    raise ValueError(f'{folder} has traces of another config. Go on with the same, or give another folder.')
  if records.exists(folder):
    return
  (out / ASKED).write_text(json.dumps(asked, indent=2) + '\n')
  if make_painter is None:
    raise ValueError(
      f'config.conflict.checkpoint={own.checkpoint} needs a loader: build by `python -m pdgen.construct`.'
    )
  kit = tools.of(config, out, make_painter=make_painter)
  if kit.world is None and kit.plan_chat is None:
    raise ValueError('Plans of a model are judged by a world or a chat model: set config.world or config.judge.')
  painter = make_painter(own.checkpoint)
  sampling = painter.config.sampling
  if own.temperature is not None:
    sampling = dataclasses.replace(sampling, temperature=own.temperature)
  with (
    records.Writer(folder, shard_records=own.batch_size) as writer,
    concurrent.futures.ThreadPoolExecutor(config.work.threads) as pool,
  ):
    for first in range(writer.count, count, own.batch_size):
      numbers = range(first, min(first + own.batch_size, count))
      drawn = [*pool.map(lambda number: _drawn(kit, number), numbers)]
      wanted = [(n, a) for n, (_, a) in zip(numbers, drawn, strict=True) if isinstance(a, asked_lib.Asked)]
      seeds = [int(rng_lib.numpy_rng(config.seed, _STREAM, n).integers(2**32)) for n, _ in wanted]
      painted = {}
      if wanted:
        prompts = [a.prompt for _, a in wanted]
        result = painter.sample(prompts, seed=seeds, sampling=sampling, batch_size=own.batch_size)
        painted = {n: t for (n, _), t in zip(wanted, result.trajectories, strict=True)}
      judged = pool.map(_judged, *zip(*drawn, strict=True), [painted.get(n) for n in numbers])
      for trace in judged:
        writer.write(trace)
      if progress is not None:
        progress(numbers.stop, count)


def chosen(folder: pathlib.Path, negative: np.ndarray) -> tuple[int | None, ...]:
  """The trace of each slot: conflicts for bool[N] `negative` ones, right ones for the others, while there are any."""
  left: dict[str, list[int]] = {RIGHT: [], WRONG: []}
  for number, verdict in enumerate(verdicts(folder)):
    if verdict['verdict'] in left:
      left[verdict['verdict']].append(number)
  queues = {verdict: iter(numbers) for verdict, numbers in left.items()}
  return tuple(next(queues[WRONG if one else RIGHT], None) for one in negative)


def verdicts(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The verdict of every trace."""
  reader = records.Reader(folder)
  return [dict(made.verdicts[0]) for i in range(len(reader)) if (made := reader[i].provenance) is not None]


def read(
  trace: trajectory_lib.Trajectory, stated: scene_graph.SceneGraph, *, kit: tools.Tools, rng: np.random.Generator
) -> Reading:
  """Reads the plans of a trace in an exact world: the first conflict with the prompt, or none.

  Args:
    trace: as the model made it.
    stated: what its prompt says.
    kit: world and vocabulary.
    rng: draws the right place of what is in a wrong one.
  """
  graphs: list[scene_graph.SceneGraph] = []
  known: tuple[scene_graph.Node, ...] = ()
  for number, step in enumerate(trace.steps):
    where = f'step {number + 1}'
    if step.plan is None or step.draft is None:
      return Reading(reason=f'{where} has no plan or no draft')
    try:
      nodes = plan_reader.read(step.plan, vocabulary=kit.vocabulary)
      nodes = plan_reader.identified(nodes, known, extra='new.')
      fresh = tuple(n for n in nodes if n.id.startswith('new.'))
      left = [n for n in stated.nodes if n.id not in {o.id for o in nodes}]
      fresh = plan_reader.identified(fresh, left, extra=f'step{number + 1}.')
      nodes = tuple(n for n in nodes if not n.id.startswith('new.')) + fresh
      error = plan_reader.conflict(nodes, stated, new=[n.id for n in fresh], rng=rng)
      here = {n.id for n in nodes}
      relations = tuple(r for r in stated.relations if {r.subject, r.object} <= here)
      graph = error.wrong if error else scene_graph.SceneGraph(nodes=nodes, relations=relations)
      contents = kit.world.contents(graph)
    except ValueError as why:  # UnreadableError, or a scene that the world cannot show.
      return Reading(reason=f'{where}: {why}')
    graphs.append(graph)
    if error is not None:
      if kit.keeps_out(error.right):
        return Reading(reason=f'{where} shows what the world keeps out')
      return Reading(graphs=tuple(graphs), error=error)
    picture = step.draft if step.refined is None else step.refined
    if not kit.world.shows(picture, contents):
      return Reading(reason=f'{where}: the picture does not show its plan')
    if kit.keeps_out(graph):
      return Reading(reason=f'{where} shows what the world keeps out')
    known = nodes
  if not graphs or {n.id for n in stated.nodes} - set(graphs[-1].ids):
    return Reading(reason='it ends before all is painted')
  if trace.stop != trajectory_lib.FINISHED:
    return Reading(reason=f'it ends by {trace.stop}')
  return Reading(graphs=tuple(graphs))


def _drawn(kit: tools.Tools, number: int) -> tuple[tools.Attempt, asked_lib.Asked | str]:
  """The prompt of a trace, or why there is none."""
  attempt = tools.Attempt(kit, subset=build_config.CONFLICT, index=number, number=_NUMBER)
  try:
    return attempt, asked_lib.draw(attempt)
  except tools.RejectionError as error:
    return attempt, str(error)


def _judged(
  attempt: tools.Attempt, asked: asked_lib.Asked | str, trace: trajectory_lib.Trajectory | None
) -> trajectory_lib.Trajectory:
  """The trace with its verdict; without steps where there was no prompt."""
  if isinstance(asked, str) or trace is None:
    verdict: dict[str, Any] = {'verdict': UNUSED, 'reason': str(asked)}
    return _noted(attempt, trajectory_lib.Trajectory(prompt='', steps=(), stop=None), verdict, {})
  try:
    verdict = _verdict(attempt, asked, trace)
  except tools.RejectionError as error:
    verdict = {'verdict': UNUSED, 'reason': str(error)}
  trace = dataclasses.replace(trace, spec=asked.spec, expected=None)
  return _noted(attempt, trace, verdict, {'stated': asked.stated.to_dict(), 'prompt': asked.source})


def _noted(
  attempt: tools.Attempt, trace: trajectory_lib.Trajectory, verdict: dict[str, Any], metadata: dict[str, Any]
) -> trajectory_lib.Trajectory:
  provenance = attempt.provenance(
    graph=None, source=SOURCE, verdicts=(verdict,), renderer=attempt.tools.config.conflict.checkpoint
  )
  return dataclasses.replace(trace, provenance=provenance, metadata=metadata)


def _verdict(attempt: tools.Attempt, asked: asked_lib.Asked, trace: trajectory_lib.Trajectory) -> dict[str, Any]:
  kit = attempt.tools
  if kit.plan_chat is None:
    reading = read(trace, asked.stated, kit=kit, rng=attempt.rng)
    if reading.reason:
      return {'verdict': UNUSED, 'reason': reading.reason}
    if reading.error is None:
      return {'verdict': RIGHT}
    return {'verdict': WRONG, 'step': len(reading.graphs) - 1, 'reason': reading.error.kind}
  if not trace.steps or any(step.plan is None or step.draft is None for step in trace.steps):
    return {'verdict': UNUSED, 'reason': 'a step has no plan or no draft'}
  plans = '\n'.join(f'Plan {number + 1}: {step.plan}' for number, step in enumerate(trace.steps))
  value = attempt.asked_of_chat(_TASK.format(prompt=asked.prompt, plans=plans), _SCHEMA, check=_fault(len(trace.steps)))
  if value['ok']:
    done = trace.stop == trajectory_lib.FINISHED
    return {'verdict': RIGHT} if done else {'verdict': UNUSED, 'reason': f'it ends by {trace.stop}'}
  words = {name: ' '.join(value[name].split()) for name in ('reason', 'correction', 'description')}
  return {'verdict': WRONG, 'step': value['step'] - 1, **words}


def _fault(steps: int) -> Callable[[dict[str, Any]], str | None]:
  def fault(value: dict[str, Any]) -> str | None:
    if value['ok']:
      return None
    if not 1 <= value['step'] <= steps:
      return f'step is {value["step"]}, of {steps}'
    empty = [name for name in ('reason', 'correction', 'description') if not value[name].strip()]
    if empty or '<' in ''.join(str(v) for v in value.values()):
      return f'{empty[0]} is empty' if empty else 'a text holds a tag'
    return None

  return fault
