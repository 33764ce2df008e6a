"""Continuous batching in one compiled program: a queue of trajectories, worked off by a few lanes that refill.

`cycle.run` takes every phase for all rows of its batch, most of which wait: of 32 rows of the shapes world 37 % write
in a decode step, 49 % paint in a picture phase. Here a lane whose trajectory has ended takes the next of the queue, a
picture phase is for the first `paint_rows` lanes that wait, once there are so many, and decode steps go on until then.
What becomes of a trajectory depends on none of it: it has its own key, slots and positions, as in `cycle`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx, struct

from pdgen.models import attention, interleaved
from pdgen.sampling import canvas, cycle, flow
from pdgen.sampling.sampler_spec import SamplerSpec

T = TypeVar('T')
Phase = Callable[..., 'Work']  # Of (model, work, *, queue, spec, plan).
LEAST = 4  # Lanes for which it pays: one paints while the others write.
# Fields of a state that are given out, of each trajectory.
OUTPUTS = ('output_tokens', 'output_logprobs', 'output_count', 'pictures', 'picture_count', 'finite', 'stop')


class Plan(NamedTuple):
  """How many lanes there are, and how many take part in what. Hashable, a static argument."""

  lanes: int
  paint_rows: int  # Lanes of a picture phase.
  read_rows: int  # Lanes that are refilled together.

  @classmethod
  def of(cls, lanes: int) -> 'Plan':
    """A quarter of the lanes paints together, an eighth is refilled (docs/experiments.md#lanes)."""
    return cls(lanes, paint_rows=max(1, lanes // 4), read_rows=max(1, lanes // 8))

  @property
  def copied_rows(self) -> int:
    """Lanes whose caches there are once more: of what is painted, before and after, and of what is read."""
    return 2 * self.paint_rows + self.read_rows


class Output(struct.PyTreeNode):
  """What became of the queue; arrays as of `cycle.State`, a row a trajectory of the queue."""

  output_tokens: jax.Array  # int32[Q, E]
  output_logprobs: jax.Array  # f32[Q, E]
  output_count: jax.Array  # int32[Q]
  pictures: jax.Array  # uint8[Q, M, H, W, 3]
  picture_count: jax.Array  # int32[Q]
  finite: jax.Array  # bool[Q]
  stop: jax.Array  # int32[Q]
  text_steps: jax.Array  # int32[]; decode steps, of all lanes each.
  rounds: jax.Array  # int32[]; picture phases, of `paint_rows` lanes each.


class Queue(struct.PyTreeNode):
  """What there is to do."""

  batch: cycle.SampleBatch  # What to continue from, a trajectory a row, [Q].
  count: jax.Array  # int32[]; rows that are trajectories; the others, at the end, are not looked at.
  sampler: flow.SamplerParams  # Of all trajectories, or of each row.


class Work(struct.PyTreeNode):
  """The loop's state."""

  state: cycle.State  # Of the lanes.
  trajectory: jax.Array  # int32[lanes]; number in the queue of what a lane works on; Q before its first.
  taken: jax.Array  # int32[]; trajectories of the queue that have been begun.
  done: dict[str, jax.Array]  # OUTPUTS of the trajectories that have left their lane.


@functools.partial(jax.jit, static_argnames=('graphdef', 'spec', 'plan'))
def run(graphdef: nnx.GraphDef, params: Any, queue: Queue, spec: SamplerSpec, plan: Plan) -> Output:
  """Samples a queue of trajectories to their ends, begun in the order of their numbers as lanes become free.

  graphdef: structure of the model (`interleaved.graphdef`). params: its parameters.
  """
  model = nnx.merge(graphdef, params)

  def turn(work: Work) -> Work:
    # Loops, not a `switch`: XLA copies what a branch of a conditional changes, here the caches of all lanes.
    for phase in PHASES:
      work = stretch(phase, model, work, queue=queue, spec=spec, plan=plan)
    return work

  work = start(model, queue=queue, spec=spec, plan=plan)
  work = jax.lax.while_loop(lambda work: next_phase(work, queue, plan) < len(PHASES), turn, work)
  return output(work)


def stretch(phase: Phase, model: interleaved.Interleaved, work: Work, *, queue: Queue, **static: Any) -> Work:
  """A phase again and again, until another one comes next. static: `spec` and `plan`."""
  return jax.lax.while_loop(
    lambda work: next_phase(work, queue, static['plan']) == PHASES.index(phase),
    lambda work: phase(model, work, queue=queue, **static),
    work,
  )


def next_phase(work: Work, queue: Queue, plan: Plan) -> jax.Array:
  """Number of what comes next in PHASES; their number when all have ended: int32[]."""
  status = work.state.status
  ended, waiting, writing = (jnp.sum(status == s) for s in (cycle.ENDED, cycle.WAITING, cycle.WRITING))
  refills = (work.taken < queue.count) & (ended > 0) & ((ended >= plan.read_rows) | (writing == 0))
  paints = (waiting > 0) & ((waiting >= plan.paint_rows) | (writing == 0))
  return jnp.select([refills, paints, writing > 0], [0, 1, 2], len(PHASES))


def refill(model: interleaved.Interleaved, work: Work, *, queue: Queue, spec: SamplerSpec, plan: Plan) -> Work:
  """Lanes that have ended take the next trajectories."""
  prefix = queue.batch.prefix
  und, gen = (stream.tokens.order.shape[1] for stream in (prefix.und, prefix.gen))
  lanes = _first(work.state.status == cycle.ENDED, plan.read_rows)
  numbers = work.taken + jnp.arange(plan.read_rows)
  filled = (work.state.status[lanes] == cycle.ENDED) & (numbers < queue.count)
  new = cycle.prefill(model, _take(queue.batch, numbers), _of_rows(queue.sampler, numbers), spec)
  lanes = jnp.where(filled, lanes, plan.lanes)  # Out of range: dropped.
  slots = jnp.arange(und + gen)  # `cycle.prefill` fills no others.
  if spec.image_branch:
    slots = jnp.concatenate([slots, new.cache.slots // 2 + jnp.arange(und)])
  return Work(
    state=_put(work.state, new, lanes, jnp.broadcast_to(slots, (plan.read_rows, slots.shape[0]))),
    trajectory=work.trajectory.at[lanes].set(numbers, mode='drop'),
    taken=work.taken + jnp.sum(filled),
    done=_keep(work, lanes),
  )


def paint(model: interleaved.Interleaved, work: Work, *, queue: Queue, spec: SamplerSpec, plan: Plan) -> Work:
  """The picture phase of lanes that wait."""
  lanes, some, sampler = _who_paints(work, queue, plan)
  first = some.slot[:, None]
  some = cycle.picture_phase(model, some, sampler, spec)
  most = canvas.layout(model.cfg, spec.size, spec.most, some.grids).most_tokens
  slots = first + jnp.arange(most)[None]
  slots = jnp.where(slots < some.slot[:, None], slots, some.cache.slots)  # Out of range: dropped.
  return work.replace(state=_put(work.state, some, lanes, slots).replace(rounds=some.rounds))


def write(model: interleaved.Interleaved, work: Work, *, queue: Queue, spec: SamplerSpec, plan: Plan) -> Work:
  """A decode step."""
  sampler = _of_rows(queue.sampler, work.trajectory)
  return work.replace(state=cycle.decode_step(model, work.state, sampler, spec))


PHASES: tuple[Phase, ...] = (refill, paint, write)


def denoise(model: interleaved.Interleaved, work: Work, *, queue: Queue, spec: SamplerSpec, plan: Plan) -> jax.Array:
  """The part of `paint` before pictures are decoded and read."""
  _, some, sampler = _who_paints(work, queue, plan)
  return cycle.denoise(model, some, sampler, spec)


def output(work: Work) -> Output:
  """What has become of the queue, when all have ended."""
  done = _keep(work, jnp.arange(work.trajectory.shape[0]))
  return Output(**done, text_steps=work.state.text_steps, rounds=work.state.rounds)


def start(model: interleaved.Interleaved, *, queue: Queue, spec: SamplerSpec, plan: Plan) -> Work:
  """Lanes that have all ended, before their first trajectory."""
  first = jnp.zeros(plan.lanes, jnp.int32)
  read = lambda: cycle.prefill(model, _take(queue.batch, first), _of_rows(queue.sampler, first), spec)
  state = jax.tree.map(_zeros, jax.eval_shape(read))
  length = queue.batch.picture_limit.shape[0]
  return Work(
    state=state.replace(status=jnp.full_like(state.status, cycle.ENDED)),
    trajectory=jnp.full(plan.lanes, length, jnp.int32),
    taken=jnp.zeros((), jnp.int32),
    done={name: jnp.zeros((length, *(x := getattr(state, name)).shape[1:]), x.dtype) for name in OUTPUTS},
  )


def _who_paints(work: Work, queue: Queue, plan: Plan) -> tuple[jax.Array, cycle.State, flow.SamplerParams]:
  """The first lanes that wait, and others where they are less; their state; their numbers of the sampler."""
  lanes = _first(work.state.status == cycle.WAITING, plan.paint_rows)
  some = _per_row(lambda x: jnp.take(x, lanes, axis=0, mode='clip'), work.state)
  k, v = (jnp.take(x, lanes, axis=1, mode='clip') for x in work.state.cache[:2])
  some = some.replace(cache=some.cache._replace(k=k, v=v))
  return lanes, some, _of_rows(queue.sampler, work.trajectory[lanes])


def _zeros(x: jax.ShapeDtypeStruct) -> jax.Array:
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jnp.broadcast_to(jax.random.key(0), x.shape)
  return jnp.zeros(x.shape, x.dtype)


def _first(these: jax.Array, count: int) -> jax.Array:
  """The first lanes of which this is true, then others: int32[count]."""
  return jnp.argsort(~these, stable=True)[:count]


def _keep(work: Work, lanes: jax.Array) -> dict[str, jax.Array]:
  """`work.done` with the outputs of these lanes; nothing of a lane out of range, or before its first trajectory."""
  length = work.done['stop'].shape[0]
  numbers = jnp.where(lanes < work.trajectory.shape[0], _take(work.trajectory, lanes), length)
  return {
    name: into.at[numbers].set(_take(getattr(work.state, name), lanes), mode='drop') for name, into in work.done.items()
  }


def _of_rows(sampler: flow.SamplerParams, rows: jax.Array) -> flow.SamplerParams:
  """The numbers of some rows of the queue; those of all trajectories as they are."""
  if sampler.temperature.ndim:
    sampler = sampler.replace(**_take({name: getattr(sampler, name) for name in flow.PER_TRAJECTORY}, rows))
  if sampler.stops is not None and sampler.stops.begin.ndim:
    sampler = sampler.replace(stops=sampler.stops.replace(begin=_take(sampler.stops.begin, rows)))
  return sampler


def _take(tree: T, rows: jax.Array) -> T:
  """Some rows of every leaf; for a row out of range the last one."""
  return jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode='clip'), tree)


def _put(state: cycle.State, some: cycle.State, lanes: jax.Array, slots: jax.Array) -> cycle.State:
  """The state with these lanes replaced, none twice; nothing for a lane out of range.

  slots: int32[lanes, N], those whose keys and values are new; the others stay as they are, and so are not copied.
  """

  def kv(old: jax.Array, new: jax.Array) -> jax.Array:
    new = jnp.take_along_axis(new, slots[None, :, None, :, None], axis=3, mode='clip')
    return old.at[:, lanes[:, None], :, slots].set(new.transpose(1, 3, 0, 2, 4), mode='drop')

  made = _per_row(lambda x, new: x.at[lanes].set(new, mode='drop'), state, some)
  k, v = (kv(getattr(state.cache, name), getattr(some.cache, name)) for name in ('k', 'v'))
  return made.replace(cache=attention.KVCache(k, v, made.cache.tokens))


def _per_row(f: Callable[..., Any], state: cycle.State, *others: cycle.State) -> cycle.State:
  """`f(leaf, *leaves)` of every leaf that has rows first; the others, and keys and values, are those of `state`."""
  rest = [s.replace(cache=s.cache.tokens) for s in (state, *others)]
  made: Any = jax.tree.map(lambda x, *more: f(x, *more) if x.ndim else x, *rest)
  return made.replace(cache=state.cache._replace(tokens=made.cache))
