"""The scripts set up once, again when setup.cfg changes, and say what is missing. A stub stands for Python and pip."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SPREAD = '-n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder'

# Is new enough; `-m venv` puts itself there as .venv/bin/python; its name and arguments go to a log.
STUB = """#!/usr/bin/env bash
echo "${0##*/} $*" >> "$LOG"
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin && for name in python ruff basedpyright; do cp "$0" ".venv/bin/$name"; done ;;
  *"pip install"*) exit "${PIP_FAILS:-0}" ;;
  --version) echo 'Python 3.11.7' ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
  """A copy of the scripts, with a stub as the only Python: a function that runs one, giving (code, output, log)."""
  repo, bin_, log = tmp_path / 'a repo', tmp_path / 'bin', tmp_path / 'log'
  bin_.mkdir()
  shutil.copytree(ROOT / 'launch', repo / 'launch')
  shutil.copytree(ROOT / '.ci', repo / '.ci')
  shutil.copy(ROOT / 'setup.cfg', repo)
  (bin_ / 'stub').write_text(STUB)
  (bin_ / 'stub').chmod(0o755)

  def run(script, *arguments, **environment):
    log.write_text('')
    env = {**os.environ, 'LOG': str(log), 'PYTHON': str(bin_ / 'stub'), **environment}
    # From another folder, as CI and people do.
    done = subprocess.run(
      ['bash', str(repo / script), *arguments], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr, log.read_text()

  run.repo = repo
  return run


def test_quickstart_installs_once_and_paints(clone):
  code, output, log = clone('launch/quickstart.sh')
  assert code == 0, output
  assert '--editable .\n' in log and '-m pdgen.sample --checkpoint=shapes' in log
  assert 'Setting up .venv with Python 3.11.7' in output and 'What to run next' in output
  code, output, log = clone('launch/quickstart.sh')
  assert code == 0 and 'pip install' not in log and '-m pdgen.sample' in log
  assert 'Setting up' not in output


@pytest.mark.parametrize('script', ['launch/test.sh', '.ci/run'])
def test_the_checks_install_the_test_extra_and_run_all_four(clone, script):
  code, output, log = clone(script)
  assert code == 0, output
  wanted = ['--editable .[test]', 'ruff check .', 'ruff format --check .', 'basedpyright ', f'-m pytest {SPREAD}']
  places = [log.index(f'{w}\n') for w in wanted]
  assert places == sorted(places)


def test_arguments_of_the_checks_go_to_pytest(clone):
  log = clone('launch/test.sh', 'tests/test_masks.py', '-k', 'causal')[2]
  assert f'-m pytest {SPREAD} tests/test_masks.py -k causal\n' in log


def test_each_set_of_extras_is_installed_for_itself(clone):
  clone('launch/quickstart.sh')
  assert '--editable .[test]\n' in clone('launch/test.sh')[2]
  assert 'pip install' not in clone('launch/test.sh')[2]
  assert 'pip install' not in clone('launch/quickstart.sh')[2]


def test_a_changed_setup_or_another_place_installs_again(clone):
  clone('launch/test.sh')
  with open(clone.repo / 'setup.cfg', 'a') as file:
    file.write('# changed\n')
  assert 'pip install' in clone('launch/test.sh')[2]
  assert 'pip install' not in clone('launch/test.sh')[2]
  moved = clone.repo.with_name('moved')
  clone.repo.rename(moved)
  assert 'pip install' in clone(moved / 'launch/test.sh')[2]


def test_a_failed_installation_is_tried_again(clone):
  assert clone('launch/test.sh', PIP_FAILS='1')[0] != 0
  code, _, log = clone('launch/test.sh')
  assert code == 0 and 'pip install' in log


def test_without_a_python_it_says_what_is_needed(clone):
  code, output, log = clone('launch/quickstart.sh', PYTHON='false no-such-python')
  assert code != 0 and 'needs Python 3.11 or newer' in output and log == ''
