"""Image generation and editing clients: FLUX Kontext (request, poll, download) and OpenAI-compatible `/images`.

Both give uint8[H, W, 3] of the size asked for, cached, budgeted and retried (`services.transport`).

FLUX Kontext, as docs.bfl.ai describes it: POST <base>/flux-kontext-pro with `prompt`, and `input_image` (base64) to
edit, gives `id` and `polling_url`; that has a `status`, and at last `result.sample`, the address of the picture for ten
minutes.
"""

import dataclasses
import fractions
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from pdgen.services import budget as budget_lib
from pdgen.services import cache as cache_lib
from pdgen.services import errors, faults, keys, pictures, transport

Size = tuple[int, int]  # (height, width) in pixels.

_MODERATED = ('Request Moderated', 'Content Moderated')
_FAILED = ('Error', 'Failed', 'Task not found')  # Any other status is of a request under way.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Painted:
  """A picture of a service, and what it took."""

  picture: np.ndarray  # uint8[H, W, 3].
  model: str
  cost: budget_lib.Cost  # Of this call; of one from the cache: a hit alone.


class ImageClient(Protocol):
  """Paints from text, and edits by an instruction. Raises: `services.errors`."""

  @property
  def name(self) -> str:
    """For provenance."""
    ...

  def generate(self, prompt: str, *, size: Size | None = None, seed: int | None = None) -> Painted:
    """A picture of a text. size: None: as the service paints it."""
    ...

  def edit(self, picture: np.ndarray, prompt: str, *, size: Size | None = None, seed: int | None = None) -> Painted:
    """uint8[H, W, 3] changed as the prompt says. size: None: that of the picture."""
    ...


class _Client:
  """What both forms share: the cache, the price, the size."""

  def __init__(
    self,
    endpoint: transport.Endpoint,
    budget: budget_lib.Budget | None,
    price: budget_lib.Price | None,
    cache: cache_lib.Cache | None,
    options: Mapping[str, Any] | None,
    key_header: str,
  ):
    if budget is not None and budget.limits['money'] is not None and price is None:
      raise ValueError(f'The budget limits money: give the price of {endpoint.model}, or Price() if it is free.')
    self.endpoint = endpoint
    self.price = price or budget_lib.Price()
    self.cache = cache
    self.options = dict(options or {})
    self._transport = transport.Transport(endpoint, budget=budget, key_header=key_header)

  @property
  def name(self) -> str:
    return f'{self.endpoint.model} at {self.endpoint.host}'

  def __repr__(self) -> str:
    return f'{type(self).__name__}({self.endpoint})'

  def _most(self) -> budget_lib.Cost:
    return self.price.of(budget_lib.Cost(calls=1, pictures=1))

  def _painted(
    self,
    prompt: str,
    source: np.ndarray | None,
    size: Size | None,
    seed: int | None,
    paint: Callable[[transport.Call], np.ndarray],
  ) -> Painted:
    """The picture from the cache, or by `paint`, at the size asked for."""

    def compute() -> dict[str, Any]:
      with self._transport.call() as call:
        picture = pictures.resized(paint(call), size)
        return {'png': pictures.base64_png(picture), 'cost': dataclasses.asdict(call.cost)}

    if self.cache is None:
      entry, hit = compute(), False
    else:
      name = cache_lib.key(
        {
          'url': self.endpoint.base_url,
          'model': self.endpoint.model,
          'options': self.options,
          'prompt': prompt,
          'source': None if source is None else pictures.digest(source),
          'size': None if size is None else list(size),
          'seed': seed,
        }
      )
      entry, hit = self.cache.get_or_compute(name, compute)
    cost = budget_lib.Cost(cache_hits=1) if hit else budget_lib.Cost(**entry['cost'])
    return Painted(picture=pictures.decode_base64(entry['png']), model=self.name, cost=cost)


