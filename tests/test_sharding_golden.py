"""The partition of every array of every config's training state, as files: a change of a rule or a size is a diff.

python tests/test_sharding_golden.py        writes them anew, in tests/golden/sharding
"""

import json
import pathlib
import runpy

import pytest

from pdgen.core import config as config_lib
from pdgen.core import trees
from pdgen.models import partition
from pdgen.training import state as state_lib

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'sharding'
# Of trainings; those of data sets (`pdgen.construct`) and of studies made of several trainings have no state.
CONFIGS = sorted(
  path.stem
  for path in (ROOT / 'configs').glob('*.py')
  if not path.stem.startswith('construct_') and path.stem != 'ablations'
)


def dump(name: str) -> str:
  """One line a leaf of the state: its path, what it is and how it is split. `count` of the parameters of each part."""
  config = config_lib.from_config_dict(runpy.run_path(str(ROOT / 'configs' / f'{name}.py'))['get_config']())
  leaves = {}
  for path, leaf in trees.flatten_with_paths(state_lib.abstract_state(config)):
    axes = partition.spec(path) if leaf.shape else ()
    split = ', '.join('+'.join(a) if isinstance(a, tuple) else a or '-' for a in axes)
    leaves[path] = f'{leaf.dtype}{list(leaf.shape)}  {split or "replicated"}'
  return json.dumps(leaves, indent=1) + '\n'


@pytest.mark.parametrize('name', CONFIGS)
def test_partitions_are_those_of_the_file(name):
  assert dump(name) == (GOLDEN / f'{name}.json').read_text(), 'If that is meant: python tests/test_sharding_golden.py'


def test_there_is_no_file_without_a_config():
  assert sorted(path.stem for path in GOLDEN.glob('*.json')) == CONFIGS


if __name__ == '__main__':
  GOLDEN.mkdir(exist_ok=True)
  for config_name in CONFIGS:
    (GOLDEN / f'{config_name}.json').write_text(dump(config_name))
