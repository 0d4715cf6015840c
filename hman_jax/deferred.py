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
- Afterwards dW_i = sum_t x_i^T ds is one matrix product over all steps and
  rows, and db one sum.
- A `fused` equation, sums and what is made of them in one, keeps its sums and
  brings a derivative of its own. It is for GPUs, where a launch costs more than
  a copy: all that such a step saves is written as one vector.
- An input that is not differentiated gets no gradient, and inputs are read
  where they lie, one step's slice at a time.

Whatever is not part of a sum is differentiated by JAX as it stands: the result
is that of autodiff for any step, up to the order of summation.
"""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend import core
from jax.extend.core import primitives
from jax.interpreters import batching, mlir

from hman_jax.precision import rounded_dot_p
from hman_jax.types import Array, Key, PyTree

Body = Callable[[Any, Any], tuple[Any, Any]]

# What a variable of the step depends on.
_NOTHING, _CONSTANTS, _LOOP = range(3)

_PRODUCTS = (primitives.dot_general_p, rounded_dot_p)

# Rows from which on a product is turned, and up to which also forward.
_TURNED_FROM, _TURNED_TO = 16, 128

# Numbers of a weight from which on its products turn; small ones lose by it.
# And its rows, from which on they do so forward too, where gates turn back.
_TURNED_SIZE, _TURNED_ROWS = 512 * 2048, 1280

# Piecewise constant, of floating type: see `_is_decision`.
_ROUNDING = ('ceil', 'floor', 'round', 'sign')


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
    >>> body = lambda c, at: (c + at[0] @ w, c)
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
  steps, consts = _read(closed, len(flat_carry), len(flat_inputs))
  order = jnp.arange(length)
  if reverse:
    order, flat_keys = order[::-1], [k[::-1] for k in flat_keys]
  run = jax.custom_vjp(functools.partial(_primal, steps, remat))
  run.defvjp(
    functools.partial(_forward, steps, remat),
    functools.partial(_backward, steps, remat),
    symbolic_zeros=True,
  )
  last, outputs = run(consts, flat_carry, flat_inputs, flat_keys, order)
  if reverse:
    outputs = [y[::-1] for y in outputs]
  return carry_tree.unflatten(last), out_trees[0].unflatten(outputs)


class Fused(Protocol):
  """Sums s_k = x W_k + b_k and what is made of them, computed as one.

  Hashable, so that a step which uses it twice is compiled once.
  """

  def forward(
    self, value: Array, weights: list, biases: list, others: list
  ) -> tuple[list, list]:
    """(sums, results): one sum for each weight."""
    ...

  def results(self, sums: list, others: list) -> list:
    """The results, made again of the sums."""
    ...

  def backward(
    self, weights: list, sums: list, others: list, d_sums: list, d_results: list
  ) -> tuple[list, Array, list]:
    """Gradients of (sums, value, others), those of weights left out.

    `d_sums` is what else the sums are read for.
    """
    ...

  def product(self, k: int, value: Array, weight: Array) -> Array:
    """x W_k as one product."""
    ...


def fused(
  rule: Fused,
  value: Array,
  weights: Sequence[Array],
  biases: Sequence[Array],
  others: Sequence[Array],
) -> tuple[list[Array], list[Array]]:
  """A `Fused` in the step of a `scan`, the only place that differentiates it.

  Args:
    rule: what is computed.
    value: x `[B, F]`.
    weights: W_k, which no step changes.
    biases: b_k, which no step changes, of as many axes as the sum, or scalars.
    others: arrays that the results are made of beside the sums.

  Returns:
    (sums, results) of `rule.forward`.
  """
  made = fused_p.bind(
    value, *weights, *biases, *others, rule=rule, num_sums=len(weights)
  )
  return made[: len(weights)], made[len(weights) :]


def segments(length: int) -> list[tuple[int, int, int]]:
  """Splits `length` steps into about sqrt(length) segments.

  Args:
    length: number of steps, at least 1.

  Returns:
    A list of (first, count, size): `count` segments of `size` steps from step
    `first` on; one or two entries, which cover all steps in order.

  Example:
    >>> segments(11)
    [(0, 2, 4), (8, 1, 3)]
  """
  size = math.isqrt(length - 1) + 1
  count, rest = divmod(length, size)
  parts = [(0, count, size)]
  return parts + [(count * size, 1, rest)] if rest else parts


def split(x: Array, part: tuple[int, int, int]) -> Array:
  """The steps of one entry of `segments`: `[T, ...]` to `[count, size, ...]`.

  Args:
    x: array `[T, ...]`.
    part: (first, count, size).

  Returns:
    Array `[count, size, ...]`.

  Example:
    >>> split(jnp.arange(11), (0, 2, 4)).tolist()
    [[0, 1, 2, 3], [4, 5, 6, 7]]
  """
  first, count, size = part
  x = x[first : first + count * size]
  return x.reshape(count, size, *x.shape[1:])


def _without(x: Array, axis: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape[:axis] + x.shape[axis + 1 :], x.dtype)


# A primitive, so that `scan` finds it among the step's equations.
fused_p = core.Primitive('fused')
fused_p.multiple_results = True


def _parts(operands, num_sums: int):
  """(value, weights, biases, others) of the operands of `fused_p`."""
  value, *rest = operands
  n = num_sums
  return value, rest[:n], rest[n : 2 * n], rest[2 * n :]


def _fused(*operands, rule: Fused, num_sums: int):
  sums, results = rule.forward(*_parts(operands, num_sums))
  return [*sums, *results]


def _fused_abstract(*avals, **params):
  made = jax.eval_shape(functools.partial(_fused, **params), *avals)
  return [avals[0].update(shape=m.shape, dtype=m.dtype) for m in made]


def _fused_batched(operands, axes, **params):
  made = jax.vmap(functools.partial(_fused, **params), axes)(*operands)
  return made, [0] * len(made)


fused_p.def_impl(_fused)
fused_p.def_abstract_eval(_fused_abstract)
mlir.register_lowering(fused_p, mlir.lower_fun(_fused, multiple_results=True))
batching.primitive_batchers[fused_p] = _fused_batched


# Reading the step: what is invariant, which sums it has, what must be saved.


class _Product(NamedTuple):
  """A value times an invariant weight.

  XLA's CPU library lays the right factor of a product out anew each time it
  runs: at each step, a whole weight for a few rows. Here such a product of
  bfloat16 factors *turns*: s = (W^T x^T)^T, and dx = (W ds^T)^T, with the
  weight on the left. Float32 ones hardly gain.
  """

  equation: core.JaxprEqn
  value: Any
  weight: Any

  @property
  def output(self) -> Any:
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

  @property
  def turns(self) -> bool:
    """Whether it turns in the backward pass."""
    shape = self.value.aval.shape
    return (
      jax.default_backend() == 'cpu'
      and self.equation.primitive is rounded_dot_p
      and self.equation.invars[0] is self.value
      and len(shape) == 2
      and isinstance(shape[0], int)
      and shape[0] >= _TURNED_FROM
      and self.weight.aval.size >= _TURNED_SIZE
      and self.weight.aval.shape[1] > 1
    )

  @property
  def turns_forward(self) -> bool:
    """Whether it turns in the forward pass too: few rows, of many numbers."""
    num_rows, size = self.value.aval.shape
    return self.turns and num_rows < _TURNED_TO and size >= _TURNED_ROWS

  def apply(self, like: core.Jaxpr, value: Array, weight: Array) -> Array:
    in_order = (value, weight)
    if self.equation.invars[0] is not self.value:
      in_order = (weight, value)
    return _apply(like, self.equation, in_order)

  def pull(self, like: core.Jaxpr, value, weight, gradient) -> Array:
    """The gradient of the value; `weight` is a factor if the product turns."""
    if self.turns:
      return _turn(_rows_times(weight, gradient.astype(jnp.bfloat16)))
    _, pull = jax.vjp(lambda x: self.apply(like, x, weight), value)
    return pull(gradient)[0]


class _Sum(NamedTuple):
  """s = sum of products and of invariant biases."""

  products: tuple[_Product, ...]
  biases: tuple[Any, ...]

  @property
  def values(self) -> tuple[Any, ...]:
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


@dataclasses.dataclass(frozen=True, eq=False)
class _Steps:
  """One step as equations, and the plan for its backward pass.

  Attributes:
    jaxpr: the step; its invars are consts, carry, inputs, keys.
    consts, carry, inputs, keys: its invars by kind.
    sums: the sums that are differentiated, by the variable they define.
    turned: the sums with a product that is turned forward, likewise.
    inside: the variables on the way to these.
    kept: variables whose value is saved forward, in order.
    live: indices of the equations that the backward pass runs again.
    direct: the consts that those equations read.
    values: the variables on the left of all products, each once.
    carry_needed: for each of the carry, whether the backward pass reads it.
  """

  jaxpr: core.Jaxpr
  consts: list[Any]
  carry: list[Any]
  inputs: list[Any]
  keys: list[Any]
  sums: dict[Any, _Sum]
  turned: dict[Any, _Sum]
  inside: set[Any]
  kept: list[Any]
  live: frozenset[int]
  direct: frozenset[Any]
  values: list[Any]
  carry_needed: list[bool]

  @property
  def carry_out(self) -> list[Any]:
    return self.jaxpr.outvars[: len(self.carry)]

  @property
  def outputs(self) -> list[Any]:
    return self.jaxpr.outvars[len(self.carry) :]

  @property
  def packs(self) -> bool:
    """Whether what a step saves is written as one vector."""
    return any(e.primitive is fused_p for e in self.jaxpr.eqns)

  @property
  def saved(self) -> tuple[list[Any], list[Any]]:
    """The variables that a step saves: of its carry, and `kept`.

    Apart, so that a new carry may take the place of the old one.
    """
    carry = [v for v, n in zip(self.carry, self.carry_needed) if n]
    return carry, self.kept

  def turned_weights(self, consts) -> dict[Any, Array]:
    """Weights for `run`, by the variable that their product defines."""
    of = dict(zip(self.consts, consts))
    return {
      product.output: of[product.weight].astype(jnp.bfloat16).T
      for total in self.turned.values()
      for product in total.products
      if product.turns_forward
    }

  def factors(self, consts) -> dict[Any, Array]:
    """Weights for `rerun`, by the variable that their product defines."""
    of = dict(zip(self.consts, consts))
    return {
      product.output: (
        of[product.weight].astype(jnp.bfloat16)
        if product.turns
        else of[product.weight]
      )
      for total in self.sums.values()
      for product in total.products
    }

  def run(self, env: dict[Any, Any], turned: dict[Any, Any]) -> None:
    """Runs all equations on the values in `env`, which is added to."""
    if not turned:
      _run(self.jaxpr, self.jaxpr.eqns, env)
      return
    waiting: list[core.JaxprEqn] = []
    for equation in self.jaxpr.eqns:
      output = equation.outvars[0] if equation.outvars else None
      if output in self.turned:
        _run(self.jaxpr, waiting, env)
        waiting.clear()
        env[output] = self.turned[output].apply(self.jaxpr, env, turned)
      elif output not in self.inside:
        waiting.append(equation)
    _run(self.jaxpr, waiting, env)

  def rerun(self, env, kept: dict[Any, Any], factors: dict[Any, Any]) -> None:
    """Rebuilds from what was kept whatever the derivative depends on."""
    waiting: list[core.JaxprEqn] = []

    def flush():
      _run(self.jaxpr, waiting, env)
      waiting.clear()

    for index, equation in enumerate(self.jaxpr.eqns):
      if not equation.outvars:  # an effect, which happened forward
        continue
      output, *more = equation.outvars
      if equation.primitive is fused_p and output in kept:
        flush()
        n = equation.params['num_sums']
        value, weights, _, others = _parts(
          [_value(env, v) for v in equation.invars], n
        )
        sums = [kept[v] for v in equation.outvars[:n]]
        made: Any = _recall_fused(
          equation.params['rule'], sums, value, weights, others
        )
        env.update(zip(equation.outvars, made))
      elif output in self.sums and output in kept:
        flush()
        total = self.sums[output]
        weights = tuple(factors[p.output] for p in total.products)
        values = tuple(env[v] for v in total.values)
        pull = functools.partial(total.pull, self.jaxpr)
        env[output] = _recall(pull, kept[output], values, weights)
      elif index in self.live and output in kept:
        flush()
        pull = functools.partial(_pull, self.jaxpr, equation)
        operands = tuple(env[v] for v in _variables(equation.invars))
        env[output] = _recall(pull, kept[output], operands, ())
      elif index in self.live:
        waiting.append(equation)
      else:
        env.update({v: kept[v] for v in (output, *more) if v in kept})
    flush()


def _read(
  closed: core.ClosedJaxpr, num_carry: int, num_inputs: int
) -> tuple[_Steps, list[Any]]:
  """The step's plan, and the values of its loop-invariant variables."""
  closed = _inlined(closed)
  jaxpr = closed.jaxpr
  depends: dict[Any, int] = {v: _CONSTANTS for v in jaxpr.constvars}
  depends.update({v: _LOOP for v in jaxpr.invars})
  before, body = [], []
  for equation in jaxpr.eqns:
    level = max((depends[v] for v in _variables(equation.invars)), default=0)
    if equation.effects or (level == _CONSTANTS and _grows(equation)):
      level = _LOOP
    depends.update({v: level for v in equation.outvars})
    if level != _LOOP:
      before.append(equation)
    if level != _CONSTANTS:
      body.append(equation)
  env = dict(zip(jaxpr.constvars, closed.consts))
  _run(jaxpr, before, env)
  read = {v for e in body for v in _variables(e.invars)}
  read |= set(_variables(jaxpr.outvars))
  consts = [v for v in env if depends[v] == _CONSTANTS and v in read]
  # What depends on nothing is computed in the loop, where XLA folds it.
  steps = _plan(jaxpr, body, consts, num_carry, num_inputs)
  return steps, [env[v] for v in consts]


