"""Folders of weights as people have them: without a ViT, sharded, tied, in parts, filled from a base, and back."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import released_folders, toy
from support.released_folders import BAGEL, EMBEDDING, HEAD, OF_VIT

import pdgen
from pdgen import convert
from pdgen.data.tokenizers import byte_level
from pdgen.models import interleaved
from pdgen.training import losses
from pdgen.weights import bagel, bagel_convert, exported, released, safetensors_io

JSON = ('config.json', 'llm_config.json', 'vit_config.json', 'ae_config.json')
SMALL = dict(flow_steps=2, max_pictures=1, max_text_tokens=12)


@pytest.fixture
def copy(tmp_path) -> pathlib.Path:
  """A whole folder to change."""
  return shutil.copytree(BAGEL, tmp_path / 'copy')


def round_trip(source: pathlib.Path, home: pathlib.Path, **options) -> tuple[pathlib.Path, str]:
  """Imports, exports, and imports the export: the same parameters. Returns the export, and what was said."""
  home.mkdir(exist_ok=True)
  said: list[str] = []
  first = dict(prepare_tokenizer=byte_level.prepare, say=said.append)
  bagel_convert.import_bagel(source, home / 'imported', **first, **options)
  bagel_convert.export_bagel(home / 'imported', home / 'again', say=said.append)
  bagel_convert.import_bagel(home / 'again', home / 'second', prepare_tokenizer=byte_level.prepare)
  params = (exported.PARAMS, 'source/fixed.safetensors')
  assert all((home / 'imported' / p).read_bytes() == (home / 'second' / p).read_bytes() for p in params)
  return home / 'again', '\n'.join(said)


def assert_same_files(one: pathlib.Path, other: pathlib.Path):
  assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
  assert all((other / p.name).read_bytes() == p.read_bytes() for p in one.iterdir())


def assert_same_tensors(got: dict[str, np.ndarray], want: dict[str, np.ndarray]):
  assert got.keys() == want.keys()
  for name, x in want.items():
    assert got[name].dtype == x.dtype and got[name].tobytes() == x.tobytes(), name


def refused(capsys, *arguments: str) -> str:
  """The one line of the command."""
  with pytest.raises(SystemExit) as stop:
    convert.main(['import', *arguments])
  assert stop.value.code == 2
  message = capsys.readouterr().err.partition('error: ')[2].strip()
  assert message and '\n' not in message and 'Traceback' not in message, message
  return message


def mixed(whole: dict[str, np.ndarray], keep) -> dict[str, np.ndarray]:
  """The tensors of `part`, filled from the whole."""
  return {name: released_folders.changed(x) if keep(name) else x for name, x in whole.items()}


# Without a ViT.


def without_vit(folder: pathlib.Path, **fields) -> pathlib.Path:
  tensors = {name: x for name, x in released_folders.ema().items() if not name.startswith(OF_VIT)}
  released_folders.save(tensors, folder / bagel.EMA)
  released_folders.settings(folder, 'config.json', **fields)
  return folder


@pytest.mark.parametrize('with_json', [True, False])
def test_a_fine_tune_without_a_vit_is_a_model_without_one(copy, tmp_path, with_json):
  without_vit(copy, visual_und=False)
  if not with_json:
    (copy / 'vit_config.json').unlink()
  again, said = round_trip(copy, tmp_path)
  assert_same_files(again, copy)
  assert 'There is no ViT' in said
  config = exported.load_export(tmp_path / 'imported').config
  assert config.model.vit is None and config.model.vit_tokens == 0


def test_a_model_without_a_vit_paints_and_learns(copy, tmp_path):
  side = 2 * bagel.from_released(*(json.loads((BAGEL / name).read_bytes()) for name in (
    'llm_config.json', 'vit_config.json', 'config.json', 'ae_config.json')), dtype='float32').codec.patch  # fmt: skip
  without_vit(copy, visual_und=False)
  bagel_convert.import_bagel(copy, tmp_path / 'to', prepare_tokenizer=byte_level.prepare, image_size=side)
  painter = pdgen.load(str(tmp_path / 'to'))
  sampling = dataclasses.replace(painter.config.sampling, **SMALL)
  result = painter.sample(['a red ring'], mode='direct', sampling=sampling)
  assert result.trajectories[0].final.shape == (side, side, 3)
  steps = (toy.Step(plan='<ins>a</ins><des>b</des>', draft=toy.picture(1, side)),)
  batch = toy.batch(toy.row(toy.Trajectory(prompt='a ring', steps=steps), painter.config.model, seed=0))
  assert batch.vit is None and (np.asarray(batch.und.picture) == -1).all()  # No ViT copy.

  def loss(params):
    model = nnx.merge(interleaved.graphdef(painter.config.model), params)
    return losses.interleaved_loss(model, batch, jax.random.key(0), painter.config)[0]

  value, gradients = jax.jit(jax.value_and_grad(loss), compiler_options=toy.QUICK)(painter.params)
  assert 'vit' not in gradients and np.isfinite(value)
  assert np.abs(gradients['trunk']['layers']['gen']['q']['kernel']).max() > 0


def test_a_vit_that_is_missing_is_told_once_and_filled_from_the_base(copy, tmp_path, capsys):
  without_vit(copy)
  message = refused(capsys, f'--from={copy}', f'--to={tmp_path / "to"}')
  assert 'missing: the ViT' in message and '--base=' in message and '"visual_und": false' in message
  again, said = round_trip(copy, tmp_path / 'a', base=BAGEL)
  assert_same_tensors(released_folders.tensors_of(again), released_folders.tensors_of(BAGEL))
  released_folders.settings(copy, 'config.json', visual_und=False)
  again, said = round_trip(copy, tmp_path / 'b', base=BAGEL)
  count = sum(name.startswith(OF_VIT) for name in released_folders.ema())
  assert f'From {BAGEL}: {count} tensors of ema.safetensors (connector, vit_model, vit_pos_embed)' in said
  assert_same_tensors(released_folders.tensors_of(again), released_folders.tensors_of(BAGEL))
  assert json.loads((again / 'config.json').read_bytes())['visual_und'] is True
  released_folders.settings(copy, 'config.json', visual_und='no')
  assert 'visual_und is' in refused(capsys, f'--from={copy}', f'--to={tmp_path / "to"}')


# Shards; ema and model.


@pytest.mark.parametrize('stem', ['ema', 'model', 'consolidated'])
def test_shards_are_read_by_their_index_and_given_back(copy, tmp_path, stem):
  index = released_folders.shard(copy, stem=stem)
  released_folders.shard(copy, stem='ae', count=2, to=bagel.AE)
  again, said = round_trip(copy, tmp_path)
  assert_same_files(again, copy)
  assert f'Weights: {index} and its 3 files' in said


def test_the_average_goes_before_the_model_unless_weights_says_otherwise(copy, tmp_path):
  other = mixed(released_folders.ema(), lambda name: 'pos_embed' not in name)
  released_folders.save(other, copy / 'model.safetensors')
  again, said = round_trip(copy, tmp_path / 'ema')
  assert_same_files(again, BAGEL)
  assert f'Weights: {copy / "ema.safetensors"}' in said and 'Left out: model.safetensors (--weights=' in said
  again, _ = round_trip(copy, tmp_path / 'model', weights='model.safetensors')
  assert sorted(p.name for p in again.glob('*.safetensors')) == ['ae.safetensors', 'model.safetensors']
  assert (again / 'model.safetensors').read_bytes() == (copy / 'model.safetensors').read_bytes()
  (copy / 'ema.safetensors').unlink()
  again, _ = round_trip(copy, tmp_path / 'alone')
  assert_same_files(again, copy)


def test_weights_may_be_a_path_elsewhere(copy, tmp_path, capsys):
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir()
  file = elsewhere / 'step_900.safetensors'
  (copy / bagel.EMA).rename(file)
  again, said = round_trip(copy, tmp_path / 'file', weights=file)
  assert f'Weights: {file}' in said
  assert_same_files(again, BAGEL)  # By a name that loads.
  file.rename(elsewhere / bagel.EMA)
  index = released_folders.shard(elsewhere, stem='run')
  again, _ = round_trip(copy, tmp_path / 'index', weights=index)
  assert (again / index.name).read_bytes() == index.read_bytes()
  to = f'--to={tmp_path / "to"}'
  for given, told in (('none.safetensors', 'none.safetensors is not there'), ('config.bin', 'neither a *.safetensors'),
                      (f'{elsewhere}/x.safetensors', 'x.safetensors is not there')):  # fmt: skip
    assert told in refused(capsys, f'--from={copy}', to, f'--weights={given}')
  shutil.copyfile(elsewhere / 'run-00001-of-00003.safetensors', copy / 'step_1.safetensors')
  assert '--weights=step_1.safetensors takes that file' in refused(capsys, f'--from={copy}', to)


# Tied heads.


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


# Parts, filled from a base.

PARTS = {
  'the language model': lambda name: name.startswith('language_model.') and '_moe_gen' not in name,
  'the experts that paint': lambda name: '_moe_gen' in name,
  'one layer': lambda name: '.layers.1.' in name and name.startswith('language_model.'),
  'one tensor': lambda name: name == 'llm2vae.bias',
}


@pytest.mark.parametrize('sharded_base', [False, True])
@pytest.mark.parametrize('name', PARTS)
def test_a_part_is_filled_tensor_by_tensor_from_the_base(tmp_path, name, sharded_base):
  base = shutil.copytree(BAGEL, tmp_path / 'base')
  if sharded_base:
    released_folders.shard(base)
  source = released_folders.part(tmp_path / 'part', PARTS[name])
  again, said = round_trip(source, tmp_path, base=base)
  whole = released_folders.tensors_of(BAGEL)
  assert_same_tensors(released_folders.tensors_of(again), mixed(whole, PARTS[name]))
  for file in JSON:
    assert (again / file).read_bytes() == (BAGEL / file).read_bytes()
  kept, ae = len(released_folders.tensors_of(source)), len(whole) - len(released_folders.ema())
  assert f'Weights: {source / "ema.safetensors"}' in said
  assert f'From {base}: {len(released_folders.ema()) - kept} tensors of ema.safetensors (' in said
  assert f'From {base}: {ae} tensors of ae.safetensors (decoder, encoder)' in said
  assert f'From {base}: json files llm_config.json, vit_config.json, config.json, ae_config.json' in said
  assert said.count('\n') == 3


def test_layers_of_another_type_than_the_base_keep_their_bits(tmp_path):
  base = shutil.copytree(BAGEL, tmp_path / 'base')
  half = {name: np.asarray(x, jnp.bfloat16) for name, x in released_folders.ema().items()}
  released_folders.save(half, base / bagel.EMA)
  keep = PARTS['one layer']
  source = released_folders.part(tmp_path / 'part', keep)
  again, _ = round_trip(source, tmp_path, base=base)
  want = {**released_folders.tensors_of(base), **released_folders.tensors_of(source)}
  assert_same_tensors(released_folders.tensors_of(again), want)
  stored = exported.load_export(tmp_path / 'imported')
  assert stored.config.model.dtype == 'bfloat16' and stored.params['embed']['table'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    stored.params['trunk']['layers']['gen']['q']['kernel'][1],
    want['language_model.model.layers.1.self_attn.q_proj_moe_gen.weight'].T,
  )


@pytest.mark.parametrize('gone', [*JSON, bagel.AE])
def test_a_file_that_is_missing_is_named_and_filled(copy, tmp_path, capsys, gone):
  (copy / gone).unlink()
  to = f'--to={tmp_path / "to"}'
  if gone in ('llm_config.json', 'vit_config.json', bagel.AE):
    message = refused(capsys, f'--from={copy}', to)
    assert f'lacks {gone}.' in message and '--base=FOLDER' in message
  again, said = round_trip(copy, tmp_path / 'home', base=BAGEL)
  assert_same_files(again, BAGEL)
  assert said.count(f'From {BAGEL}') == 1 and (gone in said)


def test_a_whole_folder_takes_nothing_from_a_base(copy, tmp_path):
  base = shutil.copytree(BAGEL, tmp_path / 'base')
  released_folders.settings(base, 'config.json', max_latent_size=3)
  (base / 'notes.json').write_text('{}')
  again, said = round_trip(copy, tmp_path / 'home', base=base)
  assert_same_files(again, BAGEL)
  assert 'From' not in said


def test_a_tokenizer_is_taken_whole_from_the_base(copy, tmp_path, capsys):
  ids = {ours: json.loads((BAGEL / 'config.json').read_bytes())['new_token_ids'][name]
         for name, ours in bagel_convert._TOKEN_IDS.items()}  # fmt: skip
  base = shutil.copytree(BAGEL, tmp_path / 'base')
  (base / 'tokenizer.json').write_text(json.dumps(byte_level.bytes_only(ids, rows=300)))
  (base / 'special_tokens_map.json').write_text('{}')
  again, said = round_trip(copy, tmp_path / 'none', base=base)
  assert (again / 'tokenizer.json').read_bytes() == (base / 'tokenizer.json').read_bytes()
  assert f'From {base}: tokenizer files tokenizer.json, special_tokens_map.json' in said
  (copy / 'tokenizer_config.json').write_text('{}')
  message = refused(capsys, f'--from={copy}', f'--to={tmp_path / "to"}')
  assert 'no tokenizer.json' in message and '--base=FOLDER' in message
  again, said = round_trip(copy, tmp_path / 'part', base=base)
  assert (again / 'tokenizer_config.json').read_text() == '{}' and (again / 'tokenizer.json').is_file()
  # One of its own: nothing of the base goes beside it.
  own = json.dumps(byte_level.bytes_only(ids, rows=300), indent=1)
  (copy / 'tokenizer.json').write_text(own)
  again, said = round_trip(copy, tmp_path / 'own', base=base)
  assert (again / 'tokenizer.json').read_text() == own and not (again / 'special_tokens_map.json').exists()
  # A part of another form: the base's tokenizer.json would go before it.
  (copy / 'tokenizer.json').unlink()
  (copy / 'vocab.json').write_text('{}')
  assert 'merges.txt' in refused(capsys, f'--from={copy}', f'--base={base}', f'--to={tmp_path / "to"}')


def test_the_names_of_a_tokenizer_are_those_that_it_reads():
  assert set(released.TOKENIZER) == set(byte_level._SIGNS)
  assert set(sum(released.COMPLETE, ())) <= set(byte_level.FILES)


# What does not go together.


def test_shapes_that_disagree_with_the_base_are_one_line(tmp_path, capsys):
  source = released_folders.part(tmp_path / 'part', PARTS['the language model'], files=JSON)
  base = shutil.copytree(BAGEL, tmp_path / 'base')
  tensors = released_folders.ema()
  wider = {name: np.concatenate([x, x]) if '_moe_gen' in name else x for name, x in tensors.items()}
  released_folders.save(wider, base / bagel.EMA)
  to = f'--to={tmp_path / "to"}'
  message = refused(capsys, f'--from={source}', f'--base={base}', to)
  count = sum('_moe_gen' in name for name in tensors)
  assert f'mis-shaped: {count} tensors that {base} fills in; the first: language_model' in message
  short = {name: x[:-1] if name == 'llm2vae.bias' else x for name, x in tensors.items()}
  released_folders.save(short, source / bagel.EMA)
  message = refused(capsys, f'--from={source}', f'--base={BAGEL}', to)
  assert f'1 tensors of {source}' in message and 'mis-shaped: llm2vae.bias' in message
  assert not (tmp_path / 'to').exists()


def test_what_the_base_lacks_too_is_told(tmp_path, capsys):
  base = shutil.copytree(BAGEL, tmp_path / 'base')
  to, tensors = f'--to={tmp_path / "to"}', released_folders.ema()
  released_folders.save({n: x for n, x in tensors.items() if n != 'llm2vae.bias'}, base / bagel.EMA)
  source = released_folders.part(tmp_path / 'part', PARTS['the language model'])
  message = refused(capsys, f'--from={source}', f'--base={base}', to)
  assert f'{base} lacks it, too.' in message and 'missing: llm2vae.bias' in message
  (base / 'vit_config.json').unlink()
  message = refused(capsys, f'--from={source}', f'--base={base}', to)
  assert message == f'Neither {source} nor {base} holds vit_config.json.'


def test_names_with_or_without_a_prefix_are_one_line(tmp_path, capsys):
  source = released_folders.part(tmp_path / 'part', PARTS['the language model'])
  tensors, to = released_folders.tensors_of(source), f'--to={tmp_path / "to"}'
  released_folders.save({f'module.{n}': x for n, x in tensors.items()}, source / bagel.EMA)
  message = refused(capsys, f'--from={source}', f'--base={BAGEL}', to)
  assert f"all {len(tensors)} names begin with 'module.' (ema.safetensors). Save them without it." in message
  released_folders.save({n.removeprefix('language_model.'): x for n, x in tensors.items()}, source / bagel.EMA)
  (source / bagel.EMA).rename(source / 'model.safetensors')
  message = refused(capsys, f'--from={source}', f'--base={BAGEL}', to)
  assert f"all {len(tensors)} names lack 'language_model.' (model.safetensors). Save them with it." in message


def test_a_base_that_is_none_is_explained(copy, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  name, to = 'ByteDance-Seed/BAGEL-7B-MoT', f'--to={tmp_path / "to"}'
  message = refused(capsys, f'--from={copy}', f'--base={name}', to)
  assert f'downloads nothing; if that is a name on the Hugging Face hub: hf download {name} --local-dir' in message
  assert message.endswith('then say --base=BAGEL-7B-MoT')
  (tmp_path / 'empty').mkdir()
  assert 'holds no weights' in refused(capsys, f'--from={copy}', '--base=empty', to)
  assert 'is a file' in refused(capsys, f'--from={copy}', f'--base={BAGEL / "config.json"}', to)
  assert 'Import that.' in refused(capsys, '--from=empty', f'--base={BAGEL}', to)
  assert '--base=FOLDER' in refused(capsys, '--from=empty', to)
