"""Holds the folders to the house plan (design, section 5) by reading their imports, not by running them."""

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

# What a folder may import of pdgen besides itself. Modules at the top join the folders; only they may see everything.
MAY_IMPORT = {
  'core': set(),
  'models': {'core'},
  'training': {'core', 'models'},
  'sampling': {'core', 'models'},
  'data': {'core'},
  'construction': {'core', 'data'},
  'worlds': {'core'},
  'evals': {'core'},
  'viewing': {'core'},
}
COMMAND_LINES = {'train', 'sample', 'evaluate', 'construct', 'convert', 'compile', 'benchmark'}
GLUE = {'painter', 'command_line'}  # what command lines share
NUMPY_ONLY = {'data', 'worlds', 'construction', 'evals', 'viewing'}
NUMPY_ONLY_CORE = {
  f'core/{name}.py'
  for name in '__init__ boxes config conversion hlo machines model_config packed seeding trajectory worlds'.split()
}
ACCELERATOR = {'jax', 'jaxlib', 'flax', 'optax', 'orbax'}


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
  for name in sorted(imports(source)):
    head, *rest = name.split('.')
    if name.startswith('.'):
      found.append(f'{place} imports {name}: write the whole name')
    elif head == 'pdgen':
      target = rest[0] if rest else '__init__'
      if target in COMMAND_LINES:
        found.append(f'{place} imports the command line pdgen.{target}')
      elif in_folder and target != home and target not in MAY_IMPORT[home]:
        found.append(f'{place} imports pdgen.{target}')
      elif home in GLUE and target not in MAY_IMPORT.keys() | GLUE:
        found.append(f'{place} imports pdgen.{target}')
    elif head in ACCELERATOR and (home in NUMPY_ONLY or place in NUMPY_ONLY_CORE):
      found.append(f'{place} imports {head}, but is to run without an accelerator')
  return found


def test_the_folders_keep_to_the_house_plan():
  found = []
  for file in FILES:
    found += complaints(file.relative_to(ROOT / 'pdgen').as_posix(), file.read_text())
  assert not found, '\n'.join(found)


def test_every_folder_and_module_has_its_place_in_the_plan():
  folders = {p.name for p in (ROOT / 'pdgen').iterdir() if p.is_dir() and list(p.glob('*.py'))}
  modules = {p.stem for p in (ROOT / 'pdgen').glob('*.py')} - {'__init__'}
  assert folders <= set(MAY_IMPORT)
  assert modules <= COMMAND_LINES | GLUE


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
    ('data/pipeline.py', 'from pdgen.worlds import shapes'),
    ('core/config.py', 'from jax import numpy'),
    ('core/masks.py', 'from pdgen.models import layers'),
    ('evals/geneval.py', 'from pdgen.worlds.shapes import detect'),
    ('viewing/gallery.py', 'from pdgen.painter import load'),
    ('painter.py', 'from pdgen import sample'),
    ('evaluate.py', 'from pdgen import sample'),
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
  assert {'load', 'sample', 'Painter'} <= set(dir(pdgen))


def test_setup_cfg_names_exactly_the_packages_that_are_imported():
  used = set()
  for file in [*FILES, *sorted((ROOT / 'configs').glob('*.py'))]:
    used |= {name.split('.')[0] for name in imports(file.read_text())}
  used -= {'pdgen', *sys.stdlib_module_names}
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


def normal(distribution: str) -> str:
  return re.sub(r'[-_.]+', '-', distribution).lower()


def test_files_keep_one_subject():
  long = {str(f.relative_to(ROOT)): n for f in FILES if (n := len(f.read_text().splitlines())) > 400}
  assert not long
  assert not [f for f in FILES if f.stem in ('utils', 'util', 'helpers', 'common', 'misc')]