def _inlined(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
  """The same function without nested calls of `jit`."""

  def run(jaxpr, consts, *args):
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args]))
    waiting: list[core.JaxprEqn] = []
    for equation in jaxpr.eqns:
      if equation.primitive is not primitives.jit_p:
        waiting.append(equation)
        continue
      _run(jaxpr, waiting, env)
      waiting = []
      inner = equation.params['jaxpr']
      results = run(
        inner.jaxpr, inner.consts, *(_value(env, v) for v in equation.invars)
      )
      env.update(zip(equation.outvars, results))
    _run(jaxpr, waiting, env)
    return [_value(env, v) for v in jaxpr.outvars]

  avals = [_shape(v) for v in closed.jaxpr.invars]
  return jax.make_jaxpr(
    functools.partial(run, closed.jaxpr, closed.consts)
  )(*avals)  # fmt: skip


def _plan(jaxpr, equations, consts, num_carry, num_inputs) -> _Steps:
  carry, inputs, keys = (
    jaxpr.invars[:num_carry],
    jaxpr.invars[num_carry : num_carry + num_inputs],
    jaxpr.invars[num_carry + num_inputs :],
  )
  sums, inside = _sums(equations, frozenset(consts), jaxpr.outvars)
  turned = {
    v: total
    for v, total in sums.items()
    if any(product.turns_forward for product in total.products)
  }
  for equation in equations:  # now: no addition continues these, none turns
    if equation.primitive is fused_p:
      sums.update(_of_fused(equation, frozenset(consts)))
  drawn = _drawn(equations, jaxpr.invars, [*consts, *carry, *inputs])
  needed = {v for v in _variables(jaxpr.outvars) if _is_float(v)}
  live, kept, read = set(), set(), set()
  for index in reversed(range(len(equations))):
    equation = equations[index]
    made = needed.intersection(equation.outvars)
    if not made:
      continue
    output = equation.outvars[0]
    if equation.primitive is fused_p:
      n = equation.params['num_sums']
      value, weights, _, others = _parts(equation.invars, n)
      kept.update(equation.outvars[:n])
      needed.update(_variables([value, *weights, *others]))
      read.update(_variables(others))
    elif output in sums:
      kept.add(output)
      needed.update(sums[output].values)
    elif _is_decision(equation) or output in drawn:
      kept.update(made)
    else:
      live.add(index)
      needed.update(_variables(equation.invars))
      if equation.primitive in _PRODUCTS:
        kept.add(output)
  read.update(v for i in live for v in _variables(equations[i].invars))
  order = [v for e in equations for v in e.outvars if v in kept]
  used = [sums[v] for v in order if v in sums]
  return _Steps(
    jaxpr=core.Jaxpr(
      (),
      [*consts, *jaxpr.invars],
      jaxpr.outvars,
      equations,
      jaxpr.effects,
      jaxpr.debug_info,
    ),
    consts=consts,
    carry=carry,
    inputs=inputs,
    keys=keys,
    sums={v: sums[v] for v in order if v in sums},
    turned=turned,
    inside={v for v in inside if inside[v] in turned},
    kept=order,
    live=frozenset(live),
    direct=frozenset(v for v in consts if v in read or v in jaxpr.outvars),
    values=list(dict.fromkeys(v for total in used for v in total.values)),
    carry_needed=[v in needed for v in carry],
  )


