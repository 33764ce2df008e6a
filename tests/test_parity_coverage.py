"""Every array of the golden folder is checked by some test, and what a test declares it does."""

import importlib
import pathlib

import numpy as np
import pytest
from support import golden_folder


def test_every_array_is_checked_by_a_test():
  for path in pathlib.Path(__file__).parent.glob('test_parity_*.py'):
    importlib.import_module(path.stem)
  declared = {name for pattern in golden_folder.DECLARED for name in golden_folder.matching(pattern)}
  left_out = sorted(set(golden_folder.names()) - declared)
  assert not left_out


def test_a_test_that_leaves_out_a_declared_array_fails():
  name, other = golden_folder.matching('a_masks/*_sample_lens')[:2]

  @golden_folder.checks(name, inputs=(other,))
  def half():
    golden_folder.equal(golden_folder.value(name), name)

  with pytest.raises(AssertionError, match='declares that it reads'):
    half()

  @golden_folder.checks(name)
  def reads_only():
    golden_folder.value(name)

  with pytest.raises(AssertionError, match='declares that it compares'):
    reads_only()


def test_one_percent_is_an_error_in_every_array():
  """Whatever passes would not pass if the array were 1.01 times what it is. What is only read has no tolerance."""
  for path in pathlib.Path(__file__).parent.glob('test_parity_*.py'):
    importlib.import_module(path.stem)
  compared = {name for pattern in golden_folder.COMPARED for name in golden_folder.matching(pattern)}
  for name in sorted(compared):
    array = golden_folder.value(name)
    if array.dtype.kind == 'f' and not _is_noise(name):
      finite = golden_folder.finite(array)
      if finite.any():
        assert (1 + 1.01) * golden_folder.tolerance(name) < 0.01 * abs(finite).max(), name


@pytest.mark.parametrize('read', [golden_folder.interval, golden_folder.integers])
def test_what_only_decides_is_read_exactly(read, monkeypatch):
  """1 % more would leave the same steps guided, and as many of them."""
  arrays = {golden_folder.interval: np.float32([0.35, 0.9]), golden_folder.integers: np.float32(6)}
  monkeypatch.setattr(golden_folder, '_read', lambda name: arrays[read] * np.float32(float(name)))
  read('1')
  with pytest.raises(AssertionError):
    read('1.01')


def _is_noise(name):
  """Gradients that are zero but for rounding, as of the ViT's key biases, which softmax does not see (QUIRKS 24)."""
  return name.startswith(golden_folder.GRADIENT_NORMS) and abs(golden_folder.value(name)) < 1e-7
