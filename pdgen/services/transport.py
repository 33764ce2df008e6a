"""HTTP transport of the service clients: retries with backoff and Retry-After, time limits, concurrency, budget.

A `Call` is one logical call of a client: it holds one of the endpoint's slots, and its requests (tries, polls,
downloads) share one limit of time. Every request has a hard limit too, whatever hangs: name lookup, connection, a byte
a minute. All that comes back is redacted (`services.keys`).

Retried: 408, 409, 425, 429, 5xx, timeouts, broken connections, half JSON. Not retried: any other status, 429 for an
account without credit, 500 for what is not supported. Redirects are not followed with a key.
"""

import contextlib
import dataclasses
import importlib.util
import queue
import threading
import time
import urllib.parse
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pdgen.services import budget as budget_lib
from pdgen.services import errors, faults, keys

_T = TypeVar('_T')
_MOST_BYTES = 64 * 2**20  # Of an answer or a picture.
_GRACE = 0.5  # Seconds that a request may end later than it should before its thread is left behind.
_PACKAGES = ('filelock', 'httpx2', 'jsonschema', 'tenacity')  # Of the extra `judge`.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
  """A model behind a URL, and how patiently it is asked. Holds no key, only the name of its variable."""

  base_url: str  # Up to the version: https://api.openai.com/v1, https://api.bfl.ai/v1, http://localhost:8000/v1.
  model: str  # The server's name for it.
  key_env: str | None = None  # Environment variable of the key; None: the server takes none.
  request_seconds: float = 120.0  # Of one request.
  total_seconds: float = 900.0  # Of one call with its retries, polls and downloads.
  tries: int = 6  # Requests for one answer.
  backoff_seconds: float = 1.0  # Before the second try, doubled after each, with as much jitter.
  most_backoff_seconds: float = 60.0  # Retry-After may ask for more.
  concurrency: int = 4  # Calls at once.

  def __post_init__(self):
    parts = urllib.parse.urlsplit(self.base_url)
    if parts.scheme not in ('http', 'https') or not parts.hostname:
      raise ValueError('Endpoint.base_url must begin with http:// or https:// and a host.')
    if parts.username or parts.password or parts.query or parts.fragment:
      raise ValueError(
        f'Endpoint.base_url of {parts.hostname} has a user, a query or a fragment. Put the key into an environment '
        'variable and its name into key_env.'
      )
    for name in ('request_seconds', 'total_seconds', 'tries', 'concurrency'):
      if not getattr(self, name) > 0:
        raise ValueError(f'Endpoint.{name}={getattr(self, name)} must be above 0.')
    if self.key_env is not None:
      keys.register(self.key_env)

  @property
  def host(self) -> str:
    """Host and port, as errors name it."""
    return urllib.parse.urlsplit(self.base_url).netloc

  def url(self, path: str) -> str:
    return f'{self.base_url.rstrip("/")}/{path.lstrip("/")}'


@dataclasses.dataclass(frozen=True)
class Response:
  """A complete answer of a server, as it came: what it holds is not shown before it is redacted."""

  status: int
  headers: Mapping[str, str] = dataclasses.field(repr=False)
  content: bytes = dataclasses.field(repr=False)


