"""The whole model on packed rows: who influences whom, and that structure options do not change results."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import toy

from pdgen.core import config, packed
from pdgen.data import packing
from pdgen.models import interleaved

# float32 sums of another length or order, on values of size 1 to 4.
TOLERANCE = 1e-5
CONFIGS = {'latents': toy.MODEL, 'latents_and_vit': toy.WITH_VIT}
TWO_COPIES = dataclasses.replace(toy.PLAIN, noised_copies=2, drop_text=0.5)


@jax.jit(static_argnums=0)
def _hidden(graphdef, params, batch, z, t):
  return nnx.merge(graphdef, params).hidden(batch, z, t)


def _forward(cfg, batch, z, t, *, seed=0):
  return _hidden(interleaved.graphdef(cfg), toy.params(cfg, seed=seed), batch, z, t)


def _samples(cfg):
  """Three samples of different make-up."""
  whole = toy.full_trajectory()
  short = dataclasses.replace(whole, prompt='another one', steps=whole.steps[1:2])
  direct = toy.Trajectory(prompt='p', steps=(toy.Step(draft=toy.picture(9)),), mode='direct')
  return [toy.row(t, cfg, sequence_config=TWO_COPIES, seed=i) for i, t in enumerate((whole, short, direct))]


def _budgets(rows, *, extra=0):
  return packed.RowBudget(*(sum(sizes) + extra for sizes in zip(*map(packing.sizes, rows), strict=True)))


def _feed(rows, cfg, *, seed=0):
  """Latents as fed and times for samples: random ones for noised copies. Lists of [G, C] and [G]."""
  rng = np.random.default_rng(seed)
  channels = 3 * cfg.codec.patch**2
  z = [rng.normal(size=(len(r.gen.copy), channels)).astype(np.float32) for r in rows]
  t = [np.where(r.gen.copy > 0, rng.random(len(r.gen.copy)), 0).astype(np.float32) for r in rows]
  return z, t


def _padded(arrays, length):
  joined = np.concatenate(arrays)
  return jnp.asarray(np.pad(joined, ((0, length - len(joined)), *((0, 0),) * (joined.ndim - 1)))[None])


@pytest.fixture(scope='module', params=CONFIGS)
def packed_row(request):
  """A config, three samples, and the hidden states of the row that packs them."""
  cfg = CONFIGS[request.param]
  rows = _samples(cfg)
  z, t = _feed(rows, cfg)
  budgets = _budgets(rows)
  batch = toy.batch(packing.pack_row(rows, budgets))
  return cfg, rows, z, t, batch, _forward(cfg, batch, *(_padded(x, budgets.gen_tokens) for x in (z, t)))


def test_packed_equals_unpacked(packed_row):
  cfg, rows, z, t, _, together = packed_row
  und = gen = 0
  budgets = packed.RowBudget(*(max(sizes) for sizes in zip(*map(packing.sizes, rows), strict=True)))
  for i, row in enumerate(rows):
    alone = _forward(
      cfg, toy.batch(packing.pack_row([row], budgets)), *(_padded([x[i]], budgets.gen_tokens) for x in (z, t))
    )
    u, g = len(row.und.label), len(row.gen.copy)
    np.testing.assert_allclose(together.und[0, und : und + u], alone.und[0, :u], atol=TOLERANCE)
    np.testing.assert_allclose(together.gen[0, gen : gen + g], alone.gen[0, :g], atol=TOLERANCE)
    und, gen = und + u, gen + g


def test_padding_and_what_stands_in_it_do_not_matter(packed_row):
  cfg, rows, z, t, _, together = packed_row
  budgets = _budgets(rows, extra=3)
  batch = toy.batch(packing.pack_row(rows, budgets))
  u, g = together.und.shape[1], together.gen.shape[1]
  rubbish = batch.und.token_id.at[:, u:].set(17)
  batch = batch._replace(und=batch.und._replace(token_id=rubbish), pictures=batch.pictures.at[:, -3:].set(200))
  z, t = (_padded(x, budgets.gen_tokens).at[:, g:].set(0.7) for x in (z, t))
  padded = _forward(cfg, batch, z, t)
  np.testing.assert_allclose(padded.und[:, :u], together.und, atol=TOLERANCE)
  np.testing.assert_allclose(padded.gen[:, :g], together.gen, atol=TOLERANCE)
  assert np.isfinite(padded.und).all() and np.isfinite(padded.gen).all()


def test_a_noised_copy_influences_nothing_but_itself(packed_row):
  cfg, rows, z, t, batch, before = packed_row
  g = batch.gen.copy.shape[1]
  copies = int(batch.gen.copy.max())
  assert copies == 2 * (4 + 1 + 1) - 2  # Two a picture that is painted; the rejected draft is no target.
  for copy in (1, 4, copies):
    inside = np.asarray(batch.gen.copy[0] == copy)
    changed_z = _padded(z, g) + jnp.where(inside, 0.5, 0)[None, :, None]
    changed_t = jnp.where(inside[None], 0.33, _padded(t, g))
    after = _forward(cfg, batch, changed_z, changed_t)
    span = np.asarray(batch.gen.tokens.span[0])[inside][0]
    segment = np.asarray(batch.gen.tokens.segment[0])[inside][0]
    for stream, old, new in ((batch.und, before.und, after.und), (batch.gen, before.gen, after.gen)):
      member = np.asarray((stream.tokens.span[0] == span) & (stream.tokens.segment[0] == segment))
      moved = np.abs(np.asarray(new - old))[0].max(-1)
      assert np.all(moved[member] > 1e-3)
      np.testing.assert_array_equal(moved[~member], 0)


def test_a_clean_copy_influences_what_comes_later_and_nothing_before(packed_row):
  cfg, rows, z, t, batch, before = packed_row
  g = batch.gen.copy.shape[1]
  # The last clean copy of the first sample that is followed by texts.
  clean = np.asarray((batch.gen.copy[0] == 0) & (batch.gen.tokens.segment[0] == 1) & (batch.gen.picture[0] == 2))
  after = _forward(cfg, batch, _padded(z, g) + jnp.where(clean, 0.5, 0)[None, :, None], _padded(t, g))
  first, last = (f(np.asarray(batch.gen.tokens.order[0])[clean]) for f in (np.min, np.max))
  for stream, old, new in ((batch.und, before.und, after.und), (batch.gen, before.gen, after.gen)):
    moved = np.abs(np.asarray(new - old))[0].max(-1)
    own, order, reach = (np.asarray(x)[0] for x in (stream.tokens.segment, stream.tokens.order, stream.tokens.reach))
    sees = (own == 1) & (reach >= first - 1) & (order >= first - 1)
    assert np.all(moved[sees] > 0)
    np.testing.assert_array_equal(moved[(own != 1) | (order < first - 1)], 0)
    assert np.any(sees & (order > last + 1))


def test_pictures_reach_the_model_through_the_vit_alone_where_latents_do_not_change():
  cfg = toy.WITH_VIT
  row = _samples(cfg)[1]
  batch = toy.batch(row)
  z, t = (_padded([x], len(row.gen.copy)) for x in (_feed([row], cfg)[0][0], _feed([row], cfg)[1][0]))
  before = _forward(cfg, batch, z, t)
  after = _forward(cfg, batch._replace(pictures=255 - batch.pictures), z, t)
  moved = np.abs(np.asarray(after.und - before.und))[0].max(-1)
  seen = row.und.picture >= 0
  assert seen.sum() == cfg.vit_tokens == 16
  first = row.und.tokens.order[seen].min() - 1  # its `vision_start`
  np.testing.assert_array_equal(moved > 0, row.und.tokens.order >= first)
  np.testing.assert_array_equal(after.gen, before.gen)


def test_each_vit_token_sees_its_own_patch():
  cfg = toy.WITH_VIT
  model = toy.model(cfg)
  row = toy.row(toy.full_trajectory(), cfg)
  before = model.embed_und(toy.batch(row).und, toy.batch(row).pictures)
  assert np.unique(np.asarray(before[0])[row.und.picture == 1], axis=0).shape[0] == cfg.vit_tokens
  # Pixel (5, 10) of picture 1 lies in patch (1, 2); attention carries it to all patches of that picture.
  row.pictures[1, 5, 10] ^= 255
  moved = np.abs(np.asarray(model.embed_und(toy.batch(row).und, toy.batch(row).pictures) - before))[0].max(-1)
  np.testing.assert_array_equal(moved > 0, row.und.picture == 1)
  assert row.und.patch[np.argmax(moved)] == 1 * 4 + 2


def test_each_stream_has_its_own_expert(packed_row):
  cfg, _, z, t, batch, before = packed_row
  g = batch.gen.copy.shape[1]
  params = toy.params(cfg)
  for name in ('und', 'gen'):
    # After the last attention nothing joins the streams.
    down = params['trunk']['layers'][name]['down']
    kernel = down['kernel']
    down['kernel'] = kernel.at[-1].multiply(1.5)
    after = _hidden(interleaved.graphdef(cfg), params, batch, _padded(z, g), _padded(t, g))
    down['kernel'] = kernel
    moved = {stream: np.abs(getattr(after, stream) - getattr(before, stream)).max(-1) for stream in ('und', 'gen')}
    assert moved.pop(name).min() > 0
    [other] = moved.values()
    np.testing.assert_array_equal(other, 0)


def _golden_position(side):
  """The reference's table for width 64 at (row, column) of a side x side grid: f32[side * side, 64]."""
  table = np.load(pathlib.Path(__file__).parent / 'golden' / 'b_embeddings.npz')['sincos_d64_g12']
  return table.reshape(12, 12, 64)[:side, :side].reshape(-1, 64)


