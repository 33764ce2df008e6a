"""The table of what is learned in docs/design.md against the sequence; a weight of 0 silences its tokens alone."""

import dataclasses
import pathlib
import re

import pytest
from support import letters

from pdgen.core import config as config_lib

DESIGN = pathlib.Path(__file__).parents[1] / 'docs' / 'design.md'
Step = letters.Step
# Every kind of token; the words of each text are one letter, pictures one grey.
TRAJECTORY = letters.Trajectory(
  prompt='pp',
  steps=(
    Step(
      plan='bbb',  # Rejected.
      draft=letters.picture(10),  # Rejected.
      inspection='ii no <refine>i</refine>',
      corrected_plan='ccc',
      refined=letters.picture(20),
    ),
    Step(plan='aaa', draft=letters.picture(30), inspection='ii ok'),
    Step(plan='aaaa', draft=letters.picture(30)),
  ),
)
# What is written without a process.
FREE = letters.Trajectory(
  prompt='pp', mode='free', steps=(Step(text='tttt'), Step(text='ttt', draft=letters.picture(30)))
)
TEXTS = {
  't': 'text_weight',
  'a': 'plan_weight',
  'b': 'rejected_plan_weight',
  'c': 'corrected_plan_weight',
  'i': 'inspection_weight',
}
PICTURES = {10: 'rejected_draft_weight', 20: 'refined_weight', 30: 'draft_weight'}
# Every kind with a weight of its own.
ON = dataclasses.replace(
  letters.PLAIN,
  noised_copies=2,
  plan_weight=2.0,
  corrected_plan_weight=3.0,
  rejected_plan_weight=5.0,
  inspection_weight=7.0,
  text_weight=13.0,
  verdict_weight=11.0,
  decisive=('no', 'ok', '<refine>'),
  fault_weight=1.5,
  faults=('no',),
  boundary_weight=0.5,
  draft_weight=0.25,
  rejected_draft_weight=0.75,
  refined_weight=1.25,
)


def table():
  """Field to default, of the table in the document."""
  text = DESIGN.read_text(encoding='utf-8')
  section = text[text.index('### What is learned') :].split('\n## ')[0]
  return {name: float(default) for name, default in re.findall(r'^\| `(\w+)` \| ([\d.]+) \|', section, re.MULTILINE)}


def learned(cfg, model=letters.WITH_VIT):
  """(field of its kind, label or grey, weight) of every supervised token, in the order of the sequences."""
  rows = (letters.build(trajectory, cfg, model=model) for trajectory in (TRAJECTORY, FREE))
  return [token for row in rows for token in learned_of(row)]


def learned_of(row):
  und, gen, ids = row.und, row.gen, letters.WORDS.specials
  found, text = [], ''
  for token, label, weight in zip(und.token_id, und.label, und.weight, strict=True):
    word = letters.WORDS.decode([int(token)])
    text = '' if token == ids.im_start else text + word if token < 128 else text
    if not weight:
      continue
    is_boundary = token in (ids.vision_end, ids.im_end)
    letter = next((x for x in text or letters.WORDS.decode([int(label)]) if x in TEXTS), 'i')
    found.append(('boundary_weight' if is_boundary else TEXTS[letter], int(label), float(weight)))
  for picture, weight in zip(gen.picture, gen.weight, strict=True):
    if weight:
      grey = int(row.pictures[picture, 0, 0, 0])
      found.append((PICTURES[grey], grey, float(weight)))
  return found


def test_the_table_has_every_kind_and_its_default():
  fields = {field.name: field.default for field in dataclasses.fields(config_lib.SequenceConfig)}
  kinds = {name for name in fields if name.endswith('_weight')} - {'verdict_weight', 'fault_weight'}
  assert table() == {name: fields[name] for name in kinds}
  assert {kind for kind, _, _ in learned(ON)} == kinds


@pytest.mark.parametrize('field', sorted(table()))
@pytest.mark.parametrize('vit', [False, True], ids=['no ViT', 'ViT'])
def test_a_weight_of_zero_silences_these_tokens_and_no_others(field, vit):
  model = letters.WITH_VIT if vit else letters.MODEL
  before, after = (learned(cfg, model) for cfg in (ON, dataclasses.replace(ON, **{field: 0.0})))
  silent = [one for one in before if one[0] == field]
  want = [one for one in before if one[0] != field]
  if field == 'rejected_plan_weight':  # And the label after it, the first of all boundary labels.
    want.remove(next(one for one in want if one[0] == 'boundary_weight'))
  assert len(silent) > 2 and after == want


@pytest.mark.parametrize('field', sorted(table()))
def test_a_weight_is_that_of_its_tokens(field):
  before, after = (learned(cfg) for cfg in (ON, dataclasses.replace(ON, **{field: 4.0})))
  assert len(before) == len(after)
  for old, new in zip(before, after, strict=True):
    ordinary = old[2] == getattr(ON, field)
    assert new[2] == (4.0 if old[0] == field and ordinary else old[2]), (old, new)
  assert sum(old != new for old, new in zip(before, after, strict=True)) > 2


def test_a_negative_weight_is_refused():
  with pytest.raises(ValueError, match=r'config\.data\.sequence\.draft_weight'):
    config_lib.SequenceConfig(draft_weight=-1.0)


def test_configs_of_the_second_format_keep_their_masks():
  sequence = {'plan_weight': 2.0, 'learn_rejected_plans': True, 'learn_rejected_drafts': True}
  old = {'data': {'sequence': sequence}}
  read = config_lib.from_config_dict(config_lib.upgrade(old, 2)).data.sequence
  assert (read.plan_weight, read.corrected_plan_weight, read.rejected_plan_weight) == (2.0, 2.0, 2.0)
  assert read.rejected_draft_weight == 1.0 and sequence['learn_rejected_plans']
  for format in (1, 2):
    assert config_lib.from_config_dict(config_lib.upgrade({}, format)).data.sequence == config_lib.SequenceConfig()
