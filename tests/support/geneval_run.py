"""A GenEval run to be killed: `python tests/support/geneval_run.py OUT both|paint|score`.

Painter and detector are functions of prompt, seed and picture, slow enough to be killed in the middle of both halves.
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

SECONDS = 0.02  # of a picture, painted or seen
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
    time.sleep(SECONDS * len(prompts))
    return Painted([self.paint(p, s) for p, s in zip(prompts, seed, strict=True)], {'seconds': 0.0, 'pictures': 1})

  def paint(self, prompt, seed):
    digest = hashlib.sha256(f'{prompt} {seed}'.encode()).digest()
    picture = np.frombuffer(digest * 6, np.uint8).reshape(8, 8, 3)
    return trajectory_lib.Trajectory(prompt=prompt, steps=(trajectory_lib.Step(plan='It.', draft=picture),))


class Detector:
  identity = 'bytes'

  def detect(self, picture):
    time.sleep(SECONDS)
    names = ('cup', 'dog', 'bus', 'car')
    return [judges_base.Found(n, None, (0, 0, 4, 4), float(picture[0, i, 0]) / 255) for i, n in enumerate(names)]


def main(out: pathlib.Path, half: str):
  evaluator = geneval.GenEval(
    prompts=base.PromptSet('four', ROWS), detector=Detector(), samples=8, batch_size=3, mode='direct'
  )
  if half != 'score':
    evaluator.paint(Painter(), out)
  if half != 'paint':
    print(evaluator.score(out).table())


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), sys.argv[2])
