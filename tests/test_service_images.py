"""FLUX Kontext and OpenAI images clients against a real server: requests, polls, downloads, modes, faults."""

import io

import numpy as np
import pytest
from PIL import Image

from pdgen.services import budget, cache, errors, images, pictures, transport
from tests.support import servers

KEY = 'bfl-secret-123'
SOURCE = np.arange(32 * 48 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 48, 3)


def paint(request: servers.PaintRequest) -> np.ndarray:
  """The edited picture inverted, or one colour by prompt and seed; twice as large as asked."""
  if request.source is not None:
    return 255 - request.source
  return np.full((64, 96, 3), (len(request.prompt) * 7 + (request.seed or 0)) % 256, np.uint8)


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setenv('TEST_IMAGES_KEY', KEY)
  with servers.Server(paint=paint, key=KEY) as server:
    yield server


def flux(server: servers.Server, **options) -> images.FluxKontext:
  endpoint = server.endpoint(key_env='TEST_IMAGES_KEY', tries=options.pop('tries', 3))
  return images.FluxKontext(endpoint, poll_seconds=0.001, **options)


def openai(server: servers.Server, **options) -> images.OpenAIImages:
  return images.OpenAIImages(server.endpoint(model='local', key_env='TEST_IMAGES_KEY'), **options)


def test_flux_kontext_paints_and_edits(server):
  painted = flux(server, options={'safety_tolerance': 4}).generate('a ring', size=(32, 48), seed=5)
  assert (painted.picture == 47).all() and painted.picture.shape == (32, 48, 3) and painted.picture.dtype == np.uint8
  assert painted.cost == budget.Cost(calls=1, pictures=1, money=0.04)  # The service says: 4 credits.
  assert [(s.method, s.path) for s in server.seen] == [
    ('POST', '/v1/flux-kontext-pro'),
    ('GET', '/v1/get_result?id=task-0'),
    ('GET', '/v1/get_result?id=task-0'),
    ('GET', '/files/task-0?sig=1'),
  ]
  body = {'prompt': 'a ring', 'output_format': 'png', 'seed': 5, 'aspect_ratio': '3:2', 'safety_tolerance': 4}
  assert server.seen[0].body == body
  assert [s.headers.get('x-key') for s in server.seen] == [KEY, KEY, KEY, None]  # Downloads go without.
  assert not [s for s in server.seen if 'authorization' in s.headers]
  edited = flux(server).edit(SOURCE, 'invert it')
  np.testing.assert_array_equal(edited.picture, 255 - SOURCE)
  assert server.asked()[-1].body['aspect_ratio'] == '3:2'


def test_openai_images_paint_and_edit(server):
  painted = openai(server, sends_seed=True).generate('a ring', size=(32, 48), seed=5)
  assert (painted.picture == 47).all() and painted.picture.shape == (32, 48, 3)
  want = {'model': 'local', 'prompt': 'a ring', 'n': 1, 'size': '48x32', 'seed': 5, 'response_format': 'b64_json'}
  assert server.seen[0].body == want and server.seen[0].headers['authorization'] == f'Bearer {KEY}'
  edited = openai(server, size='1024x1024').edit(SOURCE, 'invert it', seed=5)
  np.testing.assert_array_equal(edited.picture, 255 - SOURCE)
  assert server.seen[-1].body['size'] == '1024x1024' and 'seed' not in server.seen[-1].body


def test_an_answer_by_address_and_a_server_that_refuses_to_be_asked_for_base64(server):
  server.schemas = False
  asked = openai(server)
  assert asked.generate('a ring').cost.calls == 2 and asked.generate('a ring').cost.calls == 1
  server.tasks['one'] = [0, pictures.png(SOURCE)]
  server.fail(servers.raw(f'{{"data": [{{"url": "{server.url}/files/one"}}]}}'.encode()))
  np.testing.assert_array_equal(asked.generate('a ring').picture, SOURCE)
  assert 'authorization' not in server.seen[-1].headers


def test_tokens_of_pictures_are_counted(server):
  usage = b'"usage": {"input_tokens": 1000, "output_tokens": 4000}'
  picture = pictures.base64_png(SOURCE).encode()
  server.fail(servers.raw(b'{"data": [{"b64_json": "' + picture + b'"}], ' + usage + b'}'))
  price = budget.Price(prompt=5, completion=40, picture=0.2)  # A picture costs at most .2.
  spent = budget.Budget(money=0.2)
  assert openai(server, price=price, budget=spent).generate('a ring').cost.money == 0.165 == spent.spent.money


