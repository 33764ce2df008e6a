"""Options of the sampler reach the program one way each; a request that does not fit the memory is refused first."""

import dataclasses

import jax
import numpy as np
import pytest
from support import toy

from pdgen.core import config
from pdgen.inference import memory, requests
from pdgen.sampling import cycle, flow

SAMPLING = config.SamplingConfig(max_pictures=4, max_text_tokens=12, max_tokens=60)
PAINTER = toy.painter(toy.MODEL, SAMPLING)


# Another value of every option, and whether it shapes the compiled program.
OPTIONS = {
  'max_pictures': (5, True),
  'max_text_tokens': (11, True),
  'max_tokens': (61, True),
  'grammar': (False, True),
  'inspection': ('off', True),
  'max_edits': (2, False),
  'renorm': ('global', True),
  'contiguous_positions': (True, True),
  'temperature': (1.0, False),
  'top_k': (7, True),  # From all to some: a ranking.
  'top_p': (0.5, True),
  'repetition_penalty': (1.5, True),
  'stop_texts': (('ab',), True),  # From none to some.
  'text_guidance': (5.0, False),
  'image_guidance': (1.5, True),  # From 1 to another: one more branch.
  'guidance_interval': ((0.1, 0.9), False),
  'renorm_min': (0.5, False),
  'timestep_shift': (2.0, False),
  'flow_steps': (3, False),
  'draft_steps': (5, True),  # From those of all pictures to others.
  'solver': ('ab2', True),
  'guidance_every': (2, True),  # From every step to some.
}


@pytest.mark.parametrize('field', dataclasses.fields(config.SamplingConfig), ids=lambda field: field.name)
def test_every_option_reaches_the_program_in_one_way(field):
  """A new option goes red here until it is listed; as an option that shapes the program until SamplerParams has it."""
  value, shapes = OPTIONS[field.name]
  changed = dataclasses.replace(SAMPLING, **{field.name: value})
  assert (PAINTER.spec(changed) != PAINTER.spec(SAMPLING)) == shapes
  params, before = (flow.SamplerParams.of(sampling) for sampling in (changed, SAMPLING))
  is_dynamic = field.name in flow.DYNAMIC_FIELDS
  assert is_dynamic or shapes
  for name in flow.DYNAMIC_FIELDS:
    got, old = (np.asarray(getattr(p, name)) for p in (params, before))
    np.testing.assert_array_equal(got, np.asarray(value, got.dtype) if name == field.name else old)
  types = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), (params, before))
  assert types[0] == types[1]
  assert not is_dynamic or getattr(PAINTER.spec(changed).sampling, field.name) == field.default


def test_two_scales_of_guidance_share_a_program():
  scales = [dict(text_guidance=a, image_guidance=b) for a, b in ((2.0, 3.0), (4.0, 1.5))]
  one, other = (PAINTER.spec(dataclasses.replace(SAMPLING, **s)) for s in scales)
  none = PAINTER.spec(dataclasses.replace(SAMPLING, text_guidance=1.0))
  assert one == other != none and not none.text_branch


def test_the_cache_of_a_request_is_reckoned_as_it_is_made(monkeypatch):
  """Against the bytes of the state that the program makes, with both branches of guidance."""
  sampling = dataclasses.replace(SAMPLING, image_guidance=2.0)
  shape = requests.batch_shape(requests.make('p', sampling=sampling), config=PAINTER.config, tokenizer=toy.WORDS)
  needed = memory.required(toy.MODEL, sampling, prefix=shape.row_budget, rows=3)
  asked = requests.make(['p'] * 3, sampling=sampling)
  batch = PAINTER.sample_batch(asked)
  params, program = flow.SamplerParams.of(sampling), PAINTER.spec(sampling)
  state = jax.eval_shape(lambda: cycle.run(PAINTER.graphdef, PAINTER.params, batch, params, program))
  size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  assert needed['KV cache'] == size(state.cache)
  chosen = state.output_tokens, state.output_logprobs
  assert needed['pictures'] == size(state.pictures) and needed['output tokens'] == size(chosen)
  # A device that has a byte less refuses it, one that has just enough does not.
  total = sum(needed.values()) + memory.of_weights(PAINTER.params)
  for limit, fits in ((total, True), (total - 1, False)):
    monkeypatch.setattr(memory, 'limit', lambda params, limit=limit: limit)
    painter = dataclasses.replace(PAINTER)
    if fits:
      painter._calls.check_fits(asked, shape=shape, rows=3)
    else:
      with pytest.raises(ValueError, match='the device has'):
        painter._calls.check_fits(asked, shape=shape, rows=3)


def test_a_container_may_have_less_than_the_machine(monkeypatch, tmp_path):
  whole, group = memory.limit(PAINTER.params), tmp_path / 'memory.max'
  assert whole is not None and whole > 2**28
  monkeypatch.setattr(memory, '_LIMITS', (tmp_path / 'none', group))
  for text, want in (('3000000\n', 2_000_000), ('max\n', None)):  # `max`: no limit.
    group.write_text(text)
    found = memory.limit(PAINTER.params)
    assert found == want or want is None and found is not None and found >= whole
