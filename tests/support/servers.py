"""A real HTTP server with the APIs of `pdgen.services`, and faults on demand: chat completions, BFL, OpenAI images.

    with servers.Server(chat=lambda messages, body: {'ok': True}, paint=lambda request: picture) as server:
      server.fail(servers.status(429, retry_after=0), times=2)
      chat.Chat(server.endpoint()).ask(..)
      server.seen   # the requests, in order

`chat` gets the messages with their pictures decoded and answers a text, or an object that is sent as JSON. `paint` gets
a `PaintRequest`. Both may be called by several threads. A fault takes the place of the answer to the next requests that
match its path; the request is noted all the same. Where a key is set, requests without it get 401.
"""

import base64
import collections
import dataclasses
import email.parser
import email.policy
import http.server
import io
import json
import socket
import struct
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from pdgen.services import transport


@dataclasses.dataclass(frozen=True)
class Seen:
  """A request that came."""

  method: str
  path: str  # With the query.
  headers: dict[str, str]  # Names in lower case.
  body: dict[str, Any]  # JSON, or the fields of a form.


@dataclasses.dataclass(frozen=True, eq=False)
class PaintRequest:
  """A picture that a client asks for, in any of the forms."""

  prompt: str
  source: np.ndarray | None  # uint8[H, W, 3] to be edited; None: a new one.
  seed: int | None
  size: tuple[int, int] | None  # (height, width); None: the form does not say.


# (handler, request) -> None: sends something that is no answer, or nothing.
Fault = Callable[['_Handler', Seen], None]
ChatModel = Callable[[list[dict[str, Any]], dict[str, Any]], 'str | dict[str, Any]']


def status(code: int, *, retry_after: float | str | None = None, body: Any = None) -> Fault:
  """An error status."""
  headers = {} if retry_after is None else {'retry-after': str(retry_after)}
  return lambda handler, seen: handler.send(code, body or {'error': {'message': f'status {code}'}}, headers)


def raw(content: bytes, *, code: int = 200) -> Fault:
  """Any bytes."""
  return lambda handler, seen: handler.send_bytes(code, content)


def garbage() -> Fault:
  return raw(b'\x00\xff<html>Bad Gateway')


def half_json() -> Fault:
  """Half of a JSON object, of the stated length."""
  return raw(b'{"choices": [{"message": {"role": "assistant", "content": "{\\"ok\\": tr')


def cut_off() -> Fault:
  """Less than the stated length; then the connection ends."""

  def fault(handler: '_Handler', seen: Seen):
    handler.send_head(200, 1000)
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True

  return fault


def drip(*, head: bool = False) -> Fault:
  """A byte now and then, for ever: of the body, or of the head."""

  def fault(handler: '_Handler', seen: Seen):
    if not head:
      handler.send_head(200, 10**6)
    while not handler.owner.closing.wait(0.02):
      handler.wfile.write(b'x')
      handler.wfile.flush()

  return fault


def hang() -> Fault:
  """Nothing at all, until the server closes."""

  def fault(handler: '_Handler', seen: Seen):
    handler.owner.closing.wait()
    handler.close_connection = True

  return fault


def reset() -> Fault:
  """The connection is reset."""

  def fault(handler: '_Handler', seen: Seen):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    handler.connection.close()
    handler.close_connection = True

  return fault


def echo_key(code: int) -> Fault:
  """The headers of the request in the body, in the head and in the reason."""

  def fault(handler: '_Handler', seen: Seen):
    text = ' '.join(seen.headers.get(name, '') for name in ('authorization', 'x-key')).strip()
    handler.send(code, {'error': {'message': f'wrong key: {text}'}, 'headers': seen.headers}, {'x-echo': text})

  return fault


def wrong_shape() -> Fault:
  """JSON that is no answer of any of the APIs."""
  return raw(b'{"object": "list", "data": []}')


