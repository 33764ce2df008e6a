"""The paper's tables in the small: plan and folders, processes that are killed, figures of known rows, reports."""

import dataclasses
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pdgen import evaluate, testing
from pdgen.ablations import arms, direct_set, figures, plot, report, runner, settings, tasks
from pdgen.construction import build_config
from pdgen.core import config as config_lib
from pdgen.cost import training_flops
from pdgen.data import records
from pdgen.evals import intervals
from pdgen.worlds import shapes

pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # Of ml_collections.
TINY = testing.tiny_config()


def tiny(**changes) -> settings.AblationsConfig:
  options = dict(
    seeds=(0, 1),
    base=TINY,
    process=TINY,
    direct=dataclasses.replace(TINY, data=dataclasses.replace(TINY.data, batch_size=4)),
    construct=build_config.BuildConfig(world='shapes', conflict=build_config.ConflictConfig(samples=8, negative=4)),
    painting=settings.PaintingConfig(per_task=1, best_of=2),
    speed=settings.SpeedConfig(trial_steps=0),
  )
  return settings.AblationsConfig(**{**options, **changes})


def row(number, correct, *, rejected=(), pictures=None, tag=None):
  steps = [{'rejected': n in rejected} for n in range(2)]
  told = {'number': number, 'tag': tag or shapes.TASKS[number % 6], 'correct': correct, 'tokens': 100, 'steps': steps}
  return {**told, 'pictures': pictures or 2 + len(rejected)}


def write_scores(task: tasks.Task, *, luck: int):
  """What the command of paintings leaves: the process is right at half of the prompts more than painting in one go."""
  scores = task.folder / 'scores'
  scores.mkdir(parents=True, exist_ok=True)
  is_process = 'process' in task.command
  if not is_process:
    rows = [
      {'filename': f'{i:05}/samples/{k:04}.png', 'tag': shapes.TASKS[i], 'correct': i < 1}
      for i in range(6)
      for k in range(2)
    ]
    (scores / 'scores.json').write_text(json.dumps({'rows': rows}))
    return
  for name in ('free', 'edits_0'):
    rows = [row(i, i < 4 + luck % 2, rejected=(1,) if name == 'free' and i == 3 else ()) for i in range(6)]
    (scores / f'{name}.jsonl').write_text(''.join(json.dumps(one) + '\n' for one in rows))


class Launched:
  """Stands for the commands: each leaves what the real one leaves, in a process that ends at once."""

  def __init__(self, *, fails='', stops=''):
    self.names, self.fails, self.stops = [], fails, stops

  def __call__(self, task, cores):
    self.names.append(task.name)
    if task.kind == tasks.PAINT:
      write_scores(task, luck=len(task.needs[0]))
    if task.name not in (self.fails, self.stops):
      task.product.parent.mkdir(parents=True, exist_ok=True)
      task.product.touch()
    task.folder.mkdir(parents=True, exist_ok=True)
    (task.folder / runner.LOG).write_text('compiled\nout of luck\n')
    return subprocess.Popen(['false' if task.name == self.fails else 'true'])


def test_the_plan_makes_what_is_needed_first_and_every_arm_takes_equal_compute(tmp_path):
  plan = tasks.plan(tiny(), tmp_path)
  seen = set()
  for task in plan.tasks:
    assert set(task.needs) <= seen, task.name
    seen.add(task.name)
  assert len({task.folder for task in plan.tasks}) == len(plan.tasks)
  assert {t.name for t in plan.tasks if t.kind == tasks.TRAIN} == {'base'} | {
    f'{a}-{s}' for a in arms.ARMS for s in (0, 1)
  }
  works = [t.work for t in plan.tasks if t.kind == tasks.TRAIN and t.name != 'base']
  step = training_flops.train_flops(tiny().direct)['total']
  assert max(works) - min(works) <= step
  # The checkpoint that writes the traces is the arm that knows no critique, of the first seed.
  conflict = json.loads(plan.task('set conflict').files['config.json'])
  assert plan.task('set conflict').needs == ('multi_turn-0',)
  assert conflict['conflict']['checkpoint'] == f'{plan.task("multi_turn-0").folder}/run/final'
  assert json.loads(plan.task('set conflict_graph').files['config.json'])['conflict']['checkpoint'] == ''
  plain = json.loads(plan.task('set multi_turn_plain').files['config.json'])
  assert plain['scenes']['operations'] == {'refine': 0.0, 'swap': 0.0, 'remove': 0.0}
  cell = json.loads(plan.task('process-1').files['config.json'])
  assert cell['seed'] == 1 and cell['train']['init_from'] == f'{plan.task("base").folder}/run/final'
  assert [s['name'] for s in cell['data']['sources']] == [
    f'{plan.task(f"set {n}").folder}/set/train' for n in ('multi_turn', 'conflict', 'alignment')
  ]
  assert sum(s['weight'] for s in cell['data']['sources']) == pytest.approx(1)


