"""Instructions and descriptions by a writer model, checked against the scene graph; templates where it fails."""

import dataclasses
import json
from collections.abc import Callable

import numpy as np

from pdgen.construction import instructions, wording, writers
from pdgen.core import graph_operations, tags

TASK = """You write one step of a painting process: an instruction for the painter and a description of the whole
picture after it. Answer with one line of this form and nothing else:

<ins>the instruction</ins><des>the description</des>

- The instruction says only what this step does: {operation}.{temporary}
- The description names every object of the scene after the step, with its attributes and relations, and nothing else.
  What the step adds it calls newly added: "The image depicts .., and now features a newly added ..".
- Name objects, attributes and values in the words of the scene graphs.

Scene graph before the step:
{before}

Scene graph after the step:
{after}

A correct answer in simple words, to be written better:
{template}"""

_DOES = {
  'add': 'it adds objects',
  'refine': 'it changes an attribute',
  'swap': 'it replaces objects',
  'remove': 'it removes objects',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriterInstructions:
  """Words a step by a writer model (`instructions.Instructions`).

  A text that is not accepted is asked for again with the reason. After the last try the templates' text is taken, and
  `PlanText.source` and `rejections` say so; with `fallback=False` it is an error.
  """

  writer: writers.Writer
  tries: int = 3  # Answers at most, a step.
  fallback: bool = True  # Take the templates' text where no answer is accepted.

  def write(self, step: graph_operations.GraphStep, *, rng: np.random.Generator) -> instructions.PlanText:
    """rng: chooses the template's wording, which the writer is shown.

    Raises: writers.RejectedError with the reasons, without `fallback`.
    """
    template = instructions.Templates().write(step, rng=rng)
    read = lambda answer: check(answer, step)
    try:
      plan, rejections = writers.ask(self.writer, task(step, template), read, tries=self.tries, what='A plan')
    except writers.RejectedError as error:
      if not self.fallback:
        raise
      return dataclasses.replace(template, rejections=error.reasons)
    instruction, description = plan
    return instructions.PlanText(
      instruction=instruction, description=description, source=instructions.WRITER, rejections=tuple(rejections)
    )


def task(step: graph_operations.GraphStep, template: instructions.PlanText) -> str:
  """What a writer is asked for a step. template: the same step in the templates' words."""
  temporary = getattr(step.operation, 'temporary', ())
  return TASK.format(
    operation=_DOES[step.operation.name],
    temporary=f' It says that this is only for now: {", ".join(temporary)}.' if temporary else '',
    before=json.dumps(step.before.to_dict()),
    after=json.dumps(step.after.to_dict()),
    template=template.plan,
  )


def check(answer: str, step: graph_operations.GraphStep) -> tuple[str, str]:
  """The instruction and the description in a writer's answer.

  Raises: ValueError for an answer that is no plan of one line, a description that leaves out an object of the scene, an
    attribute or a number, or still names what is gone, and an instruction that does not name what the step adds,
    changes, replaces or removes.
  """
  instruction, description = tags.plan_parts(answer.strip())
  for what, text in (('instruction', instruction), ('description', description)):
    if not text.strip() or text != ' '.join(text.split()):
      raise ValueError(f'The {what} is {text!r}: it must be words in one line.')
    if len(tags.split(text)) > 1 or text in tags.NAMES:
      raise ValueError(f'The {what} holds a tag: {text!r}.')
  operation, after, before = step.operation, step.after, step.before
  if unnamed := wording.unnamed(description, after):
    raise ValueError(f'The description does not name {unnamed}.')
  left = {n.name for n in after.nodes}
  for gone in (n.name for n in before.nodes if n.id not in after.ids):
    if gone not in left and wording.names(description, gone):
      raise ValueError(f'The description names {gone!r}, which is not in the picture any more.')
  touched = {n.id for n in getattr(operation, 'nodes', ())} | set(getattr(operation, 'ids', ()))
  for graph in (before, after):
    if unnamed := wording.unnamed(instruction, graph.induced(id for id in graph.ids if id in touched)):
      raise ValueError(f'The instruction does not name {unnamed}, which the step is about.')
  if isinstance(operation, graph_operations.Refine) and not wording.names(instruction, operation.value):
    raise ValueError(f'The instruction does not say {operation.value!r}, the new {operation.attribute}.')
  for node in after.nodes:
    for attribute in node.attributes:
      if not wording.names(description, attribute.value):
        raise ValueError(f'The description does not say that the {node.name} is {attribute.value!r}.')
  for group in wording.groups(after.nodes):
    count, name = len(group), group[0].name
    if count > 1 and not any(wording.names(description, word) for word in (wording.number(count), str(count))):
      raise ValueError(f'The description does not say that there are {wording.number(count)} {wording.plural(name)}.')
  return instruction, description


INSTRUCTIONS: dict[str, Callable[..., instructions.Instructions]] = {
  instructions.TEMPLATE: instructions.Templates,
  instructions.WRITER: WriterInstructions,
}
