"""Peak of matrix products and of memory: what the other figures are measured against."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from pdgen.benchmarks import clock, sizes


def run(sizes: sizes.Sizes) -> Iterator[dict[str, object]]:
  """TFLOP/s of square products of random numbers in the model's dtype, of an expert's MLP; GB/s of a copy."""
  dtype, cfg = jnp.dtype(sizes.model.dtype), sizes.model
  shapes = [(n, n, n) for n in sizes.matmul]
  tokens = sizes.row_tokens[-1] // 2
  shapes += [(tokens, cfg.width, cfg.mlp_dim), (tokens, cfg.mlp_dim, cfg.width)]
  multiply = jax.jit(jnp.matmul)
  for m, k, n in shapes:
    a, b = (jax.random.normal(jax.random.key(i), s).astype(dtype) for i, s in enumerate(((m, k), (k, n))))
    timing = clock.timed(lambda a=a, b=b: multiply(a, b))
    flops = 2 * m * k * n
    yield {'product': f'{m} x {k} x {n} {dtype.name}', 'tflops': flops / timing.median / 1e12, **timing.row()}
  x = jnp.ones((sizes.matmul[0] ** 2 * 8,), jnp.float32)
  copy = jax.jit(lambda x: x + 1)
  timing = clock.timed(lambda: copy(x))
  yield {'copy': f'{x.nbytes / 1e9:.3g} GB', 'gigabytes_a_second': 2 * x.nbytes / timing.median / 1e9, **timing.row()}
