"""What the shapes world makes stays as it is, byte for byte: trained models and stopped runs depend on it."""

import hashlib
import itertools
import json

import pytest

from pdgen.core import trajectory as trajectory_lib
from pdgen.worlds import shapes
from pdgen.worlds.shapes import faults, renderer

COUNT = 200

# SHA-256 of the first COUNT trajectories of seed 0. They change only with a change of the world that is meant to
# change the data, which then needs a new name for the world.
TRAJECTORIES = {
  'multi_turn': 'e3f85b8e583c44fb4842c772dc6ede6f570a8a429570de6c69d372c0ec705f19',
  'conflict': '847daedf362716e3aef016b69eba5830ee65630bdaf34db7d2ff2b852e1dbfab',
  'misalignment': 'cad161a747a54be10ba388e2ea1ead3d8bb58a72063172259cc0f2d8544eb9a9',
  'direct': '60c7d9921a57aaa004f0b58f8f502298555d802e77f612efb55bdb770ecb474c',
}
REVIEWED = 'fcfbda78486f8964e961f6bfdeaafbb222cc4b3719ed9fdc6b842ed28db86395'
INJECTED = '5681d3eb74dc802d749c02333f5d905a8a89f298e0d38a5145b2a651d561d412'


def _digest(made) -> str:
  found = hashlib.sha256()
  for trajectory in made:
    found.update(json.dumps(_told(trajectory), sort_keys=True).encode())
    for item in trajectory.items():
      found.update(item.kind.encode() + (item.picture.tobytes() if item.is_picture else item.text.encode()))
  return found.hexdigest()


def _told(made: trajectory_lib.Trajectory) -> list:
  """All but the parts of the steps."""
  where = made.provenance
  targets = [step.draft_is_target for step in made.steps]
  told = [where.source, where.kind, where.errors, where.detour, where.id]
  return [made.spec.to_row(made.prompt), made.mode, made.stop, made.expected, made.metadata, targets, told]


@pytest.mark.parametrize('kind', shapes.KINDS)
def test_trajectories(kind):
  assert _digest(shapes.trajectory(kind, seed=0, index=i) for i in range(COUNT)) == TRAJECTORIES[kind]


def test_reviewed_drafts_right_and_wrong():
  made = []
  for index in range(60):
    request = shapes.draft_request(seed=0, index=index)
    draft = renderer.render(request.scene[index % 2 :])  # Every other one lacks an object.
    made += [request.prefix, shapes.review(request, draft)]
  assert _digest(made) == REVIEWED


def test_injected_errors():
  kinds = itertools.product((None, *faults.ERROR_KINDS), range(8))
  assert _digest(shapes.injected(kind, seed=0, index=index) for kind, index in kinds) == INJECTED
