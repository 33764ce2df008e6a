"""Trajectories with everything that a record holds, and how stored ones are compared."""

import dataclasses

import numpy as np

from pdgen.core import trajectory as trajectory_lib

Step, Trajectory = trajectory_lib.Step, trajectory_lib.Trajectory
Clause, Content = trajectory_lib.Clause, trajectory_lib.Content


def picture(seed, side=8):
  return np.random.default_rng(seed).integers(0, 256, [side, side, 3], dtype=np.uint8)


TRAJECTORIES = [
  Trajectory(
    prompt='a ring, 環',
    steps=(
      Step(plan='x', draft=picture(0), inspection='<refine>r</refine>', refined=picture(1), draft_is_target=False),
      Step(plan='y', draft=picture(2, side=4), inspection='<refine>s</refine>', corrected_plan='z'),
    ),
    stop='token_cap',
    spec=trajectory_lib.PromptSpec(
      tag='position',
      include=(Clause(name='ring', count=2, color='red'), Clause(name='bar', position=('left of', 0))),
      exclude=(Clause(name='ring', count=3),),
    ),
    provenance=trajectory_lib.Provenance(
      source='shapes', kind='misalignment', errors=('extra', 'missing'), detour='swap', id='7'
    ),
    expected=(Content('ring', 'red', 3), Content('bar')),
    metadata={'score': 0.1, 'nested': [{'a': None}, True], 'lone surrogate': '\ud800', '環': 2**70},
  ),
  Trajectory(prompt='', steps=(Step(),), stop=None, expected=()),
  Trajectory(prompt='b', steps=(), stop='picture_cap', spec=trajectory_lib.PromptSpec(tag='colors')),
  Trajectory(prompt='c', steps=(Step(draft=picture(3)[:, ::2]),), mode='direct'),
]


def assert_same(got, want):
  assert len(got) == len(want)
  for a, b in zip(got, want, strict=True):
    assert isinstance(a, Trajectory) and isinstance(a.steps, tuple)
    for field in dataclasses.fields(Trajectory):
      if field.name not in ('steps', 'parts'):
        assert getattr(a, field.name) == getattr(b, field.name), field.name
    assert [type(part) for part in a.parts] == [type(part) for part in b.parts]
    for x, y in zip(a.parts, b.parts, strict=True):
      np.testing.assert_array_equal(x, y)
    assert len(a.steps) == len(b.steps)
    for s, t in zip(a.steps, b.steps, strict=True):
      for field in dataclasses.fields(Step):
        x, y = getattr(s, field.name), getattr(t, field.name)
        if isinstance(y, np.ndarray):
          assert x.dtype == np.uint8 and x.flags.writeable
          np.testing.assert_array_equal(x, y)
        else:
          assert x == y and type(x) is type(y), field.name


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder):
  return sorted(path.name for path in folder.iterdir())
