"""T2I-CompBench++'s rules by hand and against an independent reading, and GenEval 2's Soft-TIFA."""

import json

import numpy as np
import pytest

from pdgen import evaluate
from pdgen.evals import base, compbench, compbench_rules, geneval2
from pdgen.judges import base as judges_base
from tests.support import geneval_run, servers

OBJECTS = compbench_rules.read_objects(
  ['cat - cats', 'dog - dogs', 'sheep - sheep', 'teddy bear - teddy bears', 'phone - phones', 'ship - ships', '']
)


def thing(name, box=(0, 0, 9, 9), score=0.9):
  return judges_base.Found(name, None, box, score)


def row(name, count):
  return [thing(name, (20 * i, 0, 20 * i + 9, 9)) for i in range(count)]


@pytest.mark.parametrize(
  'prompt, targets',
  [
    ('two cats and a dog', [('cat', 2), ('dog', 1)]),
    ('four sheep, one teddy bear and eight dogs played', [('sheep', 4), ('teddy bear', 1), ('dog', 8)]),
    ('three teddy bears', [('teddy bear', 3)]),
    ('nine cats', []),  # The official list of numbers ends at eight.
    ('Two cats', []),  # ... and is in lower case.
    ('a quick dog', []),
    ('two', []),
  ],
)
def test_counts_are_read_from_prompts(prompt, targets):
  assert compbench_rules.counted(prompt, OBJECTS) == targets


@pytest.mark.parametrize(
  'targets, found, value, reason',
  [
    ([('cat', 2)], row('cat', 2), 1.0, ''),
    ([('cat', 2)], row('cat', 3), 0.5, 'expected 2 cat, found 3'),
    ([('cat', 2)], [], 0.0, 'expected 2 cat, found 0'),
    ([('cat', 1), ('dog', 2)], row('cat', 1) + row('dog', 1), 0.75, 'expected 2 dog, found 1'),
    ([('cat', 1)], [thing('cat', score=0.5)], 0.0, 'expected 1 cat, found 0'),
    # Nearly the same box, and one box inside of another, are one object; of another class they are two.
    ([('cat', 1)], [thing('cat'), thing('cat', (0, 0, 9.2, 9), 0.8), thing('cat', (1, 1, 3, 3), 0.7)], 1.0, ''),
    ([('cat', 1), ('dog', 1)], [thing('cat'), thing('dog')], 1.0, ''),
    ([('phone', 2)], row('cell phone', 2), 1.0, ''),
    ([('ship', 1)], row('boat', 1), 1.0, ''),
  ],
)
def test_numeracy_by_hand(targets, found, value, reason):
  score = compbench_rules.numeracy(targets, found)
  assert (score.value, score.reason) == (pytest.approx(value), reason)


def _official_place(word, a, b):
  """The place of box b seen from a, as the official script measures it: it compares the centre of b with that of a."""
  dx, dy = (b[0] + b[2] - a[0] - a[2]) / 2, (b[1] + b[3] - a[1] - a[3]) / 2
  if word in ('next to', 'on side of', 'near'):
    return 1 if min(abs(dx), abs(dy)) < 150 else 150 / max(abs(dx), abs(dy))
  width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
  common = max(0, width) * max(0, height)
  iou = common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)
  holds = {
    'on the right of': dx < 0 and abs(dx) > abs(dy),
    'on the left of': dx > 0 and abs(dx) > abs(dy),
    'on the bottom of': dy < 0 and abs(dy) > abs(dx),
    'on the top of': dy > 0 and abs(dy) > abs(dx),
  }
  return 0 if not holds.get(word) else 1 if iou < 0.1 else 0.1 / iou


