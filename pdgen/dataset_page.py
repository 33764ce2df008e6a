"""Writes a page to look at data: record sets (`write`) or what a config trains on (`write_config`); commands share it.

It joins `data`, which reads trajectories and makes their token tables, and `viewing`, which makes HTML of plain values.
"""

import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import packed
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import pipeline, records, sources, survey, token_table, tokenizers
from pdgen.viewing import dataset_page

# What is trained comes first.
_HEADER = (
  *('order', 'token', 'loss', 'weight', 'label', 'copy', 'expert', 'index', 'picture', 'patch'),
  *('position', 'span', 'reach'),
)
_COUNTED = 500  # Samples of a config that are counted.
_MOST_REJECTED = 200  # Rejected rows on a page.
_SIGNS = (
  '+: no inspection asks for a refined picture; −: one does. In grey the paper, which does not say in what it measures '
  'prompts.'
)


def write(
  folder: str | pathlib.Path,
  out: str | pathlib.Path,
  *,
  count: int = 24,
  seed: int = 0,
  config: config_lib.Config | None = None,
) -> pathlib.Path:
  """Writes a page of sampled trajectories of record sets, with counts and rejected rows.

  Args:
    folder: a record set, or a folder with some in it (`survey.record_sets`), `rejected.jsonl` beside them.
    out: folder of the page; `index.html` in it is written anew.
    count: trajectories on the page; a picture takes at most 256 x 256 pixels there.
    seed: of the choice.
    config: of an experiment: every trajectory gets the token table that it would train with. None: no token tables.

  Returns: the page's path.

  Raises: FileNotFoundError where the folder holds no record set, or the tokenizer of the config is not there.
  """
  folder = pathlib.Path(folder)
  if config is not None:
    tokenizers.load(config.data.tokenizer)  # An error of the config is no error of each record.
  found = survey.survey(folder, count=count, seed=seed)
  rejected = survey.rejects(folder, count=min(count, _MOST_REJECTED), seed=seed)
  readers = {one.folder: records.Reader(one.folder) for one in {one for one, _ in found.chosen}}
  entries = [_record_entry(one, number, readers[one.folder], config) for one, number in found.chosen]
  records_there = sum(one.count for one in found.sets)
  notes = [
    f'{len(entries)} of {records_there} records, dealt out evenly over sets, subsets and signs (seed {seed}). '
    f'Counted: {found.read} of them'
    + (f', of which {found.unreadable} cannot be read.' if found.unreadable else '.')
    + ('' if config else ' Token tables need a config.'),
    _SIGNS,
  ]
  document = dataset_page.page(
    entries,
    title=f'Data of {folder}',
    notes=notes,
    counts=_counts(found.summaries),
    sets=_sets(found.sets),
    rejected=_rejected(rejected),
  )
  return dataset_page.write(pathlib.Path(out) / 'index.html', document)


def write_config(config: config_lib.Config, out: str | pathlib.Path, *, count: int = 24, seed: int = 0) -> pathlib.Path:
  """Writes a page of what a config trains on: its samples, condition dropout included, and counts of the first 500.

  Args:
    config: of the experiment.
    out: folder of the page; `index.html` in it is written anew.
    count: samples on the page.
    seed: the page shows the samples from number seed * count on; the seed of the data is the config's.

  Returns: the page's path.

  Raises: ValueError naming the field of the config that is wrong.
  """
  source = sources.from_config(config)
  tokenizers.load(config.data.tokenizer)  # An error of the config is no error of each sample.
  entries = [_sample_entry(config, source, index) for index in range(seed * count, (seed + 1) * count)]
  counted, unreadable = [], 0
  for index in range(_COUNTED):
    try:
      counted.append(survey.facts(source[index]))
    except ValueError:
      unreadable += 1
  notes = [
    f'Samples {seed * count} to {(seed + 1) * count - 1} of {config.name}, as they are trained on. Counted: the first '
    f'{_COUNTED} samples' + (f', of which {unreadable} cannot be read.' if unreadable else '.'),
    _SIGNS,
  ]
  document = dataset_page.page(
    entries, title=f'Data of the config {config.name}', notes=notes, counts=_counts(survey.summaries(counted))
  )
  return dataset_page.write(pathlib.Path(out) / 'index.html', document)


def tokens(row: packed.PackedBatch, tokenizer: tokenizers.base.Tokenizer) -> dataset_page.TokenTable:
  """The token table of a row, runs of patches together."""
  table = token_table.rows(row, tokenizer)
  losses = {}
  for loss in (token_table.CE, token_table.FLOW):
    weights = [token.weight for token in table if token.loss == loss]
    losses[loss] = f'{len(weights)}, weights {sum(weights):.4g}'
  experts = [sum(token.expert == expert for token in table) for expert in token_table.EXPERTS]
  return dataset_page.TokenTable(
    header=_HEADER,
    runs=tuple(map(_run, token_table.runs(table))),
    summary=(
      f'cross-entropy on {losses[token_table.CE]}; flow on {losses[token_table.FLOW]}; '
      f'{experts[0]} und and {experts[1]} gen tokens, pictures: {len(row.pictures)}'
    ),
  )


