"""Chat client against a real server: every fault ends as an answer or a typed error; keys are nowhere to be read."""

import json
import logging
import pickle
import re
import threading
import traceback
from concurrent import futures

import numpy as np
import pytest

from pdgen.services import budget, cache, chat, errors, keys, structured, transport
from tests.support import servers

KEY = 'sk-test/7+f3"9 x'.replace(' ', '')  # With characters that JSON and URLs escape.
PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
SCHEMA = {
  'type': 'object',
  'properties': {'n': {'type': 'integer', 'minimum': 0}},
  'required': ['n'],
  'additionalProperties': False,
}
HELLO = [chat.Message('user', 'hello')]


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setenv('TEST_SERVICE_KEY', KEY)
  with servers.Server(chat=lambda messages, body: {'n': 7}, key=KEY) as server:
    yield server


def client(server: servers.Server, **options) -> chat.Chat:
  names = {f for f in transport.Endpoint.__dataclass_fields__ if f in options}
  endpoint = server.endpoint(**{'key_env': 'TEST_SERVICE_KEY', **{name: options.pop(name) for name in names}})
  return chat.Chat(endpoint, **options)


def test_texts_and_pictures_arrive_and_the_answer_says_who_and_how_much(server):
  heard = []
  server.chat = lambda messages, body: heard.append((messages, body)) or 'A ring.'
  asked = client(server, max_tokens=50, options={'top_p': 0.5}, price=budget.Price(prompt=2, completion=10))
  answer = asked.ask([chat.Message('system', 'Look.'), chat.Message('user', 'What?', (PICTURE,))], seed=3)
  [(messages, body)] = heard
  assert [(m['role'], m['text']) for m in messages] == [('system', 'Look.'), ('user', 'What?')]
  np.testing.assert_array_equal(messages[1]['pictures'][0], PICTURE)
  assert (body['max_tokens'], body['temperature'], body['top_p'], body['seed']) == (50, 0.0, 0.5, 3)
  assert 'response_format' not in body
  cost = budget.Cost(calls=1, prompt_tokens=100, completion_tokens=10, money=0.0003)
  assert answer == chat.Answer(text='A ring.', model='tiny-vl-2026-11', version='fp_1', cost=cost)
  assert answer.by == 'tiny-vl-2026-11@fp_1'
  assert server.seen[0].headers['authorization'] == f'Bearer {KEY}'


@pytest.mark.parametrize(
  'fault',
  [
    servers.status(429, retry_after=0),
    servers.status(429, retry_after='Thu, 26 Nov 2026 00:00:00 GMT'),
    servers.status(500),
    servers.status(503, body={'detail': [{'msg': 'loading'}]}),
    servers.garbage(),
    servers.half_json(),
    servers.cut_off(),
    servers.reset(),
  ],
  ids=['429', '429 date', '500', '503', 'garbage', 'half json', 'cut off', 'reset'],
)
def test_what_passes_is_tried_again(server, fault):
  server.fail(fault, times=2)
  answer = client(server).ask(HELLO, schema=SCHEMA)
  assert answer.value == {'n': 7} and answer.cost.calls == 3


