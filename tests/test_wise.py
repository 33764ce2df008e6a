"""WISE: figures by the official formulas, files with every kind of bad entry, a judge behind a real server."""

import json
import math
import os
import pathlib

import numpy as np
import pytest

from pdgen import evaluate
from pdgen.evals import base, wise, wise_rules
from pdgen.services import cache as cache_lib
from pdgen.services import chat, errors
from tests.support import geneval_run, servers

LEGACY, VERIFIED = wise_rules.LEGACY, wise_rules.VERIFIED
IDS = (1, 2, 401, 568, 701, 801, 901)  # of every legacy category


def prompts(ids=IDS, version=LEGACY):
  rows = tuple({'Prompt': f'riddle {n}', 'Explanation': f'answer {n}', 'prompt_id': n} for n in ids)
  return base.PromptSet('riddles', rows, 'Prompt')


def entry(number, c=2, r=1, a=0):
  return {'prompt_id': number, 'Subcategory': 'x', 'consistency': c, 'realism': r, 'aesthetic_quality': a}


def test_scores_and_both_overalls_are_the_official_formulas():
  rng = np.random.default_rng(0)
  for version, weights in (
    (LEGACY, (0.4, 0.167, 0.133, 0.1, 0.1, 0.1)),
    (VERIFIED, (0.4, 0.12, 0.12, 0.12, 0.12, 0.12)),
  ):
    names = list(version.metrics)
    entries = {n: {m: int(rng.integers(0, version.most + 1)) for m in names} for n in range(1, 1001)}
    values, problems = wise_rules.figures(entries, version, asked=range(1, 1001))
    assert problems == []
    ends = (400, 567, 700, 800, 900, 1000) if version is LEGACY else (400, 520, 640, 760, 880, 1000)
    means, first = [], 1
    for end in ends:
      of = [entries[n] for n in range(first, end + 1)]
      if version is LEGACY:
        scores = [(0.7 * e['consistency'] + 0.2 * e['realism'] + 0.1 * e['aesthetic_quality']) / 2 for e in of]
      else:
        scores = [float(e['score']) for e in of]
      means.append(sum(scores) / len(scores))
      first = end + 1
    names = ('CULTURE', 'TIME', 'SPACE', 'BIOLOGY', 'PHYSICS', 'CHEMISTRY')
    assert [values[n].value for n in names] == pytest.approx(means)
    assert values['unweighted'].value == pytest.approx(np.mean(means))
    assert values['official'].value == pytest.approx(np.dot(means, weights))
    assert all(e.low <= e.value <= e.high for e in values.values())


def test_the_papers_overall_is_an_unweighted_mean():
  """The six categories of its table: .76 is their mean, and .754 is what the official weights give."""
  means = (0.74, 0.82, 0.73, 0.70, 0.76, 0.78)
  ids = (1, 401, 568, 701, 801, 901)
  assert sum(c.weight for c in LEGACY.categories) == pytest.approx(1) == sum(c.weight for c in VERIFIED.categories)
  assert [LEGACY.category(n).name for n in ids] == [c.name for c in LEGACY.categories]
  assert round(float(np.mean(means)), 2) == 0.76
  assert round(sum(c.weight * m for c, m in zip(LEGACY.categories, means, strict=True)), 3) == 0.754


@pytest.mark.parametrize(
  'text, values, wrong',
  [
    ('Consistency: 2\nRealism: 1\nAesthetic Quality: 0', (2, 1, 0), ''),
    ('**Consistency**: 2\n**Realism:** 1\n*Aesthetic Quality* : 0', (2, 1, 0), ''),
    ('- consistency (0-2): 2/2\n- REALISM = 1\n- Aesthetic_Quality: 0 of 2', (2, 1, 0), ''),
    ('{"consistency": 2, "realism": 1, "aesthetic_quality": 0}', (2, 1, 0), ''),
    ('Consistency：2\nRealism：1\nAesthetic Quality：0', (2, 1, 0), ''),
    ('<think>Consistency: 0, perhaps.</think>\nConsistency: 2\nRealism: 1\nAesthetic Quality: 0', (2, 1, 0), ''),
    ('perhaps Consistency: 1?</think> Consistency: 2\nRealism: 1\nAesthetic Quality: 0', (2, 1, 0), ''),
    ('2\n1\n0', (2, 1, 0), ''),
    ('2\n1', None, 'no consistency'),
    ('Consistency: 2\nRealism: 1', None, 'no aesthetic_quality'),
    ('Consistency: 2\nRealism: 1\nAesthetic Quality: 0\nConsistency: 1', None, 'consistency is 1 and 2'),
    ('Consistency: 10\nRealism: 1\nAesthetic Quality: 0', None, 'consistency is 10, not one of 0, 1, 2'),
    ('Consistency: 1.5\nRealism: 1\nAesthetic Quality: 0', None, 'consistency is 1.5, not one of 0, 1, 2'),
    ('Consistency: -1\nRealism: 1\nAesthetic Quality: 0', None, 'consistency is -1'),
    ('I cannot judge this picture.', None, 'no consistency'),
    ('', None, 'no consistency'),
  ],
)
def test_answers_of_a_judge_are_read_or_refused(text, values, wrong):
  got, what = wise_rules.parse(text, LEGACY)
  assert got == (None if values is None else dict(zip(LEGACY.metrics, values, strict=True)))
  assert wrong in what and (not what) == (values is not None)


