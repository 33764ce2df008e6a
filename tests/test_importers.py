"""Importers: what each data set's rows become, the example of docs/add_a_dataset.md, training on imports."""

import dataclasses
import json
import pathlib
import re

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from support import foreign, stored

from pdgen import testing
from pdgen.construction import importers
from pdgen.construction.importers import base, jsonl
from pdgen.core import config as config_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import images, pipeline, record_codec, records

Step, Trajectory = trajectory_lib.Step, trajectory_lib.Trajectory
ROOT = pathlib.Path(__file__).parents[1]


def _read(name, source, **options):
  found = list(importers.read(name, source, **options))
  assert all(isinstance(outcome, Trajectory) for _, outcome in found), found
  return [outcome for _, outcome in found], [where for where, _ in found]


def _parts(trajectory):
  """(kind, text or number of the picture) of every item, and whether drafts are flow targets."""
  numbers = {foreign.picture(n).tobytes(): n for n in range(100)}
  items = [(i.kind, numbers[i.picture.tobytes()] if i.is_picture else i.text) for i in trajectory.items()]
  return items, [step.draft_is_target for step in trajectory.steps]


def test_thinkmorph(tmp_path):
  foreign.write_parquet(tmp_path / 'data' / 'a.parquet', [foreign.thinkmorph(n) for n in range(5)])
  found, places = _read('thinkmorph', tmp_path)
  assert [str(place) for place in places[:2]] == ['data/a.parquet row 1 (pid 0)', 'data/a.parquet row 2 (pid 1)']
  assert found[1].prompt == 'Where is ring 1?'
  assert _parts(found[1]) == (
    [
      ('draft', 10),
      ('plan', '<ins>I mark it.</ins><des></des>'),
      ('draft', 11),
      ('inspection', 'It is marked.\nAnswer: left'),
    ],
    [False, True],
  )
  assert found[1].provenance == trajectory_lib.Provenance(source='ThinkMorph', kind='interleaved', id='pid 1')


def test_zebra_cot(tmp_path):
  without = foreign.zebra_cot(1, Question='No picture?', problem_image_1=None)
  foreign.write_parquet(tmp_path / 'a.parquet', [foreign.zebra_cot(0), without])
  found, _ = _read('zebra_cot', tmp_path / 'a.parquet')
  assert [t.prompt for t in found] == ['Put piece 0 in. Where?', 'No picture?']
  reasoned = [
    ('plan', '<ins>THOUGHT 0: Look.</ins><des></des>'),
    ('draft', 1),
    ('draft', 2),
    ('inspection', 'THOUGHT 1: It fits.\nAnswer: B'),
  ]
  assert _parts(found[0]) == ([('draft', 0), *reasoned], [False, True, True])
  assert [text for kind, text in _parts(found[1])[0] if kind == 'draft'] == [11, 12]
  assert found[0].provenance.id == 'a.parquet:1'


def test_math_canvas(tmp_path):
  foreign.write_parquet(tmp_path / 'a.parquet', [foreign.math_canvas(0)])
  (found,), _ = _read('math_canvas', tmp_path)
  assert found.prompt == 'Triangle 0:\nFind x.'
  assert _parts(found) == (
    [
      ('draft', 0),
      ('plan', '<ins>Draw the height.</ins><des></des>'),
      ('draft', 1),
      ('plan', '<ins>Then</ins><des></des>'),
      ('draft', 2),
      ('inspection', 'x = 3.\nAnswer: 3'),
    ],
    [False, True, True],
  )


def test_gen_ref(tmp_path):
  samples = {f'images/{n:06d}': foreign.gen_ref(n) for n in range(3)}
  foreign.write_tar(tmp_path / 'genref_0.tar', samples)
  found, places = _read('gen_ref', tmp_path)
  assert [place.key for place in places] == list(samples)
  bad, good = (images.open_picture(samples['images/000002'][f'{name}_image.jpg']) for name in ('bad', 'good'))
  want = Trajectory(
    prompt='2 rings',
    steps=(Step(draft=bad, inspection='<refine>Remove ring 2.</refine>', refined=good, draft_is_target=False),),
    provenance=trajectory_lib.Provenance(source='GenRef', kind='misalignment', id='images/000002'),
    metadata={'subset': 'rule'},
  )
  stored.assert_same([found[2]], [want])