WIDE = dataclasses.replace(toy.WITH_VIT, width=64, image_size=24, vit=dataclasses.replace(toy.WITH_VIT.vit, patch=6))


def test_latents_carry_their_row_and_column():
  model = toy.model(WIDE)
  patch = jnp.asarray(packed.position_ids(3, 3, WIDE.max_latent_size))[None]
  z, t = jnp.ones((1, 9, 192)), jnp.full((1, 9), 0.3)
  got = model.embed_latents(z, t, patch) - model.latent_in(z) - model.time(t)
  np.testing.assert_allclose(got[0], _golden_position(3), atol=TOLERANCE)


def test_vit_tokens_carry_their_row_and_column_twice():
  params = toy.params(WIDE)
  params['vit']['connector2'] = jax.tree.map(jnp.zeros_like, params['vit']['connector2'])
  model = nnx.merge(interleaved.graphdef(WIDE), params)
  row = toy.row(toy.Trajectory(prompt='p', steps=(toy.Step(draft=toy.picture(0, 24)),), mode='direct'), WIDE)
  got = model.embed_und(toy.batch(row).und, toy.batch(row).pictures)[0][row.und.picture >= 0]
  np.testing.assert_allclose(got, _golden_position(4), atol=TOLERANCE)
  # The learned table of the encoder has max_patches = 5 entries a side.
  rows, columns = np.divmod(np.arange(16), 4)
  seen = []
  vit = model.vit
  vit.position = lambda ids: seen.append(np.asarray(ids)) or jnp.zeros((1, 16, 16))
  model.embed_und(toy.batch(row).und, toy.batch(row).pictures)
  np.testing.assert_array_equal(seen[0], (rows * 5 + columns)[None])


