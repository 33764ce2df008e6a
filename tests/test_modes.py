"""Modes and prompts of texts and pictures, from what is given to the trajectory: one program for all of them."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image
from support import letters, scripted, stored, toy

from pdgen import prompt_flags, sample
from pdgen.core import config, modes, trajectory
from pdgen.data import record_codec
from pdgen.inference import requests, results, streaming
from pdgen.sampling import cycle, lanes
from pdgen.viewing import gallery, report, transcript

SAMPLING = config.SamplingConfig(max_pictures=3, max_text_tokens=10, max_tokens=140, flow_steps=2)
PICTURE, OTHER = toy.picture(1), toy.picture(2)
# Of one program: all rows have two scales that are not 1.
ASKED = [
  ('process', 'a ring', (2.0, 1.5)),
  ('edit', [PICTURE, 'night'], (4.0, 2.0)),
  ('answer', [OTHER, 'dogs?'], (2.0, 1.5)),
  ('think', 'a square', (4.0, 2.0)),
  ('free', ['a', PICTURE], (2.0, 1.5)),
  ('direct', ['at night', OTHER], (4.0, 2.0)),
]


@pytest.fixture(scope='module', autouse=True)
def short_system_prompts():
  """A program for 200 tokens of prompt takes seconds longer to compile."""
  before = dict(modes.TABLE)
  modes.TABLE.update({name: dataclasses.replace(mode, system=mode.system[:9]) for name, mode in before.items()})
  yield
  modes.TABLE.update(before)


@pytest.fixture(scope='module')
def painter():
  out = toy.refining_painter(toy.WITH_VIT, SAMPLING)
  records = config.SourceConfig(kind='records', name='x')  # Nobody knows which modes they teach.
  return dataclasses.replace(out, config=dataclasses.replace(out.config, data=config.DataConfig(
    sources=(records,), sequence=toy.PLAIN
  )))  # fmt: skip


def _arguments(asked):
  names, prompts, scales = zip(*asked, strict=True)
  # Words are chosen in two ways, too.
  ways = [dict(temperature=0.8, top_k=9, repetition_penalty=1.2) if mode == 'free' else {} for mode in names]
  own = [
    dataclasses.replace(SAMPLING, text_guidance=text, image_guidance=image, **way)
    for (text, image), way in zip(scales, ways, strict=True)
  ]
  return list(prompts), dict(mode=names, seed=list(range(len(asked))), sampling=own)


@pytest.fixture(scope='module')
def together(painter):
  prompts, options = _arguments(ASKED)
  return painter.sample(prompts, **options)


def _alone(painter, asked, seed):
  """The trajectory, sampled in the program of all of ASKED with idle rows beside it."""
  prompts, options = _arguments(ASKED)
  everything = requests.make(prompts, **options)
  shape = requests.batch_shape(everything, config=painter.config, tokenizer=toy.WORDS)
  prompts, options = _arguments([asked])
  chosen = requests.make(prompts, **{**options, 'seed': seed})
  out = painter.run(chosen, batch_size=len(ASKED), shape=shape, plan=lanes.Plan.of(len(ASKED)))
  host = jax.device_get({name: getattr(out, name) for name in results.FETCHED})
  return results.parse_output(chosen[0], host, 0, toy.WORDS)


def test_modes_and_scales_share_a_batch_and_a_program(painter, together):
  assert together.timings['compile_calls'] == 1
  programs = lanes.run._cache_size()
  for number, asked in enumerate(ASKED):
    want, got = _alone(painter, asked, number), together.trajectories[number]
    assert got.texts == want.texts and got.stop == want.stop
    for a, b in zip(got.pictures, want.pictures, strict=True):
      assert np.abs(a.astype(int) - b).max() <= 1  # Within 1e-5 of 2: the same level, or neighbours where they round.
  assert lanes.run._cache_size() == programs


def test_scales_and_modes_matter(painter, together):
  name, prompt, _ = ASKED[1]
  other = _alone(painter, (name, prompt, (1.5, 2.0)), 1)
  assert not np.array_equal(other.final, together.trajectories[1].final)
  changed = _alone(painter, (name, [OTHER, 'night'], (4.0, 2.0)), 1)
  assert not np.array_equal(changed.final, together.trajectories[1].final)


def test_each_mode_gives_what_its_row_says(together):
  process, edit, answer, think, free, direct = together.trajectories
  assert process.pictures and all(step.text is None for step in process.steps)
  for one in (edit, direct):
    assert one.texts == [] and len(one.pictures) == 1 and one.stop == trajectory.FINISHED
  assert len(answer.texts) == 1 and answer.pictures == [] and answer.stop == trajectory.FINISHED
  assert [(step.text is None, step.draft is None) for step in think.steps] == [(False, False)]
  assert {item.kind for item in free.items()} <= {trajectory.TEXT, trajectory.DRAFT}
  for (_, prompt, _), got in zip(ASKED, together.trajectories, strict=True):
    given = [prompt] if isinstance(prompt, str) else prompt
    assert got.prompt == ' '.join(part for part in given if isinstance(part, str))
    for part, kept in zip(given, got.given, strict=True):
      assert part is kept


def test_an_answer_is_a_text_and_many_are_a_list(monkeypatch):
  s = toy.WORDS.specials
  wrote = [s.im_start, *b'two', s.im_end]
  run, question = scripted.play(monkeypatch, wrote, wrote, wrote), [PICTURE, 'dogs?']
  painter = toy.painter(toy.WITH_VIT, SAMPLING)
  with pytest.warns(UserWarning, match="not trained in mode 'answer'.*--mode=process"):
    assert painter.answer(question) == 'two'
  with pytest.warns(UserWarning, match="not trained in mode 'think_answer'"):
    assert painter.answer([question, question], think=True) == ['two', 'two']
  for call in run.calls:  # The ViT copy alone.
    prefix = call.batch.prefix
    assert np.asarray(prefix.und.picture).max() == 0 and not np.asarray(prefix.gen.tokens.segment).any()


@pytest.mark.parametrize('mode', ['answer', 'think', 'free'])
def test_a_stream_tells_texts_that_are_no_plans(mode):
  s = toy.WORDS.specials
  [request] = requests.make([PICTURE, 'dogs?'], mode=mode, sampling=SAMPLING)
  row = streaming._Row(0, request, toy.WORDS)
  told = [event for token in (s.im_start, *b'two', s.im_end) for event in row.token(token)]
  assert ''.join(event.text for event in told if isinstance(event, streaming.Token)) == 'two'
  assert told[-1] == streaming.Text(row=0, step=0, kind=trajectory.TEXT, text='two')
  if mode != 'answer':
    assert row.picture(OTHER).kind == trajectory.DRAFT
  end = row.end(cycle.FINISHED, True).trajectory
  assert end.texts == ['two'] and len(end.steps) == 1 and end.given_pictures[0] is PICTURE


def test_a_trajectory_with_parts_is_kept_and_shown(together):
  for one in together.trajectories:
    record, _ = record_codec.encode(one, name='t')
    stored.assert_same([record_codec.decode(record)], [one])
    page, told = gallery.page([one]), transcript.text(one)
    assert page.count('class="given"') == bool(one.parts)
    assert all(gallery.text(step.text) in page for step in one.steps if step.text is not None)
    assert told.count('[given picture') == len(one.given_pictures)
    assert told.count('\ntext ') == sum(item.kind == trajectory.TEXT for item in one.items())


def test_records_without_parts_keep_their_bytes():
  header = record_codec.header_of(record_codec.encode(toy.full_trajectory(), name='t')[0])
  assert header['schema'] == 1 and 'parts' not in header['content'] and 'text' not in header['content']['steps'][0]
  one = dataclasses.replace(toy.full_trajectory(), parts=('a ring', PICTURE))
  header = record_codec.header_of(record_codec.encode(one, name='t')[0])
  assert header['schema'] == 2 and header['content']['parts'] == ['a ring', 0]


def _start(prompt, mode='edit'):
  return requests.start(prompt, mode)


def test_pictures_may_come_in_any_form(tmp_path):
  colors = np.zeros((16, 8, 4), np.uint8)
  colors[..., 3] = 128
  Image.fromarray(PICTURE).save(tmp_path / 'p.png')
  rotated = Image.fromarray(PICTURE)
  rotated.getexif()[0x0112] = 6
  for source, want in (
    (PICTURE, PICTURE),
    (tmp_path / 'p.png', PICTURE),
    ((tmp_path / 'p.png').read_bytes(), PICTURE),
    (Image.fromarray(PICTURE), PICTURE),
    (rotated, np.rot90(PICTURE, -1)),
    (colors, np.full((16, 8, 3), 127, np.uint8)),
    (np.full((4, 4), 65535, np.uint16), np.full((4, 4, 3), 255, np.uint8)),
  ):
    [got] = _start([source]).given_pictures
    np.testing.assert_array_equal(got, want)
    assert _start(source, 'free').prompt == ''


@pytest.mark.parametrize(
  ('prompt', 'mode', 'words'),
  [
    ('night', 'edit', "Mode 'edit' needs a picture"),
    ([PICTURE, 3], 'edit', 'texts and pictures, not int'),
    ([PICTURE, ['a', PICTURE]], 'edit', 'texts and pictures, not list'),
    ([np.zeros((4, 4, 3))], 'edit', r'A picture float64\[4, 4, 3\] is given'),
    ('a', 'edits', "Unknown mode 'edits'. Known: .*'edit'"),
  ],
)
def test_what_is_no_prompt_of_the_mode_is_refused(prompt, mode, words):
  with pytest.raises(ValueError, match=words):
    requests.make(prompt, sampling=SAMPLING, mode=mode)


def test_one_prompt_or_many():
  count = lambda prompts, **more: len(requests.make(prompts, sampling=SAMPLING, **more))
  assert count('a') == count([PICTURE, 'a']) == count(['a', PICTURE, 'b']) == count(PICTURE) == 1
  assert count(['a', 'b']) == count([[PICTURE, 'a'], 'b']) == 2
  with pytest.raises(ValueError, match='3 modes for 2 prompts'):
    count(['a', 'b'], mode=('direct',) * 3)
  with pytest.raises(ValueError, match='1 sampling configs for 2 prompts'):
    requests.make(['a', 'b'], sampling=[SAMPLING])


def test_parts_are_those_of_the_prompt_and_steps_those_of_the_mode():
  with pytest.raises(ValueError, match="'a' has other texts than its parts: 'b'"):
    trajectory.Trajectory(prompt='a', steps=(), parts=('b', PICTURE))
  for mode, step, part in (
    ('process', toy.Step(text='a'), 'text'),
    ('direct', toy.Step(text='a'), 'text'),
    ('edit', toy.Step(plan='a'), 'plan'),
    ('answer', toy.Step(draft=PICTURE), 'draft'),
    ('think', toy.Step(draft=PICTURE, inspection='a'), 'inspection'),
  ):
    with pytest.raises(ValueError, match=f'has a {part}, but those of mode {mode!r}'):
      trajectory.Trajectory(prompt='p', steps=(step,), mode=mode)


def test_a_mode_is_a_row():
  """One that a study adds: the model may answer or paint, and then it ends."""
  row = modes.Mode(name='either', after_prompt=modes.MOVES[:2], after_text=(modes.END,))
  assert (row.writes, row.paints, row.always_paints, row.paints_once) == (True, True, False, True)
  with pytest.raises(ValueError, match="Mode 'x': after_prompt has 'draw'"):
    modes.Mode(name='x', after_prompt=('draw',))
  with pytest.raises(ValueError, match='nothing may follow a text'):
    modes.Mode(name='x', after_prompt=(modes.WRITE,))
  assert modes.PAINTING == ('process', 'direct', 'think', 'umm_reflection')
  with pytest.raises(ValueError, match="Unknown mode 'think.write'"):
    modes.of('think.write')


def test_the_prompt_is_never_learned_and_what_follows_is():
  edit = letters.Trajectory(
    prompt='p q',
    parts=('p', letters.picture(9), 'q'),
    steps=(letters.Step(draft=letters.picture(1)),),
    mode='edit',
  )
  row = letters.build(edit, model=letters.WITH_VIT)
  learned = {int(row.pictures[p, 0, 0, 0]) for p in row.gen.picture[row.gen.weight > 0]}
  assert learned == {1}
  assert row.und.label[row.und.weight > 0].tolist() == [letters.WORDS.specials.endoftext]
  ids = letters.WORDS.specials
  assert row.und.token_id[:4].tolist() == [ids.im_start, ord('p'), ids.im_end, ids.vision_start]
  # VAE, then ViT, each with a position of its own (QUIRKS 32); an answer has the ViT copy alone.
  answer = letters.Trajectory(
    prompt='q', parts=(letters.picture(9), 'q'), steps=(letters.Step(text='aa'),), mode='answer'
  )
  row = letters.build(answer, dataclasses.replace(letters.PLAIN, text_weight=3.0), model=letters.WITH_VIT)
  assert not len(row.gen.patch) and row.und.tokens.position[:3].tolist() == [0, 0, 0]
  assert row.und.weight[row.und.weight > 0].tolist() == [3.0, 3.0, 3.0, 1.0]
  # Without a ViT it is the clean copy; a picture that is dropped takes the texts after it with it.
  assert len(letters.build(answer).gen.patch) == 4
  assert not letters.build(answer, dataclasses.replace(letters.PLAIN, drop_clean=1.0)).und.weight[:-1].any()


def test_a_blind_copy_sees_what_guidance_leaves_in():
  texts = letters.Trajectory(
    prompt='p q', parts=('p', 'q'), steps=(letters.Step(draft=letters.picture(1)),), mode='direct'
  )
  blind = dataclasses.replace(letters.PLAIN, drop_text=1.0)
  reach = lambda mode: set(letters.build(dataclasses.replace(texts, mode=mode), blind).gen.tokens.reach[:4].tolist())
  # Everything is dropped; or the last text alone (QUIRKS 27), after a system prompt and the first text.
  assert reach('direct') == {-1} and reach('think') == {len(modes.TABLE['think'].system) + 2 + 3 - 1}


def test_the_command_line_gives_pictures_to_the_next_prompt(together, tmp_path):
  flags = sample._parser().parse_args(
    ['--prompt=a', '--picture=x.png', '--picture=y.png', '--prompt=b', '--picture=z.png']
  )
  x, y, z = (pathlib.Path(f'{name}.png') for name in 'xyz')
  assert prompt_flags.read(flags.asked) == ['a', [x, y, 'b'], [z]]
  page = report.Folder(tmp_path, title='t').add(together.trajectories, [None] * len(ASKED))
  told = json.loads((tmp_path / 'trajectories.json').read_text())
  assert told[1]['parts'] == [{'picture': 'pictures/00001_1_given.png'}, {'text': 'night'}] and not told[0]['parts']
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'pictures' / '00001_1_given.png')), PICTURE)
  assert page.is_file() and told[2]['steps'][0]['text'] == together.trajectories[2].texts[0]
