"""Facts in prompts: what is held out is not trained, data without facts stay as they are, figures of known rows."""

import collections
import dataclasses
import json
import runpy

import numpy as np
import pytest

from pdgen import evaluate, testing
from pdgen.core import config as config_lib
from pdgen.core.trajectory import PromptSpec, Step, Trajectory
from pdgen.data import record_codec, sources, tokenizers
from pdgen.evals import base, in_training, knowledge
from pdgen.worlds import shapes
from pdgen.worlds.shapes import knowledge as facts
from pdgen.worlds.shapes import language, renderer, scenes

SOURCE = config_lib.SourceConfig(
  kind='world', name='shapes', mixture=(('direct', 0.5), ('multi_turn', 0.5)), knowledge=0.5
)


def test_what_is_held_out_is_never_a_training_prompt_and_its_parts_are():
  asked = set()
  for i, row in enumerate(shapes.prompts('train', per_task=300)):
    plain = Trajectory(prompt=row['prompt'], steps=(), spec=PromptSpec.from_row(row))
    made = facts.asked_by_fact(plain, seed=5, index=i)
    asked.add(made.prompt)
    assert (made.prompt != plain.prompt) == ('knowledge' in made.metadata) and made.spec == plain.spec
  pools = {
    split: {r['prompt']: r for kind in facts.KNOWLEDGE for r in facts._pool(split, kind)}
    for split in facts.KNOWLEDGE_SPLITS
  }
  assert len(asked & set(pools['trained'])) > 200
  for split in ('phrasing', 'combination', 'chain'):
    assert pools[split] and not asked & set(pools[split])
    assert not set(pools['trained']) & set(pools[split])
  # Words of held-out prompts are words of training: only a part that was never seen could not be known.
  known = set(' '.join(asked).split())
  unknown = {word for split in ('phrasing', 'chain') for prompt in pools[split] for word in prompt.split()} - known
  assert not unknown
  held = [r for r in pools['combination'].values()]
  assert all(shapes.parse(r['plain']) and facts.prompt_space.is_held_out(r) for r in held)


def test_facts_mean_what_people_take_them_to_mean():
  rows = {r['prompt']: r['plain'] for s in facts.KNOWLEDGE_SPLITS for k in facts.KNOWLEDGE for r in facts._pool(s, k)}
  for prompt, plain in {
    'a figure of three sides': 'a triangle',
    'a shape that has no sides': 'a ring',
    'a bar in the color of grass': 'a green bar',
    'as many rings as a tricycle has wheels': 'three rings',
    'crosses, one for each of the eyes of a face': 'two crosses',
    'a square not right of but the opposite a ring': 'a square left of a ring',
    'a square opposite of below a ring': 'a square above a ring',
    'a pole opposite of white': 'a black pole',
    'as many triangles as a triangle has sides': 'three triangles',
    'a cross in the opposite of the color of a swan': 'a black cross',
    'a shape with as many equal sides as a dog has legs': 'a square',
  }.items():
    assert rows['a photo of ' + prompt] == 'a photo of ' + plain


def test_prompts_say_one_thing_each_and_the_tokenizer_writes_them():
  tokenizer, seen = tokenizers.load('shapes'), collections.defaultdict(set)
  for split in facts.KNOWLEDGE_SPLITS:
    rows = facts.knowledge_prompts(split, per_kind=20, seed=1)
    assert rows == facts.knowledge_prompts(split, per_kind=20, seed=1)
    for row in rows:
      seen[row['prompt']].add(json.dumps([row['include'], row.get('exclude')]))
      assert tokenizer.decode(tokenizer.encode(row['prompt'])) == row['prompt']
      assert shapes.parse(row['plain']).to_row('')['include'] == row['include']
  assert {len(meant) for meant in seen.values()} == {1}
  with pytest.raises(ValueError, match="Unknown split 'test'"):
    facts.knowledge_prompts('test', per_kind=1)


