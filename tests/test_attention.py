"""Every attention implementation against the reference, forward and backward, on packed rows with pictures."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.core import masks, packed
from pdgen.core import mesh as mesh_lib
from pdgen.models import attention, interleaved, remat
from pdgen.models.attention import blockwise
from pdgen.training import state as state_lib
from pdgen.training import step as step_lib

# float32 sums in another order: a few units in the last place of values near 1.
TOLERANCE = 2e-5


def _packed_tokens(rng: np.random.Generator, rows: int, und: int, gen: int) -> packed.TokenMeta:
  """Random rows of several samples, each text and picture copies, und tokens first, as the trunk concatenates them."""
  streams = {name: np.zeros((rows, size, 6), np.int32) for name, size in (('und', und), ('gen', gen))}
  for row in range(rows):
    used, segment = {'und': 0, 'gen': 0}, 0
    while True:
      sample, order, position, span = [], 0, 0, 0
      for _ in range(rng.integers(1, 4)):
        for _ in range(rng.integers(3, 20)):
          sample.append(('und', order, order, 0, 0, position))
          order, position = order + 1, position + 1
        before = order - 1
        for noised in (1, 1, 0):
          span += 1
          blind = noised and rng.random() < 0.5
          for stream in ['und'] + ['gen'] * 9 + ['und']:
            reach = int(before - rng.integers(0, 3)) if blind else order
            sample.append((stream, order, reach, span, noised, position))
            order += 1
          position += 1 - noised
      counts = {name: sum(t[0] == name for t in sample) for name in used}
      if any(used[name] + counts[name] > streams[name].shape[1] for name in used):
        break
      segment += 1
      for name, *fields in sample:
        streams[name][row, used[name]] = (segment, *fields)
        used[name] += 1
  both = np.concatenate([streams['und'], streams['gen']], axis=1)
  return packed.TokenMeta(*(both[..., i] for i in range(6)))


@pytest.mark.parametrize('name', sorted(set(attention.IMPLEMENTATIONS) - {'reference'}))
@pytest.mark.parametrize('sizes, long', [((300, 260), False), ((64, 64), False), ((300, 260), True)])
def test_equals_the_reference_forward_and_backward(name, sizes, long, monkeypatch):
  if long:
    monkeypatch.setattr(blockwise, 'LONG', 256)
    monkeypatch.setattr(blockwise, 'LONG_BLOCK', 256)
    monkeypatch.setattr(mesh_lib, 'device_kind', lambda: 'TPU v5p')
  rng = np.random.default_rng(0)
  tokens = _packed_tokens(rng, 2, *sizes)
  length = sum(sizes)
  q, k, v, cotangent = (jnp.asarray(rng.normal(size=(2, length, heads, 16)), jnp.float32) for heads in (4, 2, 2, 4))
  seen = np.asarray(tokens.segment > 0)[..., None, None]

  def run(implementation, q, k, v):
    mask = attention.prepare(implementation, tokens, tokens)
    return jnp.where(seen, attention.attend(mask, q, k, v), 0.0)

  out, grads = {}, {}
  for which in ('reference', name):
    f = jax.jit(lambda q, k, v, which=which: run(which, q, k, v))
    out[which] = f(q, k, v)
    grads[which] = jax.grad(lambda *a, f=f: jnp.sum(f(*a) * cotangent), argnums=(0, 1, 2))(q, k, v)
  np.testing.assert_allclose(out[name], out['reference'], atol=TOLERANCE)
  for got, want in zip(grads[name], grads['reference'], strict=True):
    np.testing.assert_allclose(got, want, atol=TOLERANCE * 10)


def test_reference_follows_the_mask_token_by_token():
  rng = np.random.default_rng(1)
  tokens = _packed_tokens(rng, 1, 64, 64)
  q, k = (jnp.asarray(rng.normal(size=(1, 128, 1, 8)), jnp.float32) for _ in range(2))
  values = jnp.eye(128)[None, :, None, :]
  weights = np.asarray(attention.attend(attention.prepare('reference', tokens, tokens), q, k, values))[0, :, 0]
  visible = np.asarray(masks.visible(tokens, tokens))[0]
  real = tokens.segment[0] > 0
  assert np.all((weights[real] > 0) == visible[real])
  np.testing.assert_allclose(weights[real].sum(-1), 1.0, rtol=1e-6)


def test_blockwise_never_builds_the_whole_matrix():
  tokens = _packed_tokens(np.random.default_rng(2), 1, 1024, 1024)
  q, k = (jnp.zeros((1, 2048, heads, 8)) for heads in (2, 1))

  def loss(q, k):
    return jnp.sum(attention.attend(attention.prepare('blockwise', tokens, tokens), q, k, k))

  compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(q, k).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 2048 * 2048 * 4


@pytest.mark.parametrize(
  'device, kind', [('cpu', 'SortedBlocks'), ('NVIDIA H200', 'BlockLists'), ('NVIDIA A100', 'SortedBlocks')]
)
def test_auto_goes_by_the_devices_of_the_program(device, kind, monkeypatch):
  tokens = _packed_tokens(np.random.default_rng(0), 1, 150, 130)
  assert mesh_lib.device_kind() == 'cpu'
  monkeypatch.setattr(mesh_lib, 'device_kind', lambda: device)
  assert type(attention.prepare('auto', tokens, tokens)).__name__ == kind


def test_an_unknown_name_lists_the_known_ones():
  zeros = np.zeros((1, 4), np.int32)
  tokens = packed.TokenMeta(zeros, zeros, zeros, zeros, zeros, zeros)
  with pytest.raises(ValueError, match='blockwise'):
    attention.prepare('flash', tokens, tokens)


def test_memory_of_a_train_step_grows_linearly_with_the_row(tiny):
  """Of the compiled step, loss, optimizer and all: four times the tokens, little more than four times as much."""
  model = dataclasses.replace(tiny.model, attention='blockwise', remat='full')

  def temporaries(tokens):
    data = dataclasses.replace(tiny.data, batch_size=1, und_tokens=tokens, gen_tokens=tokens, pictures=tokens // 16)
    config = dataclasses.replace(tiny, model=model, data=data)
    mesh = mesh_lib.make_mesh(tiny.mesh)
    step = step_lib.make_train_step(config, mesh).lower(
      state_lib.abstract_on_mesh(config, mesh), step_lib.abstract_batch(config)
    )
    return step.compile().memory_analysis().temp_size_in_bytes

  used = [temporaries(tokens) for tokens in (2048, 8192)]
  assert used[1] < 4.2 * used[0], used
  # One float32 [T, T] of one head alone would be four times all of it.
  assert used[1] < 16384**2 * 4 / 4


@pytest.fixture(scope='module')
def gradients(tiny, batch):
  """A function: (gradients, bytes of temporaries) with a policy of what is computed again."""
  mesh = mesh_lib.make_mesh(tiny.mesh)
  row = jax.tree.map(lambda x: x[:1], batch)

  @functools.cache
  def of(policy):
    model = dataclasses.replace(tiny.model, attention='blockwise', remat=policy, depth=4)
    config = dataclasses.replace(tiny, model=model)
    params = state_lib.init_state(config, mesh).trainable
    f = jax.jit(step_lib.gradients(config, mesh)).lower(params, {}, row, jax.random.key(0)).compile()
    return f(params, {}, row, jax.random.key(0))[1], f.memory_analysis().temp_size_in_bytes

  return of


@pytest.mark.parametrize('policy', sorted(remat.POLICIES))
def test_what_is_computed_again_does_not_change_gradients(gradients, policy):
  """And takes less memory than keeping everything does."""
  (grads, used), (want, most) = gradients(policy), gradients('none')
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
  assert used < 0.8 * most


def test_attention_is_not_run_again_where_it_is_kept(tiny):
  """Counted in the traced gradients: loops over query blocks, forward and backward."""

  def loops(policy):
    model = dataclasses.replace(tiny.model, attention='blockwise', remat=policy)
    config = dataclasses.replace(tiny, model=model)
    params = interleaved.abstract_params(model)
    mesh = mesh_lib.make_mesh(tiny.mesh)
    f = step_lib.gradients(config, mesh)
    text = str(jax.make_jaxpr(f)(params, {}, step_lib.abstract_batch(config), jax.random.key(0)))
    return text.count('while[')

  assert loops('attention') < loops('full')
