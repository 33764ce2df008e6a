"""Ahead-of-time compilation: what is counted in the compiled programs, against arithmetic and against files."""

import dataclasses
import importlib.util
import json
import math
import pathlib
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from support import toy

from pdgen import testing
from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.core import trees
from pdgen.cost import accelerators, aot, hlo
from pdgen.models import interleaved, partition

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'compile'
EIGHT = accelerators.parse('cpu:8')


def smallest(tiny):
  model = dataclasses.replace(tiny.model, attention='blockwise', remat='full')
  train = dataclasses.replace(tiny.train, loss_chunk=64)
  return dataclasses.replace(tiny, model=model, train=train, mesh=config_lib.MeshConfig(fsdp=8))


@pytest.fixture(scope='module')
def small(tiny):
  return smallest(tiny)


@pytest.fixture(scope='module')
def reports(small):
  return {program: aot.report(small, EIGHT, program=program) for program in ('train', 'sample')}


def test_bytes_are_those_of_the_arrays(reports, small):
  found = reports['train']['bytes']
  params = interleaved.abstract_params(small.model)
  sizes = {name: math.prod(leaf.shape) for name, leaf in trees.flatten_with_paths(params)}
  split = {name: 8 if 'fsdp' in str(partition.spec(name)) else 1 for name in sizes}
  a_device = sum(4 * size // split[name] for name, size in sizes.items())
  assert reports['train']['parameters'] == sum(sizes.values())
  assert found['parameters'] == found['ema'] == a_device
  assert found['optimizer'] == 2 * a_device + 4  # Two moments and a counter.
  assert found['peak'] > sum(found[kind] for kind in ('parameters', 'optimizer', 'ema', 'activations'))
  assert reports['train']['fits'] and reports['sample']['fits']


def test_frozen_parts_are_counted_in_bfloat16_and_the_report_says_what_float32_would_take(small):
  frozen = dataclasses.replace(small, train=dataclasses.replace(small.train, freeze=('trunk/layers/und',)))
  program = aot.train_program(frozen, mesh_lib.make_mesh(small.mesh))
  _, fixed = program.arguments['parameters']
  want = aot._bytes_a_device(fixed)
  assert {leaf.dtype for leaf in jax.tree.leaves(fixed)} == {jnp.dtype('bfloat16')}
  number = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(fixed))
  assert aot._in_bfloat16(fixed) == {'parameters': number, 'bytes': want}
  found = json.loads((GOLDEN / 'tiny-cpu-8-train.json').read_text())
  told = aot.text({**found, 'frozen_in_bfloat16': {'parameters': 10**9, 'bytes': 3 * 2**30}})
  assert '1.00G frozen parameters are counted in bfloat16' in told and 'float32 takes 3.00 GiB a device more' in told
  assert 'bfloat16' not in aot.text(found)


@pytest.mark.parametrize('program', ['train', 'sample'])
def test_reports_are_those_of_the_files(reports, program):
  """Written by `PYTHONPATH=tests python tests/test_compile.py`. Memory and collectives may follow XLA a little."""
  found = json.loads(json.dumps(reports[program]))
  want = json.loads((GOLDEN / f'tiny-cpu-8-{program}.json').read_text())
  for moving in ('compile_seconds', 'seconds', 'seconds_by_part', 'model_flops_utilisation'):
    assert (moving in found) == (moving in want)
    found.pop(moving, None), want.pop(moving, None)
  for kind in ('activations', 'peak'):
    assert found['bytes'].pop(kind) == pytest.approx(want['bytes'].pop(kind), rel=0.15)
  have, expected = found.pop('collectives'), want.pop('collectives')
  assert have.keys() == expected.keys()
  for kind, counted in expected.items():
    assert have[kind]['bytes'] == pytest.approx(counted['bytes'], rel=0.15), kind
  assert found == want


def test_depth_does_not_change_the_size_of_the_programs(small):
  deeper = dataclasses.replace(small, model=dataclasses.replace(small.model, depth=5))
  mesh = mesh_lib.make_mesh(small.mesh)
  for lowering in (aot.train_program, lambda config, mesh: aot.sample_program(config, mesh, 8)):
    sizes = [lowering(config, mesh).lower().as_text().count('\n') for config in (small, deeper)]
    assert sizes[0] == sizes[1]


def test_the_prompts_are_lowered_with_the_dtypes_that_they_are_sampled_with(small):
  batch = aot.sample_program(small, mesh_lib.make_mesh(small.mesh), 8).arguments['batch']
  und, gen = batch.prefix.und, batch.prefix.gen
  assert und.weight.dtype == gen.weight.dtype == jnp.float32
  assert {x.dtype for x in (*und.tokens, und.token_id, und.picture, *gen.tokens, gen.patch)} == {jnp.dtype('int32')}
  assert batch.grammar.refining.dtype == jnp.bool_
  assert batch.grammar.moves.dtype == batch.kept_order.dtype == batch.texts_until.dtype == jnp.int32
  assert und.label.shape == (8, aot.PREFIX) and gen.patch.shape == (8, 0)


