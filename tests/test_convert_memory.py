"""Importing a gigabyte (a folder, or the base of a part) takes the memory of a few blocks; loading, of own shards."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import safetensors.numpy

from pdgen.models import layers
from pdgen.weights import bagel, bagel_convert, exported, safetensors_io

ROOT = pathlib.Path(__file__).parents[1]
BAGEL = pathlib.Path(os.environ.get('PDGEN_GOLDEN') or ROOT / 'tests' / 'golden') / 'ckpt'

# The largest blocks alive at once (source, transposed, written), and what the allocator keeps.
IMPORT_MEMORY = 8 * safetensors_io.BLOCK
# Of a process of two: runtime buffers, and the largest weight while it is placed.
LOAD_MEMORY = 300e6
_PEAK = """
import resource, sys
def status(name):
  return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith(name))
"""
_IMPORT = """
from pdgen.data.tokenizers import byte_level
from pdgen.weights import bagel_convert
before = status('VmRSS')
base = sys.argv[3] if len(sys.argv) > 3 else None
bagel_convert.import_bagel(sys.argv[1], sys.argv[2], prepare_tokenizer=byte_level.prepare, base=base)
print('grew', status('VmHWM') - before)
"""
_LOAD = """
import jax
jax.config.update('jax_num_cpu_devices', 1)
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
from pdgen.core import config
from pdgen.core import mesh as mesh_lib
from pdgen.weights import exported, safetensors_io
mesh = mesh_lib.make_mesh(config.MeshConfig(fsdp=2))
read, inner = [], safetensors_io.Reader.read
def count(self, name, index=()):
  out = inner(self, name, index)
  read.append(out.nbytes)
  return out
safetensors_io.Reader.read = count
before = status('VmRSS')
params = exported.load_export(sys.argv[1], mesh=mesh).params
share = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
print('grew', status('VmHWM') - before, share, sum(read))
"""


def run(code: str, *arguments: str) -> subprocess.Popen:
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT)}
  return subprocess.Popen(
    [sys.executable, '-c', _PEAK + code, *arguments], env=environment, text=True, stdout=-1, stderr=-1
  )


def numbers(process: subprocess.Popen) -> list[int]:
  out, err = process.communicate(timeout=600)
  assert process.returncode == 0, err
  return [int(word) for word in out.split('grew')[1].split()]


def synthetic(folder: pathlib.Path) -> int:
  """A released folder of a gigabyte: the tiny one, wider and deeper. Returns the bytes of its weights."""
  shutil.copytree(BAGEL, folder, ignore=shutil.ignore_patterns('*.safetensors'))
  sizes = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_attention_heads=16,
    num_key_value_heads=4,
    num_hidden_layers=7,
    vocab_size=40_000,
  )
  llm = json.loads((folder / 'llm_config.json').read_text()) | sizes
  (folder / 'llm_config.json').write_text(json.dumps(llm))
  files = [json.loads((folder / name).read_text()) for name in (*bagel.JSON, 'config.json', 'ae_config.json')]
  model = bagel.from_released(*files, dtype='float32')
  entries = bagel.entries(bagel_convert._shapes(model))
  noise = np.random.default_rng(0).normal(size=safetensors_io.BLOCK // 4).astype(np.float32)
  total = 0
  for file in (bagel.EMA, bagel.AE):
    parts = {name: entry for (f, name), entry in entries.items() if f == file}
    header = safetensors_io.header(
      {n: safetensors_io.TensorInfo(np.dtype(np.float32), e.shape) for n, e in parts.items()}
    )

    def blocks(parts=parts):
      for entry in parts.values():
        size = int(np.prod(entry.shape))
        if entry.path.startswith(bagel.FIXED):
          row, column = np.divmod(np.arange(entry.shape[0]), bagel_convert._tables(model)[entry.path])
          yield np.asarray(layers.sincos_2d(row, column, model.width))
        else:
          yield from (noise[: piece.stop - piece.start] for piece in safetensors_io.block_slices(size, 4))

    safetensors_io.write(folder / file, header, blocks())
    total += (folder / file).stat().st_size
  return total


def test_a_gigabyte_goes_through_a_few_megabytes(tmp_path):
  try:
    total = synthetic(tmp_path / 'bagel')
    assert total > 1e9 > 3 * IMPORT_MEMORY
    (small,) = numbers(run(_IMPORT, str(BAGEL), str(tmp_path / 'small')))
    (large,) = numbers(run(_IMPORT, str(tmp_path / 'bagel'), str(tmp_path / 'large')))
    assert large < small + IMPORT_MEMORY, f'importing {total / 1e9:.2f} GB took {large / 1e6:.0f} MB'
    (tmp_path / 'part').mkdir()  # One tensor; the rest is the base's.
    bias = {'llm2vae.bias': np.zeros(16 * 2 * 2, np.float32)}
    safetensors.numpy.save_file(bias, tmp_path / 'part' / bagel.EMA)
    (filled,) = numbers(run(_IMPORT, *(str(tmp_path / name) for name in ('part', 'filled', 'bagel'))))
    assert filled < small + IMPORT_MEMORY, f'filling {total / 1e9:.2f} GB from a base took {filled / 1e6:.0f} MB'
    sizes = [(tmp_path / name / exported.PARAMS).stat().st_size for name in ('filled', 'large')]
    assert sizes[0] == sizes[1]
    shutil.rmtree(tmp_path / 'filled')
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      address = f'127.0.0.1:{free.getsockname()[1]}'
    processes = [run(_LOAD, str(tmp_path / 'large'), address, str(i)) for i in range(2)]
    shares = []
    for grew, share, read in map(numbers, processes):
      assert read == share, 'a process reads the bytes of its own shards, and no others'
      assert grew < 1.3 * share + LOAD_MEMORY, f'a share of {share / 1e6:.0f} MB took {grew / 1e6:.0f} MB'
      shares.append(share)
    assert max(shares) < 0.55 * total and sum(shares) > 0.99 * total
    imports = ', '.join(f'{n / 1e6:.0f} MB' for n in (small, large, filled))
    print(f'{total / 1e9:.2f} GB: imports of the tiny one, of it, of a part over it: {imports}; {grew=} {share=}')
  finally:
    shutil.rmtree(tmp_path)
