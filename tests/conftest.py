"""Eight virtual CPU devices and strict numerics for every test; a tiny experiment that trains in milliseconds."""

import os
import sys

os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'.strip()
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import pytest

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.data import pipeline

jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_sessionstart(session):
  if jax.device_count() != 8:
    raise pytest.UsageError(f'The tests need 8 devices, {jax.device_count()} are there: jax was imported too early.')


def tiny_config() -> config_lib.Config:
  """The shapes world with the smallest model that has every part."""
  model = config_lib.ModelConfig(
    vocab_size=640,
    width=16,
    depth=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=32,
    prediction='x',
    codec=config_lib.CodecConfig(patch=16),
    max_latent_size=2,
  )
  sequence = config_lib.SequenceConfig(noised_copies=2, verdict_weight=4.0)
  data = config_lib.DataConfig(
    sequence=sequence, batch_size=8, und_tokens=640, gen_tokens=128, pictures=16, packing_bins=2, prefetch=1
  )
  train = config_lib.TrainConfig(
    steps=8,
    learning_rate=1e-2,
    warmup_steps=2,
    log_every=2,
    checkpoint_every=3,
    self_sample_steps=(4,),
    self_samples=12,
    max_bad_steps=3,
  )
  mesh = config_lib.MeshConfig(fsdp=1)
  return config_lib.Config(name='tiny', model=model, data=data, train=train, mesh=mesh)


@pytest.fixture(scope='session')
def tiny() -> config_lib.Config:
  return tiny_config()


@pytest.fixture(scope='session')
def batch(tiny) -> packed.PackedBatch:
  """The first batch of the tiny experiment, numpy arrays."""
  batches = pipeline.batches(tiny)
  made = next(batches)
  batches.close()
  return made


def _parity():
  return sys.modules['golden_folder'].summary() if 'golden_folder' in sys.modules else []


def pytest_sessionfinish(session):
  if hasattr(session.config, 'workeroutput'):  # One of several processes: the first one writes the summary.
    session.config.workeroutput['parity'] = _parity()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
  node.config.stash.setdefault(_PARITY, []).extend(getattr(node, 'workeroutput', {}).get('parity', []))


_PARITY = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter, config):
  for line in [*config.stash.get(_PARITY, []), *_parity()]:
    terminalreporter.write_line(line)
