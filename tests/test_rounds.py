"""Modes with a protocol, round by round: what each call sees, who goes on, and what is shown of it."""

import dataclasses
import json

import numpy as np
import pytest
from support import geneval_run, toy

from pdgen import evaluate_options, sample
from pdgen.core import config, modes, protocols, rounds, trajectory
from pdgen.evals import base, geneval
from pdgen.inference import requests, results
from pdgen.inference import rounds as host
from pdgen.viewing import gallery, report, transcript
from pdgen.worlds import shapes

pytestmark = [
  pytest.mark.filterwarnings('ignore:The model was not trained in mode'),
]
UMM = protocols.TABLE['umm_reflection']
SAMPLING = config.SamplingConfig(max_pictures=5, max_text_tokens=48, max_tokens=200, flow_steps=1, text_guidance=1.0)


class Script:
  """Stands for the compiled calls: keeps requests, writes what it was told, paints pictures that say when."""

  def __init__(self, texts):
    self.texts, self.calls = texts, []

  def __call__(self, asked):
    self.calls.append(asked)
    made = []
    for request in asked:
      if request.start.mode.endswith('.write'):
        user = next(part for part in request.start.parts if isinstance(part, str))
        made.append(request.start.with_text(self.texts[user].pop(0)))
      else:
        made.append(request.start.with_picture(np.full((16, 16, 3), len(self.calls), np.uint8)))
    chosen = tuple(results.Chosen(np.full(2, len(self.calls)), np.zeros(2)) for _ in made)
    timings = dict.fromkeys(('seconds', 'compile_calls', 'text_steps', 'rounds', 'tokens', 'pictures'), 1.0)
    return results.Result(made, timings, (1,) if len(self.calls) == 2 else (), chosen)


def _run(prompts, mode, texts, **options):
  sampling = dataclasses.replace(SAMPLING, max_text_tokens=200, text_guidance=3.0, image_guidance=1.5)
  made = requests.make(prompts, sampling=sampling, mode=mode, **options)
  script = Script(texts)
  return host.run(made, script, toy.MODEL, toy.WORDS), script


def _controller(number, edit, source='Image #0', action='edit'):
  return UMM.kept.format(round=number, score=3, thinking='No.', source=source, edit=edit).replace(
    '] edit', f'] {action}'
  )


def test_rounds_of_a_batch_end_one_by_one():
  texts = {
    'done': [_controller(0, 'None', action='done')],
    'twice': [_controller(0, 'Red.', 'Image #9'), _controller(1, 'Blue.'), _controller(2, 'None', action='done')],
    'garbage': ['what?'],
    'never': [_controller(i, f'{i}') for i in range(3)],
  }
  result, script = _run(
    list(texts), 'umm_reflection', {k: list(v) for k, v in texts.items()}, seed=[7, 8, 9, 2**32 - 1]
  )
  done, twice, garbage, never = result.trajectories
  assert [t.stop for t in result.trajectories] == ['finished', 'finished', 'unreadable', 'picture_cap']
  assert [len(t.pictures) for t in result.trajectories] == [1, 3, 1, 4]
  assert [t.texts for t in result.trajectories] == list(texts.values())  # As they were written.
  assert [len(call) for call in script.calls] == [4, 4, 2, 2, 2, 2, 1]
  assert np.all(twice.final == 5) and np.all(never.final == 7)  # The last picture is the result.
  assert result.not_finite == (1,) and result.timings['pictures'] == 7
  assert result.chosen[0].ids.tolist() == [1, 1, 2, 2] and len(result.chosen[3]) == 14

  # What each call saw.
  first, verdicts, edits, again = script.calls[:4]
  assert [r.start.parts for r in first] == [('done',), ('twice',), ('garbage',), ('never',)]
  assert modes.of(first[0].start.mode).system == '' and not first[0].begins
  assert modes.of(verdicts[0].start.mode).system == protocols.UMM_REFLECTION_SYSTEM
  assert verdicts[1].start.parts[0] == 'twice' and verdicts[1].start.parts[1] is twice.pictures[0]
  opening = UMM.begin(0).encode()
  assert [bytes(ids) for ids in verdicts[1].begins] == [opening + f'{n}/10'.encode() for n in range(11)]
  assert edits[0].start.parts == (twice.pictures[0], 'Red.') and edits[0].start.mode == 'umm_reflection.paint'
  # The host says which picture it was, as the released program does.
  seen = again[0].start.parts
  assert seen[:3:2] == ('twice', _controller(0, 'Red.', 'Image #0')) and seen[3] is twice.pictures[1]
  assert bytes(again[0].begins[0]).decode() == UMM.begin(1) + '0/10'
  # Seeds: the first picture is that of `direct`, all others have noise of their own.
  assert [r.seed for r in first] == [7, 8, 9, 2**32 - 1]
  seeds = [r.seed for call in script.calls for r in call]
  assert len(set(seeds)) == len(seeds) and max(seeds) < 2**32
  assert all(r.pictures == 1 and r.sampling.max_pictures == 1 for call in script.calls for r in call)
  guided = {r.start.mode: (r.sampling.text_guidance, r.sampling.image_guidance) for call in script.calls for r in call}
  assert guided == {'umm_reflection.paint': (3.0, 1.5), 'umm_reflection.write': (1.0, 1.0)}

  told = [[(r.number, r.move, r.source, r.source_name) for r in rounds.of(t)] for t in result.trajectories]
  assert told[0] == [(0, 'end', None, 'None')]
  assert told[1] == [(0, 'paint', 0, 'Image #0'), (1, 'paint', 1, 'Image #1'), (2, 'end', None, 'None')]
  assert told[2] == [(0, '', None, '')] and rounds.of(garbage)[0].problem == 'think is there 0 times'
  assert rounds.of(twice)[0].values['score'] == '3' and rounds.of(toy.full_trajectory()) == []


