"""OpenAI-compatible chat client: text and pictures in, text or JSON by a schema out; cached, budgeted, retried.

Works with api.openai.com and with the servers of vLLM and llama.cpp. Pictures go as base64 data URLs. A schema is sent
as `response_format` (`json_schema`) until the server refuses that, and always as words; the answer is checked in any
case, and asked for once more with what is wrong.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdgen.services import budget as budget_lib
from pdgen.services import cache as cache_lib
from pdgen.services import errors, pictures, structured, transport

_OVERHEAD = 32  # Tokens of a chat template around a message, at most.
_UNSUPPORTED = ('response_format', 'json_schema', 'guided', 'grammar', 'structured')  # Words of such a refusal.


@dataclasses.dataclass(frozen=True, eq=False)
class Message:
  """One message."""

  role: str  # `system`, `user` or `assistant`.
  text: str
  pictures: tuple[np.ndarray, ...] = ()  # uint8[H, W, 3], after the text.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
  """What a model answered, and what it took."""

  text: str  # As it was written.
  value: dict[str, Any] | None = None  # The object, where a schema was asked for.
  model: str  # By the server's own account.
  version: str = ''  # `system_fingerprint`, where the server has one.
  cost: budget_lib.Cost = budget_lib.Cost()  # Of this call; of one from the cache: a hit alone.
  repaired: bool = False  # The first answer broke the schema.
  cut: bool = False  # Ended by `max_tokens`.

  @property
  def by(self) -> str:
    """Model and version, for provenance."""
    return f'{self.model}@{self.version}' if self.version else self.model


class Chat:
  """A chat model behind an endpoint. Safe for threads."""

  def __init__(
    self,
    endpoint: transport.Endpoint,
    *,
    budget: budget_lib.Budget | None = None,
    price: budget_lib.Price | None = None,
    cache: cache_lib.Cache | None = None,
    max_tokens: int = 1024,
    temperature: float | None = 0.0,
    options: Mapping[str, Any] | None = None,
    response_format: bool = True,
    picture_tokens: int = 1536,
  ):
    """
    Args:
      endpoint: base URL up to the version, and the model.
      budget: may be shared with other clients; None: no limits.
      price: of the model; needed where the budget limits money.
      cache: of answers; None: every question is asked.
      max_tokens: of an answer.
      temperature: 0 is greedy; None: the server's own.
      options: more of the request's body (`top_p`, vLLM's `chat_template_kwargs`); a value of None removes a name.
        OpenAI's reasoning models want {'max_tokens': None, 'max_completion_tokens': 4096} and temperature=None.
      response_format: whether to send schemas apart from the messages, until the server refuses.
      picture_tokens: most tokens of a picture, for the budget alone.

    Raises: ValueError for a budget of money without a price; ImportError without the extra `judge`.
    """
    if budget is not None and budget.limits['money'] is not None and price is None:
      raise ValueError(f'The budget limits money: give the price of {endpoint.model}, or Price() if it is free.')
    self.endpoint = endpoint
    self.price = price or budget_lib.Price()
    self.cache = cache
    self.max_tokens = max_tokens
    self.picture_tokens = picture_tokens
    body = {'model': endpoint.model, 'max_tokens': max_tokens, 'temperature': temperature, **(options or {})}
    self._body = {name: value for name, value in body.items() if value is not None}
    self._takes_schemas = response_format
    self._transport = transport.Transport(endpoint, budget=budget)

  @property
  def name(self) -> str:
    """For provenance: model and host, known before any answer."""
    return f'{self.endpoint.model} at {self.endpoint.host}'

  def ask(
    self,
    messages: Sequence[Message],
    *,
    schema: structured.Schema | None = None,
    check: structured.Check | None = None,
    seed: int | None = None,
  ) -> Answer:
    """The answer to messages.

    Args:
      messages: the last one is the user's.
      schema: JSON schema of an object that the answer must be; None: any text.
      check: what is wrong with an object beyond the schema, or None.
      seed: of the sampling; part of the cache's key.

    Raises: errors.Unavailable, Refused, BadAnswer, BudgetExhausted.
    """
    if self.cache is None:
      return self._answer(self._ask(messages, schema, check, seed))

    def is_valid(entry: Any) -> bool:
      return schema is None or structured.problem(entry.get('value'), schema=schema, check=check) is None

    name = cache_lib.key(self._identity(messages, schema, seed))
    entry, hit = self.cache.get_or_compute(name, lambda: self._ask(messages, schema, check, seed), is_valid=is_valid)
    return self._answer({**entry, 'cost': dataclasses.asdict(budget_lib.Cost(cache_hits=1))} if hit else entry)

  def __repr__(self) -> str:
    return f'Chat({self.endpoint})'

  def _answer(self, entry: dict[str, Any]) -> Answer:
    return Answer(**{**entry, 'cost': budget_lib.Cost(**entry['cost'])})

  def _ask(
    self,
    messages: Sequence[Message],
    schema: structured.Schema | None,
    check: structured.Check | None,
    seed: int | None,
  ) -> dict[str, Any]:
    """The fields of an `Answer`, as JSON."""
    with self._transport.call() as call:
      if schema is None:
        text, whose = self._complete(call, messages, None, seed)
        return {'text': text, **whose, 'cost': dataclasses.asdict(call.cost)}
      asked = [*messages, Message('user', structured.instruction(schema))]
      text, whose = self._complete(call, asked, schema, seed)
      value, wrong = self._extract(text, whose, schema, check)
      repaired = value is None
      if repaired:
        again = Message('user', f'That is no valid answer: {wrong}. {structured.instruction(schema)}')
        text, whose = self._complete(call, [*asked, Message('assistant', text), again], schema, seed)
        value, wrong = self._extract(text, whose, schema, check)
        if value is None:
          raise errors.BadAnswer(f'{self.endpoint.host}: no valid answer in two tries: {wrong}')
      cost = dataclasses.asdict(call.cost)
      return {'text': text, 'value': value, **whose, 'repaired': repaired, 'cost': cost}

  def _extract(
    self, text: str, whose: dict[str, Any], schema: structured.Schema, check: structured.Check | None
  ) -> tuple[dict[str, Any] | None, str]:
    """As `structured.extract`; what is wrong says that the text was cut."""
    value, wrong = structured.extract(text, schema=schema, check=check)
    return value, f'{wrong}; it was cut at {self.max_tokens} tokens' if value is None and whose['cut'] else wrong

  def _complete(
    self, call: transport.Call, messages: Sequence[Message], schema: structured.Schema | None, seed: int | None
  ) -> tuple[str, dict[str, Any]]:
    """A text, and more of `Answer`: the model and version that wrote it, whether it was cut."""
    body = {**self._body, 'messages': [_wire(m) for m in _joined(messages)]}
    if seed is not None:
      body['seed'] = seed
    most = self._most(messages)
    if schema is not None and self._takes_schemas:
      form = {'type': 'json_schema', 'json_schema': {'name': 'answer', 'schema': dict(schema), 'strict': True}}
      try:
        values = call.post('chat/completions', most=most, actual=self._actual, json={**body, 'response_format': form})
        return self._read(values)
      except errors.Refused as error:
        if not any(word in str(error) for word in _UNSUPPORTED):
          raise
        self._takes_schemas = False
    return self._read(call.post('chat/completions', most=most, actual=self._actual, json=body))

  def _read(self, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    try:
      choice = values['choices'][0]
      message = choice['message']
      content, refusal = message.get('content'), message.get('refusal')
      reason = choice.get('finish_reason')
    except (KeyError, IndexError, TypeError, AttributeError):
      raise errors.BadAnswer(f'{self.endpoint.host}: the answer is no chat completion: {_start(values)}') from None
    if isinstance(content, list):  # Parts, of some servers.
      content = ''.join(p['text'] for p in content if isinstance(p, dict) and isinstance(p.get('text'), str))
    if refusal or reason == 'content_filter':
      raise errors.Refused(f'{self.endpoint.host}: the model refuses: {_start(refusal or reason)}')
    if not isinstance(content, str) or not content.strip():
      cut = f', cut at {self.max_tokens} tokens' if reason == 'length' else ''
      raise errors.BadAnswer(f'{self.endpoint.host}: the answer is empty{cut}')
    whose = {'model': values.get('model'), 'version': values.get('system_fingerprint')}
    names = {name: value if isinstance(value, str) else '' for name, value in whose.items()}
    return content, {**names, 'model': names['model'] or self.endpoint.model, 'cut': reason == 'length'}

  def _most(self, messages: Sequence[Message]) -> budget_lib.Cost:
    """The most that a request may take. A byte-level vocabulary has at most a token a byte of text."""
    prompt = sum(len(m.text.encode()) + _OVERHEAD + len(m.pictures) * self.picture_tokens for m in messages)
    completion = (
      max(v for k in ('max_tokens', 'max_completion_tokens') if isinstance(v := self._body.get(k, 0), int))
      or self.max_tokens
    )
    return self.price.of(budget_lib.Cost(calls=1, prompt_tokens=prompt, completion_tokens=completion))

  def _actual(self, values: dict[str, Any]) -> budget_lib.Cost | None:
    counts = budget_lib.counts(values.get('usage'), 'prompt_tokens', 'completion_tokens')
    if counts is None:
      return None
    return self.price.of(budget_lib.Cost(calls=1, prompt_tokens=counts[0], completion_tokens=counts[1]))

  def _identity(
    self, messages: Sequence[Message], schema: structured.Schema | None, seed: int | None
  ) -> dict[str, Any]:
    """All that decides an answer."""
    texts = [[m.role, m.text, [pictures.digest(p) for p in m.pictures]] for m in messages]
    return {'url': self.endpoint.base_url, **self._body, 'messages': texts, 'schema': schema, 'seed': seed}


def _joined(messages: Sequence[Message]) -> list[Message]:
  """Neighbours of one role as one message: some chat templates want the roles to alternate."""
  joined: list[Message] = []
  for message in messages:
    if joined and joined[-1].role == message.role:
      last = joined.pop()
      message = Message(last.role, f'{last.text}\n\n{message.text}', (*last.pictures, *message.pictures))
    joined.append(message)
  return joined


def _wire(message: Message) -> dict[str, Any]:
  if not message.pictures:
    return {'role': message.role, 'content': message.text}
  urls = [{'type': 'image_url', 'image_url': {'url': pictures.data_url(picture)}} for picture in message.pictures]
  return {'role': message.role, 'content': [{'type': 'text', 'text': message.text}, *urls]}


def _start(value: Any) -> str:
  return ' '.join(str(value).split())[:100]