def test_a_source_asks_its_share_by_facts_and_leaves_the_rest_as_it_was():
  plain, asked = (
    sources.WorldSource('shapes', mixture=SOURCE.mixture, knowledge=share, seed=3) for share in (0.0, 0.5)
  )
  told = [(plain[i], asked[i]) for i in range(120)]
  same = [record_codec.encode(a, name='')[1] == record_codec.encode(b, name='')[1] for a, b in told]
  assert 0.4 < np.mean(same) < 0.65
  for before, after in told:
    assert after.metadata.get('plain', after.prompt) == before.prompt and after.spec == before.spec
    assert [s.plan for s in after.steps] == [s.plan for s in before.steps]
  assert plain.fingerprint() == sources.WorldSource('shapes', mixture=SOURCE.mixture, seed=3).fingerprint()
  little = sources.WorldSource('shapes', mixture=SOURCE.mixture, knowledge=1e-9, seed=3)
  assert len({s.fingerprint() for s in (plain, asked, little)}) == 3


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    (dict(kind='records', name='a', knowledge=0.5), 'of a world'),
    (dict(kind='world', name='a', knowledge=1.5), 'share'),
  ],
)
def test_a_share_of_facts_is_one_of_a_world(options, words):
  with pytest.raises(ValueError, match=words):
    config_lib.SourceConfig(**options)


def test_a_world_without_facts_is_named():
  class Plain:
    __name__, KINDS = 'plain', ('a',)

    def trajectory(self, kind, *, seed, index):
      raise AssertionError

  with pytest.raises(ValueError, match=r'The world plain is no KnowingWorld: it lacks .*asked_by_fact'):
    sources.WorldSource(Plain(), knowledge=0.1)


def test_the_pair_of_configs_takes_equal_compute():
  from pdgen.cost import training_flops

  get_config = runpy.run_path('configs/shapes_knowledge.py')['get_config']
  process, direct = (config_lib.from_config_dict(get_config(mode)) for mode in ('process', 'direct'))
  spent = [training_flops.train_flops(c)['total'] * c.train.steps for c in (process, direct)]
  assert spent[0] == pytest.approx(spent[1], rel=0.002)
  assert (process.data.mode, direct.data.mode) == ('process', 'direct')
  assert all(c.data.sources[0].knowledge == process.data.sources[0].knowledge > 0 for c in (process, direct))
  with pytest.raises(ValueError, match='Known'):
    get_config('both')


# --- the evaluator ---


@dataclasses.dataclass(frozen=True)
class Painted:
  trajectories: list
  timings: dict
  tokens: list


class Paints:
  """Plain prompts are painted right. By fact: trained ones right; of the others every second, its plan wrong."""

  def __init__(self, *, killed_in=None):
    self.config = config_lib.Config()
    self.killed_in, self.calls = killed_in, 0
    self.meant = {r['prompt']: r for r in ROWS} | {r['plain']: r for r in ROWS}

  def sample(self, prompts, *, mode=None, seed=0, batch_size=None, **_):
    if self.calls == self.killed_in:
      raise KeyboardInterrupt
    self.calls += 1
    return Painted(
      [self.paint(p, s, mode) for p, s in zip(prompts, seed, strict=True)], {'seconds': 1.0}, [1] * len(seed)
    )

  def paint(self, prompt, seed, mode):
    row = self.meant[prompt]
    is_known = prompt == row['plain'] or row['split'] == 'trained' or seed % 2 == 0
    [clause] = row['include']
    right = tuple(
      scenes.Object(clause['class'], clause.get('color', 'red'), cell) for cell in (0, 2, 6, 8)[: clause['count']]
    )
    wrong = (scenes.Object('pole', 'pink', 4),)
    shown, said = (right if is_known else wrong), (wrong if is_known and prompt != row['plain'] else right)
    if row['split'] == 'trained':
      said = right
    plan = None
    if mode == 'process':
      group = language.groups(said)[0]
      plan = f'<ins>Add it.</ins><des>The image shows {language.named(group)} {language.at(group)}.</des>'
    step = Step(plan=plan, draft=renderer.render(shown))
    return Trajectory(prompt=prompt, steps=(step,), mode=mode)


