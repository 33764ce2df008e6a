"""Tools of a build: renderer, judge, writer, world and vocabulary of a BuildConfig; Attempt: one sample being made.

An `Attempt` asks the tools and notes what they cost and said. Whatever rejects the sample is a `RejectionError`, whose
text begins with its category: `judge: ..`, `service: ..`, `scene: ..`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pdgen import judges, worlds
from pdgen.construction import (
  build_config,
  instructions,
  openai_writer,
  renderers,
  taxonomy,
  writers,
  written_instructions,
)
from pdgen.core import rng as rng_lib
from pdgen.core import scene_graph
from pdgen.core import trajectory as trajectory_lib
from pdgen.judges import base, openai
from pdgen.services import budget as budget_lib
from pdgen.services import cache as cache_lib
from pdgen.services import chat, errors, images, structured, transport
from pdgen.worlds import base as worlds_base

BUDGET, CACHE = 'budget.json', 'cache'  # In the output folder.
_STREAM = 211  # random stream of the seeds of attempts


class RejectionError(Exception):
  """A sample that is left out, and why: `category: words`. No ValueError: writers take those for a wrong answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tools:
  """What samples are made with. Safe for threads."""

  config: build_config.BuildConfig
  world: Any = None  # A `worlds.base.GraphWorld`; None: there is none.
  vocabulary: taxonomy.Taxonomy
  renderer: renderers.Renderer
  judge: base.Judge
  writer: openai_writer.OpenAIWriter | None = None  # None: templates.
  plan_chat: chat.Chat | None = None  # Judges plans of a model's own, where no world does.
  names: dict[str, str]  # Of renderer, judge and writer, for provenance.
  dry: bool = False  # Nothing is asked: calls are counted, and answered as if all were right.

  def contents(self, graph: scene_graph.SceneGraph) -> tuple[trajectory_lib.Content, ...] | None:
    """What a picture of a graph shows; None where no world says so."""
    return None if self.world is None else tuple(self.world.contents(graph))

  def keeps_out(self, graph: scene_graph.SceneGraph) -> bool:
    """Whether the world keeps pictures of the graph from training (`worlds.base.HeldOutWorld`)."""
    keeps_out = getattr(self.world, 'keeps_out', None)
    return keeps_out is not None and keeps_out(graph)


def of(
  config: build_config.BuildConfig,
  out: pathlib.Path,
  *,
  make_painter: Callable[[str], Any] | None = None,
  dry: bool = False,
) -> Tools:
  """The tools of a config.

  Args:
    config: of the build.
    out: its folder, for budget and answers of services.
    make_painter: loads a checkpoint, for a renderer or judge that is one.
    dry: services are counted and not asked; see `Tools.dry`.

  Raises: ValueError for a world that is none; FileNotFoundError for files; ImportError without the extra `judge`.
  """
  world = worlds.require(worlds.get(config.world), worlds_base.GraphWorld) if config.world else None
  if config.scenes.taxonomy_file:
    vocabulary = taxonomy.load(config.scenes.taxonomy_file)
  else:
    vocabulary = taxonomy.load() if world is None else taxonomy.Taxonomy.from_dict(world.TAXONOMY)
  limits = dataclasses.asdict(config.budget)
  shared: dict[str, Any] = {}
  if config.uses_services and not dry:
    shared = dict(budget=budget_lib.Budget(**limits, path=out / BUDGET), cache=cache_lib.Cache(out / CACHE))
  painters: dict[str, Any] = {}

  def painter(checkpoint: str) -> Any:
    if make_painter is None:
      raise ValueError(f'The checkpoint {checkpoint} needs a loader: build by `python -m pdgen.construct`.')
    if checkpoint not in painters:
      painters[checkpoint] = make_painter(checkpoint)
    return painters[checkpoint]

  renderer = _renderer(config.renderer, world, painter, dry=dry, **shared)
  judge, plan_chat = _judge(config.judge, world, painter, dry=dry, **shared)
  writer = None
  if config.writer.endpoint is not None and not dry:
    settings: dict[str, Any] = dict(price=config.writer.price, max_tokens=config.writer.max_tokens)
    writer = openai_writer.OpenAIWriter(chat.Chat(config.writer.endpoint, **settings, **shared))
  names = {
    'renderer': _name(config.renderer, config.world),
    'judge': _name(config.judge, config.world),
    'writer': _name(config.writer, instructions.TEMPLATE),
  }
  return Tools(
    config=config,
    world=world,
    vocabulary=vocabulary,
    renderer=renderer,
    judge=judge,
    writer=writer,
    plan_chat=plan_chat,
    names=names,
    dry=dry,
  )


