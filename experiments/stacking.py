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

  Vectors and single numbers are not stacked with matrices, so that what is done
  to matrices alone (weight decay) is done to the same numbers; and an array
  keeps its columns, so that what is spread over devices by columns stays so.

  Args:
    tree: arrays, of which shapes and dtypes are used.
  """

  def __init__(self, tree: Any):
    leaves, self._tree = jax.tree.flatten(tree)
    self._shapes = [x.shape for x in leaves]
    groups: dict[Any, list[int]] = {}
    for index, x in enumerate(leaves):
      key = (x.shape[1:], x.dtype) if x.size <= LARGEST else index
      groups.setdefault(key, []).append(index)
    self._groups = {f'stack_{k}': g for k, g in enumerate(groups.values())}
    self._stacks = jax.tree.structure(dict.fromkeys(self._groups, 0))

  def pack(self, trees: Any) -> Any:
    """Stacks each part of `trees` that has the tree's structure and shapes."""

    def is_tree(part):
      return (
        jax.tree.structure(part) == self._tree
        and [x.shape for x in jax.tree.leaves(part)] == self._shapes
      )

    def stack(part):
      leaves = [jnp.atleast_1d(x) for x in jax.tree.leaves(part)]
      return {
        name: jnp.concatenate([leaves[k] for k in group])
        if len(group) > 1 else leaves[group[0]]
        for name, group in self._groups.items()
      }  # fmt: skip

    return _map_parts(stack, is_tree, trees)

  def unpack(self, trees: Any) -> Any:
    """What `pack` was given."""

    def is_stacks(part):
      return jax.tree.structure(part) == self._stacks

    def split(part):
      leaves: list[Any] = [None] * len(self._shapes)
      for name, group in self._groups.items():
        start = 0
        for k in group:
          shape = self._shapes[k]
          rows = shape[0] if shape else 1
          leaves[k] = part[name][start : start + rows].reshape(shape)
          start += rows
      return jax.tree.unflatten(self._tree, leaves)

    return _map_parts(split, is_stacks, trees)


def _map_parts(function, is_part, trees: Any) -> Any:
  """`function` of all parts of trees of a kind; the rest as it is."""
  return jax.tree.map(
    lambda part: function(part) if is_part(part) else part,
    trees,
    is_leaf=is_part,
  )
