"""Matrix products of rounded factors: bfloat16 in, float32 out.

Parameters, states and everything that is no matrix product stay float32.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from hman_jax.types import Array

Dtype = Literal['float32', 'bfloat16']
DTYPES = get_args(Dtype)


def dot(x: Array, kernel: Array, dtype: Dtype = 'float32') -> Array:
  """x times a kernel, of factors in a dtype.

  With 'bfloat16' both factors are rounded to it and their product is summed in
  float32; so are the products of its derivatives, whose factors are rounded
  likewise.

  Args:
    x: `[..., F]` floating.
    kernel: `[F, G]`, or a column `[F]` with 'float32'.
    dtype: 'bfloat16', or 'float32': the factors as they are.

  Returns:
    Array `[..., G]` (`[...]` of a column) of the promoted type of both factors.

  Example:
    >>> dot(jnp.array([1 + 2**-9]), jnp.ones((1, 1)), 'bfloat16').tolist()
    [1.0]
  """
  if dtype == 'float32':
    return jnp.matmul(x, kernel)
  result = jnp.promote_types(x.dtype, kernel.dtype)
  x, kernel = (a.astype(jnp.float32) for a in (x, kernel))
  return rounded_dot_p.bind(x, kernel).astype(result)


def dense_options(dtype: Dtype) -> dict[str, Any]:
  """Options of `flax.linen.Dense` whose product is of factors in a dtype."""
  if dtype == 'float32':
    return {}
  return {'dot_general': _dense_dot}


def _dense_dot(x, kernel, dimension_numbers, **_):
  """The product that `flax.linen.Dense` asks for: the last axis of x."""
  assert dimension_numbers == (((x.ndim - 1,), (0,)), ((), ()))
  return dot(x, kernel, 'bfloat16')


# A primitive: JAX transposes `dot_general` to a product of a float32 cotangent
# and a bfloat16 factor, which runs at the speed of float32. Here the cotangent
# is rounded as well.
rounded_dot_p = core.Primitive('rounded_dot')


def _rounded_dot(x: Array, kernel: Array) -> Array:
  dimensions = (((x.ndim - 1,), (0,)), ((), ()))
  return jax.lax.dot_general(
    x.astype(jnp.bfloat16),
    kernel.astype(jnp.bfloat16),
    dimensions,
    preferred_element_type=jnp.float32,
  )


def _abstract(x, kernel):
  return x.update(shape=(*x.shape[:-1], kernel.shape[-1]))


def _pull_x(gradient, x, kernel):
  del x
  return rounded_dot_p.bind(gradient, kernel.T)


def _pull_kernel(gradient, x, kernel):
  del kernel
  rows = lambda a: a.reshape(-1, a.shape[-1])
  return rounded_dot_p.bind(rows(x).T, rows(gradient))


def _batched(args, axes):
  x, kernel = args
  if axes[1] is None:
    return rounded_dot_p.bind(jnp.moveaxis(x, axes[0], 0), kernel), 0
  return jax.vmap(_rounded_dot, axes)(x, kernel), 0


rounded_dot_p.def_impl(jax.jit(_rounded_dot))
rounded_dot_p.def_abstract_eval(_abstract)
mlir.register_lowering(
  rounded_dot_p, mlir.lower_fun(_rounded_dot, multiple_results=False)
)
ad.defbilinear(rounded_dot_p, _pull_x, _pull_kernel)
batching.primitive_batchers[rounded_dot_p] = _batched