def test_a_cell_is_found_again_exactly_where_nothing_that_decides_it_has_changed(tmp_path):
  names = lambda config, out=tmp_path: {t.name: t.folder.name for t in tasks.plan(config, out).tasks}
  before = names(tiny())
  assert names(tiny(), tmp_path / 'moved') == before
  assert names(tiny(speed=settings.SpeedConfig(gflops=1.0), seeds=(0, 1))) == before
  assert {n: f for n, f in names(tiny(seeds=(0, 1, 2))).items() if n in before} == before
  other = names(tiny(base=dataclasses.replace(TINY, seed=7)))
  assert {n for n in before if other[n] == before[n]} == {
    n for n in before if n.startswith('set') and n != 'set conflict'
  }
  more = names(tiny(painting=settings.PaintingConfig(per_task=2, best_of=2)))
  assert all((more[t.name] == before[t.name]) == (t.kind != tasks.PAINT) for t in tasks.plan(tiny(), tmp_path).tasks)


def test_the_written_config_files_are_what_the_commands_read(tmp_path):
  plan = tasks.plan(tiny(), tmp_path)
  for name, read in (('direct-0', config_lib.from_config_dict), ('set alignment', build_config.from_config_dict)):
    task = plan.task(name)
    runner._write_files(task)
    made = read(runpy.run_path(str(task.folder / 'config.py'))['get_config']())
    assert json.loads(json.dumps(dataclasses.asdict(made))) == json.loads(task.files['config.json'])


def test_what_is_done_is_not_done_again_and_what_fails_is_named(tmp_path):
  plan, said = tasks.plan(tiny(seeds=(0,), tables=('compute',)), tmp_path), []
  with pytest.raises(ValueError, match=r'direct-0 did not finish'):  # Told to stop, it ends well.
    runner.run(plan, tmp_path, jobs=1, launch=(zeroth := Launched(stops='direct-0')), say=said.append)
  with pytest.raises(ValueError, match=r'process-0 did not finish: out of luck \(see .*log.txt\)'):
    runner.run(plan, tmp_path, jobs=2, launch=(first := Launched(fails='process-0')), say=said.append)
  assert 'process-0' in first.names and not [n for n in first.names if n.startswith('process-0 ')]
  runner.run(plan, tmp_path, jobs=2, launch=(second := Launched()), say=said.append)
  done = [n for n in zeroth.names + first.names if n not in ('process-0', 'direct-0')] + ['direct-0']
  assert sorted(done + second.names) == sorted(t.name for t in plan.tasks)
  assert '0 of 13 tasks are left' in said[-1]
  # Killed between the end of a build and its note.
  (plan.task('set alignment').folder / tasks.DONE).unlink()
  runner.run(plan, tmp_path, jobs=2, launch=(third := Launched()), say=said.append)
  assert not third.names and 'process-0' not in ''.join(said[:1])
  assert said[0].startswith('13 of 13 tasks are left: about')
  assert runner.left(plan, runner.rates(plan, tmp_path), jobs=2) == 0


def test_the_estimate_is_of_the_longest_way_through_the_plan(tmp_path):
  plan = tasks.plan(tiny(), tmp_path)
  rate = runner.Rates(gflops=1e-3, painting=1.0, sample=0.0, start=5.0, source='a test')
  one, two, many = (runner.left(plan, rate, jobs=n) for n in (1, 2, 1000))
  assert one == pytest.approx(sum(rate.seconds(t) for t in plan.tasks))
  assert one / 2 <= two < one
  way = ('base', 'set multi_turn', 'multi_turn-0', 'set conflict', 'process-0', 'process-0 free-0')
  assert many >= sum(rate.seconds(plan.task(n)) for n in way if n != 'set multi_turn')
  for name in ('base', 'set multi_turn'):
    plan.task(name).folder.mkdir(parents=True)
    runner._finish(plan.task(name), 105.0)
  told = runner.rates(plan, tmp_path)
  assert told.gflops == pytest.approx(plan.task('base').work / 60 / 1e9) and 'done' in told.source
  assert 'done' in runner.described(plan, told, jobs=2).splitlines()[0]


