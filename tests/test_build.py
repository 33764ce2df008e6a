"""The three training subsets in the world of shapes: shares, provenance, what is learned from them, kills, refusals."""

import dataclasses
import json
import os
import pathlib
import signal
import sys

import numpy as np
import pytest
from support import kills, sketcher

from pdgen.construction import build, build_config, build_statistics, plan_reader, rewrites, slot_files, traces
from pdgen.construction.importers import run
from pdgen.core import config as config_lib
from pdgen.core import tags
from pdgen.core import trajectory as trajectory_lib
from pdgen.data import pipeline, records, sources, splits, tokenizers
from pdgen.worlds import shapes

# `PDGEN_KILLS=10 python -m pytest tests/test_build.py` takes 10. The process that is killed at a line of code is
# `python tests/test_build.py OUT SUBSET LINE`.
KILLS = int(os.environ.get('PDGEN_KILLS', 2))


def small(**more) -> build_config.BuildConfig:
  """36, 24 and 21 samples; half of the prompts the world's own."""
  values = dict(
    world='shapes',
    seed=5,
    heldout=0.3,
    shard_records=5,
    scenes=build_config.ScenesConfig(world=0.5, drawn=0.5),
    multi_turn=build_config.MultiTurnConfig(samples=36),
    conflict=build_config.ConflictConfig(samples=24, negative=14, checkpoint='sketcher', traces=40, batch_size=16),
    alignment=build_config.AlignmentConfig(samples=21, negative=14),
  )
  return build_config.BuildConfig(**{**values, **more})


def built(out: pathlib.Path, subset: str, config: build_config.BuildConfig | None = None, **more) -> run.Counts:
  painter = lambda checkpoint: sketcher.Sketcher()
  return build.build(config or small(), subset, out, make_painter=painter, **more)


def samples(out: pathlib.Path) -> list[trajectory_lib.Trajectory]:
  found = [t for split in splits.SPLITS for t in records.read(out / split)]
  return sorted(found, key=lambda t: int(t.provenance.id.rpartition('-')[2]))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def outs(tmp_path_factory):
  made = {subset: tmp_path_factory.mktemp('built') / subset for subset in build_config.SUBSETS}
  for subset, out in made.items():
    built(out, subset)
  return made


@pytest.mark.parametrize('subset', build_config.SUBSETS)
def test_a_subset_has_its_samples_with_provenance_in_their_splits(outs, subset):
  config, made = small(), samples(outs[subset])
  size = config.subset(subset)
  assert [t.provenance.id for t in made] == [f'{subset}-{i}' for i in range(size.samples)]
  assert sum(bool(t.provenance.errors) for t in made) == size.negative
  for split in splits.SPLITS:
    assert {splits.split_of(t.prompt, heldout=0.3) for t in records.read(outs[subset] / split)} <= {split}
  for t in made:
    own = t.provenance
    assert (own.kind, own.renderer, own.judge, own.writer) == (subset, 'shapes', 'shapes', 'template')
    assert own.graph and own.seed is not None and own.reasons[0] in ('prompt: world', 'prompt: taxonomy')
    assert t.stop == trajectory_lib.FINISHED and shapes.shows(t.final, t.expected)
    assert all(tags.plan_parts(step.plan) and step.inspection for step in t.steps)
    assert sum(step.rejected for step in t.steps) == len(own.errors)
    assert all((step.corrected_plan is not None) == (step.rejected and subset == 'conflict') for step in t.steps)
  assert {t.provenance.reasons[0] for t in made} == {'prompt: world', 'prompt: taxonomy'}


def test_multi_turn_paints_with_detours(outs):
  made = samples(outs['multi_turn'])
  assert {t.provenance.source for t in made} == {'constructed'}
  assert {t.provenance.detour for t in made} >= {'swap', None}
  assert max(len(t.pictures) for t in made) <= 5 < sum(len(t.pictures) for t in made)


