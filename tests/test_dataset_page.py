"""The page of a data set: complete, safe, bounded; what cannot be read is named and stops nothing."""

import base64
import collections
import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest
from support import stored
from support.html_tree import Tree

from pdgen import dataset_page
from pdgen.core import tags
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import pipeline, record_codec, records, sources, survey, token_table, tokenizers
from pdgen.viewing import dataset_page as html_page
from pdgen.worlds import shapes

HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)> & "a" \'b\' \x00\x1b[31m\u202e\ud800 end'
SHOWN = '</script><script>alert(1)</script><img src=x onerror=alert(2)> & "a" \'b\' \\x00\\x1b[31m\\u202e\\ud800 end'
# Of HTML itself; everything that a record says is escaped.
ELEMENTS = set(
  'html head meta title style body header main section article div span p h1 h2 h3 ul ol li table thead tbody tr th td '
  'dl dt dd details summary button label select option input figure figcaption img mark i script'.split()
)


def made(kind, number, **changes):
  one = shapes.trajectory(kind, seed=0, index=number)
  assert one.provenance is not None
  return dataclasses.replace(one, provenance=dataclasses.replace(one.provenance, **changes))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Train and held-out sets of all kinds, with rejected rows beside them."""
  out = tmp_path_factory.mktemp('data')
  cost = trajectory_lib.Cost(calls=2, tokens=300, money=0.25)
  train = [made(kind, n, seed=n, judge='judge 3', cost=cost) for n in range(5) for kind in shapes.KINDS]
  records.write(out / 'train', train, shard_records=8)
  records.write(out / 'heldout', [made(kind, 9, source='other') for kind in shapes.KINDS])
  rows = [dict(file='a.parquet', row=n, key=f'k{n}', reason=f"picture {n} is 'broken' <b>") for n in range(30)]
  lines = [json.dumps(row) for row in rows] + ['no JSON', '[1]', json.dumps(dict(reason=HOSTILE, note=HOSTILE))]
  (out / 'rejected.jsonl').write_text('\n'.join(lines) + '\n')
  return out


def written(*args, **kwargs):
  text = dataset_page.write(*args, **kwargs).read_text(encoding='utf-8')
  tree = Tree(text)
  assert {tag for tag, _, _ in tree.elements} <= ELEMENTS
  assert all(link.startswith('data:image/png;base64,') for link in tree.links)
  assert not [name for _, values, _ in tree.elements for name in values if name.startswith('on')]
  return text, tree


def test_the_page_opens_needs_nothing_and_runs_one_script_alone(folder, tiny, tmp_path):
  text, tree = written(folder, tmp_path, count=8, config=tiny)
  assert 'http:' not in text and 'https:' not in text and 'url(' not in text and '@import' not in text
  ((_, script),) = tree.of('script')
  (policy,) = [v['content'] for v, _ in tree.of('meta') if 'http-equiv' in v]
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
  assert (tmp_path / 'index.html').exists() and not list(tmp_path.glob('*.partial'))


def test_sampled_trajectories_are_shown_with_all_that_is_known(folder, tmp_path):
  text, tree = written(folder, tmp_path, count=24)
  articles = tree.of('article', 'entry')
  assert len(articles) == 24  # All of them.
  for name in ('train', 'heldout'):
    for number, one in enumerate(records.read(folder / name)):
      (mine,) = [a for a in articles if f'{name}, record {number}' + shown_chip(one) in a[1]]
      values, words = mine
      assert one.prompt in words and one.provenance is not None
      inspected = [s for s in one.steps if s.inspection]
      sign = ('−' if any(s.rejected for s in inspected) else '+') if inspected else ''
      refined = 'yes' if any(s.refined is not None for s in one.steps) else 'no'
      want = {'set': name, 'split': name, 'source': one.provenance.source, 'kind': one.provenance.kind}
      want |= {'sign': sign, 'refined': refined}
      assert {key.removeprefix('data-'): v for key, v in values.items() if key.startswith('data-')} == want
      if one.mode == 'process':
        for step in one.steps:
          for plan in filter(None, (step.plan, step.corrected_plan)):
            assert all(part in words for part in tags.plan_parts(plan))
          assert step.inspection is None or all(part in words for part in tags.around_refine(step.inspection))
      if name == 'train':
        assert 'judge 3' in words and '2 calls, 300 tokens, US$ 0.2500' in words
  pictures = sum(len(t.pictures) + 1 for name in ('train', 'heldout') for t in records.read(folder / name))
  direct = sum(t.mode == 'direct' for name in ('train', 'heldout') for t in records.read(folder / name))
  assert len(tree.images) == pictures - direct  # The last one stands in the head, too.
  assert 'legend' not in tree.classes and 'No token table' not in text and 'Token tables need a config.' in text


def shown_chip(trajectory):
  """The chip after the name of the record: the split, which is the set's name here."""
  made_by = trajectory.provenance
  return ''.join(('heldout' if made_by.source == 'other' else 'train', made_by.source))


