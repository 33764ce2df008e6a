"""The photographic path over a real server: faults of every kind, budgets, stops, costs; nothing lost, no key kept."""

import dataclasses
import json
import re
import zlib

import numpy as np
import pytest
from support import foreign, servers, sketcher

from pdgen.construction import build, build_config, estimate, tools, traces
from pdgen.core import tags
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import images, records, splits
from pdgen.services import budget, errors

KEY = 'sk-test-4f9d2c7ab81e'
PROMPTS = 20
PRICE = budget.Price(prompt=1.0, completion=2.0)
COLORS = ('red', 'green', 'blue', 'yellow', 'black')
NAMES = ('cup', 'bench', 'dog', 'bottle', 'chair')


def color_of(text: str) -> tuple[int, int, int]:
  code = zlib.crc32(text.encode())
  return code & 255, code >> 8 & 255, code >> 16 & 255


def paint(request: servers.PaintRequest) -> np.ndarray:
  """A picture of one colour, that of the words it was asked for."""
  return np.full((16, 16, 3), color_of(request.prompt), np.uint8)


def answer(messages: list[dict], body: dict) -> str | dict:
  """Writer and judge at once: plans as they are shown, graphs of `A red cup on a table`, judgements by the words."""
  text = messages[-1]['text']
  if messages[-1]['pictures']:
    return verdict(text, tuple(int(v) for v in messages[-1]['pictures'][0][0, 0]))
  if 'Compare the plans with the prompt' in text:
    wrong = 'A wrong picture' in text
    words = dict(reason='the cup is gone', correction='Add a red cup.', description='A red cup.')
    return dict(ok=not wrong, step=int(wrong), **words)
  if 'Write the scene graph' in text:
    color, name = re.search(r'Description: An? (\w+) (\w+) stands', text).groups()
    cup = {'id': name, 'name': name, 'appearance': {'color': color}}
    relation = {'subject': name, 'predicate': 'on', 'object': 'table'}
    return json.dumps({'objects': [cup, {'id': 'table', 'name': 'table'}], 'relations': [relation]})
  return text.rsplit('\n', 1)[-1]


def verdict(text: str, color: tuple[int, int, int]) -> dict:
  """Right is a picture of the plan's own words, if they have no other colour than the prompt."""
  prompt = re.search(r'^Prompt: (.*)$', text, re.MULTILINE)[1]
  plan = re.search(r'^Plan of this step: (.*)$', text, re.MULTILINE)[1]
  instruction, _, description = plan.partition(' Then: ')
  stated = re.findall(rf'\b({"|".join(COLORS)}) (\w+)', prompt)
  against = any(name in description and f'{color} {name}' not in description for color, name in stated)
  shown = color in (color_of(instruction), color_of(description)) or 'picture' in plan
  wrong = against or not shown
  return {'ok': not wrong, 'reason': 'It is wrong.' if wrong else '', 'correction': None, 'confidence': 1}


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setenv('PDGEN_TEST_KEY', KEY)
  with servers.Server(chat=answer, paint=paint, key=KEY, pending=0) as made:
    yield made


def photographic(server: servers.Server, folder, *, seconds: float = 60.0, **more) -> build_config.BuildConfig:
  """20 prompts, half of them by GenEval's template, half free.

  seconds: of a request. A busy machine takes a second for some, which are then asked again.
  """
  lines = [
    f'a photo of a {COLORS[i % 5]} {NAMES[i // 5]} and a {COLORS[(i + 1) % 5]} {NAMES[(i // 5 + 1) % 5]}'
    if i % 2
    else f'A {COLORS[i % 5]} {NAMES[i // 5]} stands on a table, {i}.'
    for i in range(PROMPTS)
  ]
  file = folder / 'prompts.txt'
  file.write_text('\n'.join(lines) + '\n')
  patience = dict(key_env='PDGEN_TEST_KEY', request_seconds=seconds, total_seconds=10 * seconds)
  chat, flux = server.endpoint(**patience), server.endpoint(model='flux-kontext-pro', **patience)
  values = dict(
    heldout=0.3,
    shard_records=4,
    tries=2,
    scenes=build_config.ScenesConfig(drawn=0.0, prompts=1.0, prompt_file=str(file)),
    renderer=build_config.RendererConfig(
      name='flux_kontext', endpoint=flux, price=budget.Price(picture=0.04), size=(16, 16), poll_seconds=0.001
    ),
    writer=build_config.WriterConfig(name='openai', endpoint=chat, price=PRICE),
    judge=build_config.JudgeConfig(name='openai', endpoint=chat, price=PRICE),
    work=build_config.WorkConfig(threads=4, most_failures=50),
    multi_turn=build_config.MultiTurnConfig(samples=PROMPTS),
    conflict=build_config.ConflictConfig(
      samples=PROMPTS, negative=11, checkpoint='sketcher', traces=12, batch_size=6, kinds=('wrong_attribute',)
    ),
    alignment=build_config.AlignmentConfig(samples=PROMPTS, negative=13),
  )
  return build_config.BuildConfig(**{**values, **more})


