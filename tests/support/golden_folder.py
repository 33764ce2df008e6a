"""The folder of golden values (PDGEN_GOLDEN, or tests/golden): reads it, compares with it, and remembers what was.

    @golden_folder.checks('d_vae/moments*', inputs=('d_vae/image*',))
    def test_moments():
      golden_folder.close(encode(golden_folder.value('d_vae/image0')), 'd_vae/moments0')

`checks` declares which arrays a test compares, and which it feeds to what it compares; the test fails unless it really
did so with each of them. `test_parity_coverage` fails if no test declares an array of the folder.

One tolerance for floats: NOISE_MULTIPLE times the array's noise floor (the folder's noise_floor.json: how far the
reference's own float32 is from its float64; at least the rounding of its largest value, because a single number may be
right by luck). Where the folder states no noise, the rule of its README: |x - golden| <= 3e-5 max(1, max|golden|).
Integers and booleans are exact; of uint8 pictures 1 % may be off by one. In bfloat16 the bound is BFLOAT16_BOUND
max(1, max|golden|).
"""

import fnmatch
import functools
import json
import os
import pathlib
import re

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from pdgen.core import config
from pdgen.models import interleaved
from pdgen.weights import bagel

FOLDER = pathlib.Path(os.environ.get('PDGEN_GOLDEN') or pathlib.Path(__file__).parents[1] / 'golden').resolve()
NOISE_MULTIPLE = 8
BFLOAT16_BOUND = 0.1
GRADIENT_NORMS = 'e_train_grad_norms'
DECLARED: set[str] = set()  # patterns of all tests that have been imported
COMPARED: set[str] = set()  # of these, what is compared and not only read
ERRORS: dict[str, dict[str, tuple[float, float]]] = {}  # array: dtype: (largest error, bound)


class _Record:
  def __init__(self):
    self.read: set[str] = set()
    self.compared: set[str] = set()


_records = [_Record()]


def checks(*patterns, inputs=()):
  """Decorates a test: it compares all arrays that match `patterns`, and reads all that match `inputs`."""
  DECLARED.update((*patterns, *inputs))
  COMPARED.update(patterns)

  def decorate(test):
    @functools.wraps(test)
    def run(*args, **kwargs):
      _records.append(_Record())
      try:
        test(*args, **kwargs)
      finally:
        record = _records.pop()
      for wanted, done, verb in ((patterns, record.compared, 'compare'), (inputs, record.read, 'read')):
        for pattern in wanted:
          assert matching(pattern), f'{FOLDER} has no array {pattern}.'
        left_out = {name for pattern in wanted for name in matching(pattern)} - done
        assert not left_out, f'The test declares that it {verb}s {sorted(left_out)}, and did not.'

    return run

  return decorate


def shared(function):
  """Computed once for all tests that need it; what it read counts for each of them."""
  results = {}

  @functools.wraps(function)
  def run(*args):
    if args not in results:
      _records.append(_Record())
      try:
        value = function(*args)
      finally:
        record = _records.pop()
      results[args] = value, record.read
    value, read = results[args]
    _records[-1].read |= read
    return value

  return run


@functools.cache
def names():
  """Every array of the folder as `file/array`."""
  found = [f'{path.stem}/{name}' for path in sorted(FOLDER.glob('*.npz')) for name in _file(path.stem)]
  return (*found, *(f'{GRADIENT_NORMS}/{name}' for name in _file(GRADIENT_NORMS)))


def matching(pattern):
  return fnmatch.filter(names(), pattern)


def value(name):
  """An array. Integers that are none any more (an array was tampered with) are an error."""
  _records[-1].read.add(name)
  return _read(name)


def integers(name):
  """An array of whole numbers as Python's (nested lists of) ints."""
  array = value(name)
  np.testing.assert_array_equal(array, np.round(array), err_msg=name)
  return array.astype(np.int64).tolist()


def interval(name):
  """Two times that were set by hand, with two decimals at most: an interval only decides, so little changes nothing."""
  array = value(name)
  np.testing.assert_array_equal(array, np.round(array.astype(np.float64), 2).astype(array.dtype), err_msg=name)
  return tuple(array.tolist())


def close(got, name, *, rows=..., multiple=NOISE_MULTIPLE):
  """Floats against an array, or against rows of it; infinities must be the same ones."""
  got, want = np.asarray(got, np.float64), value(name)[rows].astype(np.float64)
  _compare(got, want, name, multiple / NOISE_MULTIPLE * tolerance(name), 'float32')


def tolerance(name):
  """How far a float32 result may be from an array; see the module."""
  file, array = name.split('/', 1)
  largest = np.abs(finite(_read(name))).max(initial=0.0)
  if file == GRADIENT_NORMS:
    # Norms: relative, and absolute where a gradient is nothing but noise (QUIRKS 24).
    return 1e-4 * largest + 1e-7
  noise = _noise_floor().get(file, {}).get(array, 0.0)
  return NOISE_MULTIPLE * max(noise, 2.0**-24 * largest) if noise else 3e-5 * max(1.0, largest)


def finite(array):
  """The finite values of an array, flat."""
  return array[np.isfinite(array)]


def near(got, name):
  """bfloat16 results against an array."""
  got, want = np.asarray(jax.device_get(got)).astype(np.float64), value(name).astype(np.float64)
  _compare(got, want, name, BFLOAT16_BOUND * max(1.0, np.abs(want).max()), 'bfloat16')


