"""NumPy random generators by seed and stream numbers, independent of one another."""

import numpy as np


def numpy_rng(seed: int, *numbers: int) -> np.random.Generator:
  """The generator of a seed and what it is for: an index, the number of a stream.

  A measured trap: `np.random.default_rng((seed, index, 0))` is the generator of `(seed, index)`, because NumPy pads
  seeds with zeros. The choice of a trajectory's kind and the trajectory itself then shared their draws, and no
  multi-turn trajectory was of the tasks position and color_attr. Spawn keys are not padded.

  >>> [int(numpy_rng(5, *numbers).integers(100)) for numbers in ((), (0,), (0, 0), (1,))]
  [67, 22, 68, 53]
  """
  return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=numbers))
