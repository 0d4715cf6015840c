"""Equations of a jaxpr: what they read, and running some of them."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from hman_jax.types import Array

# What a variable of a step depends on.
NOTHING, CONSTANTS, LOOP = range(3)


def variables_of(atoms: Sequence[Any]) -> list[Any]:
  """The variables among atoms, each once."""
  return list(
    dict.fromkeys(v for v in atoms if not isinstance(v, core.Literal))
  )


def is_float(v: Any) -> bool:
  """Whether a variable may have a gradient."""
  return jnp.issubdtype(v.aval.dtype, jnp.inexact)


def is_numeric(v: Any) -> bool:
  """Whether a variable holds numbers, not keys."""
  return not jnp.issubdtype(v.aval.dtype, jax.dtypes.extended)


def shape_of(v: Any) -> jax.ShapeDtypeStruct:
  """Shape and dtype of a variable, for tracing."""
  return jax.ShapeDtypeStruct(
    v.aval.shape, v.aval.dtype, weak_type=v.aval.weak_type
  )


def value_in(env: dict[Any, Any], atom: Any) -> Any:
  """The value of a variable or literal."""
  return atom.val if isinstance(atom, core.Literal) else env[atom]


def dependence(jaxpr: core.Jaxpr) -> dict[Any, int]:
  """What each variable of a step depends on: NOTHING, CONSTANTS or LOOP.

  A constant that is larger than what it is made of is made at each step.
  """
  depends: dict[Any, int] = {v: CONSTANTS for v in jaxpr.constvars}
  depends.update({v: LOOP for v in jaxpr.invars})
  for equation in jaxpr.eqns:
    level = max((depends[v] for v in variables_of(equation.invars)), default=0)
    if equation.effects or (level == CONSTANTS and grows(equation)):
      level = LOOP
    depends.update({v: level for v in equation.outvars})
  return depends


def grows(equation: core.JaxprEqn) -> bool:
  """Whether the result is larger; a symbolic size (`jax.export`) is large."""
  made: list[Any] = equation.outvars
  read = variables_of(equation.invars)
  if not all(isinstance(n, int) for v in made for n in v.aval.shape):
    return True
  size = lambda variables: sum(
    v.aval.size * v.aval.dtype.itemsize for v in variables
  )
  return size(made) > size(read)


def run_equations(like: core.Jaxpr, equations, env: dict[Any, Any]) -> None:
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
    for v in variables_of([v for e in equations for v in e.invars])
    if v not in made
  ]
  jaxpr = core.Jaxpr(
    (), read, list(made), list(equations), debug_info=like.debug_info
  )
  function = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))
  env.update(zip(made, function(*(env[v] for v in read))))


def apply_equation(like: core.Jaxpr, equation: core.JaxprEqn, values) -> Array:
  """One equation of one output on the values of its variables."""
  env = dict(zip(variables_of(equation.invars), values))
  run_equations(like, [equation], env)
  return env[equation.outvars[0]]


def pull_equation(
  like: core.Jaxpr, equation: core.JaxprEqn, gradient, values, _
):
  """The gradients of the variables of an equation of one output."""
  apply = functools.partial(apply_equation, like, equation)
  _, pull = jax.vjp(lambda *x: apply(x), *values)
  return pull(gradient)