def test_filters_offer_every_value_that_is_there(folder, tmp_path):
  _, tree = written(folder, tmp_path, count=24)
  articles = tree.of('article', 'entry')
  fields = {v['data-by'] for v, _ in tree.of('select')}
  assert fields == {'set', 'split', 'source', 'kind', 'sign', 'refined'}
  offered = {v['value'] for v, _ in tree.of('option')}
  for field in fields:
    assert {f':{values[f"data-{field}"]}' for values, _ in articles} <= offered
  assert [v['id'] for v, _ in tree.of('input')] == ['search']
  ((_, script),) = tree.of('script')
  assert set(re.findall(r"getElementById\('(\w+)'\)", script)) == {v['id'] for _, v, _ in tree.elements if 'id' in v}
  assert all(re.search(rf'class="(?:[^"]* )?{name}[ "]', tree_text(tree)) for name in ('said', 'entry', 'filters'))


def tree_text(tree):
  return ' '.join(f'class="{v.get("class", "")}"' for _, v, _ in tree.elements)


def test_counts_are_those_of_the_records(folder):
  found = survey.survey(folder, count=3)
  everything = [t for name in ('heldout', 'train') for t in records.read(folder / name)]
  assert found.read == len(everything) == 24 and not found.unreadable
  for summary in found.summaries:
    mine = [t for t in everything if summary.kind in ('all', t.provenance.kind)]
    assert summary.count == len(mine)
    pictures = [len(t.pictures) for t in mine]
    assert (summary.mean_pictures, summary.most_pictures) == (np.mean(pictures), max(pictures))
    assert summary.mean_characters == np.mean([len(t.prompt) for t in mine])
    assert summary.mean_words == np.mean([len(t.prompt.split()) for t in mine])
    asked = [t for t in mine if any('<refine>' in (s.inspection or '') for s in t.steps)]
    kept = [t for t in mine if t not in asked and any(s.inspection for s in t.steps)]
    assert (summary.minus, summary.plus) == (len(asked), len(kept))
    calls = sum(t.provenance.cost.calls for t in mine if t.provenance.cost)
    assert summary.cost.calls == calls
  assert [s.kind for s in found.summaries] == [*sorted(shapes.KINDS), 'all']


def test_counts_stand_beside_those_of_the_paper(folder, tmp_path):
  _, tree = written(folder, tmp_path, count=1)
  rows = [text for _, text in tree.of('tr')]
  assert any(text.startswith('all24') for text in rows)
  for number in ('32,0123.515152.8', '15,2016,9058,296', '15,0005,00010,000'):
    assert [text for text in rows if number in text.replace(' ', '')]


