"""What a user gets wrong ends every command with status 2 and one line; help and tracebacks on request."""

import os
import pathlib
import subprocess
import sys
import tempfile

import absl.flags
import pytest
from absl import app

from pdgen import benchmark, convert, evaluate, inspect_data, sample, train, train_tokenizer
from pdgen import compile as compile_command

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = f'--config={ROOT / "configs" / "shapes.py"}'
EMPTY = ROOT / 'tests' / 'golden'  # A folder that is no model, no run and not empty.
IMPORT = ['import', f'--from={EMPTY}']
RUN = [CONFIG, '--workdir=/proc/nowhere']

SAMPLE = ['--prompt=x']
ANEW = f'--out={pathlib.Path(tempfile.gettempdir()) / "x"}'

WRONG = {
  sample: [
    ([], 'nothing to paint'),
    (['--prompt'], 'expected one argument'),
    ([*SAMPLE, '--seed=-1'], '--seed: -1 is out of range: from 0 to 4294967295'),
    ([*SAMPLE, '--seed=4294967296'], 'from 0 to 4294967295'),
    ([*SAMPLE, '--seed=one'], "'one' is no whole number"),
    ([*SAMPLE, '--prompt=y', '--seed=4294967295'], 'Seeds are from 0 to'),
    ([*SAMPLE, '--batch_size=0'], '--batch_size: 0 is out of range: from 1 to 100000'),
    ([*SAMPLE, '--batch_size=100001'], 'from 1 to 100000'),
    (['--heldout=-1'], '--heldout: -1 is out of range: from 0 to 100000'),
    ([*SAMPLE, '--mode=sketch'], "invalid choice: 'sketch'"),
    ([*SAMPLE, '--out='], '--out: the name is empty'),
    ([*SAMPLE, '--checkpoint='], '--checkpoint: the name is empty'),
    ([*SAMPLE, '--checkpoint=nowhere'], "No model 'nowhere'"),
    ([*SAMPLE, '--sampling.temperature=inf'], 'sampling.temperature=inf: it must be finite'),
    ([*SAMPLE, '--sampling.text_guidance=nan'], 'sampling.text_guidance=nan: it must be finite'),
    ([*SAMPLE, '--sampling.guidance_interval=a,b'], "'a,b' are no numbers"),
    ([*SAMPLE, '--sampling.max_tokens=1000000000'], 'Lower the batch size or sampling.max_tokens'),
    ([f'--prompt={"x" * 100_000}'], 'of at most 4,096: shorten it'),
    ([*SAMPLE, '--mesh.tensor=0'], 'sizes are at least 1'),
    ([*SAMPLE, '--mesh.cpu_devices=0'], 'mesh.cpu_devices=0 is out of range: from 1 to 1024'),
    ([*SAMPLE, '--\x1b[31mred'], r'unrecognized arguments: --\x1b[31mred'),
  ],
  evaluate: [
    ([], 'arguments are required'),
    (['paint'], "invalid choice: 'paint'"),
    (['geneval', '--per_task=0'], '--per_task: 0 is out of range: from 1'),
    (['geneval', '--per_task=x'], "'x' is no whole number"),
    (['geneval', '--seed=-1'], '--seed: -1 is out of range'),
    (['geneval', '--batch_size=0'], '--batch_size: 0 is out of range: from 1'),
    (['geneval', '--out='], '--out: the name is empty'),
    (['geneval', '--mode=x'], "invalid choice: 'x'"),
    (['geneval', '--drafts=3'], 'unrecognized arguments: --drafts=3'),
    (['inspection', '--drafts=-5'], '--drafts: -5 is out of range: from 1'),
    (['inspection', '--per_kind=0'], '--per_kind: 0 is out of range: from 1'),
    (['inspection', '--sampling.renorm=loud'], "Unknown renorm 'loud'"),
  ],
  benchmark: [
    (['--suite='], "unknown suite ''"),
    (['--suite=matmul,now'], "unknown suite 'now'"),
    (['--suite=matmul'], '--suite wants --out'),
    (['--suite=matmul', '--out=/proc/nowhere'], '/proc/nowhere cannot be written'),
    (['--suite=matmul', '--out=/proc/nowhere/x.json'], '/proc/nowhere cannot be written'),
    (['--suite=matmul', f'--out={ROOT / "README.md"}'], 'README.md cannot be written'),
    (['--suite=matmul', ANEW, '--size=7b'], "invalid choice: '7b'"),
    (['--suite=matmul', ANEW, '--limit=0'], '--limit: 0 is out of range'),
    (['--suite=matmul', ANEW, '--limit=nan'], "'nan' is no whole number"),
    (['--suite=matmul', ANEW, '--total=0'], '--total: 0 is out of range'),
    (['now'], 'unrecognized arguments: now'),
    (['--batch_sizes='], "'' is no whole number"),
    (['--batch_sizes=1,0'], '0 is out of range: from 1'),
    (['--batch_sizes=1,x'], "'x' is no whole number"),
    (['--batch_sizes=200000'], '200000 is out of range'),
    (['--repeats=0'], '--repeats: 0 is out of range: from 1 to 1000'),
    (['--mode=x'], "invalid choice: 'x'"),
    (['--out='], '--out: the name is empty'),
    (['--checkpoint=nowhere'], "No model 'nowhere'"),
    (['--sampling.flow_steps=0'], 'config.sampling.flow_steps=0 is too small'),
    (['--sampling.grammar=perhaps'], 'neither true nor false'),
  ],
  compile_command: [
    ([], '--config must have a value'),
    (['--config='], 'must have a value'),
    ([CONFIG], '--target must have a value'),
    ([CONFIG, '--target='], "Unknown target ''"),
    ([CONFIG, '--target=h1000:8'], "Unknown target 'h1000:8'"),
    ([CONFIG, '--target=h100:12'], 'hosts have 8 each'),
    ([CONFIG, '--target=cpu:8', '--program=paint'], 'should be one of <train|sample>'),
    ([CONFIG, '--target=cpu:8', '--batch_size=-1'], 'is not a non-negative integer'),
    ([CONFIG, '--target=cpu:8', '--batch_size=x'], 'invalid literal'),
    ([CONFIG, '--target=cpu:8', '--json='], '--json: the name is empty'),
    ([CONFIG, '--target=cpu:8', f'--json={ROOT}'], 'is a folder. Name another file.'),
    ([CONFIG, '--target=cpu:8', '--config.model.depht=1'], 'depht'),
    ([CONFIG, '--target=cpu:8', '--config.sampling.max_tokens=0'], 'config.sampling.max_tokens=0 is too small'),
    ([CONFIG, '--target=cpu:8', 'now'], "unexpected argument 'now'"),
    (['--config=nowhere.py', '--target=cpu:8'], 'nowhere.py'),
    ([CONFIG, '--tagret=cpu:8'], "Unknown command line flag 'tagret'"),
  ],
  train: [
    ([], '--config must have a value'),
    (['--config='], 'must have a value'),
    ([CONFIG], '--workdir must have a value'),
    ([CONFIG, '--workdir='], '--workdir: the name is empty'),
    ([CONFIG, '--workdir=/proc/nowhere'], '/proc/nowhere cannot be written'),
    ([CONFIG, f'--workdir={ROOT / "README.md"}'], 'README.md cannot be written (File exists)'),
    (['--config=nowhere.py', '--workdir=x'], 'nowhere.py'),
    ([f'--config={ROOT / "README.md"}', '--workdir=x'], 'README.md'),
    ([*RUN, 'now'], "unexpected argument 'now'"),
    ([*RUN, '--wrokdir=x'], "Unknown command line flag 'wrokdir'"),
    ([*RUN, '--profile_steps=3:1'], '--profile_steps=3:1: write A:B'),
    ([*RUN, '--config.train.stpes=1'], 'stpes'),
    ([*RUN, '--config.train.steps=1.5'], '1.5'),
    ([*RUN, '--config.train.learning_rate=nan'], 'config.train.learning_rate=nan'),
    ([*RUN, '--config.train.clip_norm=-1'], 'config.train.clip_norm=-1'),
    ([*RUN, "--config.train.freeze=('(',)"], "'(' in config.train.freeze is no regular expression"),
    ([*RUN, '--config.model.width=0'], 'config.model.width=0 is too small'),
    ([*RUN, '--config.model.head_dim=3'], 'config.model.head_dim=3 must be even'),
    ([*RUN, '--config.model.dtype=float7'], "config.model.dtype='float7'. Known"),
    ([*RUN, f'--config.data.batch_size={10**20}'], f'config.data.batch_size={10**20} is too large'),
    ([*RUN, '--config.data.batch_size=2147483647'], 'config.data.batch_size=2147483647 is too large'),
    ([*RUN, '--config.data.tokenizer='], 'config.data.tokenizer is empty'),
    ([*RUN, '--config.mesh.cpu_devices=100000'], 'config.mesh.cpu_devices=100000 is out of range'),
    ([*RUN, '--config.seed=-1'], 'config.seed=-1 is out of range'),
  ],
  convert: [
    ([], 'arguments are required'),
    (['move'], "invalid choice: 'move'"),
    (['import'], '--from, --to'),
    (['import', '--from=', '--to=x'], '--from: the name is empty'),
    ([*IMPORT, '--to='], '--to: the name is empty'),
    ([*IMPORT, '--to=/nowhere/x', '--base='], '--base: the name is empty'),
    ([*IMPORT, '--to=/nowhere/x', '--max_latent_size=0'], '0 is out of range: from 1'),
    ([*IMPORT, '--to=/nowhere/x', '--image_size=nan'], "'nan' is no whole number"),
    ([*IMPORT, '--to=/nowhere/x', '--dtype=float32'], 'unrecognized arguments: --dtype=float32'),
    ([*IMPORT, '--to=/nowhere/x'], 'it lacks llm_config.json'),
    ([*IMPORT, f'--to={ROOT}'], 'is not empty'),
    (['import', '--from=/nowhere', '--to=/nowhere/x'], '/nowhere'),
    (['import', f'--from={ROOT / "README.md"}', '--to=/nowhere/x'], 'README.md'),
    (['export', f'--from={EMPTY}', '--to=/nowhere/x'], str(EMPTY)),
    (['export', '--from=shapes', '--to=/nowhere/x', '--dtype=int8'], "invalid choice: 'int8'"),
    (['export', '--from=shapes', '--to=/nowhere/x', '--adapters=off'], "invalid choice: 'off'"),
    (['export', '--from=/now\nhere\x1b[31m', '--to=/nowhere/x'], '/now here'),
  ],
  train_tokenizer: [
    ([], 'arguments are required: --out'),
    (['--out='], '--out: the name is empty'),
    (['--out=/proc/nowhere'], 'cannot be written'),
    ([f'--out={ROOT}'], 'is a folder. Name another file.'),
    ([f'--out={ROOT / "README.md"}/x'], 'README.md cannot be written'),
    ([ANEW, '--world=nowhere'], "There is no world 'nowhere'"),
    ([ANEW, '--pieces=0'], '0 is out of range: from 1'),
    ([ANEW, '--pieces=many'], "'many' is no whole number"),
    ([ANEW, '--pieces=3', '--texts=10'], 'pieces=3 cannot be trained'),
    ([ANEW, '--texts=0'], '0 is out of range: from 1'),
    ([ANEW, '--seed=-1'], '-1 is out of range'),
    ([ANEW, 'now'], 'unrecognized arguments: now'),
    ([ANEW, '--piece=300'], 'unrecognized arguments: --piece=300'),
  ],
  inspect_data: [
    ([], '--config must have a value'),
    (['--config=nowhere.py'], 'nowhere.py'),
    ([f'--config={ROOT / "setup.cfg"}'], 'setup.cfg'),
    ([f'--config={ROOT / "tests" / "support" / "toy.py"}'], 'get_config'),
    ([CONFIG, '--index=-1'], 'is not a non-negative integer'),
    ([CONFIG, '--index=x'], 'invalid literal'),
    ([CONFIG, 'now'], "unexpected argument 'now'"),
    ([CONFIG, '--page='], 'the name is empty'),
    ([CONFIG, f'--page={ROOT / "setup.cfg"}'], 'cannot be written'),
    ([CONFIG, '--page=out', '--index=1'], 'At most one of (index, page)'),
    ([CONFIG, '--page=out', '--count=0'], 'is not an integer in the range'),
    ([CONFIG, '--indx=1'], "Unknown command line flag 'indx'"),
    ([CONFIG, "--config.data.sources=('nowhere',)"], "Unknown kind of source 'nowhere'"),
    ([CONFIG, "--config.data.sources=('records:/nowhere',)"], '/nowhere'),
    ([CONFIG, '--config.data.tokenizer=nowhere'], 'nowhere'),
    ([CONFIG, '--config.data.batch_size=0'], 'config.data.batch_size=0 is too small'),
  ],
}


