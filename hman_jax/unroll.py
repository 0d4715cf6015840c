"""The library's only scan over time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hman_jax import stochastic
from hman_jax.types import Array, Key, PyTree

Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def unroll(
  step: Step,
  carry: PyTree,
  inputs: PyTree,
  *,
  mask: Array | None = None,
  key: Key | None = None,
  start: int | Array = 0,
  reverse: bool = False,
) -> tuple[PyTree, PyTree]:
  """Runs a step over time: batch-major in, batch-major out.

  Padding (mask False) leaves the carry as it was and its outputs are zeros, so
  that it contributes nothing, wherever it stands. The key of step t is
  `fold_in(key, start + t)`: a clip fed in pieces, with the carry handed on and
  `start` counted up, gives what the whole clip gives.

  Args:
    step: `step(carry, x_t, key_t) -> (carry, output_t)`; `key_t` is None
      without a key.
    carry: pytree of arrays `[B, ...]`.
    inputs: pytree of arrays `[B, T, ...]`; `x_t` is the pytree of `[B, ...]`.
    mask: bool `[B, T]`, True where valid; None: all valid.
    key: one key, or one key a row, or None.
    start: number of steps already run before this call.
    reverse: from the last step to the first; padding is passed over.

  Returns:
    (carry, outputs): the carry after the last valid step, and the pytree of
    outputs `[B, T, ...]`.

  Raises:
    ValueError: if inputs or mask differ in `[B, T]`.

  Example:
    >>> add = lambda carry, x, key: (carry + x, carry + x)
    >>> x = jnp.arange(3.0).reshape(1, 3)
    >>> carry, sums = unroll(add, jnp.zeros(1), x)
    >>> carry.tolist(), sums.tolist()
    ([3.0], [[0.0, 1.0, 3.0]])
  """
  batch, num_steps = _batch_and_time(inputs, mask)
  del batch
  times = jnp.arange(num_steps) + start
  keys = None if key is None else _keys_per_step(key, times)

  def body(carry, at_step):
    x, valid, key_t = at_step
    new_carry, output = step(carry, x, key_t)
    if valid is not None:
      new_carry = _where(valid, new_carry, carry)
      output = _where(valid, output, jax.tree.map(jnp.zeros_like, output))
    return new_carry, output

  time_major = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (inputs, mask))
  carry, outputs = jax.lax.scan(
    body, carry, (*time_major, keys), length=num_steps, reverse=reverse
  )
  return carry, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), outputs)


def _batch_and_time(inputs: PyTree, mask: Array | None) -> tuple[int, int]:
  shapes = {x.shape[:2] for x in jax.tree.leaves((inputs, mask))}
  if len(shapes) != 1:
    raise ValueError(
      'inputs, mask: expected the same leading [B, T] everywhere, got '
      f'{sorted(shapes)}.'
    )
  return shapes.pop()


def _keys_per_step(key: Key, times: Array) -> Array:
  """Keys `[T]` from one key, `[T, B]` from one key a row."""
  return jax.vmap(stochastic.fold_in, in_axes=(None, 0))(
    stochastic.as_key(key), times
  )


def _where(valid: Array, new: PyTree, old: PyTree) -> PyTree:
  """Row-wise choice between two pytrees of arrays `[B, ...]`."""

  def choose(a, b):
    return jnp.where(valid.reshape(valid.shape + (1,) * (a.ndim - 1)), a, b)

  return jax.tree.map(choose, new, old)