def test_a_stopped_run_leaves_no_process(tmp_path):
  """Killed itself, or interrupted: what it started ends."""
  pids = tmp_path / 'pids'
  script = f"""
import pathlib, signal, sys
from pdgen.ablations import runner, settings, tasks
signal.signal(signal.SIGINT, signal.default_int_handler)  # A job in the background of a script ignores it.
def launch(task, cores):
  tasks.arguments = lambda task: [sys.executable, '-c', 'import signal; signal.pause()']
  process = runner.start(task, cores)
  with open({str(pids)!r}, 'a') as file:
    print(process.pid, file=file)
  return process
out = pathlib.Path({str(tmp_path / 'out')!r})
config = settings.AblationsConfig(speed=settings.SpeedConfig(trial_steps=0))
runner.run(tasks.plan(config, out), out, jobs=1, launch=launch)
"""
  for how in (signal.SIGKILL, signal.SIGINT):
    pids.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, '-c', script], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (pids.is_file() and pids.read_text().endswith('\n')):
      assert process.poll() is None
      time.sleep(0.05)
    process.send_signal(how)
    process.wait()
    pid, give_up = int(pids.read_text()), time.monotonic() + 120  # Alone it never ends.
    while _lives(pid):
      if time.monotonic() > give_up:
        os.kill(pid, signal.SIGKILL)
        pytest.fail(f'after {how.name} the process lived on')
      time.sleep(0.05)


def _lives(pid: int) -> bool:
  try:
    state = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
  except FileNotFoundError:
    return False
  return state != 'Z'


def test_paintings_in_one_go_keep_prompts_and_last_pictures(tmp_path):
  made = [shapes.trajectory('misalignment', seed=1, index=i) for i in range(5)]
  with records.Writer(tmp_path / 'set' / 'train') as writer:
    for one in made:
      writer.write(one)
  (tmp_path / 'direct' / 'train').mkdir(parents=True)
  direct_set.write(tmp_path / 'set', tmp_path / 'direct')
  direct_set.write(tmp_path / 'set', tmp_path / 'direct')  # Finished.
  read = records.Reader(tmp_path / 'direct' / 'train')
  for one, other in zip(made, (read[i] for i in range(len(read))), strict=True):
    assert (one.prompt, one.spec, other.mode) == (other.prompt, other.spec, 'direct')
    assert len(other.pictures) == 1 and (other.final == one.final).all() and other.steps[0].plan is None


# --- figures ---


def test_what_a_choice_among_several_costs_and_finds():
  free = [row(0, True, rejected=(1,)), row(0, True)]
  forbidden = [row(0, False), row(0, True)]
  chosen = figures.best_own(free, forbidden, 8)
  # Two drafts of the first until it was rejected, its words by their share; all of the second.
  assert (
    chosen.correct == 1 and chosen.evaluations == 2 * 8 + 2 * 8 and chosen.tokens == pytest.approx(100 * 2 / 3 + 100)
  )
  assert figures.best_own(free[:1], forbidden[:1], 8).correct == 0
  assert figures.best_own([free[1]], [forbidden[1]], 8) == ('single_object', 1.0, 16.0, 100)


def test_differences_are_paired_and_trainings_widen_them():
  rng = np.random.default_rng(0)
  hard = rng.random((1, 60)) < 0.5
  values = np.repeat(hard, 3, axis=0).astype(float)
  assert intervals.over_seeds(values - values).high == 0
  apart = values.copy()
  apart[0, :20] = 0
  same, wide = intervals.over_seeds(values), intervals.over_seeds(apart)
  assert wide.high - wide.low > 1.5 * (same.high - same.low)
  one = intervals.over_seeds(values[:1])
  assert one.low == pytest.approx(same.low) and one.count == 60 and same.count == 180
  assert np.isnan(intervals.over_seeds(np.zeros((2, 0))).value)
  # No prompt differs, and still ten of them prove little.
  none = intervals.over_seeds(np.zeros((3, 10)), extremes=(-1, 1))
  assert none.value == 0 and none.low == -none.high < -0.2


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  out = tmp_path_factory.mktemp('tables')
  plan = tasks.plan(tiny(), out)
  runner.run(plan, out, jobs=8, launch=Launched(), say=lambda words: None)
  return plan, out