def test_a_given_picture_is_judged_first():
  given = toy.picture(1)
  texts = {'night': [_controller(0, 'Darker.', 'given'), _controller(1, 'None', action='done')]}
  result, script = _run([[given, 'night']], 'umm_reflection', texts)
  assert script.calls[1][0].start.parts == (given, 'Darker.')
  assert script.calls[2][0].start.parts[2] == _controller(0, 'Darker.', 'given')
  assert [r.source_name for r in rounds.of(result.trajectories[0])] == ['given', 'None']


def test_fewer_pictures_may_be_asked_for():
  texts = {'a': [_controller(0, 'x'), _controller(1, 'x')]}
  (one,), _ = (lambda pair: (pair[0].trajectories, pair[1]))(_run(['a'], 'umm_reflection', texts, pictures=2))
  assert one.stop == 'picture_cap' and len(one.pictures) == 2 and len(one.texts) == 1


def test_a_partial_trajectory_goes_on_from_where_it_stands():
  step = trajectory.Step(text=_controller(0, 'Red.'), draft=toy.picture(2))
  start = trajectory.Trajectory(
    prompt='a', steps=(trajectory.Step(draft=toy.picture(1)), step), mode='umm_reflection', stop=None
  )
  result, script = _run([start], None, {'a': [_controller(1, 'None', action='done')]})
  assert script.calls[0][0].start.parts[1:4:2] == (toy_same(script, 1), toy_same(script, 3))
  assert result.trajectories[0].stop == 'finished' and len(result.trajectories[0].pictures) == 2


def toy_same(script, place):
  """The picture at that place of what the first call saw, which is one."""
  picture = script.calls[0][0].start.parts[place]
  assert picture.shape == (16, 16, 3)
  return picture


def test_traces_of_texts_and_pictures():
  given, think = toy.picture(1), '<think>I draw.</think><image_start>'
  texts = {'what?': [think, think, '<answer>B</answer>']}
  result, script = _run([[given, 'what?']], 'thinkmorph', texts)
  one = result.trajectories[0]
  assert [(s.text is None, s.draft is None) for s in one.steps] == [(False, False), (False, False), (False, True)]
  assert one.stop == 'finished' and one.texts[-1] == '<answer>B</answer>'
  last = script.calls[-1][0].start.parts
  assert last[1:3] == ('what?', think) and last[3] is one.pictures[0] and last[5] is one.pictures[1]
  # Guidance knows the prompt alone (its program keeps those contexts), whoever asks.
  assert {r.asked for call in script.calls for r in call} == {2}
  texts = {'what?': [think] * 4}
  one = _run([[given, 'what?']], 'thinkmorph', texts)[0].trajectories[0]
  assert one.stop == 'picture_cap' and len(one.pictures) == 3 and len(texts['what?']) == 1

  result, script = _run([['what?', given]], 'zebra_cot', {'what?': ['THOUGHT 1', 'THOUGHT 2', 'Final Answer: 3']})
  one = result.trajectories[0]
  assert len(one.pictures) == 2 and one.stop == 'finished'
  assert {r.asked for call in script.calls for r in call} == {None}
  copies = {r.start.mode: modes.of(r.start.mode).copies for call in script.calls for r in call}
  assert copies == {'zebra_cot.write': modes.COPIES[1:], 'zebra_cot.paint': modes.COPIES}