def _sums(equations, consts, outvars) -> tuple[dict[Any, _Sum], dict[Any, Any]]:
  """The largest sums of products with invariant weights, by variable.

  And the variables inside them, with the variable of their sum.
  """
  uses = Counter(v for e in equations for v in _variables(e.invars))
  uses.update(_variables(outvars))
  sums: dict[Any, _Sum] = {}
  parts: dict[Any, list[Any]] = {}
  for equation in equations:
    if equation.primitive in _PRODUCTS:
      product = _as_product(equation, consts)
      if product:
        sums[equation.outvars[0]] = _Sum((product,), ())
    elif equation.primitive is primitives.add_p:
      terms = _as_terms(equation, sums, consts, uses)
      if terms:
        (output,) = equation.outvars
        parts[output] = []
        for v in equation.invars:
          if sums.pop(v, None):
            parts[output] += [v, *parts.pop(v, ())]
        sums[output] = terms
  return sums, {v: total for total, vs in parts.items() for v in vs}


def _of_fused(equation, consts) -> dict[Any, _Sum]:
  """The sums of a `fused` equation, by variable."""
  rule, n = equation.params['rule'], equation.params['num_sums']
  value, weights, biases, _ = _parts(equation.invars, n)
  sums = {}
  for k, (output, w, b) in enumerate(zip(equation.outvars, weights, biases)):
    closed = jax.make_jaxpr(functools.partial(rule.product, k))(
      _shape(value), _shape(w)
    )
    (product,) = closed.jaxpr.eqns
    product = product.replace(invars=[value, w], outvars=[output])
    invariant = lambda v: not isinstance(v, core.Literal) and v in consts
    sums[output] = _Sum(
      (_Product(product, value, w),) if invariant(w) else (),
      (b,) if invariant(b) else (),
    )
  return sums