@pytest.mark.parametrize(
  'command, arguments, words',
  [
    pytest.param(command, *case, id=f'{command.__name__.rpartition(".")[2]}-{number}')
    for command, cases in WRONG.items()
    for number, case in enumerate(cases)
  ],
)
@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # Of ml_collections.
def test_what_a_user_gets_wrong_ends_with_status_2_and_one_line(command, arguments, words, monkeypatch, capsys):
  with pytest.raises(SystemExit) as error:
    run(command, arguments, monkeypatch)
  out, err = capsys.readouterr()
  assert error.value.code == 2 and out == ''
  assert words in err and err.count('\n') == 1 and err.endswith('\n') and 'Traceback' not in err
  assert '\x1b' not in err


@pytest.mark.parametrize('command', WRONG, ids=lambda command: command.__name__)
def test_help_tells_what_a_command_is_for(command, monkeypatch, capsys):
  with pytest.raises(SystemExit) as ended:
    run(command, ['--help'], monkeypatch)
  out, err = capsys.readouterr()
  assert ended.value.code == 0 and len(out) > 200 and 'Traceback' not in err


def run(command, arguments, monkeypatch):
  """A command in this process; those of absl read `sys.argv`."""
  monkeypatch.delenv('PDGEN_DEBUG', raising=False)
  if command in (sample, evaluate, benchmark, convert, train_tokenizer):
    command.main(arguments)
  else:
    monkeypatch.setattr(sys, 'argv', [command.__name__, *arguments])
    app.define_help_flags()
    before = set(absl.flags.FLAGS)
    sys.modules.pop('config_config', None)  # The config file of another call.
    try:
      command.main()
    finally:  # A process has the flags of one command.
      absl.flags.FLAGS.unparse_flags()
      absl.flags.FLAGS.remove_flag_values([name for name in absl.flags.FLAGS if name not in before])


