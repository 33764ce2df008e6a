"""The commands, from arguments to files, on a tiny model with random weights."""

import dataclasses
import io
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support import toy

import pdgen
from pdgen import benchmark, evaluate, sample
from pdgen import flags as flags_lib
from pdgen.core import config
from pdgen.core.trajectory import Step, Trajectory
from pdgen.data import tokenizers
from pdgen.evals import geneval
from pdgen.inference import painter as painter_lib
from pdgen.inference import timing
from pdgen.weights import exported
from pdgen.worlds import shapes
from pdgen.worlds.shapes import renderer, scenes

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = f'--config={ROOT / "configs" / "shapes.py"}'
KNOWN = 'a photo of a red ring'
RING = renderer.render((scenes.Object('ring', 'red', 4),))


# Batches are of 1 and of 3 throughout: each size compiles once for all tests.


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  """An exported model of the shapes world that paints at most two pictures and writes little."""
  experiment = config.Config(
    model=config.ModelConfig(width=32, depth=1, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=32),
    sampling=config.SamplingConfig(max_pictures=2, max_text_tokens=24, max_tokens=200, flow_steps=2, text_guidance=1.0),
  )
  return str(
    exported.export_ema(
      tmp_path_factory.mktemp('model') / 'tiny',
      toy.params(experiment.model),
      config=experiment,
      tokenizer=tokenizers.ASSETS / 'shapes.model',
    )
  )


class Rings:
  """A painter that paints a red ring whatever is asked for, approves of everything, and records its calls."""

  config = config.Config()

  def __init__(self):
    self.calls = []
    self.stopped_at, self.not_finite = None, ()  # prompt at which Ctrl-C is pressed; numbers in every result

  def sample(self, prompts, **settings):
    self.calls.append((prompts, settings))
    return self.painted(prompts)

  def sample_batches(self, prompts, *, batch_size=None, **settings):
    self.calls.append((prompts, {**settings, 'batch_size': batch_size}))
    for first in range(0, len(prompts), batch_size or len(prompts)):
      if first == self.stopped_at:
        raise KeyboardInterrupt
      chosen = prompts[first : first + (batch_size or len(prompts))]
      yield list(range(first, first + len(chosen))), self.painted(chosen)

  def painted(self, prompts):
    timings = dict(seconds=1.5, compile_calls=0, text_steps=1, rounds=1, tokens=9, pictures=len(prompts))
    return painter_lib.Result([self.paint(p) for p in prompts], timings, self.not_finite)

  def paint(self, prompt):
    t = Trajectory(prompt=prompt, steps=()) if isinstance(prompt, str) else prompt
    *before, last = t.steps or [Step(plan='<ins>Add it.</ins><des>It.</des>')]
    # A draft that stands is approved of, whatever it shows; the next one is a red ring.
    changes = dict(draft=RING) if last.draft is None else dict(inspection='The intermediate step is correct.')
    return dataclasses.replace(t, steps=(*before, dataclasses.replace(last, **changes)), stop='finished')


@pytest.fixture
def rings(monkeypatch):
  """Stands for every checkpoint."""
  painter = Rings()

  def load(parser, flags, **settings):
    return painter, shapes

  monkeypatch.setattr(flags_lib, 'load', load)
  return painter


