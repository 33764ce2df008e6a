"""Evaluators by name, made from the options of a command line: what `pdgen.evaluate` offers.

A new one is a file with the class, a function here that makes it from the options, and a line in `EVALUATORS`
(`docs/add_an_evaluator.md`).
"""

import argparse
import json
import pathlib
from collections.abc import Callable
from typing import Any

from pdgen import judges, worlds
from pdgen.evals import (
  base,
  compbench,
  compbench_rules,
  geneval,
  geneval2,
  inspection,
  knowledge,
  process,
  wise,
  wise_rules,
)
from pdgen.judges import base as judges_base
from pdgen.judges import coco
from pdgen.services import budget as budget_lib
from pdgen.services import cache as cache_lib
from pdgen.services import chat as chat_lib
from pdgen.services import transport
from pdgen.worlds import base as world_base


def needs_world(flags: argparse.Namespace) -> bool:
  """Whether the checkpoint must have a world that judges."""
  if flags.name in ('inspection', 'process', 'knowledge'):
    return not getattr(flags, 'world', None)
  return getattr(flags, 'detector', '') == 'exact' and not flags.world


def geneval_of(world: Any, flags: argparse.Namespace) -> base.Evaluator:
  """GenEval on a file of prompts, on `flags.per_task` held-out prompts a task of a world, or on a folder as it is."""
  prompts = None
  if flags.prompts:
    base.read_rows(flags.prompts, 'prompt', 'tag', 'include')  # Named before anything is painted.
    prompts = base.PromptSet.read(flags.prompts)
  elif not flags.score_only:
    world = _world(world, flags)
    rows = worlds.require(world, world_base.JudgedWorld).prompts('heldout', per_task=flags.per_task, seed=flags.seed)
    prompts = base.PromptSet(f'{world.__name__}:heldout', tuple(rows))
  return geneval.GenEval(
    prompts=prompts,
    detector=_detector(world, flags),
    samples=flags.samples,
    # Figures of others are of COCO's objects: an exact detector is of a small world.
    published=None if flags.detector == 'exact' else 'geneval',
    **_painting(flags),
  )


def inspection_of(world: Any, flags: argparse.Namespace) -> base.Evaluator:
  """Injected errors of every kind of the world, then the model's own drafts."""
  worlds.require(world, world_base.InspectedWorld)
  return inspection.Inspection(
    drafts=lambda kind, seed, index: world.injected(kind, seed=seed, index=index),
    judge=judges.judge('exact', world),
    kinds=tuple(world.ERROR_KINDS),
    per_kind=flags.per_kind,
    own_drafts=flags.drafts,
    seed=flags.seed,
    batch_size=flags.batch_size,
    checkpoint=_checkpoint(flags),
    questions=world.__name__,
  )


def process_of(world: Any, flags: argparse.Namespace) -> base.Evaluator:
  """The same held-out prompts and seeds under `flags.settings`; steps are judged where the world can inspect them."""
  seed = flags.seed if flags.prompts_seed is None else flags.prompts_seed
  world = _world(world, flags)
  rows = worlds.require(world, world_base.JudgedWorld).prompts('heldout', per_task=flags.per_task, seed=seed)
  return process.Process(
    prompts=base.PromptSet(f'{world.__name__}:heldout', tuple(rows)),
    detector=judges.detector('exact', world),
    inspect=getattr(world, 'inspect', None),
    settings=tuple(name.strip() for name in flags.settings.split(',')),
    seed=flags.seed,
    batch_size=flags.batch_size,
    checkpoint=_checkpoint(flags),
  )


def knowledge_of(world: Any, flags: argparse.Namespace) -> base.Evaluator:
  """`flags.per_kind` prompts of each kind of fact and split, beside the plain ones."""
  return knowledge.of_world(_world(world, flags), per_kind=flags.per_kind, prompts_seed=flags.seed, **_painting(flags))


def wise_of(world: Any, flags: argparse.Namespace) -> base.Evaluator:
  """WISE, by a chat model or from files of answers."""
  version = wise_rules.VERSIONS[flags.version]
  wording = pathlib.Path(flags.wording).read_text(encoding='utf-8') if flags.wording else ''
  if wording and not ('{PROMPT}' in wording and '{EXPLANATION}' in wording):
    raise ValueError(f'{flags.wording} must hold {{PROMPT}} and {{EXPLANATION}}.')
  judge = None
  if not flags.results and not flags.generate_only:
    judge = wise.WiseJudge(_chat(flags), version, wording)
  prompts = wise.read_prompts(flags.prompts, version)
  return wise.Wise(prompts=prompts, version=version, judge=judge, results=flags.results or (), **_painting(flags))


