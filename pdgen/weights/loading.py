"""Models by name or path: shipped ones, exported folders, workdirs of training runs."""

import os
import pathlib
import sys
from typing import Any

import jax
from jax.sharding import Mesh

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.models import partition
from pdgen.models import quantize as quantize_lib
from pdgen.weights import exported, folders, run_checkpoints

SHIPPED = pathlib.Path(__file__).parent / 'shipped'  # Exported models that come with the package.


def load_for_sampling(
  name_or_path: str | os.PathLike, *, mesh: Mesh | None = None, quantize: str | None = None
) -> tuple[config_lib.Config, dict[str, Any], str]:
  """A shipped model by name, an exported folder, or the workdir of a run (its newest average).

  A text without a separator is the shipped model of that name, if there is one. What is written as a path (`./shapes`,
  `shapes/`, a pathlib.Path of a folder that is there) is that folder, never a shipped model.

  Args:
    name_or_path: of the model.
    mesh: devices; None: the first one.
    quantize: of `models.quantize.KINDS`; None: the weights as they are.

  Returns: configuration, parameters (nested dicts, on the mesh, or on the first device), and the name or path that
  `data.tokenizers.load` takes. Raises: FileNotFoundError naming what is shipped; ValueError for damaged files.
  """
  mesh = mesh or mesh_lib.make_mesh(config_lib.MeshConfig(), devices=jax.devices()[:1])
  path = locate(name_or_path)
  if (path / run_checkpoints.CHECKPOINTS).is_dir():
    config, params = run_checkpoints.load_averaged(path / run_checkpoints.CHECKPOINTS, mesh=mesh)
    params = partition.put(quantize_lib.params(params, quantize), mesh) if quantize else params
    return config, params, config.data.tokenizer
  stored = exported.load_export(path, mesh=mesh, quantize=quantize)
  return stored.config, stored.params, str(stored.tokenizer)


def locate(name_or_path: str | os.PathLike) -> pathlib.Path:
  """The folder that `load_for_sampling` reads. Raises: FileNotFoundError naming what is shipped."""
  name, path = os.fspath(name_or_path), pathlib.Path(name_or_path)
  written_as_path = any(sign in name for sign in '/\\') or name in ('', '.', '..')
  shipped = SHIPPED / name
  if not written_as_path and exported.is_export(shipped):
    if isinstance(name_or_path, str) or not path.is_dir():
      if path.is_dir():
        print(f'{name!r} is the model that pdgen ships; for the folder of that name, say ./{name}', file=sys.stderr)
      return shipped
  if not name or not path.is_dir():
    names = sorted(p.name for p in SHIPPED.glob('*') if exported.is_export(p))
    what = f'neither shipped ({names}) nor a folder.{folders.hub_hint(name)}'
    raise FileNotFoundError(f'No model {name!r}: {folders.explain(path) if path.is_file() else what}')
  return path