def _as_product(equation, consts) -> _Product | None:
  """The product of an equation if its weight is invariant, or None."""
  left, right = equation.invars
  _, batch = equation.params.get('dimension_numbers', ((), ()))
  if any(batch) or (left in consts) == (right in consts):
    return None
  value, weight = (right, left) if left in consts else (left, right)
  if isinstance(value, core.Literal) or not _is_float(weight):
    return None
  return _Product(equation, value, weight)


def _as_terms(equation, sums, consts, uses) -> _Sum | None:
  """The sum that an addition continues, or None."""
  (output,) = equation.outvars
  total = _Sum((), ())
  for v in equation.invars:
    if isinstance(v, core.Literal):
      return None
    if v in consts and v.aval.ndim in (0, output.aval.ndim):
      total = total._replace(biases=(*total.biases, v))
    elif v in sums and uses[v] == 1 and v.aval.shape == output.aval.shape:
      total = _Sum(
        total.products + sums[v].products, total.biases + sums[v].biases
      )
    else:
      return None
  return total if total.products else None


def _is_decision(equation: core.JaxprEqn) -> bool:
  """Whether an equation draws or chooses, so that no gradient goes through.

  Run again it could choose otherwise, at a tie or by another rounding.
  """
  if equation.primitive.name in _ROUNDING:
    return True
  chosen = all(_is_plain(v) and not _is_float(v) for v in equation.outvars)
  return chosen and any(
    _is_float(v) or not _is_plain(v) for v in _variables(equation.invars)
  )


