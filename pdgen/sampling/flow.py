"""Rectified-flow sampling: time grid, guidance and its renormalisation. t = 1 is noise, t = 0 the picture."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

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
  flow_steps: jax.Array  # int32[]; Euler steps a picture.
  # Of `SamplingConfig.stop_texts`, with the bytes of the tokens; None: no trajectory has any.
  stops: stop_texts.StopTexts | None = None

  @classmethod
  def of(cls, sampling: config_lib.SamplingConfig) -> 'SamplerParams':
    """The numbers of a config. Raises: ValueError naming one that is not finite."""
    kinds = {'top_k': jnp.int32, 'flow_steps': jnp.int32, 'max_edits': jnp.int32}
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


def time_at(step: jax.Array, params: SamplerParams) -> jax.Array:
  """Shifted time before Euler step `step` of `params.flow_steps`: f32[], from 1 at step 0 to 0 after the last.

  >>> k = SamplerParams(*[None] * 9, timestep_shift=4.0, flow_steps=2)
  >>> [round(float(time_at(i, k)), 3) for i in range(3)]
  [1.0, 0.8, 0.0]
  """
  t = 1.0 - step / params.flow_steps
  # As s t / (1 + (s - 1) t), but exactly 1 at t = 1, where rounding up would leave the guidance interval.
  return params.timestep_shift * t / (params.timestep_shift * t + (1.0 - t))


def is_guided(t: jax.Array, params: SamplerParams) -> jax.Array:
  """Whether guidance is on at the (shifted) time t: bool[], or [B]."""
  return (t > params.guidance_interval[..., 0]) & (t <= params.guidance_interval[..., 1])


def euler(z: jax.Array, velocity: Callable[[jax.Array, jax.Array], jax.Array], params: SamplerParams) -> jax.Array:
  """From noise z: f32[B, Q, C] to the picture's latents. velocity: of (z, t: f32[]), noise - picture.

  BAGEL's `num_timesteps` counts the points of the grid: N of them are N - 1 steps (QUIRKS 25).
  """

  def step(i: jax.Array, z: jax.Array) -> jax.Array:
    t, after = time_at(i, params), time_at(i + 1, params)
    return z + (after - t) * velocity(z, t)

  return jax.lax.fori_loop(0, params.flow_steps, step, z)


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