def built(config, subset, out, **more):
  return build.build(config, subset, out, make_painter=lambda checkpoint: sketcher.Sketcher(), **more)


def check_complete(out, config: build_config.BuildConfig, subset: str) -> list[trajectory_lib.Trajectory]:
  """Every sample is built once, or all its attempts are listed with reasons."""
  made = [t for split in splits.SPLITS for t in records.read(out / split)]
  ids = [t.provenance.id for t in made]
  rows = [json.loads(line) for line in (out / build.REJECTED).read_text().splitlines()]
  given_up = [f'{subset}-{row["row"] - 1}' for row in rows if row['key'] == f'attempt {config.tries}']
  assert len(set(ids)) == len(ids) and sorted(ids + given_up) == sorted(f'{subset}-{i}' for i in range(PROMPTS))
  places = [(row['row'], row['key']) for row in rows]
  assert len(set(places)) == len(places) and all(row['file'] == subset and ': ' in row['reason'] for row in rows)
  for file in out.rglob('*'):
    assert not file.is_file() or KEY.encode() not in file.read_bytes(), f'the key is in {file}'
  return made


@pytest.mark.parametrize('subset', build_config.SUBSETS)
def test_faults_lose_and_double_nothing(server, tmp_path, subset):
  for number, fault in enumerate(
    [
      servers.status(429, retry_after=0),
      servers.status(500),
      servers.garbage(),
      servers.half_json(),
      servers.wrong_shape(),
      servers.hang(),
      servers.reset(),
      servers.cut_off(),
      servers.echo_key(400),
      servers.echo_key(500),
    ]
  ):
    server.fail(fault, times=2 if number % 2 else 1, path='chat' if number % 3 else 'flux')
  broken = servers.raw(json.dumps({'choices': [{'message': {'content': '{"ok": "perhaps"}'}}]}).encode())
  server.fail(broken, times=4, path='chat')
  config, out = photographic(server, tmp_path, seconds=0.5), tmp_path / 'out'
  counts = built(config, subset, out)
  made = check_complete(out, config, subset)
  assert counts.kept == len(made) >= PROMPTS - 4
  for t in made:
    own = t.provenance
    assert own.cost.calls > 1 and own.cost.money > 0 and own.verdicts
    assert own.renderer.startswith('flux-kontext-pro at 127.0.0.1') and own.judge.startswith('tiny-vl at')
    assert any('tiny-vl-2026-11@fp_1' == v.get('by') for v in own.verdicts)
    assert sum(step.rejected for step in t.steps) == len(own.errors)
  if subset == 'conflict':
    kinds = [v['verdict'] for v in traces.verdicts(out / traces.FOLDER)]
    assert len(kinds) == 12 and kinds.count(traces.WRONG) >= 2
    own = [t for t in made if t.provenance.source == traces.SOURCE and t.provenance.errors]
    assert own and all(t.stop is None for t in own)
    assert {tags.refine_instruction(t.steps[-1].inspection) for t in own} == {'Add a red cup.'}
    assert {t.provenance.source for t in made} >= {traces.SOURCE, 'injected'}
  assert not (out / build.FINISHED).exists()


@pytest.mark.parametrize('subset', build_config.SUBSETS)
def test_a_dry_run_counts_the_calls_of_a_real_run(server, tmp_path, monkeypatch, subset):
  config = photographic(server, tmp_path, scenes=build_config.ScenesConfig())  # A writer's graphs are not known before.
  config = dataclasses.replace(config, conflict=dataclasses.replace(config.conflict, checkpoint=''))
  wanted = estimate.dry_run(config, subset, limit=6)
  assert not server.seen and wanted.counted == 6 and 'calls, of them' in wanted.words()
  real = tools.Attempt.judged

  def judged(self, question, *, wanted):
    return dataclasses.replace(real(self, question, wanted=wanted), ok=wanted)

  monkeypatch.setattr(tools.Attempt, 'judged', judged)
  counts = built(config, subset, tmp_path / 'out', limit=6)
  assert counts.kept == 6 - wanted.rejected > 3
  assert len(server.asked()) == wanted.cost.calls > 20
  assert len(server.asked('flux')) == wanted.cost.pictures > 8
  assert wanted.cost.money > 0.04 * wanted.cost.pictures


def test_a_large_build_is_estimated_from_its_beginning(tmp_path, server, monkeypatch):
  config = photographic(server, tmp_path, scenes=build_config.ScenesConfig())
  monkeypatch.setattr(estimate, 'MOST', 5)
  whole = estimate.dry_run(config, 'multi_turn')
  part = estimate.dry_run(config, 'multi_turn', limit=5)
  assert (whole.samples, whole.counted, part.samples) == (PROMPTS, 5, 5)
  assert whole.cost.calls == 4 * part.cost.calls and whole.cost.money == pytest.approx(4 * part.cost.money, abs=1e-3)


