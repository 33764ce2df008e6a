"""Parameter sharding: one table from parameter paths to PartitionSpecs, and the all-gather of FSDP shards."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pdgen.core import mesh as mesh_lib
from pdgen.core import trees
from pdgen.models import params as params_lib

# Path of a parameter (the end of the path in an optimizer state) to its partition. Exactly one rule matches a path.
# Stacked layers have a leading axis that is never split. Vectors are replicated, but for those of split columns.
RULES: tuple[tuple[str, P], ...] = (
  (r'embed/table', P(None, ('fsdp', 'tensor'))),
  (r'head/kernel', P('fsdp', 'tensor')),
  (r'(latent_in|latent_out|time/fc[12])/kernel', P('fsdp', None)),
  (r'(latent_in|latent_out|time/fc[12])/bias', P()),
  (r'trunk/layers/(und|gen)/(q|k|v|gate|up)/kernel', P(None, 'fsdp', 'tensor')),
  (r'trunk/layers/(und|gen)/(q|k|v)/bias', P(None, 'tensor')),
  (r'trunk/layers/(und|gen)/(o|down)/kernel', P(None, 'tensor', 'fsdp')),
  (r'trunk/layers/(und|gen)/(q|k|v|gate|up)/lora_a', P(None, 'fsdp', None)),
  (r'trunk/layers/(und|gen)/(q|k|v|gate|up)/lora_b', P(None, None, 'tensor')),
  (r'trunk/layers/(und|gen)/(o|down)/lora_a', P(None, 'tensor', None)),
  (r'trunk/layers/(und|gen)/(o|down)/lora_b', P(None, None, 'fsdp')),
  (r'trunk/layers/(und|gen)/\w+_norm/scale', P()),
  (r'trunk/(und|gen)_norm/scale', P()),
  (r'vit/layers/(q|k|v|fc1)/kernel', P(None, 'fsdp', 'tensor')),
  (r'vit/layers/(q|k|v|fc1)/bias', P(None, 'tensor')),
  (r'vit/layers/(o|fc2)/kernel', P(None, 'tensor', 'fsdp')),
  (r'vit/layers/(o|fc2)/bias', P()),
  (r'vit/layers/norm[12]/(scale|bias)', P()),
  (r'vit/patch_embedding/kernel', P(None, 'fsdp')),  # A patch of 14 x 14 pixels has 588 values.
  (r'vit/connector[12]/kernel', P('fsdp', None)),
  (r'vit/(patch_embedding|connector[12])/bias', P()),
  (r'vit/position/table', P()),
  (r'vit/post_norm/(scale|bias)', P()),
  # 84M frozen parameters without optimizer state, in every part of every picture: each device holds them all.
  (r'codec/vae/(encoder|decoder)/.*(kernel|bias|scale)', P()),
  (r'ns_coeffs', P()),  # Constants in the state of Muon.
)


def shardings(tree: Any, mesh: Mesh) -> Any:
  """The NamedSharding of every leaf of a tree of parameters or of anything that holds such trees (optimizer, EMA).

  Leaves need only a shape. Scalars are replicated. A dimension that its mesh axes do not divide is an error, never
  silently replicated: on a large model that would cost the memory that the mesh was made for.
  """
  return trees.map_with_path(lambda name, leaf: NamedSharding(mesh, _checked(name, leaf.shape, mesh)), tree)


def put(tree: Any, mesh: Mesh, *, at: str = '') -> Any:
  """The tree of arrays on the mesh. at: path that stands before those of the tree (`head/kernel`); empty: none."""
  prefix = f'{at}/' if at else ''
  place = lambda name, leaf: jax.device_put(leaf, NamedSharding(mesh, _checked(prefix + name, leaf.shape, mesh)))
  return trees.map_with_path(place, tree)


def spec(name: str) -> P:
  """The rule for a path; for the arrays of a quantised kernel that of the kernel.

  Raises: ValueError when no rule, or more than one, matches.
  """
  name = re.sub(r'(/kernel)/(values|scale)$', r'\1', name)
  found = [partition for pattern, partition in RULES if re.fullmatch(rf'(.*/)?{pattern}', name)]
  if len(found) != 1:
    raise ValueError(
      f'{len(found)} rules of models.partition.RULES match {name!r}; exactly one must. Add or correct a rule.'
    )
  return found[0]


def gather_params(params: Any, *, dtype: jax.typing.DTypeLike, layer_of: str = '') -> Any:
  """All-gathers weights along `fsdp`, matrices in the compute dtype; their gradients go back to shards.

  Unchanged without a mesh.

  Args:
    params: one of the scanned layers, its leading axis gone; or, without layer_of, the parameters of the whole model,
      of which the scanned layers and the codec stay as they are.
    dtype: compute dtype.
    layer_of: path of the scanned layers (`trunk/layers`).
  """
  if mesh_lib.current_mesh() is None:
    return params

  def place(name: str, leaf: jax.Array) -> jax.Array:
    if not layer_of and (params_lib.is_stacked(name) or params_lib.is_codec(name)):
      return leaf
    split = spec(f'{layer_of}/{name}')[1:] if layer_of else spec(name)
    whole = [tuple(axis for axis in mesh_lib.axis_names(axes) if axis != 'fsdp') or None for axes in split]
    return _gather(
      leaf, P(*whole), P(*split), jnp.dtype(dtype if params_lib.is_matrix(name) else leaf.dtype), leaf.dtype
    )

  return trees.map_with_path(place, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gather(x: jax.Array, whole: P, split: P, dtype: jnp.dtype, stored: jnp.dtype) -> jax.Array:
  return mesh_lib.constrain(x.astype(dtype), *whole)


# The transpose of a constraint is the same constraint: gradients would be summed whole on every device.
_gather.defvjp(
  lambda x, whole, split, dtype, stored: (_gather(x, whole, split, dtype, stored), None),
  lambda whole, split, dtype, stored, _, d: (mesh_lib.constrain(d, *split).astype(stored),),
)


def _checked(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
  if not shape:
    return P()
  partition, kept = spec(name), []
  for size, axes in zip(shape, partition, strict=False):
    names = mesh_lib.axis_names(axes)
    ways = math.prod(mesh.shape[axis] for axis in names)
    if size % ways and name.endswith('/kernel/scale'):
      axes = None  # Few numbers, for the blocks of a quantised kernel; one for all rows with int8.
    elif size % ways:
      raise ValueError(
        f'{name} {list(shape)}: {size} does not divide by {" x ".join(names)} = {ways}. '
        'Choose other sizes in config.mesh or in config.model.'
      )
    kept.append(axes)
  return P(*kept)
