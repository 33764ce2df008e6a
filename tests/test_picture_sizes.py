"""Pictures of several sizes: the builder, packed batches, a training step; and BAGEL's sequence plans as rows."""

import dataclasses

import jax
import numpy as np
import pytest
from support import letters, toy

from pdgen import testing
from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import packed
from pdgen.data import images, packing, pipeline, sequence, sources, statistics
from pdgen.data import items as items_lib
from pdgen.training import state as state_lib
from pdgen.training import step as step_lib

Step, Trajectory = toy.Step, toy.Trajectory
S = toy.WORDS.specials
# Latent patches of 8 pixels, at most 4 a side; ViT patches of 4.
MODEL = dataclasses.replace(
  toy.WITH_VIT,
  codec=config_lib.CodecConfig(patch=8),
  max_latent_size=4,
  vit=dataclasses.replace(toy.WITH_VIT.vit, patch=4, max_patches=8),
)


def _picture(height, width, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _trajectory(sizes, prompt='ab'):
  first, second, third = (_picture(*size, seed) for seed, size in enumerate(sizes))
  return Trajectory(
    prompt=prompt,
    steps=(
      Step(plan='<ins>c</ins><des>d</des>', draft=first, inspection='no <refine>e</refine>', refined=second),
      Step(plan='<ins>f</ins><des>g</des>', draft=third, inspection='ok'),
    ),
  )


def _equal(a, b):
  packed.map_fields(lambda name, x, y: np.testing.assert_array_equal(x, y, err_msg=name), a, b)
  packed.map_fields(lambda name, x, y: x.dtype == y.dtype or pytest.fail(f'{name}: {x.dtype}, {y.dtype}'), a, b)


@pytest.mark.parametrize('canvas', [None, (32, 24)], ids=['own size', 'any size'])
def test_a_bagel_sequence_plan_and_the_equal_trajectory_are_equal_rows(canvas):
  """Every copy, label, weight, position and visibility: what BAGEL's datasets spell out is what a trajectory means."""
  sizes = [(16, 16)] * 3 if canvas is None else [(32, 8), (16, 24), (8, 8)]
  trajectory = _trajectory(sizes)
  cfg = dataclasses.replace(toy.PLAIN, noised_copies=1, plan_weight=1.0, boundary_weight=0.5, length_weighting=True)
  first, second, third = trajectory.pictures

  def text(words, end_label):
    ids = tuple(toy.WORDS.encode_with_tags(words))
    return items_lib.Text(ids=ids, weights=1.0, end_label=end_label)

  def picture(pixels, end_label, *, learned, end_weight=None):
    seen = pixels if canvas is None else images.for_vit(pixels, MODEL)
    noised = [items_lib.Latents(pixels=pixels, learned=True)] if learned else []
    end = dict(end_label=end_label, end_weight=end_weight)
    return [*noised, items_lib.Latents(pixels=pixels), items_lib.Patches(pixels=seen, **end)]

  plan = [
    items_lib.Text(ids=tuple(b'ab'), end_label=S.im_start, end_weight=0.0),
    text('<ins>c</ins><des>d</des>', S.vision_start),
    *picture(first, S.im_start, learned=False, end_weight=1.0),
    text('no <refine>e</refine>', S.vision_start),
    *picture(second, S.im_start, learned=True),
    text('<ins>f</ins><des>g</des>', S.vision_start),
    *picture(third, S.im_start, learned=True, end_weight=1.0),
    text('ok', S.endoftext),
  ]
  want = items_lib.build(plan, specials=S, model=MODEL, sequence=cfg, canvas=canvas)
  got = sequence.build(
    trajectory, tokenizer=toy.WORDS, model=MODEL, sequence=cfg, rng=np.random.default_rng(0), canvas=canvas
  )
  _equal(got, want)
  assert (got.und.weight > 0).sum() > 30 and (got.gen.weight > 0).sum() > 4


def test_on_a_canvas_pictures_of_the_models_own_size_are_the_same_sequence():
  """Only where the pixels are kept differs: the metadata, labels and weights are those without a canvas."""
  trajectory, rngs = _trajectory([(16, 16)] * 3), [np.random.default_rng(0) for _ in range(2)]
  build = lambda rng, canvas: sequence.build(
    trajectory, tokenizer=toy.WORDS, model=MODEL, sequence=letters.WEIGHTED, rng=rng, canvas=canvas
  )
  own, any_size = build(rngs[0], None), build(rngs[1], (32, 32))
  assert own.grids is None and own.vit is None
  for name in ('tokens', 'token_id', 'label', 'weight', 'picture'):
    _equal(getattr(own.und, name), getattr(any_size.und, name)) if name == 'tokens' else np.testing.assert_array_equal(
      getattr(own.und, name), getattr(any_size.und, name)
    )
  _equal(own.gen, any_size.gen)
  np.testing.assert_array_equal(any_size.grids, [[2, 2]] * 3)
  np.testing.assert_array_equal(own.pictures, any_size.pictures[:, :16, :16])
  assert not any_size.pictures[:, 16:].any() and not any_size.pictures[:, :, 16:].any()


def test_a_picture_of_another_size_without_a_canvas_is_refused_with_the_remedy():
  with pytest.raises(ValueError, match=r"trajectory of 'ab' .*uint8\[32, 8, 3\].*config\.data\.picture_sizes"):
    sequence.build(_trajectory([(32, 8)] * 3), tokenizer=toy.WORDS, model=MODEL, sequence=toy.PLAIN, rng=None)


def _experiment():
  tiny = testing.tiny_config()
  data = dataclasses.replace(
    tiny.data,
    picture_sizes=((32, 8), (16, 24)),
    batch_size=8,
    und_tokens=384,
    gen_tokens=96,
    vit_tokens=128,
    pictures=12,
    packing_bins=2,
    prefetch=0,
    sequence=dataclasses.replace(toy.PLAIN, noised_copies=2),
  )
  return dataclasses.replace(tiny, model=dataclasses.replace(MODEL, vocab_size=640, prediction='x'), data=data)


def test_batches_of_mixed_sizes_are_those_of_the_spec_and_train():
  config = _experiment()
  assert config.canvas == (32, 24)
  sizes = [(32, 8), (16, 24), (8, 8)]
  made = [_trajectory(sizes[i:] + sizes[:i], prompt=f'p{i}') for i in range(3)]
  batches = pipeline.batches(config, source=sources.ListSource(made))
  batch = packed.check(next(batches))
  batches.close()
  abstract = step_lib.abstract_batch(config)
  packed.map_fields(lambda name, x, a: (x.shape, x.dtype) == (a.shape, a.dtype) or pytest.fail(name), batch, abstract)
  assert {tuple(grid) for grid in batch.grids.reshape(-1, 2).tolist()} >= {(4, 1), (2, 3), (1, 1)}
  mesh = mesh_lib.make_mesh(config.mesh)
  state = state_lib.init_state(config, mesh)
  train_step = step_lib.make_train_step(config, mesh)
  losses = []
  for _ in range(6):
    state, metrics = train_step(state, mesh_lib.put_batch(batch, mesh))
    losses.append(float(metrics['loss']))
  assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_what_lies_on_the_canvas_beside_a_picture_does_not_matter():
  config = _experiment()
  row = pipeline.build_row(config, _trajectory([(32, 8), (16, 24), (8, 8)]), np.random.default_rng(0))
  batch = toy.batch(packing.pack_row([row], config.row_budget))
  model = toy.model(config.model)
  t = np.zeros(batch.gen.patch.shape, np.float32)
  run = jax.jit(lambda b: model.hidden(b, model.clean_latents(b), t))
  noise = np.asarray(batch.pictures).copy()
  for i, (rows, columns) in enumerate(np.asarray(batch.grids[0])):
    noise[0, i, rows * 8 :] = 99
    noise[0, i, :, columns * 8 :] = 99
  for a, b in zip(run(batch), run(batch._replace(pictures=jax.numpy.asarray(noise))), strict=True):
    np.testing.assert_array_equal(a, b)


def test_an_epoch_of_mixed_sizes_is_whole_resumes_and_reports_its_canvas():
  """Every trajectory once, whatever its sizes; the batches after a stop are those of a run without one."""
  config = _experiment()
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=2))
  sizes = [(32, 8), (16, 24), (8, 8), (8, 24), (16, 16)]
  made = [_trajectory([sizes[(i + j) % 5] for j in range(3)], prompt=f'{i:02}') for i in range(20)]
  source = sources.ListSource(made)

  def prompts(batch):
    """Of each sample of a batch: the two letters after its first token."""
    rows = zip(batch.und.tokens.segment, batch.und.token_id, strict=True)
    firsts = [(ids, np.flatnonzero(np.diff(segment, prepend=0) > 0)) for segment, ids in rows]
    return [toy.WORDS.decode(ids[i + 1 : i + 3].tolist()) for ids, begins in firsts for i in begins]

  letters_only = dataclasses.replace(
    config, data=dataclasses.replace(config.data, sequence=dataclasses.replace(config.data.sequence, opening=''))
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pipeline.tokenizers, 'load', lambda name: toy.WORDS)
    batches = pipeline.batches(letters_only, source=source)
    seen, areas, states, made_batches = [], [], [], []
    while len(set(seen)) < 20:
      states.append(batches.get_state())
      made_batches.append(next(batches))
      seen += prompts(made_batches[-1])
      grids = made_batches[-1].grids.reshape(-1, 2)
      areas += [tuple(grid) for grid in grids[grids.prod(axis=1) > 0].tolist()]
      assert made_batches[-1].pictures.shape[2:] == (*config.canvas, 3)
    resumed = pipeline.batches(letters_only, source=source)
    resumed.set_state(states[1])
    for want in made_batches[1:3]:
      _equal(next(resumed), want)
    batches.close()
    resumed.close()
    found = statistics.report(letters_only, batches=4, source=source)
  assert set(areas) == {(h // 8, w // 8) for h, w in sizes}
  # Beyond the first epoch only as far as the pool reaches.
  assert max(seen.count(prompt) for prompt in set(seen)) <= 2
  assert 0.2 < found['canvas used'] < 0.6
