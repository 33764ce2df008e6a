"""Worker processes of the data pipeline: resumed exactly, and gone when their parent is."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent


WORKERS_SCRIPT = """
import dataclasses, json, zlib
import numpy as np
from pdgen.core import config
from pdgen.data import pipeline


def content(part):
  return part.tobytes() if isinstance(part, np.ndarray) else b''.join(map(content, part or ()))


def digest(batch):
  return zlib.crc32(content(batch))


def main():
  cfg = config.Config()
  cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, workers=2, batch_size=2, packing_bins=2))
  iterator = pipeline.batches(cfg)
  digests = []
  for i in range(6):
    digests.append(digest(next(iterator)))
    if i == 2:
      state = json.loads(json.dumps(iterator.get_state()))
  iterator.close()
  fresh = pipeline.batches(cfg)
  fresh.set_state(state)
  resumed = [digest(next(fresh)) for _ in range(3)]
  fresh.close()
  print(json.dumps(dict(digests=digests, resumed=resumed)))


if __name__ == '__main__':
  main()
"""


def printed(folder: pathlib.Path, script: str) -> list[str]:
  """Lines of a main module in a process of its own, as worker processes want one."""
  file = folder / 'script.py'
  file.write_text(script)
  done = subprocess.run(
    [sys.executable, '-W', 'error', str(file)],
    env={'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'OMP_NUM_THREADS': '1'},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


def test_worker_processes_resume_exactly(tmp_path):
  out = json.loads(printed(tmp_path, WORKERS_SCRIPT)[-1])
  assert len(set(out['digests'])) == 6, 'the workers repeat each other'
  assert out['resumed'] == out['digests'][3:]


TAKE_OVER_SCRIPT = """
import collections, dataclasses, json
from pdgen.core import config
from pdgen.data import feed, pipeline, sources, tokenizers

CFG, WORDS = config.Config(), tokenizers.load('shapes')


def prompts(batch):
  for ids, segments in zip(batch.und.token_id, batch.und.tokens.segment, strict=True):
    for segment in range(1, segments.max() + 1):
      sample = ids[segments == segment].tolist()
      yield WORDS.decode(sample[1 : sample.index(WORDS.specials.im_end)])


def run(state, *, count, workers, shards=1):
  together = lambda: None
  data = dataclasses.replace(CFG.data, workers=workers, shards=shards, batch_size=4, packing_bins=2)
  cfg = dataclasses.replace(CFG, data=data)
  feeds = [
    feed.DataFeed(cfg, share=(i, count), state=state, all_gather=lambda text: together(text)) for i in range(count)
  ]
  for _ in range(3):
    for one in feeds:
      SEEN.update(prompts(next(one)))
  texts = [json.dumps({'share': i, 'state': one._batches.get_state()}) for i, one in enumerate(feeds)]
  together = lambda text: texts
  state = [one.state() for one in feeds][0]
  for one in feeds:
    one.close()
  return state


def main():
  global SEEN
  SEEN, state = collections.Counter(), None
  for count, workers in ((1, 2), (2, 0), (2, 1), (1, 0)):
    state = run(state, count=count, workers=workers)
  position = feed.without_inputs(state)
  packers = position.get('shards', [position])
  taken, waiting = set(), set()
  for number, one in enumerate(packers):
    taken |= {place * len(packers) + number for place in range(one['next'])}
    waiting |= {place * len(packers) + number for place in one['waiting']}
  source = sources.from_config(CFG)
  want = collections.Counter(CFG.data.sequence.opening + source[index].prompt for index in taken - waiting)
  print(json.dumps(dict(seen=sum(SEEN.values()), wrong=len((SEEN - want) + (want - SEEN)))))


if __name__ == '__main__':
  main()
"""


def test_a_run_with_workers_is_taken_over_by_others_and_no_sample_is_lost_or_comes_twice(tmp_path):
  *said, out = printed(tmp_path, TAKE_OVER_SCRIPT)
  out = json.loads(out)
  assert out['seen'] > 50 and not out['wrong']
  assert [line.partition(' (')[0].removeprefix('The run goes on with ') for line in said] == [
    '2 packers instead of 1 packers in each of 2 worker processes',
    '2 packers in each of 1 worker processes instead of 2 packers',
    '1 packers instead of 2 packers in each of 1 worker processes',
  ]


PARENT_SCRIPT = """
import dataclasses, multiprocessing, time
from pdgen.core import config
from pdgen.data import pipeline

if __name__ == '__main__':
  cfg = config.Config()
  cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, workers=2, batch_size=2, packing_bins=2))
  iterator = pipeline.batches(cfg)
  next(iterator)
  print(*(process.pid for process in multiprocessing.active_children()), flush=True)
  time.sleep(600)
"""


def test_worker_processes_end_with_a_parent_that_is_killed(tmp_path):
  script = tmp_path / 'parent.py'
  script.write_text(PARENT_SCRIPT)
  env = {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'OMP_NUM_THREADS': '1'}
  parent = subprocess.Popen([sys.executable, str(script)], env=env, stdout=subprocess.PIPE, text=True)
  workers = [int(pid) for pid in parent.stdout.readline().split()]
  assert len(workers) == 2 and all(map(_runs, workers))
  parent.send_signal(signal.SIGKILL)
  parent.wait()
  for _ in range(300):
    if not any(map(_runs, workers)):
      break
    time.sleep(0.1)
  else:
    pytest.fail(f'{[pid for pid in workers if _runs(pid)]} run on')
  parent.stdout.close()


def _runs(pid):
  """Whether the process runs: one that ended and that nobody has asked about does not."""
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in ('Z', 'X')
  except FileNotFoundError:
    return False
