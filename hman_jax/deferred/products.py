"""Values times weights that no step changes: sums of them, their gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives

from hman_jax.deferred import turned
from hman_jax.deferred.equations import apply_equation
from hman_jax.precision import rounded_dot_p
from hman_jax.types import Array

# The primitives of products; `is_product_of_rows` is of those not yet turned.
PRODUCTS = (
  primitives.dot_general_p,
  rounded_dot_p,
  turned.turned_product_p,
)

_LARGEST_SUM = 1 << 18  # numbers; see `_is_small`


def is_product_of_rows(equation: core.JaxprEqn) -> bool:
  """Whether it is `[B, K]` times `[K, N]` or `[K]`, of one type."""
  if equation.primitive not in (primitives.dot_general_p, rounded_dot_p):
    return False
  types: list[Any] = [v.aval for v in (*equation.invars, *equation.outvars)]
  value, weight, made = types
  if value.ndim != 2 or weight.ndim not in (1, 2):
    return False
  return equation.primitive is rounded_dot_p or (
    value.dtype == weight.dtype == made.dtype
    and equation.params['dimension_numbers'] == (((1,), (0,)), ((), ()))
    and equation.params['out_sharding'] is None
  )


def _is_small(values: Any) -> bool:
  """Whether summing times a vector is as fast by sums as by a product.

  For the product XLA's CPU backend writes a program of its own, which takes
  7 ms of processor time to compile; of large arrays it is the faster.
  """
  known = all(isinstance(n, int) for n in values.shape)
  return known and values.size <= _LARGEST_SUM


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
    """Whether it is a `turned.turned_product`."""
    return self.equation.primitive is turned.turned_product_p

  def factor(self, weight: Array) -> Array:
    """The weight as `pull` needs it."""
    if self.is_turned:
      return weight.astype(turned.factor_dtype(self.equation))
    return weight

  def apply(self, like: core.Jaxpr, value: Array, weight: Array) -> Array:
    """The product of these, of jaxpr `like`; not of one that is turned."""
    in_order = (value, weight)
    if self.equation.invars[0] is not self.value:
      in_order = (weight, value)
    return apply_equation(like, self.equation, in_order)

  def pull(self, like: core.Jaxpr, value, factor, gradient) -> Array:
    """The gradient of the value, from that of the product."""
    if self.is_turned:
      return turned.value_gradient(self.equation, factor, gradient)
    _, pull = jax.vjp(lambda x: self.apply(like, x, factor), value)
    return pull(gradient)[0]


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
  """One product over all steps and rows, of one that is not turned."""
  # As JAX forms it, transposed, XLA makes it slower; but it knows where the
  # result lies if the program says where everything does.
  plain = (
    product.equation.primitive is primitives.dot_general_p
    and is_product_of_rows(product.equation)
    and product.equation.invars[0] is product.value
  )
  if plain and not lies_explicitly(values):
    if weight.ndim == 1 and _is_small(values):
      return jnp.sum(values * d_sums[..., None], axis=(0, 1))
    # Not einsum: it sums over rows, then steps, and so has both copied.
    return jax.lax.dot_general(
      values,
      d_sums,
      (((0, 1), (0, 1)), ((), ())),
      product.equation.params['precision'],
    )
  over_steps = lambda w: jax.vmap(lambda x: product.apply(like, x, w))
  _, pull = jax.vjp(lambda w: over_steps(w)(values), weight)
  return pull(d_sums)[0]


def lies_explicitly(x: Array) -> bool:
  """Whether an array's type says over which devices it is spread."""
  mesh = jax.typeof(x).sharding.mesh
  return not (mesh.empty or mesh.are_all_axes_auto)


def bias_gradient(bias, d_sums) -> Array:
  """The sum over all steps, and over axes that the bias was spread over."""
  shape = d_sums.shape[1:]
  _, pull = jax.vjp(lambda b: jnp.broadcast_to(b, shape), bias)
  return pull(d_sums.sum(axis=0))[0]