@pytest.mark.parametrize('inside', [True, False])
def test_umm_reflection(tmp_path, inside):
  rows = [
    foreign.umm(0, edits=1, inside=inside),
    foreign.umm(1, edits=2, inside=inside),
    foreign.umm(2, edits=3, inside=inside),
    foreign.umm(3, edits=2, task='edit', inside=inside),
    foreign.umm(4, edits=2, subtype='planned_progression', inside=inside),
  ]
  foreign.write_parquet(tmp_path / 'a.parquet', rows)
  found, _ = _read('umm_reflection', tmp_path)
  first = [('plan', '<ins>e0</ins><des>t0</des>')]
  corrected = [('inspection', 't1 <refine>e1</refine>')]
  assert _parts(found[0]) == ([*first, ('draft', 0), ('inspection', 't1')], [True])
  assert _parts(found[1]) == ([*first, ('draft', 10), *corrected, ('refined', 11)], [True])
  assert found[1].metadata == {'scores': ['5/10', '6/10', '7/10'], 'subtype': 'repair', 'done': 't2'}
  third = [('plan', '<ins>e2</ins><des>t2</des>'), ('draft', 22), ('inspection', 't3')]
  assert _parts(found[2]) == ([*first, ('draft', 20), *corrected, ('refined', 21), *third], [True, True])
  assert _parts(found[3]) == (
    [('draft', 30), *first, ('draft', 31), *corrected, ('refined', 32)],
    [False, True],
  )
  assert found[3].provenance.kind == 'edit_reflection' and found[3].prompt == 'a photo of 3 rings'
  planned = [('draft', 40), ('inspection', 't1'), ('plan', '<ins>e1</ins><des></des>'), ('draft', 41)]
  assert _parts(found[4]) == ([*first, *planned, ('inspection', 't2')], [True, True])


def test_jsonl(tmp_path):
  made = dict(source='mine', kind='conflict', errors=['extra'], seed=3, cost={'calls': 2}, verdicts=[{'ok': True}])
  direct = dict(prompt='a cat', steps=[{'draft': 'pictures/2a.png'}], mode='direct')
  context = foreign.jsonl_line(3, steps=[dict(draft='pictures/3a.png', draft_is_target=False)])
  spec = {'tag': 'counting', 'include': [{'class': 'ring', 'count': 0}]}
  foreign.write_jsonl(
    tmp_path,
    [
      foreign.jsonl_line(0),
      b'',
      foreign.jsonl_line(1, provenance=made, metadata={'a': [1]}, spec=spec),
      direct,
      context,
    ],
  )
  found, places = _read('jsonl', tmp_path)
  assert [place.row for place in places] == [1, 3, 4, 5]
  assert _parts(found[0]) == (
    [
      ('plan', '<ins>Paint rings.</ins><des>0 rings.</des>'),
      ('draft', 0),
      ('inspection', 'Wrong. <refine>Add one.</refine>'),
      ('corrected_plan', '<ins>Add one.</ins><des>Rings.</des>'),
      ('refined', 1),
      ('plan', '<ins>Add a bar.</ins><des>Rings, a bar.</des>'),
      ('draft', 2),
      ('inspection', 'Correct.'),
    ],
    [True, True],
  )
  assert found[0].provenance == trajectory_lib.Provenance(source='jsonl', kind='imported', id='id 0')
  wanted = trajectory_lib.Provenance(
    source='mine',
    kind='conflict',
    errors=('extra',),
    id='id 1',
    seed=3,
    verdicts=({'ok': True},),
    cost=trajectory_lib.Cost(calls=2),
  )
  assert found[1].provenance == wanted and found[1].metadata == {'a': [1]}
  assert found[1].spec.include[0].name == 'ring'
  assert found[2].mode == 'direct' and found[2].provenance.id == 'a.jsonl:4'
  assert _parts(found[3]) == ([('draft', 30)], [False])


def test_jsonl_of_prompts_with_pictures(tmp_path):
  given = [{'text': 'make this'}, {'picture': 'pictures/0a.png'}, {'text': 'like that'}, {'picture': 'pictures/1a.png'}]
  edit = dict(parts=given, mode='edit', steps=[dict(draft='pictures/2a.png')])
  asked = dict(prompt='', parts=given[1:2], mode='answer', steps=[dict(text='A ring.')], split='heldout')
  think = dict(prompt='a', mode='think', steps=[dict(text='Hm.', draft='pictures/3a.png', draft_is_target=False)])
  process = foreign.jsonl_line(0, parts=[dict(text='0 rings and a bar'), dict(picture='pictures/4a.png')])
  foreign.write_jsonl(tmp_path / 'mine', [edit, asked, think, process])
  found, _ = _read('jsonl', tmp_path / 'mine')
  assert found[0].prompt == 'make this like that' and found[0].mode == 'edit'
  assert [part if isinstance(part, str) else part[0, 0].tolist() for part in found[0].parts] == [
    'make this',
    foreign.picture(0)[0, 0].tolist(),
    'like that',
    foreign.picture(10)[0, 0].tolist(),
  ]
  assert _parts(found[0])[0] == [('draft', 20)] and found[1].texts == ['A ring.'] and found[1].prompt == ''
  assert [(s.text, s.draft is None, s.draft_is_target) for s in found[2].steps] == [('Hm.', False, False)]
  assert len(found[3].given_pictures) == 1 and found[3].mode == 'process'
  counts = importers.import_records('jsonl', tmp_path / 'mine', tmp_path / 'out', heldout=0)
  assert (counts.kept, counts.heldout) == (4, 1)
  kept = [t for split in ('train', 'heldout') for t in records.read(tmp_path / 'out' / split)]
  assert sorted(len(t.given_pictures) for t in kept) == [0, 1, 1, 2]


