"""The small arrays of a tree stacked in few, for the optimiser.

XLA compiles programs of their own for every array that a step updates, and a
model has dozens of small ones: biases, columns, gates of small layers.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

LARGEST = 1 << 16  # numbers of an array that is stacked; copies of more cost


class Stacking:
  """Small vectors and numbers become one vector, small matrices one matrix.

  One of each dtype, and arrays of more axes likewise. They are not mixed: what
  is done to matrices alone (weight decay) is done to the same numbers.

  Args:
    tree: arrays, of which shapes and dtypes are used.
    by_columns: stack matrices of the same columns only, and keep these, so that
      what is spread over devices by columns stays so.
  """

  def __init__(self, tree: Any, by_columns: bool = False):
    leaves, self._tree = jax.tree.flatten(tree)
    self._shapes = [x.shape for x in leaves]
    keeps = lambda x: (by_columns and x.size) or x.size > LARGEST
    self._columns = [
      (x.shape if keeps(x) else (1,) * x.ndim)[1:] for x in leaves
    ]
    groups: dict[Any, list[int]] = {}
    for index, x in enumerate(leaves):
      key = (self._columns[index], x.dtype) if x.size <= LARGEST else index
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
      leaves = [
        x.reshape(-1, *columns)
        for x, columns in zip(jax.tree.leaves(part), self._columns)
      ]
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
          shape, columns = self._shapes[k], self._columns[k]
          rows = math.prod(shape) // math.prod(columns)
          leaves[k] = part[name][start : start + rows].reshape(shape)
          start += rows
      return jax.tree.unflatten(self._tree, leaves)

    return _map_parts(split, is_stacks, trees)


class Moments:
  """Moments of the optimiser, stacked between steps and whole on disk.

  Args:
    stacking: how; None: they are whole between steps, too.
    place: sharding of stacks and of what they are made of.
  """

  def __init__(self, stacking: Stacking | None, place: jax.sharding.Sharding):
    same = lambda opt_state: opt_state
    self._pack, self._unpack = same, same
    if stacking is not None:
      self._pack = jax.jit(stacking.pack, out_shardings=place)
      self._unpack = jax.jit(stacking.unpack, out_shardings=place)

  def stacked(self, state: Any) -> Any:
    """The training state as the steps take it."""
    return state._replace(opt_state=self._pack(state.opt_state))

  def whole(self, state: Any) -> Any:
    """The training state as it is saved."""
    return state._replace(opt_state=self._unpack(state.opt_state))


def _map_parts(function, is_part, trees: Any) -> Any:
  """`function` of all parts of trees of a kind; the rest as it is."""
  return jax.tree.map(
    lambda part: function(part) if is_part(part) else part,
    trees,
    is_leaf=is_part,
  )
