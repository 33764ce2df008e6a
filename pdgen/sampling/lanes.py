"""Continuous batching in one compiled program: a queue of trajectories, worked off by a few lanes that refill.

`cycle.run` takes every phase for all rows of its batch, most of which wait: two fifths of the shapes world's rows write
in a decode step, or paint in a picture phase. Here a lane whose trajectory has ended takes the next of the queue, a
picture phase is for the first `paint_rows` lanes that wait, once there are so many, and decode steps go on until then.
What becomes of a trajectory depends on none of it: it has its own key, slots and positions, as in `cycle`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx, struct

from pdgen.models import interleaved
from pdgen.sampling import cycle, flow
from pdgen.sampling.sampler_spec import SamplerSpec

T = TypeVar('T')
LEAST = 4  # Lanes for which it pays: two paint while two write.
# Fields of a state that are given out, of each trajectory.
OUTPUTS = ('output_tokens', 'output_logprobs', 'output_count', 'pictures', 'picture_count', 'finite', 'stop')


class Plan(NamedTuple):
  """How many lanes there are, and how many take part in what. Hashable, a static argument."""

  lanes: int
  paint_rows: int  # Lanes of a picture phase.
  read_rows: int  # Lanes that are refilled together.

  @classmethod
  def of(cls, lanes: int) -> 'Plan':
    """Half of the lanes paint together, while the others have time to write; a quarter is refilled."""
    return cls(lanes, paint_rows=-(-lanes // 2), read_rows=max(1, lanes // 4))

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


class _Work(struct.PyTreeNode):
  """The loop's state."""

  state: cycle.State  # Of the lanes.
  trajectory: jax.Array  # int32[lanes]; number in the queue of what a lane works on; Q before its first.
  taken: jax.Array  # int32[]; trajectories of the queue that have been begun.
  done: dict[str, jax.Array]  # OUTPUTS of the trajectories that have left their lane.


@functools.partial(jax.jit, static_argnames=('graphdef', 'spec', 'plan'))
def run(
  graphdef: nnx.GraphDef,
  params: Any,
  queue: cycle.SampleBatch,
  count: jax.Array,
  sampler: flow.SamplerParams,
  spec: SamplerSpec,
  plan: Plan,
) -> Output:
  """Samples a queue of trajectories to their ends, in the order of their numbers as lanes become free.

  Args:
    graphdef: structure of the model (`interleaved.graphdef`).
    params: its parameters.
    queue: what to continue from, a trajectory a row, [Q].
    count: int32[], rows of the queue that are trajectories; the others, at its end, are not looked at.
    sampler: numbers of all trajectories, or of each row of the queue.
    spec: what shapes the program.
    plan: lanes.
  """
  model = nnx.merge(graphdef, params)
  status_is = lambda work, status: work.state.status == status
  number = lambda work, status: jnp.sum(status_is(work, status))

  def should_refill(work: _Work) -> jax.Array:
    ended, left = number(work, cycle.ENDED), work.taken < count
    return left & (ended > 0) & ((ended >= plan.read_rows) | (number(work, cycle.WRITING) == 0))

  def should_paint(work: _Work) -> jax.Array:
    return (number(work, cycle.WAITING) >= plan.paint_rows) | (number(work, cycle.WRITING) == 0)

  def refill(work: _Work) -> _Work:
    lanes = _first(status_is(work, cycle.ENDED), plan.read_rows)
    numbers = work.taken + jnp.arange(plan.read_rows)
    filled = (work.state.status[lanes] == cycle.ENDED) & (numbers < count)
    new = cycle.prefill(model, _take(queue, numbers), _of_rows(sampler, numbers), spec)
    lanes = jnp.where(filled, lanes, plan.lanes)  # Out of range: dropped.
    return _Work(
      state=_put(work.state, new, lanes),
      trajectory=work.trajectory.at[lanes].set(numbers, mode='drop'),
      taken=work.taken + jnp.sum(filled),
      done=_keep(work, lanes),
    )

  def paint(work: _Work) -> _Work:
    lanes = _first(status_is(work, cycle.WAITING), plan.paint_rows)
    some = _per_row(lambda axis, x: jnp.take(x, lanes, axis=axis), work.state)
    some = cycle.picture_phase(model, some, _of_rows(sampler, work.trajectory[lanes]), spec)
    return work.replace(state=_put(work.state, some, lanes).replace(rounds=some.rounds))

  def write(work: _Work) -> _Work:
    of_lanes = _of_rows(sampler, work.trajectory)
    going_on = lambda work: ~should_refill(work) & ~should_paint(work)
    step = lambda work: work.replace(state=cycle.decode_step(model, work.state, of_lanes, spec))
    return jax.lax.while_loop(going_on, step, work)

  def turn(work: _Work) -> _Work:
    what = jnp.where(should_refill(work), 0, jnp.where(should_paint(work), 1, 2))
    return jax.lax.switch(what, (refill, paint, write), work)

  going_on = lambda work: (work.taken < count) | (number(work, cycle.ENDED) < plan.lanes)
  work = jax.lax.while_loop(going_on, turn, _nothing(model, queue, sampler, spec, plan))
  done = _keep(work, jnp.arange(plan.lanes))
  return Output(**done, text_steps=work.state.text_steps, rounds=work.state.rounds)


