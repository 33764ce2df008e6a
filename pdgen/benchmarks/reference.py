"""The tasks that BAGEL's public PyTorch code was timed on, at any size: a train step, a painting, an answer.

`--size=bagel_59m` has the sizes of that measurement (59M parameters, float32, two cores of a CPU), so that its seconds
can be set beside these: four samples of a given picture, a text and a picture to paint, forward and backward without
optimizer and without encoding; 20 Euler steps with both guidances after a given picture and a text; a greedy answer.
Every row has its share of the peak of matrix products at the same shapes, measured in the same run.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pdgen import testing
from pdgen.benchmarks import clock, flow, synthetic, train
from pdgen.benchmarks import sizes as sizes_lib
from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.cost import training_flops
from pdgen.data import items, packing
from pdgen.inference import painter as painter_lib
from pdgen.inference import phases as phases_lib
from pdgen.inference import requests as requests_lib
from pdgen.models import interleaved, presets
from pdgen.sampling import cycle
from pdgen.training import losses

SAMPLES, READ, WRITTEN = 4, 38, 66  # Of the train step: samples, ids of the text without loss, of the one with loss.
PROMPT, ANSWER = 62, 64  # Ids of a prompt's text; tokens of an answer.
STEPS, SHIFT, TEXT_GUIDANCE, PICTURE_GUIDANCE = 20, 3.0, 4.0, 2.0


def run(sizes: sizes_lib.Sizes) -> Iterator[dict[str, object]]:
  """Rows of the peak, the train step, the painting, and of answers at several batch sizes."""
  peak = _peak(sizes.model)
  yield peak
  share = functools.partial(_share, peak['tflops'])
  yield _train(sizes, share)
  params = synthetic.random_params(sizes.model)
  yield _flow(sizes.model, params, share)
  for size in sizes.batch_sizes:
    yield _text(sizes.model, params, size)


def _peak(cfg: config_lib.ModelConfig) -> dict[str, Any]:
  """The fastest of an expert's products, forward, over the tokens of the train step."""
  tokens, dtype = SAMPLES * cfg.latent_tokens, jnp.dtype(cfg.dtype)
  multiply = jax.jit(jnp.matmul)
  best = None
  for m, k, n in ((tokens, cfg.width, cfg.mlp_dim), (tokens, cfg.mlp_dim, cfg.width)):
    a, b = (jax.random.normal(jax.random.key(i), s).astype(dtype) for i, s in enumerate(((m, k), (k, n))))
    timing = clock.timed(lambda a=a, b=b: multiply(a, b))
    row = {'task': f'{m} x {k} x {n} {dtype.name}', 'tflops': 2 * m * k * n / timing.median / 1e12, **timing.row()}
    best = row if best is None or row['tflops'] > best['tflops'] else best
  assert best is not None
  return best


def _share(peak: float, flops: float, seconds: float) -> dict[str, float]:
  return {'flops': flops, 'tflops': flops / seconds / 1e12, 'of_peak': flops / seconds / 1e12 / peak}


def row(cfg: config_lib.ModelConfig) -> packed.PackedBatch:
  """The row of the train step: samples of a picture that the ViT sees, two texts, and a picture to paint."""
  assert cfg.vit is not None
  rng, side = np.random.default_rng(0), cfg.image_size
  picture = lambda size: rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
  ids = lambda count: tuple(rng.integers(0, 128, count).tolist())
  samples = [
    items.build(
      [
        items.Patches(pixels=picture(cfg.vit_size)),
        items.Text(ids=ids(READ)),
        items.Text(ids=ids(WRITTEN), weights=1.0),
        items.Latents(pixels=picture(side), learned=True),
      ],
      specials=testing.Letters().specials,
      model=cfg,
      sequence=config_lib.SequenceConfig(),
      canvas=(side, side) if cfg.vit_size <= side else (cfg.vit_size, cfg.vit_size),
    )
    for _ in range(SAMPLES)
  ]
  budget = packed.RowBudget(*(sum(part) for part in zip(*map(packing.sizes, samples), strict=True)))
  return packed.map_fields(lambda _, x: x[None], packing.pack_row(samples, budget))