def equal(got, name):
  """Integers or booleans, exactly."""
  np.testing.assert_array_equal(np.asarray(got), value(name), err_msg=name)
  _records[-1].compared.add(name)


def same_picture(got, name):
  """uint8 pictures: at most 1 % of the values off by one."""
  got, want = np.asarray(got), value(name)
  assert got.dtype == np.uint8 and got.shape == want.shape, name
  off = np.abs(got.astype(np.float64) - want)
  assert off.max() <= 1 and np.mean(off > 0) <= 0.01, f'{name}: {np.mean(off > 0):.2%} differ, by up to {off.max()}.'
  _records[-1].compared.add(name)


def readme(pattern, otherwise):
  """First group of a pattern in the folder's README, where settings stand that no array holds, or else `otherwise`."""
  path = FOLDER / 'README.md'
  found = re.search(pattern, path.read_text()) if path.is_file() else None
  return found[1] if found else otherwise


@functools.cache
def settings(name):
  """A json file of the checkpoint, or {}."""
  path = FOLDER / 'ckpt' / name
  return json.loads(path.read_text()) if path.is_file() else {}


@functools.cache
def model_config(dtype='float32'):
  """The checkpoint's sizes, as its json files give them."""
  files = map(settings, ('llm_config.json', 'vit_config.json', 'config.json', 'ae_config.json'))
  return bagel.from_released(*files, dtype=dtype)


@functools.cache
def specials():
  """The boundary tokens; no golden value has the other specials."""
  ids = settings('config.json')['new_token_ids']
  known = dict(
    im_start=ids['bos_token_id'],
    im_end=ids['eos_token_id'],
    vision_start=ids['start_of_image'],
    vision_end=ids['end_of_image'],
  )
  return config.Specials(**{name: known.get(name, -1) for name in config.Specials.__dataclass_fields__})


@functools.cache
def params():
  """The checkpoint's weights as nested dicts, by the table of released names."""
  stacks, out = {}, {}
  for file in (bagel.EMA, bagel.AE):
    for name, array in safetensors.numpy.load_file(FOLDER / 'ckpt' / file).items():
      path, layer, layout = bagel.place(file, name)
      if not path.startswith(bagel.FIXED):
        stacks.setdefault(path, {})[layer] = bagel.to_ours(array, layout)
  for path, by_layer in stacks.items():
    *groups, leaf = path.split('/')
    place = functools.reduce(lambda d, key: d.setdefault(key, {}), groups, out)
    place[leaf] = by_layer[None] if None in by_layer else np.stack([by_layer[i] for i in range(len(by_layer))])
  return jax.tree.map(lambda _, x: jax.numpy.asarray(x), interleaved.abstract_params(model_config()), out)


def model(cfg=None, weights=None):
  """The checkpoint as a model. Inside of jit, weights must be an argument of the compiled function: `params()`."""
  return nnx.merge(interleaved.graphdef(cfg or model_config()), params() if weights is None else weights)


def compiled(function, cfg=None):
  """function(model, *args), compiled quickly, as a function of args. cfg: as of `model`."""
  run = jax.jit(lambda weights, *args: function(model(cfg, weights), *args))
  return functools.partial(run, params())


def summary():
  """Lines of a table: largest error of every array that was compared in bfloat16, and of each file in float32."""
  lines = []
  for name in sorted(ERRORS):
    if 'bfloat16' in ERRORS[name]:
      float32 = f'{ERRORS[name]["float32"][0]:.1e}' if 'float32' in ERRORS[name] else '-'
      lines.append(f'{name:<60} float32 {float32:>8}   bfloat16 {ERRORS[name]["bfloat16"][0]:.1e}')
  for file in sorted({name.split('/')[0] for name in ERRORS}):
    shares = {n: e['float32'] for n, e in ERRORS.items() if n.startswith(f'{file}/') and 'float32' in e}
    if shares:
      worst = max(shares, key=lambda n: shares[n][0] / shares[n][1])
      error, bound = shares[worst]
      lines.append(f'{file}: {len(shares)} float arrays, nearest to its tolerance {worst} {error:.1e} of {bound:.1e}')
  return lines


def _read(name):
  file, array = name.split('/', 1)
  return np.asarray(_file(file)[array])


def _compare(got, want, name, tolerance, dtype):
  assert got.shape == want.shape, f'{name}: {got.shape} against {want.shape}'
  finite = np.isfinite(want)
  np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=name)
  error = np.abs(got[finite] - want[finite]).max(initial=0.0)
  worst = ERRORS.setdefault(name, {})
  worst[dtype] = max(worst.get(dtype, (0.0, 0.0)), (float(error), float(tolerance)))
  # Not `>`: a NaN must fail.
  assert error <= tolerance, f'{name}: {dtype} error {error:.2e} exceeds {tolerance:.2e}.'
  _records[-1].compared.add(name)


@functools.cache
def _noise_floor():
  path = FOLDER / 'noise_floor.json'
  return json.loads(path.read_text()) if path.is_file() else {}


@functools.cache
def _file(stem):
  path = FOLDER / f'{stem}.npz'
  return dict(np.load(path)) if path.is_file() else json.loads((FOLDER / f'{stem}.json').read_text())
