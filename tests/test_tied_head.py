"""Folders whose embedding is the head: a copy of it when they are imported, left out of an export until it learns."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import released_folders
from support.released_folders import BAGEL, EMBEDDING, HEAD, assert_same_files, assert_same_tensors, refused, round_trip

from pdgen.data.tokenizers import byte_level
from pdgen.weights import bagel, bagel_convert, exported, safetensors_io


@pytest.fixture
def copy(tmp_path) -> pathlib.Path:
  """A whole folder to change."""
  return shutil.copytree(BAGEL, tmp_path / 'copy')


def tied(folder: pathlib.Path, kind=np.float32) -> pathlib.Path:
  tensors = {name: x.astype(kind) for name, x in released_folders.ema().items() if name != HEAD}
  released_folders.save(tensors, folder / bagel.EMA)
  released_folders.settings(folder, 'llm_config.json', tie_word_embeddings=True)
  return folder


@pytest.mark.parametrize('kind', [np.float32, np.float16, jnp.bfloat16])
def test_a_tied_head_is_copied_and_left_out_again(copy, tmp_path, kind, monkeypatch):
  monkeypatch.setattr(safetensors_io, 'BLOCK', 10_000)  # Head and embedding in many blocks.
  again, said = round_trip(tied(copy, kind), tmp_path)
  assert 'The embedding is the head' in said
  assert_same_files(again, copy)
  stored = safetensors_io.Reader(tmp_path / 'imported' / exported.PARAMS)
  np.testing.assert_array_equal(stored.read('head/kernel').T, stored.read('embed/table'))


@pytest.mark.parametrize('sharded', [False, True])
@pytest.mark.parametrize('dtype', [bagel_convert.AS_SOURCE, bagel_convert.FLOAT32])
def test_a_tied_head_that_learned_is_written_and_untied(copy, tmp_path, sharded, dtype):
  tied(copy)
  if sharded:
    released_folders.shard(copy)
  bagel_convert.import_bagel(copy, tmp_path / 'imported', prepare_tokenizer=byte_level.prepare)
  stored = exported.load_export(tmp_path / 'imported')
  params = jax.tree.map(np.array, stored.params)
  params['head']['kernel'][3, 5] = np.nextafter(params['head']['kernel'][3, 5], 9, dtype=np.float32)
  exported.export_ema(tmp_path / 'final', params, config=stored.config, tokenizer=stored.tokenizer)
  said: list[str] = []
  bagel_convert.export_bagel(tmp_path / 'final', tmp_path / 'again', dtype=dtype, say=said.append)
  assert len(said) == 1 and 'tie_word_embeddings: false' in said[0]
  got, want = (released_folders.tensors_of(folder) for folder in (tmp_path / 'again', copy))
  head = got.pop(HEAD)
  assert_same_tensors(got, want)
  if sharded:
    index = json.loads((tmp_path / 'again' / 'model.safetensors.index.json').read_bytes())['weight_map']
    assert index.keys() == {*got, HEAD} - {n for n in got if n.startswith(('encoder.', 'decoder.'))}
    assert index[HEAD] == index[EMBEDDING]
  assert [*zip(*np.nonzero(head != got[EMBEDDING]), strict=True)] == [(5, 3)]
  assert json.loads((tmp_path / 'again' / 'llm_config.json').read_bytes())['tie_word_embeddings'] is False
  bagel_convert.import_bagel(tmp_path / 'again', tmp_path / 'second', prepare_tokenizer=byte_level.prepare)
  np.testing.assert_array_equal(exported.load_export(tmp_path / 'second').params['head']['kernel'].T, head)


def test_a_head_that_is_missing_and_not_tied_is_told(copy, tmp_path, capsys):
  tied(copy)
  to = f'--to={tmp_path / "to"}'
  for value, told in ((False, f'missing: {HEAD}'), ('yes', "tie_word_embeddings is 'yes'")):
    released_folders.settings(copy, 'llm_config.json', tie_word_embeddings=value)
    assert told in refused(capsys, f'--from={copy}', to)
  # An untied base fills it in; the head of a tied base is the embedding of what is imported.
  released_folders.settings(copy, 'llm_config.json', tie_word_embeddings=False)
  again, _ = round_trip(copy, tmp_path / 'a', base=BAGEL)
  assert_same_tensors(released_folders.tensors_of(again), released_folders.tensors_of(BAGEL))
  base = tied(shutil.copytree(BAGEL, tmp_path / 'base'))
  only = released_folders.part(tmp_path / 'only', lambda name: name == EMBEDDING)
  again, said = round_trip(only, tmp_path / 'b', base=base)
  assert 'The embedding is the head' in said and HEAD not in released_folders.tensors_of(again)
  stored = safetensors_io.Reader(tmp_path / 'b' / 'imported' / exported.PARAMS)
  np.testing.assert_array_equal(stored.read('head/kernel').T, released_folders.tensors_of(only)[EMBEDDING])
  # A folder that says tied, and has neither: the head of the base is no copy.
  rest = released_folders.part(tmp_path / 'rest', lambda name: 'moe_gen' in name, files=('llm_config.json',))
  released_folders.settings(rest, 'llm_config.json', tie_word_embeddings=True)
  again, _ = round_trip(rest, tmp_path / 'c', base=BAGEL)
  assert json.loads((again / 'llm_config.json').read_bytes())['tie_word_embeddings'] is False
