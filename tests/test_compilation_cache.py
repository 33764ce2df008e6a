"""Compiled programs are kept between commands; a folder or an entry that cannot be used is no reason to stop."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from pdgen import flags

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = """
import jax, jax.numpy as jnp
from pdgen import flags
print(flags.enable_compilation_cache())
print(float(jax.jit(lambda x: jnp.sort(jnp.sin(x)).sum())(jnp.arange(100.0))))
"""


@pytest.fixture
def cache_config():
  """JAX's configuration is as it was afterwards."""
  names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
  before = {name: jax.config.values[name] for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_the_folder_is_that_of_jax_else_one_of_pdgen(monkeypatch, tmp_path, cache_config):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'given'))
  assert flags.enable_compilation_cache() == str(tmp_path / 'given')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '')
  assert flags.enable_compilation_cache() is None and jax.config.values['jax_compilation_cache_dir'] is None
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
  assert flags.enable_compilation_cache() == str(tmp_path / 'xdg' / 'pdgen' / 'xla')
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  assert flags.enable_compilation_cache() == str(tmp_path / 'home' / '.cache' / 'pdgen' / 'xla')
  assert jax.config.values['jax_compilation_cache_dir'] == str(tmp_path / 'home' / '.cache' / 'pdgen' / 'xla')
  assert jax.config.values['jax_persistent_cache_min_compile_time_secs'] == 1.0


def test_a_folder_that_cannot_be_written_is_a_warning(monkeypatch, tmp_path, cache_config):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'file' / 'folder'))
  with pytest.warns(UserWarning, match='Compiled programs are not kept'):
    assert flags.enable_compilation_cache() is None
  assert jax.config.values['jax_compilation_cache_dir'] is None


def test_an_entry_that_is_damaged_is_compiled_again(tmp_path):
  def run():
    environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(tmp_path)}
    environment |= {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', PROGRAM], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder, value = done.stdout.split()
    assert folder == str(tmp_path)
    return value, done.stderr

  value, _ = run()
  entries = [p for p in tmp_path.iterdir() if p.name.endswith('-cache')]
  assert entries
  assert run() == (value, '')
  for damage in (lambda content: content[: len(content) // 2], lambda content: b'', lambda content: b'x' + content[1:]):
    for entry in entries:
      entry.write_bytes(damage(entry.read_bytes()))
    again, warned = run()
    assert again == value and 'Error reading persistent compilation cache entry' in warned