@pytest.mark.parametrize(
  'fault, kind, cause',
  [
    (servers.status(429), errors.Unavailable, r'HTTP 429: status 429; gave up after 3 tries$'),
    (servers.status(502), errors.Unavailable, r'HTTP 502: status 502; gave up after 3 tries$'),
    (
      servers.status(429, retry_after=99),
      errors.Unavailable,
      r'after 1 try, 20 s are the limit; it asks to wait 99 s$',
    ),
    (servers.reset(), errors.Unavailable, r'Error.*; gave up after 3 tries$'),
    (servers.cut_off(), errors.Unavailable, r'RemoteProtocolError.*; gave up after 3 tries$'),
    (servers.garbage(), errors.BadAnswer, r'no whole JSON object: .*Bad Gateway.*3 tries$'),
    (servers.half_json(), errors.BadAnswer, r'no whole JSON object: .*3 tries$'),
    (servers.wrong_shape(), errors.BadAnswer, r'no chat completion'),
    (servers.raw(b'[1, 2]'), errors.BadAnswer, r'no whole JSON object'),
    (servers.raw(b'[' * 100_000), errors.BadAnswer, r'no whole JSON object'),
    (servers.status(401), errors.Refused, r'HTTP 401: status 401 \(the key is the value of TEST_SERVICE_KEY\)$'),
    (servers.status(500, body={'message': 'image input is not supported'}), errors.Refused, 'HTTP 500: image input'),
    (servers.status(404, body={'detail': 'no model'}), errors.Refused, r'HTTP 404: no model$'),
    (servers.status(302), errors.Refused, r'redirects are not followed'),
    (
      servers.status(429, body={'error': {'code': 'insufficient_quota', 'message': 'No credit.'}}),
      errors.Refused,
      'HTTP 429: No credit',
    ),
  ],
)
def test_what_stays_ends_as_an_error_that_names_host_and_cause(server, fault, kind, cause):
  server.fail(fault, times=99)
  with pytest.raises(kind, match=cause) as caught:
    client(server).ask(HELLO, schema=SCHEMA)
  assert str(caught.value).startswith(f'{server.host}: ') and '\n' not in str(caught.value)
  assert caught.value.cost.calls == len(server.asked())
  assert type(pickle.loads(pickle.dumps(caught.value))) is kind
  assert isinstance(caught.value, OSError)  # What commands end with one line for.


@pytest.mark.parametrize(
  'fault', [servers.hang(), servers.drip(), servers.drip(head=True)], ids=['hang', 'drip', 'head']
)
def test_what_hangs_is_left(server, fault):
  server.fail(fault, times=99)
  with pytest.raises(errors.Unavailable, match='no (whole )?answer within 0.1 s.*gave up after 2 tries'):
    client(server, request_seconds=0.1, tries=2).ask(HELLO)


def test_the_whole_call_has_a_limit_too(server):
  server.fail(servers.hang(), times=99)
  with pytest.raises(errors.Unavailable, match='0.3 s are the limit'):
    client(server, request_seconds=0.2, total_seconds=0.3, tries=99).ask(HELLO)


def test_a_server_that_is_not_there(monkeypatch):
  monkeypatch.setenv('TEST_SERVICE_KEY', KEY)
  with servers.Server(chat=lambda messages, body: '') as gone:
    asked = client(gone)
  with pytest.raises(errors.Unavailable, match='ConnectError'):
    asked.ask(HELLO)


@pytest.mark.parametrize(
  'text',
  [
    '{"n": 7}',
    'Sure! Here it is:\n```json\n{"n": 7}\n```\nAnything else?',
    'I think {maybe} it is {"n": 7}.',
    '<think>{"n": 1}? No, {"m": 2}.</think> {"n": 7}',
    'no, {"n": 1} was </think>{"n": 7}',
    '{"n": -1} would be wrong, so {"n": 7}',
    '{"answer": {"n": 7}}',
  ],
)
def test_objects_are_found_in_prose(text):
  value, wrong = structured.extract(text, schema=SCHEMA)
  if text.startswith('{"answer"'):  # An object inside of another is not what was asked for.
    assert value is None and wrong
  else:
    assert value == {'n': 7} and wrong == ''


@pytest.mark.parametrize(
  'text, wrong',
  [
    ('', 'no whole JSON object'),
    ('{"n": 7', 'no whole JSON object'),
    ('{"n": NaN}', 'no whole JSON object'),
    ('{' * 50_000, 'no whole JSON object'),
    ('{"a":' * 50_000, 'no whole JSON object'),
    ('{"n": "7"}', r"\['n'\]: '7' is not of type 'integer'"),
    ('{"n": 7, "m": 1}', "'m' was unexpected"),
    ('[{"m": 1}]', "'n' is a required|'m' was unexpected"),
  ],
)
def test_what_is_wrong_with_an_object_is_said_in_one_line(text, wrong):
  value, said = structured.extract(text, schema=SCHEMA)
  assert value is None
  assert re.search(wrong, said) and '\n' not in said


