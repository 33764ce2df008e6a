"""Judge by a vision-language model behind an OpenAI-compatible server (GPT, Qwen-VL on vLLM, llama.cpp).

    judges.judge('openai', chat.Chat(transport.Endpoint(base_url='http://localhost:8000/v1', model='Qwen/Qwen3-VL-8B')))

The paper's judge of self-sampled traces is GPT with the prompt, the picture and the plan (paper, section on data); its
wording is not public, this one is ours.
"""

import dataclasses

from pdgen.core import tags
from pdgen.judges import base
from pdgen.services import chat as chat_lib

SCHEMA = {
  'type': 'object',
  'properties': {
    'ok': {'type': 'boolean', 'description': 'whether the picture is right'},
    'reason': {'type': 'string', 'description': 'what is wrong; empty if nothing is'},
    'correction': {
      'type': ['string', 'null'],
      'description': 'one instruction that corrects the picture; null if right',
    },
    'confidence': {'type': 'number', 'minimum': 0, 'maximum': 1},
  },
  'required': ['ok', 'reason', 'correction', 'confidence'],
  'additionalProperties': False,
}

INSTRUCTIONS = (
  'You inspect pictures that are painted step by step. You get the prompt of the whole picture, the plan of the '
  'current step if there is one, and the picture as it is after this step.\n'
  'The picture is right (ok) if it shows what the plan describes and nothing in it contradicts the prompt. What the '
  'plan does not describe yet may be missing. Without a plan the picture must show all that the prompt asks for. Check '
  'objects, counts, colours and places one by one. Ignore style and beauty.\n'
  'If it is wrong, say what and why in `reason`, and in `correction` what to paint, move or remove, as one instruction '
  'to a painter who sees the picture. If the plan itself contradicts the prompt, say so.'
)


def get(chat: chat_lib.Chat, *, instructions: str = INSTRUCTIONS) -> 'OpenAIJudge':
  """The judge of a chat model that takes pictures. instructions: the system message."""
  return OpenAIJudge(chat, instructions)


@dataclasses.dataclass(frozen=True)
class OpenAIJudge:
  """Asks a chat model for a Verdict. Safe for threads: `services.transport.Endpoint.concurrency` questions at once."""

  chat: chat_lib.Chat
  instructions: str = INSTRUCTIONS

  def judge(self, question: base.Question) -> base.Verdict:
    """What the model says of a picture; `expected` and `spec` are not shown to it.

    Raises: ValueError for a picture that is no uint8[H, W, 3]; `services.errors`.
    """
    return self.ask(question)[0]

  def ask(self, question: base.Question) -> tuple[base.Verdict, chat_lib.Answer]:
    """The verdict, and the answer that it comes from, with its cost. Raises: as `judge`."""
    base.check_picture(question.picture)
    lines = [f'Prompt: {question.prompt}']
    for number, step in enumerate(question.before):
      if step.plan is not None:
        lines.append(f'Plan of step {number + 1}, done: {_plan(step.plan)}')
    if question.plan is not None:
      lines.append(f'Plan of this step: {_plan(question.plan)}')
    messages = [
      chat_lib.Message('system', self.instructions),
      chat_lib.Message('user', '\n'.join(lines), (question.picture,)),
    ]
    answer = self.chat.ask(messages, schema=SCHEMA, check=_inconsistency)
    value = answer.value or {}
    verdict = base.Verdict(
      ok=value['ok'],
      reason='' if value['ok'] else value['reason'].strip(),
      correction=None if value['ok'] else (value['correction'] or '').strip() or None,
      confidence=float(value['confidence']),
      by=answer.by,
    )
    return verdict, answer


def _plan(text: str) -> str:
  """A plan in words, without tags that a chat model does not know."""
  try:
    instruction, description = tags.plan_parts(text)
  except ValueError:
    return text
  return f'{instruction} Then: {description}'


def _inconsistency(value: dict) -> str | None:
  """What the schema cannot say."""
  if not value['ok'] and not value['reason'].strip():
    return 'ok is false, but reason is empty'
  return None
