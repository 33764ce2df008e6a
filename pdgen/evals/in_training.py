"""The evaluators that a training run scores itself with, from its config."""

from collections.abc import Sequence

from pdgen import judges, worlds
from pdgen.core import config as config_lib
from pdgen.evals import base, geneval, knowledge
from pdgen.worlds import base as world_base


def evaluators(config: config_lib.Config) -> Sequence[base.Evaluator]:
  """GenEval on the fixed held-out prompts of the config's world; prompts by facts, where they are learned from.

  Raises: ValueError for a world that judges nothing.
  """
  world = worlds.require(worlds.get(config.data.world), world_base.JudgedWorld)
  prompts = base.PromptSet('heldout', tuple(world.prompts('heldout', per_task=config.train.eval_prompts)))
  found: list[base.Evaluator] = [
    geneval.GenEval(prompts=prompts, detector=judges.detector('exact', world), mode=config.data.mode)
  ]
  if any(source.knowledge for source in config.data.sources):
    found.append(knowledge.of_world(world, per_kind=config.train.eval_prompts, mode=config.data.mode))
  return found