@pytest.mark.parametrize(
  'text, score',
  [('Score: 1', 1), ('**Score:** 0', 0), ('1', 1), ('Score: 2', None), ('Score: 1\nScore: 0', None), ('yes', None)],
)
def test_verdicts_are_read_or_refused(text, score):
  got, _ = wise_rules.parse(text, VERIFIED)
  assert got == (None if score is None else {'score': score})


BAD = [
  ('{"prompt_id": 5, "consis', 'no whole JSON object'),
  ('[5, 2, 1, 0]', 'a list, no JSON object'),
  ('null', 'a NoneType, no JSON object'),
  (json.dumps({k: v for k, v in entry(5).items() if k != 'prompt_id'}), 'no prompt_id'),
  (json.dumps({**entry(5), 'prompt_id': '5'}), "prompt_id is '5', no whole number"),
  (json.dumps({**entry(5), 'prompt_id': 5.0}), 'prompt_id is 5.0, no whole number'),
  (json.dumps({**entry(5), 'prompt_id': True}), 'prompt_id is True, no whole number'),
  (json.dumps(entry(0)), 'prompt_id 0 is out of range: 1 to 1000'),
  (json.dumps(entry(1001)), 'prompt_id 1001 is out of range'),
  (json.dumps(entry(5, c='2')), "prompt 5: consistency is '2', no number"),
  (json.dumps(entry(5, r=3)), 'prompt 5: realism is 3, not one of 0, 1, 2'),
  (json.dumps(entry(5, a=-1)), 'prompt 5: aesthetic_quality is -1, not one of'),
  (json.dumps(entry(5, a=0.5)), 'aesthetic_quality is 0.5, not one of'),
  (json.dumps(entry(5, c=math.nan)), 'consistency is nan, not one of'),
  (json.dumps(entry(5, c=True)), 'consistency is True, no number'),
  (json.dumps(entry(5, c=None)), 'consistency is None, no number'),
  (json.dumps({'prompt_id': 5, 'consistency': 2, 'realism': 1}), 'prompt 5: no aesthetic_quality'),
]


def test_every_kind_of_bad_entry_is_named_and_counts_nowhere(tmp_path):
  file, other = tmp_path / 'one.jsonl', tmp_path / 'two.json'
  good = [json.dumps(entry(n)) for n in IDS]
  again, disputed = json.dumps(entry(1)), json.dumps(entry(2, c=0))
  file.write_text('\n'.join([*good, *(line for line, _ in BAD), again, '', disputed]) + '\n{"prompt_id": 6')
  other.write_text(json.dumps([entry(401), 'x', entry(401, a=2)]))
  reading = wise_rules.read_results([file, other], LEGACY)
  assert list(reading.entries) == [n for n in IDS if n not in (2, 401)]
  for number, (_, words) in enumerate(BAD, len(good) + 1):
    assert any(p.startswith(f'one.jsonl, line {number}: ') and words in p for p in reading.problems), words
  told = '\n'.join(reading.problems)
  assert 'line 25: prompt 1 again, as in one.jsonl, line 1; it counts once' in told
  assert 'line 27: prompt 2 again, otherwise than in one.jsonl, line 2; neither counts' in told
  assert 'one.jsonl, line 28: no whole JSON object' in told
  assert 'two.json, entry 2: a str, no JSON object' in told and 'two.json, entry 3: prompt 401 again' in told
  assert len(reading.problems) == len(BAD) + 6
  values, problems = wise_rules.figures(reading.entries, LEGACY, asked=[*IDS, 3, 4, 5])
  assert problems == ['without a score: 5 of 10 prompts: 2-5, 401']
  assert values['CULTURE'].count == 1 and values['TIME'].count == 0
  # A category without an answer has no mean, and so no overall has one: it is not a mean of the rest.
  assert all(math.isnan(values[n].value) for n in ('TIME', 'unweighted', 'official'))
  _, problems = wise_rules.figures({7: entry(7)}, LEGACY, asked=[8])
  assert problems[0] == 'prompt 7: not among those asked; it does not count'