def test_tables_of_known_paintings(finished):
  found = {one.table.name: one for one in figures.results(finished[0])}
  assert list(found) == list(arms.TABLES) and found['compute'].seeds == 2
  value = lambda table, line, column: found[table].values[line, column].value
  assert value('compute', 'direct', 'overall') == pytest.approx(1 / 6)
  assert value('compute', 'process', 'overall') == pytest.approx(5 / 6)  # 'process-0' has nine letters.
  assert (
    value('compute', 'direct', 'evaluations') == 8 and value('compute', 'direct, more flow steps', 'evaluations') == 16
  )
  assert value('compute', 'process', 'evaluations') == pytest.approx(8 * (2 + 1 / 6))
  assert value('subsets', 'baseline', 'position') == 0 and value('subsets', 'baseline', 'colors') == 1
  gaps = {(d.line, d.against, d.column): d for d in found['compute'].differences}
  assert gaps['process', 'direct', 'overall'].ours.value == pytest.approx(4 / 6)
  assert gaps['process', 'direct', 'overall'].verdict == ''
  e = intervals.Estimate
  verdict = lambda low, high, paper: (
    figures.Difference('a', 'b', 'c', e((low + high) / 2, low, high, 1), e(0, 0, 0, 1), paper).verdict
  )
  assert verdict(0.1, 0.2, 0.05) == figures.REPRODUCED and verdict(0.1, 0.2, -0.05) == figures.CONTRADICTED
  assert verdict(-0.1, 0.2, 0.05) == figures.UNDECIDED and verdict(0.1, 0.2, None) == ''


def test_the_report_has_every_figure_and_the_papers_apart(finished, monkeypatch):
  plan, out = finished
  monkeypatch.setattr(plot, 'is_there', lambda: False)
  assert plot.REMEDY in report.write(plan, out) and not (out / report.PLOT).exists()
  told = json.loads((out / report.JSON).read_text())
  assert (
    set(told['tables']) == set(arms.TABLES)
    and told['tables']['critique']['lines']['baseline']['paper']['colors'] == 0.82
  )
  text = (out / report.MARKDOWN).read_text()
  assert 'nan' not in text and text.count('## Table') == 3 and "The paper's figures (arXiv 2604.04746" in text
  assert '| + self-sampled critique | 0.87 | 0.72 | 0.69 |' in text
  assert settings.from_config_dict({'seeds': told['config']['seeds']}).seeds == (0, 1)


def test_the_plot_shows_every_table(finished, tmp_path):
  from PIL import Image

  plot.draw(figures.results(finished[0])[-2:], tmp_path / 'a.png')
  with Image.open(tmp_path / 'a.png') as image:
    assert image.width > 1000 and len(np.unique(np.asarray(image.convert('L')))) > 10


def test_seeds_that_are_not_done_are_left_out_and_tables_without_one(tmp_path):
  plan = tasks.plan(tiny(), tmp_path)
  assert figures.results(plan) == []
  assert 'no table is whole yet' in report.write(plan, tmp_path)


# --- settings and the command ---


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(tables=('table9',)), "names 'table9'. Known"),
    (dict(seeds=(1, 1)), 'no seed twice'),
    (dict(seeds=()), 'at least one'),
  ],
)
def test_settings_that_cannot_be_are_named(changes, words):
  with pytest.raises(ValueError, match=words):
    tiny(**changes)


def test_a_table_trains_its_own_arms_and_the_one_that_writes_traces():
  assert tiny(tables=('compute',)).arms == ('direct', 'process', 'multi_turn')
  assert tiny(tables=('critique',)).arms == ('process', 'multi_turn', 'graph_critique')


@pytest.mark.parametrize('budget', ['full', 'quick'])
def test_the_dry_run_of_the_config_says_what_it_takes_and_writes_nothing(budget, tmp_path, capsys):
  out = tmp_path / 'out'
  options = [f'--config=configs/ablations.py:{budget}', f'--out={out}', '--jobs=2', '--dry_run']
  evaluate.main(['ablations', *options, '--config.painting.per_task=7'])
  told = capsys.readouterr().out
  assert '--per_task=7' in told and 'the rate of the config' in told.splitlines()[-1] and not out.exists()
  assert told.count('pdgen.train') == {'full': 25, 'quick': 11}[budget]


def test_the_command_refuses_in_one_line(capsys):
  for options, words in (
    (['--config=configs/ablations.py:huge'], 'huge is unknown'),
    (['--config=configs/ablations.py', '--config.seed=3'], 'seed'),
    (['--config=configs/ablations.py', '--jobs=0'], 'out of range'),
    (['--config=configs/ablations.py', '--batch_size=3'], 'unrecognized arguments: --batch_size=3'),
  ):
    with pytest.raises(SystemExit) as stop:
      evaluate.main(['ablations', '--out=out/none', '--dry_run', *options])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and error.count('\n') == 1


def test_cores_are_shared_out():
  shares = runner.shares_of_cores(2)
  known = set(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else set(range(os.cpu_count()))
  assert set().union(*shares) == known
