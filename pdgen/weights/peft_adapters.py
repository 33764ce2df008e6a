"""Low-rank adapters in the layout of the PEFT library: adapter_config.json and adapter_model.safetensors.

PEFT names a factor after the module that it adapts: `base_model.model.MODULE.lora_A.weight`, [rank, in], and
`lora_B.weight`, [out, rank]. Its scale is lora_alpha / r, as ours is (`LoraConfig`).
"""

import json
import pathlib
from collections.abc import Iterable

import numpy as np
import safetensors.numpy

from pdgen.core import config as config_lib
from pdgen.weights import bagel, safetensors_io

CONFIG, MODEL = 'adapter_config.json', 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'


def factors(path: str, reader: safetensors_io.Reader) -> tuple[str, str] | None:
  """The paths of the two factors beside the kernel at a path; None where it has none."""
  names = tuple(f'{path.removesuffix("kernel")}lora_{part}' for part in 'ab')
  return (names[0], names[1]) if path.endswith('/kernel') and names[0] in reader.infos else None


def write(
  folder: pathlib.Path, reader: safetensors_io.Reader, *, entries: Iterable[bagel.Entry], lora: config_lib.LoraConfig
):
  """Writes the adapters of a checkpoint, in the type that they are stored in.

  Args:
    folder: new.
    reader: of the parameters.
    entries: the released tensors of the model; those of kernels say which modules the adapters belong to.
    lora: of the model.
  """
  tensors, targets = {}, set()
  for entry in entries:
    if (names := factors(entry.path, reader)) is None:
      continue
    module, layer = entry.name.removesuffix('.weight'), () if entry.layer is None else (entry.layer,)
    targets.add('.'.join(module.split('.')[-2:]))
    for name, letter in zip(names, 'AB', strict=True):
      tensors[f'{_PREFIX}{module}.lora_{letter}.weight'] = np.ascontiguousarray(reader.read(name, layer).T)
  folder.mkdir()
  safetensors.numpy.save_file(tensors, folder / MODEL, metadata={'format': 'pt'})
  (folder / MODEL).chmod(0o644)  # It was for its owner's eyes alone.
  described = {
    'peft_type': 'LORA',
    'task_type': None,
    'base_model_name_or_path': None,
    'r': lora.rank,
    'lora_alpha': lora.alpha,
    'lora_dropout': 0.0,
    'target_modules': sorted(targets),
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
  }
  (folder / CONFIG).write_text(json.dumps(described, indent=2) + '\n')
