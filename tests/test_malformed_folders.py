"""200 malformed folders of a seeded generator: each is refused in one line that names the file, and writes nothing."""

import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from support import released_folders

from pdgen import convert
from pdgen.core import config as config_lib
from pdgen.data.tokenizers import byte_level
from pdgen.models import interleaved
from pdgen.weights import bagel_convert, exported

ROOT = pathlib.Path(__file__).parents[1]
BAGEL = pathlib.Path(os.environ.get('PDGEN_GOLDEN') or ROOT / 'tests' / 'golden') / 'ckpt'
FOLDERS, SEED = 200, 17
IDS = {'im_start': 291, 'im_end': 293, 'vision_start': 296, 'vision_end': 298}

# No size, number, name or list of any field that is read.
HOSTILE = (None, '', 'x', [], {}, [None], True, -1, 0, -0.5, 1e30, 10**30, 2**63, '64', {'a': 1}, [[[]]])
NUMBERS = {  # Fields that are numbers, by file.
  'llm_config.json': (
    *('hidden_size', 'intermediate_size', 'num_attention_heads', 'num_key_value_heads', 'num_hidden_layers'),
    *('rms_norm_eps', 'rope_theta', 'vocab_size', 'model_type', 'hidden_act'),
  ),
  'vit_config.json': ('hidden_size', 'intermediate_size', 'num_attention_heads', 'num_hidden_layers', 'patch_size'),
  'config.json': ('latent_patch_size', 'max_latent_size', 'vit_max_num_patch_per_side', 'vit_select_layer',
                  'connector_act', 'interpolate_pos', 'new_token_ids'),
  'ae_config.json': ('scale_factor', 'ch', 'ch_mult', 'num_res_blocks', 'z_channels'),
}  # fmt: skip


def texts(rng: np.random.Generator, good: bytes) -> bytes:
  """A file that is no JSON object, or none that says each thing once."""
  return (
    lambda: b'',
    lambda: good[: int(rng.integers(1, len(good)))].rstrip()[:-1],
    lambda: b'[' + good + b']',
    lambda: b'\xff\xfe' + good,
    lambda: b'{"a": 1, "a": 1, ' + good.lstrip()[1:],
    lambda: b'{"a": NaN, ' + good.lstrip()[1:],
    lambda: b'{"a": 1e999, ' + good.lstrip()[1:],
    lambda: b'{"a": ' + b'[' * 200_000,
    lambda: b'null',
    lambda: good + b'}',
    lambda: good.replace(b'"', b"'"),
  )[int(rng.integers(11))]()


def bad_json(rng: np.random.Generator, folder: pathlib.Path) -> str:
  name = str(rng.choice([*NUMBERS]))
  replace(folder / name, texts(rng, (folder / name).read_bytes()))
  return name


def bad_field(rng: np.random.Generator, folder: pathlib.Path) -> str:
  name = str(rng.choice([*NUMBERS]))
  field = str(rng.choice(NUMBERS[name]))
  values = json.loads((folder / name).read_bytes())
  value = HOSTILE[int(rng.integers(len(HOSTILE)))]
  if field == 'vit_select_layer' and value == -1 or field == 'new_token_ids' and value == {}:
    value = 'x'
  replace(folder / name, json.dumps({**values, field: value}).encode())
  return name


def bad_header(rng: np.random.Generator, folder: pathlib.Path) -> str:
  """Places, shapes, types and names of a safetensors file that contradict each other."""
  name = str(rng.choice(['ema.safetensors', 'ae.safetensors']))
  content = (folder / name).read_bytes()
  length = int.from_bytes(content[:8], 'little')
  text, data = content[8 : 8 + length], content[8 + length :]
  entries = json.loads(text)
  one, other = (str(n) for n in rng.choice([n for n in entries if n != '__metadata__'], 2, replace=False))
  first, last = entries[one]['data_offsets']
  kind = int(rng.integers(16))
  changes: dict[int, Callable[[], Any]] = {
    0: lambda: entries[one].update(data_offsets=[first - last, 0]),
    1: lambda: entries[one].update(data_offsets=entries[other]['data_offsets']),
    2: lambda: entries[one].update(data_offsets=[first + 4, last + 4]),
    3: lambda: entries[one].update(data_offsets=[len(data), len(data) + last - first]),
    4: lambda: entries[one].update(data_offsets=[first]),
    5: lambda: entries[one].update(data_offsets=[float(first), float(last)]),
    6: lambda: entries[one].update(dtype=['F8_E4M3', 'F64', 'I64', 'Q4', None, 7][int(rng.integers(6))]),
    7: lambda: entries[one].update(shape=[None, -1, [-1, -1], ['3'], [True], [10**30]][int(rng.integers(6))]),
    8: lambda: entries[one].pop(['dtype', 'shape', 'data_offsets'][int(rng.integers(3))]),
    9: lambda: entries.update({one: [None, [], 'x', 3][int(rng.integers(4))]}),
    10: lambda: entries.update(__metadata__=[[], 'x', {'a': 1}, {'a': None}][int(rng.integers(4))]),
    11: lambda: entries.pop(one),  # A hole.
  }
  if kind in changes:
    changes[kind]()
    text = json.dumps(entries).encode()
  if kind == 12:
    text = texts(rng, text)
  if kind == 13:  # The same tensor twice.
    text = text.rstrip()[:-1] + b', ' + json.dumps({one: entries[one]}).encode()[1:]
  length = len(text)
  if kind == 14:
    length = [2**63, 2**64 - 1, len(text) + len(data) + 1, 0, 100_000_001][int(rng.integers(5))]
  if kind == 15:
    data = data[: -int(rng.integers(1, 1000))] if rng.integers(2) else data + b'\0' * int(rng.integers(1, 1000))
  replace(folder / name, length.to_bytes(8, 'little') + text + data)
  return name