def test_structure_options_change_nothing():
  cfg = toy.WITH_VIT
  rows = _samples(cfg)[1:2]
  z, t = (jnp.asarray(x[0][None]) for x in _feed(rows, cfg))
  batch, params = toy.batch(*rows), toy.params(cfg)

  def loss_and_gradients(cfg):
    graphdef = interleaved.graphdef(cfg)

    def loss(params):
      model = nnx.merge(graphdef, params)
      und, gen = model.hidden(batch, z, t)
      return jnp.mean(model.logits(und) ** 2) + jnp.mean(model.prediction(gen) ** 2)

    return jax.jit(jax.value_and_grad(loss))(params)

  loss, gradients = loss_and_gradients(cfg)
  assert all(np.abs(g).max() > 0 for path, g in jax.tree.leaves_with_path(gradients) if not _has_no_gradient(path))
  for option in ({'remat': 'full'}, {'remat': 'dots', 'scan_layers': False}):
    other_loss, other_gradients = loss_and_gradients(dataclasses.replace(cfg, **option))
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    for got, want in zip(jax.tree.leaves(other_gradients), jax.tree.leaves(gradients), strict=True):
      np.testing.assert_allclose(got, want, atol=TOLERANCE * max(1, np.abs(want).max()))


def _has_no_gradient(path):
  """Softmax does not see what all keys share: without a norm after it, the ViT's key bias moves nothing."""
  return [k.key for k in path[-4:]] == ['vit', 'layers', 'k', 'bias']


def test_x_prediction_becomes_the_velocity_that_leads_to_it():
  x_cfg = dataclasses.replace(toy.MODEL, prediction='x')
  x_model, v_model = toy.model(x_cfg), toy.model(toy.MODEL)
  rng = np.random.default_rng(0)
  hidden, z = (jnp.asarray(rng.normal(size=(2, 4, n)), jnp.float32) for n in (32, 192))
  t = jnp.asarray(rng.uniform(0.05, 1, size=(2, 4)), jnp.float32)
  clean, velocity = x_model.prediction(hidden), x_model.velocity(hidden, z, t)
  # z = t noise + (1 - t) clean, velocity = noise - clean: walking back from t to 0 arrives at the prediction.
  np.testing.assert_allclose(z - t[..., None] * velocity, clean, atol=TOLERANCE)
  noise = clean + velocity
  np.testing.assert_allclose(t[..., None] * noise + (1 - t[..., None]) * clean, z, atol=TOLERANCE)
  np.testing.assert_array_equal(v_model.velocity(hidden, z, t), v_model.prediction(hidden))
  # Near t = 0 the velocity stays finite.
  assert np.isfinite(x_model.velocity(hidden, z, jnp.zeros((2, 4)))).all()


def test_a_fresh_model_predicts_nothing_and_is_a_function_of_its_seed():
  build = jax.jit(_fresh_parameters)
  params, again, other = (build(jax.random.key(seed)) for seed in (0, 0, 1))
  assert np.abs(params['latent_out']['kernel']).max() == 0
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, again))
  assert np.abs(params['embed']['table'] - other['embed']['table']).max() > 0.1
  # Stacked layers and the two experts start differently.
  q = params['trunk']['layers']['und']['q']['kernel']
  assert np.abs(q[0] - q[1]).max() > 0.1
  assert np.abs(q - params['trunk']['layers']['gen']['q']['kernel']).max() > 0.1


def _fresh_parameters(key):
  return nnx.to_pure_dict(nnx.split(interleaved.Interleaved(toy.MODEL, rngs=nnx.Rngs(params=key)))[1])


def test_sizes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='multiple'):
    config.ModelConfig(num_heads=3, num_kv_heads=2)
  with pytest.raises(ValueError, match='max_latent_size'):
    config.ModelConfig(image_size=64, codec=config.CodecConfig(patch=8))