def test_conflicts_are_the_models_own_first(outs):
  verdicts = traces.verdicts(outs['conflict'] / traces.FOLDER)
  kinds = [v['verdict'] for v in verdicts]
  assert len(kinds) == 40 and set(kinds) == set(traces.VERDICTS)
  made = samples(outs['conflict'])
  negative = [t for t in made if t.provenance.errors]
  found = [t.provenance.source for t in made]
  assert found.count(traces.SOURCE) > 5 and set(found) == {traces.SOURCE, 'injected', 'constructed'}
  assert sum(t.provenance.source == traces.SOURCE for t in negative) <= kinds.count(traces.WRONG)
  for t in negative:
    step = next(step for step in t.steps if step.rejected)
    assert step.plan_rejected and step.corrected_plan != step.plan
    assert 'conflict' in step.inspection or 'does not match the prompt' in step.inspection
    wrong, right = (plan_reader.read(p, vocabulary=sketcher.VOCABULARY) for p in (step.plan, step.corrected_plan))
    assert wrong != right
    own = t.provenance.source == traces.SOURCE
    assert step.draft_is_target == (not own or any('painted by the renderer' in r for r in t.provenance.reasons))


def test_alignment_shows_errors_of_pictures_alone(outs):
  for t in samples(outs['alignment']):
    for number, step in enumerate(t.steps):
      if step.rejected:
        before = t.steps[number - 1].draft if number else None
        assert not np.array_equal(step.draft, step.refined) and not np.array_equal(step.refined, before)
        assert 'does not match the plan' in step.inspection or 'diverges from the prompt' in step.inspection


def test_a_sample_is_a_function_of_config_and_number(outs, tmp_path):
  built(tmp_path / 'part', 'alignment', limit=6)
  whole, part = samples(outs['alignment']), samples(tmp_path / 'part')
  assert [t.provenance for t in part] == [t.provenance for t in whole[:6]]
  assert [t.steps[0].plan for t in part] == [t.steps[0].plan for t in whole[:6]]
  built(tmp_path / 'other', 'alignment', small(seed=6), limit=6)
  assert [t.prompt for t in samples(tmp_path / 'other')] != [t.prompt for t in part]


def test_processes_build_what_one_does(outs, tmp_path):
  work = build_config.WorkConfig(processes=2, chunk=5)
  built(tmp_path / 'out', 'alignment', small(work=work))
  assert contents(tmp_path / 'out') == contents(outs['alignment'])


def test_what_is_learned_from_built_records(outs):
  """A packed batch of the records: the wrong plan of a conflict is context; what answers it is learned."""
  cfg = config_lib.Config()
  source = config_lib.SourceConfig(kind='records', name=str(outs['conflict'] / 'train'))
  data = dataclasses.replace(
    cfg.data, sources=(source,), batch_size=2, und_tokens=1536, gen_tokens=1024, pictures=48, too_long='skip', workers=0
  )
  cfg = dataclasses.replace(cfg, data=data)
  iterator, words = pipeline.batches(cfg, source=sources.from_config(cfg)), tokenizers.load('shapes')
  stored = records.read(outs['conflict'] / 'train')
  checked = 0
  try:
    batch = next(iterator)
  finally:
    iterator.close()
  und = batch.und
  for row in range(2):
    for segment in range(1, int(und.tokens.segment[row].max()) + 1):
      own = und.tokens.segment[row] == segment
      order = np.argsort(und.tokens.order[row][own], kind='stable')
      ids, labels, weights = (np.asarray(field[row][own])[order] for field in (und.token_id, und.label, und.weight))
      text = words.decode([int(i) for i in ids])
      is_it = lambda t, text=text: f': {t.prompt}<|im_end|>' in text and all(step.plan in text for step in t.steps)
      sample = next(t for t in stored if is_it(t))
      learned = words.decode([int(i) for i in labels[weights > 0]])
      assert sample.prompt not in learned
      for step in sample.steps:
        assert (step.plan in learned) == (not step.plan_rejected)
        assert step.inspection.replace('<\\refine>', '</refine>') in learned
        assert step.corrected_plan is None or step.corrected_plan in learned
        checked += step.plan_rejected
  assert checked


