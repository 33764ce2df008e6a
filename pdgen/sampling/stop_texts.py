"""Stop texts: a text ends with the token in which one of them is complete, however the tokens cut it.

The bytes of the stop texts make an automaton (Aho-Corasick: its state is how much of one may have begun), and the bytes
of each token say where it takes it from every state: a table of states and tokens. In the program a token is one
look-up. Trajectories of a batch have automata of their own side by side in one table.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

COMPLETE, NEVER = 0, 1  # States: a stop text is complete; there are none. They are never left.
_BUCKET = 16  # States are rounded up to a multiple of it, so that few programs are compiled.


class StopTexts(struct.PyTreeNode):
  """An argument of the program."""

  after: jax.Array  # int16[N, V], the state after each token in each state.
  begin: jax.Array  # int32, [] or [B]: the state of each trajectory where a text begins.

  @classmethod
  def of(cls, texts: Sequence[Sequence[str]], tokens: Sequence[bytes]) -> 'StopTexts':
    """texts: of each trajectory. tokens: bytes of every id.

    Raises: ValueError for more stop texts in a batch than the table has room for.
    """
    sets = tuple(dict.fromkeys(tuple(dict.fromkeys(own)) for own in texts))
    after, begin = table(sets, tuple(tokens))
    return cls(jnp.asarray(after), jnp.asarray([begin[sets.index(tuple(dict.fromkeys(own)))] for own in texts]))


@functools.lru_cache(maxsize=4)
def table(sets: tuple[tuple[str, ...], ...], tokens: tuple[bytes, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
  """The automata of sets of stop texts in one table.

  >>> after, begin = table((('ab',), ()), (b'a', b'xa', b'ab', b'b', b'bab.'))
  >>> after[begin[0]].tolist(), int(after[after[begin[0], 1], 3]), begin[1] == NEVER
  ([3, 3, 0, 2, 0], 0, True)

  Returns: int16[N, V], the state after each token in each state, and the first state of each set.

  Raises: ValueError for more than 32,000 states, about one for each byte of the sets.
  """
  bytewise, begin = [np.full(256, COMPLETE), np.full(256, NEVER)], []
  for texts in sets:
    begin.append(len(bytewise) if texts else NEVER)
    bytewise += _automaton([text.encode() for text in texts], first=len(bytewise))
  if len(bytewise) > 32_000:
    raise ValueError(f'The stop texts of a batch have some {len(bytewise):,} bytes together, of at most 32,000.')
  bytewise += [np.full(256, NEVER)] * (-len(bytewise) % _BUCKET)
  step, lengths = np.stack(bytewise).astype(np.int16), np.array([len(token) for token in tokens])
  most = max(1, int(lengths.max(initial=1)))
  content = np.array(tokens, f'S{most}').view(np.uint8).reshape(len(tokens), most)
  after = np.repeat(np.arange(len(step), dtype=np.int16)[:, None], len(tokens), axis=1)
  for i in range(most):
    longer = np.flatnonzero(lengths > i)
    after[:, longer] = step[after[:, longer], content[longer, i]]
  return after, tuple(begin)


def find(written: bytes, texts: Sequence[bytes]) -> int:
  """Where the first stop text begins in what was written; -1: it holds none."""
  places = [place for text in texts if (place := written.find(text)) >= 0]
  return min(places, default=-1)


def begun(written: bytes, texts: Sequence[bytes]) -> int:
  """How many bytes at the end of what was written may be the beginning of a stop text.

  >>> begun(b'a </thi', [b'</think>', b'</answer>'])
  5
  """
  return max((n for text in texts for n in range(1, len(text)) if written.endswith(text[:n])), default=0)


def _automaton(texts: Sequence[bytes], *, first: int) -> list[np.ndarray]:
  """The rows of an automaton whose states are numbered from `first`, where no text has begun: int[256] each."""
  states = {b'': first} if texts else {}
  for text in texts:
    for n in range(1, len(text)):
      states.setdefault(text[:n], first + len(states))
  used = sorted({byte for text in texts for byte in text})
  rows = []
  for state in states:
    row = np.full(256, first)  # A byte that is in no text.
    for byte in used:
      now = state + bytes([byte])
      rest = next(now[n:] for n in range(len(now) + 1) if now[n:] in states)  # b'' is.
      row[byte] = COMPLETE if any(now.endswith(text) for text in texts) else states[rest]
    rows.append(row)
  return rows
