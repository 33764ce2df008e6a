"""Attention implementations on packed rows: seconds and TFLOP/s forward and backward, and errors to float32.

TFLOP/s count the pairs that are visible, two products forward and five backward; what an implementation computes of the
others is its own loss.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdgen.benchmarks import clock, synthetic
from pdgen.benchmarks import sizes as sizes_lib
from pdgen.core import config as config_lib
from pdgen.core import masks, packed
from pdgen.models import attention

# (metadata, q, k, v) -> out, [B, T, N, H]. The metadata are an argument, or XLA would sort them as it compiles.
Attend = Callable[[packed.TokenMeta, jax.Array, jax.Array, jax.Array], jax.Array]


class _Inputs(NamedTuple):
  """A row, and random arrays to attend with."""

  tokens: packed.TokenMeta  # int32[1, T] a field.
  q: jax.Array  # [1, T, N, H]
  k: jax.Array  # [1, T, K, H]
  v: jax.Array  # [1, T, K, H]
  d_out: jax.Array  # [1, T, N, H]

  @property
  def seen(self) -> jax.Array:
    """bool[1, T, 1, 1]; what padding returns has no meaning."""
    return (self.tokens.segment > 0)[..., None, None]


def run(sizes: sizes_lib.Sizes) -> Iterator[dict[str, object]]:
  """Every implementation at every length; those that hold the whole matrix up to `reference_tokens`."""
  for length in sizes.row_tokens:
    tokens = synthetic.tokens_of(synthetic.row(synthetic.config(sizes, tokens=length)))
    pairs, short = synthetic.visible_pairs(tokens), length <= sizes.reference_tokens
    inputs = _random(tokens, sizes.model)
    exact = _exact(inputs) if short else None
    attends = {name: _ours(name) for name in sizes.attention if short or name != 'reference'}
    if jax.default_backend() == 'gpu':
      attends |= {'cudnn causal': _cudnn_causal} | ({'cudnn mask': _cudnn_mask} if short else {})
    for name, attend in attends.items():
      row: dict[str, object] = {'attention': name, 'tokens': length, 'visible': pairs / length**2}
      # A causal mask on the whole row is another task: its own pairs are counted, and nothing is compared.
      other = name == 'cudnn causal'
      counted = length * (length + 1) // 2 if other else pairs
      try:
        yield row | _measure(attend, inputs, counted, None if other else exact)
      except Exception as error:  # Of a library that does not take these shapes: the others are measured.
        yield row | {'error': f'{type(error).__name__}: {str(error)[:300]}'}


def _random(tokens: packed.TokenMeta, cfg: config_lib.ModelConfig) -> _Inputs:
  heads = (cfg.num_heads, cfg.num_kv_heads, cfg.num_kv_heads, cfg.num_heads)
  keys, length = jax.random.split(jax.random.key(0), len(heads)), tokens.order.shape[1]
  arrays = (
    jax.random.normal(key, (1, length, n, cfg.head_dim)).astype(cfg.dtype) for key, n in zip(keys, heads, strict=True)
  )
  return _Inputs(packed.TokenMeta(*map(jnp.asarray, tokens)), *arrays)


def _measure(attend: Attend, inputs: _Inputs, pairs: int, exact: Any) -> dict[str, object]:
  flops = 4 * inputs.q.shape[2] * inputs.q.shape[3] * pairs
  forward, both = jax.jit(attend), jax.jit(lambda inputs: _with_gradients(attend, inputs))
  once, twice = clock.timed(lambda: forward(*inputs[:4])), clock.timed(lambda: both(inputs))
  row: dict[str, object] = {
    'forward_seconds': once.median,
    'forward_tflops': flops / once.median / 1e12,
    'both_seconds': twice.median,
    'both_tflops': 3.5 * flops / twice.median / 1e12,
    'first_call': once.first + twice.first,
  }
  if exact is not None:
    names = ('error_out', 'error_q', 'error_k', 'error_v')
    row |= {n: _distance(got, want) for n, got, want in zip(names, both(inputs), exact, strict=True)}
  return row


def _with_gradients(attend: Attend, inputs: _Inputs) -> tuple[jax.Array, ...]:
  out, pull = jax.vjp(
    lambda q, k, v: jnp.where(inputs.seen, attend(inputs.tokens, q, k, v), 0), inputs.q, inputs.k, inputs.v
  )
  return out, *pull(inputs.d_out)


def _distance(got: jax.Array, want: jax.Array) -> float:
  """|got - want| / |want|, Euclidean."""
  exact = np.asarray(want, np.float64)
  return float(np.linalg.norm(np.asarray(got, np.float64) - exact) / np.linalg.norm(exact))


def _exact(inputs: _Inputs) -> tuple[jax.Array, ...]:
  """Output and gradients of the reference in float32."""
  single = _Inputs(inputs.tokens, *(x.astype(jnp.float32) for x in inputs[1:]))
  with jax.default_matmul_precision('highest'):
    return jax.device_get(jax.jit(lambda inputs: _with_gradients(_ours('reference'), inputs))(single))


def _ours(name: str) -> Attend:
  def attend(tokens: packed.TokenMeta, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return attention.attend(attention.prepare(name, tokens, tokens), q, k, v)

  return attend


def _cudnn_mask(tokens: packed.TokenMeta, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """cuDNN takes any mask as a bias of all pairs."""
  mask = masks.visible(tokens, tokens)[:, None]
  return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation='cudnn')


def _cudnn_causal(tokens: packed.TokenMeta, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  del tokens
  return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation='cudnn')