def test_a_spent_budget_stops_and_more_of_it_goes_on(server, tmp_path):
  whole, out = tmp_path / 'whole', tmp_path / 'out'
  config = photographic(server, tmp_path)
  built(config, 'multi_turn', whole)
  asked = len(server.asked())
  for calls in (20, 45):
    poor = dataclasses.replace(config, budget=build_config.BudgetConfig(calls=calls))
    with pytest.raises(errors.BudgetExhausted):
      built(poor, 'multi_turn', out)
    assert len(server.asked()) - asked <= calls
  built(config, 'multi_turn', out)
  assert len(server.asked()) == 2 * asked, 'an answer was paid for twice'
  made, again = (check_complete(folder, config, 'multi_turn') for folder in (whole, out))
  assert [t.prompt for t in made] == [t.prompt for t in again]
  for a, b in zip(made, again, strict=True):
    assert [step.plan for step in a.steps] == [step.plan for step in b.steps]
    np.testing.assert_array_equal(a.final, b.final)
  assert budget.Budget(path=out / tools.BUDGET).spent.calls == asked


def test_finished_samples_of_a_stopped_build_are_not_made_again(server, tmp_path):
  config, out = photographic(server, tmp_path, shard_records=1000), tmp_path / 'out'

  def stop(counts, wanted):
    raise KeyboardInterrupt

  with pytest.MonkeyPatch.context() as patch:
    # Ten rows are of 5 to 10 samples, and at most 8 more are begun by then: two at least are left for the second run.
    patch.setattr(build.run, 'write_entries', _stopping(build.run.write_entries, 10))
    with pytest.raises(KeyboardInterrupt):
      built(config, 'multi_turn', out, progress=stop)
  kept = len([path for path in (out / build.FINISHED).rglob('*') if path.is_file()])
  assert 5 <= kept < PROMPTS, 'nothing is safe in the record sets, all is in files'
  asked = len(server.asked())
  costs = built(config, 'multi_turn', out)
  made = check_complete(out, config, 'multi_turn')
  assert costs.kept == len(made) and sum(t.provenance.cost.calls for t in made) == len(server.asked()) > asked


def _stopping(write, rows: int):
  """`write_entries` that reports every so many rows."""
  return lambda *args, **options: write(*args, **{**options, 'progress_rows': rows})


def test_services_that_fail_all_the_time_stop_the_build(server, tmp_path):
  work = build_config.WorkConfig(threads=2, most_failures=3)
  config, out = photographic(server, tmp_path, work=work), tmp_path / 'out'
  server.key = 'another'
  with pytest.raises(errors.Unavailable, match=r'3 samples in a row failed .*401.*PDGEN_TEST_KEY'):
    built(config, 'multi_turn', out)
  server.key = KEY
  assert built(config, 'multi_turn', out).kept == PROMPTS, 'what failed then is made now'
  check_complete(out, config, 'multi_turn')


def test_pictures_of_a_source_are_explained_or_corrected(server, tmp_path):
  """Rows of GenRef (paper); one whose good picture the judge rejects is replaced by a rendered sample."""
  foreign.write_tar(tmp_path / 'ref' / 'a.tar', {f'{n:04d}': foreign.gen_ref(n) for n in range(PROMPTS)})
  alignment = build_config.AlignmentConfig(
    samples=PROMPTS, negative=13, source=str(tmp_path / 'ref'), source_share=0.5, kinds=('wrong_attribute', 'extra')
  )
  config, out, refused = photographic(server, tmp_path, alignment=alignment), tmp_path / 'out', []
  shown = lambda number: zlib.crc32(images.open_picture(foreign.gen_ref(number)['bad_image.jpg']).tobytes())
  bad = {shown(number) for number in range(PROMPTS)}

  def judged(messages, body):
    if not messages[-1]['pictures'] or 'Paint' not in messages[-1]['text'] or ' rings' not in messages[-1]['text']:
      return answer(messages, body)
    right = zlib.crc32(messages[-1]['pictures'][0].tobytes()) not in bad
    if 'Prompt: 3 rings' in messages[-1]['text']:
      refused.append(right)
      right = False
    return {'ok': right, 'reason': '' if right else 'A ring is too much.', 'correction': None, 'confidence': 1}

  server.chat = judged
  built(config, 'alignment', out)
  made = check_complete(out, config, 'alignment')
  own = [t for t in made if t.provenance.source == 'GenRef']
  assert 7 <= len(own) <= 11 and refused and {t.provenance.source for t in made} > {'GenRef', 'injected'}
  for t in own:
    (step,) = t.steps
    assert t.metadata == {'subset': 'rule'} and t.prompt.endswith(' rings') and t.prompt != '3 rings'
    if t.provenance.errors:
      number = t.prompt.partition(' ')[0]
      assert step.inspection == (
        f'This generation diverges from the prompt. A ring is too much. To correct the image, '
        f'<refine>Remove ring {number}.</refine>'
      )
      assert zlib.crc32(step.draft.tobytes()) in bad and not step.draft_is_target
    else:
      assert not step.rejected and step.refined is None