def test_modes_share_their_rounds():
  texts = {'a': [_controller(0, 'None', action='done')], 'b': ['<image_start>', 'So.'], 'c': ['Hm.', '<answer>']}
  result, script = _run(
    list(texts), ['umm_reflection', 'thinkmorph', 'zebra_cot'], {k: list(v) for k, v in texts.items()}
  )
  assert [len(t.pictures) for t in result.trajectories] == [1, 1, 1]
  assert [t.texts for t in result.trajectories] == list(texts.values())
  assert [[r.start.prompt[0] for r in call] for call in script.calls] == [['b', 'c'], ['a', 'b', 'c'], ['a', 'b', 'c']]
  assert {t.stop for t in result.trajectories} == {'finished'}


@pytest.mark.parametrize('model', [toy.MODEL, toy.WITH_VIT])
def test_what_guidance_knows_of_traces(model):
  """ThinkMorph's contexts of guidance are those of the prompt, Zebra-CoT's and an edit's go on with the trace."""
  settings = config.Config(model=model, data=config.DataConfig(sequence=toy.PLAIN))
  specials = toy.WORDS.specials

  def seen(request):
    batch = requests.sample_batch([request], config=settings, tokenizer=toy.WORDS, encode=lambda _: None)
    und = batch.prefix.und
    texts = und.tokens.order[(und.token_id == specials.im_start) & (und.tokens.segment > 0)].tolist()
    return int(batch.kept_order[0]), int(batch.texts_until[0]), texts

  think, given = '<image_start>', toy.picture(1)
  _, script = _run([[given, 'what?']], 'thinkmorph', {'what?': [think] * 3})
  paints = [call[0] for call in script.calls if call[0].start.mode.endswith('paint')]
  assert len(paints) == 3
  for number, request in enumerate(paints):
    kept, until, texts = seen(request)  # The system prompt, the question, the thoughts.
    assert len(texts) == 3 + number and (kept, until) == (texts[1] - 1, texts[2])
  _, script = _run([['what?', given]], 'zebra_cot', {'what?': ['a', 'b', 'Final Answer: c']})
  for number, request in enumerate(call[0] for call in script.calls if call[0].start.mode.endswith('paint')):
    kept, until, texts = seen(request)
    assert len(texts) == 3 + number and (kept, until) == (texts[-1] - 1, config.MOST)
  _, script = _run([[given, 'night']], 'umm_reflection', {'night': [_controller(0, 'Red.', 'given')] * 3})
  kept, until, texts = seen(script.calls[1][0])
  assert len(texts) == 1 and (kept, until) == (texts[0] - 1, config.MOST)


# A study's row: short forms, a source that the text names.
_MINI = protocols.Protocol(
  fields=(
    protocols.Field(name='source', mark=r'^', value=r'(\w+)'),
    protocols.Field(name='edit', mark=r':', value=r'(.*)', needed=False),
  ),
  rules=(protocols.Rule('^done', protocols.END), protocols.Rule(':', protocols.PAINT)),
  begins='',
  sees=protocols.SOURCE,
  instruction='edit',
  source=protocols.NAMED,
  painted_name='p{number}',
  paints_first=True,
  edits=2,
)


@pytest.fixture(scope='module')
def mini():
  """A mode that a study adds by adding a row."""
  fields = dict(after_prompt=(modes.PAINT,), after_text=(modes.PAINT, modes.END), after_picture=(modes.WRITE,))
  modes.TABLE['mini'] = modes.Mode(name='mini', system='go', protocol=_MINI, **fields)
  yield modes.TABLE['mini']
  del modes.TABLE['mini']


def test_a_source_is_chosen_by_name(mini):
  texts = {'a': ['p0:red', 'p0:blue'], 'b': ['None:ring', 'p1:red'], 'c': ['p1:red'], 'd': ['p0:x', 'done']}
  result, script = _run(list('abcd'), 'mini', texts)
  a, b, c, _ = result.trajectories
  edits, again = script.calls[2], script.calls[4]
  assert edits[0].start.parts[0] is a.pictures[0] and again[0].start.parts[0] is a.pictures[0]
  assert edits[1].start.parts == ('ring',) and again[1].start.parts[0] is b.pictures[1]
  assert [t.stop for t in result.trajectories] == ['picture_cap', 'picture_cap', 'unreadable', 'finished']
  assert rounds.of(c)[0].problem == "source is 'p1'; there are ['p0']"


