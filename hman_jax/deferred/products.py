"""Values times weights that no step changes: sums of them, their gradients."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives

from hman_jax.deferred.equations import apply_equation
from hman_jax.precision import rounded_dot_p
from hman_jax.types import Array

PRODUCTS = (primitives.dot_general_p, rounded_dot_p)

# Rows of a value from which on its product turns, and to which also forward.
_LEAST_ROWS, _MOST_ROWS_FORWARD = 16, 127

# Numbers of a weight from which on its products turn: small ones lose by it.
_LEAST_SIZE = 512 * 2048

# Rows of a weight from which on they turn forward: of fewer, turning the sum
# back costs more than is gained.
_LEAST_LENGTH_FORWARD = 1280


class Product(NamedTuple):
  """A value times an invariant weight.

  XLA's CPU library lays the right factor of a product out anew each time it
  runs: at each step, a whole weight for a few rows. Here such a product of
  bfloat16 factors *turns*: s = (W^T x^T)^T, and dx = (W ds^T)^T, with the
  weight on the left. Float32 ones hardly gain.

  Attributes:
    equation: that defines it.
    value, weight: its factors, the variables.
    turns: whether it turns in the backward pass.
    turns_forward: whether it turns in the forward pass too.
  """

  equation: core.JaxprEqn
  value: Any
  weight: Any
  turns: bool = False
  turns_forward: bool = False

  @property
  def output(self) -> Any:
    """The variable that it defines."""
    return self.equation.outvars[0]

  @property
  def is_plain(self) -> bool:
    """Whether it is rows times a matrix, of one type and unrounded."""
    types: list[Any] = [v.aval for v in self.equation.invars]
    return (
      self.equation.primitive is primitives.dot_general_p
      and self.equation.invars[0] is self.value
      and all(a.ndim == 2 for a in types)
      and all(a.dtype == self.output.aval.dtype for a in types)
      and self.equation.params['dimension_numbers'] == (((1,), (0,)), ((), ()))
    )

  def apply(self, like: core.Jaxpr, value: Array, weight: Array) -> Array:
    """The product of these, of jaxpr `like`."""
    in_order = (value, weight)
    if self.equation.invars[0] is not self.value:
      in_order = (weight, value)
    return apply_equation(like, self.equation, in_order)

  def pull(self, like: core.Jaxpr, value, weight, gradient) -> Array:
    """The gradient of the value; the weight is of bfloat16 if it turns."""
    if self.turns:
      return _turn(_rows_times(weight, gradient.astype(jnp.bfloat16)))
    _, pull = jax.vjp(lambda x: self.apply(like, x, weight), value)
    return pull(gradient)[0]


def product_of(equation: core.JaxprEqn, value: Any, weight: Any) -> Product:
  """The product that an equation defines, turned where that is faster."""
  shapes = value.aval.shape, weight.aval.shape
  turns = (
    jax.default_backend() == 'cpu'
    and equation.primitive is rounded_dot_p
    and equation.invars[0] is value
    and len(shapes[0]) == 2
    and all(isinstance(n, int) for shape in shapes for n in shape)
    and shapes[0][0] >= _LEAST_ROWS
    and shapes[1][1] > 1
    and weight.aval.size >= _LEAST_SIZE
  )
  forward = (
    turns
    and shapes[0][0] <= _MOST_ROWS_FORWARD
    and shapes[1][0] >= _LEAST_LENGTH_FORWARD
  )
  return Product(equation, value, weight, turns, forward)


class Sum(NamedTuple):
  """s = sum of products and of invariant biases."""

  products: tuple[Product, ...]
  biases: tuple[Any, ...]

  @property
  def values(self) -> tuple[Any, ...]:
    """The variables that weights are multiplied with."""
    return tuple(product.value for product in self.products)

  def apply(self, like: core.Jaxpr, env, turned) -> Array:
    """The sum, of products some of whose turned weights are given."""
    parts, columns = [env[v] for v in self.biases], []
    for product in self.products:
      value, weight = env[product.value], env[product.weight]
      if product.output in turned:
        columns.append(
          _rows_times(turned[product.output], value.astype(jnp.bfloat16))
        )
      else:
        parts.append(product.apply(like, value, weight))
    if columns:
      parts.insert(0, _turn(functools.reduce(jnp.add, columns)))
    return functools.reduce(jnp.add, parts)

  def pull(self, like: core.Jaxpr, gradient, values, weights) -> tuple:
    """The gradients of the values."""
    return tuple(
      product.pull(like, x, w, gradient)
      for product, x, w in zip(self.products, values, weights)
    )


def _rows_times(a: Array, b: Array) -> Array:
  """All products of a row of a and a row of b: `[M, K], [N, K] -> [M, N]`."""
  dimensions = (((1,), (1,)), ((), ()))
  return jax.lax.dot_general(
    a, b, dimensions, preferred_element_type=jnp.float32
  )


def _turn(x: Array) -> Array:
  """x transposed; XLA must not turn the product that made x instead."""
  return jax.lax.optimization_barrier(x).T


def weight_gradient(like, product, weight, values, d_sums) -> Array:
  """One product over all steps and rows."""
  # As JAX forms it, transposed, XLA makes it slower; but it knows where the
  # result lies if the program says where everything does.
  if product.is_plain and not _lies_explicitly(values):
    precision = product.equation.params['precision']
    return jnp.einsum('tbk,tbn->kn', values, d_sums, precision=precision)
  over_steps = lambda w: jax.vmap(lambda x: product.apply(like, x, w))
  _, pull = jax.vjp(lambda w: over_steps(w)(values), weight)
  return pull(d_sums)[0]


def _lies_explicitly(x: Array) -> bool:
  """Whether an array's type says over which devices it is spread."""
  mesh = jax.typeof(x).sharding.mesh
  return not (mesh.empty or mesh.are_all_axes_auto)


def turned_weight_gradient(columns: Array, d_sums: Array) -> Array:
  """Of bfloat16 values `[K, T, B]` and gradients `[T, B, N]`: `[K, N]`."""
  gradient = jax.lax.dot_general(
    columns.reshape(columns.shape[0], -1),
    d_sums.astype(jnp.bfloat16).reshape(-1, d_sums.shape[-1]),
    (((1,), (0,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  # XLA must not turn the product if the gradient is transposed.
  return jax.lax.optimization_barrier(gradient)


def bias_gradient(bias, d_sums) -> Array:
  """The sum over all steps, and over axes that the bias was spread over."""
  shape = d_sums.shape[1:]
  _, pull = jax.vjp(lambda b: jnp.broadcast_to(b, shape), bias)
  return pull(d_sums.sum(axis=0))[0]