def bad_numbers(rng: np.random.Generator, folder: pathlib.Path) -> str:
  """One number of the weights that is not finite."""
  name = str(rng.choice(['ema.safetensors', 'ae.safetensors']))
  content = bytearray((folder / name).read_bytes())
  start = 8 + int.from_bytes(content[:8], 'little')
  place = start + 4 * int(rng.integers((len(content) - start) // 4))
  content[place : place + 4] = np.float32([np.nan, np.inf, -np.inf][int(rng.integers(3))]).tobytes()
  replace(folder / name, bytes(content))
  return name


def bad_tokenizer(rng: np.random.Generator, folder: pathlib.Path) -> str:
  description: dict[str, Any] = byte_level.bytes_only(IDS, rows=300)
  good = json.dumps(description).encode()
  value = HOSTILE[int(rng.integers(len(HOSTILE)))]
  pieces = [*description['model']['vocab']]
  piece, other = str(rng.choice(pieces)), str(rng.choice(pieces[:100]))
  lowers, removes_a = {'type': 'Lowercase'}, {'type': 'Replace', 'pattern': {'String': 'a'}, 'content': ''}
  number = int(rng.integers(13))
  if number < 3:
    replace(folder / 'tokenizer.json', texts(rng, good))
    return 'tokenizer.json'
  changes: dict[int, Callable[[], Any]] = {
    3: lambda: description.update(model=value),
    4: lambda: description['model'].update(vocab=value),
    5: lambda: description['model']['vocab'].update({piece: [-1, None, 'x', 1.5, True, 2**40][int(rng.integers(6))]}),
    6: lambda: description['model']['vocab'].pop(piece),
    7: lambda: description['model']['vocab'].update({piece: 5 if other == piece else description['model']['vocab'][
      next(p for p in pieces if p != piece)]}),
    8: lambda: description['model'].update(type=str(rng.choice(['WordPiece', 'Unigram', '', 'x']))),
    9: lambda: description.update(added_tokens=[value]),
    10: lambda: description.update(normalizer=[lowers, {'type': 'x'}, 7, removes_a][int(rng.integers(4))]),
    11: lambda: description.update(pre_tokenizer=[7, {'type': 'x'}, {'type': 'Whitespace'}, []][int(rng.integers(4))]),
    12: lambda: description['added_tokens'][0].update(id=[-1, None, 'x', 10**12, 299 + 5][int(rng.integers(5))]),
  }  # fmt: skip
  changes[number]()
  replace(folder / 'tokenizer.json', json.dumps(description).encode())
  return 'tokenizer'


def part_of_a_tokenizer(rng: np.random.Generator, folder: pathlib.Path) -> str:
  name, content = [
    ('vocab.json', b'{"a": 0}'),
    ('merges.txt', b'#version: 0.2\na b\n'),
    ('tokenizer_config.json', b'{}'),
    ('added_tokens.json', b'{"<mesh>": 299}'),
    ('tokenizer.model', b'x'),
  ][int(rng.integers(5))]
  replace(folder / name, content)
  return name


def bad_link(rng: np.random.Generator, folder: pathlib.Path) -> str:
  """A file that is a link out of the folder, to itself, or to nothing."""
  name = str(rng.choice([*NUMBERS, 'ema.safetensors', 'ae.safetensors', 'notes.json']))
  good = (folder / name).read_bytes() if (folder / name).exists() else b'{}'
  outside = folder.parent / 'outside'
  (outside / name).write_bytes(good)
  (folder / name).unlink(missing_ok=True)
  kind = int(rng.integers(4)) if name != 'notes.json' else 0
  if kind == 0:
    (folder / name).symlink_to(outside / name)
  elif kind == 1:
    (folder / name).symlink_to(pathlib.Path('..') / 'outside' / name)
  elif kind == 2:
    (folder / name).symlink_to(name)
  else:
    (folder / name).symlink_to(outside / 'nothing')
  return name


def bad_index(rng: np.random.Generator, folder: pathlib.Path) -> str:
  """Shards whose index says what is not so, or no index at all."""
  index = released_folders.shard(folder, stem=str(rng.choice(['ema', 'model', 'weights'])))
  values = json.loads(index.read_bytes())
  placed = values['weight_map']
  tensor = str(rng.choice([*placed]))
  files = sorted({*placed.values()})
  file, other = placed[tensor], next(name for name in files if name != placed[tensor])
  outside = folder.parent / 'outside'
  paths = ('../outside/x.safetensors', '/etc/passwd', 'a/b.safetensors', '..', '', 'C:x', 'a\nb', *HOSTILE)
  kind = int(rng.integers(12))
  changes: dict[int, Callable[[], Any]] = {
    0: lambda: values.update(weight_map=HOSTILE[int(rng.integers(len(HOSTILE)))]),
    1: lambda: values.pop('weight_map'),
    2: lambda: placed.update({tensor: paths[int(rng.integers(len(paths)))]}),
    3: lambda: placed.update({tensor: other}),
    4: lambda: placed.update({'language_model.model.nothing': file}),
    5: lambda: placed.update({tensor: 'pytorch_model.bin'}),
    6: lambda: placed.update({tensor: 'model-00009-of-00009.safetensors'}),
  }
  if kind in changes:
    changes[kind]()
    replace(index, json.dumps(values).encode())
  elif kind == 7:
    replace(index, texts(rng, index.read_bytes()))
  elif kind == 8:
    (folder / file).unlink()
  elif kind == 9:  # A tensor in two shards.
    both = {tensor: released_folders.tensors_of(folder)[tensor]}
    released_folders.save(safetensors.numpy.load_file(folder / other) | both, folder / other)
  elif kind == 10:
    (folder / file).rename(outside / file)
    (folder / file).symlink_to(outside / file)
    return file
  else:
    replace(folder / file, (folder / file).read_bytes()[: -int(rng.integers(1, 100))])
    return file
  return index.name


def bad_manifest(rng: np.random.Generator, folder: pathlib.Path) -> str:
  """Of a checkpoint: config.json."""
  path = folder / 'config.json'
  values = json.loads(path.read_bytes())
  value = HOSTILE[int(rng.integers(len(HOSTILE)))]
  model = values['config']['model']
  sizes = [k for k, v in model.items() if type(v) is int and k not in ('image_size', 'max_latent_size')]
  kind = int(rng.integers(9))
  if kind == 0:
    replace(path, texts(rng, path.read_bytes()))
    return 'config.json'
  changes: dict[int, Callable[[], Any]] = {
    1: lambda: values.update(format=[None, 'x', 0, 99, 1.5, True, []][int(rng.integers(7))]),
    2: lambda: values.update(sha256=value),
    3: lambda: values.update(config=value if value != {} else [1]),
    4: lambda: model.update({str(rng.choice(sizes)): value}),
    5: lambda: model.update(a_field_of_tomorrow=1),
    6: lambda: model.update(codec=value),
    7: lambda: values['sha256'].update(
      {['../x', '/etc/passwd', 'source/../../x', '', '..'][int(rng.integers(5))]: 'x'}
    ),
    8: lambda: values['sha256'].update({'params.safetensors': value}),
  }
  changes[kind]()
  replace(path, json.dumps(values).encode())
  return 'config.json' if kind != 8 and kind != 7 else folder.name


def bad_source(rng: np.random.Generator, folder: pathlib.Path) -> str:
  """Of a checkpoint: source.json, with the digest of what the attacker wrote."""
  path = folder / 'source' / 'source.json'
  values = json.loads(path.read_bytes())
  value = HOSTILE[int(rng.integers(len(HOSTILE)))]
  file = str(rng.choice(['ema.safetensors', 'ae.safetensors']))
  name = ['../x', '/x', 'a/b', '..', '', None, 3, 'ema.safetensors', 'nothing.json', 'config.json'][
    int(rng.integers(10))
  ]
  kind = int(rng.integers(8))
  content = None
  if kind == 0:
    content = texts(rng, path.read_bytes())
  elif kind == 1:
    values['files'] = value if value != [] else None
  elif kind == 2:
    values['files'].append(name)
  elif kind == 3:
    values['headers'] = value
  elif kind == 4:
    values['headers'][file] = value
  elif kind == 5:
    values['headers'][str(name)] = values['headers'].pop(file) if name != file else ''
  elif kind == 6:
    header = json.loads(values['headers'][file])
    header.pop(next(n for n in header if n != '__metadata__'))
    values['headers'][file] = json.dumps(header)
  else:
    values['headers'][file] = values['headers'][file].replace('"data_offsets":[', '"data_offsets":[-1', 1)
  replace(path, json.dumps(values).encode() if content is None else content)
  manifest = json.loads((folder / 'config.json').read_bytes())
  manifest['sha256']['source/source.json'] = hashlib.sha256(path.read_bytes()).hexdigest()
  replace(folder / 'config.json', json.dumps(manifest).encode())
  return 'source.json'


def replace(path: pathlib.Path, content: bytes):
  """Not in place: the files of the copies are shared."""
  path.unlink(missing_ok=True)
  path.write_bytes(content)


RELEASED = (bad_json, bad_field, bad_header, bad_numbers, bad_tokenizer, part_of_a_tokenizer, bad_link, bad_index)
CHECKPOINT = (bad_manifest, bad_source)
EVERY = (*RELEASED, bad_field, bad_header, bad_header, bad_index, bad_tokenizer, *CHECKPOINT, *CHECKPOINT)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> pathlib.Path:
  to = tmp_path_factory.mktemp('imported') / 'bagel'
  bagel_convert.import_bagel(BAGEL, to, prepare_tokenizer=byte_level.prepare)
  return to


def tree(folder: pathlib.Path) -> list[str]:
  return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


@pytest.mark.parametrize('part', range(10))
def test_a_malformed_folder_is_refused_in_one_line_that_names_the_file(part, checkpoint, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(interleaved, 'abstract_params', functools.cache(interleaved.abstract_params))
  for number in range(part, FOLDERS, 10):
    rng = np.random.default_rng([SEED, number])
    damage = EVERY[number % len(EVERY)]
    home = tmp_path / str(number)
    (home / 'outside').mkdir(parents=True)
    source = BAGEL if damage in RELEASED else checkpoint
    folder = shutil.copytree(source, home / 'given', copy_function=os.link)
    named, command = damage(rng, folder), 'import' if damage in RELEASED else 'export'
    case, before = f'folder {number}: {damage.__name__}', tree(home)
    with pytest.raises(SystemExit) as stop:
      convert.main([command, f'--from={folder}', f'--to={home / "out"}'])
      pytest.fail(f'{case} was accepted ({named})')
    message = capsys.readouterr().err.partition(': ')[2].strip()
    assert stop.value.code == 2 and message and '\n' not in message, f'{case}: {message}'
    assert named in message, f'{case}: {named} is not in {message}'
    assert tree(home) == before, case
    shutil.rmtree(home)


@pytest.mark.parametrize(
  'field, value',
  [('image_size', 0), ('rope_theta', -1.0), ('norm_eps', 0), ('min_t', 2.0), ('attention', 'x'), ('remat', ''),
   ('dtype', 'x'), ('head_dim', 15), ('vocab_size', 10**30), ('codec', {'kind': 'flux', 'vae': {'blocks': 10**9}})],
)  # fmt: skip
def test_a_configuration_of_no_model_is_refused(checkpoint, tmp_path, field, value):
  folder = shutil.copytree(checkpoint, tmp_path / 'shared', copy_function=os.link)
  values = json.loads((folder / 'config.json').read_bytes())
  values['config']['model'][field] = value
  replace(folder / 'config.json', json.dumps(values).encode())
  with pytest.raises(ValueError, match='config.json') as error:
    exported.load_export(folder)
  assert '\n' not in str(error.value)


def test_an_unknown_field_tells_of_a_newer_pdgen(checkpoint, tmp_path):
  folder = shutil.copytree(checkpoint, tmp_path / 'newer')
  values = json.loads((folder / 'config.json').read_bytes())
  values['config']['train']['lookahead'] = 3
  (folder / 'config.json').write_text(json.dumps(values))
  with pytest.raises(ValueError, match=r'config.json is damaged: Unknown key config.train.lookahead.*newer pdgen') as e:
    exported.load_export(folder)
  assert '\n' not in str(e.value)
  with pytest.raises(ValueError, match='config.json is damaged: config.seed must be int'):
    exported.read_config(folder, {'format': config_lib.FORMAT, 'config': {'seed': 'x'}})
