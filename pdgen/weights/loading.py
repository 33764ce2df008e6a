"""Models by name or path: shipped ones, exported folders, workdirs of training runs."""

import os
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

from pdgen.core import config as config_lib
from pdgen.core import mesh as mesh_lib
from pdgen.weights import exported, run_checkpoints

SHIPPED = pathlib.Path(__file__).parent / 'shipped'  # Exported models that come with the package.


def load_for_sampling(
  name_or_path: str | os.PathLike, *, mesh: Mesh | None = None
) -> tuple[config_lib.Config, dict[str, Any], str]:
  """A shipped model by name, an exported folder, or the workdir of a run (its newest average).

  Returns: configuration, parameters (nested dicts, on the mesh, or on the first device), and the name or path that
  `data.tokenizers.load` takes. Raises: FileNotFoundError naming what is shipped; ValueError for damaged files.
  """
  mesh = mesh or mesh_lib.make_mesh(config_lib.MeshConfig(), devices=jax.devices()[:1])
  shipped = SHIPPED / str(name_or_path)
  path = shipped if exported.is_export(shipped) else pathlib.Path(name_or_path)
  if (path / run_checkpoints.CHECKPOINTS).is_dir():
    config, params = run_checkpoints.load_averaged(path / run_checkpoints.CHECKPOINTS, mesh=mesh)
    return config, params, config.data.tokenizer
  if not path.is_dir():
    names = sorted(p.name for p in SHIPPED.glob('*') if exported.is_export(p))
    raise FileNotFoundError(f'No model {str(name_or_path)!r}: neither shipped ({names}) nor a folder.')
  stored = exported.load_export(path, mesh=mesh)
  return stored.config, stored.params, str(stored.tokenizer)