def _drawn(equations, at_step, sources) -> set[Any]:
  """Floats that no gradient goes through, such as noise made of bits.

  What is made of fewer bytes, as a one-hot vector, is better made again.
  """
  varying, moving = set(at_step), {v for v in sources if _is_float(v)}
  drawn = set()
  for equation in equations:
    read = _variables(equation.invars)
    floats = {v for v in equation.outvars if _is_float(v)}
    if moving.intersection(read) and not _is_decision(equation):
      moving |= floats
    elif floats and varying.intersection(read) and not _grows(equation):
      drawn |= floats
    if varying.intersection(read):
      varying.update(equation.outvars)
  return drawn


def _grows(equation: core.JaxprEqn) -> bool:
  """Whether the result is larger; a symbolic size (`jax.export`) is large."""
  made: list[Any] = equation.outvars
  read = _variables(equation.invars)
  if not all(isinstance(n, int) for v in made for n in v.aval.shape):
    return True
  size = lambda variables: sum(
    v.aval.size * v.aval.dtype.itemsize for v in variables
  )
  return size(made) > size(read)


def _variables(atoms: Sequence[Any]) -> list[Any]:
  """The variables among atoms, each once."""
  return list(
    dict.fromkeys(v for v in atoms if not isinstance(v, core.Literal))
  )