def test_sample_as_a_command_prints_and_writes_and_warns_of_nothing(checkpoint, tmp_path):
  command = [sys.executable, '-W', 'error::RuntimeWarning', '-m', 'pdgen.sample', f'--checkpoint={checkpoint}']
  command += [f'--prompt={KNOWN}', '--prompt=a <cat>', '--seed=3', f'--out={tmp_path}']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert 'Warning' not in done.stderr
  assert 'sketch   [picture 1: ' in done.stdout and f'✗ {KNOWN}' in done.stdout
  assert '· a <cat>' in done.stdout and '0 of 1 prompts painted right' in done.stdout
  assert f'To look at: {tmp_path}/index.html' in done.stdout
  page = (tmp_path / 'index.html').read_text(encoding='utf-8')
  assert KNOWN in page and 'a &lt;cat&gt;' in page
  first, second = json.loads((tmp_path / 'trajectories.json').read_text(encoding='utf-8'))
  assert (first['prompt'], second['prompt'], second['verdict']) == (KNOWN, 'a <cat>', None)
  assert (
    first['spec']['include'] == [{'name': 'ring', 'count': 1, 'color': 'red', 'position': None}]
    and not first['verdict'][0]
  )
  named = {step[name] for t in (first, second) for step in t['steps'] for name in ('draft', 'refined')} - {None}
  assert named == {f'pictures/{p.name}' for p in (tmp_path / 'pictures').iterdir()}
  assert all(np.asarray(Image.open(tmp_path / file)).shape == (32, 32, 3) for file in named)


def test_a_model_of_no_world_is_sampled_and_not_judged(checkpoint, tmp_path, capsys):
  folder = shutil.copytree(checkpoint, tmp_path / 'worldless')
  header = json.loads((folder / 'config.json').read_text())
  header['config']['data']['sources'] = []
  (folder / 'config.json').write_text(json.dumps(header))
  with pytest.warns(UserWarning, match='not trained to paint in steps'):
    sample.main([f'--checkpoint={folder}', f'--prompt={KNOWN}'])
  out = capsys.readouterr().out
  assert '[not judged]' in out and '[picture 1]' in out and 'detector' not in out
  sample.main([f'--checkpoint={folder}', f'--prompt={KNOWN}', '--mode=direct'])  # Warnings are errors.
  capsys.readouterr()
  for command, arguments in ((sample, ['--heldout=1']), (evaluate, ['geneval'])):
    with pytest.raises(SystemExit):
      command.main([*arguments, f'--checkpoint={folder}'])
    error = capsys.readouterr().err
    assert 'was trained in no world of pdgen' in error and ('--world=shapes' in error) == (command is evaluate)


def test_a_loaded_painter_samples_one_prompt_or_several_alike(checkpoint):
  painter = pdgen.load(checkpoint)
  assert isinstance(painter, pdgen.Painter)
  a, b = (painter.sample(prompts, seed=3) for prompts in ([KNOWN], KNOWN))
  np.testing.assert_array_equal(a.trajectories[0].final, b.trajectories[0].final)


def test_held_out_prompts_are_scored_and_the_flags_arrive(rings, capsys):
  given = ['a photo of a blue ring', KNOWN]
  asked = [f'--prompt={prompt}' for prompt in given]
  sample.main(['--heldout=1', *asked, '--mode=direct', '--seed=5', '--batch_size=7'])
  (prompts, settings), out = rings.calls[0], capsys.readouterr().out
  assert settings == dict(mode='direct', seed=5, batch_size=7, size=None)
  assert [p.prompt for p in prompts] == [*given, *(m['prompt'] for m in shapes.prompts('heldout', per_task=1))]
  assert '[picture 1: red ring at (15, 15)]' in out and f'✓ {KNOWN}' in out
  right = sum(geneval.evaluate(p.spec.to_row(p.prompt), shapes.detect(RING))[0] for p in prompts)
  assert f'{right} of 8 prompts painted right' in out and 0 < right < 8
  assert out.startswith(f'prompt   {KNOWN}\n')  # told is one that is right


