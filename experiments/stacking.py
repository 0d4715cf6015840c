"""The small arrays of a tree stacked in few, for the optimiser.

XLA compiles programs of their own for every array that a step updates, and a
model has dozens of small ones: biases, columns, gates of small layers.
"""

from typing import Any

import jax
import jax.numpy as jnp

LARGEST = 1 << 16  # numbers of an array that is stacked; copies of more cost


class Stacking:
  """Small arrays with the same columns become rows of one array.

  An array keeps its number of axes, so that what is done to matrices alone
  (weight decay) is done to the same numbers; and its columns, so that what is
  spread over devices by columns stays so.

  Args:
    tree: arrays, of which shapes and dtypes are used.
  """

  def __init__(self, tree: Any):
    leaves, self._tree = jax.tree.flatten(tree)
    self._rows = [x.shape[0] if x.ndim else 0 for x in leaves]
    groups: dict[Any, list[int]] = {}
    for index, x in enumerate(leaves):
      stacks = x.ndim and x.size <= LARGEST
      key = (x.shape[1:], x.dtype) if stacks else index
      groups.setdefault(key, []).append(index)
    self._groups = list(groups.values())
    self._stacks = jax.tree.structure(dict.fromkeys(self._names(), 0))

  def _names(self) -> list[str]:
    return [f'stack_{k}' for k in range(len(self._groups))]

  def pack(self, trees: Any) -> Any:
    """Stacks each part of `trees` that has the structure of the tree."""

    def stack(part):
      if jax.tree.structure(part) != self._tree:
        return part
      leaves = jax.tree.leaves(part)
      stacks = (
        jnp.concatenate([leaves[k] for k in group]) if group[1:]
        else leaves[group[0]]
        for group in self._groups
      )  # fmt: skip
      return dict(zip(self._names(), stacks))

    is_part = lambda part: jax.tree.structure(part) == self._tree
    return jax.tree.map(stack, trees, is_leaf=is_part)

  def unpack(self, trees: Any) -> Any:
    """What `pack` was given."""

    def split(part):
      if jax.tree.structure(part) != self._stacks:
        return part
      leaves: list[Any] = [None] * len(self._rows)
      for name, group in zip(self._names(), self._groups):
        start = 0
        for k in group:
          end = start + self._rows[k]
          leaves[k] = part[name][start:end] if group[1:] else part[name]
          start = end
      return jax.tree.unflatten(self._tree, leaves)

    is_part = lambda part: jax.tree.structure(part) == self._stacks
    return jax.tree.map(split, trees, is_leaf=is_part)
