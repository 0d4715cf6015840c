"""Sums and what is made of them as one equation, for GPUs."""

import functools
from collections.abc import Sequence
from typing import Protocol

import jax
from jax.extend import core
from jax.interpreters import batching, mlir

from hman_jax.types import Array


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


# A primitive, so that `scan` finds it among the step's equations.
fused_p = core.Primitive('fused')
fused_p.multiple_results = True


def operands_of(operands, num_sums: int):
  """(value, weights, biases, others) of the operands of `fused_p`."""
  value, *rest = operands
  n = num_sums
  return value, rest[:n], rest[n : 2 * n], rest[2 * n :]


def _fused(*operands, rule: Fused, num_sums: int):
  sums, results = rule.forward(*operands_of(operands, num_sums))
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