def test_a_wrong_object_is_repaired_once(server):
  turns = iter(['The number is seven.', {'n': 7}])
  heard = []
  server.chat = lambda messages, body: heard.append(messages) or next(turns)
  answer = client(server).ask(HELLO, schema=SCHEMA)
  assert answer.value == {'n': 7} and answer.repaired and answer.cost.calls == 2
  assert [m['role'] for m in heard[1]] == ['user', 'assistant', 'user']
  assert 'no whole JSON object' in heard[1][2]['text'] and heard[1][1]['text'] == 'The number is seven.'


def test_and_then_refused(server):
  server.chat = lambda messages, body: {'n': -1}
  with pytest.raises(errors.BadAnswer, match=r"no valid answer in two tries: \['n'\]: -1 is less than"):
    client(server).ask(HELLO, schema=SCHEMA)
  assert len(server.asked()) == 2


def test_a_check_says_what_a_schema_cannot(server):
  with pytest.raises(errors.BadAnswer, match='in two tries: 7 is odd'):
    client(server).ask(HELLO, schema=SCHEMA, check=lambda value: '7 is odd')


def test_a_server_without_schemas_is_asked_in_words_from_then_on(server):
  server.schemas = False
  asked = client(server)
  assert asked.ask(HELLO, schema=SCHEMA).cost.calls == 2
  assert asked.ask(HELLO, schema=SCHEMA).cost.calls == 1
  assert '"additionalProperties"' in server.seen[-1].body['messages'][0]['content']
  server.schemas = True
  assert client(server).ask(HELLO, schema=SCHEMA).value == {'n': 7}
  assert server.seen[-1].body['response_format']['json_schema']['schema'] == SCHEMA


@pytest.mark.parametrize(
  'choice, kind, cause',
  [
    ({'message': {'content': None, 'refusal': 'I cannot.'}}, errors.Refused, 'the model refuses: I cannot'),
    ({'message': {'content': ''}, 'finish_reason': 'length'}, errors.BadAnswer, 'empty, cut at 1024 tokens'),
    ({'message': {'content': '{"n'}, 'finish_reason': 'length'}, errors.BadAnswer, 'object; it was cut at 1024 tokens'),
    ({'message': {'content': 'x'}, 'finish_reason': 'content_filter'}, errors.Refused, 'content_filter'),
    ({'message': {'content': [{'type': 'text', 'text': '{"n": 7}'}]}}, None, ''),
  ],
)
def test_other_ends_of_an_answer(server, choice, kind, cause):
  server.fail(servers.raw(json.dumps({'choices': [choice]}).encode()), times=2)
  if kind is None:
    answer = client(server).ask(HELLO, schema=SCHEMA)
    # The server did not say what it took: the most that it may have.
    assert answer.value == {'n': 7} and answer.cost.estimated == 1 and answer.cost.completion_tokens == 1024
  else:
    with pytest.raises(kind, match=cause):
      client(server).ask(HELLO, schema=SCHEMA)


def test_options_replace_and_remove_names(server):
  client(server, temperature=None, options={'max_tokens': None, 'max_completion_tokens': 4096}).ask(HELLO)
  assert server.seen[0].body.keys() == {'model', 'max_completion_tokens', 'messages'}
  spent = budget.Budget(tokens=4096)
  with pytest.raises(errors.BudgetExhausted):  # The prompt comes on top.
    client(server, budget=spent, options={'max_tokens': None, 'max_completion_tokens': 4096}).ask(HELLO)


