"""The small arrays of a tree stacked in few, for the optimiser.

XLA compiles programs of their own for every array that a step updates, and a
model has dozens of small ones: biases, columns, gates of small layers.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import sharding

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

  def pack(self, trees: Any, on_host: bool = False) -> Any:
    """Stacks each part of `trees` that has the tree's structure and shapes.

    Args:
      trees: a pytree with such parts.
      on_host: with numpy, which compiles nothing; stacks are numpy arrays.

    Returns:
      The same with stacks in the place of these parts.
    """
    lib = np if on_host else jnp

    def is_tree(part):
      return (
        jax.tree.structure(part) == self._tree
        and [x.shape for x in jax.tree.leaves(part)] == self._shapes
      )

    def stack(part):
      leaves = jax.tree.leaves(part)
      rows = lambda k: lib.reshape(leaves[k], (-1, *self._columns[k]))
      return {
        name: leaves[group[0]]
        if self._is_whole(group)
        else lib.concatenate([rows(k) for k in group])
        for name, group in self._groups.items()
      }

    return _map_parts(stack, is_tree, trees)

  def unpack(self, trees: Any, on_host: bool = False) -> Any:
    """What `pack` was given."""

    def is_stacks(part):
      return jax.tree.structure(part) == self._stacks

    def split(part):
      leaves: list[Any] = [None] * len(self._shapes)
      for name, group in self._groups.items():
        stack, start = part[name], 0
        if self._is_whole(group):
          leaves[group[0]] = stack
          continue
        if on_host:
          stack = np.array(stack)
        for k in group:
          shape, columns = self._shapes[k], self._columns[k]
          rows = math.prod(shape) // math.prod(columns)
          leaves[k] = stack[start : start + rows].reshape(shape)
          start += rows
      return jax.tree.unflatten(self._tree, leaves)

    return _map_parts(split, is_stacks, trees)

  def _is_whole(self, group: list[int]) -> bool:
    """Whether a stack is one array as it is."""
    first = group[0]
    is_same = self._shapes[first][1:] == self._columns[first]
    return len(group) == 1 and is_same and bool(self._shapes[first])


class Moments:
  """Moments of the optimiser, stacked between steps and whole on disk.

  Both are made on the host: nothing is compiled, and large arrays, which are
  not stacked, stay where they are.

  Args:
    stacking: how; None: they are whole between steps, too.
    place: sharding of what is made.
  """

  def __init__(self, stacking: Stacking | None, place: jax.sharding.Sharding):
    self._stacking, self._place = stacking, place

  def stacked(self, state: Any) -> Any:
    """The training state as the steps take it."""
    return self._changed(state, Stacking.pack)

  def whole(self, state: Any) -> Any:
    """The training state as it is saved."""
    return self._changed(state, Stacking.unpack)

  def _changed(self, state: Any, change: Callable) -> Any:
    if self._stacking is None:
      return state
    put = lambda x: (
      sharding.put(x, self._place) if isinstance(x, np.ndarray) else x
    )
    changed = change(self._stacking, state.opt_state, on_host=True)
    return state._replace(opt_state=jax.tree.map(put, changed))


def _map_parts(function, is_part, trees: Any) -> Any:
  """`function` of all parts of trees of a kind; the rest as it is."""
  return jax.tree.map(
    lambda part: function(part) if is_part(part) else part,
    trees,
    is_leaf=is_part,
  )
