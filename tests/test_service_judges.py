"""Judges by models: a chat model behind a real server, and the shipped painter itself beside the exact judge."""

import numpy as np
import pytest

import pdgen
from pdgen import judges
from pdgen.construction import renderers
from pdgen.core import tags
from pdgen.core import trajectory as trajectory_lib
from pdgen.judges import base, openai
from pdgen.services import cache, chat, errors
from pdgen.worlds import shapes
from tests.support import servers

EXACT = judges.judge('exact', shapes)
PLAN = tags.plan('Paint a ring.', 'A red ring.')
BEFORE = (trajectory_lib.Step(plan=tags.plan('Paint a bar.', 'A bar.')),)


def question(picture: np.ndarray, **more) -> base.Question:
  return base.Question(prompt='a red ring', picture=picture, **more)


def by_colour(messages: list[dict], body: dict) -> dict:
  """Right are pictures that are red."""
  if messages[-1]['pictures'][0][0, 0, 0] > 128:
    return {'ok': True, 'reason': 'all is well', 'correction': None, 'confidence': 1}
  return {'ok': False, 'reason': ' It is not red. ', 'correction': 'Paint it red.', 'confidence': 0.75}


RED, BLUE = (np.full((8, 8, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255)))


def test_a_chat_model_judges_pictures():
  with servers.Server(chat=by_colour) as server:
    judge = judges.judge('openai', chat.Chat(server.endpoint()))
    by = 'tiny-vl-2026-11@fp_1'
    assert judge.judge(question(RED)) == base.Verdict(ok=True, by=by)
    wrong = base.Verdict(ok=False, reason='It is not red.', correction='Paint it red.', confidence=0.75, by=by)
    assert judge.judge(question(BLUE, plan=PLAN, before=BEFORE)) == wrong
    verdict, answer = openai.OpenAIJudge(chat.Chat(server.endpoint())).ask(question(BLUE))
    assert verdict == wrong and answer.cost.tokens == 110
    system, user, *_ = server.seen[1].body['messages']
    assert system['content'].startswith('You inspect pictures') and system['role'] == 'system'
    text = user['content'][0]['text']
    assert text.startswith(
      'Prompt: a red ring\nPlan of step 1, done: Paint a bar. Then: A bar.\n'
      'Plan of this step: Paint a ring. Then: A red ring.\n'
    )
    assert server.seen[0].body['response_format']['json_schema']['schema'] == openai.SCHEMA


@pytest.mark.parametrize(
  'value, wrong',
  [
    ({'ok': False, 'reason': '', 'correction': None, 'confidence': 1}, 'reason is empty'),
    ({'ok': True, 'reason': '', 'correction': None, 'confidence': 95}, "'confidence'.*95 is greater"),
    ({'ok': 'yes', 'reason': '', 'correction': None, 'confidence': 1}, "'ok'"),
    ({'ok': True}, 'required'),
  ],
)
def test_verdicts_that_say_nothing_are_refused(value, wrong):
  with servers.Server(chat=lambda messages, body: value) as server:
    with pytest.raises(errors.BadAnswer, match=wrong):
      openai.OpenAIJudge(chat.Chat(server.endpoint())).judge(question(RED))
    assert len(server.asked()) == 2


def test_another_picture_is_another_question(tmp_path):
  with servers.Server(chat=by_colour) as server:
    judge = openai.OpenAIJudge(chat.Chat(server.endpoint(), cache=cache.Cache(tmp_path)))
    assert [judge.judge(question(p)).ok for p in (RED, BLUE, RED, BLUE)] == [True, False, True, False]
    assert len(server.asked()) == 2
    with pytest.raises(ValueError, match=r'float64\[8, 8, 3\]'):
      judge.judge(question(RED / 255))


class Scripted:
  """A painter that has its inspections by heart."""

  def __init__(self, *inspections: str | None):
    self.inspections = inspections

  def sample(self, prompts, *, seed, batch_size, pictures):
    assert (seed, batch_size, pictures) == (3, 2, 1)
    self.asked = prompts
    done = [p if i is None else p.with_text(i) for p, i in zip(prompts, self.inspections, strict=True)]
    return type('Result', (), {'trajectories': done})


def test_the_inspection_of_a_painter_is_its_verdict():
  painter = Scripted(
    'It is right.', 'It is blue. <refine> Paint it red. </refine> So be it.', None, '<refine></refine>'
  )
  judge = judges.judge('self', painter, model='tiny', seed=3, batch_size=2)
  got = judge.judge_all([question(RED, plan=PLAN, before=BEFORE), *[question(BLUE, plan=PLAN)] * 3])
  right = base.Verdict(ok=True, by='tiny')
  wrong = base.Verdict(ok=False, reason='It is blue. So be it.', correction='Paint it red.', by='tiny')
  assert got == [right, wrong, right, base.Verdict(ok=False, by='tiny')]
  first = painter.asked[0]
  assert first.stop is None and first.steps[:1] == BEFORE and first.steps[1].draft is RED
  assert judge.judge_all([]) == []
  with pytest.raises(ValueError, match='no plan'):
    judge.judge(question(RED))


# Second steps of held-out prompts: (kind of error, index). Their prefixes share a compiled program.
ERRORS = [
  ('conflict_color', 1),
  ('conflict_shape', 1),
  ('wrong_color', 4),
  ('wrong_count', 1),
  ('missing', 3),
  ('extra', 8),
]
DRAFTS = [(None, 3), (None, 8), (None, 9), *ERRORS]


def test_the_shipped_model_paints_drafts_and_judges_them_as_the_exact_judge_does():
  """165 of 168 judgements agree (docs/experiments.md#judges-and-services)."""
  painter = pdgen.load('shapes')
  own = renderers.get('painter', painter)
  asked = []
  for kind, index in DRAFTS:
    partial = shapes.injected(kind, seed=0, index=index)
    before, last = partial.steps
    assert last.plan is not None and last.draft is not None
    more = {'plan': last.plan, 'expected': partial.expected, 'before': (before,)}
    asked.append(base.Question(prompt=partial.prompt, picture=last.draft, **more))
    if kind is None:
      instruction, description = tags.plan_parts(last.plan)
      request = renderers.RenderRequest(
        instruction=instruction, description=description, prompt=partial.prompt, before=(before,), seed=index
      )
      painted = own.render(request, before.draft)
      asked.append(base.Question(prompt=partial.prompt, picture=painted, **more))
  exact = [EXACT.judge(question).ok for question in asked]
  assert exact == [True] * 6 + [False] * len(ERRORS)
  verdicts = judges.judge('self', painter, batch_size=1).judge_all(asked)
  assert sum(v.ok == ok for v, ok in zip(verdicts, exact, strict=True)) >= len(asked) - 1
  assert all(v.correction and v.reason for v in verdicts if not v.ok)
