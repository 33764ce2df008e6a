"""The command pdgen.construct: configs with overrides, dry runs, figures, imports, errors of one line."""

import json
import pathlib

import pytest
from support import foreign

from pdgen import construct
from pdgen.construction import build
from pdgen.data import records

ROOT = pathlib.Path(__file__).parents[1]
SHAPES = f'--config={ROOT / "configs" / "construct_shapes.py"}'
# Of ml_collections, which reads config files by it.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
PHOTOGRAPHIC = f'--config={ROOT / "configs" / "construct_photographic.py"}'


def fails(capsys, *arguments: str, status: int = 2) -> str:
  with pytest.raises(SystemExit) as error:
    construct.main(arguments)
  words = capsys.readouterr().err
  assert error.value.code == status and words.count('\n') == 1, words
  return words


def test_build_and_figures(tmp_path, capsys):
  out = str(tmp_path / 'out')
  command = ['build', SHAPES, '--subset=alignment', f'--out={out}', '--limit=9', '--every=0']
  construct.main([*command, '--config.scenes.max_pictures=3', '--config.seed=4'])
  printed = capsys.readouterr().out
  assert '9 kept, 0 rejected' in printed and '15,000' in printed
  done = json.loads((tmp_path / 'out' / build.DONE).read_text())
  assert done['config']['scenes']['max_pictures'] == 3 and done['counts']['kept'] == 9
  assert max(len(t.steps) for t in records.read(tmp_path / 'out' / 'train')) == 3
  construct.main(['stats', out, out])
  assert capsys.readouterr().out.count('alignment') == 2
  assert 'is finished. Delete' in fails(capsys, *command)
  trained = ROOT / 'configs' / 'shapes_constructed.py'
  construct.main(['inspect', out, f'--out={tmp_path / "page"}', '--count=2', f'--config={trained}'])
  page = (tmp_path / 'page' / 'index.html').read_text()
  assert '9 records' in page and '&lt;refine&gt;' in page and 'cross-entropy' in page
  assert str(tmp_path / 'page' / 'index.html') in capsys.readouterr().out
  assert 'no record set' in fails(capsys, 'inspect', str(tmp_path / 'page'), f'--out={tmp_path / "b"}')


def test_a_dry_run_says_what_a_build_takes(tmp_path, capsys):
  out = tmp_path / 'out'
  construct.main(['build', PHOTOGRAPHIC, '--subset=multi_turn', f'--out={out}', '--limit=10', '--dry_run'])
  printed = capsys.readouterr().out
  assert '10 samples' in printed and 'in the currency of the prices' in printed and not out.exists()
  none = f'--prompts={tmp_path / "none.txt"}'
  assert 'there is no file of prompts' in fails(
    capsys, 'build', PHOTOGRAPHIC, '--subset=multi_turn', none, f'--out={out}'
  )


def test_import(tmp_path, capsys):
  foreign.write_jsonl(tmp_path / 'mine', [foreign.jsonl_line(n) for n in range(3)])
  construct.main(['import', '--format=jsonl', f'--source={tmp_path / "mine"}', f'--out={tmp_path / "out"}'])
  assert '3' in capsys.readouterr().out
  assert 'does not exist' in fails(capsys, 'import', '--format=jsonl', '--source=/none', f'--out={tmp_path / "b"}')


def test_errors_of_one_line(tmp_path, capsys, monkeypatch):
  rest = ('--subset=multi_turn', f'--out={tmp_path / "out"}')
  assert 'max_picturez' in fails(capsys, 'build', SHAPES, *rest, '--config.scenes.max_picturez=3')
  assert 'tries=0 is too small' in fails(capsys, 'build', SHAPES, *rest, '--config.tries=0')
  assert 'nothing.py' in fails(capsys, 'build', '--config=nothing.py', *rest)
  assert 'unrecognized' in fails(capsys, 'build', SHAPES, *rest, '--limits=3')
  assert 'invalid choice' in fails(capsys, 'build', SHAPES, '--subset=all', f'--out={tmp_path / "c"}')
  assert 'holds no record set' in fails(capsys, 'stats', str(tmp_path))

  def spent(*args, **options):
    raise construct.errors.BudgetExhausted('127.0.0.1: 5 of 5 calls are spent')

  monkeypatch.setattr(build, 'build', spent)
  assert 'give the same command' in fails(capsys, 'build', SHAPES, *rest, status=3)

  def stopped(*args, **options):
    raise KeyboardInterrupt

  monkeypatch.setattr(build, 'build', stopped)
  assert 'the same command goes on' in fails(capsys, 'build', SHAPES, *rest, status=130)
