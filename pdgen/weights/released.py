"""Released folders as people have them: ema or model, whole or sharded, complete or filled from a base folder.

A fine-tune may hold some of the tensors, and no json, VAE or tokenizer. A base, a folder of BAGEL-7B-MoT, fills in what
is missing, file by file and tensor by tensor: what the fine-tune has goes before what the base has.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from pdgen.core import json_file, paths
from pdgen.weights import bagel, exported, folders, safetensors_io, shards, tied_head

# Stems of the files that hold the tensors of each released file. (BAGEL) Inference reads the average.
STEMS = {bagel.EMA: ('ema', 'model'), bagel.AE: ('ae',)}
CONFIG, LLM, VIT = 'config.json', *bagel.JSON
JSON = (LLM, VIT, CONFIG, 'ae_config.json')
# Of a tokenizer, complete or not: the names that `data.tokenizers.byte_level` knows.
COMPLETE = (('tokenizer.json',), ('vocab.json', 'merges.txt'))
TOKENIZER = (
  *('tokenizer.json', 'vocab.json', 'merges.txt', 'tokenizer_config.json'),
  *('added_tokens.json', 'special_tokens_map.json', 'tokenizer.model', 'spiece.model', 'vocab.txt'),
)
ADVICE = 'With --base=FOLDER, a download of BAGEL-7B-MoT, what is missing is taken from there.'
_KEPT = ('.json', '.txt', '.model', '.tiktoken')  # Endings of files that are given back besides the weights.
_WHOLE = tuple(f'{stem}{shards.SUFFIX}' for stems in STEMS.values() for stem in stems)


@dataclasses.dataclass(frozen=True)
class Folder:
  """One folder, whose weights are open."""

  path: pathlib.Path
  weights: Mapping[str, shards.Shards]  # By released file (EMA, AE), where there are any.
  left_out: tuple[str, ...] = ()  # Names of other weights of the language model.

  def has(self, name: str) -> bool:
    return paths.inside(self.path, name).is_file()

  def json(self, name: str) -> dict[str, Any]:
    """The content of a json file; nothing of one that is not there."""
    return json_file.read(self.path / name) if self.has(name) else {}


@dataclasses.dataclass(frozen=True)
class Released:
  """A folder, and the base that fills it."""

  own: Folder
  base: Folder | None

  @property
  def advice(self) -> str:
    """What helps where something is missing."""
    return f'{self.base.path} lacks it, too.' if self.base else ADVICE

  def home(self, name: str) -> Folder:
    """The folder that a json file is taken from."""
    return self.base if self.base and not self.own.has(name) and self.base.has(name) else self.own

  def json(self, name: str) -> dict[str, Any]:
    """The content of a json file; nothing of one that is nowhere."""
    return self.home(name).json(name)

  def own_places(self, file: str) -> shards.Places:
    """The tensors of a released file (EMA, AE) that the folder has; a tied head is one."""
    return _places(self.own, file, self.json(LLM))

  def base_places(self, file: str) -> shards.Places:
    """Those of the base that the folder lacks."""
    if self.base is None:
      return {}
    own = self.own_places(file)
    return {n: place for n, place in _places(self.base, file, self.base.json(LLM)).items() if n not in own}

  def lacks(self, field: str) -> bool:
    """Whether config.json says that the model was made without a part (`visual_und`: the ViT)."""
    told = self.json(CONFIG).get(field, True)
    if not isinstance(told, bool):
      raise ValueError(f'{self.home(CONFIG).path / CONFIG}: {field} is {str(told)[:40]!r}, neither true nor false.')
    return not told


def _places(folder: Folder, file: str, llm: Mapping[str, Any]) -> shards.Places:
  if file not in folder.weights:
    return {}
  places = folder.weights[file].places
  if file != bagel.EMA:
    return places
  try:
    return tied_head.with_head(places, llm)
  except ValueError as error:
    raise ValueError(f'{folder.path}{os.sep}{error}') from None


def open_released(
  folder: pathlib.Path, *, base: str | os.PathLike | None = None, weights: str | os.PathLike | None = None
) -> Released:
  """Opens a folder, and its base.

  Args:
    folder: the released folder, or a part of one.
    base: a whole one, which fills it.
    weights: name of a file or an index in the folder, or the path of one elsewhere, for the language model; None: the
      average before the model, a whole file before shards.

  Raises: ValueError of one line for what is no such folder, naming what is missing; FileNotFoundError for a folder or
    file that is not there.
  """
  if not folder.is_dir() or (folder / folders.CHECKPOINTS).is_dir():
    error = ValueError if folder.exists() else FileNotFoundError
    raise error(f'{folders.explain(folder)} `convert import` takes a released BAGEL folder.')
  names = _names_of_weights(folder)
  own_base = None if base is None else _check_base(pathlib.Path(base))
  of_base = {} if own_base is None else _names_of_weights(own_base)
  chosen = names[bagel.EMA][:1] if weights is None else [os.fspath(weights)]

  def lacks(name: str) -> bool:
    return not any(paths.inside(one, name).is_file() for one in (folder, own_base) if one)

  missing = [name for name in bagel.JSON if lacks(name)]
  missing += [
    file for file in STEMS if not names[file] and not of_base.get(file) and not (chosen and file == bagel.EMA)
  ]
  bare = Released(Folder(folder, {}), Folder(own_base, {}) if own_base else None)
  if VIT in missing and bare.lacks('visual_und'):
    missing.remove(VIT)
  if missing:
    raise ValueError(_lacks(folder, missing, own_base))
  if not chosen and not names[bagel.AE]:
    raise ValueError(f'{folder} holds no weights: all would be those of {own_base}. Import that.')
  kind = bare.json(LLM).get('model_type')
  if kind != 'qwen2':
    where = bare.home(LLM).path
    raise ValueError(f'The language model of {where} is a {kind!r} (llm_config.json); that of BAGEL is a qwen2.')
  opened = {bagel.EMA: shards.open_shards(_path_of(folder, chosen[0]))} if chosen else {}
  opened |= {bagel.AE: shards.open_shards(folder / names[bagel.AE][0])} if names[bagel.AE] else {}
  left_out = tuple(name for name in names[bagel.EMA] if name not in (*chosen, *_files(opened)))
  filling = {file: shards.open_shards(own_base / found[0]) for file, found in of_base.items() if own_base and found}
  return Released(Folder(folder, opened, left_out), Folder(own_base, filling) if own_base else None)


def _names_of_weights(folder: pathlib.Path) -> dict[str, list[str]]:
  """Names of the weights in a folder by released file, the preferred one first; an index of any name if only one."""
  names = {file: shards.found(folder, stems) for file, stems in STEMS.items()}
  if not names[bagel.EMA]:
    indices = [path.name for path in folder.glob(f'*{shards.INDEX}') if path.name not in names[bagel.AE]]
    names[bagel.EMA] = indices if len(indices) == 1 else []
  return names


def _files(weights: Mapping[str, shards.Shards]) -> set[str]:
  return {name for one in weights.values() for name in one.files}


def _path_of(folder: pathlib.Path, weights: str) -> pathlib.Path:
  """The file that `--weights` names: a plain name is one in the folder."""
  path = pathlib.Path(weights)
  path = path if os.sep in weights or '/' in weights else folder / weights
  if path.suffix not in (shards.SUFFIX, '.json'):
    raise ValueError(f'--weights={weights} is neither a *{shards.SUFFIX} file nor a *{shards.INDEX}.')
  return path


def _check_base(base: pathlib.Path) -> pathlib.Path:
  if base.is_dir() and not (base / folders.CHECKPOINTS).is_dir():
    if any(_names_of_weights(base).values()):
      return base
    raise ValueError(f'--base={base} holds no weights of a released BAGEL folder.')
  if base.exists():
    raise ValueError(f'--base={base}: {folders.explain(base)} The base is a released BAGEL folder.')
  hint = folders.hub_hint(str(base), then='say --base={}')
  raise FileNotFoundError(f'--base: there is no folder {base}.{hint}')


def _lacks(folder: pathlib.Path, missing: list[str], base: pathlib.Path | None) -> str:
  """The error of a folder without these files."""
  if (folder / exported.PARAMS).is_file():
    return (
      f'{folder} is a model of pdgen already: use it as it is (--checkpoint={folder}), or make a released folder '
      f'of it: python -m pdgen.convert export --from={folder} --to=..'
    )
  names = ', '.join(missing)
  if base:
    return f'Neither {folder} nor {base} holds {names}.'
  kind = folders.described(folder)
  what = f'is a {kind} (config.json), not BAGEL-7B-MoT' if kind else 'is no BAGEL-7B-MoT folder'
  others = sorted(path.name for path in folder.glob(f'*{shards.SUFFIX}*') if path.name not in _WHOLE)
  others = [name for name in others if name.endswith(shards.INDEX)] or others
  hint = f' --weights={others[0]} takes that file as the weights.' if others and bagel.EMA in missing else ''
  return f'{folder} {what}: it lacks {names}.{hint} {ADVICE}'


def corrections(source: Released, wanted: Mapping[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
  """Fields of the json files that do not describe the folder any more, once the base has filled it, by file."""
  filled = {name for file, name in wanted if file == bagel.EMA and name in source.base_places(file)}
  out: dict[str, dict[str, Any]] = {}
  if any(name.startswith(bagel.OF_VIT) for name in filled) and source.lacks('visual_und'):
    out[CONFIG] = {'visual_und': True}
  if tied_head.HEAD in filled and source.json(LLM).get(tied_head.FIELD):
    if source.base_places(bagel.EMA)[tied_head.HEAD][1] == tied_head.HEAD:
      out[LLM] = {tied_head.FIELD: False}
  return out


def layout(source: Released, file: str, tensors: shards.Tensors) -> tuple[dict[str, bytes], pathlib.Path | None]:
  """Headers of the files that an export writes, by name, and the index that joins them, if one does.

  Those of the folder or of the base where all tensors are from there, and else one file.

  Args:
    source: the folders.
    file: released file (EMA, AE).
    tensors: all of it.
  """
  stored = {name: place for name, place in tensors.places.items() if place[1] == name}  # A tied head is not.
  for folder in (source.own, source.base):
    one = folder.weights.get(file) if folder else None
    if one is None or one.places.keys() != stored.keys() or any(one.places[n] != stored[n] for n in stored):
      continue
    if one.index is None:
      ((name, reader),) = one.files.items()
      known = name in [f'{stem}{shards.SUFFIX}' for stem in STEMS[file]]
      return {name if known else file: reader.header}, None
    if not set(one.files) & set(_WHOLE):
      return {name: reader.header for name, reader in one.files.items()}, one.index
  # Wide types first: numbers then lie where their type wants them.
  ordered = sorted(stored, key=lambda name: -tensors.infos[name].dtype.itemsize)
  return {file: safetensors_io.header({name: tensors.infos[name] for name in ordered})}, None


def copy_files(source: Released, to: pathlib.Path, *, indices: list[pathlib.Path], corrected: Mapping[str, Any]):
  """Copies all files but the weights. Returns their names, and those that are the base's.

  Args:
    source: the folders.
    to: a folder.
    indices: of the weights, which an export gives back.
    corrected: `corrections`.
  """
  own = [path.name for path in source.own.path.iterdir() if path.is_file() and path.suffix in _KEPT]
  found = {name: source.own.path for name in own if not name.endswith(shards.INDEX)}
  for name in _of_base(source):
    if source.base:
      found.setdefault(name, source.base.path)
  found |= {path.name: path.parent for path in indices}
  for name, folder in sorted(found.items()):
    if name in (exported.IMPORTED, 'pdgen_tokenizer.json'):  # What `prepare_tokenizer` may write.
      raise ValueError(f'{folder / name} has the name of a file that a checkpoint has itself: rename it.')
    path = paths.inside(folder, name)
    if name in corrected:
      (to / name).write_text(json.dumps({**json_file.read(path), **corrected[name]}, indent=2) + '\n', encoding='utf-8')
    else:
      shutil.copyfile(path, to / name)
  return sorted(found)


def has_tokenizer(folder: Folder) -> bool:
  """Whether a folder has all files of a tokenizer."""
  return any(all(folder.has(name) for name in names) for names in COMPLETE)


def _of_base(source: Released) -> list[str]:
  """Names of json and tokenizer files that the base fills in."""
  if source.base is None:
    return []
  names = [name for name in JSON if source.home(name) is source.base]
  if not has_tokenizer(source.own):
    # tokenizer.json goes before a part of another form that the folder has.
    part = source.own.has('vocab.json') or source.own.has('merges.txt')
    names += [n for n in TOKENIZER if source.base.has(n) and not source.own.has(n) and not (part and n == TOKENIZER[0])]
  return names


def taken(source: Released, tensors: Mapping[str, shards.Tensors], corrected: Mapping[str, Any]) -> Iterator[str]:
  """Lines that say what an import takes from where, one a kind.

  Args:
    source: the folders.
    tensors: by released file.
    corrected: `corrections`.
  """
  for one in source.own.weights.values():
    yield f'Weights: {one.path}' + (f' and its {len(one.files)} files' if one.index else '')
  if others := source.own.left_out:
    yield f'Left out: {", ".join(others)} (--weights={others[0]} takes it instead)'
  base = source.base.path if source.base else None
  for file in STEMS:
    if filled := [n for n in source.base_places(file) if n in tensors[file].places]:
      parts = sorted({name.split('.')[0] for name in filled})
      yield f'From {base}: {len(filled)} tensors of {file} ({", ".join(parts)})'
  names = _of_base(source)
  for kind, found in (('json', [n for n in names if n in JSON]), ('tokenizer', [n for n in names if n not in JSON])):
    if found:
      yield f'From {base}: {kind} files {", ".join(found)}'
  for file, fields in corrected.items():
    yield f'{file} says {json.dumps(fields)} from now on.'
  ema = tensors[bagel.EMA].places
  if tied_head.HEAD in ema and ema[tied_head.HEAD][1] != tied_head.HEAD:
    yield f'The embedding is the head ({LLM}: {tied_head.FIELD}): the model gets a copy of it as a head of its own.'
  if not any(name.startswith(bagel.OF_VIT) for name in ema):
    yield f'There is no ViT ({CONFIG}: visual_und is false): pictures are seen as clean latents alone.'
