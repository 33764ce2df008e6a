"""Slices of safetensors files are what the package reads; what is written it can read; damage is named."""

import functools
import json
import threading

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from pdgen.weights import safetensors_io


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return {
    'a': rng.normal(size=(3, 40, 24)).astype(np.float32),
    'b': rng.normal(size=(7, 5)).astype(np.float16),
    'c': np.float32(3.5),
    'd': rng.normal(size=(9,)).astype(ml_dtypes.bfloat16),
    'e': np.zeros((0, 4), np.float32),
  }


@pytest.fixture(params=[32 * 2**20, 100, 7])
def small_blocks(request, monkeypatch):
  """Blocks that hold everything, a few rows, and less than one."""
  monkeypatch.setattr(safetensors_io, 'BLOCK', request.param)


def test_slices_are_those_of_the_array(tensors, small_blocks, tmp_path):
  safetensors.numpy.save_file({n: np.asarray(x) for n, x in tensors.items()}, tmp_path / 'x')
  reader = safetensors_io.Reader(tmp_path / 'x')
  assert {n: (k.dtype, k.shape) for n, k in reader.infos.items()} == {
    n: (np.asarray(x).dtype, np.shape(x)) for n, x in tensors.items()
  }
  s = np.s_
  for name, index in [
    ('a', ()),
    ('a', s[1, 3:30]),
    ('a', s[:, 5:6, 4:]),
    ('a', s[2, 3]),
    ('a', s[0:2, -4:, :-1]),
    ('b', s[:, 1:3]),
    ('c', ()),
    ('d', s[4:]),
    ('d', s[8]),
    ('e', ()),
  ]:
    want = np.asarray(tensors[name])[index]
    got = reader.read(name, index if isinstance(index, tuple) else (index,))
    assert got.dtype == want.dtype and got.shape == want.shape
    assert got.tobytes() == want.tobytes()


def test_tasks_run_side_by_side_and_give_their_results_in_order(monkeypatch):
  """Three at a time: each of the first three waits for the other two; the fourth begins when one has been taken."""
  monkeypatch.setattr(safetensors_io, 'THREADS', 3)
  together, running, most = threading.Barrier(3), [], []

  def task(number):
    running.append(number)
    most.append(len(running))
    if number < 3:
      together.wait(timeout=60)
    running.remove(number)
    if number == 5:
      raise ValueError('the fifth')
    return number, list(safetensors_io.in_order([threading.get_ident] * 2))

  found = safetensors_io.in_order(functools.partial(task, number) for number in range(8))
  numbers, inner = zip(*(next(found) for _ in range(5)), strict=True)
  assert numbers == (0, 1, 2, 3, 4) and max(most) == 3
  assert all(first == second for first, second in inner), 'tasks of tasks have no threads of their own'
  with pytest.raises(ValueError, match='the fifth'):
    next(found)


@pytest.mark.parametrize('threads', [1, 4])
def test_threads_share_a_block(tensors, threads, monkeypatch, tmp_path):
  """No part that is mapped is larger than a thread's share, and all parts are the tensor."""
  monkeypatch.setattr(safetensors_io, 'THREADS', threads)
  monkeypatch.setattr(safetensors_io, 'BLOCK', 1600)
  safetensors.numpy.save_file({'a': tensors['a']}, tmp_path / 'x')
  mapped, memmap = [], np.memmap

  def told(*arguments, **options):
    mapped.append(memmap(*arguments, **options))
    return mapped[-1]

  monkeypatch.setattr(np, 'memmap', told)
  np.testing.assert_array_equal(safetensors_io.Reader(tmp_path / 'x').read('a'), tensors['a'])
  assert {part.nbytes for part in mapped} == ({1536, 768} if threads == 1 else {384})
  assert sum(part.nbytes for part in mapped) == tensors['a'].nbytes


def test_what_is_written_is_a_safetensors_file(tensors, tmp_path):
  kinds = {n: safetensors_io.TensorInfo(np.asarray(x).dtype, np.shape(x)) for n, x in tensors.items()}
  header = safetensors_io.header(kinds)
  digest = safetensors_io.write(tmp_path / 'x', header, (np.asarray(x) for x in tensors.values()))
  assert digest == safetensors_io.sha256(tmp_path / 'x')
  read = safetensors.numpy.load_file(tmp_path / 'x')
  assert all(read[n].tobytes() == np.asarray(x).tobytes() for n, x in tensors.items())
  assert len(header) % 8 == 0 and safetensors_io.tensor_infos(header) == kinds
  assert safetensors_io.names_in_order(header) == list(tensors)
  with pytest.raises(ValueError, match='its header says'):
    safetensors_io.write(tmp_path / 'x', header, [tensors['a']])


