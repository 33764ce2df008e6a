"""Holds the folders to the house plan (docs/design.md, section 5) by reading their imports, not by running them."""

import ast
import configparser
import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / 'pdgen').rglob('*.py'))

# What a folder may import of pdgen besides itself (docs/design.md, section 5). Modules at the top join the folders.
MAY_IMPORT = {
  'core': set(),
  'models': {'core'},
  'weights': {'core', 'models'},
  'training': {'core', 'models', 'weights'},
  'sampling': {'core', 'models'},
  'data': {'core', 'worlds'},
  'worlds': {'core'},
  'services': {'core'},
  'judges': {'core', 'services'},
  'construction': {'core', 'data', 'worlds', 'services', 'judges'},
  'evals': {'core', 'worlds', 'services', 'judges', 'viewing'},
  'inference': {'core', 'models', 'weights', 'data', 'sampling'},
  # training: what is counted is the program that is trained, so that `cost.aot` lowers the real step. Nothing but
  # commands imports cost.
  'cost': {'core', 'models', 'sampling', 'training'},
  'viewing': {'core'},
  # Launches what users run, and reads what it leaves.
  'ablations': {'core', 'data', 'construction', 'cost', 'evals'},
  # Runs what users run.
  'benchmarks': {'core', 'models', 'data', 'worlds', 'sampling', 'inference', 'training', 'cost', 'testing'},
}
COMMANDS = {
  *('train', 'sample', 'evaluate', 'construct', 'convert', 'compile', 'benchmark', 'inspect_data', 'train_tokenizer')
}
SHARED = {
  'flags',
  'prompt_flags',
  'startup',
  'testing',
  'dataset_page',
  'evaluate_options',
}  # What commands share, and what tests of others may use.
NUMPY_ONLY = {'data', 'worlds', 'services', 'judges', 'construction', 'evals', 'viewing'}
JAX_IN_CORE = {'core/masks.py', 'core/mesh.py', 'core/trees.py'}
# An optional package is imported by the modules that need it alone, when they need it. Extra of setup.cfg: packages.
OPTIONAL: dict[str, dict[str, set[str]]] = {
  'judge': {
    'filelock': {'services/budget.py'},
    'httpx2': {'services/transport.py', 'services/faults.py'},
    'jsonschema': {'services/structured.py'},
    'tenacity': {'services/transport.py'},
  },
  'geneval': {'torch': {'judges/mask2former.py'}, 'transformers': {'judges/mask2former.py'}},
  'opencv': {'cv2': {'judges/opencv.py'}},
  'plot': {'matplotlib': {'ablations/plot.py'}},
  'parquet': {'pyarrow': {'construction/importers/parquet.py'}},
  'tfds': {'tensorflow_datasets': {'data/tfds_builder.py'}},
}
UNTESTED = {'geneval'}  # Too large for the test extra: their tests run where somebody has installed them.
DISTRIBUTIONS = {'cv2': 'opencv-python-headless'}  # Named otherwise than the module.
ACCELERATOR = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'clu'}


def imports(source: str) -> set[str]:
  """Dotted names that a module imports: `from a.b import c` gives `a.b.c`."""
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names |= {f'{"." * node.level}{node.module or ""}.{alias.name}' for alias in node.names}
  return names


def complaints(place: str, source: str) -> list[str]:
  """What is wrong with the imports of the module at `place`, a path under pdgen/."""
  parts = pathlib.PurePosixPath(place).with_suffix('').parts
  home, in_folder = parts[0], len(parts) > 1
  found = []
  for name in sorted(imports(source) | imported_by_string(source)):
    head, *rest = name.split('.')
    if name.startswith('.'):
      found.append(f'{place} imports {name}: write the whole name')
    elif head == 'pdgen':
      target = rest[0] if rest else '__init__'
      if target in COMMANDS:
        found.append(f'{place} imports the command pdgen.{target}')
      elif in_folder and target != home and target not in MAY_IMPORT[home]:
        found.append(f'{place} imports pdgen.{target}')
      elif home in SHARED and target not in MAY_IMPORT.keys() | SHARED:
        found.append(f'{place} imports pdgen.{target}')
    elif head in ACCELERATOR and (home in NUMPY_ONLY or home == 'core' and place not in JAX_IN_CORE):
      found.append(f'{place} imports {head}, but is to run without an accelerator')
    elif any(place not in packages.get(head, {place}) for packages in OPTIONAL.values()):
      found.append(f'{place} imports {head}, which is optional')
  return found


def imported_by_string(source: str) -> set[str]:
  """Modules of pdgen that are named by strings, as `importlib.import_module` takes them."""
  texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
  return {text.rstrip('.') for text in texts if isinstance(text, str) and re.fullmatch(r'pdgen(\.\w+)+\.?', text)}


def test_the_folders_keep_to_the_house_plan():
  found = []
  for file in FILES:
    found += complaints(file.relative_to(ROOT / 'pdgen').as_posix(), file.read_text())
  assert not found, '\n'.join(found)


def test_every_folder_and_module_has_its_place_in_the_plan():
  folders = {p.name for p in (ROOT / 'pdgen').iterdir() if p.is_dir() and list(p.glob('*.py'))}
  modules = {p.stem for p in (ROOT / 'pdgen').glob('*.py')} - {'__init__'}
  assert folders <= set(MAY_IMPORT)
  assert modules <= COMMANDS | SHARED