def test_everything_that_a_record_says_is_escaped(tmp_path):
  provenance = trajectory_lib.Provenance(
    **dict.fromkeys(('source', 'kind', 'detour', 'id', 'renderer', 'writer', 'judge'), HOSTILE),
    errors=(HOSTILE,),
    reasons=(HOSTILE,),
    graph={HOSTILE: HOSTILE},
    verdicts=({'ok': False, 'reason': HOSTILE}, {'odd': HOSTILE}),
  )
  step = trajectory_lib.Step(
    plan=HOSTILE,
    draft=stored.picture(0),
    inspection=f'{HOSTILE}<refine>{HOSTILE}</refine>',
    corrected_plan=tags.plan(HOSTILE, HOSTILE),
    refined=stored.picture(1),
  )
  spec = trajectory_lib.PromptSpec(tag=HOSTILE, include=(trajectory_lib.Clause(name=HOSTILE),))
  one = trajectory_lib.Trajectory(
    prompt=HOSTILE,
    steps=(step,),
    spec=spec,
    provenance=provenance,
    expected=(trajectory_lib.Content(HOSTILE),),
    metadata={HOSTILE: HOSTILE},
  )
  records.write(tmp_path / '<b>&' / 'train', [one])
  (tmp_path / '<b>&' / 'rejected.jsonl').write_text(json.dumps({'reason': HOSTILE, HOSTILE: HOSTILE}) + '\n')
  text, tree = written(tmp_path / '<b>&', tmp_path / 'page', count=2)
  assert len(tree.of('script')) == 1 and len(tree.images) == 3 and 'onerror=alert(2)>' not in text.replace('&gt;', '')
  assert tree.text.count(SHOWN) >= 20
  assert not re.search('[\x00-\x08\x0b-\x1f\x7f\u202e\ud800-\udfff]', text)
  (article,) = tree.of('article')
  assert article[0]['data-source'] == SHOWN
  for name, value in dataclasses.asdict(provenance).items():
    assert not value or {'verdicts': 'verdict 2'}.get(name, name) in article[1], name


def damaged(folder, number, trajectory):
  """Flips a bit in a picture of a record."""
  record, _ = record_codec.encode(trajectory, name='t')
  for shard in folder.glob('trajectories-*'):
    content = bytearray(shard.read_bytes())
    if (place := content.find(record[5000:5100])) >= 0:
      content[place] ^= 1
      shard.write_bytes(content)
      return shard
  raise AssertionError(number)


def test_what_cannot_be_read_is_named_and_stops_nothing(tmp_path):
  steps = [trajectory_lib.Step(plan='x', draft=stored.picture(number, side=64)) for number in range(6)]
  wanted = [trajectory_lib.Trajectory(prompt=f'prompt {n}', steps=(step,)) for n, step in enumerate(steps)]
  records.write(tmp_path / 'data' / 'train', wanted, shard_records=2)
  shard = damaged(tmp_path / 'data' / 'train', 3, wanted[3])
  records.write(tmp_path / 'data' / 'broken', wanted[:1])
  next((tmp_path / 'data' / 'broken').glob('trajectories-*')).unlink()
  (tmp_path / 'data' / 'begun').mkdir()
  (tmp_path / 'data' / 'begun' / 'unfinished.json').write_text('{}')
  _, tree = written(tmp_path / 'data', tmp_path / 'page', count=6)
  articles = tree.of('article')
  assert len(articles) == 6
  assert f'Record 3 ({shard}, number 1 in it) cannot be read' in articles[3][1]
  assert [f'prompt {n}' in words for n, (_, words) in enumerate(articles)] == [True] * 3 + [False] + [True] * 2
  assert 'of which 1 cannot be read' in tree.text
  (broken,) = [text for _, text in tree.of('tr') if text.startswith('broken')]
  assert 'is missing. Copy the set again' in broken
  (begun,) = [text for _, text in tree.of('tr') if text.startswith('begun')]
  assert 'is unfinished' in begun


def test_a_folder_without_sets_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no record set'):
    dataset_page.write(tmp_path, tmp_path / 'page')


def test_many_records_make_a_small_page_and_few_are_decoded(tmp_path, monkeypatch):
  step = trajectory_lib.Step(draft=stored.picture(1, side=4))
  many = (trajectory_lib.Trajectory(prompt=f'p{n}', steps=(step,), mode='direct') for n in range(10_000))
  records.write(tmp_path / 'train', many, shard_records=10_000)
  decoded = []
  decode = record_codec.decode
  monkeypatch.setattr(record_codec, 'decode', lambda record: decoded.append(1) or decode(record))
  page = dataset_page.write(tmp_path / 'train', tmp_path / 'page', count=5)
  assert len(decoded) == 5 and page.stat().st_size < 60_000
  assert '5 of 10000 records' in page.read_text() and 'Counted: 10000 of them' in page.read_text()
  assert dataset_page.write(tmp_path / 'train', tmp_path / 'page', count=5, seed=1) == page
  # Beyond so many bytes a share is read.
  assert survey.survey(tmp_path, count=5, most_records=1000).read == 1000
  assert survey.survey(tmp_path, count=5, most_bytes=1).read == 200