def test_a_damaged_or_foreign_file_is_named(tensors, tmp_path):
  path = tmp_path / 'broken.safetensors'
  safetensors.numpy.save_file({'a': tensors['a']}, path)
  good = path.read_bytes()
  for bad, words in (
    (good[:-1], 'its header says'),
    (good[:20], 'cut short'),
    (good.replace(b'"shape"', b'"sharp"', 1), 'is damaged'),
    (good.replace(b'[3,40,24]', b'[3,40,25]', 1), 'does not fit its place'),
    (good.replace(b'"F32"', b'"F64"', 1), r"holds \['F64'\]"),
    (b'not at all a file of tensors', 'cut short'),
  ):
    path.write_bytes(bad)
    with pytest.raises(ValueError, match=words) as error:
      safetensors_io.Reader(path)
    assert 'broken.safetensors' in str(error.value)


def raw(path, entries: str, data: bytes):
  text = entries.encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + data)
  return path


@pytest.mark.parametrize(
  'entries, words',
  [
    ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]},"b":%s}', 'no dtype, shape or place'),
    ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},"b":%s}', 'a overlaps b'),
    ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":%s}', 'overlaps [ab]'),
    ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[12,16]},"b":%s}', 'a leaves a hole after b'),
    ('{"b":%s,"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},"b":null}', "holds 'b' twice"),
    ('{"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[8,16]},"b":%s}', "holds 'shape' twice"),
    ('{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[8,16]},"b":%s}', 'no dtype, shape or place'),
    ('{"a":{"dtype":"F32","shape":[true,2],"data_offsets":[8,16]},"b":%s}', 'no dtype, shape or place'),
    ('{"__metadata__":{"a":1},"b":%s}', 'metadata are no texts'),
    ('[%s]', 'no object'),
    ('{"a":' + '[' * 100_000 + '%s', 'damaged'),
  ],
)
def test_places_that_contradict_each_other_are_refused(tmp_path, entries, words):
  """As the safetensors package refuses them."""
  path = raw(tmp_path / 'x', entries.replace('%s', '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'), bytes(16))
  with pytest.raises(ValueError, match=words) as error:
    safetensors_io.Reader(path)
  assert str(path) in str(error.value) and '\n' not in str(error.value)
  with pytest.raises(safetensors.SafetensorError):
    safetensors.numpy.load_file(path)


def test_empty_tensors_and_metadata_take_no_place(tensors, tmp_path):
  kinds = {n: safetensors_io.TensorInfo(np.asarray(x).dtype, np.shape(x)) for n, x in reversed(tensors.items())}
  header = safetensors_io.header(kinds, metadata={'format': 'pt'})
  safetensors_io.write(tmp_path / 'x', header, (np.asarray(x) for x in reversed(tensors.values())))
  assert safetensors_io.metadata(header) == {'format': 'pt'}
  assert safetensors_io.metadata(safetensors_io.header(kinds)) == {}
  assert safetensors_io.Reader(tmp_path / 'x').infos == kinds
  assert safetensors.numpy.load_file(tmp_path / 'x').keys() == kinds.keys()


@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named_where_it_is_read(small_blocks, tmp_path, dtype, value):
  array = np.full((20, 30), ml_dtypes.finfo(dtype).max, dtype)
  array[::2] *= -1
  array[3, 4] = value
  safetensors.numpy.save_file({'good': np.zeros(3, np.float32), 'wo.weight': array}, tmp_path / 'x.safetensors')
  reader = safetensors_io.Reader(tmp_path / 'x.safetensors')
  for index in ((), (3,), (slice(2, 4), slice(4, 5))):
    with pytest.raises(ValueError, match=r'x.safetensors: wo.weight holds a number that is not finite'):
      reader.read('wo.weight', index)
  assert reader.read('wo.weight', (slice(4, 20),)).shape == (16, 30)


@pytest.mark.parametrize('dtype', ['F8_E4M3', 'F64', 'I8', 'BOOL'])
def test_other_types_are_refused_once_with_what_can_be_done(tmp_path, dtype):
  one = f'{{"dtype":"{dtype}","shape":[8],"data_offsets":[0,8]}}'
  path = raw(tmp_path / 'x', f'{{"a":{one},"b":{one}}}', bytes(8))
  with pytest.raises(ValueError, match=rf"x holds \['{dtype}'\] \(a is one\).*Take a release in bfloat16") as error:
    safetensors_io.Reader(path)
  assert '\n' not in str(error.value)


def test_dtypes_are_those_of_jax():
  assert safetensors_io.DTYPES['BF16'] == jnp.zeros(1, jnp.bfloat16).dtype
  assert set(json.loads(safetensors_io.header({'x': safetensors_io.TensorInfo(np.dtype(jnp.bfloat16), (2,))})[8:])) == {
    'x'
  }