def _is_float(v: Any) -> bool:
  return jnp.issubdtype(v.aval.dtype, jnp.inexact)


def _is_plain(v: Any) -> bool:
  """Whether a variable holds numbers, not keys."""
  return not jnp.issubdtype(v.aval.dtype, jax.dtypes.extended)


def _shape(v: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(
    v.aval.shape, v.aval.dtype, weak_type=v.aval.weak_type
  )


def _value(env: dict[Any, Any], atom: Any) -> Any:
  return atom.val if isinstance(atom, core.Literal) else env[atom]


def _run(like: core.Jaxpr, equations, env: dict[Any, Any]) -> None:
  """Runs equations on the values in `env`, and adds what they define."""
  if not equations:
    return
  made = dict.fromkeys(
    v
    for e in equations
    for v in e.outvars
    if not isinstance(v, core.DropVar)
  )  # fmt: skip
  read = [
    v
    for v in _variables([v for e in equations for v in e.invars])
    if v not in made
  ]
  jaxpr = core.Jaxpr(
    (), read, list(made), list(equations), debug_info=like.debug_info
  )
  function = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))
  env.update(zip(made, function(*(env[v] for v in read))))


def _apply(like: core.Jaxpr, equation: core.JaxprEqn, values) -> Array:
  """One equation of one output on the values of its variables."""
  env = dict(zip(_variables(equation.invars), values))
  _run(like, [equation], env)
  return env[equation.outvars[0]]


