"""Laying a step out with its batch as the last axis, where products gain by it.

XLA's CPU library lays the right factor of a product out anew each time it
runs: for x W, at each step, a whole weight for a few rows. With the batch last
the weight is the left factor, s^T = W^T x^T and dx^T = W ds^T, and only a few
columns are laid out. What is made of s^T stays as it lies, from step to step
too: to turn it back costs what is gained.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives

from hman_jax.deferred.equations import (
  CONSTANTS,
  LOOP,
  dependence,
  run_equations,
  variables_of,
)
from hman_jax.deferred.products import is_product_of_rows
from hman_jax.deferred.turned import turned_product
from hman_jax.types import Array

# Rows and multiply-adds of a product from which on it is faster turned.
_LEAST_ROWS, _LEAST_WORK = 16, 64 * 256 * 1024

# Of the work of all products, the share of these from which on a step gains.
_LEAST_SHARE = 0.75

# Where the batch of a variable is, or is wanted: the first axis, the last, or
# either, if it is as cheaply made one way as the other.
_Side = Literal['first', 'last', 'either']

_ELEMENTWISE = {
  'abs', 'add', 'and', 'atan2', 'cbrt', 'ceil', 'clamp', 'convert_element_type',
  'copy', 'cos', 'div', 'eq', 'erf', 'exp', 'exp2', 'expm1', 'floor', 'ge',
  'gt', 'integer_pow', 'is_finite', 'le', 'log', 'log1p', 'logistic', 'lt',
  'max', 'min', 'mul', 'ne', 'neg', 'not', 'or', 'pow', 'reduce_precision',
  'rem', 'round', 'rsqrt', 'select_n', 'sign', 'sin', 'sqrt', 'square',
  'stop_gradient', 'sub', 'tan', 'tanh', 'xor',
}  # fmt: skip

_REDUCTIONS = {
  'argmax', 'argmin', 'reduce_and', 'reduce_max', 'reduce_min', 'reduce_or',
  'reduce_prod', 'reduce_sum',
}  # fmt: skip


class _Plan(NamedTuple):
  """How a step is laid out.

  Attributes:
    sides: where the batch of each variable is best.
    ways: of each equation, whether it runs with the batch first, with the
      batch last, either way when asked, or as a product that is turned.
  """

  sides: dict[Any, _Side]
  ways: list[_Side | Literal['product']]

  def is_last(self, atom: Any) -> bool:
    """Whether a variable, or literal, has the batch last."""
    return not isinstance(atom, core.Literal) and self.sides[atom] == 'last'


def lay_out(
  closed: core.ClosedJaxpr, num_carry: int
) -> tuple[core.ClosedJaxpr, list[bool]]:
  """A step with the batch last where that makes a large product faster.

  Args:
    closed: the step, of arrays with the batch first; without nested calls.
    num_carry: how many of its arguments, and of its results, are its carry.

  Returns:
    (step, turned): the same step, and of each of its results whether the batch
    is last; of its carry that holds for the arguments, too.
  """
  jaxpr = closed.jaxpr
  types = lambda atoms: [(v.aval.shape, v.aval.dtype) for v in atoms]
  if types(jaxpr.invars[:num_carry]) != types(jaxpr.outvars[:num_carry]):
    return closed, [False] * len(jaxpr.outvars)  # an error, reported by `scan`
  given = set()
  while True:  # until the carry comes out as it went in
    plan = _plan(jaxpr, given)
    carry = zip(jaxpr.invars[:num_carry], jaxpr.outvars)
    more = {v for v, new in carry if plan.is_last(new)}
    if more <= given:
      break
    given |= more
  turned = [v in given for v in jaxpr.invars[:num_carry]]
  turned += [plan.is_last(v) for v in jaxpr.outvars[num_carry:]]
  if 'product' not in plan.ways:
    return closed, turned
  arguments = [_argument(v, v in given) for v in jaxpr.invars]
  run = functools.partial(_run, closed, plan, turned)
  return jax.make_jaxpr(run)(*arguments), turned


def _argument(v: Any, is_last: bool) -> jax.ShapeDtypeStruct:
  shape = _rotated(v.aval.shape) if is_last else v.aval.shape
  return jax.ShapeDtypeStruct(shape, v.aval.dtype, weak_type=v.aval.weak_type)


def _rotated(sizes: Sequence[int]) -> tuple[int, ...]:
  return (*sizes[1:], sizes[0])


def _plan(jaxpr: core.Jaxpr, given: set[Any]) -> _Plan:
  """The plan of a step, some of whose arguments have the batch last."""
  products = _products(jaxpr)
  factors = _turned_factors(jaxpr, products)
  plan = _Plan({}, [])
  for v in (*jaxpr.constvars, *jaxpr.invars):
    plan.sides[v] = 'last' if v in given else _side_of(v)
  for equation in jaxpr.eqns:
    way = _way_of(equation, plan.sides)
    if equation.outvars and equation.outvars[0] in products:
      value = products[equation.outvars[0]].invars[0]
      if value in factors or plan.is_last(value):
        way = 'product'
    plan.ways.append(way)
    made: list[Any] = equation.outvars
    for v in made:
      if v.aval.ndim < 2 or way == 'first':
        plan.sides[v] = _side_of(v)
      else:
        plan.sides[v] = 'either' if way == 'either' else 'last'
  return plan


def _products(jaxpr: core.Jaxpr) -> dict[Any, core.JaxprEqn]:
  """The products that may be turned, by the variable that they define."""
  depends = dependence(jaxpr)
  return {
    e.outvars[0]: e
    for e in jaxpr.eqns
    if is_product_of_rows(e)
    and depends[e.invars[0]] == LOOP
    and depends[e.invars[1]] == CONSTANTS
    and all(map(_is_known, e.invars))
  }


def _is_known(v: Any) -> bool:
  """Whether it is of float32 or wider, and no size is a symbol."""
  dtype = v.aval.dtype
  return (
    jnp.issubdtype(dtype, jnp.floating)
    and dtype.itemsize >= 4
    and all(isinstance(n, int) for n in v.aval.shape)
  )


def _turned_factors(jaxpr, products: dict[Any, core.JaxprEqn]) -> set[Any]:
  """The values whose products are turned."""
  gaining = [e for e in products.values() if _gains(*e.invars)]
  if not gaining or _work(gaining) < _LEAST_SHARE * _work(products.values()):
    return set()
  factors = {e.invars[0] for e in gaining}
  # What has one product turned has all, so that it is kept once; so has what
  # is added to it, so that they stay one sum.
  added = {v: {e.invars[0]} for v, e in products.items()}
  for equation in jaxpr.eqns:
    terms = variables_of(equation.invars)
    if equation.primitive is primitives.add_p and added.keys() >= set(terms):
      values = set().union(*(added[v] for v in terms))
      added[equation.outvars[0]] = values
      if values & factors:
        factors |= values
  return factors


def _side_of(v: Any) -> _Side:
  """Of a variable that is made with the batch first, or has none."""
  one = v.aval.ndim < 2 or v.aval.shape[0] in (1, v.aval.size)
  return 'either' if one else 'first'


def _gains(value, weight) -> bool:
  """Whether a product by itself is faster turned."""
  rows, size = value.aval.shape[0], weight.aval.size
  return (
    weight.aval.ndim == 2
    and weight.aval.shape[1] > 1
    and rows >= _LEAST_ROWS
    and rows * size >= _LEAST_WORK
  )


def _work(products: Iterable[Any]) -> int:
  """Multiply-adds of one row."""
  return sum(e.invars[1].aval.size for e in products)


def _way_of(equation, sides) -> _Side:
  """How an equation that is no product with a weight is best run."""
  if _batch_last(equation) is None:
    return 'first'
  if equation.primitive is primitives.broadcast_in_dim_p:
    return 'either'
  arrays = {sides[v] for v in variables_of(equation.invars) if v.aval.ndim > 1}
  if 'last' in arrays:
    return 'last'
  one = len(equation.outvars) == 1
  return 'either' if one and arrays == {'either'} else 'first'


def _batch_last(equation) -> dict[str, Any] | None:
  """Parameters of an equation whose operands all have the batch last.

  None where rows are mixed or moved, or nothing is known of the primitive.
  """
  name, params = equation.primitive.name, equation.params
  if any(params.get(p) is not None for p in ('sharding', 'out_sharding')):
    return None
  shapes = [v.aval.shape for v in equation.invars]
  made = equation.outvars[0].aval.shape if equation.outvars else ()
  if name in _ELEMENTWISE:
    same = all(len(shape) in (0, len(made)) for shape in shapes)
    return params if same else None
  if name in _REDUCTIONS and 0 not in params['axes']:
    return {**params, 'axes': tuple(a - 1 for a in params['axes'])}
  if name == 'broadcast_in_dim' and len(shapes) == 1:
    axes = params['broadcast_dimensions']
    if axes and axes[0] == 0:
      axes = (*axes[1:], len(made))
    return {
      **params,
      'shape': _rotated(made) if made else (),
      'broadcast_dimensions': tuple(a - 1 for a in axes),
    }
  same_rows = made and shapes and shapes[0][:1] == made[:1]
  if name == 'reshape' and params['dimensions'] is None and same_rows:
    return {**params, 'new_sizes': _rotated(made)}
  if name == 'squeeze' and 0 not in params['dimensions']:
    return {**params, 'dimensions': tuple(d - 1 for d in params['dimensions'])}
  if name == 'slice' and same_rows:
    return {k: v and _rotated(v) for k, v in params.items()}
  along = {'concatenate': 'dimension', 'split': 'axis'}.get(name)
  if along and params[along]:
    return {**params, along: params[along] - 1}
  return None


class _Value:
  """An array with the batch first, or last, or both, made when asked for."""

  def __init__(self, **makers: Callable[[], Any]):
    self._makers, self._made = makers, {}

  def get(self, side: str) -> Any:
    """The array with the batch 'first' or 'last'."""
    if side not in self._made:
      if side in self._makers:
        self._made[side] = self._makers[side]()
      else:
        (other,) = self._makers
        x = self.get(other)
        axes = (0, -1) if side == 'last' else (-1, 0)
        self._made[side] = jnp.moveaxis(x, *axes) if x.ndim > 1 else x
    return self._made[side]


def _run(closed, plan: _Plan, turned, *arguments) -> list[Array]:
  """Runs the step by its plan."""
  jaxpr = closed.jaxpr
  env: dict[Any, _Value] = {}

  def define(v, side, x):
    env[v] = _Value(**{side: lambda: x})

  def read(atom, side):
    return atom.val if isinstance(atom, core.Literal) else env[atom].get(side)

  def bind(equation, side):
    if side == 'first':
      values = {v: read(v, 'first') for v in variables_of(equation.invars)}
      run_equations(jaxpr, [equation], values)
      return [values.get(v) for v in equation.outvars]
    without = equation.primitive is primitives.broadcast_in_dim_p and (
      equation.params['broadcast_dimensions'][:1] != (0,)
    )
    operands = [
      read(v, 'first' if without else 'last') for v in equation.invars
    ]
    params = _batch_last(equation) or {}
    made = equation.primitive.bind(*operands, **params)
    return made if equation.primitive.multiple_results else [made]

  for v, x in zip(jaxpr.constvars, closed.consts):
    define(v, 'first', x)
  for v, x in zip(jaxpr.invars, arguments):
    define(v, 'last' if plan.is_last(v) else 'first', x)
  for equation, way in zip(jaxpr.eqns, plan.ways):
    if way == 'product':
      value, weight = equation.invars
      side = 'last' if plan.is_last(value) else 'first'
      made = turned_product(
        equation, read(value, side), read(weight, 'first'), side == 'last'
      )
      define(equation.outvars[0], 'last', made)
    elif way == 'either':
      (v,) = equation.outvars
      one = lambda side, e=equation: bind(e, side)[0]
      env[v] = _Value(
        **{side: functools.partial(one, side) for side in ('first', 'last')}
      )
    else:
      for v, x in zip(equation.outvars, bind(equation, way)):
        define(v, way, x)
  sides = ('last' if last else 'first' for last in turned)
  return [jnp.asarray(read(v, side)) for v, side in zip(jaxpr.outvars, sides)]
