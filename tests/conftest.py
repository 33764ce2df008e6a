"""Eight virtual CPU devices and strict numerics for every test; the tiny experiment of `pdgen.testing` as fixtures.

PDGEN_TEST_PLATFORM=cuda (or tpu) runs tests on an accelerator, in float32 with float32 products: the parity tests, of
which `--parity_json=FILE` keeps every error (launch/accelerator_check.sh). On CPUs programs are compiled with few
optimizations (`support.xla_flags`), those of commands that tests run, too; as users compile them with
JAX_DISABLE_MOST_OPTIMIZATIONS=0.
"""

import gc
import json
import os
import pathlib
import sys

from support import xla_flags

os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'.strip()
os.environ['JAX_PLATFORMS'] = os.environ.get('PDGEN_TEST_PLATFORM', 'cpu')
if os.environ['JAX_PLATFORMS'] == 'cpu':
  # A tenth of the time to compile, for programs that run for milliseconds. Read by jax as it is imported.
  if os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1') == '1':
    os.environ['XLA_FLAGS'] += ' ' + xla_flags.fast_compile()
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', '')  # What a user's commands compile is not the tests' to touch.

import jax
import pytest

from pdgen import testing
from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.data import pipeline

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')
PLATFORM = os.environ['JAX_PLATFORMS']
if PLATFORM != 'cpu':
  jax.config.update('jax_default_matmul_precision', 'highest')  # Else float32 operands are rounded to 10 bits or 8.


def pytest_addoption(parser):
  parser.addoption('--parity_json', help='file for the errors of every array that the parity tests compare')


def pytest_sessionstart(session):
  if PLATFORM == 'cpu' and jax.device_count() != 8:
    raise pytest.UsageError(f'The tests need 8 devices, {jax.device_count()} are there: jax was imported too early.')


# The collector walks over all that was ever traced and imported: a tenth of the time of tracing.
gc.set_threshold(20_000, 20, 20)

# Every compiled program holds dozens of memory maps, of which Linux gives a process 65,530: the next compilation, of
# whatever, then ends in a segmentation fault.
_MAPS = pathlib.Path('/proc/self/maps')
_MOST_MAPS = 20_000


@pytest.fixture(scope='module', autouse=True)
def _let_programs_go():
  """Forgets compiled programs between files once they are many."""
  yield
  if _MAPS.exists() and _MAPS.read_bytes().count(b'\n') > _MOST_MAPS:
    jax.clear_caches()
    gc.collect()


# What takes a minute or so begins first: a process that began with it last would work alone at the end.
_LONGEST = [f'test_{name}.py' for name in ('distributed', 'benchmarks', 'train', 'kill', 'parity_flow', 'accumulation')]


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST))


@pytest.fixture(scope='session')
def tiny() -> config_lib.Config:
  return testing.tiny_config()


@pytest.fixture(scope='session')
def batch(tiny) -> packed.PackedBatch:
  """The first batch of the tiny experiment, numpy arrays."""
  batches = pipeline.batches(tiny)
  made = next(batches)
  batches.close()
  return made


def _parity():
  """(lines of the summary, errors of every array) of this process."""
  golden = sys.modules.get('support.golden_folder')
  return (golden.summary(), golden.ERRORS) if golden else ([], {})


def pytest_sessionfinish(session):
  if hasattr(session.config, 'workeroutput'):  # One of several processes: the first one writes the summary.
    session.config.workeroutput['parity'] = _parity()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
  node.config.stash.setdefault(_PARITY, []).append(getattr(node, 'workeroutput', {}).get('parity', ([], {})))


_PARITY = pytest.StashKey[list[tuple[list[str], dict]]]()


def pytest_terminal_summary(terminalreporter, config):
  found = [*config.stash.get(_PARITY, []), _parity()]
  for line in (line for lines, _ in found for line in lines):
    terminalreporter.write_line(line)
  if file := config.getoption('parity_json'):
    counts = {name: len(terminalreporter.stats.get(name, [])) for name in ('passed', 'failed')}
    errors = {name: error for _, errors in found for name, error in errors.items()}
    pathlib.Path(file).write_text(json.dumps({**counts, 'platform': PLATFORM, 'parity': errors}, indent=1) + '\n')