ROWS = tuple(
  row
  for split in facts.KNOWLEDGE_SPLITS
  for row in facts.knowledge_prompts(split, per_kind=4)
  if row['knowledge'] in ('color', 'count')
)


def evaluator(**changes):
  options = dict(
    prompts=base.PromptSet('facts', ROWS),
    detector=in_training.judges.detector('exact', shapes),
    described=shapes.described,
  )
  return knowledge.Knowledge(**{**options, 'batch_size': 1, **changes})


def test_figures_of_known_paintings():
  scores = evaluator().run(Paints(), None)
  value = lambda name: (scores.values[name].value, scores.values[name].count)
  assert value('trained') == (1, 8) and value('phrasing') == (0.5, 8) and value('chain/count') == (0.5, 4)
  assert scores.values['heldout'].value == pytest.approx(0.5)
  assert value('plain/phrasing') == (1, 8) and value('cost/phrasing') == (0.5, 8) and value('cost/trained') == (0, 8)
  assert value('known/combination') == (0.5, 8)
  assert value('said/trained') == (1, 8) and value('said/phrasing') == (0.5, 8) and value('done/phrasing') == (0, 4)
  for name, e in scores.values.items():
    assert e.low <= e.value <= e.high, name
  assert 'phrasing/color' in scores.table() and 'nan' not in scores.table()
  direct = evaluator(mode='direct').run(Paints(), None)
  assert not [name for name in direct.values if name.startswith(('said', 'done'))]
  assert direct.values['phrasing'] == scores.values['phrasing']


def test_a_plan_that_cannot_be_read_and_a_trajectory_without_one_say_nothing():
  row = ROWS[0]
  said = lambda *steps: evaluator()._said(row, Trajectory(prompt=row['prompt'], steps=steps))
  assert said(Step(plan='<ins>Add it.</ins><des>Something.</des>', draft=renderer.blank())) is False
  assert said(Step(draft=renderer.blank())) is False and said() is False


@pytest.mark.parametrize('call', [1, 5])
def test_killed_it_goes_on_to_the_same_files(call, tmp_path):
  files = lambda folder: {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}
  whole = evaluator().run(Paints(), tmp_path / 'whole')
  with pytest.raises(KeyboardInterrupt):
    evaluator().run(Paints(killed_in=call), tmp_path / 'killed')
  again = evaluator().run(Paints(), tmp_path / 'killed')
  assert again.to_json() == whole.to_json() and files(tmp_path / 'killed') == files(tmp_path / 'whole')
  assert len(again.cards) == 2 * len(ROWS) and (tmp_path / 'whole' / again.cards[0].picture).is_file()
  with pytest.raises(base.AnotherRunError, match='seed 0 there, 1 given'):
    evaluator(seed=1).run(Paints(), tmp_path / 'killed')


def test_a_training_run_that_learns_facts_is_scored_by_them():
  tiny = testing.tiny_config()
  names = lambda source: [
    e.name
    for e in in_training.evaluators(dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, sources=(source,))))
  ]
  assert names(SOURCE) == ['geneval', 'knowledge']
  assert names(dataclasses.replace(SOURCE, knowledge=0.0)) == ['geneval']


def test_the_command_makes_it_from_the_options(monkeypatch, capsys):
  asked = {}

  def run(self, painter, out):
    asked.update(rows=self.prompts.rows, mode=self.mode, described=self.described)
    return base.Scores(name='knowledge', values={}, asked=1, answered=1, text='told')

  monkeypatch.setattr(knowledge.Knowledge, 'run', run)
  monkeypatch.setattr(evaluate.flags_lib, 'load', lambda *_, **__: (None, shapes))
  evaluate.main(['knowledge', '--per_kind=3', '--mode=direct'])
  assert capsys.readouterr().out == 'told\n' and asked['mode'] == 'direct' and asked['described'] is shapes.described
  assert len(asked['rows']) == 3 * (4 + 4 + 3 + 3)
