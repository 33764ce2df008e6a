"""Folders that users name and others made: what they are; names and links that stay inside; places that are taken."""

import errno
import functools
import hashlib
import json
import os
import pathlib
import shutil

import jax
import pytest
from support import toy

from pdgen import convert
from pdgen.core import config as config_lib
from pdgen.core import paths
from pdgen.data import tokenizers
from pdgen.data.tokenizers import byte_level
from pdgen.models import interleaved
from pdgen.weights import bagel_convert, exported, folders, loading

ROOT = pathlib.Path(__file__).parents[1]
BAGEL = pathlib.Path(os.environ.get('PDGEN_GOLDEN') or ROOT / 'tests' / 'golden') / 'ckpt'
SMALL = config_lib.Config(
  model=config_lib.ModelConfig(width=32, depth=1, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=32)
)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> pathlib.Path:
  to = tmp_path_factory.mktemp('imported') / 'bagel'
  bagel_convert.import_bagel(BAGEL, to, prepare_tokenizer=byte_level.prepare)
  return to


@pytest.fixture
def here(tmp_path, monkeypatch) -> pathlib.Path:
  """The current folder, with a model of the user's own that has the name of the shipped one."""
  monkeypatch.chdir(tmp_path)
  exported.export_ema('shapes', toy.params(SMALL.model), config=SMALL, tokenizer=tokenizers.ASSETS / 'shapes.model')
  return tmp_path


def refused(capsys, *arguments: str) -> str:
  """The one line that the command says."""
  with pytest.raises(SystemExit) as stop:
    convert.main(arguments)
  assert stop.value.code == 2
  message = capsys.readouterr().err.partition(': ')[2].strip()
  assert message and '\n' not in message and 'Traceback' not in message
  return message


# Names and paths.


def test_a_shipped_name_never_beats_a_folder_that_is_written_as_a_path(here, capsys):
  for name in ('./shapes', 'shapes/', str(here / 'shapes'), pathlib.Path('shapes')):
    assert loading.load_for_sampling(name)[0] == SMALL, name
  assert 'ships' not in capsys.readouterr().err
  assert loading.load_for_sampling('shapes')[0].model.depth == 4
  assert './shapes' in capsys.readouterr().err  # Not silently: both are there.
  shutil.rmtree('shapes')
  assert loading.locate(pathlib.Path('shapes')) == loading.locate('shapes') == loading.SHIPPED / 'shapes'
  for name in ('./shapes', 'shapes/', '', '.', '..', str(here / 'shapes'), '../shipped/shapes'):
    with pytest.raises((FileNotFoundError, ValueError)):
      loading.load_for_sampling(name)


def test_a_shipped_tokenizer_never_beats_a_path_either(here):
  assert tokenizers.files('shapes') == tokenizers.ASSETS / 'shapes.model'
  for name in ('./shapes', 'shapes/', str(here / 'shapes')):
    assert tokenizers.files(name) == pathlib.Path(name)
  with pytest.raises(FileNotFoundError, match='No tokenizer'):
    tokenizers.load('./shapes')


# What a folder is.


def test_a_folder_of_another_kind_is_told_which_command_it_wants(checkpoint, tmp_path, capsys):
  run = tmp_path / 'run'
  (run / 'checkpoints' / '500').mkdir(parents=True)
  (run / 'config.json').write_text(json.dumps(exported.as_json(SMALL)))
  for source in (BAGEL, run / 'checkpoints', run / 'checkpoints' / '500', checkpoint / 'params.safetensors'):
    with pytest.raises((FileNotFoundError, ValueError)) as error:
      loading.load_for_sampling(source)
    assert 'damaged' not in str(error.value) and 'sha256' not in str(error.value)
    wanted = {BAGEL: f'pdgen.convert import --from={BAGEL}', checkpoint / 'params.safetensors': 'is a file'}
    assert wanted.get(source, f'Name its workdir: {run}') in str(error.value)
  to = f'--to={tmp_path / "to"}'
  assert 'workdir of a training run' in refused(capsys, 'export', f'--from={run}', to)
  (run / 'final').mkdir()
  assert str(run / 'final') in refused(capsys, 'export', f'--from={run}', to)
  assert 'convert import' in refused(capsys, 'export', f'--from={BAGEL}', to)
  assert 'a model of pdgen already' in refused(capsys, 'import', f'--from={checkpoint}', to)
  assert 'workdir of a training run' in refused(capsys, 'import', f'--from={run}', to)
  assert 'is a file' in refused(capsys, 'import', f'--from={BAGEL / "ema.safetensors"}', to)