class FluxKontext(_Client):
  """BFL's form. `Endpoint(base_url='https://api.bfl.ai/v1', model='flux-kontext-pro', key_env='BFL_API_KEY')`."""

  def __init__(
    self,
    endpoint: transport.Endpoint,
    *,
    budget: budget_lib.Budget | None = None,
    price: budget_lib.Price | None = None,
    cache: cache_lib.Cache | None = None,
    options: Mapping[str, Any] | None = None,
    poll_seconds: float = 1.0,
    credit: float = 0.01,
  ):
    """
    Args:
      endpoint: `concurrency` are the tasks under way at once (BFL allows 24).
      budget: may be shared with other clients; None: no limits.
      price: of a picture; needed where the budget limits money.
      cache: of pictures; None: every picture is asked for.
      options: more of the request's body (`safety_tolerance`, `prompt_upsampling`).
      poll_seconds: between two looks at a task.
      credit: money of a credit, in which the service states the cost of a request.

    Raises: ValueError for a budget of money without a price.
    """
    super().__init__(endpoint, budget, price, cache, options, 'x-key')
    self.poll_seconds = poll_seconds
    self.credit = credit

  def generate(self, prompt: str, *, size: Size | None = None, seed: int | None = None) -> Painted:
    """As `ImageClient.generate`. The service gets the ratio of the sides and paints about a megapixel."""
    return self._painted(prompt, None, size, seed, lambda call: self._paint(call, self._body(prompt, size, seed)))

  def edit(self, picture: np.ndarray, prompt: str, *, size: Size | None = None, seed: int | None = None) -> Painted:
    """As `ImageClient.edit`."""
    height, width = size or picture.shape[:2]

    def paint(call: transport.Call) -> np.ndarray:
      body = self._body(prompt, (height, width), seed)
      return self._paint(call, {**body, 'input_image': pictures.base64_png(picture)})

    return self._painted(prompt, picture, (height, width), seed, paint)

  def _body(self, prompt: str, size: Size | None, seed: int | None) -> dict[str, Any]:
    body: dict[str, Any] = {'prompt': prompt, 'output_format': 'png', **self.options}
    if seed is not None:
      body['seed'] = seed
    if size is not None:
      ratio = fractions.Fraction(size[1], size[0]).limit_denominator(21)
      body['aspect_ratio'] = f'{ratio.numerator}:{ratio.denominator}'
    return body

  def _paint(self, call: transport.Call, body: dict[str, Any]) -> np.ndarray:
    url = call.retried(lambda: self._finished(call, body))
    return call.download(url, parse=pictures.decode)

  def _finished(self, call: transport.Call, body: dict[str, Any]) -> str:
    """One task from its request to the address of its picture. Raises: Transient for one that failed."""
    host = self.endpoint.host
    task = call.post_once(self.endpoint.model, most=self._most(), actual=self._actual, json=body)
    url = task.get('polling_url')
    if not isinstance(url, str):
      if not isinstance(task.get('id'), str):
        raise errors.BadAnswer(f'{host}: the answer has neither a polling_url nor an id')
      url = self.endpoint.url(f'get_result?id={task["id"]}')
    while True:
      state = call.get(url)
      status = state.get('status')
      if status == 'Ready':
        result = state.get('result')
        sample = result.get('sample') if isinstance(result, dict) else None
        if not isinstance(sample, str):
          raise errors.BadAnswer(f'{host}: the task is ready, but has no picture')
        return sample
      if status in _MODERATED:
        raise errors.Refused(f'{host}: {status}')
      if status in _FAILED:
        raise faults.Transient(f'{host}: the task ended with {status!r}')
      if not isinstance(status, str):
        raise errors.BadAnswer(f'{host}: the task has no status')
      call.sleep(self.poll_seconds)

  def _actual(self, values: dict[str, Any]) -> budget_lib.Cost:
    """The service states the cost in credits, or does not."""
    credits, most = values.get('cost'), self._most()
    if isinstance(credits, (int, float)) and credits >= 0:
      return dataclasses.replace(most, money=round(credits * self.credit, 9))
    return most


