"""Budget and disk cache of services: exact limits under threads and processes, resumes, damaged files."""

import json
import subprocess
import sys
import threading
from concurrent import futures

import numpy as np
import pytest

from pdgen.services import budget, cache, chat, errors
from tests.support import servers

HELLO = [chat.Message('user', 'hello')]
SCHEMA = {'type': 'object', 'properties': {'n': {'type': 'integer'}}, 'required': ['n']}


@pytest.fixture
def server():
  with servers.Server(chat=lambda messages, body: {'n': 7}) as server:
    yield server


def ask_many(asked: chat.Chat, count: int) -> list[str]:
  """The kinds of the answers to many questions, asked by eight threads."""

  def ask(number: int) -> str:
    try:
      return asked.ask([chat.Message('user', str(number))]).model
    except errors.ServiceError as error:
      return type(error).__name__

  with futures.ThreadPoolExecutor(8) as pool:
    return list(pool.map(ask, range(count)))


def test_calls_stop_exactly_at_the_limit_and_a_resume_goes_on_from_there(server, tmp_path):
  path = tmp_path / 'runs' / 'budget.json'
  for limit, already in ((20, 0), (25, 20), (25, 25)):
    spent = budget.Budget(calls=limit, path=path)
    assert spent.spent.calls == already
    kinds = ask_many(chat.Chat(server.endpoint(), budget=spent), 30)
    assert kinds.count('tiny-vl-2026-11') == limit - already
    assert kinds.count('BudgetExhausted') == 30 - limit + already
    assert len(server.asked()) == spent.spent.calls == limit
  assert json.loads(path.read_text())['spent']['prompt_tokens'] == 2500


def test_money_stops_exactly_at_the_limit(server):
  """A tenth cannot be written in binary: sums are rounded to the price's digits."""
  spent = budget.Budget(money=1.0)
  price = budget.Price(prompt=1000)  # 100 tokens at a thousandth: a tenth a call.
  asked = chat.Chat(server.endpoint(concurrency=1), budget=spent, price=price, max_tokens=1)
  asked._most = lambda messages: price.of(budget.Cost(calls=1, prompt_tokens=100))
  assert ask_many(asked, 12).count('tiny-vl-2026-11') == 10
  assert spent.spent.money == 1.0


@pytest.mark.parametrize('limits', [{'tokens': 5000}, {'money': 0.05}])
def test_no_limit_is_exceeded_under_threads(server, limits):
  spent = budget.Budget(**limits)
  asked = chat.Chat(server.endpoint(), budget=spent, price=budget.Price(prompt=10, completion=10), max_tokens=500)
  kinds = ask_many(asked, 80)
  assert kinds.count('tiny-vl-2026-11') == len(server.asked()) and kinds.count('BudgetExhausted') > 0
  (name, limit), *_ = limits.items()
  # Once all answers have come, less than what one request may take is left.
  assert limit - {'tokens': 533, 'money': 0.00534}[name] <= getattr(spent.spent, name) <= limit


def test_the_error_names_host_and_limit(server):
  asked = chat.Chat(server.endpoint(), budget=budget.Budget(tokens=1000), max_tokens=2000)
  with pytest.raises(errors.BudgetExhausted) as caught:
    asked.ask(HELLO)
  assert str(caught.value) == (
    f'{server.host}: the budget is exhausted: 0 of 1,000 tokens are spent, and the next request may take 2,037'
  )
  assert not server.seen


def test_tries_count_and_repairs_too(server):
  server.fail(servers.status(500), times=1)
  server.chat = lambda messages, body: 'no JSON'
  spent = budget.Budget(calls=9)
  with pytest.raises(errors.BadAnswer) as caught:
    chat.Chat(server.endpoint(), budget=spent).ask(HELLO, schema=SCHEMA)
  assert spent.spent.calls == 3 and spent.spent == caught.value.cost
  assert spent.spent.prompt_tokens == 200  # An error of the server takes none.


def test_what_may_have_been_billed_stays_charged(server):
  server.fail(servers.hang(), times=1)
  spent = budget.Budget()
  asked = chat.Chat(server.endpoint(request_seconds=0.1), budget=spent, max_tokens=50)
  assert asked.ask(HELLO).cost == spent.spent
  assert spent.spent == budget.Cost(calls=2, prompt_tokens=100 + 37, completion_tokens=10 + 50, estimated=1)


def test_a_budget_of_money_needs_a_price(server):
  with pytest.raises(ValueError, match='give the price of tiny-vl'):
    chat.Chat(server.endpoint(), budget=budget.Budget(money=1))
  with pytest.raises(ValueError, match='-1 calls'):
    budget.Budget(calls=-1)


@pytest.mark.parametrize(
  'content', ['', '{"format": 1}', '{"format": 2, "spent": {}}', '{"format": 1, "spent": {"a": 1}}']
)
def test_a_damaged_budget_is_refused_and_not_begun_anew(tmp_path, content):
  path = tmp_path / 'budget.json'
  path.write_text(content)
  with pytest.raises(ValueError, match='budget.json is'):
    budget.Budget(calls=1, path=path)


