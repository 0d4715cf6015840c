"""Values times weights that no step changes: sums of them, their gradients."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives
from jax.interpreters import batching, mlir

from hman_jax.deferred.equations import apply_equation
from hman_jax.precision import rounded_dot_p
from hman_jax.types import Array

def is_product_of_rows(equation: core.JaxprEqn) -> bool:
  """Whether it is `[B, K]` times `[K, N]` or `[K]`, of one type."""
  if equation.primitive not in (primitives.dot_general_p, rounded_dot_p):
    return False
  value, weight, made = (v.aval for v in (*equation.invars, *equation.outvars))
  if value.ndim != 2 or weight.ndim not in (1, 2):
    return False
  return equation.primitive is rounded_dot_p or (
    value.dtype == weight.dtype == made.dtype
    and equation.params['dimension_numbers'] == (((1,), (0,)), ((), ()))
    and equation.params['out_sharding'] is None
  )


def turned_product(
  equation: core.JaxprEqn, value: Array, weight: Array, value_is_turned: bool
) -> Array:
  """The result of a product of rows and an invariant matrix, turned.

  Args:
    equation: the product, `is_product_of_rows`.
    value: `[B, K]`, or `[K, B]` if it is turned.
    weight: `[K, N]` or `[K]`.
    value_is_turned: whether it is.

  Returns:
    `[N, B]` or `[B]`. Only the `scan` of which it is a step differentiates it.
  """
  rounded = equation.primitive is rounded_dot_p
  dtype = _factor_dtype(weight.dtype, rounded)
  # An operand, so that it is made once, before the loop.
  turned = weight.astype(dtype).T
  return turned_product_p.bind(
    value,
    weight,
    turned,
    rounded=rounded,
    value_is_turned=value_is_turned,
    precision=equation.params.get('precision'),
  )


turned_product_p = core.Primitive('turned_product')


def _turned_product(
  value, weight, turned, *, rounded, value_is_turned, precision
) -> Array:
  del weight, rounded
  axes = ((turned.ndim - 1,), (0 if value_is_turned else 1,))
  return _product(turned, value.astype(turned.dtype), axes, precision)


def _factor_dtype(dtype, rounded: bool) -> Any:
  return jnp.bfloat16 if rounded else dtype


def _product(left, right, axes, precision) -> Array:
  """The product summed over axes of each, in float32 or better."""
  dtype = jnp.promote_types(left.dtype, jnp.float32)
  return jax.lax.dot_general(
    left, right, (axes, ((), ())), precision, preferred_element_type=dtype
  )


def _turned_product_type(value, weight, turned, **params):
  made = jax.eval_shape(
    functools.partial(_turned_product, **params), value, weight, turned
  )
  return value.update(shape=made.shape, dtype=made.dtype)


def _turned_product_batched(operands, axes, **params):
  run = functools.partial(_turned_product, **params)
  return jax.vmap(run, axes)(*operands), 0


turned_product_p.def_impl(_turned_product)
turned_product_p.def_abstract_eval(_turned_product_type)
mlir.register_lowering(
  turned_product_p, mlir.lower_fun(_turned_product, multiple_results=False)
)
batching.primitive_batchers[turned_product_p] = _turned_product_batched

PRODUCTS = (primitives.dot_general_p, rounded_dot_p, turned_product_p)


class Product(NamedTuple):
  """A value times an invariant weight.

  Attributes:
    equation: that defines it.
    value, weight: its factors, the variables.
  """

  equation: core.JaxprEqn
  value: Any
  weight: Any

  @property
  def output(self) -> Any:
    """The variable that it defines."""
    return self.equation.outvars[0]

  @property
  def is_turned(self) -> bool:
    """Whether it is a `turned_product`."""
    return self.equation.primitive is turned_product_p

  @property
  def factor_dtype(self) -> Any:
    """The dtype of the factors of a turned product."""
    return self.equation.invars[2].aval.dtype

  @property
  def column(self) -> 'Column':
    """What the weight gradient of a turned product needs of the value."""
    params = self.equation.params
    return Column(self.value, params['value_is_turned'], self.factor_dtype)

  def factor(self, weight: Array) -> Array:
    """The weight as `pull` needs it."""
    return weight.astype(self.factor_dtype) if self.is_turned else weight

  def apply(self, like: core.Jaxpr, value: Array, weight: Array) -> Array:
    """The product of these, of jaxpr `like`; not of one that is turned."""
    in_order = (value, weight)
    if self.equation.invars[0] is not self.value:
      in_order = (weight, value)
    return apply_equation(like, self.equation, in_order)

  def pull(self, like: core.Jaxpr, value, factor, gradient) -> Array:
    """The gradient of the value, from that of the product."""
    if self.is_turned:
      gradient = gradient.astype(factor.dtype)
      params = self.equation.params
      if factor.ndim == 1:
        made = factor[:, None] * gradient[None]
      else:
        made = _product(factor, gradient, ((1,), (0,)), params['precision'])
      if params['value_is_turned']:
        return made
      # XLA must not turn the product that made it instead.
      return jax.lax.optimization_barrier(made).T
    _, pull = jax.vjp(lambda x: self.apply(like, x, factor), value)
    return pull(gradient)[0]


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

  def zeros(self, length: int) -> Array:
    """Room for `length` steps."""
    shape = self.value.aval.shape
    if not self.is_turned:
      shape = shape[::-1]
    return jax.lax.empty((shape[0], length, shape[1]), self.dtype)


class Sum(NamedTuple):
  """s = sum of products and of invariant biases."""

  products: tuple[Product, ...]
  biases: tuple[Any, ...]

  @property
  def values(self) -> tuple[Any, ...]:
    """The variables that weights are multiplied with."""
    return tuple(product.value for product in self.products)

  def pull(self, like: core.Jaxpr, gradient, values, factors) -> tuple:
    """The gradients of the values."""
    return tuple(
      product.pull(like, x, w, gradient)
      for product, x, w in zip(self.products, values, factors)
    )


def weight_gradient(like, product, weight, values, d_sums) -> Array:
  """One product over all steps and rows."""
  # As JAX forms it, transposed, XLA makes it slower; but it knows where the
  # result lies if the program says where everything does.
  params = product.equation.params
  plain = (
    product.equation.primitive is primitives.dot_general_p
    and is_product_of_rows(product.equation)
    and product.equation.invars[0] is product.value
  )
  if plain and not lies_explicitly(values):
    return _product(values, d_sums, ((0, 1), (0, 1)), params['precision'])
  over_steps = lambda w: jax.vmap(lambda x: product.apply(like, x, w))
  _, pull = jax.vjp(lambda w: over_steps(w)(values), weight)
  return pull(d_sums)[0]


def lies_explicitly(x: Array) -> bool:
  """Whether an array's type says over which devices it is spread."""
  mesh = jax.typeof(x).sharding.mesh
  return not (mesh.empty or mesh.are_all_axes_auto)


def turned_rows(d_sums: Array, dtype) -> Array:
  """Gradients of turned sums as rows: `[T, N, B]` to `[T, B, N]`."""
  d_sums = d_sums.astype(dtype)
  if d_sums.ndim == 2:
    return d_sums
  # XLA must not turn the product that these are for instead.
  return jax.lax.optimization_barrier(d_sums.transpose(0, 2, 1))


def turned_weight_gradient(product, columns: Array, rows: Array) -> Array:
  """Of values `[K, T, B]` and gradients `[T, B, N]` or `[T, B]`: as a weight."""
  precision = product.equation.params['precision']
  gradient = _product(columns, rows, ((1, 2), (0, 1)), precision)
  # XLA must not turn the product if the gradient is transposed.
  return jax.lax.optimization_barrier(gradient)


def bias_gradient(bias, d_sums) -> Array:
  """The sum over all steps, and over axes that the bias was spread over."""
  shape = d_sums.shape[1:]
  _, pull = jax.vjp(lambda b: jnp.broadcast_to(b, shape), bias)
  return pull(d_sums.sum(axis=0))[0]