def test_copies_of_a_model_sample_apart(tiny):
  """Each device paints its own trajectories; all that they tell each other is whether a loop goes on."""
  apart = dataclasses.replace(tiny, model=toy.WITH_VAE, mesh=config_lib.MeshConfig(data=8))
  sent = aot.report(apart, EIGHT, program='sample')['collectives']
  assert sent.keys() == {'all-reduce'} and sent['all-reduce']['bytes'] < 16


def test_collectives_are_counted_as_often_as_their_loops_run():
  mesh = mesh_lib.make_mesh(config_lib.MeshConfig(data=2, fsdp=4))

  def program(x, w):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):

      def body(x, w):
        total = jax.lax.psum(x @ w, 'fsdp')
        return total / 4, jax.lax.all_gather(total, 'data', tiled=True)

      f = jax.shard_map(
        lambda x, w: jax.lax.scan(body, x, w), in_specs=(P(('data', 'fsdp')), P()), out_specs=(P('data'), P()),
        check_vma=False,
      )  # fmt: skip
      return f(x, w)

  where = tuple(NamedSharding(mesh, spec) for spec in (P(('data', 'fsdp')), P()))
  arrays = jnp.zeros((16, 32)), jnp.zeros((5, 32, 32))
  compiled = jax.jit(program, in_shardings=where).lower(*arrays).compile()
  found = hlo.collectives(compiled.as_text(), devices=8)
  by_kind = {kind: [c for c in found if c.kind == kind] for kind in hlo.KINDS}
  (reduced,), (gathered,) = by_kind['all-reduce'], by_kind['all-gather']
  assert reduced.times == gathered.times == 5
  assert reduced.bytes == 2 * 3 / 4 * (2 * 32 * 4) and gathered.bytes == 1 / 2 * (4 * 32 * 4)
  assert sorted(map(sorted, reduced.groups.tolist())) == [[0, 1, 2, 3], [4, 5, 6, 7]]
  assert sorted(map(sorted, gathered.groups.tolist())) == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_collectives_are_read_in_the_forms_of_other_machines():
  text = """HloModule m, entry_computation_layout={()->f32[8]}
%wrapped (p: bf16[4,8]) -> bf16[2,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %rs = bf16[2,8]{1,0} reduce-scatter(%p), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}, to_apply=%add
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %start = (f32[8]{0}, f32[32]{0}) all-gather-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  %done = f32[32]{0} all-gather-done(%start)
  %move = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,2}}
  %scatter = ((f32[8]{0}, f32[4]{0}), (f32[2]{0}, f32[1]{0})) reduce-scatter-start(%x, %y), replica_groups={{0,1,2,3}}
  %w = (s32[], bf16[4,8]{1,0}) while(%t), condition=%c, body=%loop, backend_config={"known_trip_count":{"n":"28"}}
  ROOT %r = f32[8]{0} add(%x, %x)
}
%loop (t: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %a = bf16[2,8]{1,0} async-start(%t), calls=%wrapped
}
"""
  found = [(c.kind, c.bytes, c.times) for c in hlo.collectives(text, devices=4)]
  assert found == [
    ('all-gather', 96.0, 1),
    ('collective-permute', 32.0, 1),
    ('reduce-scatter', 36.0, 1),
    ('reduce-scatter', 32.0, 28),
  ]
  np.testing.assert_array_equal(hlo.collectives(text, devices=4)[3].groups, [[0, 2], [1, 3]])


@pytest.mark.parametrize(('end', 'times'), [('%constant.5.clone', 20), ('%get-tuple-element.2', 1)])
def test_loops_of_programs_that_do_not_say_how_often_they_run(end, times):
  text = f"""HloModule m
%condition (p: (s32[], s32[], f32[8])) -> pred[] {{
  %p = (s32[]{{:T(128)}}, s32[]{{:T(128)}}, f32[8]{{0}}) parameter(0)
  %constant.5.clone = s32[]{{:T(128)}} constant(20), metadata={{op_name="while"}}
  %get-tuple-element.2 = s32[]{{:T(128)}} get-tuple-element(%p), index=1
  ROOT %lt = pred[]{{:T(512)}} compare(%get-tuple-element.1, {end}), direction=LT, metadata={{op_name="lt"}}
}}
%body (p: (s32[], s32[], f32[8])) -> (s32[], s32[], f32[8]) {{
  %r = f32[8]{{0}} all-reduce(%x), replica_groups={{{{0,1,2,3}}}}, to_apply=%add
}}
ENTRY %main (x: f32[8]) -> f32[8] {{
  %w = (s32[], s32[], f32[8]{{0}}) while(%t), condition=%condition, body=%body
}}
"""
  assert [(c.kind, c.bytes, c.times) for c in hlo.collectives(text, devices=4)] == [('all-reduce', 48.0, times)]


