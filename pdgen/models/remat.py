"""Rematerialisation policies for the scanned layers: what is kept for the backward pass, what is computed again."""

from collections.abc import Callable

import jax

from pdgen.models import attention

POLICIES = {
  # The layer's input alone: least memory, a third more arithmetic.
  'full': jax.checkpoint_policies.nothing_saveable,
  # Results of matmuls, but not of attention.
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  # The layer's input and what attention gave, which costs most to compute again in long rows.
  'attention': jax.checkpoint_policies.save_only_these_names(attention.OUTPUT_NAME),
}


def check(policy: str):
  """Raises ValueError for an unknown name."""
  if policy not in ('none', *POLICIES):
    raise ValueError(f'Unknown remat {policy!r}. Known: {["none", *sorted(POLICIES)]}')


def wrap(body: Callable, policy: str) -> Callable:
  """The body of a scan under the policy of that name; `none` keeps everything.

  Raises: ValueError for an unknown name.
  """
  check(policy)
  if policy == 'none':
    return body
  return jax.checkpoint(body, policy=POLICIES[policy])
