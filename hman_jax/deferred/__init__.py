"""A scan over time that forms its weight gradients after its backward pass.

Reverse-mode differentiation of `jax.lax.scan` adds a gradient to every weight
at every step, stores every intermediate of the step, and copies its inputs
into time-major order. `scan` here computes the same numbers from the same step
function, and spends less. It reads the step's equations (its jaxpr) once:

- What no step changes (casts and reshapes of weights) moves out of the loop.
- s = x_1 W_1 + x_2 W_2 + ... + b, with loop-invariant W and b, is one *sum*.
  Forward, a step saves its carry, its sums s, and what it has decided (noise,
  picks, comparisons). Backward, a step is rebuilt from these, with no product
  and no draw made again, and yields dx_i = ds W_i^T, ds and x_i only.
- ds takes the place of s. Afterwards dW_i = sum_t x_i^T ds is one matrix
  product over all steps and rows, and db one sum.
- A `fused` equation, sums and what is made of them in one, keeps its sums and
  brings a derivative of its own. It is for GPUs, where a launch costs more than
  a copy: what such a step saves is written as few vectors.
- An input that is not differentiated gets no gradient, and inputs are read
  where they lie, one step's slice at a time.
- On a CPU a step whose products are large has the batch last (`layout`).

Whatever is not part of a sum is differentiated by JAX as it stands: the result
is that of autodiff for any step, up to the order of summation, and, of bfloat16
products, up to rounding.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hman_jax.deferred.fusion import Fused, fused
from hman_jax.deferred.loops import backward, forward, primal
from hman_jax.deferred.products import lies_explicitly
from hman_jax.deferred.splitting import segments, split
from hman_jax.deferred.steps import read_step
from hman_jax.types import Array, Key, PyTree

__all__ = ['Body', 'Fused', 'fused', 'scan', 'segments', 'split']

# Steps from which on to turn weights, once, is worth it.
_LEAST_STEPS = 8

Body = Callable[[Any, Any], tuple[Any, Any]]


def scan(
  body: Body,
  carry: PyTree,
  inputs: PyTree,
  keys: Key | None = None,
  *,
  length: int,
  reverse: bool = False,
  remat: bool = False,
) -> tuple[PyTree, PyTree]:
  """`lax.scan` with batch-major inputs and deferred weight gradients.

  It has a reverse-mode derivative only (`jax.grad`, `jax.vjp`).

  Args:
    body: `body(carry, (x_t, key_t)) -> (carry, output_t)`; it may close over
      arrays, which are differentiated too.
    carry: pytree of arrays.
    inputs: pytree of arrays `[B, T, ...]`; `x_t` is the pytree of `[B, ...]`.
    keys: array with one entry a step, `[T, ...]`, or None.
    length: T, at least 1.
    reverse: from the last step to the first.
    remat: keep the carry only at about sqrt(T) places, and run the steps
      between once more in the backward pass.

  Returns:
    (carry, outputs): outputs are time-major, `[T, ...]`.

  Raises:
    TypeError: if the body changes the structure, shape or type of the carry.

  Example:
    >>> w = jnp.full((1, 1), 2.0)
    >>> x = jnp.arange(3.0).reshape(1, 3, 1)
    >>> total = lambda w: scan(
    ...   lambda c, at: (c + at[0] @ w, c), jnp.zeros((1, 1)), x, length=3
    ... )[0].sum()
    >>> jax.grad(total)(w).tolist()
    [[3.0]]
  """
  carry, inputs = jax.tree.map(jnp.asarray, (carry, inputs))
  flat_carry, carry_tree = jax.tree.flatten(carry)
  flat_inputs, inputs_tree = jax.tree.flatten(inputs)
  flat_keys = [] if keys is None else [keys]
  out_trees = []

  def flat_body(carry, inputs, keys):
    at_step = (inputs_tree.unflatten(inputs), keys[0] if keys else None)
    new, output = body(carry_tree.unflatten(carry), at_step)
    flat_new, new_tree = jax.tree.flatten(new)
    if new_tree != carry_tree:
      raise TypeError(
        f'body: expected a carry of structure {carry_tree}, got {new_tree}.'
      )
    flat_output, output_tree = jax.tree.flatten(output)
    out_trees.append(output_tree)
    return [*flat_new, *flat_output]

  closed = jax.make_jaxpr(flat_body)(
    flat_carry,
    [_without(x, axis=1) for x in flat_inputs],
    [_without(k, axis=0) for k in flat_keys],
  )
  arrays = [*flat_carry, *flat_inputs, *closed.consts]
  may_turn = _may_turn(length, remat, arrays)
  steps, consts, turned = read_step(
    closed, len(flat_carry), len(flat_inputs), may_turn
  )
  order = jnp.arange(length)
  if reverse:
    order, flat_keys = order[::-1], [k[::-1] for k in flat_keys]
  run = jax.custom_vjp(functools.partial(primal, steps, remat))
  run.defvjp(
    functools.partial(forward, steps, remat),
    functools.partial(backward, steps, remat),
    symbolic_zeros=True,
  )
  flat_carry = [
    jnp.moveaxis(x, 0, -1) if t else x for x, t in zip(flat_carry, turned)
  ]
  last, outputs = run(consts, flat_carry, flat_inputs, flat_keys, order)
  last = [jnp.moveaxis(x, -1, 0) if t else x for x, t in zip(last, turned)]
  outputs = [
    jnp.moveaxis(y, -1, 1) if t else y
    for y, t in zip(outputs, turned[len(last) :])
  ]
  if reverse:
    outputs = [y[::-1] for y in outputs]
  return carry_tree.unflatten(last), out_trees[0].unflatten(outputs)


def _may_turn(length: int, remat: bool, arrays: Sequence[Array]) -> bool:
  """Whether products may be turned: on a CPU, over some steps.

  Not where types say over which devices arrays lie. And of a loop of one step
  XLA folds the transposition of a weight into the product, which then fails at
  run time if it is of bfloat16 (jaxlib 0.10.2).
  """
  if jax.default_backend() != 'cpu' or not isinstance(length, int):
    return False
  if any(lies_explicitly(x) for x in arrays):
    return False
  sizes = [size for _, _, size in segments(length)] if remat else [length]
  return min(sizes) > 1 and length >= _LEAST_STEPS


def _without(x: Array, axis: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape[:axis] + x.shape[axis + 1 :], x.dtype)