def test_places_are_those_of_an_independent_reading():
  rng = np.random.default_rng(0)
  seen = set()
  for _ in range(4000):
    word = str(rng.choice([w for w in compbench_rules._RELATIONS]))
    scale = 30 if rng.random() < 0.7 else 600
    boxes = [(*c, *(c + rng.uniform(5, 30, 2))) for c in rng.uniform(0, scale, (2, 2))]
    sure = rng.uniform(0.51, 1, 2)
    things = [
      judges_base.Found(n, None, tuple(map(float, b)), float(s)) for n, b, s in zip('ab', boxes, sure, strict=True)
    ]
    place = _official_place(word, *boxes)
    wanted = 0.25 * sure.sum() + place / 2
    got = compbench_rules.spatial(('a', word, 'b'), [*things, thing('a', score=0.505)])
    assert got.value == pytest.approx(wanted if wanted >= 0.5 else 0)
    seen.add((word, 0 if place == 0 else 1 if place == 1 else 0.5))
  assert len(seen) == 4 * 3 + 3 * 2 + 1  # `on top of` has no rule.


def test_spatial_by_hand():
  left, right = thing('bird', (0, 0, 10, 10), 0.8), thing('couch', (50, 0, 60, 10), 0.6)
  asked = compbench_rules.relation('a bird on the left of a sofa')
  assert asked == ('bird', 'on the left of', 'sofa')
  assert compbench_rules.spatial(asked, [left, right]).value == pytest.approx(0.25 * 1.4 + 0.5)
  assert compbench_rules.spatial(asked, [left]) == compbench_rules.Score(0.0, 'no sofa')
  assert compbench_rules.spatial(('girl', 'near', 'bird'), [thing('person'), left]).value == pytest.approx(0.925)
  assert compbench_rules.relation('a bird and a sofa') is None
  assert compbench_rules.unknown(['bee', 'phone', 'girl'], ('cell phone', 'person')) == ['bee']


class Sees:
  """Two cats, or a cat in pictures that begin with a bright byte."""

  identity = 'cats'

  def detect(self, picture):
    return row('cat', 1 if picture[0, 0, 0] > 127 else 2)