def test_the_example_of_the_documents_is_imported(tmp_path, monkeypatch, capsys):
  text = (ROOT / 'docs' / 'add_a_dataset.md').read_text(encoding='utf-8')
  line = json.loads(re.search(r'```json\n(.*?)```', text, re.DOTALL)[1])
  (tmp_path / 'mine' / '1').mkdir(parents=True)
  for number, name in enumerate('abc'):
    (tmp_path / 'mine' / '1' / f'{name}.png').write_bytes(foreign.png(number))
  (tmp_path / 'mine' / 'trajectories.jsonl').write_text(json.dumps(line))
  monkeypatch.chdir(tmp_path)
  run, view = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  exec(run)
  assert capsys.readouterr().out == f'{importers.Counts(read=1, kept=1, train=1)}\n'
  exec(view)
  (example,) = tfds.data_source('pdgen_trajectories', data_dir='tfds', split='train', download=False)
  assert example['prompt'].decode() == line['prompt']
  (got,) = records.read(tmp_path / 'mine_set' / 'train')
  assert got.prompt == line['prompt'] and got.provenance.source == 'my drawings' and got.provenance.id == '1'
  assert _parts(got)[0][-1] == ('refined', 2)
  fields = set(re.findall(r'^\| `(\w+)` \| *(?:needed|if asked for)? *\|', text, re.MULTILINE))
  assert fields == {*jsonl._FIELDS, *jsonl._STEP}
  formats = text[text.index('## Other formats') : text.index('## Through TFDS')]
  assert set(re.findall(r'^\| `(\w+)` \|', formats, re.MULTILINE)) == set(importers.FORMATS)


def test_jpeg_files_are_stored_as_they_are_and_turned_ones_are_not(tmp_path):
  plain = foreign.gen_ref(0)
  exif = images.Image.Exif()
  exif[0x0112] = 6
  turned = foreign.encoded(foreign.picture(5, side=24)[:16], 'JPEG', exif=exif)
  foreign.write_tar(tmp_path / 'a.tar', {'0': plain, '1': foreign.gen_ref(1, **{'bad_image.jpg': turned})})
  importers.import_records('gen_ref', tmp_path / 'a.tar', tmp_path / 'out', heldout=0)
  got = records.read(tmp_path / 'out' / 'train')
  np.testing.assert_array_equal(got[1].steps[0].draft, images.open_picture(turned))
  assert got[1].steps[0].draft.shape == (24, 16, 3)
  shard = next((tmp_path / 'out' / 'train').glob('*.array_record'))
  first, second = grain.sources.ArrayRecordDataSource([str(shard)])
  assert plain['bad_image.jpg'] in first and plain['good_image.jpg'] in first
  assert turned not in second and foreign.gen_ref(1)['good_image.jpg'] in second
  importers.import_records('gen_ref', tmp_path / 'a.tar', tmp_path / 'resized', heldout=0, resize=images.VAE.resize)
  for trajectory in records.read(tmp_path / 'resized' / 'train'):
    assert all(min(picture.shape[:2]) == 512 for picture in trajectory.pictures)