def _train(sizes: sizes_lib.Sizes, share: Any) -> dict[str, object]:
  cfg = sizes.model
  batch = row(cfg)
  tokens = synthetic.tokens_of(batch)
  und, gen = batch.und.label.shape[1], batch.gen.patch.shape[1]
  vit = 0 if batch.vit is None else batch.vit.image.shape[1]
  data = config_lib.DataConfig(batch_size=1, und_tokens=und, gen_tokens=gen, pictures=SAMPLES, vit_tokens=vit)
  config = config_lib.Config(name='benchmark', model=cfg, data=data)
  rng = np.random.default_rng(0)
  clean, noise = rng.normal(size=(2, 1, gen, cfg.codec.channels)).astype(np.float32)
  graphdef = interleaved.graphdef(cfg)

  def loss(learned: Any, codec: Any, *arrays: Any) -> jax.Array:
    batch, clean, noise, t = arrays
    model = nnx.merge(graphdef, {**learned, **codec})
    return losses.noised_loss(model, batch, clean=clean, noise=noise, t=t, config=config)[0]

  params = synthetic.random_params(cfg)
  codec = {name: params[name] for name in params if name == 'codec'}
  learned = {name: params[name] for name in params if name not in codec}
  arrays = jax.device_put((batch, clean, noise, np.full((1, gen), 0.5, np.float32)))
  gradients = jax.jit(jax.value_and_grad(loss))
  timing = clock.timed(lambda: gradients(learned, codec, *arrays), repeats=5, at_least=0.0)
  flops = train.model_flops(config, synthetic.visible_pairs(tokens)) - training_flops.train_flops(config)['vae']
  task = f'train, forward and backward of {int((tokens.segment > 0).sum())} tokens'
  return {'task': task, **timing.row(), **share(flops, timing.median)}


def _start(
  cfg: config_lib.ModelConfig, params: Any, sampling: config_lib.SamplingConfig, mode: str, *, batch_size: int
) -> tuple[phases_lib.Phases, cycle.State]:
  """The phases, and the state after prompts of a picture and a text."""
  config = config_lib.Config(name='benchmark', model=cfg, sampling=sampling)
  painter = painter_lib.Painter(config=config, params=params, tokenizer=testing.Letters())
  picture = np.random.default_rng(1).integers(0, 256, (*cfg.own_size, 3), dtype=np.uint8)
  requests = requests_lib.make([[picture, 'a' * PROMPT]] * batch_size, sampling=sampling, mode=mode)
  phases = painter.phases(sampling)
  return phases, phases.prefill(painter.sample_batch(requests))


def _flow(cfg: config_lib.ModelConfig, params: Any, share: Any) -> dict[str, object]:
  sampling = dataclasses.replace(
    presets.bagel_sampling(cfg, pictures=1),
    flow_steps=STEPS,
    timestep_shift=SHIFT,
    text_guidance=TEXT_GUIDANCE,
    image_guidance=PICTURE_GUIDANCE,
    guidance_interval=(0.0, 1.0),
  )
  phases, state = _start(cfg, params, sampling, 'edit', batch_size=1)
  timing = clock.timed(lambda: phases.denoise(state), repeats=3, at_least=0.0)
  text, latents, pictures = PROMPT + 2, cfg.latent_tokens, cfg.picture_tokens
  # What each branch sees of the context: all of it, the picture alone, the text alone.
  flops = sum(flow.step_flops(cfg, context) for context in (text + pictures, pictures, text))
  task = f'flow, {STEPS} steps of {latents} latents, both guidances'
  return {'task': task, **timing.row(), **share(STEPS * flops, timing.median)}


def _text(cfg: config_lib.ModelConfig, params: Any, batch_size: int) -> dict[str, object]:
  """Random weights may end their texts early: seconds are of a step."""
  sampling = dataclasses.replace(presets.bagel_sampling(cfg, pictures=1), max_text_tokens=ANSWER, text_guidance=1.0)

  def once() -> tuple[float, int]:
    phases, state = _start(cfg, params, sampling, 'answer', batch_size=batch_size)
    jax.block_until_ready(state.status)
    began = time.perf_counter()
    steps = int(phases.text_phase(state).text_steps)  # Waits. The state is donated.
    return time.perf_counter() - began, steps

  (first, _), *runs = [once() for _ in range(4)]
  step = sorted(seconds / steps for seconds, steps in runs)
  return {
    'task': f'text, batch {batch_size}',
    'seconds': step[1],
    'least': step[0],
    'most': step[-1],
    'first_call': first,
    'tokens_a_second': batch_size / step[1],
    'steps': runs[0][1],
  }
