"""The library's only scan over time."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from hman_jax import deferred, stochastic
from hman_jax.cells.base import check_choice
from hman_jax.types import Array, Key, PyTree

Step = Callable[[Any, Any, Any], tuple[Any, Any]]
Backward = Literal['deferred', 'autodiff']


def unroll(
  step: Step,
  carry: PyTree,
  inputs: PyTree,
  *,
  mask: Array | None = None,
  key: Key | None = None,
  start: int | Array = 0,
  reverse: bool = False,
  backward: Backward = 'deferred',
  remat: bool = False,
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
    backward: 'deferred' for the fast backward pass (see `deferred.scan`), or
      'autodiff' for JAX's own, which is the reference for it and has
      forward-mode derivatives too.
    remat: keep the carry at about sqrt(T) steps only, and run the steps
      between once more in the backward pass: slower, in less memory.

  Returns:
    (carry, outputs): the carry after the last valid step, and the pytree of
    outputs `[B, T, ...]`.

  Raises:
    ValueError: if inputs or mask differ in `[B, T]`, or backward is unknown.

  Example:
    >>> add = lambda carry, x, key: (carry + x, carry + x)
    >>> x = jnp.arange(3.0).reshape(1, 3)
    >>> carry, sums = unroll(add, jnp.zeros(1), x)
    >>> carry.tolist(), sums.tolist()
    ([3.0], [[0.0, 1.0, 3.0]])
  """
  check_choice('backward', backward, get_args(Backward))
  num_steps = _num_steps(inputs, mask)
  times = jnp.arange(num_steps) + start
  keys = None if key is None else _keys_per_step(key, times)

  def body(carry, at_step):
    (x, valid), key_t = at_step
    new_carry, output = step(carry, x, key_t)
    if valid is not None:
      new_carry = _where(valid, new_carry, carry)
      output = _where(valid, output, jax.tree.map(jnp.zeros_like, output))
    return new_carry, output

  if backward == 'deferred':
    carry, outputs = deferred.scan(
      body,
      carry,
      (inputs, mask),
      keys,
      length=num_steps,
      reverse=reverse,
      remat=remat,
    )
  else:
    carry, outputs = _autodiff_scan(
      body, carry, (inputs, mask), keys, num_steps, reverse, remat
    )
  return carry, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), outputs)


def _autodiff_scan(body, carry, inputs, keys, length, reverse, remat):
  """`deferred.scan` differentiated by JAX."""
  xs = (jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), inputs), keys)
  run = lambda carry, xs: jax.lax.scan(body, carry, xs, reverse=reverse)
  if not remat:
    return jax.lax.scan(body, carry, xs, length=length, reverse=reverse)
  parts = deferred.segments(length)
  outputs = []
  for part in reversed(parts) if reverse else parts:
    carry, some = jax.lax.scan(
      jax.checkpoint(run, prevent_cse=False),
      carry,
      jax.tree.map(lambda x, part=part: deferred.split(x, part), xs),
      reverse=reverse,
    )
    outputs.append(jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), some))
  if reverse:
    outputs.reverse()
  return carry, jax.tree.map(lambda *ys: jnp.concatenate(ys), *outputs)


def _num_steps(inputs: PyTree, mask: Array | None) -> int:
  shapes = {x.shape[:2] for x in jax.tree.leaves((inputs, mask))}
  if len(shapes) != 1:
    raise ValueError(
      'inputs, mask: expected the same leading [B, T] everywhere, got '
      f'{sorted(shapes)}.'
    )
  return shapes.pop()[1]


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
