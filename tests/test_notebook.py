"""The notebooks run from top to bottom on the shipped model, and are committed without outputs."""

import os
import pathlib

import nbclient
import nbformat
import pytest
from support import xla_flags

FOLDER = pathlib.Path(__file__).parents[1] / 'notebooks'


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


@pytest.mark.parametrize('path', sorted(FOLDER.glob('*.ipynb')), ids=lambda path: path.stem)
def test_the_committed_notebook_is_valid_and_light(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  assert not any(cell.outputs or cell.execution_count for cell in code_cells(notebook))


def test_paint_one_picture_runs_and_shows_what_it_promises(monkeypatch):
  # The kernel finds the package where this test finds it, and needs one device.
  monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(FOLDER.parent), os.environ.get('PYTHONPATH', '')]))
  monkeypatch.setenv('XLA_FLAGS', xla_flags.without_devices())
  notebook = nbformat.read(FOLDER / '01_paint_one_picture.ipynb', as_version=4)
  client = nbclient.NotebookClient(
    notebook, timeout=600, kernel_name='python3', resources={'metadata': {'path': FOLDER}}
  )
  client.execute()
  outputs = {cell.id: cell.outputs for cell in code_cells(notebook)}
  assert not any('Traceback' in str(o) or 'Warning' in str(o) for cell in outputs.values() for o in cell)

  texts = {name: ''.join(o.get('text', '') for o in cell) for name, cell in outputs.items()}
  pictures = {name: sum('image/png' in o.get('data', {}) for o in cell) for name, cell in outputs.items()}
  assert 'million parameters' in texts['load']
  assert '<article>' in outputs['sample'][0]['data']['text/html']
  assert texts['stages'].count('To do:') >= 1 and 'Stop: ' in texts['stages']
  assert pictures['stages'] == texts['stages'].count('the detector sees') >= 1
  assert (pictures['seeds'], pictures['guidance']) == (1, 3)
  assert texts['guidance'].count('compiled again: 0') == 3
  assert 'umm_reflection: round 0: done, score 9' in texts['protocols']
