"""Products of a step with the batch last: s^T = W^T x^T; their gradients."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import batching, mlir

from hman_jax.precision import rounded_dot_p
from hman_jax.types import Array


def turned_product(
  equation: core.JaxprEqn, value: Array, weight: Array, value_is_turned: bool
) -> Array:
  """The result of `[B, K]` times `[K, N]` or `[K]`, an invariant, turned.

  Args:
    equation: the product.
    value: `[B, K]`, or `[K, B]` if it is turned.
    weight: `[K, N]` or `[K]`.
    value_is_turned: whether it is.

  Returns:
    `[N, B]` or `[B]`. Only the `scan` of which it is a step differentiates it.
  """
  rounded = equation.primitive is rounded_dot_p
  # An operand, so that it is made once, before the loop.
  turned = weight.astype(jnp.bfloat16 if rounded else weight.dtype).T
  return turned_product_p.bind(
    value,
    weight,
    turned,
    value_is_turned=value_is_turned,
    precision=equation.params.get('precision'),
  )


class Column(NamedTuple):
  """A value of turned products, kept as `[K, T, B]`.

  Attributes:
    value: the variable, `[K, B]` if it is turned, else `[B, K]`.
    is_turned: whether it is.
    dtype: to which it is rounded.
  """

  value: Any
  is_turned: bool
  dtype: Any

  def of(self, value: Array) -> Array:
    """The part of one step, `[K, B]`."""
    return (value if self.is_turned else value.T).astype(self.dtype)

  def empty(self, length: int) -> Array:
    """Room for `length` steps."""
    shape = self.value.aval.shape
    size, rows = shape if self.is_turned else shape[::-1]
    return jax.lax.empty((size, length, rows), self.dtype)


def factor_dtype(equation: core.JaxprEqn) -> Any:
  """The dtype to which the factors of a turned product are rounded."""
  turned: Any = equation.invars[2].aval
  return turned.dtype


def column_of(equation: core.JaxprEqn) -> Column:
  """What the weight gradient of a turned product needs of its value."""
  is_turned = equation.params['value_is_turned']
  return Column(equation.invars[0], is_turned, factor_dtype(equation))


def value_gradient(
  equation: core.JaxprEqn, factor: Array, gradient: Array
) -> Array:
  """The gradient of the value of a turned product.

  Args:
    equation: the product.
    factor: its weight, rounded.
    gradient: `[N, B]` or `[B]`.

  Returns:
    `[K, B]`, or `[B, K]` if the value is not turned.
  """
  rounded = gradient.astype(factor.dtype)
  if factor.ndim == 1:
    made = factor[:, None] * rounded[None]
  else:
    precision = equation.params['precision']
    made = _product(factor, rounded, ((1,), (0,)), precision)
  made = made.astype(gradient.dtype)
  if equation.params['value_is_turned']:
    return made
  # XLA must not turn the product that made it instead.
  return jax.lax.optimization_barrier(made).T


def rows_of(d_sums: Array, dtype: Any) -> Array:
  """Gradients of a turned sum as rows: `[T, N, B]` to `[T, B, N]`."""
  d_sums = d_sums.astype(dtype)
  if d_sums.ndim == 2:
    return d_sums
  # XLA must not turn the product that these are for instead.
  return jax.lax.optimization_barrier(d_sums.transpose(0, 2, 1))


def weight_gradient(
  equation: core.JaxprEqn, columns: Array, rows: Array
) -> Array:
  """The gradient of the weight of a turned product.

  Args:
    equation: the product.
    columns: its values `[K, T, B]`, of `column_of`.
    rows: `[T, B, N]` or `[T, B]`, of `rows_of`.

  Returns:
    `[K, N]` or `[K]`.
  """
  weight: Any = equation.invars[1].aval
  precision = equation.params['precision']
  gradient = _product(columns, rows, ((1, 2), (0, 1)), precision)
  # XLA must not turn the product if the gradient is transposed.
  return jax.lax.optimization_barrier(gradient.astype(weight.dtype))


def _product(left: Array, right: Array, axes: Any, precision: Any) -> Array:
  """Summed over axes of each, in float32 or better."""
  dtype = jnp.promote_types(left.dtype, jnp.float32)
  return jax.lax.dot_general(
    left, right, (axes, ((), ())), precision, preferred_element_type=dtype
  )


def _apply(value, weight, turned, *, value_is_turned, precision) -> Array:
  axes = ((turned.ndim - 1,), (0 if value_is_turned else 1,))
  made = _product(turned, value.astype(turned.dtype), axes, precision)
  return made.astype(weight.dtype)


def _type_of(value, weight, turned, **params):
  run = functools.partial(_apply, **params)
  made = jax.eval_shape(run, value, weight, turned)
  return value.update(shape=made.shape, dtype=made.dtype)


def _batched(operands, axes, **params):
  return jax.vmap(functools.partial(_apply, **params), axes)(*operands), 0


# A primitive, so that `scan` finds it among the step's equations.
turned_product_p = core.Primitive('turned_product')
turned_product_p.def_impl(_apply)
turned_product_p.def_abstract_eval(_type_of)
mlir.register_lowering(
  turned_product_p, mlir.lower_fun(_apply, multiple_results=False)
)
batching.primitive_batchers[turned_product_p] = _batched
