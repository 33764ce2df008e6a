"""What a user gets wrong ends every command with status 2 and one line; help and tracebacks on request."""

import pathlib
import sys

import absl.flags
import pytest
from absl import app

from pdgen import benchmark, evaluate, inspect_data, sample
from pdgen import compile as compile_command

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = f'--config={ROOT / "configs" / "shapes.py"}'


SAMPLE = ['--prompt=x']
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
  assert ended.value.code in (0, 1) and len(out) > 200 and 'Traceback' not in err


def run(command, arguments, monkeypatch):
  """A command in this process; those of absl read `sys.argv`."""
  monkeypatch.delenv('PDGEN_DEBUG', raising=False)
  if command in (sample, evaluate, benchmark):
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
