"""The phases of the sampler, each a compiled program of its own: what streaming and the phase timer are driven by.

They are the functions that `cycle.run` compiles into one program. Each compiles once for a shape of the batch.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from pdgen.core import mesh as mesh_lib
from pdgen.models import attention
from pdgen.sampling import cycle, flow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phases:
  """The phases with a model and its options. A state that is given to a phase must not be used again: it is donated."""

  graphdef: nnx.GraphDef
  params: Any
  sampler: flow.SamplerParams
  spec: cycle.SamplerSpec
  mesh: Mesh | None = None

  def prefill(self, batch: cycle.SampleBatch) -> cycle.State:
    """Reads the prefixes and chooses what each trajectory does first."""
    return self._call(_prefill, batch)

  def decode_step(self, state: cycle.State) -> cycle.State:
    """One token for every trajectory that writes."""
    return self._call(_decode_step, state)

  def text_phase(self, state: cycle.State) -> cycle.State:
    """Decode steps until no trajectory writes."""
    return self._call(_text_phase, state)

  def picture_phase(self, state: cycle.State) -> cycle.State:
    """A picture for every trajectory that waits for one."""
    return self._call(_picture_phase, state)

  def dictated_text(self, state: cycle.State, tokens: jax.Array) -> cycle.State:
    """Texts that the host gives. tokens: int32[B, T], as of `cycle.dictated_text`."""
    return self._call(_dictated_text, state, tokens)

  def denoise(self, state: cycle.State) -> jax.Array:
    """The part of the picture phase before the picture is decoded and read; the state is not donated."""
    return self._call(_denoise, state)

  def _call(self, phase: Callable[..., Any], x: Any, *more: Any) -> Any:
    with on_mesh(self.mesh):
      return phase(self.graphdef, self.params, x, self.sampler, self.spec, *more)


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
  """Programs are traced and run on the mesh; None: on one device."""
  return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


@jax.jit
def progress(state: cycle.State) -> dict[str, jax.Array]:
  """What the host follows a state by, in arrays that outlive it. Each int32[B]; `finite` bool[B]."""
  return {name: jnp.copy(getattr(state, name)) for name in ('status', 'stop', 'next_input', 'output_count', 'finite')}


@jax.jit
def last_pictures(state: cycle.State) -> jax.Array:
  """The picture that each trajectory painted last: uint8[B, H, W, 3]; meaningless before the first."""
  index = jnp.maximum(state.picture_count - 1, 0)
  return jnp.take_along_axis(state.pictures, index[:, None, None, None, None], axis=1)[:, 0]


def compiled_programs() -> int:
  """How many programs the phases have compiled so far in this process."""
  return sum(phase._cache_size() for phase in (_prefill, _decode_step, _text_phase, _dictated_text, _picture_phase))


def _compiled(phase: Callable[..., Any], *, donate: bool) -> Any:
  def run(
    graphdef: nnx.GraphDef, params: Any, x: Any, sampler: flow.SamplerParams, spec: cycle.SamplerSpec, *more: Any
  ) -> Any:
    out = phase(nnx.merge(graphdef, params), x, sampler, spec, *more)
    return _over_mesh(out) if isinstance(out, cycle.State) else out

  run.__name__ = phase.__name__  # Of the program in profiles.
  return jax.jit(run, static_argnames=('graphdef', 'spec'), donate_argnames='x' if donate else ())


def _over_mesh(state: cycle.State) -> cycle.State:
  """The state split in one way, whichever phase made it, so that the next phase compiles once."""
  heads = lambda x: mesh_lib.constrain(x, None, mesh_lib.ROWS, 'tensor')
  rows = lambda x: mesh_lib.constrain(x, mesh_lib.ROWS)
  tokens = jax.tree.map(rows, state.cache.tokens)
  cache = attention.KVCache(heads(state.cache.k), heads(state.cache.v), tokens)
  return jax.tree.map(rows, state.replace(cache=None)).replace(cache=cache)


# The state is donated where it changes, as the whole program changes its cache in place.
_prefill = _compiled(cycle.prefill, donate=False)
_decode_step = _compiled(cycle.decode_step, donate=True)
_text_phase = _compiled(cycle.text_phase, donate=True)
_dictated_text = _compiled(cycle.dictated_text, donate=True)
_picture_phase = _compiled(cycle.picture_phase, donate=True)
_denoise = _compiled(cycle.denoise, donate=False)