def test_files_of_a_source(tmp_path):
  for name in ('b/2.jsonl', 'a.jsonl', 'b/1.jsonl', '.cache/x.jsonl', 'c.txt'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('')
  assert [name for name, _ in base.files(tmp_path, '.jsonl')] == ['a.jsonl', 'b/1.jsonl', 'b/2.jsonl']
  chosen = [tmp_path / 'b', tmp_path / 'c.txt']
  assert [name for name, _ in base.files(chosen, '.jsonl')] == ['1.jsonl', '2.jsonl', 'c.txt']
  for nothing in (tmp_path / 'none', [], tmp_path / '.cache' / 'none'):
    with pytest.raises(FileNotFoundError):
      base.files(nothing, '.jsonl')
  with pytest.raises(FileNotFoundError, match='no file of the kind .tar'):
    base.files(tmp_path, '.tar')
  (tmp_path / 'out.jsonl').symlink_to('/etc/hosts')
  with pytest.raises(ValueError, match='link out of its folder'):
    base.files(tmp_path, '.jsonl')
  with pytest.raises(ValueError, match="Unknown format 'csv'. Known: .*'gen_ref'"):
    importers.get('csv')


def test_a_share_is_the_same_rows_each_time(tmp_path):
  foreign.write_parquet(tmp_path / 'a.parquet', [foreign.thinkmorph(n % 3, pid=str(n)) for n in range(40)], group=10)
  half = [where.key for where, _ in importers.read('thinkmorph', tmp_path, share=0.5)]
  assert half == [where.key for where, _ in importers.read('thinkmorph', tmp_path, share=0.5)]
  assert 8 < len(half) < 32
  more = [where.key for where, _ in importers.read('thinkmorph', tmp_path, share=0.7)]
  assert set(half) < set(more)
  rest = [where.key for where, _ in importers.read('thinkmorph', tmp_path, share=0.5, start=17)]
  assert rest == [key for key in half if int(key) >= 17]


def _supervised(batch, tokenizer):
  """The texts whose tokens carry cross-entropy, by sample."""
  texts = {}
  for row in range(batch.und.label.shape[0]):
    und = batch.und
    for segment in sorted(set(und.tokens.segment[row].tolist()) - {0}):
      here = (und.tokens.segment[row] == segment) & (und.weight[row] > 0)
      order = np.argsort(und.tokens.order[row][here])
      texts.setdefault(tokenizer.decode(und.label[row][here][order]), 0)
  return set(texts)


def test_imported_trajectories_are_learned_as_the_documents_say(tmp_path, monkeypatch):
  foreign.write_jsonl(tmp_path / 'j', [foreign.jsonl_line(0)])
  foreign.write_tar(tmp_path / 'g.tar', {'0': foreign.gen_ref(0)})
  foreign.write_parquet(tmp_path / 't.parquet', [foreign.thinkmorph(1)])
  foreign.write_parquet(tmp_path / 'u.parquet', [foreign.umm(1)])
  sources = {'jsonl': 'j', 'gen_ref': 'g.tar', 'thinkmorph': 't.parquet', 'umm_reflection': 'u.parquet'}
  wanted = {
    # A rejected plan carries no cross-entropy (config.data.sequence.rejected_plan_weight).
    'jsonl': (
      '<|im_start|>Wrong. <refine>Add one.</refine><|im_end|><|im_start|>'
      '<ins>Add one.</ins><des>Rings.</des><|im_end|><|vision_start|><|im_start|>'
      '<ins>Add a bar.</ins><des>Rings, a bar.</des><|im_end|><|vision_start|><|im_start|>Correct.<|im_end|>'
      '<|endoftext|>'
    ),
    'gen_ref': '<|im_start|><refine>Remove ring 0.</refine><|im_end|><|vision_start|><|endoftext|>',
    'thinkmorph': (
      '<|im_start|><ins>I mark it.</ins><des></des><|im_end|><|vision_start|><|im_start|>'
      'It is marked.\nAnswer: left<|im_end|><|endoftext|>'
    ),
    'umm_reflection': (
      '<ins>e0</ins><des>t0</des><|im_end|><|vision_start|><|im_start|>t1 <refine>e1</refine><|im_end|>'
      '<|vision_start|><|endoftext|>'
    ),
  }
  letters = testing.Letters()
  monkeypatch.setattr(pipeline.tokenizers, 'load', lambda name: letters)
  for name, source in sources.items():
    importers.import_records(name, tmp_path / source, tmp_path / name, heldout=0)
    tiny = testing.tiny_config()
    data = dataclasses.replace(
      tiny.data,
      sources=(config_lib.SourceConfig.parse(f'records:{tmp_path / name / "train"}'),),
      sequence=config_lib.SequenceConfig(),
      batch_size=1,
      und_tokens=512,
      prefetch=0,
    )
    model = dataclasses.replace(tiny.model, image_size=16, codec=config_lib.CodecConfig(patch=8))
    batch = next(pipeline.batches(dataclasses.replace(tiny, model=model, data=data)))
    assert _supervised(batch, letters) == {wanted[name]}, name


def test_records_of_an_import_hold_their_provenance(tmp_path):
  foreign.write_jsonl(tmp_path / 'j', [foreign.jsonl_line(0, provenance={'judge': 'me 2'})])
  importers.import_records('jsonl', tmp_path / 'j', tmp_path / 'out', heldout=0)
  (got,) = records.read(tmp_path / 'out' / 'train')
  assert got.provenance.judge == 'me 2' and got.provenance.kind == 'imported'
  assert record_codec.provenance_of({'source': 'a', 'kind': 'b'}) == trajectory_lib.Provenance(source='a', kind='b')
