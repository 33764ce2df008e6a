"""Tasks: what the tables need, as commands of pdgen in folders that are named by a hash of all that decides them.

    OUT/sets/conflict-1f0c27ab/         config.json, config.py, set/       pdgen.construct build
    OUT/cells/process-0-94e2d3b0/       config.json, config.py, run/       pdgen.train
    OUT/cells/process-0-94e2d3b0/free-0-7be01c22/                          pdgen.evaluate

A folder with `done.json` is finished. What is changed in the config gets other folders; all else is found again.
"""

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pdgen.ablations import arms, settings
from pdgen.construction import build_config, rewrites
from pdgen.core import config as config_lib
from pdgen.core import dataclass_io
from pdgen.cost import training_flops

DONE = 'done.json'  # In the folder of a task: its command and the seconds that it took.
BUILD, CONVERT, TRAIN, PAINT = KINDS = ('build', 'convert', 'train', 'paint')
BASE = 'base'
_PRODUCTS = {
  BUILD: 'set/build.json',
  CONVERT: 'set/train/index.json',
  TRAIN: 'run/final/config.json',
  PAINT: 'scores/scores.json',
}
_CONFIG_PY = '''"""{what}."""

import json
import pathlib

from {module} import {name}


def get_config():
  values = json.loads(pathlib.Path(__file__).with_name('config.json').read_text())
  return {name}.to_config_dict({name}.from_config_dict(values))
'''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """One command."""

  kind: str  # One of KINDS.
  name: str  # Unique, for people.
  folder: pathlib.Path
  command: tuple[str, ...]  # Of pdgen, with its arguments; of CONVERT: the source and the set that is made of it.
  needs: tuple[str, ...] = ()  # Names of the tasks that come before.
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)  # Name and content, written before it starts.
  work: float = 0.0  # FLOPs of a training, else samples or paintings.

  @property
  def product(self) -> pathlib.Path:
    """What the command leaves last. A training that is told to stop ends well, too, but without it."""
    return self.folder / _PRODUCTS[self.kind]

  @property
  def is_done(self) -> bool:
    return (self.folder / DONE).is_file()

  @property
  def shell(self) -> str:
    """The command, to be given by hand."""
    return (
      f'python -m pdgen.{" ".join(self.command)}' if self.kind != CONVERT else f'({self.kind} {" ".join(self.command)})'
    )


@dataclasses.dataclass(frozen=True)
class Plan:
  """All tasks, each after those that it needs."""

  config: settings.AblationsConfig
  tasks: tuple[Task, ...]

  def task(self, name: str) -> Task:
    return next(task for task in self.tasks if task.name == name)

  def paintings(self, arm: str, seed: int) -> list[Task]:
    """Those of a model, in the order of `_paint`."""
    return [task for task in self.tasks if task.kind == PAINT and task.needs == (cell(arm, seed),)]


def cell(arm: str, seed: int) -> str:
  """The name of a training."""
  return f'{arm}-{seed}'


def plan(config: settings.AblationsConfig, out: pathlib.Path) -> Plan:
  """The tasks of a config.

  Args:
    config: of the tables.
    out: folder of everything.
  """
  return Plan(config, tuple(_Planner(config, out).made.values()))


def direct_steps(config: settings.AblationsConfig) -> int:
  """Steps of the direct arm: the FLOPs of a tuning with the process, to the nearest step."""
  process, direct = (training_flops.train_flops(c)['total'] for c in (config.process, config.direct))
  return max(1, round(config.process.train.steps * process / direct))