def test_a_category_is_painted_and_scored_in_the_official_layout(tmp_path):
  (tmp_path / 'numeracy_val.txt').write_text('two cats\none cat.\nfive bees\n\ntwo cats\n')
  prompts = compbench.read_prompts(tmp_path / 'numeracy_val.txt')
  assert prompts.texts == ['two cats', 'one cat', 'five bees']
  options = dict(prompts=prompts, category='numeracy', detector=Sees(), samples=4, batch_size=2)
  objects = {**OBJECTS, 'bees': 'bee'}
  evaluator = compbench.CompBench(**options, objects=objects, classes=('cat', 'dog'))
  out = tmp_path / 'out'
  scores = evaluator.run(geneval_run.Painter(), out)
  names = sorted(p.name for p in (out / 'samples').iterdir())
  assert len(names) == 12 and 'two cats_000009.png' in names and 'one cat_000001.png' in names
  told = json.loads((out / 'vqa_result.json').read_text())
  assert [line['question_id'] for line in told] == [0, 1, 3, 4, 6, 7, 9, 10]
  assert scores.values['numeracy'].value == pytest.approx(np.mean([line['answer'] for line in told]))
  assert (scores.answered, scores.asked) == (2, 3)
  assert 'samples/five bees_000002.png: the detector does not know bee' in scores.problems
  before = {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
  assert evaluator.score(out).values == scores.values
  assert {p: p.read_bytes() for p in out.rglob('*') if p.is_file()} == before
  (out / 'samples' / 'another_000077.png').write_bytes(b'')
  (out / 'samples' / 'two cats_000001.png').write_bytes(b'')
  (out / 'samples' / 'one cat_000004.png').unlink()
  scores = evaluator.score(out)
  assert 'another_000077.png: no prompt of the set; it is not scored' in scores.problems
  assert any(p.endswith('the same number as one cat_000001.png; it is not scored') for p in scores.problems)
  assert len(scores.cards) == 7 and scores.cards[0].boxes
  with pytest.raises(ValueError, match="'a/b' cannot be"):
    compbench.CompBench(**{**options, 'prompts': base.PromptSet('x', ({'prompt': 'a/b'},))})


# --- GenEval 2 ---

QUESTIONS = [['How many cats are in the image?', 'two'], ['Is the cat green?', 'Yes']]
ROWS = [
  {'prompt': 'two green cats', 'atom_count': 3, 'vqa_list': QUESTIONS, 'skills': ['count', 'attribute']},
  {'prompt': 'a cat', 'atom_count': 4, 'vqa_list': QUESTIONS[:1], 'skills': ['count']},
  {'prompt': 'a dog', 'atom_count': 4, 'vqa_list': QUESTIONS[1:], 'skills': ['attribute']},
]


def test_soft_tifa_is_arithmetic_by_skill_and_geometric_by_prompt():
  values = geneval2.figures(ROWS, [[0.9, 0.4], [0.5], [0.0]])
  assert {name: round(e.value, 4) for name, e in values.items()} == {
    'soft_tifa_am': round((0.65 + 0.5 + 0) / 3, 4),
    'soft_tifa_gm': round((0.6 + 0.5 + 0) / 3, 4),
    'skill_attribute': 0.2,
    'skill_count': 0.7,
    'atoms_3': 0.6,
    'atoms_4': 0.25,
  }
  assert (values['skill_count'].count, values['atoms_4'].count) == (2, 2)


def test_a_judge_answers_and_its_confidence_is_the_probability(tmp_path, capsys):
  def answers(messages, body):
    sure = 0.75 if 'How many' in messages[-1]['text'] else 0.6
    return {'ok': 'green' not in messages[-1]['text'], 'reason': 'It is red.', 'correction': None, 'confidence': sure}

  file, out = tmp_path / 'geneval2_data.jsonl', tmp_path / 'out'
  file.write_text(''.join(json.dumps(r) + '\n' for r in ROWS))
  painter = geneval2.GenEval2(prompts=geneval2.read_prompts(file), judge=Sees())  # type: ignore[arg-type]
  painter.paint(geneval_run.Painter(), out)
  with servers.Server(chat=answers) as server:
    command = ['geneval2', '--score_only', f'--prompts={file}', f'--out={out}', f'--judge_url={server.url}/v1']
    evaluate.main([*command, '--judge_model=tiny-vl'])
    assert json.loads((out / 'score_lists.json').read_text()) == [[0.75, 0.4], [0.75], [0.4]]
    assert 'soft_tifa_gm' in capsys.readouterr().out and len(server.asked()) == 4
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    evaluate.main([*command, '--judge_model=tiny-vl'])
    assert len(server.asked()) == 4 and before == {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    (out / 'pictures' / '00001.png').unlink()
    (out / 'score_lists.json').unlink()
    evaluate.main([*command, '--judge_model=tiny-vl'])
    printed = capsys.readouterr().out
    assert 'These figures rest on 2 of 3.' in printed and 'a cat: no picture' in printed
    assert not (out / 'score_lists.json').exists()


@pytest.mark.parametrize(
  'change', [{'skills': ['count']}, {'skills': ['count', 'x']}, {'vqa_list': []}, {'vqa_list': ['a', 'b']}]
)
def test_rows_that_are_damaged_are_named(change, tmp_path):
  (tmp_path / 'x.jsonl').write_text(json.dumps(ROWS[1]) + '\n' + json.dumps({**ROWS[0], **change}))
  with pytest.raises(ValueError, match='row 2: it needs as many skills'):
    geneval2.read_prompts(tmp_path / 'x.jsonl')
  (tmp_path / 'x.jsonl').write_text((json.dumps(ROWS[1]) + '\n') * 2)
  with pytest.raises(ValueError, match="row 2: the prompt 'a cat' again"):
    geneval2.read_prompts(tmp_path / 'x.jsonl')
