"""The Python API: load a checkpoint, sample prompts in one compiled call or as a stream of events.

    painter = pdgen.load('shapes')
    result = painter.sample(['a photo of a red ring and a blue square'], seed=1)
    result.trajectories[0].final

On several devices: `pdgen.load('shapes', mesh=mesh.make_mesh(config.MeshConfig(tensor=4)))`.
"""

import dataclasses
import functools
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
from pdgen.core import modes as modes_lib
from pdgen.core import packed, trees
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import tokenizers
from pdgen.data.tokenizers import base
from pdgen.inference import calls, dictation, encoding, learned_modes, results, rounds, streaming
from pdgen.inference import phases as phases_lib
from pdgen.inference import requests as requests_lib
from pdgen.inference import sizes as sizes_lib
from pdgen.inference.requests import Prompt as Prompt
from pdgen.inference.requests import Size as Size
from pdgen.inference.results import Result as Result
from pdgen.models import interleaved, partition
from pdgen.models import params as params_lib
from pdgen.models import quantize as quantize_lib
from pdgen.sampling import cycle, flow, grammar, lanes, stop_texts
from pdgen.weights import loading

Sampling = config_lib.SamplingConfig | Sequence[config_lib.SamplingConfig]  # Of all prompts, or one for each.


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
        (one picture, no words), `edit`, `answer`, `think`, `think_answer`, `free`; those with a protocol
        (`core.protocols`), `umm_reflection`, `thinkmorph`, `zebra_cot`. Partial trajectories that have steps keep their
        own. None: `process`, their own for trajectories.
      seed: of the first prompt; the next ones take the next numbers, so that any of them can be had again alone. Or
        one for each prompt.
      sampling: of all, or one for each prompt; by default the config's own. What may differ within a batch is
        `flow.PER_TRAJECTORY` and `stop_texts`; prompts that differ in more are painted in batches of their own.
      batch_size: trajectories side by side; by default all, at most 32. From 4 on, on one device, a row that has ended
        takes the next prompt (`sampling.lanes`): a compiled call takes four times as many prompts, if there are. Else
        it goes on to the last end. A call is filled up with idle rows, and with a mesh to a multiple of its rows of
        devices.
      pictures: at most so many more pictures for each; by default sampling.max_pictures in all.
      size: (height, width) of the pictures that are painted, of all or one for each prompt: multiples of the codec's
        patch within the position table. None: the model's own, in `edit` and `think` that of the last given picture.
        Sizes that are not too unlike share a batch and a program (`inference.sizes`).
      inspector: writes the inspections, or the texts of a mode with a protocol, where sampling.inspection is `dictated`
        (`inference.dictation`).

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
    return self._sample_requests(requests, batch_size, inspector)

  def _sample_requests(
    self, requests: Sequence[requests_lib.Request], batch_size: int | None, inspector: dictation.Inspector | None
  ) -> Iterator[tuple[list[int], Result]]:
    """The same of requests."""
    batches = list(self._calls.split(requests, batch_size, refill=inspector is None))
    requests_lib.check(requests)
    rounds.check(requests, self.tokenizer)
    for batch in batches:
      if not modes_lib.of(requests[batch.numbers[0]].start.mode).protocol:  # Each call of those is checked by itself.
        self._calls.check_fits(
          [requests[i] for i in batch.numbers], shape=batch.shape, rows=batch.rows, plan=batch.plan
        )

    def paint() -> Iterator[tuple[list[int], Result]]:
      for batch in batches:
        began, compiled = time.perf_counter(), _compiled_programs()
        chosen = [requests[i] for i in batch.numbers]
        if modes_lib.of(chosen[0].start.mode).protocol:
          call = lambda calls, rows=batch.rows: results.join(self._sample_requests(calls, rows, None))
          yield batch.numbers, rounds.run(chosen, call, self.config.model, self.tokenizer, inspector)
          continue
        if inspector is None:
          out = self.run(chosen, batch_size=batch.rows, shape=batch.shape, plan=batch.plan)
        else:
          made = self.sample_batch(chosen, batch_size=batch.rows, shape=batch.shape)
          out = dictation.run(self._phases(chosen, batch.rows, batch.shape), made, chosen, self.tokenizer, inspector)
        host = jax.device_get({name: getattr(out, name) for name in results.FETCHED})
        more = {'seconds': time.perf_counter() - began, 'compile_calls': int(_compiled_programs() > compiled)}
        # Rows that the phases were computed for, whether they took part or not.
        text_rows, paint_rows = (batch.rows, batch.rows) if batch.plan is None else batch.plan[:2]
        more |= {'text_rows': text_rows * int(host['text_steps']), 'picture_rows': paint_rows * int(host['rounds'])}
        yield batch.numbers, results.of_batch(chosen, host, self.tokenizer, timings=more)

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
      size: as of `sample`, but a canvas holds whatever sizes there are.

    Raises: as `sample`, at the call.
    """
    requests = self._requests(prompts, sampling, None, size, mode=mode, seed=seed, pictures=pictures)
    requests_lib.check_streams(requests)
    shape = self._calls.shape(requests)
    requests_lib.check(requests)
    rows = self._calls.rows(batch_size, len(requests))
    self._calls.check_fits(requests, shape=shape, rows=rows)
    batch = self.sample_batch(requests, batch_size=rows, shape=shape)
    return streaming.events(self._phases(requests, rows, shape), batch, requests, self.tokenizer)

  def run(
    self,
    requests: Sequence[requests_lib.Request],
    *,
    batch_size: int | None = None,
    shape: requests_lib.BatchShape | None = None,
    plan: lanes.Plan | None = None,
  ) -> cycle.State | lanes.Output:
    """One compiled call; the final state of the loop, still on the device.

    Args:
      requests: what to sample.
      batch_size: rows, as of `sample_batch`; with a plan, of the queue.
      shape: as of `sample_batch`.
      plan: lanes that work off the requests; None: each has a row of its own, until the last one has ended.
    """
    shape = shape or self._calls.shape(requests)
    batch = self.sample_batch(requests, batch_size=batch_size, shape=shape)
    phases = self._phases(requests, batch.key.shape[0], shape)
    if plan is not None:
      queue = lanes.Queue(batch, jnp.int32(len(requests)), phases.sampler)
      return lanes.run(self.graphdef, self.params, queue, phases.spec, plan)
    with phases_lib.on_mesh(self.mesh):
      return cycle.run(self.graphdef, self.params, batch, phases.sampler, phases.spec)

  @functools.cached_property
  def _calls(self) -> calls.Planner:
    return calls.Planner(self.config, self.params, self.tokenizer, self.mesh)

  def phases(self, sampling: config_lib.SamplingConfig) -> phases_lib.Phases:
    """The parts of that call, compiled one by one, of a batch whose requests all have this config."""
    sampler = flow.SamplerParams.of(sampling)
    if sampling.stop_texts:
      sampler = sampler.replace(stops=stop_texts.StopTexts.of([sampling.stop_texts], self.tokenizer.pieces))
    return self._phases_of(sampler, self.spec(sampling))

  def _phases(
    self, requests: Sequence[requests_lib.Request], rows: int, shape: requests_lib.BatchShape
  ) -> phases_lib.Phases:
    """The same for a batch of requests."""
    sampler = requests_lib.sampler_params(requests, rows, shape=shape, tokenizer=self.tokenizer)
    return self._phases_of(sampler, self.spec(shape.sampling, shape.canvas))

  def _phases_of(self, sampler: flow.SamplerParams, spec: cycle.SamplerSpec) -> phases_lib.Phases:
    return phases_lib.Phases(graphdef=self.graphdef, params=self.params, sampler=sampler, spec=spec, mesh=self.mesh)

  def check(self, sampling: config_lib.SamplingConfig):
    """Raises ValueError when the caps leave no room for one round, or do not fit the memory of the device."""
    if sampling.max_text_tokens < grammar.SHORTEST:
      raise ValueError(f'{sampling.max_text_tokens=} leaves no room: the tags of a plan alone take {grammar.SHORTEST}.')
    self._calls.check_room(requests_lib.BatchShape(packed.RowBudget(1, 0, 0), sampling), rows=1, sizes=[None])

  def spec(
    self, sampling: config_lib.SamplingConfig, canvas: sizes_lib.Canvas = sizes_lib.Canvas()
  ) -> cycle.SamplerSpec:
    """What of the sampling config and the sizes of pictures shapes the compiled program, with this painter's tokens."""
    return cycle.SamplerSpec.of(sampling, self.tokenizer.specials, self.tokenizer.vocab_size, *canvas)

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
    shape: requests_lib.BatchShape | None = None,
  ) -> cycle.SampleBatch:
    """Requests as one batch on the device or the mesh. Arguments as of `requests.sample_batch`."""
    size = self._calls.rows(batch_size, len(requests))
    with phases_lib.on_mesh(self.mesh):
      batch = requests_lib.sample_batch(
        requests, config=self.config, tokenizer=self.tokenizer, encode=self._encode, batch_size=size, shape=shape
      )
    if self.mesh is None:
      return batch
    return jax.device_put(batch, NamedSharding(self.mesh, P(mesh_lib.ROWS)))

  def _encode(self, picture: np.ndarray) -> np.ndarray:
    return np.asarray(encoding.encode(self.graphdef, self.params, picture))


def _compiled_programs() -> int:
  programs: Any = cycle.run, lanes.run  # Their types do not tell of the cache.
  return sum(run._cache_size() for run in programs) + phases_lib.compiled_programs()


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
