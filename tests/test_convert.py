"""Released folders to checkpoints and back: bits kept, errors that list everything, memory that does not grow."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import pdgen
from pdgen import convert
from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import trees
from pdgen.data.tokenizers import byte_level
from pdgen.models import partition
from pdgen.weights import bagel, bagel_convert, exported, loading, safetensors_io

ROOT = pathlib.Path(__file__).parents[1]
BAGEL = pathlib.Path(os.environ.get('PDGEN_GOLDEN') or ROOT / 'tests' / 'golden') / 'ckpt'
EMA, AE = bagel.EMA, bagel.AE
SMALL = dict(flow_steps=2, max_pictures=2, max_text_tokens=12)


@pytest.fixture(scope='module')
def imported(tmp_path_factory) -> pathlib.Path:
  """The tiny released folder as a checkpoint that paints pictures of 2 x 2 tokens."""
  to = tmp_path_factory.mktemp('imported') / 'bagel'
  side = 2 * _import(BAGEL, to.with_name('large')).model.codec.patch
  _import(BAGEL, to, image_size=side)
  return to


def _import(source, to, **options):
  return bagel_convert.import_bagel(source, to, prepare_tokenizer=byte_level.prepare, **options)


def assert_same_folder(one: pathlib.Path, other: pathlib.Path):
  assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
  for path in one.iterdir():
    assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def tensors_of(path: pathlib.Path) -> dict[str, np.ndarray]:
  return safetensors.numpy.load_file(path)


@pytest.fixture
def copy(tmp_path) -> pathlib.Path:
  """A released folder to damage."""
  return shutil.copytree(BAGEL, tmp_path / 'copy')


def test_an_export_of_an_import_has_the_same_bytes(imported, tmp_path):
  bagel_convert.export_bagel(imported, tmp_path / 'again')
  assert_same_folder(tmp_path / 'again', BAGEL)


def test_the_size_of_blocks_changes_nothing(imported, tmp_path, monkeypatch):
  monkeypatch.setattr(safetensors_io, 'BLOCK', 30_000)  # parts of the larger tensors
  config = exported.load_export(imported).config
  _import(BAGEL, tmp_path / 'imported', image_size=config.model.image_size)
  assert_same_folder_of_parameters(tmp_path / 'imported', imported)
  bagel_convert.export_bagel(tmp_path / 'imported', tmp_path / 'again')
  assert_same_folder(tmp_path / 'again', BAGEL)


def assert_same_folder_of_parameters(one, other):
  for name in (exported.PARAMS, 'source/fixed.safetensors'):
    assert (one / name).read_bytes() == (other / name).read_bytes()


def test_an_import_holds_the_released_numbers_where_the_model_has_them(imported):
  stored = exported.load_export(imported)
  params = dict(trees.flatten_with_paths(stored.params))
  ema, ae = tensors_of(BAGEL / EMA), tensors_of(BAGEL / AE)
  depth = stored.config.model.depth - 1
  np.testing.assert_array_equal(params['embed/table'], ema['language_model.model.embed_tokens.weight'])
  np.testing.assert_array_equal(params['head/kernel'], ema['language_model.lm_head.weight'].T)
  name = f'language_model.model.layers.{depth}.self_attn.k_proj_moe_gen'
  np.testing.assert_array_equal(params['trunk/layers/gen/k/kernel'][depth], ema[f'{name}.weight'].T)
  np.testing.assert_array_equal(params['trunk/layers/gen/k/bias'][depth], ema[f'{name}.bias'])
  np.testing.assert_array_equal(
    params['codec/vae/encoder/conv_in/kernel'], ae['encoder.conv_in.weight'].transpose(2, 3, 1, 0)
  )


def as_bfloat16(folder: pathlib.Path) -> pathlib.Path:
  """The folder with ema.safetensors in bfloat16, its tensors in another order, with metadata: as the released one."""
  tensors = tensors_of(folder / EMA)
  half = {name: np.asarray(x, jnp.bfloat16) for name, x in reversed(tensors.items())}
  safetensors.numpy.save_file(half, folder / EMA, metadata={'format': 'pt'})
  return folder


def test_bfloat16_stays_bfloat16_in_the_file_and_in_memory(copy, tmp_path):
  config = _import(as_bfloat16(copy), tmp_path / 'half', max_latent_size=None)
  assert config.model.dtype == 'bfloat16'
  stored = exported.load_export(tmp_path / 'half')
  kinds = {leaf.dtype.name for path, leaf in trees.flatten_with_paths(stored.params) if not path.startswith('codec')}
  assert kinds == {'bfloat16'}
  assert stored.params['codec']['vae']['decoder']['conv_in']['kernel'].dtype == jnp.float32
  bagel_convert.export_bagel(tmp_path / 'half', tmp_path / 'again')
  assert_same_folder(tmp_path / 'again', copy)


def test_weights_load_into_their_shards(imported):
  mesh = mesh_lib.make_mesh(config_lib.MeshConfig(data=2, fsdp=2), devices=jax.devices()[:4])
  one, many = exported.load_export(imported), exported.load_export(imported, mesh=mesh)
  for (name, a), (_, b) in zip(*map(trees.flatten_with_paths, (one.params, many.params)), strict=True):
    assert b.sharding.spec == partition.spec(name)
    np.testing.assert_array_equal(a, b)
  kernel = many.params['trunk']['layers']['und']['q']['kernel']
  assert kernel.addressable_shards[0].data.size * 2 == kernel.size


# Of lengths that share one compiled program, with the opening words of the process and without.
@pytest.mark.parametrize('mode, prompt', [('process', 'a ring'), ('direct', 'a photo of a red ring and a blue square')])
def test_an_import_paints(imported, mode, prompt):
  painter = pdgen.load(str(imported))
  sampling = dataclasses.replace(painter.config.sampling, **SMALL)
  # It has learned no words: said of the mode that asks for them, and of no other.
  warns = pytest.warns(UserWarning, match='not trained to paint in steps')
  with warns if mode == 'process' else contextlib.nullcontext():
    result = painter.sample([prompt, prompt[:3]], mode=mode, sampling=sampling)
  side = painter.config.model.image_size
  for trajectory in result.trajectories:
    assert trajectory.pictures and trajectory.final.shape == (side, side, 3)
    assert (trajectory.steps[0].plan is None) == (mode == 'direct')
    assert len(np.unique(trajectory.final)) > 1


def test_the_command_line(tmp_path, capsys):
  convert.main(['import', f'--from={BAGEL}', f'--to={tmp_path / "a"}'])
  convert.main(['export', f'--from={tmp_path / "a"}', f'--to={tmp_path / "b"}'])
  assert capsys.readouterr().out.count(' GB in ') == 2
  assert_same_folder(tmp_path / 'b', BAGEL)
  with pytest.raises(SystemExit):
    convert.main(['import', f'--from={tmp_path / "nowhere"}', f'--to={tmp_path / "c"}'])
  assert 'There is no folder' in capsys.readouterr().err


def test_tensors_that_do_not_fit_are_listed_in_one_error(copy, tmp_path):
  tensors = tensors_of(copy / EMA)
  gone = tensors.pop('vae2llm.bias')
  tensors |= {'visual.extra': gone, 'llm2vae.bias': tensors['llm2vae.bias'][1:]}
  safetensors.numpy.save_file(tensors, copy / EMA)
  with pytest.raises(ValueError) as error:
    _import(copy, tmp_path / 'to')
  message = str(error.value)
  assert message.startswith(f'3 tensors of {copy}')
  size = len(tensors['llm2vae.bias'])
  for line in (
    f'missing: vae2llm.bias [{len(gone)}] ({EMA})',
    f'unexpected: visual.extra [{len(gone)}] ({EMA})',
    f'mis-shaped: llm2vae.bias [{size}], [{size + 1}] wanted ({EMA})',
  ):
    assert line in message
  assert not (tmp_path / 'to').exists() and not list(tmp_path.glob('*.partial'))


def test_other_models_are_refused_by_name(copy, tmp_path):
  qwen = tmp_path / 'qwen'
  qwen.mkdir()
  llm = json.loads((copy / 'llm_config.json').read_text())
  (qwen / 'config.json').write_text(json.dumps(llm))
  shutil.copyfile(copy / EMA, qwen / 'model.safetensors')
  with pytest.raises(ValueError, match='is a Qwen2ForCausalLM .*not BAGEL.* lacks llm_config.json, vit_config.json'):
    _import(qwen, tmp_path / 'to')
  (copy / 'llm_config.json').write_text(json.dumps({**llm, 'model_type': 'llama'}))
  with pytest.raises(ValueError, match="is a 'llama'"):
    _import(copy, tmp_path / 'to')
  (copy / 'llm_config.json').write_text(json.dumps(llm))
  plain = {name: x for name, x in tensors_of(copy / EMA).items() if '_moe_gen' not in name}
  safetensors.numpy.save_file(plain, copy / EMA)
  with pytest.raises(ValueError, match='a plain Qwen2, without the experts that paint'):
    _import(copy, tmp_path / 'to')
  (copy / 'llm_config.json').unlink()
  with pytest.raises(ValueError, match='lacks llm_config.json'):
    _import(copy, tmp_path / 'to')


@pytest.mark.parametrize('change', [-1, 1])
def test_another_size_of_the_latent_table_is_explained(copy, tmp_path, change, capsys):
  side = export_side(copy)
  _import(copy, tmp_path / 'right', max_latent_size=side)
  asked = f'max_latent_size={side + change}'
  rows = f'{side**2} = {side} x {side} rows'
  with pytest.raises(SystemExit):
    convert.main(['import', f'--from={copy}', f'--to={tmp_path / "to"}', f'--{asked}'])
  told = capsys.readouterr().err
  assert f'--max_latent_size says {asked}' in told and rows in told
  settings = json.loads((copy / 'config.json').read_text())
  (copy / 'config.json').write_text(json.dumps({**settings, 'max_latent_size': side + change}))
  with pytest.raises(ValueError, match=f'config.json, or the default, says {asked}'):
    _import(copy, tmp_path / 'to')


def export_side(folder: pathlib.Path) -> int:
  return int(tensors_of(folder / EMA)['latent_pos_embed.pos_embed'].shape[0] ** 0.5)


def test_another_position_table_is_refused(copy, tmp_path):
  tensors = tensors_of(copy / EMA)
  tensors['vit_pos_embed.pos_embed'][-1, -1] += 0.1
  safetensors.numpy.save_file(tensors, copy / EMA)
  with pytest.raises(ValueError, match='vit_pos_embed.pos_embed is off by up to 0.1'):
    _import(copy, tmp_path / 'to')


def test_a_vocabulary_beside_the_weights_is_used_and_given_back(copy, tmp_path):
  ids = {ours: json.loads((copy / 'config.json').read_text())['new_token_ids'][name]
         for name, ours in bagel_convert._TOKEN_IDS.items()}  # fmt: skip
  rows = tensors_of(copy / EMA)['language_model.lm_head.weight'].shape[0]
  (copy / 'tokenizer.json').write_text(json.dumps(byte_level.bytes_only(ids, rows=rows)))
  _import(copy, tmp_path / 'to')
  assert loading.load_for_sampling(tmp_path / 'to')[2] == str(tmp_path / 'to' / 'source')
  bagel_convert.export_bagel(tmp_path / 'to', tmp_path / 'again')
  assert_same_folder(tmp_path / 'again', copy)
  wrong = {**ids, 'im_end': ids['im_end'] - 1}
  (copy / 'tokenizer.json').write_text(json.dumps(byte_level.bytes_only(wrong, rows=rows)))
  with pytest.raises(ValueError, match='It does not fit'):
    _import(copy, tmp_path / 'other')


def test_a_descendant_that_learned_nothing_has_the_same_bytes(imported, tmp_path):
  """The `final` folder of a run that began with an import (`test_convert_training` has runs that learned)."""
  stored = exported.load_export(imported)
  exported.export_ema(tmp_path / 'final', stored.params, config=stored.config, tokenizer=stored.tokenizer)
  bagel_convert.export_bagel(tmp_path / 'final', tmp_path / 'again')
  assert_same_folder(tmp_path / 'again', BAGEL)


def refusal(folder, to, **options) -> str:
  with pytest.raises(ValueError) as error:
    _import(folder, to, **options)
  assert not to.exists()
  return str(error.value)


def test_one_cause_is_one_line(copy, tmp_path):
  good = tensors_of(BAGEL / EMA)
  to = tmp_path / 'to'

  def told(tensors) -> str:
    safetensors.numpy.save_file(tensors, copy / EMA)
    message = refusal(copy, to)
    assert '\n' not in message and str(copy) in message, message
    return message

  of_vit = [n for n in good if n.startswith(('vit_model.', 'connector.', 'vit_pos_embed.'))]
  message = told({name: x for name, x in good.items() if name not in of_vit})
  assert f'{len(of_vit)} tensors of' in message and 'missing: the ViT' in message
  message = told({f'model.{name}': x for name, x in good.items()})
  assert f"all {len(good)} names begin with 'model.'" in message
  layer = 'language_model.model.layers.2.'
  message = told({name: x for name, x in good.items() if not name.startswith(layer)})
  count = sum(name.startswith(layer) for name in good)
  assert f'missing: language_model.model.layers.2.* ({count} tensors, {EMA})' in message
  message = told({**good, 'visual.a': good['llm2vae.bias'], 'visual.b.c': good['llm2vae.bias']})
  assert 'unexpected: visual.* (2 tensors' in message
  message = told({name: x for name, x in good.items() if '_moe_gen' not in name})
  assert 'missing: *_moe_gen' in message and 'a plain Qwen2' in message
  safetensors.numpy.save_file(good, copy / EMA)
  llm = json.loads((copy / 'llm_config.json').read_text())
  (copy / 'llm_config.json').write_text(json.dumps({**llm, 'hidden_size': 128}))
  message = refusal(copy, to)
  assert '\n' not in message and 'mis-shaped' in message and 'Are the sizes in llm_config.json' in message


def test_float16_is_taken_as_float32_and_given_back(copy, tmp_path):
  tensors = {name: np.float16(x) for name, x in tensors_of(copy / EMA).items()}
  safetensors.numpy.save_file(tensors, copy / EMA)
  _import(copy, tmp_path / 'to')
  stored = safetensors_io.Reader(tmp_path / 'to' / exported.PARAMS)
  assert {kind.dtype.name for kind in stored.infos.values()} == {'float32'}
  np.testing.assert_array_equal(stored.read('embed/table'), tensors['language_model.model.embed_tokens.weight'])
  bagel_convert.export_bagel(tmp_path / 'to', tmp_path / 'again')
  assert_same_folder(tmp_path / 'again', copy)


def test_layers_of_several_types_are_given_back_in_them(copy, tmp_path):
  kinds = {'layers.0.': np.float16, 'layers.1.': jnp.bfloat16}
  tensors = {n: np.asarray(x, next((kinds[part] for part in kinds if part in n), x.dtype)) for n, x in
             tensors_of(copy / EMA).items()}  # fmt: skip
  safetensors.numpy.save_file(tensors, copy / EMA)
  assert _import(copy, tmp_path / 'to').model.dtype == 'bfloat16'
  stored = safetensors_io.Reader(tmp_path / 'to' / exported.PARAMS)
  assert stored.infos['trunk/layers/und/q/kernel'].dtype == np.float32
  bagel_convert.export_bagel(tmp_path / 'to', tmp_path / 'again')
  assert_same_folder(tmp_path / 'again', copy)


def test_the_flag_beats_the_file_beats_the_default(copy, tmp_path):
  side, settings = export_side(copy), json.loads((copy / 'config.json').read_text())
  (copy / 'config.json').write_text(json.dumps({**settings, 'max_latent_size': side + 1}))
  assert f'Say --max_latent_size={side}' in refusal(copy, tmp_path / 'to')
  assert _import(copy, tmp_path / 'flag', max_latent_size=side).model.max_latent_size == side
  (copy / 'config.json').write_text(json.dumps({n: v for n, v in settings.items() if n != 'max_latent_size'}))
  assert 'says max_latent_size=64' in refusal(copy, tmp_path / 'to')
  assert _import(copy, tmp_path / 'other', max_latent_size=side).model.max_latent_size == side
  bagel_convert.export_bagel(tmp_path / 'other', tmp_path / 'again')
  assert_same_folder(tmp_path / 'again', copy)


def test_flags_out_of_range_are_refused(tmp_path, capsys):
  for flag in ('--image_size=0', '--image_size=-16', '--max_latent_size=0', '--max_latent_size=-3', '--image_size=17'):
    with pytest.raises(SystemExit):
      convert.main(['import', f'--from={BAGEL}', f'--to={tmp_path / "to"}', flag])
    assert flag[2:].split('=')[0] in capsys.readouterr().err
  assert not (tmp_path / 'to').exists()


def test_a_folder_with_a_part_of_a_tokenizer_is_refused_by_its_own_name(copy, tmp_path):
  (copy / 'vocab.json').write_text('{}')
  message = refusal(copy, tmp_path / 'to')
  assert str(copy) in message and 'merges.txt' in message and 'partial' not in message


def test_weights_that_are_not_finite_are_named(copy, tmp_path):
  tensors = tensors_of(copy / AE)
  tensors['decoder.conv_in.weight'][1, 2, 0, 1] = np.nan
  safetensors.numpy.save_file(tensors, copy / AE)
  assert f'{AE}: decoder.conv_in.weight holds a number that is not finite' in refusal(copy, tmp_path / 'to')


def test_nothing_is_overwritten(imported, tmp_path):
  for call, source in ((_import, BAGEL), (bagel_convert.export_bagel, imported)):
    kept = tmp_path / call.__name__
    kept.mkdir()
    (kept / 'thesis').write_text('')
    with pytest.raises(ValueError, match='is not empty'):
      call(source, kept)
    assert (kept / 'thesis').exists()


def test_what_was_never_imported_cannot_be_exported(tmp_path):
  with pytest.raises(ValueError, match='did not come from a BAGEL folder'):
    bagel_convert.export_bagel(loading.SHIPPED / 'shapes', tmp_path / 'to')