@pytest.mark.parametrize('make', [flux, openai])
def test_pictures_of_every_mode_arrive_as_rgb(server, make):
  grey = Image.fromarray(np.array([[0, 128]], np.uint8))
  rgba = Image.fromarray(np.array([[[255, 0, 0, 255], [255, 0, 0, 0]]], np.uint8))
  palette = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]]], np.uint8)).quantize(2)
  deep = Image.fromarray(np.array([[0, 65535]], np.uint16))
  wanted = [
    (grey, [[0, 0, 0], [128, 128, 128]]),
    (Image.fromarray(np.array([[False, True]])), [[0, 0, 0], [255, 255, 255]]),
    (grey.convert('LA'), [[0, 0, 0], [128, 128, 128]]),
    (rgba, [[255, 0, 0], [255, 255, 255]]),  # Transparency is white.
    (palette, [[255, 0, 0], [0, 255, 0]]),
    (deep, [[0, 0, 0], [255, 255, 255]]),
  ]
  asked = make(server)
  for image, pixels in wanted:
    server.paint = lambda request, image=image: image
    got = asked.generate('a ring').picture
    assert got.dtype == np.uint8 and got.tolist() == [pixels], image.mode


def test_other_files_too():
  out = io.BytesIO()
  turned = Image.fromarray(np.array([[[9, 9, 9], [200, 200, 200]]], np.uint8))
  exif = turned.getexif()
  exif[0x0112] = 6
  turned.save(out, format='PNG', exif=exif)
  assert pictures.decode(out.getvalue())[:, :, 0].tolist() == [[9], [200]]  # Upright.
  cmyk = io.BytesIO()
  Image.new('CMYK', (4, 2), (0, 0, 0, 0)).save(cmyk, format='JPEG')
  assert pictures.decode(cmyk.getvalue()).shape == (2, 4, 3)
  for content in (b'', b'no picture', pictures.png(SOURCE)[:-1000]):
    with pytest.raises(ValueError, match='no picture can be read from'):
      pictures.decode(content)


def test_a_bomb_is_no_picture():
  out = io.BytesIO()
  Image.new('1', (20_000, 20_000)).save(out, format='PNG')
  with pytest.raises(ValueError, match='20000 x 20000 pixels|decompression bomb'):
    pictures.decode(out.getvalue())


@pytest.mark.parametrize('path', ['flux-kontext-pro', 'get_result', '/files/'])
@pytest.mark.parametrize(
  'fault', [servers.status(429, retry_after=0), servers.status(500), servers.half_json(), servers.reset()]
)
def test_faults_of_every_request_are_tried_again(server, path, fault):
  server.fail(fault, times=2, path=path)
  spent = budget.Budget()
  assert (flux(server, budget=spent).generate('a ring').picture == 42).all()
  assert spent.spent.calls == (3 if path == 'flux-kontext-pro' else 1)  # A broken download is no second picture.


@pytest.mark.parametrize(
  'statuses, kind, cause',
  [
    (['Reasoning', 'Generating', 'Queued'], None, ''),
    (['Error'], None, ''),
    (['Task not found', 'Failed'], None, ''),
    (['Error'] * 9, errors.Unavailable, "the task ended with 'Error'; gave up after 3 tries"),
    (['Content Moderated'], errors.Refused, 'Content Moderated'),
    (['Request Moderated'], errors.Refused, 'Request Moderated'),
  ],
)
def test_ends_of_a_task(server, statuses, kind, cause):
  server.statuses.extend(statuses)
  if kind is None:
    assert (flux(server).generate('a ring').picture == 42).all()
  else:
    with pytest.raises(kind, match=cause) as caught:
      flux(server).generate('a ring')
    assert caught.value.cost.calls == len(server.asked())


def test_a_task_that_is_never_ready_ends(server):
  server.pending = 10**6
  endpoint = server.endpoint(key_env='TEST_IMAGES_KEY', total_seconds=0.2)
  with pytest.raises(errors.Unavailable, match='no result within 0.2 s|0.2 s are the limit'):
    images.FluxKontext(endpoint, poll_seconds=0.01).generate('a ring')