def _run(run: Sequence[token_table.TokenRow]) -> dataset_page.TokenRun:
  first = run[0]
  cells = {name: str(getattr(first, name)) for name in _HEADER}
  cells |= {name: '' for name in ('picture', 'patch') if getattr(first, name) is None}
  cells |= dict(weight=f'{first.weight:.4g}' if first.loss else '', token=first.token + '^' * first.noised)
  varying = {}
  if first.patch is not None:
    cells['token'] = ('ViT' if first.copy == token_table.VIT else 'patch') + '^' * first.noised
  for name in ('order', 'index', 'patch', 'reach'):
    if getattr(first, name) != getattr(run[-1], name):
      varying[name] = cells[name] = token_table.ranges(getattr(token, name) for token in run)
  return dataset_page.TokenRun(
    cells=tuple(cells[name] for name in _HEADER),
    category=_category(first),
    count=len(run),
    each={_HEADER.index(name): ranges for name, ranges in varying.items()},
  )


def _category(token: token_table.TokenRow) -> str:
  if token.loss:
    return 'ce' if token.loss == token_table.CE else 'flow'
  return {'text': 'text', 'noised': 'noised', 'clean': 'clean', 'ViT': 'vit'}[token.copy]


def _record_entry(
  one: survey.RecordSet, number: int, reader: records.Reader, config: config_lib.Config | None
) -> dataset_page.Entry:
  name = f'{one.name}, record {number}'
  try:
    trajectory = reader[number]
  except ValueError as error:
    return dataset_page.Entry(name=name, set=one.name, split=one.split, error=str(error))
  rng = None if config is None else sources.sample_rng(config.seed, number)
  return _entry(trajectory, name=name, one=one, config=config, rng=rng)


def _sample_entry(config: config_lib.Config, source: sources.Source, index: int) -> dataset_page.Entry:
  name = f'sample {index}'
  try:
    trajectory = source[index % len(source)]
  except ValueError as error:
    return dataset_page.Entry(name=name, error=str(error))
  return _entry(trajectory, name=name, config=config, rng=sources.sample_rng(config.seed, index))


def _entry(
  trajectory: trajectory_lib.Trajectory,
  *,
  name: str,
  config: config_lib.Config | None,
  rng: np.random.Generator | None,
  one: survey.RecordSet | None = None,
) -> dataset_page.Entry:
  table, why_not = None, ''
  if config is not None:
    try:
      row = pipeline.build_row(config, trajectory, rng)
      table = tokens(row, tokenizers.load(config.data.tokenizer))
    except ValueError as error:
      why_not = str(error)
  fact = survey.facts(trajectory)
  return dataset_page.Entry(
    name=name,
    set=one.name if one else '',
    split=one.split if one else '',
    source=fact.source,
    kind=fact.kind,
    sign=fact.sign,
    refined=fact.refined,
    trajectory=trajectory,
    tokens=table,
    tokens_error=why_not,
  )


def _counts(summaries: Iterable[survey.Summary]) -> dataset_page.Table:
  rows = tuple(
    (
      *(one.kind, f'{one.count:,}', f'{one.plus:,}', f'{one.minus:,}', f'{one.mean_pictures:.2f}'),
      *(str(one.most_pictures), f'{one.mean_characters:.1f}', f'{one.mean_words:.1f}', f'{one.mean_steps:.2f}'),
      *(f'{one.refined:,}', _some(one.cost.calls), _some(one.cost.money)),
    )
    for one in summaries
  )
  return dataset_page.Table(
    header=dataset_page.COUNTS, rows=rows, numbers=frozenset(range(1, len(dataset_page.COUNTS)))
  )


def _some(number: float) -> str:
  """The number, or nothing for 0."""
  return '' if not number else f'{number:,}' if isinstance(number, int) else f'{number:.2f}'


def _sets(found: Iterable[survey.RecordSet]) -> dataset_page.Table:
  rows = tuple(
    (one.name, f'{one.count:,}', f'{one.bytes / 2**20:,.1f}', one.fingerprint[:16], one.error) for one in found
  )
  header = ('set', 'records', 'MiB', 'fingerprint', 'what is wrong')
  return dataset_page.Table(header=header, rows=rows, numbers=frozenset((1, 2)))


def _rejected(found: survey.Rejects) -> list[tuple[str, dataset_page.Table]]:
  if not found.count:
    return []
  names = list(dict.fromkeys(name for row in found.sample for name in row if name != 'reason'))[:8]
  rows = tuple(tuple(str(row.get(name, ''))[:500] for name in ('reason', *names)) for row in found.sample)
  reasons = tuple((reason, f'{times:,}') for reason, times in found.reasons)
  return [
    (
      f'Rejected: {found.count:,} rows, by reason',
      dataset_page.Table(header=('reason', 'rows'), rows=reasons, numbers=frozenset((1,))),
    ),
    (f'{len(rows)} of the rejected rows', dataset_page.Table(header=('reason', *names), rows=rows)),
  ]