class Server:
  """The server, on a free port of this machine, as a context."""

  def __init__(
    self,
    *,
    chat: ChatModel | None = None,
    paint: Callable[[PaintRequest], np.ndarray | Image.Image] | None = None,
    key: str | None = None,
    pending: int = 1,
    schemas: bool = True,
    usage: bool = True,
  ):
    """
    Args:
      chat: the chat model.
      paint: the painter; may return a PIL image of any mode.
      key: that requests must have.
      pending: looks at a BFL task before it is ready.
      schemas: whether `response_format` is taken, of chats and pictures; if not, 400.
      usage: whether answers say how many tokens they took: 100 and 10.
    """
    self.chat, self.paint, self.key = chat, paint, key
    self.pending, self.schemas, self.usage = pending, schemas, usage
    self.seen: list[Seen] = []
    self.most_at_once = 0  # Requests for an answer under way at once.
    self.statuses: collections.deque[str] = collections.deque()  # Of the next looks at BFL tasks, before all else.
    self.closing = threading.Event()
    self.lock = threading.Lock()
    self._faults: list[tuple[Fault, str, list[int]]] = []
    self.tasks: dict[str, list[Any]] = {}  # Looks left, and the file.
    self._at_once = 0
    self._http = _Http(('127.0.0.1', 0), _Handler)
    self._http.owner = self
    self._thread = threading.Thread(target=self._http.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True)

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self._http.server_address[1]}'

  @property
  def host(self) -> str:
    return self.url.removeprefix('http://')

  def endpoint(self, **options: Any) -> transport.Endpoint:
    """An endpoint of this server, impatient as tests are."""
    defaults: dict[str, Any] = {
      'model': 'flux-kontext-pro' if self.chat is None else 'tiny-vl',
      'request_seconds': 5.0,
      'total_seconds': 20.0,
      'tries': 3,
      'backoff_seconds': 0.001,
      'most_backoff_seconds': 0.01,
      'concurrency': 8,
    }
    return transport.Endpoint(base_url=f'{self.url}/v1', **{**defaults, **options})

  def fail(self, fault: Fault, *, times: int = 1, path: str = ''):
    """The next `times` requests whose path holds `path` get the fault, after those of earlier calls."""
    with self.lock:
      self._faults.append((fault, path, [times]))

  def take_fault(self, path: str) -> Fault | None:
    with self.lock:
      for fault, wanted, left in self._faults:
        if left[0] and wanted in path:
          left[0] -= 1
          return fault
    return None

  def asked(self, path: str = '') -> list[Seen]:
    """The POSTs so far whose path holds `path`."""
    return [seen for seen in self.seen if seen.method == 'POST' and path in seen.path]

  def __enter__(self) -> 'Server':
    self._thread.start()
    return self

  def __exit__(self, *_: object):
    self.closing.set()
    self._http.shutdown()
    self._http.server_close()
    self._thread.join()

  def enter(self):
    with self.lock:
      self._at_once += 1
      self.most_at_once = max(self.most_at_once, self._at_once)

  def leave(self):
    with self.lock:
      self._at_once -= 1