def _pull(like: core.Jaxpr, equation: core.JaxprEqn, gradient, values, _):
  """The gradients of the variables of an equation of one output."""
  apply = functools.partial(_apply, like, equation)
  _, pull = jax.vjp(lambda *x: apply(x), *values)
  return pull(gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recall(pull, kept, operands, fixed):
  """What was `kept` of a function of operands whose gradient `pull` gives."""
  del pull, operands, fixed
  return kept


def _recall_forward(pull, kept, operands, fixed):
  return _recall(pull, kept, operands, fixed), (operands, fixed)


def _recall_backward(pull, saved, gradient):
  return gradient, pull(gradient, *saved), None


_recall.defvjp(_recall_forward, _recall_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recall_fused(rule, sums, value, weights, others):
  """What `fused` made, whose sums are known; these get their gradient."""
  del value, weights
  return [*sums, *rule.results(sums, others)]


def _recall_fused_forward(rule, sums, value, weights, others):
  made = _recall_fused(rule, sums, value, weights, others)
  return made, (sums, weights, others)


def _recall_fused_backward(rule, saved, gradients):
  sums, weights, others = saved
  d_sums, d_results = gradients[: len(sums)], gradients[len(sums) :]
  d_sums, d_value, d_others = rule.backward(
    weights, sums, others, d_sums, d_results
  )
  return d_sums, d_value, None, d_others


_recall_fused.defvjp(_recall_fused_forward, _recall_fused_backward)


# Running the steps: forward, and backward.


def _loop(
  steps: _Steps, consts, turned, carry, inputs, keys, order, save: bool
):
  """Runs steps: (carry, (outputs, saved))."""
  if not _stays_loop(order):
    turned = {}

  def body(carry, at):
    index, keys = at
    env = _env(steps, consts, carry, inputs, keys, index)
    steps.run(env, turned)
    read = lambda atoms: [jnp.asarray(_value(env, v)) for v in atoms]
    saved = None
    if save:
      saved = [_pack(steps, [env[v] for v in vs]) for vs in steps.saved]
    return read(steps.carry_out), (read(steps.outputs), saved)

  return jax.lax.scan(body, carry, (order, keys))


def _pack(steps: _Steps, arrays: list[Array]) -> Any:
  """The arrays; of a step that `packs`, one vector for each dtype."""
  if not steps.packs:
    return arrays
  parts: dict[str, list[Array]] = {}
  for x in arrays:
    parts.setdefault(str(x.dtype), []).append(x.ravel())
  return {dtype: jnp.concatenate(xs) for dtype, xs in parts.items()}


def _unpack(
  steps: _Steps, packed: Any, variables: Sequence[Any]
) -> list[Array]:
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


def _stays_loop(order: Array) -> bool:
  """Whether XLA keeps the loop over these steps.

  Of a single step it folds transpositions into the products, which then fail at
  run time if they are of bfloat16.
  """
  return isinstance(order.shape[0], int) and order.shape[0] > 1


def _env(steps: _Steps, consts, carry, inputs, keys, index):
  at_step = [
    jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False)
    for x in inputs
  ]
  names = (*steps.consts, *steps.carry, *steps.inputs, *steps.keys)
  return dict(zip(names, (*consts, *carry, *at_step, *keys)))


def _loop_from_starts(steps: _Steps, consts, carry, inputs, keys, order):
  """Runs steps by segments: (carry, outputs, carries before segments)."""
  outputs, starts = [], []
  turned = steps.turned_weights(consts)
  for part in segments(order.shape[0]):

    def segment(carry, at):
      order, keys = at
      last, (outputs, _) = _loop(
        steps, consts, turned, carry, inputs, keys, order, save=False
      )
      return last, (outputs, carry)

    carry, (some, before) = jax.lax.scan(
      segment, carry, (split(order, part), [split(k, part) for k in keys])
    )
    outputs.append([y.reshape(-1, *y.shape[2:]) for y in some])
    starts.append(before)
  return carry, [jnp.concatenate(ys) for ys in zip(*outputs)], starts


def _primal(steps: _Steps, remat, consts, carry, inputs, keys, order):
  del remat
  turned = steps.turned_weights(consts)
  carry, (outputs, _) = _loop(
    steps, consts, turned, carry, inputs, keys, order, save=False
  )
  return carry, outputs


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Perturbed:
  """Which consts and inputs are differentiated."""

  consts: tuple[bool, ...]
  inputs: tuple[bool, ...]


def _forward(steps: _Steps, remat, *args):
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
    turned = steps.turned_weights(consts)
    last, (outputs, saved) = _loop(
      steps, consts, turned, carry, inputs, keys, order, save=True
    )
  return (last, outputs), (perturbed, consts, inputs, keys, order, saved)


def _is_argument(x: Any) -> bool:
  return isinstance(x, jax.custom_derivatives.CustomVJPPrimal)


def _backward(steps: _Steps, remat, residuals, cotangents):
  perturbed, consts, inputs, keys, order, saved = residuals
  d_carry, d_outputs = cotangents
  d_carry = [
    jnp.zeros(v.aval.shape, v.aval.dtype) if type(d) is SymbolicZero else d
    for d, v in zip(d_carry, steps.carry)
    if _is_float(v)
  ]
  given = {
    i: d
    for i, (d, v) in enumerate(zip(d_outputs, steps.outputs))
    if _is_float(v) and type(d) is not SymbolicZero
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
    turned = steps.turned_weights(consts)

    def segment(back, at):
      d_carry, d_consts = back
      carry, order, keys, given = at
      _, (_, saved) = _loop(
        steps, consts, turned, carry, inputs, keys, order, save=True
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
    [next(floats) if _is_float(v) else None for v in steps.carry],
    [whole.get(i) for i in range(len(inputs))],
    [None] * len(keys),
    None,
  )


def _with_gradient(steps: _Steps, perturbed: _Perturbed) -> set[int]:
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
  steps: _Steps,
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

  turned = [
    product
    for total in steps.sums.values()
    for product in total.products
    if product.turns and _stays_loop(order)
  ]
  turned_values = list(dict.fromkeys(product.value for product in turned))
  stacked = list(dict.fromkeys(
    product.value
    for total in steps.sums.values()
    for product in total.products
    if product not in turned and index_of[product.weight] in differentiated
  ))  # fmt: skip

  def body(back, at):
    d_carry, d_direct, columns = back
    position, index, keys, saved, given = at
    kept = {}
    for variables, packed in zip(steps.saved, saved):
      kept.update(zip(variables, _unpack(steps, packed, variables)))
    carry = [
      kept[v] if n else jnp.zeros(v.aval.shape, v.aval.dtype)
      for v, n in zip(steps.carry, steps.carry_needed)
    ]
    env = _env(steps, consts, carry, inputs, keys, index)
    floats = [v for v in steps.carry if _is_float(v)]
    moved = [steps.inputs[i] for i in moving]
    read = [steps.consts[i] for i in direct]

    def step(*groups):
      at = dict(env)
      for names, values in zip((floats, moved, read), groups):
        at.update(zip(names, values))
      sums = dict(zip(steps.sums, groups[3]))
      steps.rerun(at, {**kept, **sums}, factors)
      get = lambda atoms: [jnp.asarray(_value(at, v)) for v in atoms]
      results = (
        get(v for c, v in zip(steps.carry, steps.carry_out) if _is_float(c)),
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
        x, value_of[v].astype(jnp.bfloat16).T, position, axis=1
      )
      for x, v in zip(columns, turned_values)
    ]
    values = [value_of[v] for v in stacked]
    made = _pack(steps, [*d_moved, *d_sums, *values])
    return (d_carry, d_direct, columns), made

  # A loop that writes columns is the transposition that XLA leaves to itself:
  # it would fold any other into the product, and make that one of float32.
  length = order.shape[0]
  columns = [
    jnp.zeros((v.aval.shape[1], length, v.aval.shape[0]), jnp.bfloat16)
    for v in turned_values
  ]
  (d_carry, d_direct, columns), made = jax.lax.scan(
    body,
    (d_carry, [jnp.zeros_like(consts[i]) for i in direct], columns),
    (jnp.arange(length), order, keys, saved, given),
    reverse=True,
  )
  made = _unpack(
    steps,
    made,
    [*(steps.inputs[i] for i in moving), *steps.sums, *stacked],
  )
  d_moved, made = made[: len(moving)], made[len(moving) :]
  d_sums, values = made[: len(steps.sums)], made[len(steps.sums) :]
  d_consts = dict(zip(direct, d_direct))

  def add(v, gradient):
    i = index_of[v]
    d_consts[i] = d_consts[i] + gradient if i in d_consts else gradient

  value_of = dict(zip(stacked, values))
  columns_of = dict(zip(turned_values, columns))
  for total, d_sum in zip(steps.sums.values(), d_sums):
    for product in total.products:
      at = index_of[product.weight]
      if at not in differentiated:
        continue
      if product in turned:
        gradient = _turned_weight_gradient(columns_of[product.value], d_sum)
      else:
        gradient = _weight_gradient(
          steps.jaxpr, product, consts[at], value_of[product.value], d_sum
        )
      add(product.weight, gradient)
    for bias in total.biases:
      if index_of[bias] in differentiated:
        add(bias, _bias_gradient(consts[index_of[bias]], d_sum))
  return d_carry, d_consts, dict(zip(moving, d_moved))


def _weight_gradient(like, product, weight, values, d_sums) -> Array:
  """One product over all steps and rows."""
  if product.is_plain:  # as JAX forms it, XLA makes it slower: a transposed one
    return jnp.einsum('tbk,tbn->kn', values, d_sums)
  over_steps = lambda w: jax.vmap(lambda x: product.apply(like, x, w))
  _, pull = jax.vjp(lambda w: over_steps(w)(values), weight)
  return pull(d_sums)[0]


def _turned_weight_gradient(columns: Array, d_sums: Array) -> Array:
  """Of bfloat16 values `[K, T, B]` and gradients `[T, B, N]`: `[K, N]`."""
  gradient = jax.lax.dot_general(
    columns.reshape(columns.shape[0], -1),
    d_sums.astype(jnp.bfloat16).reshape(-1, d_sums.shape[-1]),
    (((1,), (0,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  # XLA must not turn the product if the gradient is transposed.
  return jax.lax.optimization_barrier(gradient)


def _bias_gradient(bias, d_sums) -> Array:
  shape = d_sums.shape[1:]
  _, pull = jax.vjp(lambda b: jnp.broadcast_to(b, shape), bias)
  return pull(d_sums.sum(axis=0))[0]
