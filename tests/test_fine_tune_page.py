"""docs/fine_tune_bagel.md: its commands, as they are written there, from a tiny BAGEL folder to one of one's own."""

import ast
import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import warnings

import numpy as np
import pytest
import safetensors.numpy
import test_build_services
from absl import flags as absl_flags
from ml_collections import config_flags
from support import foreign, released_folders, servers

from pdgen import construct, convert, dataset_page, inspect_data, sample, train
from pdgen import flags as flags_lib
from pdgen.construction import build_config
from pdgen.core import config as config_lib
from pdgen.data import images, records, splits
from pdgen.weights import bagel, exported

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / 'docs' / 'fine_tune_bagel.md').read_text(encoding='utf-8')
LINES = re.findall(r'^    (python -m pdgen\..*)$', PAGE.replace('\\\n', ''), re.MULTILINE)
COMMANDS = [shlex.split(line) for line in LINES]
OPTIONS = [shlex.split(o)[0] for o in re.findall(r'--config\.[\w.]+=(?:"[^"]*"|[^\s`]+)', PAGE)]
(BUILT,) = (option for option in OPTIONS if 'records:built' in option)  # Of step 4.
PROMPTS = 20
# As many as the suite has time for; `PDGEN_PAGE_STEPS=20 python -m pytest tests/test_fine_tune_page.py` takes 20.
STEPS = int(os.environ.get('PDGEN_PAGE_STEPS', 3))
KEY = 'sk-test-60c1f8d2'
SIDE = 64  # In the place of 512: the tables of the tiny model end there.


def parsed(arguments):
  """The config of a command line."""
  values = absl_flags.FlagValues()
  given = ['command', *(word for word in arguments if word.startswith('--config'))]
  flag = config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=given)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)  # ml_collections calls load_module.
    values(given)
  return config_lib.from_config_dict(flag.value)


def config_of(arguments):
  """The config of a command line, with the tiny checkpoint's model and small budgets in the place of the large ones."""
  config = parsed(arguments)
  tiny = exported.load_export('checkpoints/bagel').config.model
  model = dataclasses.replace(tiny, lora=config.model.lora)
  data = dataclasses.replace(
    config.data, batch_size=2, shards=1, und_tokens=1200, gen_tokens=400, pictures=8, packing_bins=1, prefetch=0
  )
  steps = dict(steps=STEPS, accumulate=2, warmup_steps=0, loss_chunk=0, log_every=1)
  mesh = config_lib.MeshConfig(fsdp=1)
  return dataclasses.replace(
    config, model=model, data=data, train=dataclasses.replace(config.train, **steps), mesh=mesh
  )


def paint(request: servers.PaintRequest) -> np.ndarray:
  """The colour of the words around what was there before."""
  picture = np.full((SIDE, SIDE, 3), test_build_services.color_of(request.prompt), np.uint8)
  if request.source is not None:
    picture[SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4] = request.source[::2, ::2]
  return picture


def write_prompts(file: pathlib.Path):
  colors, names = test_build_services.COLORS, test_build_services.NAMES
  lines = [f'A {colors[n % 5]} {names[n // 5]} stands on a table.' for n in range(PROMPTS)]
  lines[1::2] = [f'a photo of a {colors[n % 5]} {names[n // 5]} and a blue bird' for n in range(1, PROMPTS, 2)]
  file.write_text('\n'.join(lines) + '\n')


def services(arguments, server):
  """Options that put the server in the place of the services; one subset asks for pictures in the form of OpenAI."""
  of_openai = ['--config.renderer.name=openai_images'] if '--subset=conflict' in arguments else []
  urls = [f'--config.{part}.endpoint.base_url={server.url}/v1' for part in ('writer', 'judge', 'renderer')]
  return [*urls, f'--config.renderer.size=({SIDE},{SIDE})', '--config.renderer.poll_seconds=0.001', *of_openai]


def run(module, arguments, server):
  """A command of the page in this process."""
  given = dict(word.removeprefix('--').split('=', 1) for word in arguments if '=' in word)
  if module == 'pdgen.convert':
    convert.main([f'--image_size={SIDE}' if word.startswith('--image_size') else word for word in arguments])
  elif module == 'pdgen.construct':
    if arguments[0] == 'inspect':  # With the tiny config.
      dataset_page.write(arguments[1], given['out'], config=config_of(arguments))
    else:
      construct.main([*arguments, *(services(arguments, server) if arguments[0] == 'build' else ())])
  elif module == 'pdgen.inspect_data':
    inspect_data.show(config_of(arguments), index=int(given['index']) if 'index' in given else None)
  elif module == 'pdgen.train':
    train.train(config_of([*arguments, BUILT]), pathlib.Path(given['workdir']))
  else:
    assert module == 'pdgen.sample'
    few = dict(max_pictures=1, flow_steps=1, max_text_tokens=8, max_tokens=400, text_guidance=1.0)
    sample.main([*arguments, *(f'--sampling.{name}={value}' for name, value in few.items())])


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # Of ml_collections.
def test_every_command_of_the_page_runs_in_turn(tmp_path, monkeypatch, capsys):
  shutil.copytree(released_folders.BAGEL, tmp_path / 'BAGEL-7B-MoT')
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  lines = [foreign.jsonl_line(number) for number in range(6)]
  foreign.write_jsonl(tmp_path / 'mine', lines)
  for number, picture in enumerate(sorted((tmp_path / 'mine').rglob('*.png'))):
    picture.write_bytes(foreign.png(number, SIDE))
  write_prompts(tmp_path / 'prompts.txt')
  monkeypatch.chdir(tmp_path)
  for name in ('BFL_API_KEY', 'OPENAI_API_KEY'):
    monkeypatch.setenv(name, KEY)
  with servers.Server(chat=test_build_services.answer, paint=paint, key=KEY) as server:
    for _, _, module, *arguments in COMMANDS:
      run(module, arguments, server)
  printed = capsys.readouterr().out
  assert 'und budget used' in printed and '<|im_start|>' in printed and f'step {STEPS}/{STEPS}  loss' in printed
  assert records.Reader('mine_set/train') and pathlib.Path('out/look/index.html').is_file()
  check_built(server, printed)
  # What came back: the files of the release; adapters merged, or the matrices as they were and the adapters apart.
  before, merged, apart = (
    safetensors.numpy.load_file(f'{folder}/{bagel.EMA}')
    for folder in ('BAGEL-7B-MoT', 'BAGEL-mine', 'BAGEL-mine-apart')
  )
  assert before.keys() == merged.keys() == apart.keys()
  learned = {name for name, x in before.items() if apart[name].tobytes() != x.tobytes()}
  assert learned == {'language_model.lm_head.weight', 'language_model.model.embed_tokens.weight'}
  changed = {name for name, x in before.items() if merged[name].tobytes() != x.tobytes()} - learned
  assert changed and all(re.search(r'layers\.\d+\.(self_attn|mlp)', name) for name in changed)
  assert pathlib.Path('BAGEL-mine-apart/adapter/adapter_model.safetensors').is_file()