def test_a_name_on_the_hub_is_told_how_to_get_it(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  name = 'ByteDance-Seed/BAGEL-7B-MoT'
  with pytest.raises(FileNotFoundError) as error:
    loading.load_for_sampling(name)
  for told in (str(error.value), refused(capsys, 'import', f'--from={name}', '--to=x')):
    assert f'downloads nothing; if that is a name on the Hugging Face hub: hf download {name} --local-dir' in told
    assert 'pdgen.convert import --from=BAGEL-7B-MoT' in told
  (tmp_path / 'ByteDance-Seed').mkdir()
  with pytest.raises(FileNotFoundError) as error:
    loading.load_for_sampling(name)
  assert 'hub' not in str(error.value)


# Names and links that others chose.


def forge(checkpoint: pathlib.Path, to: pathlib.Path, **changes) -> pathlib.Path:
  """A checkpoint whose source.json, and the digests of which, an attacker has written."""
  shutil.copytree(checkpoint, to)
  path = to / 'source' / 'source.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
  manifest = json.loads((to / 'config.json').read_text())
  manifest['sha256']['source/source.json'] = hashlib.sha256(path.read_bytes()).hexdigest()
  (to / 'config.json').write_text(json.dumps(manifest))
  return to


PATHS = ('../victim', '{here}/victim', 'a/b', '..', '', 'a\\b', 'C:x', 'a\nb')


@pytest.mark.parametrize(
  'field, name', [*(('headers', name) for name in PATHS), *(('files', name) for name in (*PATHS, 7, None, ['x']))]
)
def test_an_export_writes_nothing_outside_of_its_folder(checkpoint, tmp_path, capsys, monkeypatch, field, name):
  monkeypatch.setattr(interleaved, 'abstract_params', functools.cache(interleaved.abstract_params))
  (tmp_path / 'victim').write_text('kept')
  name = name.format(here=tmp_path) if isinstance(name, str) else name
  kept = json.loads((checkpoint / 'source' / 'source.json').read_text())
  forged = {
    'headers': {**kept['headers'], str(name): next(iter(kept['headers'].values()))},
    'files': [*kept['files'], name],
  }
  source = forge(checkpoint, tmp_path / 'shared', **{field: forged[field]})
  before = sorted(p.name for p in tmp_path.iterdir())
  assert 'source.json' in refused(capsys, 'export', f'--from={source}', f'--to={tmp_path / "out"}')
  assert (tmp_path / 'victim').read_text() == 'kept'
  assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_the_names_of_a_manifest_stay_in_its_folder(checkpoint, tmp_path):
  (tmp_path / 'victim').write_text('')
  digest = hashlib.sha256(b'').hexdigest()
  for number, name in enumerate(('../victim', str(tmp_path / 'victim'), 'source/../../victim')):
    copied = shutil.copytree(checkpoint, tmp_path / str(number))
    manifest = json.loads((copied / 'config.json').read_text())
    manifest['sha256'][name] = digest
    (copied / 'config.json').write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match='no plain name'):
      exported.load_export(copied)


def test_no_link_out_of_a_folder_is_followed(checkpoint, tmp_path, capsys):
  secret = tmp_path / 'secret.json'
  secret.write_text('{"key": 1}')
  released = shutil.copytree(BAGEL, tmp_path / 'BAGEL')
  (released / 'notes.json').symlink_to(secret)
  told = refused(capsys, 'import', f'--from={released}', f'--to={tmp_path / "to"}')
  assert f'{released / "notes.json"} is a link out of its folder' in told
  assert not (tmp_path / 'to').exists() and not list(tmp_path.glob('*.partial'))
  (released / 'notes.json').unlink()
  for name in ('ema.safetensors', 'llm_config.json'):
    (released / name).rename(tmp_path / name)
    (released / name).symlink_to(tmp_path / name)
    assert 'is a link out' in refused(capsys, 'import', f'--from={released}', f'--to={tmp_path / "to"}')
    (released / name).unlink()
    (tmp_path / name).rename(released / name)
  # Of a checkpoint that somebody shares, and of a tokenizer that a run would copy into what it exports.
  shared = shutil.copytree(checkpoint, tmp_path / 'shared')
  (shared / 'source' / 'config.json').unlink()
  (shared / 'source' / 'config.json').symlink_to(secret)
  assert 'is a link out' in refused(capsys, 'export', f'--from={shared}', f'--to={tmp_path / "to"}')
  with pytest.raises(ValueError, match='is a link out'):
    exported.load_export(shared)
  with pytest.raises(ValueError, match='is a link out'):
    tokenizers.files(str(shared / 'source'))
  with pytest.raises(ValueError, match='is a link out'):
    exported.export_ema(tmp_path / 'final', {}, config=SMALL, tokenizer=shared / 'source')
  assert not (tmp_path / 'final').exists()