def _nothing(
  model: interleaved.Interleaved,
  queue: cycle.SampleBatch,
  sampler: flow.SamplerParams,
  spec: SamplerSpec,
  plan: Plan,
) -> _Work:
  """Lanes that have all ended, before their first trajectory."""
  first = jnp.zeros(plan.lanes, jnp.int32)
  start = lambda: cycle.prefill(model, _take(queue, first), _of_rows(sampler, first), spec)
  state = jax.tree.map(_zeros, jax.eval_shape(start))
  length = queue.picture_limit.shape[0]
  return _Work(
    state=state.replace(status=jnp.full_like(state.status, cycle.ENDED)),
    trajectory=jnp.full(plan.lanes, length, jnp.int32),
    taken=jnp.zeros((), jnp.int32),
    done={name: jnp.zeros((length, *(x := getattr(state, name)).shape[1:]), x.dtype) for name in OUTPUTS},
  )


def _zeros(x: jax.ShapeDtypeStruct) -> jax.Array:
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jnp.broadcast_to(jax.random.key(0), x.shape)
  return jnp.zeros(x.shape, x.dtype)


def _first(these: jax.Array, count: int) -> jax.Array:
  """The first lanes of which this is true, then others: int32[count]."""
  return jnp.argsort(~these, stable=True)[:count]


def _keep(work: _Work, lanes: jax.Array) -> dict[str, jax.Array]:
  """`work.done` with the outputs of these lanes; nothing of a lane out of range, or before its first trajectory."""
  length = work.done['stop'].shape[0]
  numbers = jnp.where(lanes < work.trajectory.shape[0], _take(work.trajectory, lanes), length)
  return {
    name: into.at[numbers].set(_take(getattr(work.state, name), lanes), mode='drop') for name, into in work.done.items()
  }


def _of_rows(sampler: flow.SamplerParams, rows: jax.Array) -> flow.SamplerParams:
  """The numbers of some rows of the queue; those of all trajectories as they are."""
  own = {name: x for name in flow.PER_TRAJECTORY if (x := getattr(sampler, name)).ndim}
  return sampler.replace(**_take(own, rows))


def _take(tree: T, rows: jax.Array) -> T:
  """Some rows of every leaf; for a row out of range the last one."""
  return jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode='clip'), tree)


def _put(state: cycle.State, some: cycle.State, lanes: jax.Array) -> cycle.State:
  """The state with these lanes replaced, none twice; nothing for a lane out of range."""
  return _per_row(lambda axis, x, new: x.at[(slice(None),) * axis + (lanes,)].set(new, mode='drop'), state, some)


def _per_row(f: Callable[..., Any], state: cycle.State, *others: cycle.State) -> cycle.State:
  """`f(axis of the rows, leaf, *leaves)` of every leaf that has rows; counts of the whole stay those of `state`."""
  states = (state, *others)
  k, v = (f(1, *(getattr(s.cache, name) for s in states)) for name in ('k', 'v'))
  rest = [s.replace(cache=s.cache.tokens) for s in states]  # Rows first.
  made: Any = jax.tree.map(lambda x, *more: f(0, x, *more) if x.ndim else x, *rest)
  return made.replace(cache=state.cache._replace(k=k, v=v, tokens=made.cache))