def test_processes_share_a_budget(tmp_path):
  code = """
import sys
from pdgen.services import budget
spent = budget.Budget(calls=100, path=sys.argv[1])
done = 0
for _ in range(60):
  try:
    spent.charge(budget.Cost(calls=1))
    spent.settle(budget.Cost(calls=1), budget.Cost(calls=1))
    done += 1
  except budget.Exhausted:
    pass
print(done)
"""
  run = [sys.executable, '-c', code, str(tmp_path / 'budget.json')]
  children = [subprocess.Popen(run, stdout=subprocess.PIPE) for _ in range(2)]
  assert sum(int(child.communicate()[0]) for child in children) == 100


# The cache.


def test_a_hit_makes_no_request(server, tmp_path):
  for _ in range(2):  # The second client is a second run.
    asked = chat.Chat(server.endpoint(), cache=cache.Cache(tmp_path), budget=budget.Budget(calls=1))
    answers = [asked.ask(HELLO, schema=SCHEMA) for _ in range(2)]
    assert [a.value for a in answers] == [{'n': 7}] * 2
    assert answers[1].cost == budget.Cost(cache_hits=1)
  assert len(server.asked()) == 1


def test_whatever_decides_an_answer_is_part_of_the_key(server, tmp_path):
  kept = cache.Cache(tmp_path)
  black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
  asked = chat.Chat(server.endpoint(), cache=kept)
  questions = [
    (asked, HELLO, {}),
    (asked, [chat.Message('system', 'hello')], {}),
    (asked, HELLO, {'seed': 1}),
    (asked, HELLO, {'schema': SCHEMA}),
    (asked, [chat.Message('user', 'hello', (black,))], {}),
    (asked, [chat.Message('user', 'hello', (white,))], {}),
    (asked, [chat.Message('user', 'hello', (white.reshape(1, 4, 3),))], {}),
    (chat.Chat(server.endpoint(model='other'), cache=kept), HELLO, {}),
    (chat.Chat(server.endpoint(), cache=kept, temperature=1.0), HELLO, {}),
    (chat.Chat(server.endpoint(), cache=kept, options={'top_p': 0.5}), HELLO, {}),
  ]
  for one, messages, options in questions:
    assert one.ask(messages, **options).cost.calls == 1
  for one, messages, options in questions:
    assert one.ask(messages, **options).cost.calls == 0
  assert len(server.asked()) == len(questions) == len(list(tmp_path.rglob('*.json')))


@pytest.mark.parametrize('damage', ['empty', 'half', 'other', 'changed'])
def test_a_damaged_entry_is_asked_for_again_with_a_warning(server, tmp_path, damage):
  asked = chat.Chat(server.endpoint(), cache=cache.Cache(tmp_path))
  asked.ask(HELLO, schema=SCHEMA)
  [file] = tmp_path.rglob('*.json')
  whole = file.read_text()
  assert '"n":7' in whole
  file.write_text({'empty': '', 'half': whole[:50], 'other': '[]', 'changed': whole.replace('"n":7', '"n":8')}[damage])
  with pytest.warns(UserWarning, match='damaged .* asked for again'):
    assert asked.ask(HELLO, schema=SCHEMA).value == {'n': 7}
  assert asked.ask(HELLO, schema=SCHEMA).cost.cache_hits == 1 and len(server.asked()) == 2


def test_an_entry_that_a_new_check_refuses_is_asked_for_again(server, tmp_path):
  asked = chat.Chat(server.endpoint(), cache=cache.Cache(tmp_path))
  asked.ask(HELLO, schema=SCHEMA)
  server.chat = lambda messages, body: {'n': 8}
  is_even = lambda value: None if value['n'] % 2 == 0 else 'odd'
  assert asked.ask(HELLO, schema=SCHEMA, check=is_even).value == {'n': 8}


def test_what_fails_is_not_kept(server, tmp_path):
  server.fail(servers.status(400))
  asked = chat.Chat(server.endpoint(), cache=cache.Cache(tmp_path))
  with pytest.raises(errors.Refused):
    asked.ask(HELLO)
  assert not list(tmp_path.rglob('*')) and asked.ask(HELLO).cost.calls == 1


def test_threads_that_ask_the_same_make_one_request(server, tmp_path):
  all_are_there = threading.Barrier(8, timeout=5)
  asked = chat.Chat(server.endpoint(), cache=cache.Cache(tmp_path))

  def ask(_: int) -> int:
    all_are_there.wait()
    return asked.ask(HELLO).cost.calls

  with futures.ThreadPoolExecutor(8) as pool:
    assert sum(pool.map(ask, range(8))) == 1
  assert len(server.asked()) == 1


def test_a_cache_that_cannot_be_written_costs_no_answer(server, tmp_path):
  (tmp_path / 'file').write_text('')
  asked = chat.Chat(server.endpoint(), cache=cache.Cache(tmp_path / 'file'))
  with pytest.warns(UserWarning):
    assert asked.ask(HELLO).cost.calls == 1