@pytest.mark.parametrize(
  'path, answer, cause',
  [
    ('flux-kontext-pro', b'{"detail": "?"}', 'neither a polling_url nor an id'),
    ('get_result', b'{"id": "x"}', 'no status'),
    ('get_result', b'{"status": "Ready", "result": {}}', 'no picture'),
    ('get_result', b'{"status": "Ready", "result": {"sample": "file:///etc/passwd"}}', 'no http URL'),
    ('/files/', b'no picture', 'no picture can be read from 10 bytes.*3 tries'),
  ],
)
def test_answers_of_the_wrong_form(server, path, answer, cause):
  server.fail(servers.raw(answer), times=9, path=path)
  with pytest.raises(errors.BadAnswer, match=cause):
    flux(server).generate('a ring')
  assert len(server.asked()) == 1


@pytest.mark.parametrize('answer', [b'{"data": []}', b'{"data": [{}]}', b'{"data": [{"b64_json": "%%"}]}', b'{}'])
def test_wrong_answers_of_openai_images(server, answer):
  server.fail(servers.raw(answer), times=9)
  with pytest.raises(errors.BadAnswer, match='picture'):
    openai(server).generate('a ring')


def test_the_key_stays_at_its_own_host(server):
  """A polling address at another host gets no key, nor one over plain http."""
  with servers.Server(paint=paint) as other:
    other.tasks['x'] = [0, pictures.png(SOURCE)]
    server.fail(servers.raw(f'{{"id": "x", "polling_url": "{other.url}/v1/get_result?id=x"}}'.encode()))
    np.testing.assert_array_equal(flux(server).generate('a ring').picture, SOURCE)
    assert other.seen and not [s for s in other.seen if KEY in str(s.headers)]


def test_sibling_hosts_of_the_service_are_its_own():
  call = transport.Call(transport.Transport(transport.Endpoint(base_url='https://api.bfl.ai/v1', model='m')))
  own = {'https://api.bfl.ai/x', 'https://api.us1.bfl.ai/x'}
  foreign = {
    'http://api.bfl.ai/x',
    'https://bfl.ai.evil.com/x',
    'https://evilbfl.ai/x',
    'https://api.bfl.ai@evil.com/x',
  }
  assert {url for url in own | foreign if call._is_own(url)} == own


@pytest.mark.parametrize('make', [flux, openai])
def test_pictures_are_cached(server, make, tmp_path):
  asked = make(server, cache=cache.Cache(tmp_path))
  first = [asked.generate('a ring', size=(8, 8), seed=1), asked.edit(SOURCE, 'x'), asked.edit(255 - SOURCE, 'x')]
  others = [asked.generate('a ring', size=(8, 8), seed=2), asked.generate('a ring', size=(8, 4), seed=1)]
  count = len(server.seen)
  again = [asked.generate('a ring', size=(8, 8), seed=1), asked.edit(SOURCE, 'x'), asked.edit(255 - SOURCE, 'x')]
  assert len(server.seen) == count and len(server.asked()) == 5 == len(first) + len(others)
  for one, two in zip(first, again, strict=True):
    np.testing.assert_array_equal(one.picture, two.picture)
    assert two.cost == budget.Cost(cache_hits=1)


def test_a_budget_of_pictures(server):
  spent = budget.Budget(money=0.12)
  asked = flux(server, budget=spent, price=budget.Price(picture=0.04))
  for number in range(3):
    asked.generate(f'ring {number}')
  with pytest.raises(errors.BudgetExhausted, match='0.12 of 0.12 money'):
    asked.generate('a fourth')
  assert len(server.asked()) == 3


@pytest.mark.parametrize('code', [200, 401, 500])
@pytest.mark.parametrize('path', ['flux-kontext-pro', 'get_result'])
def test_a_key_that_is_echoed_is_nowhere(server, code, path, caplog):
  caplog.set_level('DEBUG')
  server.fail(servers.echo_key(code), times=99, path=path)
  with pytest.raises(errors.ServiceError) as caught:
    flux(server).generate('a ring')
  assert KEY not in f'{caught.value!r} {caplog.text}'


def test_a_key_in_an_address_is_nowhere(server, caplog):
  caplog.set_level('DEBUG')
  body = f'{{"id": "x", "polling_url": "{server.url}/v1/get_result?id=x&key={KEY}"}}'
  server.fail(servers.raw(body.encode()), times=9, path='flux')
  with pytest.raises(errors.ServiceError) as caught:
    flux(server).generate('a ring')
  assert KEY not in f'{caught.value!r} {caplog.text}' and 'HTTP Request: GET' in caplog.text
