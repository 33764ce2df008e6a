"""The Python API: load a checkpoint, sample prompts in one compiled call or as a stream of events.

    painter = pdgen.load('shapes')
    result = painter.sample(['a photo of a red ring and a blue square'], seed=1)
    result.trajectories[0].final

On several devices: `pdgen.load('shapes', mesh=mesh.make_mesh(config.MeshConfig(tensor=4)))`.
"""

import dataclasses
import functools
import math
import os
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import packed, trees
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import tokenizers
from pdgen.data.tokenizers import base
from pdgen.inference import dictation, encoding, learned_modes, memory, results, streaming
from pdgen.inference import phases as phases_lib
from pdgen.inference import requests as requests_lib
from pdgen.inference.requests import Prompt as Prompt
from pdgen.inference.requests import Size as Size
from pdgen.inference.results import Result as Result
from pdgen.models import interleaved, partition
from pdgen.models import params as params_lib
from pdgen.models import quantize as quantize_lib
from pdgen.sampling import cycle, flow, grammar
from pdgen.weights import loading

Sampling = config_lib.SamplingConfig | Sequence[config_lib.SamplingConfig]  # Of all prompts, or one for each.
# Trajectories of a batch when the caller does not say: enough to use the machine, small enough for any of them.
DEFAULT_BATCH = 32


def load(name_or_path: str | os.PathLike, *, mesh: Mesh | None = None, quantize: str | None = None) -> 'Painter':
  """Loads a model with its tokenizer.

  Args:
    name_or_path: a shipped checkpoint by name (`shapes`), an exported folder, or a training run's workdir (its newest
      average).
    mesh: devices to sample on, see `Painter.mesh`; `core.mesh.make_mesh(MeshConfig(tensor=4))` makes one.
    quantize: `int8` or `int4`, see `Painter.quantize`. Of an exported folder one matrix at a time is whole on a device.

  Raises: FileNotFoundError naming what is shipped; ValueError for a damaged folder or a mesh that does not fit.
  """
  config, params, tokenizer = loading.load_for_sampling(name_or_path, mesh=mesh, quantize=quantize)
  return Painter(config=config, params=params, tokenizer=tokenizers.load(tokenizer), mesh=mesh, quantize=quantize)