def test_tracebacks_are_shown_on_request(monkeypatch, capsys):
  for arguments, variable in ((['--debug'], ''), ([], '1')):
    monkeypatch.setenv('PDGEN_DEBUG', variable)
    with pytest.raises(FileNotFoundError, match="No model 'nowhere'"):
      sample.main([*SAMPLE, '--checkpoint=nowhere', *arguments])


CONFIGS = {
  'raises': ('1 / 0', 'ZeroDivisionError: division by zero'),
  'no Python': ('def get_config(:', 'SyntaxError'),
  'asks for an argument': ('def get_config(x):\n  return x', 'get_config() missing 1 required positional argument'),
  'gives nothing': ('def get_config():\n  pass', 'must have a value other than None'),
  'gives another': ('import ml_collections\nget_config = lambda: ml_collections.ConfigDict({"a": 1})', 'config.a'),
}


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # Of ml_collections.
@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('command', [train, inspect_data], ids=lambda command: command.__name__)
def test_what_is_wrong_in_a_config_file_is_one_line(command, name, tmp_path, monkeypatch, capsys):
  source, words = CONFIGS[name]
  file = tmp_path / 'config.py'
  file.write_text(source)
  with pytest.raises(SystemExit) as error:
    run(command, [f'--config={file}', *(['--workdir=/proc/nowhere'] if command is train else [])], monkeypatch)
  out, err = capsys.readouterr()
  assert error.value.code == 2 and out == '' and words in err and err.count('\n') == 1 and 'Traceback' not in err