def test_every_batch_is_written_as_it_is_painted_and_ctrl_c_says_what_is_kept(rings, tmp_path, capsys):
  rings.stopped_at = 4
  with pytest.raises(SystemExit) as stopped:
    sample.main([f'--prompt={i}' for i in range(6)] + ['--batch_size=2', f'--out={tmp_path}'])
  printed = capsys.readouterr()
  assert stopped.value.code == 130 and printed.out == ''
  assert printed.err == f'python -m pdgen.sample: stopped. 4 of 6 trajectories are in {tmp_path}/index.html\n'
  told = json.loads((tmp_path / 'trajectories.json').read_text(encoding='utf-8'))
  assert [t['prompt'] for t in told] == ['0', '1', '2', '3'] and (tmp_path / 'index.html').is_file()
  # The next one with fewer prompts leaves nothing of it.
  rings.stopped_at = None
  sample.main(['--prompt=new', f'--out={tmp_path}'])
  assert [p.name for p in (tmp_path / 'pictures').iterdir()] == ['00000_1_draft.png']
  rings.stopped_at = 0
  with pytest.raises(SystemExit):
    sample.main(['--prompt=x'])
  assert 'Nothing is kept.' in capsys.readouterr().err


def test_pictures_that_are_not_finite_end_with_status_1(rings, tmp_path, capsys):
  rings.not_finite = (0,)
  with pytest.raises(SystemExit) as ended:
    sample.main(['--prompt=x', f'--out={tmp_path}'])
  assert ended.value.code == 1 and (tmp_path / 'index.html').is_file() and 'To look at' in capsys.readouterr().out