def test_at_most_so_many_calls_at_once(server):
  gate = threading.Barrier(3, timeout=5)  # Three come at once, or the test fails.
  server.chat = lambda messages, body: gate.wait() is None or 'yes'
  asked = client(server, concurrency=3)
  with futures.ThreadPoolExecutor(9) as pool:
    list(pool.map(lambda i: asked.ask([chat.Message('user', str(i))]), range(9)))
  assert server.most_at_once == 3


# Keys.


def leaks(text: str) -> bool:
  return KEY in text or '7+f3' in text or '7%2Bf3' in text


@pytest.mark.parametrize('code', [200, 400, 401, 429, 500, 302])
def test_a_key_that_a_server_echoes_is_nowhere(server, code, tmp_path, caplog):
  """Not in errors, their chains and frames; not in logs of any level, representations, or cache."""
  caplog.set_level(logging.DEBUG)
  server.fail(servers.echo_key(code), times=99)
  asked = client(server, cache=cache.Cache(tmp_path), budget=budget.Budget(calls=9, path=tmp_path / 'budget.json'))
  with pytest.raises(errors.ServiceError) as caught:
    asked.ask(HELLO)
  error, shown = caught.value, []
  while error is not None:
    shown += [str(error), repr(error), *traceback.format_exception(error)]
    frames = traceback.walk_tb(error.__traceback__)
    shown += [
      repr(value) for frame, _ in frames if 'services' in frame.f_code.co_filename for value in frame.f_locals.values()
    ]
    error = error.__cause__ or error.__context__
  shown += [repr(asked), repr(asked.endpoint), caplog.text, *(str(vars(record)) for record in caplog.records)]
  shown += [file.read_text() for file in tmp_path.rglob('*') if file.is_file()]
  assert 'httpcore2' in caplog.text  # The library logs heads of responses: they were there to be hidden.
  assert not [text for text in shown if leaks(text)]
  assert keys.REDACTED in ' '.join(shown)


def test_nor_in_an_answer_and_its_cache_entry(server, tmp_path):
  server.chat = lambda messages, body: f'Your key is {KEY}, or {{"key": "{KEY}"}}.'
  asked = client(server, cache=cache.Cache(tmp_path))
  assert asked.ask(HELLO).text == 'Your key is [redacted], or {"key": "[redacted]"}.'
  assert not [file for file in tmp_path.rglob('*.json') if leaks(file.read_text())]


@pytest.mark.parametrize('value', ['', ' ', 'ключ-ключ-ключ', 'sk-line\nsk-line'])
def test_no_key_is_a_refusal_before_any_request(server, monkeypatch, value):
  monkeypatch.setenv('TEST_SERVICE_KEY', value)
  spent = budget.Budget(calls=1)
  with pytest.raises(errors.Refused, match='environment variable TEST_SERVICE_KEY') as caught:
    client(server, budget=spent).ask(HELLO)
  assert not server.seen and spent.spent.calls == 0 and (not value.strip() or value not in str(caught.value))


def test_short_words_are_no_secrets(monkeypatch):
  monkeypatch.setenv('TEST_SERVICE_KEY', 'none')
  keys.register('TEST_SERVICE_KEY')
  assert keys.redact('There is none.') == 'There is none.'


@pytest.mark.parametrize(
  'options, wrong',
  [
    ({'base_url': 'localhost:8000'}, 'http://'),
    ({'base_url': 'file:///etc/passwd'}, 'http://'),
    ({'base_url': 'https://user:secret-word@host/v1'}, 'of host has a user'),
    ({'base_url': 'https://host/v1?key=secret-word'}, 'key_env'),
    ({'base_url': 'https://host/v1', 'tries': 0}, 'tries=0'),
  ],
)
def test_endpoints_that_cannot_be(options, wrong):
  with pytest.raises(ValueError, match=wrong) as caught:
    transport.Endpoint(**{'model': 'm', **options})
  assert 'secret-word' not in str(caught.value)
