"""Malformed rows of every kind stop nothing: each is a line of rejected.jsonl, and the counts add up."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from support import foreign

from pdgen.construction import importers
from pdgen.construction.importers import base, jsonl, parquet
from pdgen.data import record_codec, records, splits


def _rejected(out):
  return [json.loads(line) for line in (out / 'rejected.jsonl').read_text(encoding='utf-8').splitlines()]


def _kept(out):
  return [t for split in splits.SPLITS for t in records.read(out / split)]


def _import(name, source, out, **options):
  counts = importers.import_records(name, source, out, **{'heldout': 0, **options})
  assert counts.read == counts.kept + counts.rejected and counts.kept == counts.train + counts.heldout
  assert counts.rejected == len(_rejected(out)) and counts.kept == len(_kept(out))
  assert json.loads((out / 'import.json').read_text())['counts']['read'] == counts.read
  return counts


def _step(**changes):
  return [dict(plan=dict(ins='a', des='b'), draft='pictures/0a.png', **changes)]


_PARTS = [{'picture': 'pictures/0a.png'}, {'text': 'a'}]
_REFINE = 'x <refine>y</refine>'
MALFORMED = {
  'no JSON': (b'{"prompt": "a", "steps"', 'the line is damaged: it is no JSON'),
  'no UTF-8': (b'{"prompt": "\xff"}', 'no JSON'),
  'no object': (b'[1]', 'holds no object'),
  'a name twice': (b'{"prompt": "a", "prompt": "b"}', "'prompt' twice"),
  'not a number': (b'{"prompt": "a", "metadata": {"a": NaN}}', 'NaN'),
  'deep': (b'[' * 100000, 'no JSON'),
  'no prompt': (dict(steps=_step()), 'prompt is missing'),
  'empty prompt': (dict(prompt=' \n', steps=_step()), 'prompt is empty'),
  'prompt of another type': (dict(prompt=3, steps=_step()), 'prompt is int, no text'),
  'lone surrogate': (b'{"prompt": "\\ud800", "steps": []}', 'prompt is no Unicode text'),
  'no steps': (dict(prompt='a'), 'steps is missing, no list'),
  'empty steps': (dict(prompt='a', steps=[]), 'steps has 0 entries'),
  'steps of another type': (dict(prompt='a', steps={'a': 1}), 'steps is dict, no list'),
  'a step of another type': (dict(prompt='a', steps=['x']), r'steps\[0\] is str, no object'),
  'misspelt field': (dict(prompt='a', steps=_step(), metdata={}), "unknown field 'metdata'"),
  'misspelt field of a step': (
    dict(prompt='a', steps=_step(inspect='x')),
    r"steps\[0\] has the unknown field 'inspect'",
  ),
  'unknown mode': (dict(prompt='a', steps=_step(), mode='fast'), "mode is 'fast'"),
  'mode of another type': (dict(prompt='a', steps=_step(), mode=['direct']), 'mode is'),
  'words in direct mode': (dict(prompt='a', steps=_step(), mode='direct'), "those of mode 'direct' have"),
  'words in edits': (dict(parts=_PARTS, steps=_step(), mode='edit'), r"has 'plan', but those of mode 'edit' have"),
  'an answer without words': (dict(prompt='a', steps=[{}], mode='answer'), r'steps\[0\].text is missing'),
  'a thought without a picture': (
    dict(prompt='a', steps=[{'text': 'b'}], mode='think'),
    r'steps\[0\].draft is missing',
  ),
  'two edits': (dict(parts=_PARTS, steps=[{'draft': 'pictures/0a.png'}] * 2, mode='edit'), 'steps has 2 entries'),
  'an edit of nothing': (
    dict(prompt='a', steps=[{'draft': 'pictures/0a.png'}], mode='edit'),
    'needs a picture in parts',
  ),
  'parts of another type': (dict(parts='a', steps=_step()), 'parts is str, no list'),
  'no parts': (dict(parts=[], steps=_step()), 'parts is empty'),
  'a part of another type': (dict(parts=['a'], steps=_step()), r'parts\[0\] is str, no object'),
  'a part that is both': (dict(parts=[dict(text='a', picture='b')], steps=_step()), 'it is a text or a picture'),
  'misspelt part': (dict(parts=[dict(words='a')], steps=_step()), "unknown field 'words'"),
  'part without its picture': (dict(parts=[dict(picture='../x.png')], steps=_step()), "names '..'"),
  'parts of another prompt': (dict(prompt='b', parts=_PARTS, steps=_step()), "the texts of parts are 'a'"),
  'unknown split': (dict(prompt='a', steps=_step(), split='test'), "split is 'test'"),
  'split of another type': (dict(prompt='a', steps=_step(), split=['train']), 'split is'),
  'no draft': (dict(prompt='a', steps=[{'plan': {'ins': 'a', 'des': 'b'}}]), r'steps\[0\].draft is missing'),
  'picture of another type': (dict(prompt='a', steps=[{'draft': 3}]), 'draft is int'),
  'missing picture': (dict(prompt='a', steps=[{'draft': 'pictures/none.png'}]), "no file 'pictures/none.png'"),
  'a folder': (dict(prompt='a', steps=[{'draft': 'pictures'}]), "no file 'pictures'"),
  'truncated picture': (dict(prompt='a', steps=[{'draft': 'cut.png'}]), 'draft .cut.png.: .*cannot be decoded'),
  'no picture': (dict(prompt='a', steps=[{'draft': 'a.jsonl'}]), 'none of BMP'),
  'empty picture': (dict(prompt='a', steps=[{'draft': 'empty.png'}]), 'is empty'),
  'traversal': (dict(prompt='a', steps=[{'draft': '../secret.png'}]), "names '..', which is no plain name"),
  'deep traversal': (dict(prompt='a', steps=[{'draft': 'pictures/../../secret.png'}]), "names '..'"),
  'absolute path': (dict(prompt='a', steps=[{'draft': '/etc/hosts'}]), "names '', which is no plain name"),
  'backslash': (dict(prompt='a', steps=[{'draft': '..\\secret.png'}]), 'no plain name'),
  'link': (dict(prompt='a', steps=[{'draft': 'link.png'}]), 'is a link out of its folder'),
  'linked folder': (dict(prompt='a', steps=[{'draft': 'linked/secret.png'}]), 'is a link out of its folder'),
  'NUL': (dict(prompt='a', steps=[{'draft': 'a\0b'}]), 'no plain name'),
  'plan without tags': (dict(prompt='a', steps=[dict(_step()[0], plan='Paint.')]), 'Not a plan'),
  'plan with a tag inside': (
    dict(prompt='a', steps=[dict(_step()[0], plan={'ins': '<des>', 'des': 'b'})]),
    'holds the tag',
  ),
  'plan that says nothing': (dict(prompt='a', steps=[dict(_step()[0], plan={'des': 'b'})]), 'plan.ins is missing'),
  'plan of another type': (dict(prompt='a', steps=[dict(_step()[0], plan=[1])]), 'plan is list'),
  'open tag': (dict(prompt='a', steps=_step(inspection='x <refine>y', refined='pictures/0b.png')), 'has the tags'),
  'two tags': (dict(prompt='a', steps=_step(inspection=_REFINE * 2, refined='pictures/0b.png')), 'has the tags'),
  'empty tag': (dict(prompt='a', steps=_step(inspection='<refine> </refine>')), 'empty <refine>'),
  'tag of a plan': (dict(prompt='a', steps=_step(inspection='<ins>y</ins>')), 'has the tags'),
  'refined for nothing': (dict(prompt='a', steps=_step(refined='pictures/0b.png')), "has 'refined', but no inspection"),
  'corrected for nothing': (
    dict(prompt='a', steps=_step(inspection='ok', corrected_plan={'ins': 'a', 'des': ''})),
    "has 'corrected_plan', but no inspection",
  ),
  'not refined': (dict(prompt='a', steps=_step(inspection=_REFINE)), 'asks for a refined picture, but there is none'),
  'target of another type': (dict(prompt='a', steps=_step(draft_is_target='no')), 'not true or false'),
  'unknown provenance': (dict(prompt='a', steps=_step(), provenance={'who': 'me'}), "unknown field 'who'"),
  'provenance of another type': (
    dict(prompt='a', steps=_step(), provenance={'errors': 'extra'}),
    'provenance.errors is str',
  ),
  'seed of another type': (dict(prompt='a', steps=_step(), provenance={'seed': True}), 'provenance.seed is bool'),
  'unknown cost': (dict(prompt='a', steps=_step(), provenance={'cost': {'eggs': 1}}), 'provenance: .*eggs'),
  'id of another type': (dict(prompt='a', steps=_step(), id=[1]), 'id is list'),
  'spec that is none': (dict(prompt='a', steps=_step(), spec={'tag': 'x', 'include': [{}]}), 'no row of GenEval'),
  'metadata of another type': (dict(prompt='a', steps=_step(), metadata=[1]), 'metadata is list'),
}


def test_malformed_lines_of_jsonl(tmp_path):
  folder = tmp_path / 'mine'
  good = [foreign.jsonl_line(n) for n in range(2)]
  foreign.write_jsonl(folder, [good[0], *(line for line, _ in MALFORMED.values()), good[1]])
  (tmp_path / 'secret.png').write_bytes(foreign.png(0))
  (folder / 'link.png').symlink_to(tmp_path / 'secret.png')
  (folder / 'linked').symlink_to(tmp_path)
  (folder / 'cut.png').write_bytes(foreign.png(0)[:300])
  (folder / 'empty.png').write_bytes(b'')
  counts = _import('jsonl', folder, tmp_path / 'out')
  assert (counts.kept, counts.rejected) == (2, len(MALFORMED))
  assert [t.provenance.id for t in _kept(tmp_path / 'out')] == ['id 0', 'id 1']
  for number, (row, (kind, (_, message))) in enumerate(
    zip(_rejected(tmp_path / 'out'), MALFORMED.items(), strict=True)
  ):
    assert (row['file'], row['row']) == ('a.jsonl', number + 2), kind
    with pytest.raises(ValueError, match=message):
      raise ValueError(row['reason'])


def test_lines_that_are_too_long_are_passed_over(tmp_path, monkeypatch):
  monkeypatch.setattr(jsonl, '_LONGEST_LINE', 2000)
  long = foreign.jsonl_line(1, metadata={'a': 'x' * 9000})
  foreign.write_jsonl(tmp_path / 'mine', [foreign.jsonl_line(0), long, foreign.jsonl_line(2)])
  counts = _import('jsonl', tmp_path / 'mine', tmp_path / 'out')
  assert (counts.kept, counts.rejected) == (2, 1)
  assert _rejected(tmp_path / 'out')[0]['reason'] == 'the line has more than 2000 bytes'


def test_what_a_record_cannot_hold_is_rejected(tmp_path, monkeypatch):
  monkeypatch.setattr(record_codec, '_MOST_PIXELS', 3 * 16 * 16)
  foreign.write_jsonl(
    tmp_path / 'mine', [dict(prompt='a', steps=[{'draft': 'pictures/0a.png'}]), foreign.jsonl_line(0)]
  )
  foreign.write_jsonl(tmp_path / 'mine', [dict(prompt='a', steps=[{'draft': 'pictures/0a.png'}] * 4)], name='b.jsonl')
  counts = _import('jsonl', tmp_path / 'mine', tmp_path / 'out')
  assert (counts.kept, counts.rejected) == (2, 1)
  assert 'The pictures of the trajectory have 1024 pixels together' in _rejected(tmp_path / 'out')[0]['reason']


def test_the_splits_that_lines_give_leak_no_prompt(tmp_path):
  lines = [
    dict(prompt='One Ring', steps=_step(), id=0, split='train'),
    dict(prompt='one ring.', steps=_step(), id=1, split='heldout'),
    dict(prompt='ONE  RING', steps=_step(), id=2),
    dict(prompt='two rings', steps=_step(), id=3, split='train'),
    dict(prompt='Two rings!', steps=_step(), id=4),
    dict(prompt='three rings', steps=_step(), id=5),
    dict(prompt='four rings', steps=_step(), id=6, split='heldout'),
    dict(prompt='Four Rings', steps=_step(), id=7, split='train'),
  ]
  foreign.write_jsonl(tmp_path / 'mine', lines)
  counts = _import('jsonl', tmp_path / 'mine', tmp_path / 'out', heldout=1)
  assert [t.provenance.id for t in records.read(tmp_path / 'out' / 'train')] == ['3', '4']
  assert [t.provenance.id for t in records.read(tmp_path / 'out' / 'heldout')] == ['1', '2', '5', '6']
  assert (
    counts.rejected == 2 and "another line with this prompt is 'heldout'" in _rejected(tmp_path / 'out')[0]['reason']
  )


def _check(name, tmp_path, good, bad):
  """bad: (row, what its reason says). Parquet wants one type a column: each row is a file of its own."""
  rows = [good, *(row for row, _ in bad), good]
  for number, row in enumerate(rows):
    foreign.write_parquet(tmp_path / name / f'{number:03d}.parquet', [row])
  counts = _import(name, tmp_path / name, tmp_path / 'out')
  assert (counts.kept, counts.rejected) == (2, len(bad)), _rejected(tmp_path / 'out')
  for number, (found, (_, message)) in enumerate(zip(_rejected(tmp_path / 'out'), bad, strict=True), 1):
    assert found['file'] == f'{number:03d}.parquet'
    with pytest.raises(ValueError, match=message):
      raise ValueError(found['reason'])


def test_malformed_rows_of_thinkmorph(tmp_path):
  def row(**changes):
    return foreign.thinkmorph(1, **changes)

  lacking = row()
  del lacking['answer']
  bad = [
    (lacking, "no column 'answer'"),
    (row(question=None), 'question is missing'),
    (row(question='  '), 'question is empty'),
    (row(question=3), 'question is int'),
    (row(resoning_thought_0='<ins>x'), 'resoning_thought_0 holds the tag <ins>'),
    (row(problem_image_0=None), 'problem_image_0 is missing'),
    (row(problem_image_0=foreign.cell(None)), 'problem_image_0 is missing'),
    (row(reasoning_image_0=foreign.cell(foreign.png(0)[:200])), 'reasoning_image_0: .*cannot be decoded'),
    (row(reasoning_image_0='a.png'), 'reasoning_image_0 is str'),
    (row(reasoning_image_0=foreign.cell('text')), 'reasoning_image_0 is str'),
  ]
  _check('thinkmorph', tmp_path, row(), bad)


def test_malformed_rows_of_zebra_cot(tmp_path):
  def row(**changes):
    return foreign.zebra_cot(1, **changes)

  bad = [
    (row(**{'Final Answer': None}), 'Final Answer is missing'),
    (row(reasoning_image_2=None), 'reasoning_image_2 is missing'),
    (row(problem_image_1=None), 'problem_image_1 is missing'),
    (row(**{'Text Reasoning Trace': 'THOUGHT 0: I know.'}), 'the trace holds no picture'),
    (row(**{'Text Reasoning Trace': 'a <image_start>[other]<image_end> b'}), 'none of problem_image_1'),
    (row(Question='<image_start>[problem_image_1]<image_end>'), 'Question is empty'),
  ]
  _check('zebra_cot', tmp_path, row(), bad)


def test_malformed_rows_of_math_canvas(tmp_path):
  def row(**changes):
    return foreign.math_canvas(1, **changes)

  parts = row()['solution_interleave']
  bad = [
    (row(answer=''), 'answer is empty'),
    (row(solution_interleave=None), 'solution_interleave is missing'),
    (row(solution_interleave=['x']), r'solution_interleave\[0\] is str'),
    (row(solution_interleave=parts[:1]), 'the trace holds no picture'),
    (row(solution_interleave=[dict(parts[1], index=2)]), 'names the picture 2 of 2'),
    (row(solution_interleave=[dict(parts[1], index=-1)]), 'names the picture -1 of 2'),
    (row(solution_interleave=[dict(parts[1], type='video')]), "the type 'video'"),
    (row(question_images=[]), 'names the picture 0 of 0'),
    (row(question_interleave=row()['question_interleave'][1:2]), 'the question is empty'),
    (row(solution_images=[foreign.cell(b'x')] * 2), r'solution_images\[1\]: .*none of BMP'),
  ]
  _check('math_canvas', tmp_path, row(), bad)


def test_malformed_rows_of_umm_reflection(tmp_path):
  def row(**changes):
    return foreign.umm(1, **changes)

  thinks, shown = row()['think_list'], row()['step_image_list']
  view = {key: value for key, value in row().items() if key not in ('step_image_list', 'think_list')}
  bad = [
    (view, 'no column step_image_list: it is a view'),
    (row(task='video'), "task is 'video'"),
    (row(user_prompt=''), 'user_prompt is empty'),
    (row(think_list=thinks[:2]), 'have 2, 3 and 3 entries'),
    (row(think_list=[thinks[0], 'edit it', thinks[2]]), r'think_list\[1\] is no single <think> block'),
    (row(think_list=[thinks[0], thinks[1].replace('[EDIT]', '[EDITS]'), thinks[2]]), 'needs ACTION, THINKING and EDIT'),
    (row(think_list=[thinks[0], thinks[1] + '<think>', thinks[2]]), 'no single <think> block'),
    (row(think_list=[thinks[0], foreign.response(1, 'edit', 't', 'None'), thinks[2]]), 'the last one must be done'),
    (row(think_list=[thinks[0], thinks[1], foreign.response(2, 'done', 't', 'e')]), 'the last one must be done'),
    (row(step_action_list=['edit', 'done', 'done']), "recorded is 'done'"),
    (row(step_image_list=[shown[0], None, None]), r'step_image_list\[1\] is missing'),
    (foreign.umm(1, edits=0, step_image_list=[b'x']), 'there is no edit'),
    (foreign.umm(1, task='edit', step_image_list=[None, *shown]), r'step_image_list\[0\] is missing'),
  ]
  _check('umm_reflection', tmp_path, row(), bad)


def test_damaged_parquet_files(tmp_path):
  folder = tmp_path / 'p'
  for name in 'abcd':
    foreign.write_parquet(folder / f'{name}.parquet', [foreign.thinkmorph(n) for n in range(4)], group=2)
  (folder / 'b.parquet').write_bytes((folder / 'b.parquet').read_bytes()[:5000])
  content = bytearray((folder / 'c.parquet').read_bytes())
  second = pyarrow.parquet.ParquetFile(folder / 'c.parquet').metadata.row_group(1).column(1)
  at = second.dictionary_page_offset or second.data_page_offset
  content[at : at + 40] = b'\xff' * 40
  (folder / 'c.parquet').write_bytes(content)
  pyarrow.parquet.write_table(pyarrow.table({'x': [1]}), folder / 'e.parquet')
  counts = _import('thinkmorph', folder, tmp_path / 'out')
  found = _rejected(tmp_path / 'out')
  assert [row['file'] for row in found] == ['b.parquet', 'c.parquet', 'e.parquet']
  assert 'after row 0' in found[0]['reason'] and 'after row 2' in found[1]['reason']
  assert 'none of the columns' in found[2]['reason']
  assert counts.kept == 4 + 2 + 4


def test_a_disk_that_is_gone_is_no_fault_of_a_row(tmp_path, monkeypatch):
  foreign.write_parquet(tmp_path / 'a.parquet', [foreign.thinkmorph(0)])

  def fail(path):
    raise OSError(5, 'Input/output error')

  monkeypatch.setattr(pyarrow.parquet, 'ParquetFile', fail)
  with pytest.raises(OSError, match='Input/output'):
    list(importers.read('thinkmorph', tmp_path))
  base.raise_if_of_the_disk(OSError('of a parser'))


def test_without_pyarrow(tmp_path, monkeypatch):
  (tmp_path / 'a.parquet').write_bytes(b'')
  monkeypatch.setitem(__import__('sys').modules, 'pyarrow.parquet', None)
  with pytest.raises(ImportError, match=r'pip install "pdgen\[parquet\]"'):
    list(importers.read('thinkmorph', tmp_path))


def test_row_groups_that_are_not_wanted_are_not_read(tmp_path, monkeypatch):
  foreign.write_parquet(tmp_path / 'a.parquet', [foreign.thinkmorph(n) for n in range(9)], group=3)
  real, read = pyarrow.parquet.ParquetFile.iter_batches, []

  def iter_batches(self, **options):
    read.append(options['row_groups'])
    return real(self, **options)

  monkeypatch.setattr(pyarrow.parquet.ParquetFile, 'iter_batches', iter_batches)
  assert [where.row for where, _ in importers.read('thinkmorph', tmp_path, start=4)] == [5, 6, 7, 8, 9]
  assert read == [[1], [2]]


def test_columns_that_are_not_needed_are_not_read():
  assert parquet._is_one_of('problem_image_12', ('Question', 'problem_image_*'))
  assert not parquet._is_one_of('full_text_only_thought', ('question', 'problem_image_*'))