class Attempt:
  """One try at one sample: a random stream of its own, and a record of what it took."""

  def __init__(self, tools: Tools, *, subset: str, index: int, number: int):
    """
    Args:
      tools: of the build.
      subset: one of `build_config.SUBSETS`.
      index: of the sample.
      number: of the attempt, from 0.
    """
    self.tools, self.subset, self.index, self.number = tools, subset, index, number
    place = (build_config.SUBSETS.index(subset), index, number)
    self.seed = int(rng_lib.numpy_rng(tools.config.seed, _STREAM, *place).integers(2**31))
    self.rng = rng_lib.numpy_rng(self.seed, _STREAM)
    self.cost = budget_lib.Cost()
    self.verdicts: list[dict[str, Any]] = []
    self.notes: list[str] = []  # How the sample was made, for `Provenance.reasons`.
    self.writer_used = False

  @property
  def worder(self) -> instructions.Instructions:
    """Who words plans."""
    if self.tools.config.writer.endpoint is None:
      return instructions.Templates()
    return written_instructions.WriterInstructions(writer=self, tries=self.tools.config.writer.tries)

  def write(self, task: str, /) -> str:
    """A text by the writer (`writers.Writer`). Raises: RejectionError where it cannot be asked."""
    self.writer_used = True
    if self.tools.dry:
      settings = self.tools.config.writer
      self._count(settings.price, task, answer_tokens=settings.answer_tokens)
      return task.rsplit('\n', 1)[-1]
    if self.tools.writer is None:
      raise RejectionError('scene: a free text needs a writer (config.writer)')
    text, answer = self._asked(lambda: self.tools.writer.ask(task, seed=self.number or None))  # pyright: ignore
    self.cost += answer.cost
    return text

  def plan(self, step: Any) -> instructions.PlanText:
    """The words of a step. Raises: RejectionError."""
    try:
      made = self.worder.write(step, rng=self.rng)
    except writers.RejectedError as error:
      raise RejectionError(f'writer: {error}') from error
    self.notes += [f'writer: {reason}' for reason in made.rejections]
    return made

  def render(self, request: renderers.RenderRequest, previous: np.ndarray | None) -> np.ndarray:
    """The picture of a step. Raises: RejectionError."""
    config = self.tools.config.renderer
    if self.tools.dry and config.endpoint is not None:
      self.cost += config.price.of(budget_lib.Cost(calls=1, pictures=1))
      return _BLANK
    paint = getattr(self.tools.renderer, 'paint', None)
    if paint is None:
      try:
        return self.tools.renderer.render(request, previous)
      except ValueError as error:
        raise RejectionError(f'renderer: {error}') from error
    painted = self._asked(lambda: paint(request, previous))
    self.cost += painted.cost
    return painted.picture

  def judged(self, question: base.Question, *, wanted: bool) -> base.Verdict:
    """What the judge says. wanted: what the sample needs, and a dry run takes for said. Raises: RejectionError."""
    judge, config = self.tools.judge, self.tools.config.judge
    if self.tools.dry and config.endpoint is not None:
      words = openai.INSTRUCTIONS + question.prompt + (question.plan or '') + _SCHEMA_WORDS
      self._count(config.price, words, answer_tokens=config.answer_tokens, more=config.picture_tokens)
      return base.Verdict(ok=wanted, reason='' if wanted else 'dry run')
    if isinstance(judge, openai.OpenAIJudge):
      verdict, answer = self._asked(lambda: judge.ask(question))
      self.cost += answer.cost
    else:
      verdict = judge.judge(question)
    row: dict[str, Any] = {'ok': verdict.ok}
    row.update({k: v for k, v in (('reason', verdict.reason), ('by', verdict.by)) if v})
    self.verdicts.append(row)
    return verdict

  def approved(self, question: base.Question, *, what: str):
    """Raises: RejectionError where the judge rejects the picture. what: its name in the reason."""
    verdict = self.judged(question, wanted=True)
    if not verdict.ok:
      raise RejectionError(f'judge: {what}: {verdict.reason}')

  def provenance(self, *, graph: scene_graph.SceneGraph | None, **fields: Any) -> trajectory_lib.Provenance:
    """Of the finished sample. graph: of the prompt; fields: more of `Provenance`, `source` among them."""
    cost = self.cost
    services = self.tools.config.uses_services
    values: dict[str, Any] = dict(
      kind=self.subset,
      id=f'{self.subset}-{self.index}',
      graph=None if graph is None else graph.to_dict(),
      seed=self.seed,
      **self.tools.names,
      verdicts=tuple(self.verdicts) if services else (),
      reasons=tuple(self.notes),
      cost=trajectory_lib.Cost(calls=cost.calls, tokens=cost.tokens, money=cost.money) if services else None,
    )
    return trajectory_lib.Provenance(**{**values, **fields})

  def _asked(self, ask: Callable[[], Any]) -> Any:
    """Raises: RejectionError for a service that gives no answer; BudgetExhausted as it is."""
    try:
      return ask()
    except errors.BudgetExhausted:
      raise
    except errors.ServiceError as error:
      self.cost += error.cost
      raise RejectionError(f'service: {error}') from error

  def asked_of_chat(self, words: str, schema: Mapping[str, Any], *, check: structured.Check) -> dict[str, Any]:
    """An answer of the judge's chat model in the form of a schema. Raises: RejectionError.

    Args:
      words: the question.
      schema: JSON schema of the answer.
      check: of what the schema cannot say.
    """
    client = self.tools.plan_chat
    assert client is not None
    answer = self._asked(lambda: client.ask([chat.Message('user', words)], schema=schema, check=check))
    self.cost += answer.cost
    return answer.value or {}

  def _count(self, price: budget_lib.Price, words: str, *, answer_tokens: int, more: int = 0):
    tokens = len(words) // _CHARACTERS + more
    self.cost += price.of(budget_lib.Cost(calls=1, prompt_tokens=tokens, completion_tokens=answer_tokens))