class OpenAIImages(_Client):
  """OpenAI's form: `/images/generations` and `/images/edits`, which local servers have too."""

  def __init__(
    self,
    endpoint: transport.Endpoint,
    *,
    budget: budget_lib.Budget | None = None,
    price: budget_lib.Price | None = None,
    cache: cache_lib.Cache | None = None,
    options: Mapping[str, Any] | None = None,
    size: str | None = None,
    sends_seed: bool = False,
  ):
    """
    Args:
      endpoint: base URL up to the version.
      budget: may be shared with other clients; None: no limits.
      price: of a picture; needed where the budget limits money. Where it has prices of tokens and the service counts
        those, `picture` is the most that one may cost.
      cache: of pictures; None: every picture is asked for.
      options: more of the request's body (`quality`).
      size: sent in any case, for services that know few sizes (`1024x1024`, `auto`); None: the size asked for.
      sends_seed: whether the server knows `seed`; OpenAI's own does not.

    Raises: ValueError for a budget of money without a price.
    """
    super().__init__(endpoint, budget, price, cache, {**(options or {}), 'size': size}, 'authorization')
    self.sends_seed = sends_seed
    self._asks_base64 = True

  def generate(self, prompt: str, *, size: Size | None = None, seed: int | None = None) -> Painted:
    """As `ImageClient.generate`."""
    body = self._body(prompt, size, seed)
    return self._painted(
      prompt, None, size, seed, lambda call: self._paint(call, 'images/generations', body, lambda b: {'json': b})
    )

  def edit(self, picture: np.ndarray, prompt: str, *, size: Size | None = None, seed: int | None = None) -> Painted:
    """As `ImageClient.edit`; the picture goes as a file of a form."""
    height, width = size or picture.shape[:2]
    body = self._body(prompt, (height, width), seed)
    file = {'image': ('image.png', pictures.png(picture), 'image/png')}

    def wire(body: dict[str, Any]) -> dict[str, Any]:
      return {'data': {name: str(value) for name, value in body.items()}, 'files': file}

    return self._painted(
      prompt, picture, (height, width), seed, lambda call: self._paint(call, 'images/edits', body, wire)
    )

  def _body(self, prompt: str, size: Size | None, seed: int | None) -> dict[str, Any]:
    body = {'model': self.endpoint.model, 'prompt': prompt, 'n': 1, **self.options}
    body['size'] = self.options['size'] or (None if size is None else f'{size[1]}x{size[0]}')
    body['seed'] = seed if self.sends_seed else None
    return {name: value for name, value in body.items() if value is not None}

  def _paint(
    self,
    call: transport.Call,
    path: str,
    body: dict[str, Any],
    wire: Callable[[dict[str, Any]], dict[str, Any]],
  ) -> np.ndarray:
    def post(body: dict[str, Any]) -> np.ndarray | str:
      values = call.post_once(path, most=self._most(), actual=self._actual, **wire(body))
      return _picture_or_url(values, host=self.endpoint.host)

    got = None
    if self._asks_base64:
      try:
        got = call.retried(lambda: post({**body, 'response_format': 'b64_json'}))
      except errors.Refused as error:
        if 'response_format' not in str(error):  # gpt-image answers in base64 always, and refuses to be asked.
          raise
        self._asks_base64 = False
    if got is None:
      got = call.retried(lambda: post(body))
    return call.download(got, parse=pictures.decode) if isinstance(got, str) else got

  def _actual(self, values: dict[str, Any]) -> budget_lib.Cost:
    prompt, completion = budget_lib.counts(values.get('usage'), 'input_tokens', 'output_tokens') or (0, 0)
    cost = budget_lib.Cost(calls=1, pictures=1, prompt_tokens=prompt, completion_tokens=completion)
    by_tokens = cost.tokens and (self.price.prompt or self.price.completion)
    return (dataclasses.replace(self.price, picture=0.0) if by_tokens else self.price).of(cost)


def _picture_or_url(values: dict[str, Any], *, host: str) -> np.ndarray | str:
  """The picture of an answer, or its address. Raises: Transient for a broken picture; BadAnswer."""
  data = values.get('data')
  first = data[0] if isinstance(data, list) and data else None
  if isinstance(first, dict) and isinstance(text := first.get('b64_json'), str):
    try:
      return pictures.decode_base64(text)
    except ValueError as error:
      raise faults.Transient(f'{host}: {keys.redact(str(error))}', is_answer=True) from None
  if isinstance(first, dict) and isinstance(url := first.get('url'), str):
    return url
  raise errors.BadAnswer(f'{host}: the answer has no picture')
