"""Running the steps of a scan: forward, and backward."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from hman_jax.deferred import turned
from hman_jax.deferred.equations import (
  is_float,
  run_equations,
  value_in,
)
from hman_jax.deferred.products import (
  bias_gradient,
  weight_gradient,
)
from hman_jax.deferred.splitting import segments, split
from hman_jax.deferred.steps import Steps
from hman_jax.types import Array


def _loop(steps: Steps, consts, carry, inputs, keys, order, save: bool):
  """Runs steps: (carry, (outputs, saved))."""

  def body(carry, at):
    index, keys = at
    env = _env(steps, consts, carry, inputs, keys, index)
    run_equations(steps.jaxpr, steps.jaxpr.eqns, env)
    read = lambda atoms: [jnp.asarray(value_in(env, v)) for v in atoms]
    saved = None
    if save:
      saved = [_pack(steps, [env[v] for v in vs]) for vs in steps.saved]
    return read(steps.carry_out), (read(steps.outputs), saved)

  return jax.lax.scan(body, carry, (order, keys))


def _pack(steps: Steps, arrays: list[Array]) -> Any:
  """The arrays; of a step that `packs`, one vector for each dtype."""
  if not steps.packs:
    return arrays
  parts: dict[str, list[Array]] = {}
  for x in arrays:
    parts.setdefault(str(x.dtype), []).append(x.ravel())
  return {dtype: jnp.concatenate(xs) for dtype, xs in parts.items()}


def _unpack(steps: Steps, packed: Any, variables: Sequence[Any]) -> list[Array]:
  """The arrays of `_pack`, values of `variables`, with leading axes if any."""
  if not steps.packs:
    return packed
  used = Counter()
  arrays = []
  for v in variables:
    dtype = str(v.aval.dtype)
    start, used[dtype] = used[dtype], used[dtype] + v.aval.size
    part = packed[dtype][..., start : used[dtype]]
    arrays.append(part.reshape(*part.shape[:-1], *v.aval.shape))
  return arrays


def _env(steps: Steps, consts, carry, inputs, keys, index):
  at_step = [
    jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False)
    for x in inputs
  ]
  names = (*steps.consts, *steps.carry, *steps.inputs, *steps.keys)
  return dict(zip(names, (*consts, *carry, *at_step, *keys)))


def _loop_from_starts(steps: Steps, consts, carry, inputs, keys, order):
  """Runs steps by segments: (carry, outputs, carries before segments)."""
  outputs, starts = [], []
  for part in segments(order.shape[0]):

    def segment(carry, at):
      order, keys = at
      last, (outputs, _) = _loop(
        steps, consts, carry, inputs, keys, order, save=False
      )
      return last, (outputs, carry)

    carry, (some, before) = jax.lax.scan(
      segment, carry, (split(order, part), [split(k, part) for k in keys])
    )
    outputs.append([y.reshape(-1, *y.shape[2:]) for y in some])
    starts.append(before)
  return carry, [jnp.concatenate(ys) for ys in zip(*outputs)], starts


def primal(steps: Steps, remat, consts, carry, inputs, keys, order):
  """What `custom_vjp` computes where nothing is differentiated."""
  del remat
  carry, (outputs, _) = _loop(
    steps, consts, carry, inputs, keys, order, save=False
  )
  return carry, outputs


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Perturbed:
  """Which consts and inputs are differentiated."""

  consts: tuple[bool, ...]
  inputs: tuple[bool, ...]


def forward(steps: Steps, remat, *args):
  """The results of `primal`, and what `backward` needs."""
  consts, carry, inputs, keys, order = jax.tree.map(
    lambda x: x.value, args, is_leaf=_is_argument
  )
  flags = lambda tree: tuple(
    bool(x.perturbed) for x in jax.tree.leaves(tree, is_leaf=_is_argument)
  )
  perturbed = _Perturbed(flags(args[0]), flags(args[2]))
  if remat:
    last, outputs, saved = _loop_from_starts(
      steps, consts, carry, inputs, keys, order
    )
  else:
    last, (outputs, saved) = _loop(
      steps, consts, carry, inputs, keys, order, save=True
    )
  return (last, outputs), (perturbed, consts, inputs, keys, order, saved)


def _is_argument(x: Any) -> bool:
  return isinstance(x, jax.custom_derivatives.CustomVJPPrimal)


def backward(steps: Steps, remat, residuals, cotangents):
  """The gradients of all that `primal` takes."""
  perturbed, consts, inputs, keys, order, saved = residuals
  d_carry, d_outputs = cotangents
  d_carry = [
    jnp.zeros(v.aval.shape, v.aval.dtype) if type(d) is SymbolicZero else d
    for d, v in zip(d_carry, steps.carry)
    if is_float(v)
  ]
  given = {
    i: d
    for i, (d, v) in enumerate(zip(d_outputs, steps.outputs))
    if is_float(v) and type(d) is not SymbolicZero
  }
  factors = steps.factors(consts)
  reverse = functools.partial(
    _reverse, steps, perturbed, consts, factors, inputs
  )
  d_inputs = []
  if not remat:
    d_carry, d_consts, some = reverse(d_carry, given, saved, keys, order)
    d_inputs.append(some)
  else:
    d_consts = {
      i: jnp.zeros_like(consts[i]) for i in _with_gradient(steps, perturbed)
    }

    def segment(back, at):
      d_carry, d_consts = back
      carry, order, keys, given = at
      _, (_, saved) = _loop(
        steps, consts, carry, inputs, keys, order, save=True
      )
      d_carry, more, d_inputs = reverse(d_carry, given, saved, keys, order)
      return (d_carry, jax.tree.map(jnp.add, d_consts, more)), d_inputs

    for part, starts in reversed(list(zip(segments(order.shape[0]), saved))):
      pieces = jax.tree.map(
        lambda x, part=part: split(x, part), (order, keys, given)
      )
      (d_carry, d_consts), some = jax.lax.scan(
        segment, (d_carry, d_consts), (starts, *pieces), reverse=True
      )
      join = lambda x: x.reshape(-1, *x.shape[2:])
      d_inputs.insert(0, jax.tree.map(join, some))
  whole = {
    i: jnp.concatenate([part[i] for part in d_inputs]) for i in d_inputs[0]
  }
  # Step order[k] is row k: rows go back to where their step is.
  whole = {
    i: jnp.moveaxis(d.at[order].set(d, unique_indices=True), 0, 1)
    for i, d in whole.items()
  }
  floats = iter(d_carry)
  return (
    [d_consts.get(i) for i in range(len(consts))],
    [next(floats) if is_float(v) else None for v in steps.carry],
    [whole.get(i) for i in range(len(inputs))],
    [None] * len(keys),
    None,
  )


def _with_gradient(steps: Steps, perturbed: _Perturbed) -> set[int]:
  """Indices of the consts that have a gradient."""
  read = set(steps.direct)
  for total in steps.sums.values():
    read.update(product.weight for product in total.products)
    read.update(total.biases)
  return {
    i
    for i, (v, flag) in enumerate(zip(steps.consts, perturbed.consts))
    if flag and v in read
  }


def _reverse(
  steps: Steps,
  perturbed,
  consts,
  factors,
  inputs,
  d_carry,
  given,
  saved,
  keys,
  order,
):
  """Backward through saved steps: (d_carry, d_consts, d_inputs by index)."""
  index_of = {v: i for i, v in enumerate(steps.consts)}
  differentiated = _with_gradient(steps, perturbed)
  direct = [i for v, i in index_of.items()
            if v in steps.direct and i in differentiated]  # fmt: skip
  moving = [i for i, flag in enumerate(perturbed.inputs) if flag]

  products = [
    product
    for total in steps.sums.values()
    for product in total.products
    if index_of[product.weight] in differentiated
  ]
  in_columns = list(
    dict.fromkeys(turned.column_of(p.equation) for p in products if p.is_turned)
  )
  stacked = list(dict.fromkeys(p.value for p in products if not p.is_turned))

  def body(back, at):
    d_carry, d_direct, sums, columns = back
    position, index, keys, saved, given = at
    kept = {}
    of_step = lambda x: jax.lax.dynamic_index_in_dim(x, position, 0, False)
    saved = jax.tree.map(of_step, sums), *saved
    for variables, packed in zip(steps.saved, saved):
      kept.update(zip(variables, _unpack(steps, packed, variables)))
    carry = [
      kept[v] if n else jnp.zeros(v.aval.shape, v.aval.dtype)
      for v, n in zip(steps.carry, steps.carry_needed)
    ]
    env = _env(steps, consts, carry, inputs, keys, index)
    floats = [v for v in steps.carry if is_float(v)]
    moved = [steps.inputs[i] for i in moving]
    read = [steps.consts[i] for i in direct]

    def step(*groups):
      at = dict(env)
      for names, values in zip((floats, moved, read), groups):
        at.update(zip(names, values))
      sums = dict(zip(steps.sums, groups[3]))
      steps.rerun(at, {**kept, **sums}, factors)
      get = lambda atoms: [jnp.asarray(value_in(at, v)) for v in atoms]
      results = (
        get(v for c, v in zip(steps.carry, steps.carry_out) if is_float(c)),
        get(steps.outputs[i] for i in given),
      )
      return results, get(steps.values)

    get = lambda names: [env[v] for v in names]
    _, pull, values = jax.vjp(
      step, get(floats), get(moved), get(read),
      [kept[v] for v in steps.sums], has_aux=True,
    )  # fmt: skip
    d_carry, d_moved, more, d_sums = pull((d_carry, list(given.values())))
    d_direct = [a + b for a, b in zip(d_direct, more)]
    value_of = dict(zip(steps.values, values))
    columns = [
      jax.lax.dynamic_update_index_in_dim(
        x, column.of(value_of[column.value]), position, axis=1
      )
      for x, column in zip(columns, in_columns)
    ]
    values = [value_of[v] for v in stacked]
    # A sum is read for the last time: its gradient takes its place.
    write = lambda x, d: jax.lax.dynamic_update_index_in_dim(x, d, position, 0)
    sums = jax.tree.map(write, sums, _pack(steps, d_sums))
    made = _pack(steps, [*d_moved, *values])
    return (d_carry, d_direct, sums, columns), made

  # A loop that writes columns is the transposition that XLA leaves to itself:
  # it would fold any other into the product.
  length = order.shape[0]
  columns = [column.empty(length) for column in in_columns]
  sums, *saved = saved
  d_direct = [jnp.zeros_like(consts[i]) for i in direct]
  (d_carry, d_direct, d_sums, columns), made = jax.lax.scan(
    body,
    (d_carry, d_direct, sums, columns),
    (jnp.arange(length), order, keys, saved, given),
    reverse=True,
  )
  d_sums = _unpack(steps, d_sums, list(steps.sums))
  made = _unpack(steps, made, [*(steps.inputs[i] for i in moving), *stacked])
  d_moved, values = made[: len(moving)], made[len(moving) :]
  d_consts = dict(zip(direct, d_direct))

  def add(v, gradient):
    i = index_of[v]
    d_consts[i] = d_consts[i] + gradient if i in d_consts else gradient

  value_of = dict(zip(stacked, values))
  columns_of = dict(zip(in_columns, columns))
  for total, d_sum in zip(steps.sums.values(), d_sums):
    rows_of = functools.cache(functools.partial(turned.rows_of, d_sum))
    for product in total.products:
      at = index_of[product.weight]
      if at not in differentiated:
        continue
      if product.is_turned:
        column = turned.column_of(product.equation)
        gradient = turned.weight_gradient(
          product.equation, columns_of[column], rows_of(column.dtype)
        )
      else:
        gradient = weight_gradient(
          steps.jaxpr, product, consts[at], value_of[product.value], d_sum
        )
      add(product.weight, gradient)
    for bias in total.biases:
      if index_of[bias] in differentiated:
        add(bias, bias_gradient(consts[index_of[bias]], d_sum))
  return d_carry, d_consts, dict(zip(moving, d_moved))