@pytest.mark.parametrize(
  ('form', 'groups'),
  [
    ("mesh['a'=4] {'a'}", [[0, 1, 2, 3]]),
    ("mesh['a'=1,'b'=2,'c'=2] {'b'}", [[0, 2], [1, 3]]),
    ("mesh['a'=2,'b'=1,'c'=2], device_ids=([2,2]T(1,0)) {'a'}, dimensions={0}", [[0, 1], [2, 3]]),
    ("mesh['a'=2,'b'=2], device_ids=(0,3,1,2) {'b'}", [[0, 3], [1, 2]]),
    ("mesh['a'=2,'b'=2] {'b','a'}", [[0, 2, 1, 3]]),
    ("mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
    ("mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
    ('[1,4]<=[4]', [[0, 1, 2, 3]]),
    ('{}', [[0, 1, 2, 3]]),
  ],
)
def test_groups_of_devices(form, groups):
  line = f'all-gather(%x), channel_id=1, replica_groups={form}, use_global_device_ids=true'
  np.testing.assert_array_equal(hlo._groups(line, 4), groups)


def test_groups_of_an_unknown_form_are_an_error():
  with pytest.raises(ValueError, match='Unknown form'):
    hlo._groups('all-gather(%x), replica_groups=torus[2,2], dimensions={0}', 4)


def test_targets():
  assert accelerators.parse('h100:64').devices == 64 and accelerators.parse('v5p:4x4x4').shape == (4, 4, 4)
  for wrong in ('h100', 'h100:0', 'v5p:64', 'v6e:4x4x4', 'tpu:8', 'h100:12', ''):
    with pytest.raises(ValueError, match='target|Target'):
      accelerators.parse(wrong)


@pytest.mark.parametrize('target, extra', [('v5p:4x4x4', 'tpu'), ('v6e:16x16', 'tpu'), ('h100:8', 'cuda')])
def test_without_the_compiler_it_says_what_to_install(monkeypatch, target, extra):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ModuleNotFoundError, match=rf"pip install 'pdgen\[{extra}\]'"):
    aot.devices(accelerators.parse(target))


def test_what_does_not_fit_is_told_what_to_change(small):
  h100 = accelerators.parse('h100:8')
  large = {'parameters': 70 * 2**30, 'optimizer': 0, 'ema': 0}
  assert 'freeze' in aot.advice(small, large, h100, 'train')[0]
  plain = dataclasses.replace(small, model=dataclasses.replace(small.model, attention='reference', remat='none'))
  first = aot.advice(plain, {'parameters': 2**30}, h100, 'train')[:2]
  assert 'attention=blockwise' in first[0] and 'remat=full' in first[1]


def test_the_command_line_names_what_is_wrong():
  command = [sys.executable, '-m', 'pdgen.compile', '--config=configs/shapes.py', '--target=h1000:8']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2 and "Unknown target 'h1000:8'" in done.stderr


if __name__ == '__main__':
  GOLDEN.mkdir(exist_ok=True)
  for name in ('train', 'sample'):
    written = json.dumps(aot.report(smallest(testing.tiny_config()), EIGHT, program=name), indent=1)
    (GOLDEN / f'tiny-cpu-8-{name}.json').write_text(written + '\n')


def test_what_configs_bagel_7b_lora_holds_leaves_room_on_a_gpu_of_80_gb():
  """Weights, average and moments on one device, and the gradients of accumulation; launch/README.md has the whole."""
  file = ROOT / 'configs' / 'bagel_7b_lora.py'
  config = config_lib.from_config_dict(runpy.run_path(str(file))['get_config']())
  mesh = mesh_lib.make_mesh(config.mesh, devices=jax.devices()[:1])
  held = {kind: aot._bytes_a_device(tree) for kind, tree in aot.train_program(config, mesh).arguments.items()}
  learn = held['ema']
  assert config.train.accumulate == config.data.batch_size and 1e9 * 4 < learn < 1.4e9 * 4
  # Frozen weights are bfloat16, moments two of what learns.
  assert held['parameters'] == pytest.approx(learn + 2 * (14.66e9 - 1.09e9), rel=0.02)
  assert held['optimizer'] == pytest.approx(2 * learn, rel=1e-3)
  assert sum(held.values()) + 2 * learn < 56 * accelerators.GIB