def test_results_of_others_are_scored_alone(tmp_path, capsys):
  file, results = tmp_path / 'wise.json', tmp_path / 'scores.jsonl'
  file.write_text(json.dumps(list(prompts().rows)))
  results.write_text('\n'.join(json.dumps(entry(n)) for n in IDS[1:]) + '\n{"prompt')
  evaluate.main(['wise', f'--prompts={file}', f'--results={results}', f'--out={tmp_path / "out"}'])
  printed = capsys.readouterr().out
  assert 'These figures rest on 6 of 7.' in printed and 'scores.jsonl, line 7: no whole JSON object' in printed
  told = json.loads((tmp_path / 'out' / 'scores.json').read_text())
  assert told['values']['official']['value'] == pytest.approx(0.8) == told['values']['unweighted']['value']
  assert {line['source'] for line in told['published_by_others']} >= {'arXiv 2604.04746'}
  results.write_text('nothing')
  with pytest.raises(SystemExit):
    evaluate.main(['wise', f'--prompts={file}', f'--results={results}'])
  assert 'No prompt has a score.' in capsys.readouterr().err


def riddles_judge(messages, body):
  """Consistency by the picture's red; the prompt of number 2 gets no answer that can be read."""
  (message,) = messages
  number = int(message['text'].split('riddle ')[1].split('\n')[0])
  if number == 2:
    return 'A fine picture.'
  return f'**Consistency**: {2 if message["pictures"][0][0, 0, 0] > 128 else 1}\nRealism: 1\nAesthetic Quality: 0'


def make(server, folder, **options):
  chats = chat.Chat(server.endpoint(), cache=cache_lib.Cache(folder / 'cache'), **options)
  return wise.Wise(prompts=prompts(), version=LEGACY, judge=wise.WiseJudge(chats, LEGACY))


def test_a_chat_model_judges_pictures_and_a_killed_run_goes_on(tmp_path):
  files = lambda folder: {p.name: p.read_bytes() for p in folder.iterdir()}
  with servers.Server(chat=riddles_judge) as server:
    scores = make(server, tmp_path / 'a').run(geneval_run.Painter(), tmp_path / 'whole')
    assert (scores.answered, scores.asked) == (6, 7) and len(server.asked()) == 6 + 3
    assert scores.problems == [
      '2.png: no answer of 3 can be read: no consistency',
      'without a score: 1 of 7 prompts: 2',
    ]
    assert {row['by'] for row in scores.rows} == {'tiny-vl-2026-11@fp_1'}
    lines = [json.loads(x) for x in (tmp_path / 'whole' / wise.RESULTS).read_text().splitlines()]
    assert [line['prompt_id'] for line in lines] == [n for n in IDS if n != 2]
    again = wise_rules.read_results([tmp_path / 'whole' / wise.RESULTS], LEGACY)
    assert again.problems == () and wise_rules.figures(again.entries, LEGACY, asked=IDS)[0] == scores.values
    assert [card.verdict for card in scores.cards].count('unscored') == 1
    # The server is gone after two questions, four times: what was answered is not asked again.
    out = tmp_path / 'out'
    evaluator = make(server, tmp_path / 'b')
    evaluator.paint(geneval_run.Painter(), out)
    for number in range(4):
      single = wise.Wise(
        prompts=prompts(),
        version=LEGACY,
        judge=wise.WiseJudge(
          chat.Chat(server.endpoint(concurrency=1, tries=1), cache=cache_lib.Cache(tmp_path / 'b')), LEGACY
        ),
      )
      left = Fails(single.judge, after=2)
      with pytest.raises(errors.Unavailable):
        wise.Wise(prompts=prompts(), version=LEGACY, judge=left).score(out)
      assert (out / wise.LOG).read_text().count('\n') == number + 1  # The other one was that of number 2.
    assert evaluator.score(out).values == scores.values
    assert files(out) == files(tmp_path / 'whole')
    before = len(server.asked())
    evaluator.score(out)
    assert len(server.asked()) == before  # All is kept; even the three tries of number 2 are in the cache.
  with pytest.raises(FileNotFoundError, match='expected <prompt_id>.png'):
    evaluator.score(tmp_path / 'a')


