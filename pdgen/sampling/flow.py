"""Rectified-flow sampling: time grid, solvers, guidance and its renormalisation. t = 1 is noise, t = 0 the picture."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pdgen.core import config as config_lib
from pdgen.sampling import stop_texts


class SamplerParams(struct.PyTreeNode):
  """Arguments of the sampler, which change without a new compilation: fields of `core.config.SamplingConfig`, by name.

  All its other fields shape the compiled program (`cycle.SamplerSpec`).
  """

  # Of all trajectories, [], or one of each, [B]: PER_TRAJECTORY.
  temperature: jax.Array  # f32; 0 = greedy text.
  top_k: jax.Array  # int32; 0 = all tokens.
  top_p: jax.Array  # f32; 1 = all tokens.
  repetition_penalty: jax.Array  # f32; 1 = none.
  text_guidance: jax.Array  # f32; 1 = none.
  image_guidance: jax.Array  # f32; 1 = none.
  renorm_min: jax.Array  # f32; lower clamp of the renormalisation.
  max_edits: jax.Array  # int32; refined pictures a trajectory.
  guidance_interval: jax.Array  # f32[2], or [B, 2]; guidance is on for low < t <= high.
  # Of all trajectories.
  timestep_shift: jax.Array  # f32[]; s in t <- s t / (1 + (s - 1) t).
  flow_steps: jax.Array  # int32[]; steps a picture.
  draft_steps: jax.Array  # int32[]; steps a draft, where those have a number of their own.
  guidance_every: jax.Array  # int32[]; the other branches of guidance are computed at one of so many steps.
  # Of `SamplingConfig.stop_texts`, with the bytes of the tokens; None: no trajectory has any.
  stops: stop_texts.StopTexts | None = None

  @classmethod
  def of(cls, sampling: config_lib.SamplingConfig) -> 'SamplerParams':
    """The numbers of a config. Raises: ValueError naming one that is not finite."""
    kinds: dict[str, Any] = dict.fromkeys(
      ('top_k', 'flow_steps', 'draft_steps', 'guidance_every', 'max_edits'), jnp.int32
    )
    for name in DYNAMIC_FIELDS:
      if not np.isfinite(np.asarray(getattr(sampling, name), np.float64)).all():
        raise ValueError(f'sampling.{name}={getattr(sampling, name)} is not finite.')
    numbers: dict[str, Any] = {
      name: jnp.asarray(getattr(sampling, name), kinds.get(name, jnp.float32)) for name in DYNAMIC_FIELDS
    }
    return cls(**numbers)

  @classmethod
  def of_rows(cls, samplings: Sequence[config_lib.SamplingConfig], *, differ: bool) -> 'SamplerParams':
    """The numbers of a batch, from the config of each row.

    Args:
      samplings: they differ in PER_TRAJECTORY alone, and in `stop_texts`, which are not seen to here.
      differ: there is a number for each row, also where all have the same; False: those of the first are of all.

    Raises: as `of`.
    """
    rows = [cls.of(sampling) for sampling in samplings]
    if not differ:
      return rows[0]
    return rows[0].replace(**{name: jnp.stack([getattr(row, name) for row in rows]) for name in PER_TRAJECTORY})


DYNAMIC_FIELDS = tuple(field.name for field in dataclasses.fields(SamplerParams) if field.name != 'stops')
PER_TRAJECTORY = DYNAMIC_FIELDS[: DYNAMIC_FIELDS.index('timestep_shift')]


def time_at(step: jax.Array, params: SamplerParams, steps: jax.Array | None = None) -> jax.Array:
  """Shifted time before step `step` of `steps` (None: `params.flow_steps`): from 1 at step 0 to 0 after the last.

  step, steps: int32[], or of each trajectory [B]. Returns f32 of that shape.

  >>> k = SamplerParams(*[None] * 9, timestep_shift=4.0, flow_steps=2, draft_steps=0, guidance_every=1)
  >>> [round(float(time_at(i, k)), 3) for i in range(3)]
  [1.0, 0.8, 0.0]
  """
  t = 1.0 - step / (params.flow_steps if steps is None else steps)
  # As s t / (1 + (s - 1) t), but exactly 1 at t = 1, where rounding up would leave the guidance interval.
  return params.timestep_shift * t / (params.timestep_shift * t + (1.0 - t))


def is_guided(t: jax.Array, params: SamplerParams) -> jax.Array:
  """Whether guidance is on at the (shifted) time t, [] or [B]: bool[], or [B]."""
  return (t > params.guidance_interval[..., 0]) & (t <= params.guidance_interval[..., 1])


class At(NamedTuple):
  """Where on the way from noise to picture a velocity is asked for."""

  z: jax.Array  # f32[B, Q, C]
  t: jax.Array  # f32[], or of each trajectory [B].


# (where, memory) -> (velocity f32[B, Q, C], memory): noise - picture, and what the next steps use again.
Velocity = Callable[[At, Any], tuple[jax.Array, Any]]


def integrate(
  z: jax.Array,
  velocity: Velocity,
  params: SamplerParams,
  *,
  solver: str = config_lib.EULER,
  steps: jax.Array | None = None,
  memory: Any = None,
) -> jax.Array:
  """From noise to the latents of the picture.

  BAGEL's `num_timesteps` counts the points of the grid: N of them are N - 1 steps (QUIRKS 25).

  Args:
    z: f32[B, Q, C], noise.
    velocity: of the model.
    params: the time grid.
    solver: of `config.SOLVERS`. `euler`; `heun`: the mean of the velocities at both ends of a step, two evaluations
      each; `ab2`: Adams-Bashforth, which extrapolates from this velocity and the one before, one evaluation. The last
      step of all three is Euler's, whose end is the picture that the model predicts.
    steps: int32[B], of each trajectory; None: `params.flow_steps` of all. One that is done waits for the others.
    memory: what `velocity` is given first.
  """
  own = params.flow_steps if steps is None else steps
  spread = lambda x: jnp.reshape(x, (-1, 1, 1))  # Of all trajectories, or of each.

  def step(i: jax.Array, carry: tuple[jax.Array, Any, Any]) -> tuple[jax.Array, Any, Any]:
    z, before, memory = carry
    t, after = (time_at(jnp.minimum(n, own), params, own) for n in (i, i + 1))
    v, memory = velocity(At(z, t), memory)
    if solver == config_lib.HEUN:

      def corrected(memory: Any) -> tuple[jax.Array, Any]:
        at_end, memory = velocity(At(z + spread(after - t) * v, after), memory)
        return jnp.where(spread(i + 1 < own), (v + at_end) / 2, v), memory

      slope, memory = jax.lax.cond(jnp.any(i + 1 < own), corrected, lambda memory: (v, memory), memory)
    elif solver == config_lib.AB2:
      v_before, t_before = before
      ratio = (after - t) / jnp.where(t_before == t, 1.0, 2.0 * (t - t_before))
      slope = jnp.where(spread((i > 0) & (i + 1 < own)), v + spread(ratio) * (v - v_before), v)
      before = v, t
    else:
      slope = v
    return z + spread(after - t) * slope, before, memory

  before = (jnp.zeros_like(z), jnp.ones(own.shape)) if solver == config_lib.AB2 else None
  return jax.lax.fori_loop(0, jnp.max(own), step, (z, before, memory))[0]


class Kept(NamedTuple):
  """What the branches of guidance take away from the velocity, kept for evaluations that do not compute them."""

  evaluations: jax.Array  # int32[B]; those with guidance of each trajectory so far.
  less: list[jax.Array]  # f32[B, Q, C] of each branch: the velocity minus the branch's.

  def is_due(self, at: At, params: SamplerParams) -> jax.Array:
    """Trajectories whose branches are computed anew, by their own evaluations alone: bool[B]."""
    return is_guided(at.t, params) & (self.evaluations % params.guidance_every == 0)

  def after(self, at: At, less: list[jax.Array], params: SamplerParams) -> 'Kept':
    """After an evaluation that used `less`."""
    return Kept(self.evaluations + is_guided(at.t, params).astype(jnp.int32), less)


def with_guidance(
  forward: Callable[[At, int], list[jax.Array]],
  guide: Callable[[At, jax.Array, list[jax.Array]], jax.Array],
  params: SamplerParams,
  *,
  branches: int,
) -> Velocity:
  """The guided velocity. Its memory: None, or what is kept of the branches (`Kept`).

  Args:
    forward: the velocities of the first so many branches, that of the whole context first.
    guide: what the velocity becomes by those of the other branches.
    params: when guidance is on, and how often its branches are computed.
    branches: with that of the whole context.
  """

  def plain(at: At, kept: Any) -> tuple[jax.Array, Any]:
    return forward(at, 1)[0], kept

  def guided(at: At, kept: Any) -> tuple[jax.Array, Any]:
    v, *others = forward(at, branches)
    if kept is None:
      return guide(at, v, others), None
    due = kept.is_due(at, params)[:, None, None]
    less = [jnp.where(due, v - other, old) for other, old in zip(others, kept.less, strict=True)]
    return guide(at, v, [v - x for x in less]), kept.after(at, less, params)

  def again(at: At, kept: Any) -> tuple[jax.Array, Any]:
    v = forward(at, 1)[0]
    return guide(at, v, [v - x for x in kept.less]), kept.after(at, kept.less, params)

  def velocity(at: At, kept: Any) -> tuple[jax.Array, Any]:
    on = jnp.any(is_guided(at.t, params))
    if kept is None:
      return jax.lax.cond(on, guided, plain, at, kept)
    which = jnp.where(jnp.any(kept.is_due(at, params)), 2, on.astype(jnp.int32))
    return jax.lax.switch(which, [plain, again, guided], at, kept)

  return velocity if branches > 1 else plain


def guide(
  v: jax.Array, v_text: jax.Array | None, v_image: jax.Array | None, params: SamplerParams, *, renorm: str
) -> jax.Array:
  """BAGEL's two-scale guidance, each trajectory by itself.

  Unlike the reference, the norm never runs over the batch, and picture guidance also works without text guidance
  (QUIRKS 28, 29).

  Args:
    v: f32[B, Q, C], the velocity with the whole context.
    v_text: the same without the texts since the last picture; None: no guidance by texts.
    v_image: without pictures; None: no guidance by pictures.
    params: scales, and the lower clamp of the renormalisation.
    renorm: scales the result back to the norm of v, over a trajectory (`global`) or a token (`channel`), by at most 1
      and at least `params.renorm_min`; `text_channel` does it after the text step and leaves the picture step as it is;
      `none`.
  """
  text, image = (jnp.reshape(scale, (-1, 1, 1)) for scale in (params.text_guidance, params.image_guidance))
  guided = v if v_text is None else v_text + text * (v - v_text)
  if renorm == 'text_channel':
    guided = _renormalise(guided, v, params, axes=(-1,))
  if v_image is not None:
    guided = v_image + image * (guided - v_image)
  if renorm in ('global', 'channel'):
    guided = _renormalise(guided, v, params, axes=(-2, -1) if renorm == 'global' else (-1,))
  return guided


def _renormalise(guided: jax.Array, v: jax.Array, params: SamplerParams, *, axes: tuple[int, ...]) -> jax.Array:
  want, have = (jnp.sqrt(jnp.sum(x * x, axis=axes, keepdims=True)) for x in (v, guided))
  return guided * jnp.clip(want / (have + 1e-8), jnp.reshape(params.renorm_min, (-1, 1, 1)), 1.0)
