"""The whole cycle with random weights: independence of neighbours, caps, one program, a cache that is the sequence."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from flax import nnx
from jax._src import array as jax_array
from support import toy, xla_flags

from pdgen.core import config, packed, tags, trajectory
from pdgen.data import packing
from pdgen.inference import requests as requests_lib
from pdgen.inference import results
from pdgen.sampling import cycle, flow, grammar, kv_cache, spans

S = toy.WORDS.specials
CFG = toy.WITH_VIT
GREEDY = config.SamplingConfig(max_pictures=4, max_text_tokens=12, max_tokens=165, flow_steps=2)
WARM = dataclasses.replace(GREEDY, temperature=1.0)
TWO_PICTURES = dataclasses.replace(toy.full_trajectory(), steps=toy.full_trajectory().steps[:1], stop=None)
# float32 sums of another length or order, through two layers and two Euler steps.
TOLERANCE = 1e-5


PAINTER = toy.refining_painter(CFG, GREEDY)


def _sample(prompts, seeds, *, sampling=GREEDY, **options):
  """Always with a partial trajectory as the last row, so that every call has the shapes of the same program."""
  result = PAINTER.sample([*prompts, TWO_PICTURES], seed=[*seeds, 99], sampling=sampling, **options)
  return result.trajectories[:-1]


def _texts(got):
  return [(s.plan, s.inspection, s.corrected_plan) for s in got.steps]


def _assert_same(got, want):
  assert _texts(got) == _texts(want)
  assert got.stop == want.stop and len(got.pictures) == len(want.pictures)
  for one, other in zip(got.pictures, want.pictures, strict=True):
    # Pictures within 1e-5 of 2 are the same level, or neighbours where they round.
    difference = np.abs(one.astype(int) - other)
    assert difference.max() <= 1 and np.mean(difference > 0) < 0.01


def _random_pair(i, **changes):
  """Two trajectories of writers that choose at random."""
  sampling = dataclasses.replace(GREEDY, temperature=0.6 + 0.4 * (i % 2), **changes)
  return _sample(['ab', f'{i} rings'], [i, 100 + i], sampling=sampling)


@pytest.fixture(scope='module')
def many():
  return [got for i in range(40) for got in _random_pair(i)]


def test_every_path_is_taken(many):
  steps = [s for t in many for s in t.steps]
  assert {t.stop for t in many} == {trajectory.FINISHED, 'token_cap', 'picture_cap'}
  assert {(s.inspection is None, s.rejected, s.corrected_plan is None, s.refined is None) for s in steps} == {
    (True, False, True, True),
    (False, False, True, True),
    (False, True, True, False),
    (False, True, False, False),
  }


def test_texts_keep_the_format_and_the_caps(many):
  for got in many:
    assert 1 <= len(got.pictures) <= GREEDY.max_pictures
    assert got.stop != 'picture_cap' or len(got.pictures) == GREEDY.max_pictures
    for number, step in enumerate(got.steps):
      assert step.draft is not None
      assert step.inspection is not None or number == len(got.steps) - 1 or step.refined is not None
      assert (step.refined is not None) == step.rejected
      assert step.corrected_plan is None or step.rejected
      for plan in (step.plan, step.corrected_plan):
        assert plan is None or tags.plan_parts(plan)
      for text in (step.plan, step.inspection, step.corrected_plan):
        assert text is None or len(toy.WORDS.encode_with_tags(text)) < GREEDY.max_text_tokens
    tokens = toy.row(got, CFG)
    prompt = len(got.prompt) + 2
    assert len(tokens.und.label) + len(tokens.gen.patch) - prompt <= GREEDY.max_tokens


@pytest.mark.parametrize('sampling', [GREEDY, WARM], ids=['greedy', 'warm'])
def test_neighbours_change_nothing(sampling):
  prompts, seeds = ['ab', 'a longer prompt'], [3, 4]
  together = _sample(prompts, seeds, sampling=sampling)
  swapped = _sample(prompts[::-1], seeds[::-1], sampling=sampling)[::-1]
  others = [_sample([p, 'zz'], [s, 7], sampling=sampling)[0] for p, s in zip(prompts, seeds, strict=True)]
  for i, want in enumerate(together):
    _assert_same(swapped[i], want)
    _assert_same(others[i], want)
  assert _texts(together[0]) != _texts(together[1])
  # A batch of one, whose prefix is padded less and holds no pictures.
  for prompt, seed, want in zip(prompts, seeds, together, strict=True):
    [alone] = PAINTER.sample(prompt, seed=seed, sampling=sampling).trajectories
    _assert_same(alone, want)
  # Idle rows.
  [idle] = PAINTER.sample(TWO_PICTURES, seed=99, sampling=sampling, batch_size=3).trajectories
  _assert_same(idle, PAINTER.sample(['ab', 'a', TWO_PICTURES], seed=[1, 2, 99], sampling=sampling).trajectories[-1])


def test_chosen_tokens_are_those_of_the_texts_with_their_probabilities():
  result = PAINTER.sample(['ab', '9 rings', TWO_PICTURES], seed=[3, 4, 99], sampling=WARM)
  for got, chosen in zip(result.trajectories[:2], result.chosen, strict=False):
    made = requests_lib.make(got.prompt, sampling=WARM)[0]
    reader, pictures = results.OutputReader(made, toy.WORDS), iter(got.pictures)
    for token in chosen.ids.tolist():
      reader.token(token)
      if token == S.vision_start:
        reader.picture(next(pictures))
    assert _texts(reader.trajectory) == _texts(got) and len(chosen) == len(chosen.ids) == len(chosen.logprobs)
    # A plan is opened, and a picture follows it, without a choice.
    assert chosen.ids[:2].tolist() == [S.im_start, S.ins] and chosen.logprobs[:2].tolist() == [0, 0]
    free = chosen.logprobs[~np.isin(chosen.ids, dataclasses.astuple(S))]
    assert len(free) > 2 and np.isfinite(chosen.logprobs).all() and (free < -0.5).mean() > 0.8
  [alone] = PAINTER.sample('9 rings', seed=4, sampling=WARM).chosen
  np.testing.assert_array_equal(alone.ids, result.chosen[1].ids)
  np.testing.assert_allclose(alone.logprobs, result.chosen[1].logprobs, atol=TOLERANCE)


def test_a_repetition_penalty_is_of_the_words_of_one_text():
  """Below 1 it is a reward: what was written once is written to the end of the text, and not in the next one."""
  got = _sample(['ab', 'c'], [3, 4], sampling=dataclasses.replace(GREEDY, repetition_penalty=1e-3))
  texts = [text for t in got for step in t.steps for text in (*tags.plan_parts(step.plan), step.inspection) if text]
  assert len(texts) > 6 and {len(set(text)) for text in texts} == {1} and max(map(len, texts)) > 6
  assert len({text[0] for text in texts}) > 2


def test_the_seed_decides_where_there_is_a_choice():
  again, same, other = (_sample(['ab'] * 2, s, sampling=WARM) for s in ([3, 3], [3, 4], [8, 9]))
  _assert_same(again[0], again[1])
  _assert_same(again[0], same[0])
  assert len({str(_texts(t)) for t in (same[0], same[1], *other)}) == 4
  greedy = _sample(['ab'] * 2, [3, 4])
  assert greedy[0].steps[0].plan == greedy[1].steps[0].plan
  assert np.abs(greedy[0].pictures[0].astype(int) - greedy[1].pictures[0]).max() > 20


def test_numbers_do_not_compile_the_program_again():
  _sample(['ab', 'c'], [1, 2])
  before = cycle.run._cache_size()
  _sample(['another', 'd'], [5, 6])
  for change in (
    dict(temperature=0.7),
    dict(text_guidance=4.0),
    dict(guidance_interval=(0.2, 0.8)),
    dict(timestep_shift=1.0),
    dict(flow_steps=3),
  ):
    _sample(['ab', 'c'], [1, 2], sampling=dataclasses.replace(GREEDY, **change))
  assert cycle.run._cache_size() == before
  result = PAINTER.sample(['ab', 'c', TWO_PICTURES], pictures=2)
  assert result.timings['compile_calls'] == 0


def test_fewer_pictures_are_a_cap_of_their_own():
  one, two = (PAINTER.sample(['ab', 'c', TWO_PICTURES], pictures=n).trajectories for n in (1, 2))
  assert [len(t.pictures) for t in one] == [1, 1, 3] and [len(t.pictures) for t in two] == [2, 2, 4]
  assert {t.stop for t in (*one, *two)} == {'picture_cap'}
  for shorter, longer in zip(one, two, strict=True):
    np.testing.assert_array_equal(shorter.pictures[-1], longer.pictures[-2])
  # The last picture of a process is looked at, and nothing is left open after it.
  assert all(t.steps[-1].draft is not None and t.steps[-1].inspection is None for t in one)


def test_direct_mode_is_one_picture_without_words():
  result = _sample(['ab', 'c'], [1, 2], mode='direct')
  for got in result:
    assert got.stop == trajectory.FINISHED and _texts(got) == [(None, None, None)] and len(got.pictures) == 1
  assert (result[0].final != result[1].final).any()


def test_continuing_goes_on_as_the_whole_did(many):
  """From every place of a greedy trajectory where texts follow, cut there: they are written again word for word."""
  [whole, _] = _sample(['ab', 'c'], [3, 4])
  step = whole.steps[0]
  assert step.inspection is not None and whole.steps[1].plan is not None
  after_draft = dataclasses.replace(step, inspection=None, corrected_plan=None, refined=None)
  cuts = [after_draft, step]
  for cut in cuts:
    start = dataclasses.replace(whole, steps=(cut,), stop=None)
    [got] = PAINTER.sample([start, 'c', TWO_PICTURES], seed=3).trajectories[:1]
    assert got.steps[0].inspection == step.inspection and got.steps[1].plan == whole.steps[1].plan
    np.testing.assert_array_equal(got.steps[0].draft, step.draft)
  # After an inspection that refines.
  refined = next(t for t in many if t.steps[0].rejected and t.steps[0].corrected_plan is not None)
  cut = dataclasses.replace(refined.steps[0], corrected_plan=None, refined=None)
  start = dataclasses.replace(refined, steps=(cut,), stop=None)
  [got] = PAINTER.sample([start, 'c', TWO_PICTURES], seed=3).trajectories[:1]
  assert got.steps[0].refined is not None and got.steps[0].inspection == cut.inspection


def test_an_edited_plan_is_kept_and_changes_what_follows():
  plans = '<ins>a</ins><des>b</des>', '<ins>my own words</ins><des>all of it</des>'
  starts = [trajectory.Trajectory(prompt='ab', steps=(trajectory.Step(plan=p),), stop=None) for p in plans]
  got = PAINTER.sample([*starts, TWO_PICTURES], seed=[3, 3, 99]).trajectories[:2]
  assert [t.steps[0].plan for t in got] == list(plans)
  assert np.abs(got[0].pictures[0].astype(int) - got[1].pictures[0]).max() > 5


# Scale one but for its last digit, which puts the branch and its part of the cache into the program.
NO_IMAGE_GUIDANCE = dict(image_guidance=1.0 + 1e-6)


@pytest.fixture(scope='module')
def request_and_state():
  """What was asked of the cycle and what it ended with, and the trajectories, for the program with all branches."""
  return _end(dataclasses.replace(GREEDY, **NO_IMAGE_GUIDANCE))


def _end(sampling):
  requests = _requests(['ab', 'a longer prompt', TWO_PICTURES], seeds=[3, 4, 99], pictures=[4, 4, 2])
  request = PAINTER.sample_batch(requests)
  state = cycle.run(PAINTER.graphdef, PAINTER.params, request, flow.SamplerParams.of(sampling), PAINTER.spec(sampling))
  host = jax.device_get({name: getattr(state, name) for name in results.FETCHED})
  return state, [results.parse_output(r, host, i, toy.WORDS) for i, r in enumerate(requests)]


def _requests(prompts, *, seeds, pictures):
  starts = [requests_lib.start(p, 'process') for p in prompts]
  return [
    requests_lib.Request(start=start, seed=seed, pictures=most, sampling=GREEDY)
    for start, seed, most in zip(starts, seeds, pictures, strict=True)
  ]


def test_guidance_by_pictures_of_scale_one_is_none(request_and_state, many):
  _, got = request_and_state
  for with_branch, without in zip(got, _sample(['ab', 'a longer prompt'], [3, 4]), strict=False):
    _assert_same(with_branch, without)
  # The cap of tokens is the same, too, though the cache is twice as long.
  capped = next(i for i, t in enumerate(many) if t.stop == 'token_cap')
  _assert_same(_random_pair(capped // 2, **NO_IMAGE_GUIDANCE)[capped % 2], many[capped])


@pytest.fixture(scope='module')
def forwards(request_and_state):
  """Each trajectory as a sequence read at once, as it is and without its pictures: tokens, keys, values, in order."""
  _, trajectories = request_and_state
  without = dataclasses.replace(toy.PLAIN, drop_clean=1.0, drop_vit=1.0)
  rows = [toy.row(t, CFG) for t in trajectories]
  rows += [toy.row(t, CFG, sequence_config=without, seed=0) for t in trajectories]
  budgets = packed.RowBudget(*(max(sizes) for sizes in zip(*map(packing.sizes, rows), strict=True)))
  batch = toy.batch(*(packing.pack_row([row], budgets) for row in rows))

  @jax.jit
  def read(params, batch):
    model = nnx.merge(PAINTER.graphdef, params)
    z = model.clean_latents(batch)
    nothing = kv_cache.empty(CFG, batch=len(rows), slots=0)
    _, (k, v) = model.extend(batch, z, jax.numpy.zeros(z.shape[:2]), nothing)
    return spans.concatenate(batch.und.tokens, batch.gen.tokens), k, v

  tokens, k, v = jax.device_get(read(PAINTER.params, batch))
  out = []
  for i in range(len(rows)):
    # Of the rows without pictures the noised copies are left out, too.
    kept = (tokens.segment[i] > 0) & (tokens.noised[i] == 0)
    at = np.flatnonzero(kept)[np.argsort(tokens.order[i][kept])]
    out.append((jax.tree.map(lambda x, i=i, at=at: x[i][at], tokens), k[:, i, at], v[:, i, at]))
  return out[: len(trajectories)], out[len(trajectories) :]


def _kept(state, row, segment):
  """What a row of the cache holds in a segment, in order: tokens, keys, values."""
  cache = jax.device_get(state.cache)
  at = np.flatnonzero(cache.tokens.segment[row] == segment)
  at = at[np.argsort(cache.tokens.order[row][at])]
  k, v = (np.swapaxes(x, 2, 3)[:, row, at] for x in (cache.k, cache.v))
  return jax.tree.map(lambda x: x[row][at], cache.tokens), k, v


def test_the_cache_ends_as_the_sequence_of_the_trajectory(request_and_state, forwards):
  for i, (want, k, v) in enumerate(forwards[0]):
    tokens, *kept = _kept(request_and_state[0], i, spans.FULL)
    for name in ('order', 'noised', 'position'):
      np.testing.assert_array_equal(getattr(tokens, name), getattr(want, name))
    # Numbers of spans differ; who is together does not.
    together = lambda span: (span[:, None] == span[None]) & (span > 0)[None]
    np.testing.assert_array_equal(together(tokens.span), together(want.span))
    np.testing.assert_allclose(kept, (k, v), atol=TOLERANCE)


def test_the_state_ends_where_the_sequence_does(request_and_state, forwards):
  state = jax.device_get(request_and_state[0].replace(cache=None, key=None))
  for i, (tokens, *_) in enumerate(forwards[0]):
    assert (state.order[i], state.position[i]) == (tokens.order.max() + 1, tokens.position.max() + 1)
    of_pictures = tokens.span > 0
    assert state.picture_order[i] == tokens.order[of_pictures].max()
    assert state.picture_position[i] == tokens.position[of_pictures].max() + 1
  assert (state.status == cycle.ENDED).all() and (state.stop != cycle.RUNNING).all()
  assert (
    (state.grammar.tag_state == grammar.BOUNDARY).all()
    and not state.grammar.texts_since_picture.any()
    and not state.grammar.refining.any()
  )


def test_the_text_only_branch_holds_the_texts_as_they_are_without_pictures(request_and_state, forwards):
  for i, (want, k, v) in enumerate(forwards[1]):
    tokens, *kept = _kept(request_and_state[0], i, spans.TEXT_ONLY)
    assert not tokens.span.any() and not want.span.any()
    np.testing.assert_array_equal(tokens.position, want.position)
    np.testing.assert_allclose(kept, (k, v), atol=TOLERANCE)


def test_contiguous_positions_count_the_texts_alone(request_and_state):
  closed, _ = _end(dataclasses.replace(GREEDY, **NO_IMAGE_GUIDANCE, contiguous_positions=True))
  for i in range(3):
    with_gaps, tokens = (_kept(state, i, spans.TEXT_ONLY)[0] for state in (request_and_state[0], closed))
    np.testing.assert_array_equal(tokens.order, with_gaps.order)
    np.testing.assert_array_equal(tokens.position, np.arange(len(tokens.order)))
    assert with_gaps.position[-1] > tokens.position[-1]  # there was a picture in between
    np.testing.assert_array_equal(
      *(_kept(state, i, spans.FULL)[0].position for state in (request_and_state[0], closed))
    )


def test_without_the_grammar_it_ends_too():
  sampling = dataclasses.replace(WARM, grammar=False)
  before = cycle.run._cache_size()
  for seed in range(8):
    for got in _sample(['ab', 'c'], [seed, 50 + seed], sampling=sampling):
      assert got.stop in (trajectory.FINISHED, 'picture_cap', 'token_cap')
      assert 1 <= len(got.pictures) <= GREEDY.max_pictures
      assert any(s.plan is not None for s in got.steps)
  assert cycle.run._cache_size() == before + 1


# The whole cycle is one compiled call.


def _request(prompts):
  count = len(prompts)
  return PAINTER.sample_batch(_requests(prompts, seeds=range(count), pictures=[2] * count))


def test_the_cycle_is_one_equation_that_calls_nobody_outside():
  request, knobs, program = _request(['ab']), flow.SamplerParams.of(GREEDY), PAINTER.spec(GREEDY)
  jaxpr = jax.make_jaxpr(lambda *a: cycle.run(PAINTER.graphdef, *a, program))(PAINTER.params, request, knobs)
  assert [e.params['name'] for e in jaxpr.eqns] == ['run']
  lowered = cycle.run.lower(PAINTER.graphdef, PAINTER.params, request, knobs, program).as_text()
  assert lowered.count('stablehlo.while') >= 3  # rounds, texts, Euler steps
  for outside in ('infeed', 'outfeed', 'stablehlo.send', 'stablehlo.recv', 'custom_call', 'callback'):
    assert outside not in lowered


def test_no_step_copies_the_cache():
  """XLA does so where it cannot tell that the cache is read before it is written: two copies in every step of text."""
  cfg = dataclasses.replace(CFG, attention='blockwise', scan_layers=False)
  painter = toy.painter(cfg, GREEDY)
  request = painter.sample_batch(_requests(['ab'] * 3, seeds=range(3), pictures=[2] * 3))
  knobs, program = flow.SamplerParams.of(GREEDY), painter.spec(GREEDY)
  lowered = cycle.run.lower(painter.graphdef, painter.params, request, knobs, program)
  cached = jax.tree.leaves(lowered.out_info)[0].shape
  assert cached[:3] == (cfg.depth, 3, cfg.num_kv_heads) and cached[4] == cfg.head_dim
  loops, entry = lowered.compile(compiler_options=xla_flags.undone()).as_text().split('\nENTRY ')
  of_the_cache = re.compile(rf'= f32\[{",".join(map(str, cached))}\]\S* (\S+)\(')
  assert 'scatter' in of_the_cache.findall(loops)
  assert 'copy' not in of_the_cache.findall(loops)


def test_other_kinds_of_models_fit_the_program():
  cfg = dataclasses.replace(CFG, dtype='bfloat16', prediction='x', attention='blockwise', remat='full')
  painter = toy.painter(cfg, GREEDY)
  request = painter.sample_batch(_requests(['ab'], seeds=[0], pictures=[2]))
  knobs, program = flow.SamplerParams.of(GREEDY), painter.spec(GREEDY)
  state = jax.eval_shape(lambda *a: cycle.run(painter.graphdef, *a, program), painter.params, request, knobs)
  assert state.pictures.shape == (1, 4, 16, 16, 3) and state.cache.k.dtype == 'bfloat16'


def test_nothing_crosses_to_or_from_the_host_while_it_runs(monkeypatch):
  fetched, read = [], jax_array.ArrayImpl._value
  monkeypatch.setattr(
    jax_array.ArrayImpl, '_value', property(lambda self: fetched.append(self.shape) or read.fget(self))
  )
  float(jax.numpy.zeros(()))
  assert fetched == [()]  # So that the count is one.
  knobs, program = flow.SamplerParams.of(GREEDY), PAINTER.spec(GREEDY)
  request = _request(['ab', 'c', TWO_PICTURES])
  fetched.clear()
  with jax.transfer_guard('disallow'):
    state = cycle.run(PAINTER.graphdef, PAINTER.params, request, knobs, program)
    jax.block_until_ready(state)
  assert not fetched
  with pytest.raises(jax.errors.JaxRuntimeError, match='Disallowed host-to-device'), jax.transfer_guard('disallow'):
    cycle.run(PAINTER.graphdef, PAINTER.params, request.replace(picture_limit=np.array([2, 2, 2])), knobs, program)

  # A batch is fetched once, when it is done: the fields that make trajectories.
  monkeypatch.setattr(cycle, 'run', Counted(cycle.run))
  fetched.clear()
  result = PAINTER.sample(['ab', 'c', TWO_PICTURES] * 2, batch_size=3)
  assert cycle.run.calls == 2 and result.timings['rounds'] >= 4
  assert len(fetched) == 2 * len(results.FETCHED)


class Counted:
  """A function that counts its calls."""

  def __init__(self, function):
    self._function = function
    self.calls = 0

  def __call__(self, *args):
    self.calls += 1
    return self._function(*args)

  def _cache_size(self):
    return self._function._cache_size()
