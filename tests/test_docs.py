"""What the documents and docstrings point to exists: files, anchors, modules; the README's tree names every file."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [
  ROOT / 'README.md',
  ROOT / 'CONTRIBUTING.md',
  *sorted((ROOT / 'docs').glob('*.md')),
  *sorted((ROOT / 'launch').glob('*.md')),
]
SOURCES = [file for folder in ('pdgen', 'configs', 'launch', 'tests') for file in sorted((ROOT / folder).rglob('*.py'))]


def _anchors(document: pathlib.Path) -> set[str]:
  """The anchors that GitHub gives the headings of a document."""
  headings = re.findall(r'^#+ (.+)$', document.read_text(encoding='utf-8'), re.MULTILINE)
  return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('file', [*DOCUMENTS, *SOURCES], ids=lambda file: file.relative_to(ROOT).as_posix())
def test_files_and_anchors_that_are_named_exist(file):
  text = file.read_text(encoding='utf-8')
  named = set(re.findall(r'\b(?:pdgen|tests|docs|configs|launch)/[\w/.]+\.(?:py|md|sh|json)\b', text))
  missing = sorted(name for name in named if not (ROOT / name).exists() and file.name != 'test_imports.py')
  assert not missing
  for document, anchor in re.findall(r'(docs/\w+\.md)#([\w-]+)', text):
    assert anchor in _anchors(ROOT / document), f'{document}#{anchor}'


def test_the_tree_of_the_readme_names_every_file_and_no_other():
  """Each with a comment."""
  text = (ROOT / 'README.md').read_text(encoding='utf-8')
  tree = text[text.index('## Files') :].split('```')[1]
  named = dict(re.findall(r'^(\S+\.py) +(\S.*)$', tree, re.MULTILINE))
  there = {p.relative_to(ROOT / 'pdgen').as_posix() for p in (ROOT / 'pdgen').rglob('*.py') if p.stat().st_size > 1}
  assert set(named) == there
