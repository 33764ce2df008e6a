"""OpenAIWriter: the texts of a trajectory by an OpenAI-compatible chat model.

A task is a text (`construction.writers.Writer`), whose answer is given back as it is, or a name with a template, whose
fields are texts, numbers, JSON values (a scene graph) or pictures. `TASKS` holds the tasks of the paper's three subsets
in our wording; a dataset of one's own gives more, or other ones.
"""

import dataclasses
import json
import string
from collections.abc import Mapping
from typing import Any

import numpy as np

from pdgen.core import tags
from pdgen.services import chat as chat_lib

TASKS: Mapping[str, str] = {
  # Multi-turn generation: what a step does, and the scene after it.
  'instruction': (
    'A picture is painted step by step. Scene so far: {before}\nScene after the next step: {after}\n'
    'Write the instruction of the next step: one or two imperative sentences that name every object to add, change or '
    'remove, with its attributes and place, and nothing else.'
  ),
  'description': (
    'Describe this scene in one to three plain sentences that begin with "The image depicts". Name every object with '
    'its attributes and relations, and nothing else.\nScene: {scene}'
  ),
  # Inspections: the words around `<refine>`, which the caller adds.
  'approval': (
    'A picture is painted step by step. Prompt of the whole picture: {prompt}\nPlan of this step: {plan}\n'
    'The step is right. Write two or three sentences in the form: "The intermediate step is correct. .." Say what is '
    'shown, that nothing in it conflicts with the prompt, and what is still missing.'
  ),
  'error_analysis': (
    'A picture is painted step by step. Prompt of the whole picture: {prompt}\nPlan of this step: {plan}\n'
    'What is wrong: {reason}\nWrite one to three sentences that say what is wrong and how it contradicts the prompt or '
    'the plan. Give no instruction.'
  ),
  'correction': (
    'A picture is wrong. Prompt: {prompt}\nWhat is wrong: {reason}\nWrite the corrective instruction to a painter who '
    'sees the picture: one or two imperative sentences.'
  ),
}

_INSTRUCTIONS = (
  'You write short, exact texts about pictures. Plain English, one paragraph, no lists, no tags, no quotes around it.'
)
_SCHEMA = {
  'type': 'object',
  'properties': {'text': {'type': 'string', 'minLength': 1, 'maxLength': 2000}},
  'required': ['text'],
  'additionalProperties': False,
}


@dataclasses.dataclass(frozen=True)
class OpenAIWriter:
  """Asks a chat model. Safe for threads."""

  chat: chat_lib.Chat
  templates: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: TASKS
  )  # Of each task, as `str.format` takes it.
  instructions: str = _INSTRUCTIONS  # The system message.

  def write(self, task: str, **fields: Any) -> str:
    """As `construction.writers.Writer.write`, or by a template. Raises: ValueError; `services.errors`."""
    return self.ask(task, **fields)[0]

  def ask(self, task: str, **fields: Any) -> tuple[str, chat_lib.Answer]:
    """The text, and the answer that it comes from, with its cost.

    Args:
      task: a name of `templates`; without fields, the whole of what is asked.
      **fields: of the template; pictures uint8[H, W, 3] are shown beside it, under any name. `seed`: another text each.
    """
    seed = fields.pop('seed', None)
    if not fields and task not in self.templates:
      return self._ask(task, (), seed=seed, free=True)
    if task not in self.templates:
      raise ValueError(f'Unknown task {task!r}. Known: {sorted(self.templates)}')
    template = self.templates[task]
    pictures = tuple(value for value in fields.values() if isinstance(value, np.ndarray))
    texts = {name: _text(value) for name, value in fields.items() if not isinstance(value, np.ndarray)}
    wanted = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    if wanted != texts.keys():
      raise ValueError(f'The task {task!r} takes the fields {sorted(wanted)}, not {sorted(texts)}.')
    return self._ask(template.format(**texts), pictures, seed=seed, free=False)

  def _ask(
    self, words: str, pictures: tuple[np.ndarray, ...], *, seed: int | None, free: bool
  ) -> tuple[str, chat_lib.Answer]:
    """free: the answer is taken as it is; whoever asked reads tags or JSON out of it."""
    if free:
      answer = self.chat.ask([chat_lib.Message('user', words, pictures)], seed=seed)
      return answer.text, answer
    messages = [chat_lib.Message('system', self.instructions), chat_lib.Message('user', words, pictures)]
    answer = self.chat.ask(messages, schema=_SCHEMA, check=_fault, seed=seed)
    return _clean((answer.value or {})['text']), answer


def _text(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _clean(text: str) -> str:
  return ' '.join(text.split())


def _fault(value: dict[str, Any]) -> str | None:
  """Why a text cannot be part of a trajectory: tags in it would end the plan or the inspection around it."""
  text = value['text']
  if not text.strip():
    return 'the text is empty'
  found = [part for part in tags.split(text) if part in tags.NAMES]
  return f'the text holds the tag {found[0]}' if found else None
