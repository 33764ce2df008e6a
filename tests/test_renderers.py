"""Renderers of steps: an exact world, image services over a real server, a painter; the writer by a chat model."""

import numpy as np
import pytest

from pdgen.construction import openai_writer, renderers, taxonomy
from pdgen.core import trajectory as trajectory_lib
from pdgen.services import budget, chat, errors, images
from pdgen.worlds import shapes
from pdgen.worlds.shapes import renderer
from tests.support import servers


def request(**more) -> renderers.RenderRequest:
  return renderers.RenderRequest(instruction='Add a red ring.', description='A red ring.', **more)


@pytest.mark.parametrize('world', ['shapes', shapes])
def test_a_world_renders_its_scenes(world):
  exact = renderers.get('world', world)
  drawn = taxonomy.Taxonomy.from_dict(shapes.TAXONOMY)
  for index in range(5):
    graph = taxonomy.sample(drawn, seed=0, index=index)
    painted = exact.render(request(scene=graph), None)
    np.testing.assert_array_equal(painted, shapes.render_graph(graph))
    assert shapes.shows(painted, shapes.contents(graph))
  with pytest.raises(ValueError, match="'Add a red ring.' has no scene"):
    exact.render(request(), None)
  with pytest.raises(ValueError, match='no GraphWorld: it lacks'):
    renderers.get('world', np)
  with pytest.raises(ValueError, match=r"Unknown renderer 'pen'. Known: \['flux_kontext', 'painter', 'world'\]"):
    renderers.get('pen')


@pytest.mark.parametrize('form', ['flux', 'openai'])
def test_the_first_picture_is_generated_and_the_next_edited(form):
  def paint(asked: servers.PaintRequest) -> np.ndarray:
    if asked.source is None:
      assert asked.prompt == 'A red ring.'
      return np.full((100, 200, 3), 50 + (asked.seed or 0), np.uint8)
    assert asked.prompt == 'Add a red ring.'
    return asked.source + 1

  with servers.Server(paint=paint) as server:
    endpoint = server.endpoint()
    client = (
      images.FluxKontext(endpoint, poll_seconds=0.001)
      if form == 'flux'
      else images.OpenAIImages(endpoint, sends_seed=True)
    )
    flux = renderers.get('flux_kontext', client, size=(16, 32))
    first = flux.render(request(seed=7), None)
    assert first.shape == (16, 32, 3) and (first == 57).all()
    second = flux.render(request(seed=8), first)
    assert second.shape == (16, 32, 3) and (second == 58).all()
    painted = renderers.FluxKontextRenderer(client).paint(request(), second)
    assert painted.cost == budget.Cost(calls=1, pictures=1, money=0.04 if form == 'flux' else 0.0)
    server.fail(servers.status(400))
    with pytest.raises(errors.Refused):
      flux.render(request(), None)


class Scripted:
  """A painter that notes what it is asked."""

  def __init__(self, picture):
    self.picture = picture

  def sample(self, prompts, *, seed, pictures):
    [self.asked] = prompts
    assert (seed, pictures) == (0, 1)
    done = self.asked if self.picture is None else self.asked.with_picture(self.picture)
    return type('Result', (), {'trajectories': [done]})


def test_what_a_checkpoint_is_asked():
  picture = renderer.blank()
  painter = Scripted(picture)
  assert renderers.PainterRenderer(painter).render(request(), None) is picture
  step = trajectory_lib.Step(plan='<ins>Add a red ring.</ins><des>A red ring.</des>')
  assert painter.asked == trajectory_lib.Trajectory(prompt='A red ring.', steps=(step,), stop=None)
  renderers.PainterRenderer(painter).render(request(prompt='rings'), picture)
  assert painter.asked.prompt == 'rings' and painter.asked.steps[0].draft is picture and painter.asked.steps[1] == step
  with pytest.raises(ValueError, match='No picture was painted'):
    renderers.PainterRenderer(Scripted(None)).render(request(), None)


# Writers.


def test_a_chat_model_writes_texts():
  with servers.Server(chat=lambda messages, body: {'text': ' Add a\n red ring. '}) as server:
    writer = openai_writer.OpenAIWriter(chat.Chat(server.endpoint()))
    graph = {'objects': ['ring']}
    assert writer.write('instruction', before={}, after=graph) == 'Add a red ring.'
    sent = server.seen[0].body['messages'][1]['content']
    assert 'Scene so far: {}' in sent and 'after the next step: {"objects": ["ring"]}' in sent
    text, answer = writer.ask('approval', prompt='a ring', plan='Add it.', shown=renderer.blank(), seed=4)
    assert text == 'Add a red ring.' and answer.by == 'tiny-vl-2026-11@fp_1'
    assert server.seen[1].body['seed'] == 4 and len(server.seen[1].body['messages'][1]['content']) == 2
    own = openai_writer.OpenAIWriter(chat.Chat(server.endpoint()), {'title': 'A title for {prompt}.'})
    assert own.write('title', prompt='a {ring}') == 'Add a red ring.'
    assert 'A title for a {ring}.' in server.seen[2].body['messages'][1]['content']
    with pytest.raises(ValueError, match=r"Unknown task 'poem'. Known: \['approval', "):
      writer.write('poem', prompt='a ring')
    with pytest.raises(ValueError, match=r"fields \['after', 'before'\], not \['before', 'scene'\]"):
      writer.write('instruction', before='', scene='')


def test_a_task_may_be_the_whole_text_of_what_is_asked():
  with servers.Server(chat=lambda messages, body: '<ins>Add it.</ins>') as server:
    writer = openai_writer.OpenAIWriter(chat.Chat(server.endpoint()))
    assert writer.write('Write a plan.\nIn tags.') == '<ins>Add it.</ins>'
    [asked] = server.seen[0].body['messages']
    assert asked['role'] == 'user' and 'In tags.' in str(asked['content'])


@pytest.mark.parametrize(
  'text, wrong', [('', 'text'), ('  ', 'empty'), ('So. <refine>No.</refine>', 'the tag <refine>')]
)
def test_texts_that_would_break_a_trajectory_are_refused(text, wrong):
  with servers.Server(chat=lambda messages, body: {'text': text}) as server:
    with pytest.raises(errors.BadAnswer, match=wrong):
      openai_writer.OpenAIWriter(chat.Chat(server.endpoint())).write('description', scene='a ring')