class Transport:
  """Requests to one endpoint. Safe for threads."""

  def __init__(self, endpoint: Endpoint, *, budget: budget_lib.Budget | None = None, key_header: str = 'authorization'):
    """
    Args:
      endpoint: of all requests.
      budget: charged by them; None: no limits.
      key_header: that holds the key; `authorization` as a bearer's.

    Raises: ImportError without the extra `judge`.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
      raise ImportError(f"Services need {', '.join(missing)}: pip install 'pdgen[judge]'")
    self.endpoint = endpoint
    self.budget = budget
    self.key_header = key_header
    self._slots = threading.BoundedSemaphore(endpoint.concurrency)
    self._guard = threading.Lock()
    self._client: Any = None

  @contextlib.contextmanager
  def call(self) -> Iterator['Call']:
    """One call, as soon as a slot is free. Errors carry the cost of its requests."""
    with self._slots:
      call = Call(self)
      try:
        yield call
      except errors.ServiceError as error:
        error.cost = call.cost
        raise

  def client(self) -> Any:
    """The `httpx2.Client`, made at the first request."""
    import httpx2

    with self._guard:
      if self._client is None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=self.endpoint.concurrency)
        self._client = httpx2.Client(timeout=self.endpoint.request_seconds, limits=limits)
        weakref.finalize(self, self._client.close)
      return self._client

  def __repr__(self) -> str:
    return f'Transport({self.endpoint})'


class Call:
  """The requests of one logical call."""

  def __init__(self, transport: Transport):
    self.cost = budget_lib.Cost()  # Of the requests so far.
    self._transport = transport
    self._endpoint = transport.endpoint
    self._began = time.monotonic()

  def post(
    self,
    path: str,
    *,
    most: budget_lib.Cost,
    actual: Callable[[dict[str, Any]], budget_lib.Cost | None] = lambda values: None,
    **body: Any,
  ) -> dict[str, Any]:
    """POSTs a request for an answer, with retries; the JSON object that comes back, redacted.

    Args:
      path: below the base URL.
      most: what one request may take at most; the budget is charged with it before the request is sent.
      actual: what a request took, from its answer; None: it does not say, and `most` it is.
      **body: `json`, or `data` and `files`, as httpx2 takes them.

    Raises: ServiceError.
    """
    return self.retried(lambda: self.post_once(path, most=most, actual=actual, **body))

  def post_once(
    self,
    path: str,
    *,
    most: budget_lib.Cost,
    actual: Callable[[dict[str, Any]], budget_lib.Cost | None] = lambda values: None,
    **body: Any,
  ) -> dict[str, Any]:
    """One try of `post`. Raises: faults.Transient, for `retried`; other ServiceErrors."""
    self._check_key()
    self._charge(most)
    took = dataclasses.replace(most, estimated=1)  # Until it is known better, and if the process is interrupted.
    try:
      response = self._send('POST', self._endpoint.url(path), has_key=True, **body)
      if response.status >= 400:
        took = budget_lib.Cost(calls=most.calls)
      values = faults.json_object(response, host=self._endpoint.host, key_env=self._endpoint.key_env)
      took = actual(values) or took
      return values
    except faults.Transient as fault:
      if not fault.may_be_billed:
        took = budget_lib.Cost(calls=most.calls)
      raise
    finally:
      self.cost += took
      if self._transport.budget is not None:
        self._transport.budget.settle(most, took)

  def get(self, url: str) -> dict[str, Any]:
    """GETs JSON, with retries, redacted. The key goes along where the URL is of the endpoint's own domain."""
    host = urllib.parse.urlsplit(url).netloc

    def once() -> dict[str, Any]:
      response = self._send('GET', url, has_key=self._is_own(url))
      return faults.json_object(response, host=host, key_env=self._endpoint.key_env)

    return self.retried(once)

  def download(self, url: str, *, parse: Callable[[bytes], _T]) -> _T:
    """GETs a file without the key, with retries, over redirects.

    Args:
      url: where it is.
      parse: makes a value of it. Its ValueError is retried too: half a file.

    Raises: Refused for what is no http(s) URL; ServiceError.
    """
    host = urllib.parse.urlsplit(url).netloc
    if urllib.parse.urlsplit(url).scheme not in ('http', 'https') or not host:
      raise errors.BadAnswer(f'{self._endpoint.host}: the address of the picture is no http URL')

    def once() -> _T:
      response = self._send('GET', url, has_key=False, follow_redirects=True)
      faults.check_status(response, host=host, key_env=None)
      try:
        return parse(response.content)
      except ValueError as error:
        raise faults.Transient(f'{host}: {keys.redact(str(error))}', is_answer=True) from None

    return self.retried(once)

  def retried(self, once: Callable[[], _T]) -> _T:
    """Calls `once` until it raises no `faults.Transient`, with backoff, within the tries and the time.

    Raises: BadAnswer where answers came to the end that are of no use; Unavailable.
    """
    import tenacity

    e = self._endpoint
    backoff = tenacity.wait_exponential_jitter(
      multiplier=e.backoff_seconds, jitter=e.backoff_seconds, max=e.most_backoff_seconds
    )

    def wait(state: tenacity.RetryCallState) -> float:
      fault = state.outcome.exception() if state.outcome is not None else None
      return max(backoff(state), getattr(fault, 'retry_after', None) or 0.0)

    def stop(state: tenacity.RetryCallState) -> bool:
      return state.attempt_number >= e.tries or state.upcoming_sleep >= self._seconds_left()

    retrying = tenacity.Retrying(
      retry=tenacity.retry_if_exception_type(faults.Transient),
      stop=stop,
      wait=wait,
      reraise=True,
    )
    try:
      return retrying(once)
    except faults.Transient as fault:
      last = fault
    tries = retrying.statistics.get('attempt_number', 1)
    kind = errors.BadAnswer if last.is_answer else errors.Unavailable
    why = f'gave up after {tries} {"try" if tries == 1 else "tries"}'
    if tries < e.tries:
      asked = '' if last.retry_after is None else f'; it asks to wait {last.retry_after:g} s'
      why += f', {e.total_seconds:g} s are the limit{asked}'
    raise kind(f'{last}; {why}')

  def sleep(self, seconds: float):
    """Waits between polls. Raises: Unavailable where the time is up."""
    if seconds >= self._seconds_left():
      raise errors.Unavailable(f'{self._endpoint.host}: no result within {self._endpoint.total_seconds:g} s')
    time.sleep(seconds)

  def _charge(self, most: budget_lib.Cost):
    if self._transport.budget is not None:
      try:
        self._transport.budget.charge(most)
      except budget_lib.Exhausted as error:
        raise errors.BudgetExhausted(f'{self._endpoint.host}: the budget is exhausted: {error}') from None

  def _check_key(self):
    if self._endpoint.key_env is not None:
      try:
        keys.get(self._endpoint.key_env)
      except ValueError as error:
        raise errors.Refused(f'{self._endpoint.host}: {error}') from None

  def _seconds_left(self) -> float:
    return self._began + self._endpoint.total_seconds - time.monotonic()

  def _is_own(self, url: str) -> bool:
    """Whether a URL may have the key: it is of the same host, or by https of a sibling (api.us1.bfl.ai, api.bfl.ai)."""
    own, other = (urllib.parse.urlsplit(u) for u in (self._endpoint.base_url, url))
    if own.scheme != other.scheme:
      return False
    domain = (own.hostname or '').partition('.')[2]
    is_sibling = own.scheme == 'https' and '.' in domain and (other.hostname or '').endswith(f'.{domain}')
    return own.netloc == other.netloc or is_sibling

  def _send(self, method: str, url: str, *, has_key: bool, **request: Any) -> Response:
    """One request in a thread of its own, which is left behind if it does not end in time."""
    host = urllib.parse.urlsplit(url).netloc
    seconds = min(self._endpoint.request_seconds, self._seconds_left())
    if seconds <= 0:
      raise faults.Transient(f'{host}: no time is left')
    transport = self._transport
    client = transport.client()
    key = (transport.key_header, self._endpoint.key_env) if has_key and self._endpoint.key_env else None
    outcome: queue.SimpleQueue[Response | faults.Transient | BaseException] = queue.SimpleQueue()

    def work():
      try:
        outcome.put(_exchange(client, method, url, key=key, seconds=seconds, **request))
      except BaseException as error:
        outcome.put(error)

    threading.Thread(target=work, daemon=True, name=f'request to {host}').start()
    try:
      got = outcome.get(timeout=seconds + _GRACE)
    except queue.Empty:
      got = faults.Transient(f'{host}: no answer within {seconds:.3g} s', may_be_billed=True)
    if isinstance(got, Response):
      return got
    # Without a chain and without the thread's frames: both hold the request with its headers, and so the key.
    raise faults.of(got, host=host, seconds=seconds).with_traceback(None)


def _exchange(
  client: Any, method: str, url: str, *, key: tuple[str, str] | None, seconds: float, **request: Any
) -> Response:
  """One request and its whole response. key: (header, environment variable), read here and held nowhere else."""
  host = urllib.parse.urlsplit(url).netloc
  follow = request.pop('follow_redirects', False)
  ends = time.monotonic() + seconds
  prepared = client.build_request(method, url, timeout=seconds, **request)
  if key is not None:
    header, variable = key
    prepared.headers[header] = f'Bearer {keys.get(variable)}' if header == 'authorization' else keys.get(variable)
  response = client.send(prepared, stream=True, follow_redirects=follow)
  try:
    parts, size = [], 0
    for part in response.iter_bytes():
      parts.append(part)
      size += len(part)
      if size > _MOST_BYTES:
        raise errors.BadAnswer(f'{host}: the answer is longer than {_MOST_BYTES:,} bytes')
      if time.monotonic() > ends:
        raise faults.Transient(f'{host}: no whole answer within {seconds:.3g} s', may_be_billed=True)
  finally:
    response.close()
  return Response(response.status_code, dict(response.headers), b''.join(parts))
