"""Tied embeddings: a released folder without lm_head, whose embedding is the head (`tie_word_embeddings`).

A model of pdgen has a head of its own: an import copies the embedding into it. An export leaves the head out again
while both are the same numbers, and else writes it.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pdgen.core import json_file
from pdgen.weights import safetensors_io, shards

EMBEDDING, HEAD = 'language_model.model.embed_tokens.weight', 'language_model.lm_head.weight'
LLM, FIELD = 'llm_config.json', 'tie_word_embeddings'


def with_head(places: shards.Places, llm: Mapping[str, Any]) -> shards.Places:
  """The tensors of a folder, with the embedding as head where llm_config.json ties them and no head is stored.

  Raises: ValueError where it says neither true nor false.
  """
  if HEAD in places or EMBEDDING not in places:
    return places
  tied = llm.get(FIELD, False)  # Of the transformers library: Qwen2Config does not tie.
  if not isinstance(tied, bool):
    raise ValueError(f'{LLM}: {FIELD} is {str(tied)[:40]!r}, neither true nor false.')
  return {**places, HEAD: places[EMBEDDING]} if tied else places


def same(head: Iterable[np.ndarray], embedding: Iterable[np.ndarray]) -> bool:
  """Whether two tensors, as blocks of the same shapes, are the same numbers bit for bit, whatever their types."""
  return all(np.array_equal(_bits(a), _bits(b)) for a, b in zip(head, embedding, strict=True))


def _bits(block: np.ndarray) -> np.ndarray:
  return block.astype(np.float32).view(np.uint32)


def header_with_head(headers: Mapping[str, bytes]) -> tuple[str, dict[str, bytes]]:
  """The headers of a folder, with a head behind the embedding, of its shape and type.

  Returns: the name of that file, and the headers by file.
  """
  for file, start in headers.items():
    infos = safetensors_io.tensor_infos(start)
    if EMBEDDING in infos:
      names = safetensors_io.names_in_order(start)
      names.insert(names.index(EMBEDDING) + 1, HEAD)
      ordered = {name: infos[EMBEDDING if name == HEAD else name] for name in names}
      return file, {**headers, file: safetensors_io.header(ordered, metadata=safetensors_io.metadata(start))}
  raise ValueError(f'No file of the weights holds {EMBEDDING}.')


def untie(folder: pathlib.Path, *, file: str):
  """Says in the json files of a folder that its head is stored. file: which one holds it, for an index."""
  for path in sorted(folder.glob('*.json')):
    if path.name == LLM:
      values = {**json_file.read(path), FIELD: False}
    elif path.name.endswith(shards.INDEX):
      values = json_file.read(path)
      values['weight_map'] = {**values['weight_map'], HEAD: file}
    else:
      continue
    path.write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')
