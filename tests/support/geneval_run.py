"""A GenEval run to be killed: `python -m tests.support.geneval_run OUT both|paint|score MOST`.

Painter and detector are functions of prompt, seed and picture. After MOST pictures they wait to be killed: a run never
ends before a test on a busy machine has killed it.
"""

import dataclasses
import hashlib
import pathlib
import sys
import time

import numpy as np

from pdgen.core import config as config_lib
from pdgen.core import trajectory as trajectory_lib
from pdgen.evals import base, geneval
from pdgen.judges import base as judges_base

SECONDS = 0.01  # of a picture, painted or seen
_left = [10**9]  # pictures
ROWS = tuple(
  {'tag': tag, 'include': [{'class': name, 'count': 1}], 'prompt': f'a {name}'}
  for tag, name in (('single_object', 'cup'), ('single_object', 'dog'), ('two_object', 'bus'), ('two_object', 'car'))
)


@dataclasses.dataclass(frozen=True)
class Painted:
  trajectories: list[trajectory_lib.Trajectory]
  timings: dict[str, float]


class Painter:
  config = config_lib.Config()

  def sample(self, prompts, *, mode=None, seed=0, batch_size=None, pictures=None):
    _work(len(prompts))
    return Painted([self.paint(p, s) for p, s in zip(prompts, seed, strict=True)], {'seconds': 0.0, 'pictures': 1})

  def paint(self, prompt, seed):
    digest = hashlib.sha256(f'{prompt} {seed}'.encode()).digest()
    picture = np.frombuffer(digest * 6, np.uint8).reshape(8, 8, 3)
    return trajectory_lib.Trajectory(prompt=prompt, steps=(trajectory_lib.Step(plan='It.', draft=picture),))


class Detector:
  identity = 'bytes'

  def detect(self, picture):
    _work(1)
    names = ('cup', 'dog', 'bus', 'car')
    return [judges_base.Found(n, None, (0, 0, 4, 4), float(picture[0, i, 0]) / 255) for i, n in enumerate(names)]


def _work(pictures: int):
  time.sleep(SECONDS * pictures if _left[0] > 0 else 600)
  _left[0] -= pictures


def main(out: pathlib.Path, half: str):
  evaluator = geneval.GenEval(
    prompts=base.PromptSet('four', ROWS), detector=Detector(), samples=8, batch_size=3, mode='direct'
  )
  if half != 'score':
    evaluator.paint(Painter(), out)
  if half != 'paint':
    print(evaluator.score(out).table())


if __name__ == '__main__':
  _left[0] = int(sys.argv[3])
  main(pathlib.Path(sys.argv[1]), sys.argv[2])