def test_statistics_stand_beside_the_papers(outs):
  found = [build_statistics.of(outs[subset]) for subset in build_config.SUBSETS]
  assert [one.samples for one in found] == [36, 24, 21] and [one.negative for one in found] == [0, 14, 14]
  assert sum(found[1].traces.values()) == 40 and found[1].sources[traces.SOURCE] > 5
  assert sum(found[2].errors.values()) == 14 and found[0].splits['heldout'] > 0
  table = build_statistics.table(found)
  assert '32,012' in table and '8,296' in table and 'self_sampled' in table
  rejected = (outs['conflict'] / build.REJECTED).read_text().splitlines()
  assert sum(found[1].rejected.values()) == len(rejected)
  assert all(json.loads(line)['reason'].count(':') for line in rejected)


def test_rejected_samples_have_a_reason_and_another_attempt(tmp_path):
  """A world that sees every second right picture as wrong."""
  calls = []
  real = shapes.shows

  def shows(picture, expected):
    calls.append(picture)
    return real(picture, expected) and len(calls) % 4 != 0

  config = small(multi_turn=build_config.MultiTurnConfig(samples=20), tries=4)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shapes, 'shows', shows)
    counts = built(tmp_path / 'out', 'multi_turn', config)
  rows = [json.loads(line) for line in (tmp_path / 'out' / build.REJECTED).read_text().splitlines()]
  assert counts.rejected == len(rows) > 5 and all(row['reason'].startswith('judge: step ') for row in rows)
  made = {t.provenance.id for t in samples(tmp_path / 'out')}
  given_up = {row['row'] for row in rows if row['key'] == 'attempt 4'}
  assert {f'multi_turn-{row - 1}' for row in given_up}.isdisjoint(made)
  assert len(made) + len(given_up) == 20 and counts.kept == len(made)


def test_finished_samples_are_kept_as_they_are(outs, tmp_path):
  sample = samples(outs['conflict'])[0]
  made = []

  def make(slot):
    made.append(slot)
    return [slot_files.base.Rejected('judge: no'), sample]

  first, again = (slot_files.kept(tmp_path, make, 1234) for _ in range(2))
  assert made == [1234]
  assert first[1][0] == again[1][0] and first[1][1].provenance == again[1][1].provenance
  assert [bytes(f) for f in first[2]] == [bytes(f) for f in again[2]] and len(first[2]) == len(sample.pictures)
  slot_files.forget(tmp_path, [1234])
  assert slot_files.kept(tmp_path, lambda slot: [slot_files.base.Rejected('x')], 1234)[1:] == (
    [slot_files.base.Rejected('x')],
    (),
  )


# --- kills ---


@pytest.mark.parametrize('subset', ['multi_turn', 'conflict'])
def test_a_killed_build_ends_as_one_that_was_never_stopped(outs, tmp_path, subset):
  killed, rng, left = tmp_path / 'killed', np.random.default_rng(0), []
  for _ in range(KILLS):
    process = kills.process(__file__, killed, subset, int(rng.integers(200, 1500 if subset == 'multi_turn' else 3000)))
    if process.returncode == 0:  # It was near its end.
      break
    assert process.returncode == -signal.SIGKILL, process.stderr[-2000:]
    unfinished = killed / build.UNFINISHED
    left.append(json.loads(unfinished.read_text())['place']['rows'] if unfinished.exists() else -1)
  if not (killed / build.DONE).exists():
    built(killed, subset)
  print(f'places after the kills: {left}')
  assert left and left == sorted(left)
  assert contents(killed) == contents(outs[subset])


# --- refusals ---