class Fails(wise.WiseJudge):
  """A judge whose server is gone after some answers."""

  def __init__(self, judge, *, after):
    super().__init__(judge.chat, judge.version)
    object.__setattr__(self, 'left', [after])

  def rate(self, about, picture):
    if self.left[0] <= 0:
      raise errors.Unavailable('gone')
    self.left[0] -= 1
    return super().rate(about, picture)


def test_a_spent_budget_ends_the_command_with_what_is_kept(tmp_path, capsys):
  out, file = tmp_path / 'out', tmp_path / 'wise.json'
  file.write_text(json.dumps(list(prompts().rows)))
  with servers.Server(chat=riddles_judge) as server:
    make(server, tmp_path).paint(geneval_run.Painter(), out)
    command = ['wise', '--score_only', f'--prompts={file}', f'--out={out}', f'--judge_url={server.url}/v1']
    command += ['--judge_model=tiny-vl', '--judge_concurrency=1']
    with pytest.raises(SystemExit):
      evaluate.main([*command, '--max_calls=5'])
    assert 'budget' in capsys.readouterr().err and len(server.asked()) == 5
    kept = (out / wise.LOG).read_text().count('\n')
    evaluate.main([*command, '--max_calls=50'])
    assert kept >= 1 and len(server.asked()) == 5 + 3 + 6 - kept
    assert 'These figures rest on 6 of 7.' in capsys.readouterr().out
    page = (out / 'index.html').read_text()
    assert page.count('<article ') == 7 and 'answer 401' in page
    with pytest.raises(SystemExit):
      evaluate.main(command[:4])
    assert 'Give a judge' in capsys.readouterr().err


def test_wordings_are_files_with_places_for_the_prompt(tmp_path, capsys):
  file, wording = tmp_path / 'wise.json', tmp_path / 'wording.txt'
  file.write_text(json.dumps(list(prompts().rows)))
  wording.write_text('Judge {PROMPT}')
  with pytest.raises(SystemExit):
    evaluate.main(['wise', f'--prompts={file}', f'--wording={wording}', f'--out={tmp_path / "o"}', '--score_only'])
  assert 'must hold {PROMPT} and {EXPLANATION}' in capsys.readouterr().err
  with servers.Server(chat=riddles_judge) as server:
    judge = wise.WiseJudge(chat.Chat(server.endpoint()), LEGACY, 'Rate riddle 1\n {EXPLANATION} {PROMPT}')
    assert judge.rate(prompts().rows[0], np.zeros((2, 2, 3), np.uint8))['consistency'] == 1
    assert server.seen[0].body['messages'][0]['content'][0]['text'] == 'Rate riddle 1\n answer 1 riddle 1'
    assert judge.identity != wise.WiseJudge(chat.Chat(server.endpoint()), LEGACY).identity


@pytest.mark.parametrize(
  'text, words',
  [
    ('[{"Prompt": "a", "Explanation": "b"}]', 'prompt_id None is no number of its own'),
    ('[{"Prompt": "a", "prompt_id": 1}]', 'no object with Prompt and Explanation'),
    (
      '[{"Prompt": "a", "Explanation": "b", "prompt_id": 1}, {"Prompt": "a", "Explanation": "b", "prompt_id": 1}]',
      'entry 2',
    ),
    ('[{"Prompt"', 'no whole JSON'),
    ('[]', 'no rows'),
  ],
)
def test_prompts_that_are_damaged_are_named(text, words, tmp_path):
  (tmp_path / 'wise.json').write_text(text)
  with pytest.raises(ValueError, match=words):
    wise.read_prompts(tmp_path / 'wise.json', LEGACY)


def test_the_official_files_are_read():
  folder = os.environ.get('PDGEN_WISE')
  if not folder:
    pytest.skip('PDGEN_WISE names no folder with wise_legacy.json and wise_verified.json')
  for version in (LEGACY, VERIFIED):
    read = wise.read_prompts(pathlib.Path(folder) / f'{version.name}.json', version)
    assert sorted(row['prompt_id'] for row in read.rows) == list(range(1, 1001))
    kinds = {'Cultural knowledge': 'CULTURE', 'time': 'TIME', 'Space': 'SPACE', 'Biology': 'BIOLOGY'}
    kinds |= {'Physical Knowledge': 'PHYSICS', 'Chemistry': 'CHEMISTRY'}
    assert all(version.category(row['prompt_id']).name == kinds[row['Category']] for row in read.rows)
