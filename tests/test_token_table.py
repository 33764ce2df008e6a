"""The token table says of every token what the batch says and the losses use, counted again from items and arrays."""

import dataclasses
import doctest

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support import letters

from pdgen import dataset_page
from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.data import items, packing, pipeline, sequence, sources, token_table, tokenizers
from pdgen.training import losses
from pdgen.worlds import shapes

SIZES = ((32, 32), (16, 32), (32, 16))
WORDS = tokenizers.load('shapes')
COUNT = 50


def config(tiny) -> config_lib.Config:
  """Mixed sizes, a ViT, all kinds, dropout of everything, weights that differ."""
  vit = config_lib.VitConfig(width=16, depth=1, num_heads=2, mlp_dim=24, patch=8, max_patches=4)
  cfg = dataclasses.replace(
    tiny.data.sequence,
    drop_text=0.5,
    drop_clean=0.3,
    drop_vit=0.3,
    plan_weight=2.0,
    inspection_weight=3.0,
    verdict_weight=8.0,
    boundary_weight=0.5,
    decisive=shapes.DECISIVE,
  )
  mixed = dict(picture_sizes=SIZES[1:], vit_tokens=2048, und_tokens=6000, gen_tokens=1000, pictures=64)
  data = dataclasses.replace(tiny.data, sequence=cfg, **mixed)
  return dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, vit=vit), data=data)


def trajectory(number):
  """Kinds in turn, every picture of a size of its own."""
  kind = shapes.KINDS[number % len(shapes.KINDS)]
  made = shapes.trajectory(kind, seed=0, index=number)
  steps, count = [], number
  for step in made.steps:
    parts = {}
    for name in ('draft', 'refined'):
      if (picture := getattr(step, name)) is not None:
        height, width = SIZES[count % 3]
        parts[name] = np.asarray(Image.fromarray(picture).resize((width, height)))
        count += 1
    steps.append(dataclasses.replace(step, **parts))
  return dataclasses.replace(made, steps=tuple(steps))


@pytest.fixture(scope='module')
def cfg(tiny):
  return config(tiny)


@pytest.fixture(scope='module')
def samples(cfg):
  """(items, row, table) of each trajectory."""
  out = []
  for number in range(COUNT):
    made = trajectory(number)
    options = dict(tokenizer=WORDS, model=cfg.model, sequence=cfg.data.sequence, canvas=cfg.canvas)
    spelled = sequence.to_items(made, rng=sources.sample_rng(0, number), **options)
    row = pipeline.build_row(cfg, made, sources.sample_rng(0, number))
    out.append((spelled, row, token_table.rows(row, WORDS)))
  return out


def check_against_arrays(row: packed.PackedBatch, table):
  """Every token once, and every field as the arrays have it."""
  for expert, stream in (('und', row.und), ('gen', row.gen)):
    there = [token for token in table if token.expert == expert]
    indices = [token.index for token in there]
    assert sorted(indices) == np.flatnonzero(stream.tokens.segment).tolist()
    for name in packed.TokenMeta._fields:
      np.testing.assert_array_equal([getattr(t, name) for t in there], getattr(stream.tokens, name)[indices], name)
    np.testing.assert_array_equal([t.weight for t in there], stream.weight[indices])
  und = [token for token in table if token.expert == 'und']
  gen = [token for token in table if token.expert == 'gen']
  np.testing.assert_array_equal(
    [(t.picture, t.patch) for t in gen], np.stack([row.gen.picture, row.gen.patch], 1)[[t.index for t in gen]]
  )
  for token in und:
    weight, seen = row.und.weight[token.index], row.und.picture[token.index] >= 0
    label = WORDS.decode([int(row.und.label[token.index])]) if weight else ''
    assert token.label == label.encode('unicode_escape').decode() and token.loss == ('cross-entropy' if weight else '')
    assert (token.picture is not None) == (token.patch is not None) == seen
    if seen:
      assert (token.picture, token.patch) == (row.und.picture[token.index], row.und.patch[token.index])
    else:
      text = WORDS.decode([int(row.und.token_id[token.index])])
      assert token.token == text.encode('unicode_escape').decode()
  assert all(t.loss == ('flow' if row.gen.weight[t.index] else '') and t.label == '' for t in gen)
  assert [(t.segment, t.order) for t in table] == sorted((t.segment, t.order) for t in table)


def test_every_token_is_there_once_and_as_the_arrays_have_it(samples):
  for _, row, table in samples:
    check_against_arrays(row, table)
    assert [token.order for token in table] == list(range(len(table)))