class _Http(http.server.ThreadingHTTPServer):
  daemon_threads = True
  block_on_close = False
  owner: Server

  def handle_error(self, request: Any, client_address: Any):  # A client that has gone away is no news.
    pass


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  @property
  def owner(self) -> Server:
    assert isinstance(self.server, _Http)
    return self.server.owner

  def log_message(self, format: str, *args: Any):
    pass

  def do_GET(self):
    self._answer({})

  def do_POST(self):
    content = self.rfile.read(int(self.headers.get('content-length', 0)))
    kind = self.headers.get('content-type', '')
    body = _form(content, kind) if kind.startswith('multipart/') else json.loads(content)
    self.owner.enter()
    try:
      self._answer(body)
    finally:
      self.owner.leave()

  def send(self, code: int, values: Any, headers: dict[str, str] | None = None):
    self.send_bytes(code, json.dumps(values).encode(), headers)

  def send_bytes(self, code: int, content: bytes, headers: dict[str, str] | None = None):
    self.send_head(code, len(content), headers)
    self.wfile.write(content)

  def send_head(self, code: int, length: int, headers: dict[str, str] | None = None):
    self.send_response(code)
    for name, value in {'content-length': str(length), **(headers or {})}.items():
      self.send_header(name, value)
    self.end_headers()

  def _answer(self, body: dict[str, Any]):
    seen = Seen(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
    owner = self.owner
    with owner.lock:
      owner.seen.append(seen)
    fault = owner.take_fault(self.path)
    if fault is not None:
      fault(self, seen)
      return
    path = urllib.parse.urlsplit(self.path).path
    given = seen.headers.get('x-key', seen.headers.get('authorization', '').removeprefix('Bearer '))
    if path.startswith('/files/'):
      self._file(path)
    elif owner.key is not None and given != owner.key:
      self.send(401, {'error': {'message': 'Incorrect API key provided.'}})
    elif body.get('response_format') and not owner.schemas:
      self.send(400, {'error': {'message': "Unknown parameter: 'response_format'."}})
    elif path.endswith('/chat/completions'):
      self._complete(body)
    elif path.endswith('/get_result'):
      self._look(urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)['id'][0])
    elif path.endswith(('/images/generations', '/images/edits')):
      self._openai_image(body)
    elif path.startswith('/v1/flux'):
      self._submit(body)
    else:
      self.send(404, {'detail': 'Not Found'})

  def _complete(self, body: dict[str, Any]):
    assert self.owner.chat is not None
    answer = self.owner.chat([_message(m) for m in body['messages']], body)
    text = answer if isinstance(answer, str) else json.dumps(answer)
    message = {'role': 'assistant', 'content': text}
    values = {
      'object': 'chat.completion',
      'model': f'{body["model"]}-2026-11',
      'system_fingerprint': 'fp_1',
      'choices': [{'index': 0, 'finish_reason': 'stop', 'message': message}],
    }
    if self.owner.usage:
      values['usage'] = {'prompt_tokens': 100, 'completion_tokens': 10, 'total_tokens': 110}
    self.send(200, values)

  def _submit(self, body: dict[str, Any]):
    source = body.get('input_image')
    source = None if source is None else _decoded(base64.b64decode(source))
    file = _file(self._painted(PaintRequest(body['prompt'], source, body.get('seed'), None)))
    with self.owner.lock:
      task = f'task-{len(self.owner.tasks)}'
      self.owner.tasks[task] = [self.owner.pending, file]
    self.send(200, {'id': task, 'polling_url': f'{self.owner.url}/v1/get_result?id={task}', 'cost': 4.0})

  def _look(self, task: str):
    with self.owner.lock:
      left = self.owner.tasks.get(task)
      said = self.owner.statuses.popleft() if self.owner.statuses else None
    if said is not None:
      self.send(200, {'id': task, 'status': said, 'result': None})
    elif left is None:
      self.send(200, {'id': task, 'status': 'Task not found', 'result': None})
    elif left[0] > 0:
      left[0] -= 1
      self.send(200, {'id': task, 'status': 'Pending', 'result': None})
    else:
      self.send(200, {'id': task, 'status': 'Ready', 'result': {'sample': f'{self.owner.url}/files/{task}?sig=1'}})

  def _file(self, path: str):
    self.send_bytes(200, self.owner.tasks[path.removeprefix('/files/')][1], {'content-type': 'image/png'})

  def _openai_image(self, body: dict[str, Any]):
    size = body.get('size')
    height_width = tuple(int(side) for side in reversed(size.split('x'))) if size and 'x' in size else None
    seed = int(body['seed']) if 'seed' in body else None
    file = _file(self._painted(PaintRequest(body['prompt'], body.get('image'), seed, height_width)))
    self.send(200, {'created': 1, 'data': [{'b64_json': base64.b64encode(file).decode()}]})

  def _painted(self, request: PaintRequest) -> Any:
    assert self.owner.paint is not None
    return self.owner.paint(request)


def _message(message: dict[str, Any]) -> dict[str, Any]:
  """role, text and pictures of a message."""
  content = message['content']
  if isinstance(content, str):
    return {'role': message['role'], 'text': content, 'pictures': []}
  urls = [part['image_url']['url'] for part in content if part['type'] == 'image_url']
  return {
    'role': message['role'],
    'text': ''.join(part['text'] for part in content if part['type'] == 'text'),
    'pictures': [_decoded(base64.b64decode(url.partition(',')[2])) for url in urls],
  }


def _decoded(content: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(content)).convert('RGB'))


def _file(picture: np.ndarray | Image.Image) -> bytes:
  out = io.BytesIO()
  (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(out, format='PNG')
  return out.getvalue()


def _form(content: bytes, kind: str) -> dict[str, Any]:
  """The fields of a multipart form; files are decoded as pictures."""
  parser = email.parser.BytesParser(policy=email.policy.HTTP)
  message = parser.parsebytes(f'content-type: {kind}\r\n\r\n'.encode() + content)
  fields: dict[str, Any] = {}
  for part in message.walk():
    name = part.get_param('name', header='content-disposition')
    if isinstance(name, str):
      payload = part.get_payload(decode=True)
      assert isinstance(payload, bytes)
      fields[name] = _decoded(payload) if part.get_filename() else payload.decode()
  return fields