@pytest.mark.parametrize(
  'place, source',
  [
    ('models/mot.py', 'from pdgen.training import losses'),
    ('models/mot.py', 'from pdgen import data'),
    ('models/mot.py', 'import pdgen.sampling.cycle'),
    ('models/mot.py', 'from ..data import packing'),
    ('training/step.py', 'def f():\n  from pdgen.sampling import cycle'),
    ('sampling/cycle.py', 'from pdgen.training import losses'),
    ('data/pipeline.py', 'import jax.numpy as jnp'),
    ('data/pipeline.py', 'from pdgen.construction import self_sampled'),
    ('core/config.py', 'from jax import numpy'),
    ('core/masks.py', 'from pdgen.models import layers'),
    ('evals/geneval.py', 'from pdgen.sampling import cycle'),
    ('viewing/gallery.py', 'from pdgen.inference.painter import load'),
    ('inference/painter.py', 'from pdgen.training import checkpoints'),
    ('flags.py', 'from pdgen import sample'),
    ('training/loop.py', 'from pdgen.data import pipeline'),
    ('core/config.py', "importlib.import_module('pdgen.models.layers')"),
    ('data/sources.py', "importlib.import_module(f'pdgen.construction.{name}')"),
    ('evaluate.py', 'from pdgen import sample'),
    ('data/records.py', 'def f():\n  import pyarrow.parquet'),
  ],
)
def test_a_forbidden_import_is_found(place: str, source: str):
  assert complaints(place, source)


def test_importing_pdgen_is_light():
  code = "import pdgen, sys; print(sorted({'jax', 'numpy', 'flax', 'PIL'} & set(sys.modules)))"
  assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True).stdout == b'[]\n'


def test_an_unknown_name_of_pdgen_is_an_attribute_error():
  import pdgen

  with pytest.raises(AttributeError, match='Public'):
    pdgen.paint  # noqa: B018
  assert {'load', 'Painter'} <= set(dir(pdgen))


def test_the_commands_import_where_there_are_no_file_locks_and_no_array_record():
  """Windows has neither. What needs them says so when it is used."""
  script = """
import sys
import pathlib, tempfile
import grain  # It asks for the system's name before it imports array_record.
import jax
sys.modules['fcntl'] = sys.modules['array_record.python'] = None
from pdgen import sample, train
from pdgen.data import records
from pdgen.training import workdir
with tempfile.TemporaryDirectory() as folder:
  with workdir.exclusive_workdir(pathlib.Path(folder)):
    pass
  try:
    records.Writer(folder)
  except ImportError as error:
    print(error)
"""
  done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert 'cannot be locked' in done.stdout and 'It has no wheels for Windows' in done.stdout


def test_an_editable_install_is_a_place_on_the_path():
  """By setuptools' import hook, an empty namespace would be found first in the folder above a clone called pdgen."""
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  assert setup['options']['package_dir'].split() == ['=', '.']


def test_setup_cfg_names_exactly_the_packages_that_are_imported():
  used = set()
  for file in [*FILES, *sorted((ROOT / 'configs').glob('*.py'))]:
    used |= {name.split('.')[0] for name in imports(file.read_text())}
  used -= {'pdgen', *sys.stdlib_module_names, *(package for extra in OPTIONAL.values() for package in extra)}
  homes = importlib.metadata.packages_distributions()
  used = {normal(homes[module][0]) for module in used if module in homes} | {m for m in used if m not in homes}
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  named = {
    normal(re.match(r'[\w.-]+', line)[0])
    for line in setup['options']['install_requires'].splitlines()
    if line.strip() and not line.startswith('#')
  }
  # jaxlib: named to hold its version beside jax's.
  assert used | {'jaxlib'} == named


def test_optional_packages_are_imported_where_they_are_needed_and_named_as_an_extra():
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  for extra, packages in OPTIONAL.items():
    named, tested = (
      {line for line in setup['options.extras_require'][name].splitlines() if line and line[0] != '#'}
      for name in (extra, 'test')
    )
    assert {normal(re.match(r'[\w.-]+', line)[0]) for line in named} == {
      normal(DISTRIBUTIONS.get(package, package)) for package in packages
    }
    assert named <= tested or extra in UNTESTED
    for package, places in packages.items():
      there = {f for f in FILES if package in {name.split('.')[0] for name in imports(f.read_text())}}
      assert {f.relative_to(ROOT / 'pdgen').as_posix() for f in there} == places


def test_nothing_but_a_client_needs_the_packages_of_services():
  script = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(OPTIONAL['judge'])}))
from pdgen import evaluate, judges
from pdgen.construction import openai_writer, renderers
from pdgen.services import budget, cache, chat, images, transport
budget.Budget(calls=1).charge(budget.Cost(calls=1))
try:
  chat.Chat(transport.Endpoint(base_url='http://localhost/v1', model='m'))
except ImportError as error:
  print(error)
"""
  done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout == "Services need filelock, httpx2, jsonschema, tenacity: pip install 'pdgen[judge]'\n"


def normal(distribution: str) -> str:
  return re.sub(r'[-_.]+', '-', distribution).lower()


def test_files_keep_one_subject():
  long = {str(f.relative_to(ROOT)): n for f in FILES if (n := len(f.read_text().splitlines())) > 400}
  assert not long
  assert not [f for f in FILES if f.stem in ('utils', 'util', 'helpers', 'common', 'misc')]