def test_links_inside_of_a_download_are_followed(tmp_path):
  """The cache of the Hugging Face hub: snapshots/REVISION links to blobs of the same download."""
  blobs, snapshot = tmp_path / 'models--x' / 'blobs', tmp_path / 'models--x' / 'snapshots' / 'abc'
  shutil.copytree(BAGEL, blobs)
  snapshot.mkdir(parents=True)
  for path in blobs.iterdir():
    (snapshot / path.name).symlink_to(f'../../blobs/{path.name}')
  bagel_convert.import_bagel(snapshot, tmp_path / 'to', prepare_tokenizer=byte_level.prepare)
  assert not any(path.is_symlink() for path in (tmp_path / 'to').rglob('*'))
  for name in ('loop', 'gone'):
    (snapshot / name).symlink_to('loop' if name == 'loop' else tmp_path / 'nowhere')
    with pytest.raises(ValueError, match=name):
      paths.check_links(snapshot)
    (snapshot / name).unlink()


# Folders that take a place.


def test_a_mount_point_is_written_in_place(checkpoint, tmp_path, monkeypatch):
  """It can be neither renamed over nor removed. A fresh disk holds lost+found."""
  disk, rename, ismount = tmp_path / 'disk', os.replace, os.path.ismount
  (disk / 'lost+found').mkdir(parents=True)

  def replace(source, target):
    if pathlib.Path(target) == disk or pathlib.Path(source) == disk:
      raise OSError(errno.EBUSY, 'Device or resource busy')
    rename(source, target)

  monkeypatch.setattr(os, 'replace', replace)
  monkeypatch.setattr(os.path, 'ismount', lambda path: pathlib.Path(path) == disk or ismount(path))
  bagel_convert.export_bagel(checkpoint, disk)
  names = {path.name for path in BAGEL.iterdir()}
  assert {path.name for path in disk.iterdir()} == {*names, 'lost+found'}
  assert {path.name for path in tmp_path.iterdir()} == {'disk'}
  with pytest.raises(ValueError, match='is not empty'):
    bagel_convert.export_bagel(checkpoint, disk)


@pytest.mark.parametrize('there', [True, False])
def test_what_cannot_be_renamed_is_moved_or_kept(tmp_path, monkeypatch, there):
  """A place that looks like any other, but cannot be renamed over: bind mounts, some network disks."""
  place = tmp_path / 'out'
  if there:
    place.mkdir()

  def busy(*_):
    raise OSError(errno.EBUSY, 'Device or resource busy')

  monkeypatch.setattr(os, 'replace', busy)
  with folders.atomic_directory(place) as partial:
    (partial / 'a').write_text('1')
    (partial / 'b').mkdir()
  assert sorted(path.name for path in place.iterdir()) == ['a', 'b'] and [*tmp_path.iterdir()] == [place]
  monkeypatch.setattr(shutil, 'move', busy)
  with pytest.raises(OSError, match=r'Everything is in .*partial: move it yourself'):
    with folders.atomic_directory(place) as partial:
      (partial / 'precious').write_text('hours of work')
  assert [path.read_text() for path in tmp_path.rglob('precious')] == ['hours of work']
  assert (place / 'a').read_text() == '1'


def test_an_export_goes_where_a_link_points(tmp_path):
  (tmp_path / 'disk').mkdir()
  (tmp_path / 'final').symlink_to(tmp_path / 'disk')
  params = jax.tree.map(lambda x: x, toy.params(SMALL.model))
  exported.export_ema(tmp_path / 'final', params, config=SMALL, tokenizer=tokenizers.ASSETS / 'shapes.model')
  assert (tmp_path / 'final').is_symlink() and exported.load_export(tmp_path / 'disk').config == SMALL


@pytest.mark.parametrize('error, code', [(OSError(errno.ENOSPC, 'No space left'), 2), (KeyboardInterrupt(), 130)])
def test_a_conversion_that_is_stopped_says_so_and_leaves_nothing(
  checkpoint, tmp_path, monkeypatch, capsys, error, code
):
  def stopped(*_):
    raise error

  monkeypatch.setattr(shutil, 'copyfile', stopped)
  with pytest.raises(SystemExit) as stop:
    convert.main(['export', f'--from={checkpoint}', f'--to={tmp_path / "to"}'])
  assert stop.value.code == code and str(tmp_path / 'to') in capsys.readouterr().err
  assert not list(tmp_path.iterdir())