_BLANK = np.zeros((1, 1, 3), np.uint8)
_CHARACTERS = 4  # Of English a token, for estimates.
_SCHEMA_WORDS = str(openai.SCHEMA)


def _renderer(
  config: build_config.RendererConfig, world: Any, painter: Callable[[str], Any], *, dry: bool, **shared: Any
) -> renderers.Renderer:
  if config.name == 'world':
    return renderers.get('world', world)
  if config.name == 'painter':
    return renderers.get('painter', painter(config.checkpoint))
  assert isinstance(config.endpoint, transport.Endpoint)
  if dry:
    return renderers.FluxKontextRenderer(_unasked(), size=config.size)
  if config.name == 'flux_kontext':
    client: images.ImageClient = images.FluxKontext(
      config.endpoint, price=config.price, poll_seconds=config.poll_seconds, **shared
    )
  else:
    client = images.OpenAIImages(config.endpoint, price=config.price, **shared)
  return renderers.get('flux_kontext', client, size=config.size)


def _judge(
  config: build_config.JudgeConfig, world: Any, painter: Callable[[str], Any], *, dry: bool, **shared: Any
) -> tuple[base.Judge, chat.Chat | None]:
  if config.name == 'exact':
    return judges.judge('exact', world), None
  if config.name == 'self':
    return judges.judge('self', painter(config.checkpoint), model=config.checkpoint), None
  assert isinstance(config.endpoint, transport.Endpoint)
  if dry:
    return judges.judge('openai', _unasked()), None
  settings: dict[str, Any] = dict(max_tokens=config.max_tokens, picture_tokens=config.picture_tokens)
  client = chat.Chat(config.endpoint, price=config.price, **settings, **shared)
  return judges.judge('openai', client), client


def _unasked() -> Any:
  """Stands for a client that a dry run does not ask."""
  return None


def _name(part: Any, otherwise: str) -> str:
  if part.endpoint is not None:
    return f'{part.endpoint.model} at {part.endpoint.host}'
  return getattr(part, 'checkpoint', '') or otherwise


def categories(reasons: Sequence[str]) -> dict[str, int]:
  """Reasons counted by category, the commonest first.

  >>> categories(['judge: step 1: red', 'scene: none', 'judge: step 2: blue'])
  {'judge': 2, 'scene': 1}
  """
  counts: dict[str, int] = {}
  for reason in reasons:
    category = reason.partition(':')[0]
    counts[category] = counts.get(category, 0) + 1
  return dict(sorted(counts.items(), key=lambda item: -item[1]))
