"""The mixture of transformers: two experts, each a dense stack over its own stream; only attention joins them.

und tokens (text, boundaries, ViT) and gen tokens (latents) never share a matmul, so no token is gathered and none is
computed twice (BAGEL routes by index into one sequence; the results are the same).
"""

import re
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import packed
from pdgen.models import attention, layers, partition, remat

_Value = TypeVar('_Value')
Angles = tuple[jax.Array, jax.Array]  # cos and sin, f32[B, T, H // 2] each


class PerExpert(NamedTuple, Generic[_Value]):
  """One value for each expert's stream: an array, or a tuple of arrays."""

  und: _Value  # [B, U, ...]
  gen: _Value  # [B, G, ...]


def concat_streams(und: jax.Array, gen: jax.Array) -> jax.Array:
  """[B, U, ...] and [B, G, ...] to [B, U + G, ...]: und tokens first.

  Where the mesh splits rows, und tokens first in each part: a part then stays on the device that holds it. Attention
  goes by metadata, so that the order of tokens does not matter to it.
  """
  n = mesh_lib.axis_size('sequence')
  if n == 1:
    return jnp.concatenate([und, gen], axis=1)
  parts = [x.reshape(x.shape[0], n, x.shape[1] // n, *x.shape[2:]) for x in (und, gen)]
  return jnp.concatenate(parts, axis=2).reshape(und.shape[0], -1, *und.shape[2:])


def split_streams(x: jax.Array, und_tokens: int) -> PerExpert[jax.Array]:
  """Inverse of `concat_streams`."""
  n = mesh_lib.axis_size('sequence')
  parts = x.reshape(x.shape[0], n, x.shape[1] // n, *x.shape[2:])
  cut = und_tokens // n
  und, gen = (p.reshape(x.shape[0], -1, *x.shape[2:]) for p in (parts[:, :, :cut], parts[:, :, cut:]))
  return PerExpert(und, gen)


class Expert(nnx.Module):
  """One expert's weights in one layer: pre-norm attention projections and a SwiGLU MLP (Qwen2)."""

  def __init__(self, cfg: config_lib.ModelConfig, name: str, *, rngs: nnx.Rngs):
    """name: `und` or `gen`."""
    # Residual branches start small, so that depth does not grow the residual stream at initialisation.
    out_init = nnx.initializers.variance_scaling(0.5 / cfg.depth, 'fan_in', 'truncated_normal')
    inner, kv = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim

    def linear(matrix: str, in_dim: int, out_dim: int, **options: Any) -> layers.Linear:
      lora = cfg.lora if cfg.lora and re.fullmatch(cfg.lora.kernels, f'{name}/{matrix}') else None
      return layers.Linear(in_dim, out_dim, lora=lora, dtype=jnp.dtype(cfg.dtype), rngs=rngs, **options)

    self.attention_norm = layers.RMSNorm(cfg.width, eps=cfg.norm_eps)
    self.q = linear('q', cfg.width, inner, bias=cfg.qkv_bias)
    self.k = linear('k', cfg.width, kv, bias=cfg.qkv_bias)
    self.v = linear('v', cfg.width, kv, bias=cfg.qkv_bias)
    self.o = linear('o', inner, cfg.width, bias=False, init=out_init)
    self.q_norm = layers.RMSNorm(cfg.head_dim, eps=cfg.norm_eps)
    self.k_norm = layers.RMSNorm(cfg.head_dim, eps=cfg.norm_eps)
    self.mlp_norm = layers.RMSNorm(cfg.width, eps=cfg.norm_eps)
    self.gate = linear('gate', cfg.width, cfg.mlp_dim, bias=False)
    self.up = linear('up', cfg.width, cfg.mlp_dim, bias=False)
    self.down = linear('down', cfg.mlp_dim, cfg.width, bias=False, init=out_init)
    self.head_dim = cfg.head_dim

  def qkv(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x: [B, T, D]; cos, sin: f32[B, T, H/2]. Returns q [B, T, N, H], k and v [B, T, K, H]; q, k normed and rotated."""
    x = self.attention_norm(x)
    q, k, v = (p(x).reshape(*x.shape[:2], -1, self.head_dim) for p in (self.q, self.k, self.v))
    return layers.apply_rope(self.q_norm(q), cos, sin), layers.apply_rope(self.k_norm(k), cos, sin), v

  def output_and_mlp(self, x: jax.Array, attended: jax.Array) -> jax.Array:
    """Adds the attention output [B, T, N, H] to the residual stream x [B, T, D], then the MLP."""
    x = x + self.o(attended.reshape(*x.shape[:2], -1))
    h = self.mlp_norm(x)
    return x + self.down(jax.nn.silu(self.gate(h)) * self.up(h))


class Layer(nnx.Module):
  """One layer: an und expert, a gen expert, one attention over both streams (and over what came before)."""

  def __init__(self, cfg: config_lib.ModelConfig, *, rngs: nnx.Rngs):
    self.und = Expert(cfg, 'und', rngs=rngs)
    self.gen = Expert(cfg, 'gen', rngs=rngs)

  def __call__(
    self,
    x: PerExpert[jax.Array],
    rope: PerExpert[Angles],
    mask: attention.BlockMask,
    cache: attention.KVCacheLayer | None = None,
  ) -> tuple[PerExpert[jax.Array], jax.Array, jax.Array]:
    """x: streams of [B, T, D]. Returns (x, k, v), k and v [B, U + G, K, H] of the new tokens."""
    # An empty stream (decoding text has no gen tokens) costs nothing: its expert is not traced.
    present = [
      (expert, s, angles)
      for expert, s, angles in ((self.und, x.und, rope.und), (self.gen, x.gen, rope.gen))
      if s.shape[1]
    ]
    projections = [expert.qkv(s, *angles) for expert, s, angles in present]
    q, k, v = (concat_streams(*parts) if len(parts) == 2 else parts[0] for parts in zip(*projections, strict=True))
    attended = attention.attend(mask, q, k, v, cache)
    attended = split_streams(attended, x.und.shape[1])
    und = self.und.output_and_mlp(x.und, attended.und) if x.und.shape[1] else x.und
    gen = self.gen.output_and_mlp(x.gen, attended.gen) if x.gen.shape[1] else x.gen
    return PerExpert(und, gen), k, v


class Trunk(nnx.Module):
  """All layers, stacked along a leading axis and scanned, and a final norm for each stream."""

  def __init__(self, cfg: config_lib.ModelConfig, *, rngs: nnx.Rngs):
    @nnx.split_rngs(splits=cfg.depth)
    @nnx.vmap
    def stack(rngs):
      return Layer(cfg, rngs=rngs)

    self.layers = stack(rngs)
    self.und_norm = layers.RMSNorm(cfg.width, eps=cfg.norm_eps)
    self.gen_norm = layers.RMSNorm(cfg.width, eps=cfg.norm_eps)
    self.cfg = cfg

  def forward(self, x: PerExpert[jax.Array], und: packed.TokenMeta, gen: packed.TokenMeta) -> PerExpert[jax.Array]:
    """Training: tokens see one another as their metadata says. Returns the normed hidden states, [B, T, D] each."""
    x, _ = self._run(x, und, gen, cache=None, keep=lambda x, k, v: None)
    return x

  def extend(
    self, x: PerExpert[jax.Array], und: packed.TokenMeta, gen: packed.TokenMeta, cache: attention.KVCache
  ) -> tuple[PerExpert[jax.Array], tuple[jax.Array, jax.Array]]:
    """Inference: new tokens see the cache and one another. Returns hidden states and (k, v): [L, B, U + G, K, H]."""
    return self._run(x, und, gen, cache=cache, keep=lambda x, k, v: (k, v))

  def states(self, x: PerExpert[jax.Array], und: packed.TokenMeta, gen: packed.TokenMeta) -> PerExpert[jax.Array]:
    """The residual stream after every layer, [L, B, T, D] each: to compare models layer by layer."""
    return self._run(x, und, gen, cache=None, keep=lambda x, k, v: x)[1]

  def _run(
    self,
    x: PerExpert[jax.Array],
    und: packed.TokenMeta,
    gen: packed.TokenMeta,
    *,
    cache: attention.KVCache | None,
    keep: Callable[[PerExpert[jax.Array], jax.Array, jax.Array], Any],
  ) -> tuple[PerExpert[jax.Array], Any]:
    cfg = self.cfg
    und_angles, gen_angles = (layers.rope_angles(t.position, cfg.head_dim, cfg.rope_theta) for t in (und, gen))
    rope = PerExpert(und_angles, gen_angles)
    query = packed.TokenMeta(*(concat_streams(*pair) for pair in zip(und, gen, strict=True)))
    if cache is not None and not cache.slots:
      cache = None  # room for nothing
    mask = attention.prepare(cfg.attention, query, query, None if cache is None else cache.tokens)
    graphdef, weights = nnx.split(self.layers)
    weights = nnx.to_pure_dict(weights)

    def body(x, scanned):
      weights, layer = scanned
      weights = partition.gather_params(weights, dtype=cfg.dtype, layer_of='trunk/layers')
      und, gen = (mesh_lib.constrain(s, mesh_lib.ROWS, 'sequence') for s in x)
      before = None if cache is None else attention.KVCacheLayer(cache.k, cache.v, layer)
      x, k, v = nnx.merge(graphdef, weights)(PerExpert(und, gen), rope, mask, before)
      return x, keep(x, k, v)

    scanned = (weights, None if cache is None else jnp.arange(cfg.depth))
    x, kept = jax.lax.scan(remat.wrap(body, cfg.remat), x, scanned, unroll=1 if cfg.scan_layers else cfg.depth)
    return PerExpert(self.und_norm(x.und), self.gen_norm(x.gen)), kept