def test_a_batch_equals_each_alone(mini, monkeypatch):
  """The compiled calls, with texts that someone dictates, and with the model's own between them."""
  painter = toy.painter(toy.MODEL, dataclasses.replace(SAMPLING, inspection='dictated'))
  script = {'a': ['p0:red', 'done'], 'b': ['p0:x', 'p1:y'], 'c': ['?']}
  inspector = lambda t: script[t.prompt][len(t.texts)]
  options = dict(mode='mini', inspector=inspector, batch_size=3)
  together = painter.sample(list(script), seed=[1, 2, 3], **options)
  assert [t.stop for t in together.trajectories] == ['finished', 'picture_cap', 'unreadable']
  assert [t.texts for t in together.trajectories] == list(script.values())
  assert together.timings['pictures'] == 6 and together.timings['compile_calls'] <= 4
  direct = painter.sample('a', mode='direct', seed=1, batch_size=3, sampling=SAMPLING)
  assert np.abs(direct.trajectories[0].final.astype(int) - together.trajectories[0].pictures[0]).max() <= 1
  for number, prompt in enumerate(script):
    alone = painter.sample(prompt, seed=number + 1, **options)
    assert alone.timings['compile_calls'] == 0  # All rounds, and all batches, share the programs.
    got, want = together.trajectories[number], alone.trajectories[0]
    assert got.texts == want.texts and got.stop == want.stop
    for x, y in zip(got.pictures, want.pictures, strict=True):
      assert np.abs(x.astype(int) - y).max() <= 1
  a = together.trajectories[0].pictures
  assert np.abs(a[0].astype(int) - a[1]).max() > 1

  with pytest.raises(ValueError, match="Mode 'mini' goes round by round"):
    next(painter.stream('a', mode='mini', sampling=SAMPLING))
  with pytest.raises(ValueError, match='max_text_tokens=48 leaves no room: .* begin with 45 tokens'):
    painter.sample_batches('a', mode='umm_reflection', sampling=SAMPLING, batch_size=3)  # At the call.


def test_commands_take_the_modes(monkeypatch):
  for name in protocols.TABLE:
    assert sample._parser().parse_args(['--prompt=a', f'--mode={name}']).mode == name
  scored = evaluate_options.parser('evaluate', None)
  assert scored.parse_args(['geneval', '--mode=umm_reflection']).mode == 'umm_reflection'
  with pytest.raises(SystemExit):  # It ends with words.
    scored.parse_args(['geneval', '--mode=thinkmorph'])

  class Painter(geneval_run.Painter):
    def paint(self, prompt, seed):
      stop = 'unreadable' if seed else 'finished'
      steps = (toy.Step(draft=toy.picture(seed)),)
      return toy.Trajectory(prompt=prompt, steps=steps, mode='umm_reflection', stop=stop)

  rows = [{'prompt': name, 'tag': 'colors', 'include': [{'class': 'ring', 'count': 1}]} for name in 'abcd']
  scores = geneval.GenEval(
    prompts=base.PromptSet('mine', tuple(rows)), detector=shapes, mode='umm_reflection', batch_size=4
  ).run(Painter(), None)
  assert scores.details['eval/unreadable'] == 0.75
  assert '1 of them ended by themselves, 3 at a text that cannot be read' in scores.text


def test_rounds_are_shown(tmp_path):
  texts = {'a': [_controller(0, 'Red.'), _controller(1, 'None', action='done')], 'b': ['what?']}
  result, _ = _run(['a', 'b'], 'umm_reflection', texts)
  page = gallery.page(result.trajectories)
  assert 'round 0: edit of Image #0, score 3' in page and 'round 1: done, score 3' in page
  assert 'cannot be read: think is there 0 times' in page
  told = transcript.text(result.trajectories[0])
  assert 'round 0' in told and 'finished by itself after 2 pictures' in told
  report.Folder(tmp_path, title='t').add(result.trajectories, [None, None])
  first, second = json.loads((tmp_path / 'trajectories.json').read_text())
  assert [(r['move'], r['source'], r['values']['score']) for r in first['rounds']] == [
    ('paint', 0, '3'),
    ('end', None, '3'),
  ]
  assert second['rounds'][0]['problem'] == 'think is there 0 times' and second['stop'] == 'unreadable'
  summary = report.summary(result.trajectories, [None, None], timings=result.timings)
  assert '1 of 2 trajectories ended at a text that cannot be read' in summary
