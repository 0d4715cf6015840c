"""Reading a step: what is invariant, which sums it has, what must be saved."""

import dataclasses
import functools
from collections import Counter
from typing import Any

import jax
from jax.extend import core
from jax.extend.core import primitives

from hman_jax.deferred.equations import (
  CONSTANTS,
  LOOP,
  dependence,
  grows,
  is_float,
  is_numeric,
  pull_equation,
  run_equations,
  shape_of,
  value_in,
  variables_of,
)
from hman_jax.deferred.fusion import fused_p, operands_of
from hman_jax.deferred.layout import lay_out
from hman_jax.deferred.products import PRODUCTS, Product, Sum
from hman_jax.types import Array

# Piecewise constant, of floating type: see `_is_decision`.
_ROUNDING = ('ceil', 'floor', 'round', 'sign')


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
  """One step as equations, and the plan for its backward pass.

  Attributes:
    jaxpr: the step; its invars are consts, carry, inputs, keys.
    consts, carry, inputs, keys: its invars by kind.
    sums: the sums that are differentiated, by the variable they define.
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
  sums: dict[Any, Sum]
  kept: list[Any]
  live: frozenset[int]
  direct: frozenset[Any]
  values: list[Any]
  carry_needed: list[bool]

  @property
  def carry_out(self) -> list[Any]:
    """The new carry."""
    return self.jaxpr.outvars[: len(self.carry)]

  @property
  def outputs(self) -> list[Any]:
    """What a step puts out."""
    return self.jaxpr.outvars[len(self.carry) :]

  @property
  def packs(self) -> bool:
    """Whether a list of what a step saves is written as one vector."""
    return any(e.primitive is fused_p for e in self.jaxpr.eqns)

  @property
  def saved(self) -> tuple[list[Any], list[Any], list[Any]]:
    """The variables that a step saves: its sums, of its carry, and others.

    Apart, so that a new carry, or a sum's gradient, may take their place.
    """
    carry = [v for v, n in zip(self.carry, self.carry_needed) if n]
    others = [v for v in self.kept if v not in self.sums]
    return list(self.sums), carry, others

  def factors(self, consts) -> dict[Any, Array]:
    """Weights for `rerun`, by the variable that their product defines."""
    of = dict(zip(self.consts, consts))
    return {
      product.output: product.factor(of[product.weight])
      for total in self.sums.values()
      for product in total.products
    }

  def rerun(self, env, kept: dict[Any, Any], factors: dict[Any, Any]) -> None:
    """Rebuilds from what was kept whatever the derivative depends on."""
    waiting: list[core.JaxprEqn] = []

    def flush():
      run_equations(self.jaxpr, waiting, env)
      waiting.clear()

    for index, equation in enumerate(self.jaxpr.eqns):
      if not equation.outvars:  # an effect, which happened forward
        continue
      output, *more = equation.outvars
      if equation.primitive is fused_p and output in kept:
        flush()
        n = equation.params['num_sums']
        value, weights, _, others = operands_of(
          [value_in(env, v) for v in equation.invars], n
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
        pull = functools.partial(pull_equation, self.jaxpr, equation)
        operands = tuple(env[v] for v in variables_of(equation.invars))
        env[output] = _recall(pull, kept[output], operands, ())
      elif index in self.live:
        waiting.append(equation)
      else:
        env.update({v: kept[v] for v in (output, *more) if v in kept})
    flush()


def read_step(
  closed: core.ClosedJaxpr, num_carry: int, num_inputs: int, may_turn: bool
) -> tuple[Steps, list[Any], list[bool]]:
  """A step of arrays with the batch first: its plan, constants and layout.

  Returns:
    (steps, consts, turned): the plan, the values of its loop-invariant
    variables, and of each result (and so of the carry) whether it has the
    batch last, which is so only if it `may_turn`.
  """
  closed = _inlined(closed)
  turned = [False] * len(closed.jaxpr.outvars)
  if may_turn:
    closed, turned = lay_out(closed, num_carry)
  jaxpr = closed.jaxpr
  depends = dependence(jaxpr)
  level = lambda e: depends[e.outvars[0]] if e.outvars else LOOP
  before = [e for e in jaxpr.eqns if level(e) != LOOP]
  body = [e for e in jaxpr.eqns if level(e) != CONSTANTS]
  env = dict(zip(jaxpr.constvars, closed.consts))
  run_equations(jaxpr, before, env)
  read = {v for e in body for v in variables_of(e.invars)}
  read |= set(variables_of(jaxpr.outvars))
  consts = [v for v in env if depends[v] == CONSTANTS and v in read]
  # What depends on nothing is computed in the loop, where XLA folds it.
  steps = _plan(jaxpr, body, consts, num_carry, num_inputs)
  return steps, [env[v] for v in consts], turned


def _inlined(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
  """The same function without nested calls of `jit`."""

  def run(jaxpr, consts, *args):
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args]))
    waiting: list[core.JaxprEqn] = []
    for equation in jaxpr.eqns:
      if equation.primitive is not primitives.jit_p:
        waiting.append(equation)
        continue
      run_equations(jaxpr, waiting, env)
      waiting = []
      inner = equation.params['jaxpr']
      results = run(
        inner.jaxpr, inner.consts, *(value_in(env, v) for v in equation.invars)
      )
      env.update(zip(equation.outvars, results))
    run_equations(jaxpr, waiting, env)
    return [value_in(env, v) for v in jaxpr.outvars]

  avals = [shape_of(v) for v in closed.jaxpr.invars]
  return jax.make_jaxpr(
    functools.partial(run, closed.jaxpr, closed.consts)
  )(*avals)  # fmt: skip


def _plan(jaxpr, equations, consts, num_carry, num_inputs) -> Steps:
  carry, inputs, keys = (
    jaxpr.invars[:num_carry],
    jaxpr.invars[num_carry : num_carry + num_inputs],
    jaxpr.invars[num_carry + num_inputs :],
  )
  sums = _sums(equations, frozenset(consts), jaxpr.outvars)
  for equation in equations:  # now: no addition continues these
    if equation.primitive is fused_p:
      sums.update(_of_fused(equation, frozenset(consts)))
  drawn = _drawn(equations, jaxpr.invars, [*consts, *carry, *inputs])
  needed = {v for v in variables_of(jaxpr.outvars) if is_float(v)}
  live, kept, read = set(), set(), set()
  for index in reversed(range(len(equations))):
    equation = equations[index]
    made = needed.intersection(equation.outvars)
    if not made:
      continue
    output = equation.outvars[0]
    if equation.primitive is fused_p:
      n = equation.params['num_sums']
      value, weights, _, others = operands_of(equation.invars, n)
      kept.update(equation.outvars[:n])
      needed.update(variables_of([value, *weights, *others]))
      read.update(variables_of(others))
    elif output in sums:
      kept.add(output)
      needed.update(sums[output].values)
    elif _is_decision(equation) or output in drawn:
      kept.update(made)
    else:
      live.add(index)
      needed.update(variables_of(equation.invars))
      if equation.primitive in PRODUCTS:
        kept.add(output)
  read.update(v for i in live for v in variables_of(equations[i].invars))
  order = [v for e in equations for v in e.outvars if v in kept]
  used = [sums[v] for v in order if v in sums]
  return Steps(
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
    kept=order,
    live=frozenset(live),
    direct=frozenset(v for v in consts if v in read or v in jaxpr.outvars),
    values=list(dict.fromkeys(v for total in used for v in total.values)),
    carry_needed=[v in needed for v in carry],
  )


def _sums(equations, consts, outvars) -> dict[Any, Sum]:
  """The largest sums of products with invariant weights, by variable."""
  uses = Counter(v for e in equations for v in variables_of(e.invars))
  uses.update(variables_of(outvars))
  sums: dict[Any, Sum] = {}
  for equation in equations:
    if equation.primitive in PRODUCTS:
      product = _as_product(equation, consts)
      if product:
        sums[equation.outvars[0]] = Sum((product,), ())
    elif equation.primitive is primitives.add_p:
      terms = _as_terms(equation, sums, consts, uses)
      if terms:
        for v in equation.invars:
          sums.pop(v, None)
        sums[equation.outvars[0]] = terms
  return sums


def _of_fused(equation, consts) -> dict[Any, Sum]:
  """The sums of a `fused` equation, by variable."""
  rule, n = equation.params['rule'], equation.params['num_sums']
  value, weights, biases, _ = operands_of(equation.invars, n)
  sums = {}
  for k, (output, w, b) in enumerate(zip(equation.outvars, weights, biases)):
    closed = jax.make_jaxpr(functools.partial(rule.product, k))(
      shape_of(value), shape_of(w)
    )
    (product,) = closed.jaxpr.eqns
    product = product.replace(invars=[value, w], outvars=[output])
    invariant = lambda v: not isinstance(v, core.Literal) and v in consts
    sums[output] = Sum(
      (Product(product, value, w),) if invariant(w) else (),
      (b,) if invariant(b) else (),
    )
  return sums


def _as_product(equation, consts) -> Product | None:
  """The product of an equation if its weight is invariant, or None."""
  left, right, *_ = equation.invars
  _, batch = equation.params.get('dimension_numbers', ((), ()))
  if any(batch) or (left in consts) == (right in consts):
    return None
  value, weight = (right, left) if left in consts else (left, right)
  if isinstance(value, core.Literal) or not is_float(weight):
    return None
  return Product(equation, value, weight)


def _as_terms(equation, sums, consts, uses) -> Sum | None:
  """The sum that an addition continues, or None."""
  (output,) = equation.outvars
  total = Sum((), ())
  for v in equation.invars:
    if isinstance(v, core.Literal):
      return None
    if v in consts and v.aval.ndim in (0, output.aval.ndim):
      total = total._replace(biases=(*total.biases, v))
    elif v in sums and uses[v] == 1 and v.aval.shape == output.aval.shape:
      total = Sum(
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
  chosen = all(is_numeric(v) and not is_float(v) for v in equation.outvars)
  return chosen and any(
    is_float(v) or not is_numeric(v) for v in variables_of(equation.invars)
  )


def _drawn(equations, at_step, sources) -> set[Any]:
  """Floats that no gradient goes through, such as noise made of bits.

  What is made of fewer bytes, as a one-hot vector, is better made again.
  """
  varying, moving = set(at_step), {v for v in sources if is_float(v)}
  drawn = set()
  for equation in equations:
    read = variables_of(equation.invars)
    floats = {v for v in equation.outvars if is_float(v)}
    if moving.intersection(read) and not _is_decision(equation):
      moving |= floats
    elif floats and varying.intersection(read) and not grows(equation):
      drawn |= floats
    if varying.intersection(read):
      varying.update(equation.outvars)
  return drawn


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