class _Planner:
  """Adds tasks, what they need first."""

  def __init__(self, config: settings.AblationsConfig, out: pathlib.Path):
    self._config, self._out = config, out
    self.made: dict[str, Task] = {}
    self._base()
    # The seeds side by side, the arms in their order: half of the whole is half of the seeds of all tables.
    for seed in config.seeds:
      for arm in config.arms:
        self._cell(arm, seed)
        self._paint(arm, seed)

  def _add(self, identity: Any, *, folder: str, **task: Any) -> Task:
    """A task whose folder is named by the hash of its identity and of the folders of what it needs."""
    needed = [self.made[name].folder.name for name in task.get('needs', ())]
    # Without OUT: what was moved is found again. The names of folders in it have hashes of their own.
    text = json.dumps([identity, needed], sort_keys=True).replace(json.dumps(str(self._out))[1:-1], '')
    path = self._out / f'{folder}-{hashlib.sha256(text.encode()).hexdigest()[:8]}'
    command = tuple(part.replace('{folder}', str(path)) for part in task.pop('command'))
    made = Task(folder=path, command=command, **task)
    self.made[made.name] = made
    return made

  def _base(self) -> Task:
    return self.made.get(BASE) or self._train(BASE, self._config.base, needs=())

  def _cell(self, arm: str, seed: int) -> Task:
    name = cell(arm, seed)
    if name in self.made:
      return self.made[name]
    base, sets = self._base(), [self._set(one) for one in arms.ARMS[arm]]
    weights = [getattr(self._config.shares, arms.SUBSET_OF.get(one, one)) for one in arms.ARMS[arm]]
    like = self._config.direct if arm == arms.DIRECT else self._config.process
    sources = tuple(
      config_lib.SourceConfig(kind='records', name=f'{made.folder}/set/train', weight=weight / sum(weights))
      for made, weight in zip(sets, weights, strict=True)
    )
    steps = direct_steps(self._config) if arm == arms.DIRECT else like.train.steps
    config = dataclasses.replace(
      like,
      name=name,
      seed=seed,
      data=dataclasses.replace(like.data, sources=sources),
      train=dataclasses.replace(like.train, init_from=f'{base.folder}/run/final', steps=steps),
    )
    return self._train(name, config, needs=(BASE, *(made.name for made in sets)))

  def _train(self, name: str, config: config_lib.Config, *, needs: Sequence[str]) -> Task:
    return self._add(
      dataclass_io.to_dict(config),
      folder=f'cells/{name}',
      kind=TRAIN,
      name=name,
      command=('train', '--config={folder}/config.py', '--workdir={folder}/run'),
      needs=tuple(needs),
      files=_files(config, 'pdgen.core', 'config', what=f'Training of the cell {name}'),
      work=training_flops.train_flops(config)['total'] * config.train.steps,
    )

  def _set(self, name: str) -> Task:
    task = f'set {name}'
    if task in self.made:
      return self.made[task]
    if name == arms.DIRECT_SET:
      source = self._set(arms.MULTI_TURN)
      command = (f'{source.folder}/set', '{folder}/set')
      return self._add(
        'direct 1', folder=f'sets/{name}', kind=CONVERT, name=task, command=command, needs=(source.name,)
      )
    subset, config, needs = arms.SUBSET_OF.get(name, name), self._config.construct, ()
    if name == arms.PLAIN:
      shares = rewrites.OperationShares(refine=0.0, swap=0.0, remove=0.0)
      config = dataclasses.replace(config, scenes=dataclasses.replace(config.scenes, operations=shares))
    if subset == arms.CONFLICT:
      checkpoint = ''
      if name == arms.CONFLICT:
        tracing = self._cell(arms.TRACING, self._config.seeds[0])
        checkpoint, needs = f'{tracing.folder}/run/final', (tracing.name,)
      config = dataclasses.replace(config, conflict=dataclasses.replace(config.conflict, checkpoint=checkpoint))
    samples = config.subset(subset).samples
    traces = (config.conflict.traces or samples) if needs else 0
    seconds = self._config.speed.painting_seconds / self._config.speed.sample_seconds
    return self._add(
      build_config.identity(config, subset),
      folder=f'sets/{name}',
      kind=BUILD,
      name=task,
      command=('construct', 'build', '--config={folder}/config.py', f'--subset={subset}', '--out={folder}/set'),
      needs=needs,
      files=_files(config, 'pdgen.construction', 'build_config', what=f'The training set {name}'),
      work=samples + traces * seconds,
    )

  def _paint(self, arm: str, seed: int):
    """Paintings of a model: `direct` and `more_steps` in one go; else `free`, several where one of them is chosen."""
    name, painting = cell(arm, seed), self._config.painting
    prompts, trained = 6 * painting.per_task, self.made[name]
    shared = [
      f'--checkpoint={trained.folder}/run/final',
      f'--world={self._config.world}',
      f'--per_task={painting.per_task}',
      f'--batch_size={painting.batch_size}',
    ]

    def add(setting: str, evaluator: str, options: Sequence[str], work: float):
      self._add(
        [setting, dataclasses.asdict(painting), self._config.world, list(options)],
        folder=str(trained.folder.relative_to(self._out) / setting),
        kind=PAINT,
        name=f'{name} {setting}',
        command=('evaluate', evaluator, *shared, *options, '--out={folder}/scores'),
        needs=(name,),
        work=work,
      )

    if arm == arms.DIRECT:
      options = ['--mode=direct', f'--seed={painting.prompts_seed}']
      add('direct', 'geneval', [*options, f'--samples={painting.best_of}'], prompts * painting.best_of / 4)
      add('more_steps', 'geneval', [*options, f'--sampling.flow_steps={painting.more_flow_steps}'], prompts / 2)
      return
    times = painting.best_of if arm == arms.PROCESS and 'compute' in self._config.tables else 1
    for time in range(times):
      seeds = [f'--prompts_seed={painting.prompts_seed}', f'--seed={painting.seed + 100_000 * time}']
      add(f'free-{time}', 'process', ['--settings=free,edits_0', *seeds], prompts)


def _files(config: Any, module: str, name: str, *, what: str) -> dict[str, str]:
  text = json.dumps(dataclass_io.to_dict(config), indent=1) + '\n'
  return {'config.json': text, 'config.py': _CONFIG_PY.format(module=module, name=name, what=what)}


def arguments(task: Task) -> list[str]:
  """The command line of a task that is a process."""
  command, *rest = task.command
  return [sys.executable, '-m', f'pdgen.{command}', *rest]