def test_output_is_tried_before_anything_is_loaded_or_painted(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(flags_lib, 'load', lambda *_, **__: pytest.fail('The checkpoint is loaded.'))
  (tmp_path / 'file').touch()
  for command, arguments, out in (
    (sample, ['--prompt=x'], tmp_path / 'file' / 'out'),
    (sample, ['--prompt=x'], tmp_path / 'file'),
    (evaluate, ['geneval'], tmp_path / 'file' / 'out'),
    (evaluate, ['inspection'], tmp_path / 'file'),
    (benchmark, [], tmp_path / 'file' / 'out.json'),
    (benchmark, [], tmp_path),
  ):
    with pytest.raises(SystemExit) as error:
      command.main([*arguments, f'--out={out}'])
    err = capsys.readouterr().err
    assert error.value.code == 2 and err.count('\n') == 1 and str(tmp_path) in err and 'Name another' in err


def test_a_stopped_evaluation_says_where_it_goes_on(rings, monkeypatch, tmp_path, capsys):
  def stop(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(rings, 'sample', stop)
  with pytest.raises(SystemExit) as stopped:
    evaluate.main(['geneval', '--per_task=1', f'--out={tmp_path}'])
  assert stopped.value.code == 130
  assert f'What is done is in {tmp_path}: the same command goes on from there.' in capsys.readouterr().err


def test_a_benchmark_keeps_every_row_as_it_is_measured(rings, monkeypatch, tmp_path, capsys):
  rings.mesh, measured = None, dict.fromkeys(('trajectories', 'pictures', 'seconds', 'compile', 'other'), 1.0)

  def measure(painter, prompts, *, mode, repeats):
    if len(prompts) == 3:
      raise KeyboardInterrupt
    return {**measured, **dict.fromkeys(timing.PHASES, 0.1), 'compiled_again': 0}

  monkeypatch.setattr(timing, 'measure', measure)
  file = tmp_path / 'new' / 'rows.json'
  with pytest.raises(SystemExit) as stopped:
    benchmark.main(['--batch_sizes=1,2,3', f'--out={file}'])
  assert stopped.value.code == 130 and f'2 of 3 rows are in {file}.' in capsys.readouterr().err
  assert [row['batch_size'] for row in json.loads(file.read_text())] == [1, 2]


def test_an_error_of_ours_keeps_its_traceback(rings, monkeypatch):
  """A bare key or a wrong type is no message to a user."""

  def paint(prompts, **_):
    raise KeyError('slot')

  monkeypatch.setattr(rings, 'sample_batches', paint)
  with pytest.raises(KeyError):
    sample.main(['--prompt=x'])


@pytest.mark.parametrize(
  'arguments, words',
  [
    ([], 'nothing to paint'),
    ([f'--prompt={KNOWN}', '--checkpoint=nowhere'], "No model 'nowhere'"),
    ([f'--prompt={KNOWN}', '--sampling.grammar=maybe'], 'neither true nor false'),
    ([f'--prompt={KNOWN}', '--sampling.renorm=loud'], "Unknown renorm 'loud'"),
    ([f'--prompt={KNOWN}', '--sampling.flow_steps=many'], 'invalid int value'),
    ([f'--prompt={KNOWN}', '--sampling.flow_steps=0'], 'config.sampling.flow_steps=0 is too small'),
    ([f'--prompt={KNOWN}', '--sampling.max_tokens=50'], 'sampling.max_tokens=50 leaves no room'),
    ([f'--prompt={KNOWN}', '--promp=x'], 'unrecognized arguments'),
  ],
)
def test_what_cannot_be_is_said(checkpoint, arguments, words, capsys):
  with pytest.raises(SystemExit) as error:
    sample.main([f'--checkpoint={checkpoint}', *arguments])
  assert error.value.code == 2 and words in capsys.readouterr().err


def test_sampling_options_are_laid_over_the_checkpoints_own(checkpoint):
  parser = sample._parser()
  flags = parser.parse_args([f'--checkpoint={checkpoint}', '--sampling.text_guidance=3', '--sampling.flow_steps=5'])
  painter, world = flags_lib.load(parser, flags)
  own = pdgen.load(checkpoint).config.sampling
  assert painter.config.sampling == dataclasses.replace(own, text_guidance=3.0, flow_steps=5)
  assert world is shapes


def test_every_field_of_the_sampling_config_is_an_option():
  given = sample._parser().parse_args(
    [
      f'--sampling.{f.name}={",".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default}'
      for f in dataclasses.fields(config.SamplingConfig)
      if f.default != ()
    ]
    + ['--sampling.stop_texts=a, b', '--sampling.stop_texts=c']  # Texts of any kind: one is given at a time.
  )
  assert config.SamplingConfig(**flags_lib.sampling_given(given)) == config.SamplingConfig(stop_texts=('a, b', 'c'))


def test_geneval_writes_the_official_folder_and_prints_what_is_in_it(checkpoint, tmp_path, capsys):
  out = tmp_path / 'geneval'
  command = ['geneval', f'--checkpoint={checkpoint}', '--per_task=2', '--batch_size=3', f'--out={out}']
  evaluate.main(command)
  printed = capsys.readouterr().out
  assert sorted(p.name for p in out.iterdir()) == [
    *(f'{i:05}' for i in range(12)),
    *('index.html', 'results.jsonl', 'run.json', 'scores.json', 'scores.md'),
  ]
  assert (out / '00011' / 'samples' / '0000.png').is_file()
  report = geneval.read_results(out)
  assert tuple(report.tasks) == shapes.TASKS and all(s.total == 2 for s in report.tasks.values())
  assert str(report) in printed and '12 trajectories' in printed
  # The same command goes on: here, there is nothing left to paint but one picture that is gone.
  files = {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
  (out / '00007' / 'samples' / '0000.png').unlink()
  evaluate.main(command)
  assert '1 trajectories' in capsys.readouterr().out
  scored = out / 'scores.json'
  assert {p: p.read_bytes() for p in files if p != scored} == {p: files[p] for p in files if p != scored}
  assert json.loads(scored.read_text())['values'] == json.loads(files[scored])['values']
  # What is left there of another run would be scored, too.
  with pytest.raises(SystemExit):
    evaluate.main([*command, '--seed=1'])
  assert 'holds another run' in capsys.readouterr().err
  (tmp_path / 'theirs').mkdir()
  (tmp_path / 'theirs' / 'file').touch()
  with pytest.raises(SystemExit):
    evaluate.main([*command[:-1], f'--out={tmp_path / "theirs"}'])
  assert 'is not empty' in capsys.readouterr().err


def test_geneval_scores_right_pictures_as_right(rings, capsys):
  evaluate.main(['geneval', '--per_task=6', '--mode=direct', '--seed=4'])
  (prompts, settings), out = rings.calls[0], capsys.readouterr().out
  assert settings == dict(mode='direct', seed=list(range(4, 40)), batch_size=64)
  assert prompts == [m['prompt'] for m in shapes.prompts('heldout', per_task=6, seed=4)]
  # A red ring is one of the six single objects, and no two objects.
  single, two = (next(line for line in out.splitlines() if line.startswith(t)) for t in ('single_object', 'two_object'))
  assert '(1 / 6)' in single and '(0 / 6)' in two


def test_inspection_asks_about_every_kind_and_about_own_drafts(rings, tmp_path, capsys):
  evaluate.main(['inspection', '--per_kind=2', '--drafts=30', '--seed=1', f'--out={tmp_path / "o"}'])
  out = capsys.readouterr().out
  assert all(f'\n{kind} ' in out for kind in (*shapes.ERROR_KINDS, 'own'))
  counts = json.loads((tmp_path / 'o' / 'inspection.json').read_text())
  assert counts['injected']['found'] == {kind: {'hits': 0, 'total': 2} for kind in shapes.ERROR_KINDS}
  assert counts['injected']['false_alarms'] == {'hits': 0, 'total': 2}
  # Drafts of its own are all red rings, right as often as a red ring in the middle is what is asked for.
  asked = [shapes.injected(None, seed=1, index=i).expected for i in range(30)]
  right = sum([tuple(o) for o in scene] == [('ring', 'red', 4)] for scene in asked)
  assert counts['own']['found'] == {'own': {'hits': 0, 'total': 30 - right}}
  assert counts['own']['false_alarms'] == {'hits': 0, 'total': right}
  # Injected drafts in one call; its own in one that paints and one that inspects, with other noise.
  assert [len(prompts) for prompts, _ in rings.calls] == [2 * len(shapes.ERROR_KINDS) + 2, 30, 30]
  assert [s['pictures'] for _, s in rings.calls] == [1, 1, 1] and [s['seed'] for _, s in rings.calls] == [1, 1, 2]


def test_benchmark_splits_the_time_and_compiles_once(checkpoint, tmp_path, capsys):
  file = tmp_path / 'figures.json'
  benchmark.main([f'--checkpoint={checkpoint}', '--batch_sizes=1,3', '--repeats=1', f'--out={file}'])
  printed = io.StringIO(capsys.readouterr().out)
  rows = json.loads(file.read_text())
  assert [r['batch_size'] for r in rows] == [r['trajectories'] for r in rows] == [1, 3]
  for row in rows:
    assert row['compiled_again'] == 0 and row['text'] > 0 and row['denoising'] > 0
    assert sum(row[part] for part in (*timing.PHASES, 'other')) == pytest.approx(row['seconds'])
    assert row['rounds'] >= 1 and row['pictures'] >= row['batch_size']
  assert len(printed.read().splitlines()) == 4


def test_nothing_is_timed_without_a_call():
  with pytest.raises(ValueError, match='repeats=0: at least 1 call is timed'):
    timing.measure(Rings(), ['x'], repeats=0)


def test_a_painter_that_compiles_every_time_is_told():
  row = dict.fromkeys((*timing.PHASES, 'other'), 0.2)
  row |= dict(batch_size=1, trajectories=1, pictures=1, seconds=1.0, compile=2.0)
  assert 'COMPILED AGAIN: 2' in benchmark._line({**row, 'compiled_again': 2})
  assert 'AGAIN' not in benchmark._line({**row, 'compiled_again': 0})


def test_pdgen_names_arrive_when_used():
  assert pdgen.load is painter_lib.load and pdgen.Painter is painter_lib.Painter
