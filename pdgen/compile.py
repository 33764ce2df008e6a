"""Ahead-of-time compilation for TPU/GPU targets: memory per device, FLOPs, collectives, roofline.

    python -m pdgen.compile --config=configs/bagel_7b.py --target=h100:8
    python -m pdgen.compile --config=configs/bagel_7b.py --target=v5p:4x4x4 --program=sample --config.mesh.tensor=4

Compiles the real training step, or the real sampling program, for devices that need not be there. Prints, and writes as
JSON (`--json`), the bytes on a device by kind, whether they fit and what to change if not, the analytic FLOPs, the
collectives, the step time at the roofline and the seconds that compiling took. Targets: h100:8, h100:64, v5p:4x4x4,
v6e:16x16, cpu:8 and the like. TPUs need `pip install 'pdgen[tpu]'`, H100s `.. 'pdgen[cuda]'`. Ends with 1 where the
program does not fit.
"""

from pdgen import startup as startup  # First: Ctrl-C while the rest is imported.

# isort: split
import json
import os
import sys

os.environ['TPU_SKIP_MDS_QUERY'] = '1'  # There is no TPU near whose metadata JAX could ask for when it is imported.
os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = 'true'  # No device is taken, so that several may compile at a time.

from absl import flags
from ml_collections import config_flags

from pdgen import flags as flags_lib
from pdgen.core import config as config_lib
from pdgen.cost import accelerators, aot


def main():
  """The command line."""
  config_flag = config_flags.DEFINE_config_file('config', None, 'File with get_config().')
  targets = 'h100:8, h100:64, v5p:4x4x4, v6e:16x16, cpu:8 and the like.'
  target_flag = flags.DEFINE_string('target', None, targets, required=True)
  program_flag = flags.DEFINE_enum('program', 'train', ['train', 'sample'], 'Which of the two programs.')
  batch_flag = flags.DEFINE_integer(
    'batch_size', 0, 'Trajectories sampled at once; 0: four for each row of devices.', 0
  )
  quantize_flag = flags.DEFINE_enum('quantize', None, ['int8', 'int4'], 'Of the weights that are sampled with.')
  json_flag = flags.DEFINE_string('json', None, 'File to write; default: out/compile/<config>-<target>-<program>.json.')
  flags.mark_flag_as_required('config')

  def run(_: flags_lib.Kept):
    config = config_lib.from_config_dict(config_flag.value)
    target = accelerators.parse(target_flag.value)
    if json_flag.value == '':
      raise ValueError('--json: the name is empty.')
    if quantize_flag.value and program_flag.value == 'train':
      raise ValueError('--quantize: whole weights are trained. Give --program=sample.')
    weights = f'-{quantize_flag.value}' if quantize_flag.value else ''
    name = f'{config.name}-{target.name.replace(":", "-")}-{program_flag.value}{weights}.json'
    file = flags_lib.writable_file(json_flag.value or f'out/compile/{name}')
    aot.configure(target)
    found = aot.report(
      config, target, program=program_flag.value, batch_size=batch_flag.value, quantize=quantize_flag.value
    )
    print(aot.text(found))
    file.write_text(json.dumps(found, indent=2) + '\n')
    sys.exit(0 if found['fits'] else 1)

  flags_lib.run_absl('python -m pdgen.compile', run)


if __name__ == '__main__':
  main()
