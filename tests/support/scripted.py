"""A script in the sampler's place, for tests of the painter: it keeps what it is asked, and answers as it was told."""

import types

import jax
import numpy as np

from pdgen.core import config
from pdgen.sampling import cycle, lanes
from support import toy

S = toy.WORDS.specials
SAMPLING = config.SamplingConfig(max_pictures=4, max_text_tokens=12, max_tokens=60)
PAINT = [S.vision_start]


class Script:
  """Stands for `cycle.run`: keeps what it is asked and gives out what it was told, a row a prompt.

  `of_queue` stands for `lanes.run`.
  """

  def __init__(self, rows):
    self.rows, self.not_finite = list(rows), None  # number of the row whose picture is not finite
    self.calls = []

  def _cache_size(self):
    return len({jax.tree.map(np.shape, call.batch) for call in self.calls} if self.calls else ())

  def of_queue(self, graphdef, params, queue, spec, plan):
    return self(graphdef, params, queue.batch, queue.sampler, spec)

  def __call__(self, graphdef, params, batch, sampler, spec):
    self.calls.append(types.SimpleNamespace(batch=batch, sampler=sampler, spec=spec))
    size = len(batch.picture_limit)
    rows, self.rows = self.rows[:size], self.rows[size:]
    written = np.full((size, SAMPLING.max_tokens), 77)
    counts, painted = np.zeros(size, int), np.zeros(size, int)
    pictures = np.zeros((size, SAMPLING.max_pictures, 16, 16, 3), np.uint8)
    stop = np.full(size, cycle.PICTURE_CAP)
    for i, (tokens, stopped) in enumerate(rows):
      written[i, : len(tokens)], counts[i], stop[i] = tokens, len(tokens), stopped
      painted[i] = tokens.count(S.vision_start)
      pictures[i] = np.arange(1, 5, dtype=np.uint8)[:, None, None, None] + 10 * i
    return types.SimpleNamespace(
      output_tokens=written,
      output_logprobs=np.full(written.shape, -0.5),
      output_count=counts,
      pictures=pictures,
      picture_count=painted,
      finite=np.arange(size) != self.not_finite,
      stop=stop,
      text_steps=np.array(7),
      rounds=np.array(2),
    )


class Uncompiled:
  """A function in the place of a compiled one, without programs of its own."""

  def __init__(self, function):
    self._function = function

  def __call__(self, *args):
    return self._function(*args)

  def _cache_size(self):
    return 0


def play(monkeypatch, *rows):
  """The script of these rows (tokens, or tokens and the reason of the end), in the sampler's place."""
  script = Script([(tokens, cycle.FINISHED) if isinstance(tokens, list) else tokens for tokens in rows])
  monkeypatch.setattr(cycle, 'run', script)
  monkeypatch.setattr(lanes, 'run', Uncompiled(script.of_queue))
  return script
