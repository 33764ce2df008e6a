"""What a response or a broken connection means: try again, refused, or an answer. Texts are redacted, of one line."""

import datetime
import email.utils
import json
from typing import Any, Protocol

from pdgen.services import errors, keys

_RETRIED = {408, 409, 425, 429, *range(500, 600)} - {501}
_BROKE = ('insufficient_quota', 'billing_hard_limit_reached')  # 429 of OpenAI that waiting does not heal.
_UNABLE = 'not supported'  # 500 of llama.cpp for pictures to a model of text: another try cannot help.
_MOST_TEXT = 200


class Transient(errors.ServiceError):
  """Worth another try. Stays in this folder: `Call.retried` ends it as Unavailable or BadAnswer."""

  def __init__(
    self, message: str, *, retry_after: float | None = None, may_be_billed: bool = False, is_answer: bool = False
  ):
    """
    Args:
      message: host and cause.
      retry_after: seconds that the server asks to wait.
      may_be_billed: the request may have been answered and paid for.
      is_answer: an answer came, of no use.
    """
    super().__init__(message)
    self.retry_after = retry_after
    self.may_be_billed = may_be_billed
    self.is_answer = is_answer


class Response(Protocol):
  """As `transport.Response`."""

  @property
  def status(self) -> int: ...

  @property
  def headers(self) -> Any: ...

  @property
  def content(self) -> bytes: ...


def check_status(response: Response, *, host: str, key_env: str | None):
  """Raises Transient or errors.Refused for a status that is none of success. key_env: named where the key is wrong."""
  if response.status < 300:
    return
  text = error_text(response.content)
  what = f'{host}: HTTP {response.status}{": " + text if text else ""}'
  is_broke = response.status == 429 and any(word in response.content.decode(errors='replace') for word in _BROKE)
  if response.status in _RETRIED and not is_broke and _UNABLE not in text:
    raise Transient(what, retry_after=retry_after(response.headers))
  if response.status in (401, 403) and key_env is not None:
    what += f' (the key is the value of {key_env})'
  if response.status < 400:
    what += ' (redirects are not followed with a key: correct base_url)'
  raise errors.Refused(what)


def json_object(response: Response, *, host: str, key_env: str | None) -> dict[str, Any]:
  """The JSON object of a response, redacted. Raises: as `check_status`; Transient for what is no JSON object."""
  check_status(response, host=host, key_env=key_env)
  try:
    values = json.loads(response.content)
  except (ValueError, RecursionError):
    values = None
  if not isinstance(values, dict):
    text = _line(response.content.decode(errors='replace'))
    raise Transient(f'{host}: the answer is no whole JSON object: {text[:60]!r}', may_be_billed=True, is_answer=True)
  return keys.redact(values)


def of(error: BaseException, *, host: str, seconds: float) -> BaseException:
  """What an exception of a request means; those of this folder are returned as they are.

  Args:
    error: of the HTTP library, or of `transport`.
    host: of the request.
    seconds: that it had.
  """
  if isinstance(error, errors.ServiceError):
    return error
  import httpx2

  kind = type(error).__name__
  if isinstance(error, httpx2.TimeoutException):
    is_sent = not isinstance(error, (httpx2.ConnectTimeout, httpx2.PoolTimeout))
    return Transient(f'{host}: no answer within {seconds:.3g} s ({kind})', may_be_billed=is_sent)
  if isinstance(error, (httpx2.TransportError, httpx2.DecodingError, OSError)):
    text = _line(str(error))
    is_sent = not isinstance(error, httpx2.ConnectError)
    return Transient(f'{host}: {kind}{": " + text if text else ""}', may_be_billed=is_sent)
  # An illegal URL, too many redirects.
  return errors.BadAnswer(f'{host}: {kind}: {_line(str(error))}')


def retry_after(headers: Any) -> float | None:
  """Seconds that a server asks to wait: `retry-after-ms` (OpenAI), `Retry-After` in seconds or as a date; or None.

  >>> retry_after({'retry-after': '2'}), retry_after({'retry-after-ms': '1500'}), retry_after({'retry-after': 'soon'})
  (2.0, 1.5, None)
  """
  for name, unit in (('retry-after-ms', 1000.0), ('retry-after', 1.0)):
    text = headers.get(name, '')
    try:
      seconds = float(text) / unit
    except ValueError:
      continue
    if 0 <= seconds < float('inf'):
      return seconds
  try:
    date = email.utils.parsedate_to_datetime(headers.get('retry-after', ''))
  except ValueError:
    return None
  if date.tzinfo is None:
    date = date.replace(tzinfo=datetime.UTC)
  return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())


def error_text(content: bytes) -> str:
  """The reason in the body of an error: OpenAI's `error.message`, FastAPI's `detail`, `message`, or its beginning.

  >>> error_text(b'{"error": {"message": "No such model."}}')
  'No such model.'
  """
  text = content.decode(errors='replace')
  try:
    values = json.loads(text)
  except (ValueError, RecursionError):
    return _line(text)
  while isinstance(values, dict):
    values = next((values[name] for name in ('error', 'message', 'detail', 'details') if values.get(name)), None)
  if isinstance(values, str):
    return _line(values)
  return _line(text if values is None else json.dumps(values))


def _line(text: str) -> str:
  return ' '.join(keys.redact(text).split())[:_MOST_TEXT]