def test_large_pictures_are_shrunk_and_their_size_is_told(tmp_path):
  step = trajectory_lib.Step(draft=np.random.default_rng(0).integers(0, 256, (768, 1024, 3), np.uint8))
  records.write(tmp_path / 'set', [trajectory_lib.Trajectory(prompt='p', steps=(step,), mode='direct')])
  text, tree = written(tmp_path / 'set', tmp_path / 'page')
  assert len(text) < 300_000 and 'pictures 1024 × 768' in tree.text


def test_rare_kinds_are_among_the_few_that_are_shown(tmp_path):
  common = [made('multi_turn', n) for n in range(40)]
  records.write(tmp_path / 'train', [*common, made('conflict', 1)])
  records.write(tmp_path / 'heldout', [made('misalignment', 1)])
  for seed in range(6):
    chosen = survey.survey(tmp_path, count=4, seed=seed).chosen
    assert {('train', 40), ('heldout', 0)} <= {(one.name, number) for one, number in chosen} and len(set(chosen)) == 4


def test_rejected_rows_are_counted_by_reason_and_sampled(folder, tmp_path):
  found = survey.rejects(folder, count=7)
  assert found.count == 33 and len(found.sample) == 7
  assert found.reasons[:2] == (('picture … is … <b>', 30), ('the line is no JSON object', 2))
  assert survey.rejects(folder / 'train', count=7) == found  # Beside a set that is given alone.
  _, tree = written(folder, tmp_path, count=40)
  assert "picture 17 is 'broken' <b>" in tree.text and 'k17' in tree.text and SHOWN in tree.text
  assert survey.rejects(tmp_path, count=7).count == 0


def test_token_tables_are_those_of_the_rows(folder, tiny, tmp_path):
  _, tree = written(folder, tmp_path, count=24, config=tiny)
  words = tokenizers.load(tiny.data.tokenizer)
  tables = iter(tree.of('details', 'tokens'))
  lines = [(v, t) for v, t in tree.of('tr') if set((v.get('class') or '').split()) & set(html_page.CATEGORIES)]
  want = collections.Counter()
  for name in ('heldout', 'train'):
    for number, one in enumerate(records.read(folder / name)):
      row = pipeline.build_row(tiny, one, sources.sample_rng(tiny.seed, number))
      summary = next(tables)[1]
      supervised, flow = (row.und.weight > 0).sum(), (row.gen.weight > 0).sum()
      told = f'cross-entropy on {supervised}, weights {row.und.weight.sum():.4g}; flow on {flow}, weights {flow}'
      assert f'Token table: {told}; {len(row.und.label)} und and {len(row.gen.patch)} gen tokens' in summary
      for token in token_table.rows(row, words):
        want[{'cross-entropy': 'ce', 'flow': 'flow', '': token.copy.lower()}[token.loss]] += 1
  got = collections.Counter()
  for values, _ in lines:
    got[values['class'].split()[-1]] += int(values.get('data-count', 1))
  assert got == want
  assert len(tree.of('i')) > 24 and len(tree.of('button', 'unfold')) == sum('run' in v['class'] for v, _ in lines)


def test_a_trajectory_that_does_not_fit_the_config_says_so(tiny, tmp_path):
  records.write(tmp_path / 'set', [stored.TRAJECTORIES[3]])
  _, tree = written(tmp_path / 'set', tmp_path / 'page', config=tiny)
  assert "No token table: The trajectory of 'c' does not fit the model" in tree.text


def test_the_samples_of_a_config_are_those_that_are_trained_on(tiny, tmp_path):
  half = dataclasses.replace(tiny.data.sequence, drop_clean=0.5)  # Takes the loss of what follows a picture away.
  cfg = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, sequence=half))
  tree = Tree(dataset_page.write_config(cfg, tmp_path, count=6, seed=2).read_text())
  articles = tree.of('article')
  assert len(articles) == 6 and 'Samples 12 to 17 of tiny' in tree.text and 'the first 500 samples' in tree.text
  make = pipeline.Samples(cfg, sources.from_config(cfg))
  for index, (_, words) in zip(range(12, 18), articles, strict=True):
    row = make(index).row
    assert f'sample {index}' in words and f'weights {row.und.weight.sum():.4g}; flow' in words