def test_copies_experts_and_losses_are_those_of_the_items(samples, cfg):
  """Counted from the items, which know nothing of arrays: tokens in sequence, copy, expert, loss and weight."""
  kinds, seen = set(), {name: 0 for name in token_table.COPIES}
  for spelled, _, table in samples:
    want = []
    for item in spelled:
      end = 0.0
      if not isinstance(item, items.Gap) and item.end_label is not None:
        end = cfg.data.sequence.boundary_weight if item.end_weight is None else item.end_weight
      if isinstance(item, items.Text):
        given = item.weights
        weights = [given] * (len(item.ids) + 1) if isinstance(given, float) else list(given)
        want += [('text', 'und', False, weight) for weight in [*weights, end]]
      elif isinstance(item, items.Patches):
        count = (item.pixels.shape[0] // 8) * (item.pixels.shape[1] // 8)
        want += [('ViT', 'und', False, 0.0)] * (count + 1) + [('ViT', 'und', False, end)]
      elif isinstance(item, items.Latents):
        count = (item.pixels.shape[0] // 16) * (item.pixels.shape[1] // 16)
        copy = 'noised' if item.learned else 'clean'
        boundary, flow = (copy, 'und', item.learned, 0.0), float(item.learned)
        want += [boundary, *[(copy, 'gen', item.learned, flow)] * count, (copy, 'und', item.learned, end)]
      kinds.add(type(item))
    got = [(t.copy, t.expert, t.noised, t.weight) for t in table]
    assert [g[:3] for g in got] == [w[:3] for w in want]
    np.testing.assert_allclose([g[3] for g in got], [w[3] for w in want], rtol=1e-6)
    assert all(bool(t.loss) == (t.weight > 0) for t in table)
    for token in table:
      seen[token.copy] += 1
  assert kinds == {items.Text, items.Patches, items.Latents, items.Gap} and min(seen.values()) > 100
  blind = [t for _, _, table in samples for t in table if t.noised and t.reach < t.order - 1 and t.expert == 'und']
  assert blind  # Condition dropout has hidden texts of some copies.


def test_the_weights_of_the_table_are_those_of_both_losses(samples, cfg):
  """A packed row of several samples and padding: each loss is the mean of its errors by the table's weights."""
  row = packing.pack_row([row for _, row, _ in samples[:12]], cfg.row_budget)
  table = token_table.rows(row, WORDS)
  check_against_arrays(row, table)
  assert len(table) == sum(len(t) for _, _, t in samples[:12]) and {t.segment for t in table} == set(range(1, 13))
  rng = np.random.default_rng(0)
  batch = packed.map_fields(lambda _, field: jnp.asarray(field[None]), row)

  logits = rng.normal(size=(1, len(row.und.label), 640)).astype(np.float32)
  loss, metrics = losses.text_loss(jnp.asarray(logits), batch.und, cfg=cfg.data.sequence)
  nll = np.log(np.exp(logits[0].astype(np.float64)).sum(-1)) - logits[0][np.arange(len(row.und.label)), row.und.label]
  learned = [(t.weight, nll[t.index]) for t in table if t.loss == 'cross-entropy']
  weights, errors = np.array(learned).T
  np.testing.assert_allclose(float(loss), (weights * errors).sum() / weights.sum(), rtol=1e-5)
  assert int(metrics['text_tokens']) == len(learned)

  error = rng.normal(size=(1, len(row.gen.patch), 3)).astype(np.float32)
  nothing, t = jnp.zeros(error.shape, jnp.float32), jnp.ones(error.shape[:2], jnp.float32)
  velocity = dataclasses.replace(cfg.model, prediction='velocity')
  loss, metrics = losses.flow_loss(
    jnp.asarray(error), clean=nothing, noise=nothing, t=t, weight=batch.gen.weight, cfg=velocity
  )
  learned = [(t.weight, (error[0, t.index].astype(np.float64) ** 2).mean()) for t in table if t.loss == 'flow']
  weights, errors = np.array(learned).T
  np.testing.assert_allclose(float(loss), (weights * errors).sum() / weights.sum(), rtol=1e-5)
  assert int(metrics['flow_tokens']) == len(learned) == weights.sum()


def unfolded(ranges):
  """The numbers of `0-2, 7`."""
  bounds = [list(map(int, part.split('-'))) for part in ranges.split(', ')]
  return [number for bound in bounds for number in range(bound[0], bound[-1] + 1)]


def test_runs_fold_patches_and_unfold_to_the_same_tokens(samples):
  for _, row, table in samples:
    runs = token_table.runs(table)
    assert [token for run in runs for token in run] == table
    assert all(len(run) == 1 or (run[0].patch is not None and len({t.span for t in run}) == 1) for run in runs)
    # A copy of a picture is one run.
    assert sum(run[0].patch is not None for run in runs) == len({t.span for t in table if t.patch is not None})
    page = dataset_page.tokens(row, WORDS)
    for run, line in zip(runs, page.runs, strict=True):
      assert line.count == len(run)
      for name, value in zip(page.header, line.cells, strict=True):
        if name in ('order', 'index', 'patch', 'reach') and (name != 'patch' or run[0].patch is not None):
          column = page.header.index(name)
          want = [getattr(t, name) for t in run]
          assert unfolded(line.each[column]) == want if column in line.each else {value} == set(map(str, want))


def test_frames_of_a_video_are_noised_copies_that_all_may_see():
  """(BAGEL, QUIRKS B5)"""
  frames = [letters.picture(i) for i in range(2)]
  first = items.Latents(pixels=frames[0], learned=True, frame_delta=1)
  second = items.Latents(pixels=frames[1], learned=True, goes_on=True)
  row = items.build([first, second], specials=letters.WORDS.specials, model=letters.MODEL, sequence=letters.PLAIN)
  table = token_table.rows(row, letters.WORDS)
  assert {t.copy for t in table} == {'noised'} and not any(t.noised for t in table)
  assert [t.picture for t in table if t.loss == 'flow'] == [0] * 4 + [1] * 4
  assert [len(run) for run in token_table.runs(table)] == [1, 4, 1, 1, 4, 1]


def test_control_characters_are_spelled_out():
  text = items.Text(ids=(10, 27), weights=1.0)
  row = items.build([text], specials=letters.WORDS.specials, model=letters.MODEL, sequence=letters.PLAIN)
  assert [t.token for t in token_table.rows(row, letters.WORDS)][1:3] == [r'\n', r'\x1b']


def test_docs():
  assert doctest.testmod(token_table).failed == 0