@pytest.mark.parametrize(
  'make, error',
  [
    (lambda: build_config.BuildConfig(), 'an exact renderer or judge needs a world'),
    (lambda: build_config.BuildConfig(world='shapes', tries=0), r'config.tries=0 is too small'),
    (lambda: build_config.BuildConfig(world='shapes', heldout=2.0), 'heldout=2.0 must be a share'),
    (lambda: build_config.ConflictConfig(samples=3, negative=4), r'config.conflict.negative=4 is too large'),
    (lambda: build_config.ConflictConfig(kinds=('missing',)), r'config.conflict.kinds=.*: one or more of'),
    (lambda: build_config.AlignmentConfig(source_share=0.5), 'needs config.alignment.source'),
    (
      lambda: small(alignment=build_config.AlignmentConfig(source='x', source_share=1)),
      'pictures of no world: give another judge',
    ),
    (lambda: build_config.RendererConfig(name='oil'), r"config.renderer.name='oil' is unknown. Known: \['world'"),
    (lambda: build_config.RendererConfig(name='flux_kontext'), 'needs config.renderer.endpoint'),
    (lambda: build_config.JudgeConfig(name='self'), 'needs config.judge.checkpoint'),
    (lambda: build_config.ScenesConfig(drawn=-1.0), 'are at least 0'),
    (lambda: build_config.ScenesConfig(prompts=0.5), 'give the file of the prompts'),
    (lambda: build_config.ScenesConfig(operations=rewrites.OperationShares(refine=2.0)), 'at most 1 together'),
  ],
)
def test_configs_that_cannot_be(make, error):
  with pytest.raises(ValueError, match=error):
    make()


def test_configs_are_read_as_those_of_training_are():
  values = build_config.to_config_dict(small()).to_dict()
  assert build_config.from_config_dict(values) == small()
  with pytest.raises(KeyError, match=r'Unknown key config.scenes.max_picturez. Known: .*max_pictures'):
    build_config.from_config_dict({'scenes': {'max_picturez': 3}})
  with pytest.raises(ValueError, match=r"config.multi_turn.samples must be int, not 'many'"):
    build_config.from_config_dict({'multi_turn': {'samples': 'many'}})
  paper = build_config.BuildConfig(world='shapes')
  assert [paper.subset(s).samples for s in build_config.SUBSETS] == [32_012, 15_201, 15_000]
  assert [paper.subset(s).negative for s in build_config.SUBSETS] == [0, 8_296, 10_000]
  with pytest.raises(ValueError, match='Unknown subset'):
    paper.subset('all')


def test_another_config_does_not_go_on(outs, tmp_path):
  with pytest.raises(FileExistsError, match='The build .* is finished. Delete'):
    built(outs['multi_turn'], 'multi_turn')

  def stop(counts, wanted):
    raise KeyboardInterrupt

  out = tmp_path / 'out'
  with pytest.raises(KeyboardInterrupt):
    built(out, 'multi_turn', progress=stop)
  with pytest.raises(ValueError, match='unfinished build with other config'):
    built(out, 'multi_turn', small(seed=6))
  with pytest.raises(ValueError, match='unfinished build with other subset'):
    built(out, 'alignment')
  with pytest.raises(KeyboardInterrupt):
    built(tmp_path / 'traced', 'conflict', traced=stop)
  with pytest.raises(ValueError, match='traces of another config'):
    built(tmp_path / 'traced', 'conflict', small(seed=6))
  with pytest.raises(ValueError, match='needs a loader'):
    build.build(small(), 'conflict', tmp_path / 'none')
  workers = dataclasses.replace(small(), work=build_config.WorkConfig(most_failures=3))
  built(out, 'multi_turn', workers)  # Who works changes nothing.
  assert contents(out) == contents(outs['multi_turn'])


if __name__ == '__main__':
  out, subset, line = sys.argv[1:]
  kills.at_line(int(line), lambda: built(pathlib.Path(out), subset), of=(run, records, build, traces))