def compbench_of(world: Any, flags: argparse.Namespace) -> base.Evaluator:
  """T2I-CompBench++, numeracy or spatial."""
  prompts = compbench.read_prompts(flags.prompts)
  categories = [c for c in (compbench.NUMERACY, compbench.SPATIAL) if prompts.name.startswith(c)]
  if not (flags.category or categories):
    raise ValueError(f'{flags.prompts}: --category says of which category these prompts are.')
  options: dict[str, Any] = {}
  if flags.objects:
    lines = pathlib.Path(flags.objects).read_text(encoding='utf-8').splitlines()
    options['objects'] = compbench_rules.read_objects(lines)
  return compbench.CompBench(
    prompts=prompts,
    category=flags.category or categories[0],
    detector=_detector(world, flags),
    classes=() if flags.detector == 'exact' else coco.NAMES,
    samples=flags.samples,
    **options,
    **_painting(flags),
  )


def geneval2_of(world: Any, flags: argparse.Namespace) -> base.Evaluator:
  """GenEval 2, questions answered by a chat model."""
  prompts = geneval2.read_prompts(flags.prompts)
  if flags.generate_only:
    return geneval2.GenEval2(prompts=prompts, judge=_NoJudge(), **_painting(flags))
  chat = _chat(flags)
  return geneval2.GenEval2(
    prompts=prompts,
    judge=judges.judge('openai', chat),
    judge_name=f'openai {chat.name}',
    threads=chat.endpoint.concurrency,
    **_painting(flags),
  )


EVALUATORS: dict[str, Callable[[Any, argparse.Namespace], base.Evaluator]] = {
  'geneval': geneval_of,
  'inspection': inspection_of,
  'process': process_of,
  'knowledge': knowledge_of,
  'wise': wise_of,
  'compbench': compbench_of,
  'geneval2': geneval2_of,
}


def add_judge(parser: argparse.ArgumentParser):
  """Adds the options of a chat model that judges."""
  group = parser.add_argument_group('judge: an OpenAI-compatible server (services.chat)')
  group.add_argument('--judge_url', help='up to the version: https://api.openai.com/v1, http://localhost:8000/v1')
  group.add_argument('--judge_model', help="the server's name for it")
  group.add_argument('--judge_key_env', help='environment variable of the key, if the server takes one')
  group.add_argument('--judge_options', type=json.loads, default={}, help='JSON, more of the request: vLLM, reasoning')
  group.add_argument('--judge_concurrency', type=int, default=8, help='questions at once')
  group.add_argument('--cache', help='folder of answers, shared by runs')
  group.add_argument('--max_calls', type=int, help='requests, retries included; kept in --out across resumes')
  group.add_argument('--max_money', type=float, help='needs --price')
  group.add_argument('--price', help='PROMPT,COMPLETION: money for a million tokens')


def _painting(flags: argparse.Namespace) -> dict[str, Any]:
  """Options that all evaluators of pictures have."""
  return dict(mode=flags.mode, seed=flags.seed, batch_size=flags.batch_size, checkpoint=_checkpoint(flags))


def _checkpoint(flags: argparse.Namespace) -> str:
  """What is scored, by name: quantised weights are another model."""
  return f'{flags.checkpoint} in {flags.quantize}' if flags.quantize else flags.checkpoint


def _world(world: Any, flags: argparse.Namespace) -> Any:
  return worlds.get(flags.world) if flags.world else world


def _detector(world: Any, flags: argparse.Namespace) -> judges_base.Detector:
  if flags.generate_only and flags.detector != 'exact':
    return _NoDetector()  # Weights are not loaded before they are needed.
  if flags.detector == 'exact':
    world = _world(world, flags)
    if world is None:
      raise ValueError('--detector=exact needs a world: that of a checkpoint, or --world=shapes.')
    return judges.detector('exact', world)
  options = dict(option.partition('=')[::2] for option in flags.detector_option)
  try:
    return judges.detector(flags.detector, **options)
  except TypeError as error:
    raise ValueError(f'--detector_option does not suit the detector {flags.detector}: {error}.') from None


def _chat(flags: argparse.Namespace) -> chat_lib.Chat:
  if not (flags.judge_url and flags.judge_model):
    raise ValueError('Give a judge: --judge_url and --judge_model.')
  endpoint = transport.Endpoint(
    base_url=flags.judge_url,
    model=flags.judge_model,
    key_env=flags.judge_key_env,
    concurrency=flags.judge_concurrency,
  )
  price = None
  if flags.price:
    try:
      prompt, completion = map(float, flags.price.split(','))
    except ValueError:
      raise ValueError(f'--price={flags.price}: give two numbers, as in 2.5,10.') from None
    price = budget_lib.Price(prompt=prompt, completion=completion)
  budget = None
  if flags.max_calls is not None or flags.max_money is not None:
    path = pathlib.Path(flags.out, 'budget.json') if flags.out else None
    budget = budget_lib.Budget(calls=flags.max_calls, money=flags.max_money, path=path)
  cache = cache_lib.Cache(flags.cache) if flags.cache else None
  return chat_lib.Chat(endpoint, budget=budget, price=price, cache=cache, options=flags.judge_options)


class _NoDetector:
  """Of a run that only paints."""

  def detect(self, picture: Any) -> Any:
    raise ValueError('This run paints only.')


class _NoJudge:
  """Of a run that only paints."""

  def judge(self, question: Any) -> Any:
    raise ValueError('This run paints only.')
