"""The suites at tiny sizes: what they count, what they keep when a part fails, and the script for a new accelerator."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from support import toy

from pdgen import benchmark, benchmarks
from pdgen.benchmarks import pipeline, quantization, reference, report, runner, shapes, synthetic, train
from pdgen.core import config as config_lib
from pdgen.core import masks, packed, trees
from pdgen.cost import training_flops
from pdgen.data import records, tokenizers
from pdgen.inference import painter as painter_lib
from pdgen.models import interleaved
from pdgen.models.attention import pallas_gpu
from pdgen.weights import exported

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def sizes():
  return dataclasses.replace(benchmarks.SIZES['tiny'](), max_depth=1, batch_sizes=(2,))


def test_a_synthetic_row_is_full_and_its_visible_pairs_are_counted(sizes):
  config = synthetic.config(sizes, tokens=640)
  tokens = synthetic.tokens_of(synthetic.row(config))
  assert (tokens.segment > 0).mean() > 0.5
  assert synthetic.visible_pairs(tokens) == np.sum(np.asarray(masks.visible(tokens, tokens)))
  full = synthetic.row(synthetic.config(benchmarks.SIZES['bagel_7b'](), tokens=33_000))
  assert (synthetic.tokens_of(full).segment > 0).mean() > 0.98


def test_the_reference_tasks_are_those_that_were_timed():
  """59,176,064 parameters; four samples of 512 tokens, half of them gen; 38 ids without loss, 66 and an end with it."""
  cfg = benchmarks.SIZES['bagel_59m']().model
  sizes = {path: leaf.size for path, leaf in trees.flatten_with_paths(interleaved.abstract_params(cfg))}
  tables = 2 * cfg.max_latent_size**2 * cfg.width  # Of positions: parameters there, computed here.
  assert sum(size for path, size in sizes.items() if not path.startswith('codec/')) + tables == 59_176_064
  row = reference.row(cfg)
  tokens = synthetic.tokens_of(row)
  assert np.bincount(tokens.segment[0]).tolist() == [0, 512, 512, 512, 512]
  assert row.gen.patch.shape == (1, 1024) and (row.gen.copy > 0).all() and row.vit.image.shape == (1, 4 * 144)
  assert int((row.und.weight > 0).sum()) == 4 * 67
  whole = synthetic.visible_pairs(tokens)
  causal = 38 + 2 + 66 + 2
  assert whole == 4 * (146 * 146 + sum(146 + i for i in range(1, causal + 1)) + 258 * 512)


def test_flops_of_a_step_count_visible_pairs_alone(sizes):
  config = synthetic.config(sizes, tokens=640)
  parts = training_flops.train_flops(config)
  assert train.model_flops(config, 640**2) == pytest.approx(parts['total'])
  assert train.model_flops(config, 0) == pytest.approx(parts['total'] - parts['attention'] - parts['softmax'])


@pytest.mark.parametrize('name', ['matmul', 'attention', 'train', 'flow', 'text', 'pipeline', 'reference'])
def test_a_suite_gives_rows_of_finite_figures(name, sizes):
  rows = list(benchmarks.SUITES[name](sizes))
  assert rows
  for row in rows:
    assert 'error' not in row, row
    json.dumps(row, allow_nan=False)
    errors = [value for key, value in row.items() if key.startswith('error_')]
    assert all(value < 1e-5 for value in errors), row
  if name == 'attention':
    assert [row['attention'] for row in rows] == list(sizes.attention)
  if name == 'flow':
    assert [row['guidance'].split(' in ')[0] for row in rows] == ['none', 'text and picture', 'text and picture']
    assert {row['context'] for row in rows} == {420}
  if name == 'reference':
    assert [row['task'].split(',')[0] for row in rows[1:]] == ['train', 'flow', 'text']
    assert all(row['flops'] > 0 and row['of_peak'] > 0 for row in rows[1:3])
  if name == 'text':
    assert rows[0]['batch_size'] == 2 and rows[0]['steps'] >= 2


def test_errors_of_quantised_weights_are_told_layer_by_layer(sizes, tmp_path):
  model = dataclasses.replace(sizes.model, vocab_size=640, attention='reference', remat='none')
  config = config_lib.Config(model=model, data=config_lib.DataConfig(sources=(), sequence=toy.PLAIN))
  tokenizer = tokenizers.ASSETS / 'shapes.model'
  exported.export_ema(tmp_path / 'model', toy.params(model), config=config, tokenizer=tokenizer)
  rows = list(quantization.run(dataclasses.replace(sizes, checkpoint=str(tmp_path / 'model'))))
  layers = {(row['weights'], row['layer']): row for row in rows if 'layer' in row}
  outputs = {row['weights']: row for row in rows if 'layer' not in row}
  assert len(layers) == 6 and set(outputs) == {'bfloat16', 'int8', 'int4'}
  for name in ('und', 'gen'):
    for layer in (1, 2):
      assert 0 < layers['int8', layer][f'{name}_own'] < layers['int4', layer][f'{name}_own'] < 0.2
    # The first layer's own error is that of all before it: the ViT's (und alone) and its own.
    assert layers['int4', 1]['gen_all'] == pytest.approx(layers['int4', 1]['gen_own'], rel=0.2)
    assert layers['int4', 2][f'{name}_all'] > layers['int4', 2][f'{name}_own']
  for name in ('vit', 'logits', 'velocities'):
    assert 0 < outputs['int8'][name] < 0.1 < outputs['int4'][name] * 10 and outputs['bfloat16'][name] < 0.05
  assert outputs['int4']['bytes'] < outputs['int8']['bytes'] < outputs['bfloat16']['bytes']
  assert outputs['int8']['same_choice'] > outputs['int4']['same_choice']


def test_reading_is_measured_beside_what_a_step_takes(sizes, tmp_path):
  config = synthetic.config(sizes, tokens=640)
  pairs = synthetic.visible_pairs(synthetic.tokens_of(synthetic.row(config)))
  takes = pipeline.appetite(config, 'h100:8')
  assert takes == pytest.approx(8 * 989e12 / train.model_flops(config, pairs))
  assert pipeline.appetite(config, 'h100:64') == takes, 'of a host, not of all'
  shown = [np.full((32, 32, 3), value, np.uint8) for value in (10, 200)]
  pipeline.write(tmp_path / 'set', side=32, format='PNG', steps=(1, 2), pictures=shown)
  made = records.read(tmp_path / 'set')
  assert {int(p[0, 0, 0]) for t in made for p in t.pictures} == {10, 200}
  assert np.mean([len(t.pictures) for t in made]) == 1.5
  (row,) = pipeline.run(dataclasses.replace(sizes, records=str(tmp_path / 'set'), read_rows=3))
  assert row['pictures'] == 'given' and row['pictures_a_second'] >= row['samples_a_second'] >= row['rows_a_second'] > 0
  assert row['times_the_step'] == pytest.approx(row['rows_a_second'] / takes)
  assert row['cores_for_4_times_the_step'] == pytest.approx(4 * takes * row['cpu_seconds_a_row'])


def test_pictures_have_the_spectrum_of_photographs():
  """Power falls with the frequency: an octave has a fourth to a tenth of the one below."""
  grey = pipeline.natural_picture(np.random.default_rng(0), 128).mean(axis=-1)
  frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None])
  power = np.abs(np.fft.fft2(grey)) ** 2
  octaves = [power[(frequency >= low) & (frequency < 2 * low)].mean() for low in (0.03, 0.06, 0.12)]
  assert all(4 < below / above < 10 for below, above in zip(octaves, octaves[1:], strict=False)), octaves


def test_the_small_world_is_trained_and_sampled(sizes, tiny, monkeypatch):
  painted = []

  class Painter:
    config = tiny

  monkeypatch.setattr(painter_lib, 'load', lambda name: Painter)

  def measure(painter, prompts, *, repeats):
    painted.append(prompts)
    return {'seconds': 2.0, 'trajectories': 2}

  monkeypatch.setattr(shapes.timing, 'measure', measure)
  (trained,) = shapes.train(sizes)
  assert trained['config'] == 'tiny' and trained['steps_a_second'] > 0
  (sampled,) = shapes.sample(sizes)
  assert sampled['trajectories_a_second'] == 1.0 and len(painted[0]) == 2


def test_several_suites_keep_what_is_whole(tmp_path, capfd, monkeypatch):
  """One that fails is named, with the rows it had; the table has both."""
  code = 'import sys; sys.exit(print("no such device") or 3)'
  python = sys.executable
  real = subprocess.run

  def run(command, **options):
    return real([python, '-c', code] if '--suite=text' in command else command, **options)

  monkeypatch.setattr(runner.subprocess, 'run', run)
  (tmp_path / 'text.json').write_text('{"suite": "text", "rows": [{"stale": 1}]}')
  with pytest.raises(SystemExit) as ended:
    benchmark.main(['--suite=matmul,text', '--size=tiny', f'--out={tmp_path}'])
  assert ended.value.code == 1
  page = (tmp_path / 'README.md').read_text()
  assert '256 x 256 x 256' in page and 'ended with status 3: no such device' in page and 'stale' not in page
  assert '1 of 2 suites are whole' in capfd.readouterr().out
  failed = runner.run_all(['matmul'], 'tiny', tmp_path, command=[], limit=9, total=0, say=print)
  assert failed == {'matmul': 'was not run: 0 s are over'}


@pytest.mark.parametrize(
  'line, words',
  [
    (['--suite=none', '--out=x'], 'unknown suite'),
    (['--suite=matmul'], '--out'),
    (['--suite=matmul', '--size=large', '--out=x'], 'invalid choice'),
  ],
)
def test_wrong_suites_are_one_line(line, words, capsys):
  with pytest.raises(SystemExit) as ended:
    benchmark.main(line)
  assert ended.value.code == 2 and words in capsys.readouterr().err


def test_a_table_for_every_kind_of_row():
  rows = [{'a': 1.5, 'first_call': 3.0}, {'a': 2500.0}, {'b': None, 'a': 1}]
  assert report._table(rows) == ['| a |', '|---|', '| 1.5 |', '| 2,500 |', '', '| b | a |', '|---|---|', '| None | 1 |']


def test_figures_stand_beside_those_of_an_earlier_run(tmp_path, capsys):
  now, then = tmp_path / 'now', tmp_path / 'then'
  for folder, seconds in ((now, 2.0), (then, 5.0)):
    folder.mkdir()
    rows = [{'task': 'train', 'seconds': seconds}, {'task': f'only {folder.name}', 'seconds': 1.0}]
    (folder / 'reference.json').write_text(json.dumps({'suite': 'reference', 'size': 'tiny', 'rows': rows}))
  for before in (then, then / 'reference.json'):
    page = report.page(now, 'command', before=before)
    assert '| train | 2 | 5 | 2.5 |' in page and '| only now | 1 |' in page and 'only then' not in page
  with pytest.raises(SystemExit):
    benchmark.main(['--suite=matmul', f'--out={tmp_path}', f'--compare={tmp_path / "none"}'])
  assert 'holds no figures of an earlier run' in capsys.readouterr().err


def test_the_script_for_an_accelerator_runs_on_a_cpu(tmp_path):
  environment = {
    **os.environ,
    'PYTHON': sys.executable,
    'SUITES': 'matmul',
    'WORKERS': '1',
    'PARITY_TESTS': 'tests/test_parity_transforms.py',
    'PYTEST_ADDOPTS': '',
  }
  script = ['bash', str(ROOT / 'launch/accelerator_check.sh'), str(tmp_path)]
  done = subprocess.run(script, env=environment, capture_output=True, text=True, cwd=tmp_path)
  assert done.returncode == 0, done.stdout + done.stderr
  page = (tmp_path / 'README.md').read_text()
  assert '## matmul (tiny)' in page and '2 tests passed, 0 failed' in page and '| b_transforms |' in page
  assert json.loads((tmp_path / 'parity.json').read_text())['platform'] == 'cpu'


def test_who_sees_whom_is_the_same_in_lists_of_blocks():
  """Every block that is skipped is empty, every one that is not masked is full: on rows of many shapes."""
  rng = np.random.default_rng(0)
  for _ in range(20):
    tokens = _random_tokens(rng, int(rng.choice((130, 256, 470))))  # A few lengths: each compiles.
    lists = pallas_gpu.prepare(tokens, tokens)
    visible = np.asarray(masks.visible(tokens, tokens))[0]
    order = np.asarray(lists.query_sort)[0]
    visible = visible[order][:, np.asarray(lists.key_sort)[0]]
    for i, (blocks, (whole, seen)) in enumerate(zip(*(np.asarray(x)[0] for x in lists.of_queries), strict=True)):
      rows = visible[i * pallas_gpu.BLOCK_Q : (i + 1) * pallas_gpu.BLOCK_Q]
      for place, j in enumerate(blocks):
        block = rows[:, j * pallas_gpu.BLOCK_K : (j + 1) * pallas_gpu.BLOCK_K]
        assert place < seen or not block.any()
        assert place >= whole or (block.shape == (pallas_gpu.BLOCK_Q, pallas_gpu.BLOCK_K) and block.all())
    assert np.asarray(lists.of_keys.counts).sum() == np.asarray(lists.of_queries.counts).sum()


def _random_tokens(rng, length):
  """Samples of texts and of full, noised and clean copies; padding at the end."""
  fields = np.zeros((6, length), np.int32)
  at, segment = 0, 0
  while at < length - 40:
    segment, order, span = segment + 1, 0, 0
    for _ in range(rng.integers(1, 6)):
      if at == length:
        break
      size, picture = int(rng.integers(1, 200)), rng.random() < 0.6
      size, span = min(size, length - at), span + picture
      own = np.arange(order, order + size)
      noised = int(picture and rng.random() < 0.5)
      reach = np.full(size, own[0] - 1 - rng.integers(0, 3)) if noised else own
      fields[:, at : at + size] = [[segment] * size, own, reach, [span * picture] * size, [noised] * size, own]
      at, order = at + size, order + size
  fields = fields[:, rng.permutation(length)]
  names = ('segment', 'order', 'reach', 'span', 'noised', 'position')
  return packed.TokenMeta(**{name: field[None] for name, field in zip(names, fields, strict=True)})