IMPORTING = """
import runpy, signal, sys, types
WHEN, module, sys.argv = sys.argv[1], sys.argv[2], sys.argv[2:]
# What runs in the background of a script ignores Ctrl-C, and so do its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
class Slow:
  def find_spec(self, name, path=None, target=None):
    if name == WHEN:  # Ctrl-C in the middle of this import, which swallows exceptions.
      try:
        signal.raise_signal(signal.SIGINT)
      except BaseException:
        pass
sys.meta_path.insert(0, Slow())
sys.modules['__main__'].__spec__ = types.SimpleNamespace(name=f'pdgen.{module}')
runpy.run_module(f'pdgen.{module}', run_name='__main__', alter_sys=False)
"""


@pytest.mark.parametrize(
  'module, while_importing, arguments',
  [
    ('sample', 'argparse', ['--prompt=x']),
    ('sample', 'jax', ['--prompt=x']),
    ('sample', 'grain', ['--prompt=x']),
    ('train', 'jax', RUN),
    ('convert', 'numpy', []),
  ],
)
def test_ctrl_c_while_a_command_is_imported_is_one_line(module, while_importing, arguments, tmp_path):
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': ''}
  command = [sys.executable, '-c', IMPORTING, while_importing, module, *arguments]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
  assert (done.returncode, done.stdout) == (130, '')
  assert done.stderr == f'python -m pdgen.{module}: stopped before it began.\n'


def test_help_imports_neither_jax_nor_grain_nor_orbax():
  code = """
import sys
from pdgen import evaluate, sample
for command, arguments in ((sample, ['--help']), (evaluate, ['geneval', '--help']), (sample, ['--seed=x'])):
  try:
    command.main(arguments)
  except SystemExit:
    pass
print(sorted({'jax', 'grain', 'orbax', 'flax'} & set(sys.modules)))
"""
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True, text=True)
  assert done.stdout.splitlines()[-1] == '[]'
