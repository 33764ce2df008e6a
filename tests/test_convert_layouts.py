"""Folders of weights as people have them: without a ViT, sharded, in parts, filled from a base, and back."""

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
from support.released_folders import BAGEL, OF_VIT, assert_same_files, assert_same_tensors, refused, round_trip

import pdgen
from pdgen.data.tokenizers import byte_level
from pdgen.models import interleaved
from pdgen.training import losses
from pdgen.weights import bagel, bagel_convert, exported, released

JSON = ('config.json', 'llm_config.json', 'vit_config.json', 'ae_config.json')
SMALL = dict(flow_steps=2, max_pictures=1, max_text_tokens=12)


@pytest.fixture
def copy(tmp_path) -> pathlib.Path:
  """A whole folder to change."""
  return shutil.copytree(BAGEL, tmp_path / 'copy')


def refusal(source: pathlib.Path, to: pathlib.Path) -> str:
  with pytest.raises(ValueError) as error:
    bagel_convert.import_bagel(source, to, prepare_tokenizer=byte_level.prepare)
  return str(error.value)


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

  value, gradients = jax.jit(jax.value_and_grad(loss))(painter.params)
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


def test_an_index_of_weights_that_were_not_taken_is_not_given_back(copy, tmp_path):
  index = released_folders.shard(copy)
  shutil.copyfile(BAGEL / bagel.EMA, copy / bagel.EMA)
  again, said = round_trip(copy, tmp_path / 'ema')
  assert_same_files(again, BAGEL)
  assert f'Left out: {index.name}' in said
  again, _ = round_trip(copy, tmp_path / 'index', weights=index.name)
  (copy / bagel.EMA).unlink()
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


def test_a_part_without_a_base_is_one_line(tmp_path, capsys):
  for name in PARTS:
    source = released_folders.part(tmp_path / name.replace(' ', '_'), PARTS[name], files=(*JSON, bagel.AE))
    released_folders.settings(source, 'config.json', visual_und=False)
    message = refusal(source, tmp_path / 'to')
    assert 'missing: ' in message and '--base=FOLDER' in message
    assert '\n' not in message, message


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