def check_built(server: servers.Server, printed: str):
  """What came of prompts alone: records by both forms of services, and the page."""
  assert 'calls, of them' in printed
  for subset, kinds in (('multi_turn', {'constructed'}), ('conflict', {'injected', 'constructed'})):
    found = [t for split in splits.SPLITS for t in records.read(f'built/{subset}/{split}')]
    assert len(found) >= PROMPTS - 4 and {t.provenance.source for t in found} == kinds
    assert all(t.provenance.cost.calls > 1 and 'at 127.0.0.1' in t.provenance.renderer for t in found)
    assert {picture.shape for t in found for picture in t.pictures} == {(SIDE, SIDE, 3)}
    assert {t.prompt for t in found} <= set(pathlib.Path('prompts.txt').read_text().splitlines())
  alignment = [t for split in splits.SPLITS for t in records.read(f'built/alignment/{split}')]
  assert {bool(t.provenance.errors) for t in alignment} == {True, False}
  asked = {seen.path for seen in server.asked()}
  assert {'/v1/chat/completions', '/v1/flux-kontext-pro', '/v1/images/generations', '/v1/images/edits'} <= asked
  page = pathlib.Path('out/page/index.html').read_text()
  assert 'injected' in page and '|im_start|' in page and 'flow on' in page
  for file in pathlib.Path('.').rglob('*'):
    assert not file.is_file() or KEY.encode() not in file.read_bytes(), f'the key is in {file}'


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # Of ml_collections.
def test_the_page_has_the_five_steps_and_its_options_exist():
  modules = [command[2] for command in COMMANDS]
  assert list(dict.fromkeys(modules)) == [
    f'pdgen.{n}' for n in ('convert', 'construct', 'inspect_data', 'train', 'sample')
  ]
  assert modules[-2:] == ['pdgen.convert'] * 2
  of_build = [o for o in OPTIONS if re.match(r'--config\.(writer|judge|renderer|conflict)\.', o)]
  training = [o for o in OPTIONS if o not in of_build]
  config = parsed([f'--config={ROOT / "configs" / "bagel_7b_lora.py"}', *training])
  assert len(training) >= 5 and config.canvas == (768, 768) and config.train.freeze == ('.*',)
  assert 'built/alignment/train' in {source.name for source in config.data.sources}
  values = flags_lib.config_file(str(ROOT / 'configs' / 'construct_photographic.py'), of_build)
  built = build_config.from_config_dict(values)
  assert built.renderer.name == 'openai_images' and built.conflict.checkpoint == 'out/mine' and len(of_build) == 5
  nearest = re.search(r'images\.Nearest\(sizes=(.*)\)\.resize', PAGE)
  assert nearest and images.Nearest(sizes=ast.literal_eval(nearest[1])).size(300, 500) == (512, 768)
  for name in re.findall(r'`config\.(\w+)\.(\w+)', PAGE):
    assert hasattr(getattr(config, name[0]), name[1]), name


def test_pictures_are_brought_to_the_nearest_size():
  nearest = images.Nearest(sizes=((16, 16), (16, 24), (24, 16)))
  rng = np.random.default_rng(0)
  for shape, want in (((40, 40), (16, 16)), ((30, 50), (16, 24)), ((61, 40), (24, 16)), ((16, 24), (16, 24))):
    picture = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    got = nearest.resize(picture)
    assert got.shape == (*want, 3) and got.dtype == np.uint8
    if shape == want:
      np.testing.assert_array_equal(got, picture)
  # Evenly: what is in the middle stays there.
  picture = np.zeros([16, 48, 3], np.uint8)
  picture[:, 20:28] = 255
  columns = nearest.resize(picture)[:, :, 0].mean(axis=0)
  assert np.allclose(columns, columns[::-1]) and columns[12] > 250 > 5 > columns[0]
  with pytest.raises(ValueError, match=r'uint8\[H, W, 3\], not float64'):
    nearest.resize(np.zeros([4, 4, 3]))