@dataclasses.dataclass(frozen=True)
class Painter:
  """A model with its tokenizer, ready to sample. `pdgen.load` makes one from a checkpoint."""

  config: config_lib.Config
  # Nested dict of arrays, as `nnx.merge(models.interleaved.graphdef(config.model), params)` takes it. With a mesh they
  # are put on it (`models.partition`), matrices in bfloat16 where the model computes in it.
  params: Any
  tokenizer: base.Tokenizer
  # Devices that share the work: rows of a batch over `data` and `fsdp`, weights over `fsdp` and `tensor`, and the heads
  # of the KV cache over `tensor` where it divides them. None: the device that the parameters are on.
  mesh: Mesh | None = None
  # `int8` or `int4`: large matrices are held so (`models.quantize`), a half or a quarter of the memory. None: as given.
  quantize: str | None = None

  def __post_init__(self):
    if self.tokenizer.vocab_size > self.config.model.vocab_size:
      raise ValueError(f'{self.tokenizer.vocab_size=} exceeds {self.config.model.vocab_size=}.')
    if self.mesh is not None:
      if self.mesh.shape['sequence'] > 1:
        raise ValueError(
          f'mesh.sequence={self.mesh.shape["sequence"]}: a row with a KV cache is not split. Set mesh.sequence=1 to '
          'sample, and use the devices for mesh.data, mesh.fsdp or mesh.tensor.'
        )
      object.__setattr__(self, 'params', _placed(self.params, self.config.model, self.mesh))
    if self.quantize is not None:
      small = quantize_lib.params(self.params, self.quantize)
      object.__setattr__(self, 'params', small if self.mesh is None else partition.put(small, self.mesh))

  @functools.cached_property
  def graphdef(self) -> nnx.GraphDef:
    return interleaved.sampling_graphdef(self.config.model)

  def sample(
    self,
    prompts: Prompt | Sequence[Prompt],
    *,
    mode: str | Sequence[str] | None = None,
    seed: int | np.integer | Sequence[int] = 0,
    sampling: Sampling | None = None,
    batch_size: int | None = None,
    pictures: int | None = None,
    size: Size | Sequence[Size | None] | None = None,
    inspector: dictation.Inspector | None = None,
  ) -> Result:
    """Paints, or answers, every prompt.

    Args:
      prompts: one or many. A prompt is a text, a picture (uint8[H, W, 3], an image of Pillow, a `pathlib.Path`), a
        sequence of both in any order, or a partial trajectory to go on from: a person may have edited a plan, a picture
        or a `<refine>`. A sequence that holds a picture is one prompt, any other is many. Pictures may have any size;
        the model paints its own.
      mode: a row of `core.modes`, of all or one for each prompt: `process` (plan, sketch, inspect, refine), `direct`
        (one picture, no words), `edit`, `answer`, `think`, `think_answer`, `free`. Partial trajectories that have steps
        keep their own. None: `process`, their own for trajectories.
      seed: of the first prompt; the next ones take the next numbers, so that any of them can be had again alone. Or
        one for each prompt.
      sampling: of all, or one for each prompt; by default the config's own. What may differ within a batch is
        `flow.PER_TRAJECTORY`; prompts that differ in more are painted in batches of their own.
      batch_size: trajectories a compiled call; by default all, at most 32. The last batch is filled up with idle rows,
        and with a mesh every batch to a multiple of its rows of devices.
      pictures: at most so many more pictures for each; by default sampling.max_pictures in all.
      size: (height, width) of the pictures that are painted, of all or one for each prompt: multiples of the codec's
        patch within the position table. None: the model's own, in `edit` and `think` that of the last given picture.
        Each size is a batch and a program of its own.
      inspector: writes the inspections where sampling.inspection is `dictated` (`inference.dictation`).

    Raises: ValueError for an unknown mode, no prompts, seeds that do not fit, caps that leave no room, or pictures that
      do not fit the model.
    """
    parts = self.sample_batches(
      prompts,
      mode=mode,
      seed=seed,
      sampling=sampling,
      batch_size=batch_size,
      pictures=pictures,
      size=size,
      inspector=inspector,
    )
    return results.join(parts)

  def answer(
    self,
    prompts: Prompt | Sequence[Prompt],
    *,
    think: bool = False,
    seed: int | np.integer | Sequence[int] = 0,
    sampling: Sampling | None = None,
    batch_size: int | None = None,
  ) -> str | list[str]:
    """Answers questions about pictures: `painter.answer([picture, 'how many dogs?'])`.

    Args:
      prompts: one or many, as of `sample`.
      think: reason in `<think>` tags first, which are part of the answer (BAGEL).
      seed: as of `sample`; it counts where sampling.temperature is above 0.
      sampling: as of `sample`.
      batch_size: as of `sample`.

    Returns: the answer of one prompt, or a list with that of each of many.

    Raises: as `sample`.
    """
    mode = 'think_answer' if think else trajectory_lib.ANSWER
    result = self.sample(prompts, mode=mode, seed=seed, sampling=sampling, batch_size=batch_size)
    answers = [' '.join(trajectory.texts) for trajectory in result.trajectories]
    return answers[0] if requests_lib.is_one(prompts) else answers

  def sample_batches(
    self,
    prompts: Prompt | Sequence[Prompt],
    *,
    mode: str | Sequence[str] | None = None,
    seed: int | np.integer | Sequence[int] = 0,
    sampling: Sampling | None = None,
    batch_size: int | None = None,
    pictures: int | None = None,
    size: Size | Sequence[Size | None] | None = None,
    inspector: dictation.Inspector | None = None,
  ) -> Iterator[tuple[list[int], Result]]:
    """As `sample`, a batch at a time, so that what is painted can be kept: numbers of the prompts, and their results.

    Arguments and errors as of `sample`, at the call.
    """
    requests = self._requests(prompts, sampling, inspector, size, mode=mode, seed=seed, pictures=pictures)
    batches = list(self._batches(requests, batch_size))
    requests_lib.check(requests)
    for numbers, rows, shape in batches:
      self._check_fits([requests[i] for i in numbers], prefix=shape.row_budget, rows=rows)

    def paint() -> Iterator[tuple[list[int], Result]]:
      for numbers, rows, shape in batches:
        began, compiled = time.perf_counter(), _compiled_programs()
        chosen = [requests[i] for i in numbers]
        if inspector is None:
          state = self.run(chosen, batch_size=rows, shape=shape)
        else:
          batch = self.sample_batch(chosen, batch_size=rows, shape=shape)
          state = dictation.run(self._phases(chosen, rows), batch, chosen, self.tokenizer, inspector)
        host = jax.device_get({name: getattr(state, name) for name in results.FETCHED})
        more = {'seconds': time.perf_counter() - began, 'compile_calls': int(_compiled_programs() > compiled)}
        yield numbers, results.of_batch([r.start for r in chosen], host, self.tokenizer, timings=more)

    return paint()

  def stream(
    self,
    prompts: Prompt | Sequence[Prompt],
    *,
    mode: str | Sequence[str] | None = None,
    seed: int | np.integer | Sequence[int] = 0,
    sampling: Sampling | None = None,
    batch_size: int | None = None,
    pictures: int | None = None,
    size: Size | Sequence[Size | None] | None = None,
  ) -> Generator[streaming.Event, None, None]:
    """Paints all prompts as one batch and tells what happens as it happens (`inference.streaming`).

    Texts and pictures are those of `sample` with the same arguments. It may be closed at any time.

    Args:
      prompts: as of `sample`.
      mode: as of `sample`.
      seed: as of `sample`.
      sampling: as of `sample`.
      batch_size: rows of the batch; a program is compiled for each size. None: one for each prompt.
      pictures: as of `sample`.
      size: as of `sample`; one for all.

    Raises: as `sample`, at the call.
    """
    requests = self._requests(prompts, sampling, None, size, mode=mode, seed=seed, pictures=pictures)
    shape = requests_lib.prefix_shape(requests, config=self.config, tokenizer=self.tokenizer)
    requests_lib.check(requests)
    rows = self._rows(batch_size, len(requests))
    self._check_fits(requests, prefix=shape.row_budget, rows=rows)
    batch = self.sample_batch(requests, batch_size=rows, shape=shape)
    return streaming.events(self._phases(requests, rows), batch, requests, self.tokenizer)

  def run(
    self,
    requests: Sequence[requests_lib.Request],
    *,
    batch_size: int | None = None,
    shape: requests_lib.PrefixShape | None = None,
  ) -> cycle.State:
    """One compiled call; the final state of the loop, still on the device. Arguments as of `sample_batch`."""
    batch = self.sample_batch(requests, batch_size=batch_size, shape=shape)
    phases = self._phases(requests, batch.key.shape[0])
    with phases_lib.on_mesh(self.mesh):
      return cycle.run(self.graphdef, self.params, batch, phases.sampler, phases.spec)

  def phases(self, sampling: config_lib.SamplingConfig) -> phases_lib.Phases:
    """The parts of that call, compiled one by one."""
    return self._phases_of(flow.SamplerParams.of(sampling), self.spec(sampling))

  def _phases(self, requests: Sequence[requests_lib.Request], rows: int) -> phases_lib.Phases:
    """The same for a batch of requests."""
    spec = self.spec(requests_lib.joint(requests), requests_lib.painted_size(requests))
    return self._phases_of(requests_lib.sampler_params(requests, rows), spec)

  def _phases_of(self, sampler: flow.SamplerParams, spec: cycle.SamplerSpec) -> phases_lib.Phases:
    return phases_lib.Phases(graphdef=self.graphdef, params=self.params, sampler=sampler, spec=spec, mesh=self.mesh)

  def check(self, sampling: config_lib.SamplingConfig):
    """Raises ValueError when the caps leave no room for one round, or do not fit the memory of the device."""
    if sampling.max_text_tokens < grammar.SHORTEST:
      raise ValueError(f'{sampling.max_text_tokens=} leaves no room: the tags of a plan alone take {grammar.SHORTEST}.')
    self._check_room(sampling, prefix=packed.RowBudget(1, 0, 0), rows=1)

  def spec(self, sampling: config_lib.SamplingConfig, size: Size | None = None) -> cycle.SamplerSpec:
    """What of the sampling config and the size of pictures shapes the compiled program, with this painter's tokens."""
    return cycle.SamplerSpec.of(sampling, self.tokenizer.specials, self.tokenizer.vocab_size, size)

  def _requests(
    self,
    prompts: Prompt | Sequence[Prompt],
    sampling: Sampling | None,
    inspector: dictation.Inspector | None,
    size: Size | Sequence[Size | None] | None,
    **options: Any,
  ) -> list[requests_lib.Request]:
    """Checked requests; warns of modes that the model has not learned."""
    made = requests_lib.make(prompts, sampling=sampling or self.config.sampling, **options)
    for own in {request.sampling for request in made}:
      self.check(own)
      dictation.check(own, inspector)
    learned_modes.warn(self.config.data, {request.start.mode for request in made})
    return requests_lib.sized(made, size, self.config.model)

  def sample_batch(
    self,
    requests: Sequence[requests_lib.Request],
    *,
    batch_size: int | None = None,
    shape: requests_lib.PrefixShape | None = None,
  ) -> cycle.SampleBatch:
    """Requests as one batch on the device or the mesh. Arguments as of `requests.sample_batch`."""
    size = self._rows(batch_size, len(requests))
    with phases_lib.on_mesh(self.mesh):
      batch = requests_lib.sample_batch(
        requests, config=self.config, tokenizer=self.tokenizer, encode=self._encode, batch_size=size, shape=shape
      )
    if self.mesh is None:
      return batch
    return jax.device_put(batch, NamedSharding(self.mesh, P(mesh_lib.ROWS)))

  def _batches(
    self, requests: Sequence[requests_lib.Request], batch_size: int | None
  ) -> Iterator[tuple[list[int], int, requests_lib.PrefixShape]]:
    """(numbers of the requests, rows, shape) of each batch. Those that are sampled by one program, paint one size, and
    have pictures of the model's own size alone in their prefixes, or not, share a shape, and so a program.
    """
    groups: dict[Any, list[int]] = {}
    for i, request in enumerate(requests):
      own = requests_lib.any_size(request.start, self.config.model)
      kind = requests_lib.program_of(request.sampling), request.size, own
      groups.setdefault(kind, []).append(i)
    for group in groups.values():
      shape = requests_lib.prefix_shape([requests[i] for i in group], config=self.config, tokenizer=self.tokenizer)
      size = self._rows(batch_size, min(len(group), DEFAULT_BATCH))
      for first in range(0, len(group), size):
        yield group[first : first + size], size, shape

  def _encode(self, picture: np.ndarray) -> np.ndarray:
    return np.asarray(encoding.encode(self.graphdef, self.params, picture))

  def _rows(self, batch_size: int | None, default: int) -> int:
    """The batch size, rounded up to what the mesh divides. Raises: ValueError for a size below 1."""
    batch_size = default if batch_size is None else batch_size
    if batch_size < 1:
      raise ValueError(f'{batch_size=}: a batch holds at least 1 trajectory.')
    ways = self._row_ways
    return -(-batch_size // ways) * ways

  @property
  def _row_ways(self) -> int:
    """Devices that share the rows of a batch."""
    return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in mesh_lib.ROWS)

  @functools.cached_property
  def _memory(self) -> tuple[int, int | None]:
    """Bytes on a device: of the weights, and of all that it has (None: not known)."""
    return memory.of_weights(self.params), memory.limit(self.params)

  def _check_fits(self, requests: Sequence[requests_lib.Request], *, prefix: packed.RowBudget, rows: int):
    """Raises ValueError for a batch with caps that leave no room, or that does not fit the device."""
    size = requests_lib.painted_size(requests)
    self._check_room(requests_lib.joint(requests), prefix=prefix, rows=rows, size=size)

  def _check_room(
    self, sampling: config_lib.SamplingConfig, *, prefix: packed.RowBudget, rows: int, size: Size | None = None
  ):
    worst = cycle.max_tokens_per_round(self.config.model, sampling, size)
    if sampling.max_tokens < worst:
      raise ValueError(f'{sampling.max_tokens=} leaves no room: a plan, an inspection and a picture may take {worst}.')
    weights, limit = self._memory
    rows = -(-rows // self._row_ways)
    split = 1 if self.mesh is None else self.mesh.shape['tensor']
    model, limit = self.config.model, 2**63 if limit is None else limit
    needed = memory.required(model, sampling, prefix=prefix, rows=rows, heads_split=split, size=size)
    memory.check(needed, weights=weights, rows=rows, prefix=prefix, max_tokens=sampling.max_tokens, limit=limit)


def _compiled_programs() -> int:
  run: Any = cycle.run  # Its type does not tell of the cache.
  return run._cache_size() + phases_lib.compiled_programs()


def _placed(params: Any, cfg: config_lib.ModelConfig, mesh: Mesh) -> Any:
  """The parameters on the mesh, matrices in the compute dtype where that is bfloat16 (as `pdgen.compile` lowers them).

  Raises: ValueError where the mesh does not divide a parameter.
  """
  shardings = dict(trees.flatten_with_paths(partition.shardings(params, mesh)))
  half = jnp.dtype(cfg.dtype) == jnp.bfloat16

  def place(name: str, leaf: Any) -> jax.Array:
    dtype = jnp.bfloat16 if half and params_lib.is_matrix(name) else leaf.dtype
    return jax.device_put(leaf.astype(dtype), shardings[name])

  return trees.map_with_path(place, params)
