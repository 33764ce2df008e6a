"""Oracle inspection: someone on the host inspects every draft, and the model goes on from those words.

In modes with a protocol that someone writes every text (`inference.rounds`). Of the process:

The phases of the sampler run one by one (`inference.phases`). After each picture phase the inspector is shown every new
draft, and what it says is read into the cache in place of the model's own inspection: same cache, same positions, same
noise of the next picture, so that a painting differs from the model's own only by what was said.

    painter.sample(prompts, sampling=dataclasses.replace(sampling, inspection='dictated'), inspector=inspector)
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.data.tokenizers import base
from pdgen.inference import phases as phases_lib
from pdgen.inference import requests as requests_lib
from pdgen.inference import results
from pdgen.sampling import cycle

# From a partial trajectory to the text that comes next: of the process, the inspection of its last draft.
Inspector = Callable[[trajectory_lib.Trajectory], str]


def check(sampling: config_lib.SamplingConfig, inspector: Inspector | None):
  """Raises ValueError unless there is an inspector exactly where `sampling.inspection` is `dictated`."""
  if (sampling.inspection == config_lib.DICTATED) != (inspector is not None):
    raise ValueError(
      f'sampling.inspection={sampling.inspection!r} with{"" if inspector else "out"} an inspector: '
      "'dictated' needs one (Painter.sample(.., inspector=f), or `pdgen.evaluate process`), and the others have none."
    )


def run(
  phases: phases_lib.Phases,
  batch: cycle.SampleBatch,
  requests: Sequence[requests_lib.Request],
  tokenizer: base.Tokenizer,
  inspector: Inspector,
) -> cycle.State:
  """Samples a batch to its end with every draft inspected by `inspector`; the final state, still on the device.

  Args:
    phases: compiled with `SamplingConfig.inspection` `dictated`.
    batch: of the requests, and rows that are idle.
    requests: the first rows.
    tokenizer: of the texts.
    inspector: inspects.

  Raises: ValueError for an inspection that is longer than a text may be.
  """
  readers = [results.OutputReader(request, tokenizer) for request in requests]
  read, cap = np.zeros(len(readers), int), phases.spec.sampling.max_text_tokens

  def dictate(state: cycle.State) -> cycle.State:
    seen = jax.device_get(phases_lib.progress(state))
    tokens = np.full((len(seen['status']), cap), -1, np.int32)
    for row, reader in enumerate(readers):
      if seen['status'][row] == cycle.WRITING and _is_due(reader.trajectory):
        text = tokens_of(inspector(reader.trajectory), tokenizer, cap)
        tokens[row, : len(text)] = text
    return phases.dictated_text(state, jnp.asarray(tokens)) if (tokens >= 0).any() else state

  state = dictate(phases.prefill(batch))
  while True:
    state = phases.text_phase(state)
    seen = _written(state)
    for row, reader in enumerate(readers):
      for token in seen['output_tokens'][row, read[row] : seen['output_count'][row]].tolist():
        reader.token(token)
      read[row] = seen['output_count'][row]
    waiting = np.flatnonzero(seen['status'] == cycle.WAITING)
    if not waiting.size:
      return state
    state = phases.picture_phase(state)
    pictures = jax.device_get(phases_lib.last_pictures(state))
    for row in waiting:
      readers[row].picture(pictures[row])
    state = dictate(state)


def _written(state: cycle.State) -> dict[str, Any]:
  return jax.device_get({name: getattr(state, name) for name in ('status', 'output_tokens', 'output_count')})


def _is_due(trajectory: trajectory_lib.Trajectory) -> bool:
  *_, last = (None, *trajectory.items())
  return trajectory.mode == trajectory_lib.PROCESS and last is not None and last.kind == trajectory_lib.DRAFT


def tokens_of(text: str, tokenizer: base.Tokenizer, cap: int) -> list[int]:
  """Ids of a text that is dictated, and of its end. Raises: ValueError for `cap` or more."""
  ids = [*tokenizer.encode_with_tags(text), tokenizer.specials.im_end]
  if len(ids) >= cap:
    raise ValueError(
      f'The dictated text {text[:40]!r}.. has {len(ids)} tokens of {cap}: raise sampling.max_text_tokens.'
    )
  return ids
